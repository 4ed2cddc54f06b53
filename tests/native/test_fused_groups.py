"""Groups on the native device: what joins them, the numbers beside float64, and the same bits in
all modes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import retrograde as rg
import retrograde.numpy as rnp
from retrograde import nn
from retrograde.compiler import pipeline
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.graph import Graph, Node
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.plan.fused import ROWS
from retrograde.runtime.native.toolchain import find_toolchain
from tests.compiler.passes.harness import plain

pytestmark = pytest.mark.skipif(find_toolchain() is None, reason="there is no C compiler")

Array = npt.NDArray[Any]
Golden = Callable[[str, str], None]
WIDTH, HIDDEN, VOCAB, PLACES = 24, 40, 11, 9
SLICES = (0, 1, 2, 13, ROWS - 1, ROWS, ROWS + 1, 3 * ROWS, 5 * ROWS + 7, 131 * ROWS + 1)


class Perceptron(nn.Module):
    def __init__(self) -> None:
        self.up = nn.Linear(WIDTH, HIDDEN, seed=1)
        self.norm = nn.LayerNorm(HIDDEN)
        self.down = nn.Linear(HIDDEN, WIDTH, seed=2)

    def __call__(self, x: Any) -> Any:
        return self.down(rnp.tanh(self.norm(self.up(x))))


class Embedded(nn.Module):
    def __init__(self) -> None:
        self.token = nn.Embedding(VOCAB, WIDTH, seed=1)
        self.place = nn.Embedding(PLACES + 3, WIDTH, seed=2)
        self.norm = nn.LayerNorm(WIDTH)

    def __call__(self, ids: Any) -> Any:
        return self.norm(self.token(ids) + self.place(rnp.arange(ids.shape[1])))


def error(model: Any, x: Any, y: Any) -> Any:
    return rnp.mean((model(x) - y) ** 2)


def energy(model: Any, ids: Any) -> Any:
    return rnp.mean(rnp.tanh(model(ids)) ** 2)


def cross_entropy(logits: Any, ids: Any) -> Any:
    return rg.losses.cross_entropy(logits, ids)


def case(name: str, B: Any, dtype: str = "f32") -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A loss and what it takes, as specs."""
    if name == "perceptron":
        x = rg.spec(dtype, B, WIDTH)
        return error, (rg.tree.map(lambda w: _as(w, dtype), Perceptron()), x, x)
    if name == "embedded":
        model = rg.tree.map(lambda w: _as(w, dtype), Embedded())
        return energy, (model, rg.spec("i32", B, PLACES))
    return cross_entropy, (rg.spec(dtype, B, VOCAB), rg.spec("i32", B))


def _as(x: Any, dtype: str) -> Any:
    return np.asarray(x).astype(dtypes.dtype(dtype).numpy)


def data(specs: Any, rows: int, seed: int) -> Any:
    rng = np.random.default_rng(seed)

    def one(x: Any) -> Any:
        if not isinstance(x, rg.Spec):
            return x
        shape = [d if isinstance(d, int) else rows for d in x.shape]
        if x.dtype.name == "i32":
            return rng.integers(0, VOCAB, shape).astype(np.int32)
        return rng.normal(size=shape).astype(x.dtype.numpy)

    return rg.tree.map(one, specs)


def groups(compiled: Any) -> list[Graph]:
    nodes = compiled.ir("group").nodes
    return [n.attrs["body"] for n in nodes if n.op.name == "fused"]


def members(compiled: Any, name: str) -> list[Node]:
    return [n for body in groups(compiled) for n in body.nodes if n.op.name == name]


def true_numbers(compiled: Any, arguments: Any) -> list[Array]:
    """What the traced graph gives, each op by its reference."""
    arrays = [np.asarray(x) for x in rg.tree.leaves(arguments)]
    sizes = {}
    graph = compiled.ir("trace")
    for v, x in zip(graph.inputs, arrays, strict=True):
        for d, n in zip(v.shape, x.shape, strict=True):
            if not isinstance(d, int):
                sizes[str(d)] = n
    return list(evaluate(graph, arrays, sizes))


NAMES = ("perceptron", "embedded", "cross_entropy")


