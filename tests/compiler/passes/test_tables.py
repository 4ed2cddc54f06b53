"""Products with rows of a table: by way of the table where it is small, the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.compiler.ir.graph import Graph
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.verify import verify
from retrograde.compiler.passes.cse import CSE
from retrograde.compiler.passes.dce import DCE
from retrograde.compiler.passes.expand import Expand
from retrograde.compiler.passes.simplify import Simplify
from retrograde.compiler.passes.tables import TableProducts
from retrograde.errors import DataError

V, D, K = 5, 3, 4
SIZES = {"B": 6, "T": 7}
SPECS = rg.spec("f64", V, D), rg.spec("f64", D, K), rg.spec("i32", "B", "T")


def plain(table: Any, w: Any, ids: Any) -> Any:
    return rnp.sum(rnp.tanh(table[ids] @ w) ** 2)


def turned(table: Any, w: Any, ids: Any) -> Any:
    """Time in front, as recurrent layers have it."""
    x = rnp.swapaxes(table[ids], 0, 1)
    return rnp.sum(rnp.tanh(x @ w) ** 2 * rnp.arange(x.shape[0])[:, None, None])


def used_twice(table: Any, w: Any, ids: Any) -> Any:
    """The rows are needed for themselves too."""
    x = table[ids]
    return rnp.sum(rnp.sin(x @ w)) + rnp.sum(x**3)


def two_products(table: Any, w: Any, ids: Any) -> Any:
    x = table[ids]
    return rnp.sum(rnp.tanh(x @ w) * (x @ (w + 1)))


def prepared(fn: Any) -> Graph:
    graph = rg.trace(rg.value_and_grad(fn, argnums=(0, 1)), *SPECS)
    return DCE()(CSE()(Simplify()(Expand()(graph))))


def rewritten(graph: Graph, sizes: dict[str, int] = SIZES) -> Graph:
    found = DCE()(CSE()(TableProducts(sizes)(graph)))
    verify(found)
    return found


def data(batch: int, steps: int) -> list[Any]:
    rng = np.random.default_rng(batch + 10 * steps)
    ids = rng.integers(-V, V, (batch, steps)).astype(np.int32)
    return [rng.standard_normal((V, D)), rng.standard_normal((D, K)), ids]


def rows_in_products(graph: Graph) -> int:
    """How many products have an operand with as many rows as indices."""
    return sum(
        any(v.type.ndim > 2 for v in node.inputs)
        for node in graph.nodes if node.op.name == "dot_general"
    )  # fmt: skip


@pytest.mark.parametrize("fn", [plain, turned, used_twice, two_products])
def test_the_numbers_stay(fn: Any) -> None:
    before = prepared(fn)
    after = rewritten(before)
    # A gradient of rows that is a sum, of two products or of other uses, is made row by row.
    left = {plain: 0, turned: 0, used_twice: 1, two_products: 2}
    assert rows_in_products(after) == left[fn] < rows_in_products(before)
    for batch, steps in ((6, 7), (1, 1), (3, 2), (40, 1)):
        given = data(batch, steps)
        for a, b in zip(evaluate(before, given), evaluate(after, given), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-12, atol=1e-12)


def test_a_table_that_is_not_smaller_stays_as_it_is() -> None:
    before = prepared(plain)
    assert rewritten(before, {"B": 2, "T": 3}) is before


def test_a_row_that_is_not_finite_stays_alone() -> None:
    """Rows are added up, not multiplied by zeros."""
    table, w, ids = data(6, 7)
    ids[...] = np.abs(ids) % (V - 1)
    ids[2, 3] = V - 1
    table[V - 1] = np.nan
    after = rewritten(prepared(plain))
    _, d_table, _ = evaluate(after, [table, w, ids])
    assert np.isfinite(d_table[: V - 1]).all()
    assert np.isnan(d_table[V - 1]).all()


def test_indices_are_checked_as_before() -> None:
    table, w, ids = data(6, 7)
    ids[1, 1] = V
    with pytest.raises(DataError, match=f"index {V} is out of range"):
        rg.compile(rg.grad(plain), *SPECS, at=SIZES)(table, w, ids)


def test_golden(golden: Callable[[str, str], None]) -> None:
    golden("passes/tables.ir", rewritten(prepared(plain)).text() + "\n")


@pytest.mark.parametrize("fn", [plain, turned])
def test_rows_in_16_bits_are_multiplied_as_a_table_too(fn: Any) -> None:
    """The way forward, to the bit; what is added up by rows stays as it was."""
    specs = [rg.spec("f32", *s.shape) for s in SPECS[:2]]

    class Rows:
        def __init__(self, table: Any) -> None:
            self.table = table

        def __getitem__(self, ids: Any) -> Any:
            return rnp.astype(self.table[ids], "bf16")

    graph = rg.trace(
        lambda table, w, ids: fn(Rows(table), rnp.astype(w, "bf16"), ids), *specs, SPECS[2]
    )
    graph = DCE()(CSE()(Simplify()(Expand()(graph))))
    made = rewritten(graph)
    (product,) = [n for n in made.nodes if n.op.name == "dot_general" and n.output.type.ndim == 2]
    assert product.output.shape == (V, K) and product.output.dtype.name == "bf16"
    arrays = [x.astype("f4") if x.dtype == "f8" else x for x in data(6, 7)]
    for a, b in zip(evaluate(made, arrays, SIZES), evaluate(graph, arrays, SIZES), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
