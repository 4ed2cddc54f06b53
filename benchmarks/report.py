"""Results -> tables for people, and one record for programs."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from benchmarks.kernels import AttentionProblem
from benchmarks.run import COPY, FMA, Result, Settings
from benchmarks.workload import OWN, Target

MIB = 2**20
DISTURBED = 0.03  # the share of a turn from which on idle contenders are worth a line


def table(result: Result) -> Table:
    """A row for each contender; in the columns "/ …" how many times longer it takes than ours."""
    workload = result.workload
    made = Table(title=f"{workload.name}: {workload.problem}", caption=workload.note or None)
    made.add_column("contender")
    rows = getattr(workload.problem, "rows", 0)
    own = [name for name in workload.own if name in result.timings]
    headings = ["ms", "best", *(f"/ {name}" for name in own), "% limit", "% copy", "planned",
                "allocated", "measured", "cold s", "warm s"]  # fmt: skip
    for heading in (*headings, *(["rows / s"] if rows else [])):
        made.add_column(heading, justify="right")
    for name, timing in result.timings.items():
        figures = row(result, name)
        ratios = [_number(figures["ratios"].get(mine), "{:.2f}") for mine in own]
        made.add_row(
            name,
            f"{timing.median * 1e3:.3g}",
            f"{timing.minimum * 1e3:.3g}",
            *ratios,
            *(_number(figures[key], "{:.0%}") for key in ("share_of_limit", "share_of_copy")),
            *(_number(figures[key], "{:.1f}", MIB) for key in
              ("planned_bytes", "allocated_bytes", "measured_bytes")),
            *(_number(figures[key], "{:.2f}") for key in ("cold_seconds", "warm_seconds")),
            *([f"{figures['rows_per_second']:.0f}"] if rows else []),
        )  # fmt: skip
    return made


def row(result: Result, name: str) -> dict[str, Any]:
    """The figures of one contender."""
    timing, memory = result.timings[name], result.memories.get(name)
    rows = getattr(result.workload.problem, "rows", 0)  # examples a step, of a recipe
    limit = name in (FMA, COPY)
    ours = [mine for mine in result.workload.own if mine in result.timings and mine != name]
    built = result.built[name]
    peer = result.workload.contenders.get(name)
    compiles = peer is not None and (peer.compiles or peer.library == "jax")
    return {
        "median_seconds": timing.median,
        "minimum_seconds": timing.minimum,
        "ratios": {mine: result.timings[mine].times_faster(timing) for mine in ours if not limit},
        "share_of_limit": None if limit else result.share_of_fma(name),
        "share_of_copy": None if limit else result.share_of_copy(name),
        "planned_bytes": memory and memory.planned_peak_bytes,
        "allocated_bytes": memory and memory.arena_bytes,
        "measured_bytes": memory and memory.activation_bytes,
        "high_water_bytes": memory and memory.high_water_bytes,
        # Ours from an empty cache and from a filled one; peers have no cache here.
        "cold_seconds": result.cold_seconds.get(name, built.compile_seconds if compiles else None),
        "warm_seconds": built.compile_seconds if name in result.cold_seconds else None,
        "disturbed": timing.disturbed,
        "rows_per_second": rows / timing.median if rows else None,
    }


def verdicts(result: Result) -> list[dict[str, Any]]:
    """Each target with what was found: `value` is None where a contender is missing."""
    found = []
    for target in result.workload.targets:
        value = _value(result, target)
        found.append(
            {
                **asdict(target),
                "workload": result.workload.name,
                "value": value,
                "verdict": "not measured" if value is None else target.met(value),
            }
        )
    return found


def _value(result: Result, target: Target) -> float | None:
    names = {target.of, target.against}
    if target.measure == "of its memory":
        if not names <= result.memories.keys():
            return None
        own, peer = (result.memories[n].activation_bytes for n in (target.of, target.against))
        return own / peer
    if not names <= result.timings.keys():
        return None
    return result.timings[target.of].times_faster(result.timings[target.against])


def growth(results: Sequence[Result]) -> list[dict[str, Any]]:
    """How the planned memory of attention grows with the length, from the shortest to the longest:
    the factor for each doubling.  2 is linear, 4 quadratic."""
    planned = {
        result.workload.problem.length: result.memories[OWN].planned_peak_bytes
        for result in results
        if isinstance(result.workload.problem, AttentionProblem) and OWN in result.memories
    }
    if len(planned) < 2:
        return []
    first, last = min(planned), max(planned)
    doublings = math.log2(last / first)
    value = ((planned[last] or 0) / (planned[first] or 1)) ** (1 / doublings)
    target = Target("of its growth", OWN, f"T {first} to {last}", 2.1, 2.0)
    return [
        {**asdict(target), "workload": "attention", "value": value, "verdict": target.met(value)}
    ]


def verdict_table(found: Sequence[Mapping[str, Any]]) -> Table:
    made = Table(title="targets")
    for heading in ("workload", "contender", "measure", "against"):
        made.add_column(heading)
    for heading in ("found", "at least", "aim", ""):
        made.add_column(heading, justify="right")
    for each in found:
        made.add_row(
            each["workload"], each["of"], each["measure"], each["against"],
            _number(each["value"], "{:.3g}"), f"{each['least']:g}", f"{each['aim']:g}",
            each["verdict"],
        )  # fmt: skip
    return made


def notes(result: Result) -> list[str]:
    """What to know of a run before its figures are believed."""
    return [
        f"while {name} was at work, idle contenders took {timing.disturbed:.0%} of a processor"
        for name, timing in result.timings.items()
        if timing.disturbed > DISTURBED
    ]


def record(
    results: Sequence[Result], found: Sequence[Mapping[str, Any]], settings: Settings
) -> dict[str, Any]:
    """Everything, as JSON takes it."""
    return {
        "machine": {"processor": platform.processor(), "cpus": os.cpu_count()},
        "settings": asdict(settings),
        "workloads": [
            {
                "name": result.workload.name,
                "problem": str(result.workload.problem),
                "flops": float(result.workload.problem.flops),
                "footprint_bytes": result.workload.footprint,
                "contenders": {name: row(result, name) for name in result.timings},
                "seconds": {name: timing.seconds for name, timing in result.timings.items()},
                "skipped": result.skipped,
                "notes": notes(result),
            }
            for result in results
        ],
        "targets": list(found),
    }


def _number(value: float | None, form: str, unit: float = 1) -> str:
    return "-" if value is None else form.format(value / unit)
