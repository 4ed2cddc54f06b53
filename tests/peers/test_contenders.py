"""Every contender of every workload computes what its reference does, at small sizes."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed (make peers)")

from benchmarks.contender import Built, Entry  # after torch is known to be there
from benchmarks.inside import start
from benchmarks.recipe_problem import RecipeProblem
from benchmarks.run import relative_error
from benchmarks.workload import Workload
from benchmarks.workloads import TABLES, WORKLOADS
from retrograde.compiler.passes import tables

HAS_JAX = importlib.util.find_spec("jax") is not None
SMALL: dict[str, dict[str, int]] = {
    "GPTProblem": {"vocab": 11, "width": 12, "heads": 3, "layers": 2, "batch": 2, "length": 7},
    "LSTMProblem": {"length": 7, "batch": 4, "width": 5, "vocab": 3},
    "GRUProblem": {"length": 7, "batch": 4, "width": 5, "vocab": 3},
    "RaggedProblem": {"length": 9, "shortest": 2, "batch": 4, "width": 5, "vocab": 3},
    "RowProblem": {"rows": 6, "columns": 35},
    "AttentionProblem": {"length": 37, "heads": 2, "head": 8},
    "HeadProblem": {"tokens": 9, "width": 6, "vocab": 41},
    "GemmProblem": {"rows": 9, "inner": 7, "columns": 5},
}
# One of each kind: sizes are replaced, so the others would be the same again.  The recipes, which
# need data, are in tests/recipes.
KINDS = {
    (type(w.problem).__name__, getattr(w.problem, "kind", "")): w
    for w in reversed(WORKLOADS)
    if not isinstance(w.problem, RecipeProblem)
}


def built(workload: Workload, name: str, threads: int = 1) -> Built:
    problem = dataclasses.replace(workload.problem, **SMALL[type(workload.problem).__name__])
    peer = workload.contenders[name]
    options: dict[str, Any] = dict(peer.options)
    if name in workload.own:
        options["backend"] = "numpy"
    entry = Entry(name, peer.factory, (problem,), (problem.tiny(),), options, threads)
    return start(entry.build(entry.arguments), 1)


@pytest.mark.parametrize("workload", KINDS.values(), ids=lambda workload: workload.name)
def test_results_agree(workload: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "FEWER", tables.FEWER)  # what a contender sets is put back
    wanted = built(workload, workload.reference).numbers
    assert wanted and all(abs(x) > 0 for x in wanted)
    for name, peer in workload.contenders.items():
        if peer.compiles or name == workload.reference or (peer.library == "jax" and not HAS_JAX):
            continue
        found = built(workload, name).numbers
        assert relative_error(found, wanted) < 1e-4, name


@pytest.mark.parametrize("kind", ["LSTMProblem", "GRUProblem"])
def test_without_tables_the_products_stay_as_written(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rewritten program multiplies the table; the other multiplies all rows taken from it."""
    import retrograde as rg

    monkeypatch.setattr(tables, "FEWER", tables.FEWER)
    workload = KINDS[kind, ""]
    sources = {}
    original = rg.compile_training

    def noted(*args: Any, **options: Any) -> Any:
        step = original(*args, **options)
        sources[tables.FEWER] = step.ir("tables").text()
        return step

    monkeypatch.setattr(rg, "compile_training", noted)
    for name in (TABLES, "retrograde"):
        built(workload, name)
    rewritten, written = (sources[fewer] for fewer in sorted(sources))
    assert rewritten != written and len(sources) == 2


def test_the_kernel_of_a_program_finds_its_arrays_in_the_arena() -> None:
    from benchmarks import retrograde_kernels
    from benchmarks.kernels import RowProblem

    problem = RowProblem("softmax", 64, 256)
    contender = retrograde_kernels.contender(problem, 1, backend="numpy")
    assert contender.persistent_bytes == problem.footprint
    assert contender.arena_bytes is not None and contender.arena_bytes >= problem.footprint
    assert contender.step() == []  # nothing is copied out
