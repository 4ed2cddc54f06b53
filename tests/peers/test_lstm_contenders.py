"""The contenders of benchmarks/lstm_step.py compute the same thing, step after step."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed (make peers)")

from benchmarks import lstm_step, retrograde_lstm  # after torch is known to be there
from benchmarks.measure import Timing
from benchmarks.peers import jax_lstm, torch_lstm
from benchmarks.problem import LSTMProblem

PROBLEM = LSTMProblem(length=7, batch=3, width=5, vocab=11, clip_norm=0.2)
HAS_JAX = importlib.util.find_spec("jax") is not None


def test_losses_and_gradients_agree() -> None:
    loss, truth = torch_lstm.loss_and_gradients(PROBLEM, "loop")
    others = [
        retrograde_lstm.loss_and_gradients(PROBLEM),
        torch_lstm.loss_and_gradients(PROBLEM, "library"),
        *([jax_lstm.loss_and_gradients(PROBLEM)] if HAS_JAX else []),
    ]
    assert truth.keys() == PROBLEM.weights().keys()
    for value, gradients in others:
        assert value == pytest.approx(loss, rel=1e-6)
        assert gradients.keys() == truth.keys()
        for name, g in gradients.items():
            np.testing.assert_allclose(g, truth[name], rtol=1e-4, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("name", lstm_step.CONTENDERS)
def test_training_goes_the_same_way(name: str) -> None:
    """Loss and gradient norm of six steps: clipping, decay and moments are the same too."""
    if name == "jax-scan" and not HAS_JAX:
        pytest.skip("jax is not installed (make peers)")

    def run(name: str) -> list[tuple[float, float]]:
        names = [name]
        (entry,) = lstm_step.entries_of(lstm_step.CONTENDERS, names, PROBLEM, PROBLEM.tiny(), 1)
        contender = entry.build(entry.arguments)
        assert contender.persistent_bytes == 3 * sum(x.nbytes for x in PROBLEM.weights().values())
        return [contender.step() for _ in range(6)]  # type: ignore[misc]

    np.testing.assert_allclose(run(name), run(lstm_step.BASE), rtol=2e-5)


def test_a_limit_that_is_missed_is_told() -> None:
    timings = [Timing("retrograde", (2.0, 2.2)), Timing("torch-cell", (1.0, 1.2))]
    assert lstm_step.failures(PROBLEM, 2.0, timings) == []
    assert "time ratio 1.909 is above 1.5" in lstm_step.failures(PROBLEM, 1.5, timings)[0]
    assert lstm_step.failures(PROBLEM, 1.5, timings[1:]) == [
        "a limit needs both retrograde and torch-cell in the run"
    ]
    assert lstm_step.failures(PROBLEM, None, timings) == []
