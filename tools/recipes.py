"""The full runs of the recipes -> the table in docs/recipes.md.

Each recipe is trained with its default settings and evaluated on its test part; what its field
measures stands in the table beside the best of what learns nothing, with the processor time that
both took.  Invariant: the table has nothing that was not measured by these runs.

    python tools/recipes.py                      trains, evaluates, writes the table
    python tools/recipes.py --only weather       this recipe anew, the others as they were
    python tools/recipes.py --table              the table of the runs that there are
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "recipes.md"
BEGIN, END = "<!-- the table: tools/recipes.py -->\n", "<!-- the end of the table -->\n"
COST = "cost.json"
_CLI = "from retrograde.cli import main; main()"


@dataclass(frozen=True)
class Run:
    """A recipe with the figure that counts, the baseline beside it, and the goal."""

    name: str
    figure: str
    baseline: str
    goal: str
    seeds: tuple[int, ...] = (0,)
    settings: tuple[str, ...] = ()


# The defaults are those of a first try, within three minutes.
_LSTM = ("width=384", "length=128", "steps=2400", "learning_rate=0.005", "time_limit=none")
RUNS = (
    Run("japanese-vowels", "accuracy", "mean frame", ">= 0.97", (0, 1, 2)),
    Run("python-tags", "accuracy", "commonest tag", ">= 0.98"),
    Run("brown-tags", "accuracy", "commonest tag", "30 % fewer errors"),
    Run("weather", "MAE", "day before", "<= 0.8 of the baseline"),
    Run("weather", "pinball", "day before", "below the baseline"),
    Run("cmudict", "word error", "letter by letter", "<= 0.40"),
    Run("bible", "BLEU", "copying", "above the baseline"),
    Run("cartpole", "mean return", "logged", ">= 450"),
    Run("char-lstm", "nats a character", "by frequency", "<= 1.3", settings=_LSTM),
    Run("char-lstm", "bits a byte", "by frequency", "", settings=_LSTM),
    Run("char-gpt", "bits a byte", "by frequency", "", settings=("time_limit=none",)),
    Run("bpe-gpt", "bits a byte", "by frequency", "", settings=("time_limit=none",)),
)


def train(run: Run, seed: int, folder: Path) -> None:
    """One full run and its evaluation, with what they cost beside them."""
    settings = [part for pair in run.settings for part in ("--set", pair)]
    before = _processor_seconds()
    _call("train", run.name, "--no-progress", "--overwrite", "--checkpoint", str(folder),
          "--seed", str(seed), *settings)  # fmt: skip
    trained = _processor_seconds()
    _call("evaluate", str(folder))
    cost = {"training": trained - before, "evaluation": _processor_seconds() - trained}
    (folder / COST).write_text(json.dumps(cost) + "\n", encoding="utf-8")


def _call(*arguments: str) -> None:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", _CLI, *arguments], env=environment)
    if done.returncode:
        raise SystemExit(f"retrograde {' '.join(arguments)} ended with {done.returncode}")


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def table(runs: Path) -> str:
    """The rows of all runs that there are; of others those that stand on the page."""
    there = PAGE.read_text(encoding="utf-8").splitlines()
    rows = [
        "| recipe | figure of the test part | model | baseline | goal | processor s |",
        "|---|---|---|---|---|---|",
    ]
    for run in RUNS:
        folders = [runs / f"{run.name}-{seed}" for seed in run.seeds]
        if not all((folder / COST).is_file() for folder in folders):
            rows.extend(row for row in there if row.startswith(f"| `{run.name}` | {run.figure}"))
            continue
        found = [json.loads((folder / "evaluation.json").read_text()) for folder in folders]
        costs = [json.loads((folder / COST).read_text()) for folder in folders]
        values = [each["figures"][run.figure] for each in found]
        beside = found[0]["baselines"][run.baseline][run.figure]
        shown = f"{np.mean(values):.4g}"
        if len(values) > 1:
            shown += f" ({', '.join(f'{v:.4g}' for v in values)})"
        seconds = sum(cost["training"] + cost["evaluation"] for cost in costs) / len(costs)
        name = run.figure + (f", mean of {len(values)} seeds" if len(values) > 1 else "")
        rows.append(
            f"| `{run.name}` | {name} | {shown} | {beside:.4g} ({run.baseline}) | {run.goal} "
            f"| {seconds:.0f} |"
        )
    return "\n".join(rows) + "\n"


def write(made: str) -> None:
    """Puts the table where the page has one."""
    page = PAGE.read_text(encoding="utf-8")
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{PAGE}: there is no place for the table")
    PAGE.write_text(head + begin + made + end + tail, encoding="utf-8")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = list(dict.fromkeys(run.name for run in RUNS))
    parser.add_argument("--only", nargs="*", choices=names, help="train these alone")
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "recipes")
    options = parser.parse_args()
    done = set()
    for run in RUNS:
        wanted = not options.table and (options.only is None or run.name in options.only)
        if wanted and run.name not in done:
            done.add(run.name)
            for seed in run.seeds:
                train(run, seed, options.runs / f"{run.name}-{seed}")
    write(table(options.runs))


if __name__ == "__main__":
    main()
