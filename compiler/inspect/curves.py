"""Curves on a logarithmic scale as an SVG picture: names and numbers -> text.

Invariant: the picture is whole without any other file, and shows every number as what it is: a
line runs through what is finite and above 0 alone; zeros and NaN are marked at the lower edge,
infinities at the upper one, and the line has a gap there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

# Colours that are told apart without colour vision too: Okabe & Ito, Color Universal Design, 2008.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("", "6 3", "2 2")
_LEFT, _TOP, _WIDTH, _HEIGHT = 74, 34, 720, 320  # of the part inside of the axes, pixels
_LINE = 17  # pixels a line of the legend
_TICKS = 8  # at most, about


@dataclass(frozen=True)
class Curve:
    """A line of the picture: number t is `values[t]`, none of them negative."""

    name: str
    values: Sequence[float]


@dataclass(frozen=True)
class _Frame:
    """What the axes show: steps 0 to `last`, powers of ten from `low` to `high`."""

    last: int
    low: int
    high: int

    def x(self, t: float) -> float:
        return _LEFT + _WIDTH * (t / self.last if self.last else 0.5)

    def y(self, exponent: float) -> float:
        return _TOP + _HEIGHT * (self.high - exponent) / (self.high - self.low)


def log_curves(curves: Sequence[Curve], title: str, x_label: str, y_label: str) -> str:
    """The picture of the curves over their places, with a legend below."""
    frame = _frame(curves)
    bottom = _TOP + _HEIGHT
    height = bottom + 46 + _LINE * (len(curves) + 1)
    width = _LEFT + _WIDTH + 24
    middle = _TOP + _HEIGHT / 2
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="Helvetica, Arial, sans-serif" '
        'font-size="12">',
        f"<title>{escape(title)}</title>",
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{_LEFT}" y="20" font-weight="bold">{escape(title)}</text>',
        *_axes(frame),
        f'<text x="{_LEFT + _WIDTH / 2}" y="{bottom + 34}" text-anchor="middle">'
        f"{escape(x_label)}</text>",
        f'<text x="16" y="{middle}" text-anchor="middle" '
        f'transform="rotate(-90 16 {middle})">{escape(y_label)}</text>',
    ]
    for i, curve in enumerate(curves):
        lines += _drawn(curve, i, frame)
    top = bottom + 46 + _LINE // 2
    for i, curve in enumerate(curves):
        y = top + _LINE * i
        lines.append(
            f'<line x1="{_LEFT}" y1="{y}" x2="{_LEFT + 26}" y2="{y}" {_stroke(i)}/>'
            f'<text class="legend" x="{_LEFT + 34}" y="{y + 4}">{escape(curve.name)}</text>'
        )
    marks = _marks_used(curves)
    if marks:
        y = top + _LINE * len(curves) + 4
        lines.append(f'<text x="{_LEFT}" y="{y}" fill="#606060">{escape(", ".join(marks))}</text>')
    return "\n".join([*lines, "</svg>\n"])


def _frame(curves: Sequence[Curve]) -> _Frame:
    shown = [math.log10(v) for c in curves for v in c.values if _is_shown(v)]
    low = math.floor(min(shown)) if shown else -1
    high = math.ceil(max(shown)) if shown else 1
    last = max((len(c.values) for c in curves), default=1) - 1
    return _Frame(max(last, 0), low, high if high > low else low + 1)


def _is_shown(v: float) -> bool:
    return math.isfinite(v) and v > 0


def _axes(frame: _Frame) -> Iterator[str]:
    bottom, right = _TOP + _HEIGHT, _LEFT + _WIDTH
    for exponent in _ticks(frame.low, frame.high):
        y = frame.y(exponent)
        yield (
            f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#e0e0e0"/>'
            f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">'
            f"{_power(exponent)}</text>"
        )
    for t in _ticks(0, frame.last):
        x = frame.x(t)
        yield (
            f'<line x1="{x:.1f}" y1="{bottom}" x2="{x:.1f}" y2="{bottom + 5}" stroke="#404040"/>'
            f'<text class="tick" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{t}</text>'
        )
    yield (
        f'<rect x="{_LEFT}" y="{_TOP}" width="{_WIDTH}" height="{_HEIGHT}" fill="none" '
        'stroke="#404040"/>'
    )


def _power(exponent: int) -> str:
    return f"{10.0**exponent:g}" if -3 < exponent < 4 else f"1e{exponent}"


def _ticks(low: int, high: int) -> list[int]:
    """Round whole numbers from `low` to `high`, few enough to be read."""
    step, factors = 1, (2, 5, 10)
    scale = 1
    while (high - low) // step >= _TICKS:
        step = scale * factors[0]
        factors = (*factors[1:], factors[0])
        scale *= 10 if factors[0] == 2 else 1
    return list(range(-(-low // step) * step, high + 1, step))


def _stroke(i: int) -> str:
    dash = _DASHES[i // len(_COLOURS) % len(_DASHES)]
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'stroke="{_COLOURS[i % len(_COLOURS)]}" stroke-width="1.6"{dashed}'


def _drawn(curve: Curve, i: int, frame: _Frame) -> Iterator[str]:
    """The line, with gaps, and the marks of what is on no logarithmic scale."""
    parts: list[str] = []
    marks: list[str] = []
    colour = _COLOURS[i % len(_COLOURS)]
    for t, v in enumerate(curve.values):
        x = frame.x(t)
        if not _is_shown(v):
            marks.append(_mark(v, x, colour))
            continue
        joined = t > 0 and _is_shown(curve.values[t - 1])
        y = frame.y(math.log10(v))
        parts.append(f"{'L' if joined else 'M'}{x:.1f} {y:.1f}")
        alone = not joined and (t + 1 == len(curve.values) or not _is_shown(curve.values[t + 1]))
        if alone:
            marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>')
    name = escape(curve.name)
    yield (
        f'<path class="curve" d="{" ".join(parts)}" fill="none" stroke-linejoin="round" '
        f"{_stroke(i)}><title>{name}</title></path>"
    )
    yield from marks


def _mark(v: float, x: float, colour: str) -> str:
    bottom = _TOP + _HEIGHT
    if math.isnan(v):
        y = bottom - 5
        return (
            f'<path class="nan" d="M{x - 3:.1f} {y - 3} l6 6 m0 -6 l-6 6" fill="none" '
            f'stroke="{colour}"/>'
        )
    if math.isinf(v):
        return (
            f'<path class="inf" d="M{x:.1f} {_TOP + 1} l4 7 h-8 z" fill="{colour}" '
            f'stroke="{colour}"/>'
        )
    return f'<circle class="zero" cx="{x:.1f}" cy="{bottom}" r="3" fill="white" stroke="{colour}"/>'


def _marks_used(curves: Sequence[Curve]) -> list[str]:
    values = [v for c in curves for v in c.values]
    found = []
    if any(v == 0 for v in values):
        found.append("○ zero")
    if any(math.isnan(v) for v in values):
        found.append("✕ NaN")
    if any(math.isinf(v) for v in values):
        found.append("▲ infinite")
    return found
