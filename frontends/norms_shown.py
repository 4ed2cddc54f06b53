"""Norms of gradients over time for people: arrays -> a table, a verdict, a plot.

Invariant: every word is computed from the numbers, NaN, infinities and zeros included; nothing is
smoothed or left out.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import DataError, UnsupportedError
from retrograde.compiler.inspect.curves import Curve, log_curves
from retrograde.compiler.ir.location import Loc, where

Array = npt.NDArray[Any]

VANISHES = 1e-3  # the norm at the first steps of a loop against that at the last ones it arrives at
EXPLODES = 1e3
_COLUMNS = 40
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, eq=False)
class CarryNorms:
    """||dL/dh_t|| of one float leaf of the carry of one loop.

    `norms` is [T]; of a loop inside of another one [T outside, T inside]; with rows [..., B].
    `reverse` tells of each of these loops whether it runs from the last step to the first.  `line`
    is that of the loop, `scope` the module that runs it, `carry` the path of the leaf."""

    loc: Loc | None
    scope: str
    reverse: tuple[bool, ...]
    carry: str
    norms: Array
    by_row: bool

    @property
    def line(self) -> str:
        return str(self.loc) if self.loc else "a loop"

    @property
    def steps(self) -> Array:
        """The norms over all rows together: [T], or [T outside, T inside]."""
        wide = self.norms.astype(np.float64)
        found: Array = np.hypot.reduce(wide, axis=-1) if self.by_row else wide
        return found

    @property
    def label(self) -> str:
        """`model.py:12 @ encoder carry.0`."""
        place = f"{self.line} @ {self.scope}" if self.scope else self.line
        return f"{place}{' reverse' if self.reverse[-1] else ''} {self.carry}"

    @property
    def verdict(self) -> str:
        """One line: "vanishes: …", "explodes: …", "holds: …", or what is wrong with the numbers.

        The gradient comes from the step that ran last.  The largest norm of the first tenth of the
        steps is compared with that of the last tenth among those that it arrives at: below 1/1000
        of it, the gradient vanishes, above 1000 times it explodes."""
        told = self._told(self.steps, self.reverse)
        if self.steps.ndim > 1 and told.startswith("holds"):
            inner = self._told(self.steps.max(axis=0), self.reverse[1:])
            if not inner.startswith("holds"):
                return f"{inner} (the largest of all steps outside)"
        return told

    def _told(self, steps: Array, reverse: tuple[bool, ...]) -> str:
        if steps.size == 0:
            return "no steps"
        grid: Array = np.arange(steps.size).reshape(steps.shape)
        for axis, backward in enumerate(reverse):
            grid = np.flip(grid, axis) if backward else grid
        order = grid.ravel()  # the places in the order in which they ran
        values = steps.ravel()[order]
        places = [_place(int(i), steps.shape) for i in order]
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            what = "NaN" if np.isnan(values).any() else "inf"
            return (
                f"not finite: {what}, on its way back first at t={places[bad[-1]]}; "
                f"{bad.size} of {values.size} steps"
            )
        if not values.any():
            return "zero: the loss does not depend on it"
        count = int(np.flatnonzero(values)[-1]) + 1
        few = max(1, count // 10)
        last = count - few + int(values[count - few : count].argmax())
        ratio = float(values[:few].max() / values[last])
        word = "vanishes" if ratio < VANISHES else "explodes" if ratio > EXPLODES else "holds"
        first = int(values[:few].argmin() if word == "vanishes" else values[:few].argmax())
        text = f"{word}: {values[first]:.1e} at t={places[first]}"
        if last == first:
            return text
        text += f", {values[last]:.1e} at t={places[last]}"
        # Numbers below the normal range are too coarse to tell a rate by.
        begin = int(np.argmax(values >= np.finfo(np.float32).tiny))
        if word == "holds" or begin >= last:
            return text
        rate = math.exp(math.log(values[begin] / values[last]) / (last - begin))
        return f"{text}, {rate:.3g} times a step back"

    def _line(self) -> str:
        values = self.steps.ravel()
        finite = np.isfinite(values)
        text = f"{self.carry}  {_sparkline(values)}"
        if finite.any():
            low = int(np.where(finite, values, math.inf).argmin())
            high = int(np.where(finite, values, -math.inf).argmax())
            middle = float(np.median(values[finite]))
            shape = self.steps.shape
            text += (
                f"  min {values[low]:.1e} (t={_place(low, shape)})  median {middle:.1e}"
                f"  max {values[high]:.1e} (t={_place(high, shape)})"
            )
        return text


def _place(i: int, shape: tuple[int, ...]) -> str:
    found = [int(k) for k in np.unravel_index(i, shape)]
    return str(found[0]) if len(found) == 1 else f"({', '.join(map(str, found))})"


def _sparkline(values: Array) -> str:
    """A bar for each few steps, on a logarithmic scale: `·` is zero, `!` is not finite."""
    parts = np.array_split(values, min(values.size, _COLUMNS)) if values.size else []
    tops = [float(p.max()) for p in parts]  # NaN where any is
    logs = [math.log10(v) for v in tops if math.isfinite(v) and v > 0]
    low, span = min(logs, default=0.0), max(logs, default=0.0) - min(logs, default=0.0)

    def bar(v: float) -> str:
        if not math.isfinite(v):
            return "!"
        if v == 0:
            return "·"
        return _BARS[round((len(_BARS) - 1) * (math.log10(v) - low) / span) if span else 3]

    return "".join(map(bar, tops))


@dataclass(frozen=True, eq=False)
class GradientNorms:
    """The norms of every carry that a loss has, in the order in which the loops were traced.

    `loss` is its value.  Prints as a table; `carries[i].norms` are the arrays."""

    name: str
    loss: float
    carries: tuple[CarryNorms, ...]

    def __iter__(self) -> Iterator[CarryNorms]:
        return iter(self.carries)

    def __len__(self) -> int:
        return len(self.carries)

    def __getitem__(self, i: int) -> CarryNorms:
        return self.carries[i]

    def __str__(self) -> str:
        lines = [f"|dL/dh_t| of {self.name} = {self.loss:.6g}"]
        before = None
        for c in self.carries:
            size = "x".join(map(str, c.steps.shape))
            place = f"{c.line} @ {c.scope}" if c.scope else c.line
            head = f"{place}  {'reverse' if c.reverse[-1] else 'forward'}  T={size}"
            if (head, c.loc, c.scope) != before:
                lines.append(head)
            before = (head, c.loc, c.scope)
            lines += [f"  {c._line()}", f"  {' ' * len(c.carry)}  {c.verdict}"]
        return "\n".join(lines)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draws the norms over t, on a logarithmic scale, into the .svg file `path`."""
        if Path(path).suffix != ".svg":
            raise UnsupportedError(f"{where()}cannot draw {str(path)!r}: use .svg")
        curves = [
            Curve(f"{c.label}: {c.verdict}", [float(v) for v in c.steps.ravel()]) for c in self
        ]
        nested = any(c.steps.ndim > 1 for c in self)
        x_label = "step t (of nested loops: one after the other)" if nested else "step t"
        title = f"gradient norms of {self.name} over time"
        try:
            Path(path).write_text(log_curves(curves, title, x_label, "‖∂L/∂h_t‖"), encoding="utf-8")
        except OSError as error:
            raise DataError(
                f"{where()}cannot write {str(path)!r} ({error.strerror}): give a file in a folder "
                "that exists and can be written"
            ) from error
