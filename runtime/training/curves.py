"""The curves of a run: its metrics, one JSON object a line -> an SVG picture.

What a validation gives is drawn over what each step gives; metrics of one name share a panel.
Drawn by Matplotlib, which is imported when it is needed.  Invariant: the same metrics give the same
bytes.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from retrograde.compiler.errors import DataError

VALIDATION = "validation_"
_BESIDE = frozenset({"step", "tokens", "tokens_per_second", "peak_bytes", "skipped"})
_SMOOTH = 0.02  # of the points: the width of the running mean that is drawn over many of them
_PANEL = (6.4, 2.6)  # inches
Series = dict[str, tuple[list[int], list[float]]]


def series(records: Iterable[Mapping[str, Any]]) -> Series:
    """The steps and values of each metric that is a number."""
    found: Series = {}
    for record in records:
        step = record.get("step")
        if not isinstance(step, int):
            continue
        for name, value in record.items():
            if name in _BESIDE or isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            steps, values = found.setdefault(name, ([], []))
            steps.append(step)
            values.append(float(value))
    return found


def read(path: str | os.PathLike[str]) -> Series:
    """The series of a metrics file.  DataError for what is none."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: no metrics of a run can be read there: {error}") from error
    found = series(r for r in records if isinstance(r, dict))
    if not found:
        raise DataError(f"{path}: there are no numbers in it to draw yet")
    return found


def svg(curves: Series, title: str = "") -> str:
    """The picture: a panel for each metric."""
    import matplotlib
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name.removeprefix(VALIDATION) for name in curves))
    settings: Any = {"svg.hashsalt": "retrograde", "svg.fonttype": "none", "font.size": 9.0}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(_PANEL[0], _PANEL[1] * len(names)), layout="constrained")
        panels = figure.subplots(len(names), squeeze=False)[:, 0]
        for panel, name in zip(panels, names, strict=True):
            if name in curves:
                steps, values = curves[name]
                many = len(values) > 50
                panel.plot(steps, values, color="#9ecae1" if many else "#3182bd", linewidth=1,
                           label=None if many else "training")  # fmt: skip
                if many:
                    panel.plot(steps, _smoothed(values), color="#3182bd", label="training")
            if VALIDATION + name in curves:
                panel.plot(*curves[VALIDATION + name], "o-", color="#e6550d", markersize=3,
                           label="validation")  # fmt: skip
                panel.legend(frameon=False)
            panel.set_ylabel(name)
            panel.grid(alpha=0.25)
        panels[-1].set_xlabel("step")
        if title:
            figure.suptitle(title)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def _smoothed(values: list[float]) -> list[float]:
    """Running means of what came before."""
    share = 1.0 / max(1.0, _SMOOTH * len(values))
    out, weight, total = [], 0.0, 0.0
    for x in values:
        weight, total = (1 - share) * weight + share, (1 - share) * total + share * x
        out.append(total / weight)
    return out


def write(metrics: str | os.PathLike[str], path: str | os.PathLike[str], title: str = "") -> None:
    """Draws the metrics of a file into another."""
    Path(path).write_text(svg(read(metrics), title), encoding="utf-8")