@pytest.mark.parametrize("name", NAMES)
def test_goldens(name: str, golden: Golden) -> None:
    loss, specs = case(name, "B")
    compiled = rg.compile(rg.value_and_grad(loss), *specs, backend="native")
    golden(f"passes/native-{name}.ir", plain(compiled.ir("group")) + "\n")


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_those_of_the_interpreter(name: str) -> None:
    loss, specs = case(name, "B", "f64")
    compiled = rg.compile(rg.value_and_grad(loss), *specs, backend="native", threads=2)
    for i, rows in enumerate((1, 2, ROWS - 1, ROWS, ROWS + 1, 5 * ROWS + 7)):
        arguments = data(specs, rows, i)
        got = rg.tree.leaves(compiled(*arguments))
        for a, b in zip(got, true_numbers(compiled, arguments), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_the_bits_are_the_same_in_all_modes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, specs = case(name, "B")
    found = []
    for threads, variable in ((1, ""), (2, ""), (3, ""), (2, "POISON"), (2, "NO_REUSE")):
        with monkeypatch.context() as patch:
            if variable:
                patch.setenv(f"RETROGRADE_{variable}", "1")
            compiled = rg.compile(
                rg.value_and_grad(loss), *specs, backend="native", threads=threads
            )
            results = [compiled(*data(specs, rows, rows)) for rows in (3 * ROWS + 5, 1)]
        found.append([np.asarray(x).tobytes() for r in results for x in rg.tree.leaves(r)])
    assert all(other == found[0] for other in found[1:])


# --- sums over all rows


def every_sum(x: Any, w: Any, bias: Any) -> tuple[Any, ...]:
    """Sums of what a group computes by row and by element, beside what it writes."""
    y = rnp.tanh(x + bias)
    z = y - rnp.mean(y, axis=-1, keepdims=True)
    lead = tuple(range(x.ndim - 1))
    return z, z.sum(lead), (y * w).sum(lead, keepdims=True), (z * z).sum(), y.sum()


@pytest.mark.parametrize(
    "dtype, near", [("f64", 1e-12), ("f32", 3e-6), ("f16", 4e-3), ("bf16", 3e-2)]
)
def test_sums_over_rows_join_their_group(dtype: str, near: float) -> None:
    specs = rg.spec(dtype, "B", "T", 37), rg.spec(dtype, "B", "T", 1), rg.spec(dtype, 37)
    compiled = rg.compile(every_sum, *specs, backend="native", threads=2)
    assert len(groups(compiled)) == 1
    assert len(compiled.ir("group").nodes) - len(members(compiled, "sum")) < 8
    rng = np.random.default_rng(3)
    for rows, steps in ((1, 1), (3, 5), (5, 7), (16, ROWS), (13, ROWS + 1)):
        shapes = (rows, steps, 37), (rows, steps, 1), (37,)
        x, w, bias = (rng.normal(size=s).astype(specs[0].dtype.numpy) for s in shapes)
        wide_x, wide_w, wide_bias = (a.astype(np.float64) for a in (x, w, bias))
        got = compiled(x, w, bias)
        y = np.tanh(wide_x + wide_bias)
        z = y - y.mean(-1, keepdims=True)
        sums = z.sum((0, 1)), (y * wide_w).sum((0, 1), keepdims=True), (z * z).sum(), y.sum()
        wanted = z, *sums
        for a, b in zip(got, wanted, strict=True):
            scale = np.sqrt(rows * steps * 37) if np.ndim(b) == 0 else np.sqrt(rows * steps)
            np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol=near, atol=near * scale)


