"""The same bits: in two processes, after a kill at any moment, in every mode of the memory plan."""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrograde.runtime.training import checkpoint

PROGRAM = Path(__file__).with_name("program.py")
_spec = importlib.util.spec_from_file_location("training_program", PROGRAM)
assert _spec is not None and _spec.loader is not None
program: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(program)

STEPS = 24


def start(directory: Path, *options: str, hash_seed: str = "0") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), str(directory), str(STEPS), *options],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.split()[-1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the run that nothing interrupts."""
    return finished(start(tmp_path_factory.mktemp("whole") / "run", hash_seed="1"))


def test_two_processes_with_different_hash_seeds_give_the_same_bits(
    whole: str, tmp_path: Path
) -> None:
    assert finished(start(tmp_path / "run", hash_seed="2")) == whole


def test_a_killed_run_resumes_to_the_same_bits(whole: str, tmp_path: Path) -> None:
    moments = random.Random(11)
    directory = tmp_path / "run"
    kills = 0
    for _ in range(30):
        begun = checkpoint.exists(directory)
        process = start(directory, *(["--resume"] if begun else []))
        wait = 0.0
        while process.poll() is None and not checkpoint.exists(directory) and wait < 60:
            time.sleep(0.02)  # the first save may take a while on a busy machine
            wait += 0.02
        try:
            process.wait(timeout=0.45 + moments.random() * 0.5 if begun else moments.random() * 0.1)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            assert not checkpoint.exists(directory) or checkpoint.load(directory)
            if kills < 4:
                continue
            process = start(directory, "--resume")
        assert finished(process) == whole
        break
    else:
        pytest.fail("the run never ended")
    assert kills


@pytest.mark.parametrize("variable", ["RETROGRADE_POISON", "RETROGRADE_NO_REUSE"])
def test_poison_and_no_reuse_change_no_bit(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def states() -> list[dict[str, Any]]:
        step, source = program.make_step(), program.batches()
        found = []
        for _ in range(4):
            step(**next(source))
            found.append(step.state()[0])
        return found

    plain = states()
    monkeypatch.setenv(variable, "1")
    other = states()
    for a, b in zip(plain, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].tobytes() == b[name].tobytes(), name


def test_one_program_runs_200_random_sizes_without_recompiling() -> None:
    step = program.make_step()
    source = step.source()
    sizes = random.Random(2)
    numbers = np.random.default_rng(4)
    seen = set()
    for _ in range(200):
        shape = (sizes.randint(1, 9), sizes.randint(1, 12))
        seen.add(shape)
        tokens = numbers.integers(0, 128, shape).astype(np.int32)
        metrics = step(tokens=tokens, targets=tokens)
        assert np.isfinite(metrics["loss"])
        assert step.plan(B=shape[0], T=shape[1]).peak_bytes == step.peak()(B=shape[0], T=shape[1])
    assert len(seen) > 60
    assert step.source() == source


def test_updates_of_state_are_in_place() -> None:
    """No parameter or moment of a plain training step is copied."""
    assert "donated state" not in program.make_step().source()
