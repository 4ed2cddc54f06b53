"""`import retrograde` is quick: what only some users need is imported when they need it."""

from __future__ import annotations

import subprocess
import sys

LAZY = [
    *("networkx", "scipy", "graphviz", "rich", "click", "safetensors", "ml_dtypes"),
    *("torch", "jax", "cupy", "sympy"),
]


def fresh(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_import_takes_at_most_0_4_seconds() -> None:
    code = (
        "import time; start = time.perf_counter(); import retrograde;"
        "print(time.perf_counter() - start)"
    )
    times = [float(fresh(code)) for _ in range(5)]
    assert min(times) <= 0.4, times


def test_import_leaves_heavy_libraries_alone() -> None:
    loaded = set(fresh("import sys, retrograde; print(*sys.modules)").split())
    assert "retrograde" in loaded
    assert loaded.isdisjoint(LAZY), loaded & set(LAZY)
