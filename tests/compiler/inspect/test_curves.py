"""Curves: every number is drawn where it belongs, or marked; the picture is well-formed."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter

import pytest

from retrograde.compiler.inspect.curves import Curve, log_curves

SVG = "{http://www.w3.org/2000/svg}"
NAN, INF = math.nan, math.inf


def drawn(*curves: Curve) -> ElementTree.Element:
    return ElementTree.fromstring(log_curves(curves, "a <title> & more", "step", "norm"))


def lines(root: ElementTree.Element) -> list[list[list[tuple[float, float]]]]:
    """Of each curve its pieces, of each piece its points."""
    found = []
    for path in root.iter(f"{SVG}path"):
        if path.get("class") == "curve":
            pieces: list[list[tuple[float, float]]] = []
            for letter, x, y in re.findall(r"([ML])([\d.]+) ([\d.]+)", path.get("d", "")):
                if letter == "M":
                    pieces.append([])
                pieces[-1].append((float(x), float(y)))
            found.append(pieces)
    return found


def marks(root: ElementTree.Element) -> Counter[str]:
    kinds = [e.get("class") or "" for e in root.iter()]
    return Counter(k for k in kinds if k in ("nan", "inf", "zero"))


def ticks(root: ElementTree.Element) -> dict[str, tuple[float, float]]:
    return {
        e.text or "": (float(e.get("x", "")), float(e.get("y", "")))
        for e in root.iter(f"{SVG}text")
        if e.get("class") == "tick"
    }


def test_points_stand_at_their_ticks() -> None:
    root = drawn(Curve("one", [1e-9, 1e-8, 1e-7, 1e-6]))
    ((points,),) = lines(root)
    assert len(points) == 4
    at = ticks(root)
    for t, (x, y) in enumerate(points):
        assert x == pytest.approx(at[str(t)][0], abs=0.11)
        assert y == pytest.approx(at[f"1e{t - 9}"][1] - 4, abs=0.11)
    assert not marks(root)


def test_gaps_and_marks() -> None:
    root = drawn(
        Curve("a", [1.0, 2.0, NAN, 3.0, 0.0, 0.0, 5.0, 6.0, INF]),
        Curve("b", [0.0, 0.0, 1e-40, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
    )
    first, second = lines(root)
    assert [len(piece) for piece in first] == [2, 1, 2]
    assert [len(piece) for piece in second] == [1]
    assert marks(root) == {"nan": 1, "zero": 10, "inf": 1}
    dots = [e for e in root.iter(f"{SVG}circle") if e.get("class") is None]
    assert len(dots) == 2  # a piece of one point has no line to be seen by
    assert any("NaN" in (e.text or "") for e in root.iter(f"{SVG}text"))


@pytest.mark.parametrize("values", [[], [0.0], [NAN, INF], [3.0], [1e-300, 1e300], [1.0] * 5000])
def test_extremes(values: list[float]) -> None:
    root = drawn(Curve("it", values))
    assert len(lines(root)) == 1
    assert 2 <= len(ticks(root)) <= 24
    width, height = float(root.get("width", "")), float(root.get("height", ""))
    for pieces in lines(root):
        for piece in pieces:
            assert all(0 <= x <= width and 0 <= y <= height for x, y in piece)


def test_names_are_escaped_and_many_curves_told_apart() -> None:
    root = drawn(*(Curve(f'<{i}> & "co"', [1.0, 2.0]) for i in range(20)))
    legend = [e.text for e in root.iter(f"{SVG}text") if e.get("class") == "legend"]
    assert legend == [f'<{i}> & "co"' for i in range(20)]
    styles = [
        (e.get("stroke"), e.get("stroke-dasharray"))
        for e in root.iter(f"{SVG}path")
        if e.get("class") == "curve"
    ]
    assert len(set(styles)) == 20
    assert root.findtext(f"{SVG}title") == "a <title> & more"
