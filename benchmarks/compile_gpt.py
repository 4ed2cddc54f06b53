"""Compiling a GPT, each time in a fresh process: seconds, calls of the C compiler, a new size.

    python -m benchmarks.compile_gpt 4 native 2      one compilation, as JSON; `measure` starts it

The seconds go from the traced model to the end of the first step, less a step as it takes later.
What the machine pays once, the search for a compiler that works, is counted apart, and Python has
its bytecode, as that of an installed package has: one compilation goes before those that are timed.
A new (B, T) is the first step at a size not seen before, less a later one at that size; what
binding it takes is also counted without any step, which touches the memory that the size adds.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.problem import GPTProblem
from benchmarks.workload import OWN

ROOT = Path(__file__).resolve().parents[1]
LAYERS = (4, 48)
Figures = dict[str, dict[str, float]]


def compile_here(layers: int, backend: str, threads: int) -> dict[str, float]:
    """The figures of one compilation in this process, which must be fresh."""
    calls = [0]

    def heard(event: str, _: Any) -> None:
        calls[0] += event in ("subprocess.Popen", "os.posix_spawn")

    problem = GPTProblem(layers=layers)
    start = time.perf_counter()
    import retrograde as rg

    imported = time.perf_counter() - start
    model = rg.models.GPT(vocab=problem.vocab, width=problem.width, layers=layers,
                          heads=problem.heads, context=2 * problem.length)  # fmt: skip

    def loss(model: Any, tokens: Any, targets: Any) -> Any:
        return rg.losses.cross_entropy(model(tokens), targets)

    start = time.perf_counter()
    if backend == "native":
        from retrograde.runtime.native.toolchain import find_toolchain

        find_toolchain()
    searched = time.perf_counter() - start
    sys.addaudithook(heard)
    ids = rg.spec("i32", "B", "T")
    start = time.perf_counter()
    step = rg.compile_training(
        loss, model, rg.optim.AdamW(1e-3), batch={"tokens": ids, "targets": ids}, clip_norm=1.0,
        at={"B": problem.batch, "T": problem.length}, backend=backend, threads=threads,
    )  # fmt: skip
    compiled = time.perf_counter() - start + _first_less_later(step, problem)
    before = calls[0]
    sizes = [
        GPTProblem(layers=layers, batch=problem.batch + 1 + i, length=problem.length + 3 + i)
        for i in range(3)
    ]
    executable, bindings = step._run.executable, []
    for size in sizes:
        start = time.perf_counter()
        executable.bind({"B": size.batch, "T": size.length})
        bindings.append(time.perf_counter() - start)
    sizes = [replace(size, batch=size.batch + len(sizes)) for size in sizes]
    bound = statistics.median(_first_less_later(step, size) for size in sizes)
    return {
        "import_seconds": imported,
        "search_seconds": searched,
        "compile_seconds": compiled,
        "compiler_calls": before,
        "binding_seconds": statistics.median(bindings),
        "new_size_seconds": bound,
        "new_size_compiler_calls": calls[0] - before,
    }


def _first_less_later(step: Any, problem: GPTProblem) -> float:
    batch = dict(zip(("tokens", "targets"), problem.tokens_and_targets(), strict=True))
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        step(**batch)
        seconds.append(time.perf_counter() - start)
    return max(0.0, seconds[0] - statistics.median(seconds[1:]))


def measure(threads: int, backend: str, layers: Sequence[int] = LAYERS) -> Figures:
    """Cold and then warm for each number of layers."""
    found: Figures = {}
    with tempfile.TemporaryDirectory(prefix="retrograde-bench-") as folder:
        bytecode = f"{folder}/python"
        _fresh(0, backend, threads, f"{folder}/before", bytecode)
        for count in layers:
            for state in ("cold", "warm"):
                figures = _fresh(count, backend, threads, f"{folder}/{count}", bytecode)
                found[f"{count} layers, {state}"] = figures
    return found


def _fresh(
    layers: int, backend: str, threads: int, folder: str, bytecode: str
) -> dict[str, float]:
    """The figures of a process with the compiled code in one folder and Python's in another."""
    command = [sys.executable, "-m", "benchmarks.compile_gpt", str(layers), backend, str(threads)]
    environment = {
        **os.environ, "RETROGRADE_CACHE_DIR": folder, "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPYCACHEPREFIX": bytecode, "PYTHONDONTWRITEBYTECODE": "",
    }  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def verdicts(figures: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """What compilation has to reach, with what was found."""
    few, many = (f"{layers} layers" for layers in LAYERS)
    cold = figures[f"{few}, cold"]
    limits: list[tuple[str, float | None, float]] = [
        (f"{few}, cold, s", cold["compile_seconds"], 3.0),
        (f"{few}, warm, s", figures[f"{few}, warm"]["compile_seconds"], 0.5),
        ("a new (B, T), ms", cold["new_size_seconds"] * 1e3, 20.0),
        ("binding a new (B, T), ms", max(f["binding_seconds"] for f in figures.values()) * 1e3,
         20.0),
        ("a new (B, T), compiler calls", cold["new_size_compiler_calls"], 0.0),
    ]
    deep = figures.get(f"{many}, cold")
    ratio = None if deep is None else deep["compile_seconds"] / cold["compile_seconds"]
    limits.insert(1, (f"{many}, cold, times that", ratio, 2.0))
    return [
        {
            "workload": "compile", "of": OWN, "measure": measure, "against": "at most",
            "least": most, "aim": most, "value": value,
            "verdict": "not measured" if value is None else "aim met" if value <= most
            else "NOT MET",
        }
        for measure, value, most in limits
    ]  # fmt: skip


def table(figures: Mapping[str, Mapping[str, float]]) -> Table:
    """A row for each compilation."""
    made = Table(title="compiling the training step of a GPT, T64 B12 d128 h4")
    made.add_column("GPT")
    names = list(next(iter(figures.values())))
    for name in names:
        made.add_column(name.replace("_seconds", " s").replace("_", " "), justify="right")
    for title, row in figures.items():
        made.add_row(title, *(f"{row[name]:.4g}" for name in names))
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    layers, backend, threads = sys.argv[1:] if arguments is None else arguments
    print(json.dumps(compile_here(int(layers), backend, int(threads))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