@settings(max_examples=12)
@given(
    rows=st.sampled_from(SLICES), width=st.sampled_from((0, 1, 2, 16, 31, 63, 64, 65, 131)),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_sums_of_any_size(rows: int, width: int, seed: int) -> None:
    B, N = rg.dim("B", min=0), rg.dim("N", min=0)
    specs = rg.spec("f64", B, N), rg.spec("f64", B, 1), rg.spec("f64", N)
    compiled = _compiled_once(every_sum, *specs)
    rng = np.random.default_rng(seed)
    arguments = [rng.normal(size=s) for s in ((rows, width), (rows, 1), (width,))]
    got = compiled(*arguments)
    for a, b in zip(got, true_numbers(compiled, arguments), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


_COMPILED: dict[Any, Any] = {}


def _compiled_once(f: Callable[..., Any], *specs: Any) -> Any:
    if f not in _COMPILED:
        _COMPILED[f] = rg.compile(f, *specs, backend="native", threads=2)
    return _COMPILED[f]


def test_integers_add_up_as_they_are() -> None:
    x = rg.spec("i64", "B", 19)
    compiled = rg.compile(lambda x: (x * 3 + 1).sum(0), x, backend="native")
    assert members(compiled, "sum")
    given = np.random.default_rng(0).integers(-(2**60), 2**60, (2 * ROWS + 3, 19))
    np.testing.assert_array_equal(compiled(given), (given * 3 + 1).sum(0))


def test_no_member_reads_a_sum_over_rows() -> None:
    """Batch norm: the mean is complete when all rows are read, so a second step goes on."""

    def normed(x: Any, gain: Any) -> Any:
        centred = x * gain - rnp.mean(x * gain, axis=0)
        return centred / rnp.sqrt(rnp.mean(centred * centred, axis=0) + 1e-5)

    specs = rg.spec("f64", "B", 33), rg.spec("f64", 33)
    compiled = rg.compile(normed, *specs, backend="native")
    for body in groups(compiled):
        sums = {n.output for n in body.nodes if n.op.name == "sum"}
        assert all(sums.isdisjoint(n.inputs) for n in body.nodes)
    assert members(compiled, "sum")
    rng = np.random.default_rng(1)
    x, gain = rng.normal(size=(3 * ROWS + 1, 33)), rng.normal(size=33)
    centred = x * gain - (x * gain).mean(0)
    wanted = centred / np.sqrt((centred**2).mean(0) + 1e-5)
    np.testing.assert_allclose(compiled(x, gain), wanted, rtol=1e-10)


def test_a_sum_may_lie_where_an_operand_lay() -> None:
    """The bias is updated in place by a sum that its group makes of it."""

    def step(bias: Any, x: Any) -> Any:
        bias = bias * 2.0
        return rnp.tanh(x + bias).sum(0)

    specs = rg.spec("f64", 47), rg.spec("f64", "B", 47)
    compiled = rg.compile(step, *specs, backend="native", threads=2)
    rng = np.random.default_rng(1)
    bias, x = rng.normal(size=47), rng.normal(size=(4 * ROWS + 3, 47))
    np.testing.assert_allclose(compiled(bias, x), np.tanh(x + 2 * bias).sum(0), rtol=1e-12)


def test_sums_of_each_turn_of_a_loop() -> None:
    """They are written to their place in what is stacked."""

    def turns(h: Any, xs: Any, w: Any) -> Any:
        def body(h: Any, x: Any) -> Any:
            y = rnp.tanh(h + x * w)
            return y, (y.sum(0), (y * y).sum(), y.sum(0, keepdims=True))

        return rg.scan(body, h, xs)

    def loss(h: Any, xs: Any, w: Any) -> Any:
        return sum(rnp.sum(out * out) for out in rg.tree.leaves(turns(h, xs, w)))

    specs = rg.spec("f64", "B", 33), rg.spec("f64", "T", "B", 33), rg.spec("f64", 33)
    rng = np.random.default_rng(1)
    arguments = [rng.normal(size=s) for s in ((2 * ROWS + 6, 33), (5, 2 * ROWS + 6, 33), (33,))]
    for f in (turns, rg.value_and_grad(loss, argnums=(0, 1, 2))):
        one, two, oracle = (
            rg.tree.leaves(rg.compile(f, *specs, backend=b, threads=t)(*arguments))
            for b, t in (("native", 1), ("native", 2), ("numpy", 1))
        )
        for a, b, c in zip(one, two, oracle, strict=True):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
            np.testing.assert_allclose(a, c, rtol=1e-10, atol=1e-12)


# --- gathers


def rows_of(table: Any, ids: Any, x: Any) -> Any:
    y = rnp.take(table, ids, axis=0) * 2 + x
    return y / rnp.sqrt(rnp.mean(y * y, axis=-1, keepdims=True) + 1e-5)


def of_two_axes(table: Any, ids: Any, x: Any) -> Any:
    return rnp.tanh(table[ids, ids - 1]) + x


def along_the_other_axis(table: Any, ids: Any, x: Any) -> Any:
    return rnp.exp(rnp.take(table, ids, axis=1).T) - x.T.T


def of_elements(table: Any, ids: Any, x: Any) -> Any:
    return rnp.tanh(table[ids, ids]) + rnp.take(x, 0, axis=1) * 2


def of_an_element_a_row(table: Any, ids: Any, x: Any) -> Any:
    picked = table[ids[:, None], ids[:, None]]
    return x * picked + rnp.sum(x, axis=-1, keepdims=True)


def beside_itself(table: Any, ids: Any, x: Any) -> Any:
    return rnp.take(table, ids, axis=0) + table * 3


GATHERS: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "rows": (rows_of, (7, 37)),
    "two axes": (of_two_axes, (7, 5, 37)),
    "the other axis": (along_the_other_axis, (37, 7)),
    "elements": (of_elements, (7, 9)),
    "an element a row": (of_an_element_a_row, (7, 9)),
    "beside itself": (beside_itself, (41, 37)),
}


@pytest.mark.parametrize("name", GATHERS)
@pytest.mark.parametrize("dtype, near", [("f64", 1e-12), ("f16", 4e-3)])
def test_gathers_join_their_readers(name: str, dtype: str, near: float) -> None:
    f, shape = GATHERS[name]
    rows: Any = 41 if name == "beside itself" else "B"
    specs = rg.spec(dtype, *shape), rg.spec("i32", rows), rg.spec(dtype, rows, 37)
    compiled = rg.compile(f, *specs, backend="native", threads=2)
    assert members(compiled, "gather")
    rng = np.random.default_rng(7)
    for count in (41,) if rows == 41 else (1, 2, ROWS + 1, 3 * ROWS):
        table, x = (rng.normal(size=s).astype(specs[0].dtype.numpy) for s in (shape, (count, 37)))
        ids = rng.integers(-4, 5, count).astype(np.int32)
        wide = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in (table, ids, x)]
        got, wanted = compiled(table, ids, x), np.asarray(f(*wide))
        np.testing.assert_allclose(np.asarray(got, np.float64), wanted, rtol=near, atol=near)


