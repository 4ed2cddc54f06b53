"""How contenders are measured: who is left out and why, ratios, memory, targets, the record."""

from __future__ import annotations

import json
import math
import os
import sys
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import compile_gpt, report
from benchmarks.contender import Entry, Memory, Timing
from benchmarks.kernels import AttentionProblem
from benchmarks.measure import Failed, Worker
from benchmarks.run import Result, Settings, relative_error, run
from benchmarks.workload import Peer, Target, Workload, faster
from benchmarks.workloads import LENGTHS, WORKLOADS
from retrograde.runtime.native.toolchain import find_toolchain
from tests.benchmarks.made_up import Naps

FACTORY = "tests.benchmarks.made_up:contender"
SETTINGS = Settings(rounds=3, turn_seconds=0.02, memory_processes=1, limit=3.0)
MIB = 2**20


def peer(**options: Any) -> Peer:
    return Peer("json", FACTORY, options)


@pytest.fixture(scope="module")
def measured() -> tuple[Result, list[str]]:
    contenders = {
        "retrograde": peer(seconds=0.004, held=8 * MIB),
        "right": peer(seconds=0.08, held=32 * MIB),
        "wrong": peer(off=0.1),
        "broken": peer(fails=True),
        "late": peer(build=60.0),
        "absent": Peer("no_such_library", FACTORY),
    }
    workload = Workload(
        "naps", Naps(), contenders, (faster("right", 1.5, 50.0),), reference="right"
    )
    said: list[str] = []
    return run(workload, SETTINGS, said.append), said


def test_only_those_with_right_results_are_timed(measured: tuple[Result, list[str]]) -> None:
    result, said = measured
    assert list(result.timings) == ["retrograde", "right"]
    reasons = {
        "absent": "no_such_library is not installed",
        "broken": "RuntimeError: no such instruction",
        "late": "took more than 3 s",
        "wrong": "its results differ from those of right by 2.0e-02",
    }
    for name, reason in reasons.items():
        assert any(name in line and reason in line for line in said), name
    assert len(said) == len(result.skipped) == len(reasons)


def test_figures_of_those_that_are(measured: tuple[Result, list[str]]) -> None:
    result, _ = measured
    own, right = (report.row(result, name) for name in ("retrograde", "right"))
    assert 0.004 <= own["minimum_seconds"] <= own["median_seconds"]
    assert 1.5 < right["ratios"]["retrograde"] < 21  # 20, and waking up takes time too
    assert own["planned_bytes"] == own["allocated_bytes"] == 8 * MIB
    assert own["measured_bytes"] == pytest.approx(8 * MIB, abs=2 * MIB)
    assert right["measured_bytes"] == pytest.approx(32 * MIB, abs=2 * MIB)
    (verdict,) = report.verdicts(result)
    assert verdict["value"] == right["ratios"]["retrograde"] and verdict["verdict"] == "met"
    record = report.record([result], [verdict], SETTINGS)
    (kept,) = json.loads(json.dumps(record))["workloads"]
    assert len(kept["seconds"]["right"]) == len(result.timings["right"].seconds) >= 3
    assert kept["skipped"] == result.skipped
    cells = [column._cells for column in report.table(result).columns]
    assert cells[0] == ["retrograde", "right"] and cells[3][0] == "-" != cells[3][1]


def test_ratios_are_taken_within_a_round() -> None:
    """The machine was twice as slow in the last two rounds: the ratio of medians would be 2.5."""
    own = Timing("own", (1.0, 1.0, 2.0, 2.0), 1)
    other = Timing("other", (3.0, 3.0, 3.2, 6.0), 1)
    assert own.times_faster(other) == 3.0
    assert Timing("own", (1.0, 2.0, 9.0, 4.0, 4.0, 4.0), 3).turns == [2.0, 4.0]


def test_a_process_that_ends_is_told() -> None:
    entry = Entry("gone", FACTORY, (Naps(),), (), {"dies": True})
    with pytest.raises(Failed, match="gone ended with status 7"), Worker(entry) as worker:
        worker.ask("build", 1)


