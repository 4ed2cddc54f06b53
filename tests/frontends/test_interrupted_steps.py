"""Ctrl-C while a step runs: the step is done, then it is heard; the state is never half new."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp


def training() -> rg.TrainStep:
    return rg.compile_training(
        lambda w, x: rnp.mean(rnp.tanh(x @ w) ** 2),
        np.linspace(-1.0, 1.0, 3),
        rg.optim.Adam(0.1),
        {"x": rg.spec("f64", "B", 3)},
    )


def disturbed(step: rg.TrainStep, disturb: Callable[[], None]) -> None:
    """`disturb` is called each time before the updates are made."""
    run = step._run.executable.run

    def first(*args: Any) -> Any:
        disturb()
        return run(*args)

    step._run.executable.run = first  # type: ignore[method-assign]


X = np.arange(6.0).reshape(2, 3)


def test_ctrl_c_waits_for_the_step() -> None:
    step, other = training(), training()
    other(x=X)
    disturbed(step, lambda: signal.raise_signal(signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        step(x=X)
    assert signal.getsignal(signal.SIGINT) is before
    for name, x in other.state()[0].items():
        np.testing.assert_array_equal(step.state()[0][name], x)


def test_a_second_one_does_not_wait() -> None:
    step = training()
    after = []

    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        after.append("not reached")

    disturbed(step, twice)
    with pytest.raises(KeyboardInterrupt):
        step(x=X)
    assert not after and step.state()[0]["step"] == 0


def test_steps_run_in_other_threads() -> None:
    step = training()
    thread = threading.Thread(target=lambda: step(x=X))
    thread.start()
    thread.join()
    assert step.state()[0]["step"] == 1
