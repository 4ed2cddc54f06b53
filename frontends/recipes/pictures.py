"""Pictures of results: arrays -> SVG text, drawn by Matplotlib, which is imported when needed.

Invariant: the same numbers give the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_SETTINGS: Any = {
    "svg.hashsalt": "retrograde",
    "svg.fonttype": "none",
    "font.size": 9.0,
}


def counted(truth: Array, said: Array, classes: int) -> Array:
    """counts[truth, said] of class numbers, int64[classes, classes]."""
    pairs = np.asarray(truth, np.int64) * classes + np.asarray(said, np.int64)
    return np.asarray(np.bincount(pairs, minlength=classes * classes).reshape(classes, classes))


def confusion(counts: Array, names: Sequence[str], title: str) -> str:
    """counts[truth, said] -> a table shaded by the share of each row."""
    import matplotlib

    size = max(3.0, 0.42 * len(names) + 1.4)
    with matplotlib.rc_context(_SETTINGS):
        figure, panel = _figure((size, size))
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        panel.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
        panel.set_xticks(range(len(names)), names, rotation=90)
        panel.set_yticks(range(len(names)), names)
        for i, j in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[i, j] > 0.6 else "black"
            panel.text(j, i, f"{int(counts[i, j])}", ha="center", va="center", color=colour,
                       fontsize=7)  # fmt: skip
        panel.set_xlabel("said")
        panel.set_ylabel("true")
        panel.set_title(title)
        return _svg(figure)


def fan(
    past: Array, truth: Array, quantiles: Array, naive: Array, *, unit: str, title: str
) -> str:  # fmt: skip
    """One forecast: what was seen before it, what came, quantiles [hours, 3], the naive one."""
    import matplotlib

    with matplotlib.rc_context(_SETTINGS):
        figure, panel = _figure((6.4, 3.0))
        ahead = np.arange(1, truth.size + 1)
        low, middle, high = quantiles.T
        panel.plot(np.arange(1 - past.size, 1), past, color="black", label="measured")
        panel.plot(ahead, truth, color="black", linestyle=":", label="what came")
        panel.fill_between(ahead, low, high, color="#9ecae1", label="10 % to 90 %")
        panel.plot(ahead, middle, color="#3182bd", label="median")
        panel.plot(ahead, naive, color="#e6550d", linewidth=1, label="the day before")
        panel.axvline(0, color="gray", linewidth=0.5)
        panel.set_xlabel("hours")
        panel.set_ylabel(unit)
        panel.set_title(title)
        panel.legend(frameon=False, fontsize=7, loc="upper left")
        return _svg(figure)


def lines(curves: dict[str, tuple[Array, Array]], x: str, y: str, title: str) -> str:
    """Curves in one panel, by name."""
    import matplotlib

    with matplotlib.rc_context(_SETTINGS):
        figure, panel = _figure((6.4, 3.0))
        for name, (xs, ys) in curves.items():
            panel.plot(xs, ys, "o-", markersize=2, label=name)
        panel.set_xlabel(x)
        panel.set_ylabel(y)
        panel.set_title(title)
        panel.grid(alpha=0.25)
        panel.legend(frameon=False, fontsize=7)
        return _svg(figure)


def _figure(size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots()


def _svg(figure: Any) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()
