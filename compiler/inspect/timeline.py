"""The arena over the steps of a program, as an SVG picture: bars -> text.

Steps run to the right, addresses up; a rectangle is what lies there, coloured by its kind.
Invariant: the picture is whole without any other file, and every rectangle is to scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from retrograde.compiler.inspect.kinds import KINDS, Bar

_COLOURS = dict(zip(KINDS, (
    "#9aa0a6", "#6fa8dc", "#ffe599", "#f6b26b", "#c27ba0", "#93c47d", "#76a5af", "#d9d9d9",
), strict=True))  # fmt: skip
_WIDTH, _HEIGHT = 1180.0, 560.0  # of the plot, in pixels
_LEFT, _TOP, _BOTTOM = 84.0, 64.0, 46.0

Scale = Callable[[float], float]


def timeline(title: str, bars: Sequence[Bar], peak: int, budget: int | None = None) -> str:
    """The picture of an arena of `peak` bytes."""
    steps = max((b.end for b in bars), default=1)
    most = max(peak, budget if budget is not None and budget < 1.5 * peak else 0, 1)

    def x(step: float) -> float:
        return _LEFT + _WIDTH * step / steps

    def y(address: float) -> float:
        return _TOP + _HEIGHT * (1 - address / most)

    width, height = _LEFT + _WIDTH + 20, _TOP + _HEIGHT + _BOTTOM
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="Helvetica, Arial, sans-serif" '
        'font-size="11">',
        f"<title>{escape(title)}</title>",
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{_LEFT}" y="20" font-size="14" font-weight="bold">{escape(title)}</text>',
        *_legend(bars),
    ]
    for b in bars:
        if not b.bytes:
            continue
        lines.append(
            f'<rect class="bar" x="{x(b.start):.2f}" y="{y(b.offset + b.bytes):.2f}" '
            f'width="{x(b.end) - x(b.start):.2f}" height="{y(0) - y(b.bytes):.2f}" '
            f'fill="{_COLOURS[b.kind]}" stroke="#404040" stroke-width="0.3">'
            f"<title>{escape(_tip(b))}</title></rect>"
        )
    lines += _axes(steps, most, x, y)
    lines += _line("peak", peak, peak, "#cc0000", y, below=True)
    if budget is not None:
        lines += _line("budget", budget, min(budget, most), "#1155cc", y, below=False)
    return "\n".join([*lines, "</svg>\n"])


def _tip(b: Bar) -> str:
    life = "always" if b.kind == "state" else f"steps {b.start} to {b.end - 1}"
    where = f"{b.bytes} bytes at {b.offset}"
    return "\n".join(filter(None, (f"{b.name or b.kind} ({b.kind})", where, life, b.place)))


def _legend(bars: Sequence[Bar]) -> list[str]:
    lines = []
    left = _LEFT
    for kind in KINDS:
        if not any(b.kind == kind for b in bars):
            continue
        lines.append(
            f'<rect x="{left:.0f}" y="32" width="12" height="12" fill="{_COLOURS[kind]}" '
            f'stroke="#404040" stroke-width="0.3"/><text x="{left + 17:.0f}" y="42">{kind}</text>'
        )
        left += 17 + 6.5 * len(kind) + 18
    return lines


def _axes(steps: int, most: int, x: Scale, y: Scale) -> list[str]:
    lines = [
        f'<path d="M{_LEFT} {_TOP} V{_TOP + _HEIGHT} H{_LEFT + _WIDTH}" fill="none" '
        'stroke="black"/>'
    ]
    every = _round(steps / 12, (1, 2, 5), 10)
    for step in range(0, steps + 1, every):
        lines.append(
            f'<text x="{x(step):.1f}" y="{_TOP + _HEIGHT + 15:.1f}" text-anchor="middle">{step}'
            "</text>"
        )
    lines.append(
        f'<text x="{_LEFT + _WIDTH / 2:.0f}" y="{_TOP + _HEIGHT + 34:.0f}" text-anchor="middle">'
        "step</text>"
    )
    apart = _round(most / 10, (1, 2, 4, 8, 16, 32, 64, 128, 256, 512), 1024)
    for address in range(0, most + 1, apart):
        lines.append(
            f'<path d="M{_LEFT - 4} {y(address):.1f} H{_LEFT}" stroke="black"/>'
            f'<text x="{_LEFT - 7}" y="{y(address) + 4:.1f}" text-anchor="end">{_bytes(address)}'
            "</text>"
        )
    return lines


def _line(name: str, bytes: int, at: int, colour: str, y: Scale, below: bool) -> list[str]:
    over = "" if at == bytes else ", above the picture"
    height = y(at) + (12 if below else -4)
    return [
        f'<path class="{name}" d="M{_LEFT} {y(at):.2f} H{_LEFT + _WIDTH}" stroke="{colour}" '
        'stroke-dasharray="6 3"/>',
        f'<text x="{_LEFT + _WIDTH}" y="{height:.1f}" text-anchor="end" fill="{colour}">'
        f"{name} {_bytes(bytes)}{over}</text>",
    ]


def _round(least: float, leading: Sequence[int], base: int) -> int:
    """The least of leading digits times a power of the base that is not below `least`."""
    power = int(base ** max(0, math.floor(math.log(max(least, 1), base))))
    return next((d * power for d in leading if d * power >= least), base * power)


def _bytes(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count} B"
