"""Pictures hold every node once, in its module's group, and are well-formed."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from retrograde.compiler.inspect import svg
from retrograde.compiler.inspect.clusters import Group, picture
from retrograde.compiler.inspect.dot import to_dot
from retrograde.compiler.inspect.svg import plain, to_svg
from retrograde.compiler.ir.graph import Graph
from retrograde.compiler.pipeline import Options, compile_graph

SVG = "{http://www.w3.org/2000/svg}"


def paths(group: Group, path: str = "") -> dict[str, list[str]]:
    """Group path -> the first lines of its boxes."""
    found = {path: [box.lines[0] for box in group.boxes]}
    for name, inner in group.groups.items():
        found |= paths(inner, f"{path}/{name}")
    return found


def test_boxes_stand_in_the_group_of_their_module(forward: Graph) -> None:
    found = paths(picture(forward).root)
    assert found["/blocks.0"] == []
    assert found["/blocks.0/first"] == found["/blocks.0/second"] == ["dot_general", "tanh"]
    assert {"w0", "w1", "x", "loss"} <= set(found[""])


def test_constants_stand_in_their_readers(forward: Graph) -> None:
    names = [name for found in paths(picture(forward).root).values() for name in found]
    assert "mul(0.5)" in names
    assert not any(name.startswith("constant") for name in names)


def test_forward_backward_and_update_are_told_apart(step: Graph) -> None:
    shown = picture(step)
    assert set(shown.root.groups) == {"forward", "backward", "update"}
    backward = [box.lines[0] for box in shown.root.groups["backward"].walk()]
    assert backward.count("dot_general") == 3  # two weights, and the input of the second layer
    assert {box.lines[0] for box in shown.root.boxes} >= {"new w0", "new w1"}


def test_arrows_are_the_uses(forward: Graph) -> None:
    shown = picture(forward)
    constants = {n.output for n in forward.nodes if n.op.name == "constant"}
    made = {v: f"n{i}" for i, n in enumerate(forward.nodes) for v in n.outputs}
    made |= {v: f"in{i}" for i, v in enumerate(forward.inputs)}
    uses = {
        (made[v], f"n{i}")
        for i, n in enumerate(forward.nodes)
        for v in n.inputs
        if v not in constants
    }
    uses |= {(made[v], f"out{i}") for i, v in enumerate(forward.outputs)}
    assert {(a, b) for a, b, _ in shown.arrows} == uses


def test_dot_names_every_box_and_arrow(step: Graph) -> None:
    text, shown = to_dot(step), picture(step)
    for box in shown.root.walk():
        assert len(re.findall(rf"^\t+{box.id} \[", text, re.MULTILINE)) == 1
    assert len(re.findall(r"^\t+\w+ -> \w+", text, re.MULTILINE)) == len(shown.arrows)
    assert "cluster_forward.blocks.0.first" in text
    assert text.count("{") == text.count("}")


def test_dot_is_the_same_for_the_same_graph(step: Graph) -> None:
    assert to_dot(step) == to_dot(step)


def test_fused_steps_say_what_they_hold(step: Graph) -> None:
    made = compile_graph(step, Options(at={"B": 11}))
    boxes = list(picture(made.stages["order"]).root.walk())
    fused = [box for box in boxes if box.lines[0].startswith("fused")]
    assert fused
    assert all(len(box.lines) >= 3 for box in fused)


def boxes_of(text: str) -> list[tuple[float, float, float, float]]:
    root = ElementTree.fromstring(text)
    found = []
    for group in root.iter(f"{SVG}g"):
        rect = group.find(f"{SVG}rect")
        assert rect is not None
        x, y, w, h = (float(rect.attrib[k]) for k in ("x", "y", "width", "height"))
        found.append((x, y, x + w, y + h))
    return found


@pytest.mark.parametrize("which", ["forward", "step"])
def test_boxes_of_the_plain_picture_do_not_overlap(
    which: str, request: pytest.FixtureRequest
) -> None:
    shown = picture(request.getfixturevalue(which))
    boxes = boxes_of(plain(shown))
    assert len(boxes) == sum(1 for _ in shown.root.walk())
    for a, b in itertools.combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_plain_picture_runs_downwards(forward: Graph) -> None:
    root = ElementTree.fromstring(plain(picture(forward)))
    arrows = [p for p in root.iter(f"{SVG}path") if "marker-end" in p.attrib]
    assert len(arrows) == len(picture(forward).arrows)
    for arrow in arrows:
        numbers = [float(x) for x in re.findall(r"-?[\d.]+", arrow.attrib["d"])]
        assert numbers[1] < numbers[-1]


def test_without_dot_the_plain_picture_is_drawn(
    step: Graph, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert to_svg(step) == plain(picture(step))


def test_a_dot_that_fails_is_as_good_as_none(
    step: Graph, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "dot"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert to_svg(step) == plain(picture(step))


def test_a_working_dot_draws(
    step: Graph, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Stands in for graphviz, which need not be installed: what it prints is what is shown.
    program = tmp_path / "dot"
    program.write_text("#!/bin/sh\nread first\necho \"<svg>$first</svg>\"\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert to_svg(step).startswith("<svg>digraph step")


def test_a_graph_too_large_for_dot_is_drawn_plainly(
    step: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(svg, "_SLOW_FOR_DOT", 3)
    assert to_svg(step) == plain(picture(step))
