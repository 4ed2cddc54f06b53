"""RETROGRADE_ variables: what they ask for happens, and no number changes by it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import hashlib
import numpy as np
import retrograde as rg
import retrograde.numpy as rnp

def loss(ws, x, key):
    h = x
    for w in ws:
        h = rnp.where(rg.random.bernoulli(key, 0.7, h.shape), np.tanh(h @ w), 0.0) + h
    s = h @ h.T
    s = rnp.where(rnp.tril(rnp.ones(s.shape, dtype=bool)), s, -np.inf)
    e = np.exp(s - s.max(-1, keepdims=True))
    start = rnp.zeros(h.shape[1:], dtype=h.dtype)
    c, _ = rg.scan(lambda c, q: (np.sin(c + q), None), start, e / e.sum(-1, keepdims=True) @ h)
    return rnp.mean(c**2)

rng = np.random.default_rng(0)
ws = [rng.standard_normal((6, 6)).astype(np.float32) for _ in range(3)]
step = rg.compile(
    rg.value_and_grad(loss), [rg.spec("f32", 6, 6)] * 3, rg.spec("f32", "B", 6), rg.spec("u32", 2)
)
other = rg.compile(lambda x: x * 2, rg.spec("f32", "B"))
seen = hashlib.sha256()
for rows in (1, 5, 2, 9, 5):
    x = rng.standard_normal((rows, 6)).astype(np.float32)
    value, grads = step(ws, x, rg.random.key(rows))
    assert np.isfinite(value)
    for array in (value, *grads, other(x[:, 0])):
        seen.update(array.tobytes())
print(seen.hexdigest())
"""


def run(**variables: str) -> subprocess.CompletedProcess[str]:
    given = {k: v for k, v in os.environ.items() if not k.startswith("RETROGRADE_")}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**given, **variables}, capture_output=True, text=True
    )


def test_no_setting_changes_a_bit(tmp_path: Path) -> None:
    plain = run(PYTHONHASHSEED="1")
    assert plain.returncode == 0, plain.stderr
    for variables in (
        {"PYTHONHASHSEED": "77", "RETROGRADE_VERIFY": "1"},
        {"RETROGRADE_POISON": "1"},
        {"RETROGRADE_NO_REUSE": "1"},
        {"RETROGRADE_POISON": "1", "RETROGRADE_NO_REUSE": "1"},
        {"RETROGRADE_DUMP": str(tmp_path / "dump")},
    ):
        other = run(**variables)
        assert (other.stdout, other.stderr) == (plain.stdout, ""), variables


def test_every_program_is_dumped(tmp_path: Path) -> None:
    assert run(RETROGRADE_DUMP=str(tmp_path / "dump")).returncode == 0
    first, second = tmp_path / "dump", tmp_path / "dump" / "2-function"
    for folder, name in ((first, "graph loss"), (second, "graph function")):
        assert name in (folder / "00-trace.ir").read_text()
        assert "def bind(" in (folder / "schedule.py").read_text()
        assert "peak" in (folder / "plan.txt").read_text()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run(RETROGRADE_DUMP=str(tmp_path / "file" / "dump"))
    assert done.returncode == 1
    assert "DataError: RETROGRADE_DUMP: cannot make the folder" in done.stderr
