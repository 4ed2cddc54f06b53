"""Each gradient rule there is, a thousandth off, is caught and named; as it is, it is certified."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from retrograde.certificates.claims import Claims
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.graph import Graph
from retrograde.compiler.ir.registry import NotDifferentiable, all_ops, lookup
from retrograde.compiler.passes.backward import Backward
from tests.compiler.ops.harness import build
from tests.compiler.ops.samples import SAMPLES, Sample

RULES = sorted(
    op.name for op in all_ops()
    if op.vjp is not None and not isinstance(op.vjp, NotDifferentiable)
)  # fmt: skip


def differentiated(name: str, s: Sample) -> tuple[Graph, list[Any]] | None:
    """The op alone with its gradients, and numbers for it; None where there are none."""
    arrays = s.operands()
    graph = build(name, arrays, s.attrs)
    of = tuple(i for i, v in enumerate(graph.outputs) if v.dtype.is_float)
    wrt = tuple(i for i, v in enumerate(graph.inputs) if v.dtype.is_float)
    if not of or not wrt or any(x.size == 0 for x in arrays):
        return None
    made = Backward(of, wrt)(graph)
    rng = np.random.default_rng(1)
    shapes = [tuple(dims.evaluate(d, {}) for d in v.shape) for v in made.inputs[len(arrays) :]]
    return made, [*arrays, *(rng.standard_normal(shape) for shape in shapes)]


def claims(name: str, s: Sample) -> tuple[Claims, bool] | None:
    found = differentiated(name, s)
    if found is None:
        return None
    graph, numbers = found
    made = Claims(graph, numbers, {}, np.random.default_rng(2))
    return made, all([c.ok for c in made.compared(2)])  # to the end: faults come last


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_certified_and_one_that_is_off_is_named(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = list(SAMPLES.get(name, ()))
    if not samples:
        pytest.skip("there is no sample of it")
    seen = 0
    for s in samples:
        right = claims(name, s)
        if right is None:
            continue
        assert right[1] and not right[0].faults, f"{right[0].faults}"
        operands = differentiated(name, s)
        assert operands is not None
        rule: Any = lookup(name).vjp
        with monkeypatch.context() as patch:
            patch.setitem(
                vars(lookup(name)), "vjp",
                lambda ctx, g, rule=rule: [
                    p if p is None else p * 1.001 for p in rule(ctx, g)
                ],
            )  # fmt: skip
            wrong = claims(name, s)
        assert wrong is not None
        values = [wrong[0].known[v] for d in wrong[0].derivatives for v in d.results]
        if all(not np.any(x) for x in values):
            continue  # zero by a thousandth is zero
        seen += 1
        assert not wrong[1] or wrong[0].faults, f"{name}{s.attrs}: a wrong rule is not seen"
        parts = [fault.part for fault in wrong[0].faults]
        assert parts[0].endswith(name) or parts[0].startswith("custom gradient"), parts
    assert seen or name in ("floor",), f"{name}: nothing was compared"
