"""Workloads -> tables, targets and a JSON file: Retrograde beside its peers, in one run.

    python -m benchmarks                              # everything: more than an hour
    python -m benchmarks --only gpt-small --only compile --rounds 20
    python -m benchmarks --only attention             # all whose name begins so
    python -m benchmarks --quick                      # does it run? figures mean little
    python -m benchmarks --jax-python PATH            # an interpreter that has JAX

Every contender lives in its own process and first shows that it computes what the reference does.
Then they take turns, A B A B; ratios are medians over the rounds.  A library that is not installed
is named and left out.  "% limit" is the share of the machine's multiply-adds, "% copy" that of the
bandwidth of a copy of what has to move, both measured in the same turns.  Memory is in MiB:
planned, allocated, and measured as activations (benchmarks/measure.py).  "cold" and "warm" are
seconds of compiling until the first step has run, from an empty cache and from a filled one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from benchmarks import compile_gpt, memory, report
from benchmarks.run import Result, Settings, run
from benchmarks.workload import Workload
from benchmarks.workloads import WORKLOADS

COMPILE, MEMORY = "compile", "memory"  # what has tables of its own


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    defaults = Settings()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", help="a name or how it begins; repeatable")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--rounds", type=int, help="turns of each contender")
    parser.add_argument("--quick", action="store_true", help="few and short turns")
    parser.add_argument("--threads", type=int, default=defaults.threads)
    parser.add_argument("--backend", default=defaults.backend, help="of Retrograde")
    parser.add_argument("--jax-python", default=defaults.jax_python, metavar="PATH")
    parser.add_argument(
        "--limit", type=float, default=defaults.limit, help="seconds to be ready in"
    )
    parser.add_argument("--json", type=Path, help="also write everything there")
    return parser.parse_args(arguments)


def chosen(only: Sequence[str] | None) -> tuple[list[Workload], set[str]]:
    """The workloads to run, and which of COMPILE and MEMORY.  Raises SystemExit for a name that
    fits none."""
    if not only:
        return list(WORKLOADS), {COMPILE, MEMORY}
    names = [workload.name for workload in WORKLOADS] + [COMPILE, MEMORY]
    for wanted in only:
        if not any(name.startswith(wanted) for name in names):
            raise SystemExit(f"no workload begins with {wanted!r}: there are {', '.join(names)}")
    found = [w for w in WORKLOADS if any(w.name.startswith(wanted) for wanted in only)]
    return found, {x for x in (COMPILE, MEMORY) if any(x.startswith(w) for w in only)}


def settings_of(options: argparse.Namespace) -> Settings:
    settings = Settings(
        threads=options.threads,
        backend=options.backend,
        jax_python=options.jax_python,
        limit=options.limit,
    )
    if options.quick:
        settings = settings.hurried()
    return settings if options.rounds is None else replace(settings, rounds=options.rounds)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)
    workloads, others = chosen(options.only)
    if options.list:
        console.print(*(workload.name for workload in workloads), *sorted(others), sep="\n")
        return 0
    settings = settings_of(options)
    results: list[Result] = []
    for workload in workloads:
        console.print(f"{workload.name} …")
        results.append(run(workload, settings, console.print))
        console.print(report.table(results[-1]))
        for line in report.notes(results[-1]):
            console.print(f"  {line}")
    found = [verdict for result in results for verdict in report.verdicts(result)]
    found += report.growth(results)
    if COMPILE in others:
        layers = compile_gpt.LAYERS[:1] if settings.quick else compile_gpt.LAYERS
        figures = compile_gpt.measure(settings.threads, settings.backend, layers)
        console.print(compile_gpt.table(figures))
        found += compile_gpt.verdicts(figures)
    if MEMORY in others:
        table = memory.measure(
            memory.parse_arguments(
                [
                    *("--threads", str(settings.threads), "--backend", settings.backend),
                    *("--jax-python", settings.jax_python),
                    *(("--rounds", "1", "--warmup", "1") if settings.quick else ()),
                ]
            ),
            console,
        )
    if found:
        console.print(report.verdict_table(found))
    if options.json is not None:
        record = report.record(results, found, settings)
        if COMPILE in others:
            record["compile"] = figures
        if MEMORY in others:
            record["memory"] = table
        options.json.write_text(json.dumps(record, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