def test_idle_time_is_processor_time() -> None:
    with Worker(Entry("naps", FACTORY, (Naps(),), (), {"seconds": 0.05})) as worker:
        worker.ask("build", 1)
        before = worker.cpu_seconds()
        worker.ask("time", 4)
        assert worker.cpu_seconds() - before <= 0.1


def test_a_worker_runs_in_the_interpreter_and_environment_that_it_is_given() -> None:
    entry = Entry("naps", FACTORY, (Naps(),), (), {}, 3, sys.executable, {"NAP": "yes"})
    with Worker(entry) as worker:
        worker.ask("build", 1)
        pid = worker._process.pid
        with open(f"/proc/{pid}/environ") as file:
            variables = file.read().split("\0")
    assert "NAP=yes" in variables and "OMP_NUM_THREADS=3" in variables
    assert not os.path.exists(f"/proc/{pid}")


@pytest.mark.parametrize(
    ("found", "wanted", "error"),
    [([1.0, 2.0], [1.0, 2.0], 0.0), ([1.1, 2.0], [1.0, 2.0], 0.1), ([1.0], [1.0, 2.0], math.inf),
     ([math.nan, 1.0], [1.0, 1.0], math.inf)],
)  # fmt: skip
def test_errors_are_relative(found: list[float], wanted: list[float], error: float) -> None:
    assert relative_error(found, wanted) == pytest.approx(error)


def test_verdicts() -> None:
    quick, slim = faster("torch", 1.5, 2.0), Target("of its memory", "us", "torch", 0.12, 0.1)
    assert [quick.met(x) for x in (1.4, 1.5, 2.0)] == ["NOT MET", "met", "aim met"]
    assert [slim.met(x) for x in (0.2, 0.12, 0.1)] == ["NOT MET", "met", "aim met"]


def test_quadratic_memory_is_not_linear() -> None:
    def results(power: float) -> list[Result]:
        found = []
        for length in LENGTHS:
            workload = Workload(f"attention-{length}", AttentionProblem(length), {})
            memory = Memory("retrograde", 0, 0, 0, 0, 0, 0, 0, int(length**power), 0)
            found.append(Result(workload, memories={"retrograde": memory}))
        return found

    (linear,), (quadratic,) = report.growth(results(1.0)), report.growth(results(2.0))
    assert linear["value"] == pytest.approx(2.0) and linear["verdict"] == "aim met"
    assert quadratic["value"] == pytest.approx(4.0) and quadratic["verdict"] == "NOT MET"
    assert report.growth(results(1.0)[:1]) == []


def test_names() -> None:
    names = [workload.name for workload in WORKLOADS]
    assert len(set(names)) == len(names)
    found, others = command.chosen(["lstm", "compile"])
    assert [w.name for w in found] == ["lstm-256", "lstm-128", "lstm-long", "lstm-ragged"]
    assert others == {"compile"}
    assert command.chosen(None) == (list(WORKLOADS), {"compile", "memory"})
    assert command.chosen(["head"])[1] == set()
    with pytest.raises(SystemExit, match="no workload begins with 'lstn'"):
        command.chosen(["lstn"])
    quick = command.settings_of(command.parse_arguments(["--quick", "--rounds", "5"]))
    assert (quick.quick, quick.rounds, quick.memory_processes) == (True, 5, 1)


def test_every_target_is_between_contenders_of_its_workload() -> None:
    for workload in WORKLOADS:
        assert workload.reference in workload.contenders
        for target in workload.targets:
            assert target.of in workload.own
            assert target.against in (*workload.contenders, "copy")


def test_compiling_counts_the_calls_of_the_compiler() -> None:
    """A cold compilation calls it, a warm one and a new size do not."""
    if find_toolchain() is None:
        pytest.skip("there is no C compiler")
    figures = compile_gpt.measure(1, "native", [0])
    cold, warm = figures["0 layers, cold"], figures["0 layers, warm"]
    assert cold["compiler_calls"] > 0 == warm["compiler_calls"]
    assert cold["new_size_compiler_calls"] == 0
    assert cold["compile_seconds"] > warm["compile_seconds"] > 0