def test_an_index_is_refused_with_the_line_of_its_gather() -> None:
    def f(table: Any, i: Any, j: Any) -> Any:
        first = rnp.take(table, i, axis=0)
        second = rnp.take(table, j, axis=0)
        return rnp.tanh(first * second)

    specs = rg.spec("f32", 7, 19), rg.spec("i32", "B"), rg.spec("i32", "B")
    table, good = np.ones((7, 19), np.float32), np.array([0, 6, -7], np.int32)
    bad = np.array([1, 9, 2], np.int32)
    told: list[list[str]] = []
    for backend in ("native", "numpy"):
        compiled = rg.compile(f, *specs, backend=backend)
        told.append([])
        for ids in ((good, bad), (bad, good)):
            with pytest.raises(rg.errors.DataError, match="index 9 is out of range") as caught:
                compiled(table, *ids)
            told[-1].append(str(caught.value))
        np.testing.assert_allclose(compiled(table, good, good), np.tanh(table[:3]), rtol=1e-6)
    assert told[0] == told[1] and told[0][0] != told[0][1]


def test_a_table_is_not_overwritten_while_rows_of_it_are_read() -> None:
    """The new table is made of rows of the old one: every row but the first comes from above."""
    count = 3 * ROWS + 1

    def loss(model: Any, ids: Any) -> Any:
        return rnp.sum(rnp.take(model["table"], ids, axis=0) * model["table"])

    table = np.random.default_rng(1).normal(size=(count, 33)).astype(np.float32)
    ids = np.maximum(np.arange(count) - 1, 0).astype(np.int32)
    steps = [
        rg.compile_training(
            loss, {"table": table.copy()}, rg.optim.SGD(0.1), backend=backend,
            batch={"ids": rg.spec("i32", count)},
        )
        for backend in ("native", "numpy")
    ]  # fmt: skip
    for _ in range(2):
        for step in steps:
            step(ids=ids)
    native, oracle = (np.asarray(step.model["table"]) for step in steps)
    np.testing.assert_allclose(native, oracle, rtol=1e-5)


@pytest.mark.parametrize("ragged", [False, True])
def test_a_gather_within_a_loop(ragged: bool) -> None:
    def f(table: Any, ids: Any, h: Any, lengths: Any) -> Any:
        def body(h: Any, i: Any) -> Any:
            h = rnp.tanh(h + rnp.take(table, i, axis=0))
            return h, h

        last, every = rg.scan(body, h, ids, lengths=lengths if ragged else None)
        return last, every

    specs = (
        rg.spec("f64", 7, 19), rg.spec("i32", "T", "B"), rg.spec("f64", "B", 19),
        rg.spec("i32", "B"),
    )  # fmt: skip
    rng = np.random.default_rng(2)
    arguments = (
        rng.normal(size=(7, 19)), rng.integers(0, 7, (6, 5)).astype(np.int32),
        rng.normal(size=(5, 19)), np.array([6, 0, 3, 1, 6], np.int32),
    )  # fmt: skip
    native, oracle = (rg.compile(f, *specs, backend=b, threads=2) for b in ("native", "numpy"))
    for a, b in zip(native(*arguments), oracle(*arguments), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


# --- memory


@pytest.mark.parametrize("cell", ["gpt", "lstm"])
def test_peaks_do_not_grow(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the groups of the NumPy device; but for the parts of sums, a row for `ROWS` rows."""
    ids = rg.spec("i32", "B", "T")
    models: dict[str, Callable[[], Any]] = {
        "gpt": lambda: rg.models.GPT(vocab=256, width=48, layers=2, heads=3, context=64, seed=1),
        "lstm": lambda: rg.models.RNNLM(vocab=256, width=48, layers=2, cell="lstm", seed=1),
    }

    def peak() -> int:
        step = rg.compile_training(
            lambda model, tokens, targets: cross_entropy(model(tokens), targets), models[cell](),
            rg.optim.AdamW(1e-3), batch={"tokens": ids, "targets": ids}, backend="native",
        )  # fmt: skip
        return int(step.plan(B=8, T=64).peak_bytes)

    grouped = peak()
    monkeypatch.setattr(pipeline, "NATIVE_END", pipeline.END)
    assert grouped <= peak() * 1.001
