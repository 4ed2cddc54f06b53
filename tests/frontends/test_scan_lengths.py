"""`scan` over rows that end at different steps: beside each row alone, beside noise past the ends,
and what it ran of the batch."""

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
from retrograde import nn, tree
from tests.frontends.ragged_cells import CELLS, Cell, W, floats, normal, run, total, with_floats

Array = npt.NDArray[Any]
ALONE = [name for name in CELLS if name not in ("crossing", "dividing", "ranked")]
T = 4
SORTED, MIXED = (4, 2, 2, 1, 0), (1, 0, 3, -2, 9)


def data(cell: Cell, lengths: Any, time: int = T) -> tuple[Any, Any, Any]:
    return cell.weights(len(lengths)), cell.start(len(lengths)), cell.slices(time, len(lengths))


def row_of(weights: Any, row: int) -> Any:
    """The weights with the values of one row among those that are given for each."""
    if isinstance(weights, dict) and "rows" in weights:
        return {**weights, "rows": weights["rows"][row : row + 1]}
    return weights


def one_by_one(cell: Cell, weights: Any, init: Any, xs: Any, lengths: Any, reverse: bool) -> Any:
    """Each row in a loop of its own that is as long as the row, and zeros behind it."""
    ends, outputs = [], []
    for row, n in enumerate(lengths):
        n = min(max(n, 0), T)
        of_row = tree.map(lambda x, row=row, n=n: x[:n, row : row + 1], xs)
        first = tree.map(lambda c, row=row: c[row : row + 1], init)
        end, y = run(cell, row_of(weights, row), first, of_row, None, reverse)
        ends.append(end)
        outputs.append(tree.map(lambda y, n=n: padded(y, T - n), y))
    return tuple(
        tree.map(lambda *parts, axis=axis: rnp.concatenate(parts, axis=axis), *every)
        for axis, every in ((0, ends), (1, outputs))
    )


def padded(y: Any, more: int) -> Any:
    return rnp.concatenate([y, rnp.zeros((more, *y.shape[1:]), y.dtype)], axis=0)


def losses(cell: Cell, lengths: Any, reverse: bool) -> tuple[Callable[..., Any], ...]:
    """(in one loop, row by row): functions of the floats of weights, carry and slices."""
    weights, init, xs = data(cell, lengths)

    def loss(call: Callable[..., Any], fw: Any, fi: Any, fx: Any) -> Any:
        out = call(
            cell, with_floats(weights, fw), with_floats(init, fi), with_floats(xs, fx),
            lengths, reverse,
        )  # fmt: skip
        return total(out), out

    def ragged(fw: Any, fi: Any, fx: Any) -> Any:
        return loss(lambda c, w, i, x, n, r: run(c, w, i, x, np.array(n), r), fw, fi, fx)

    return ragged, lambda fw, fi, fx: loss(one_by_one, fw, fi, fx)


def close(found: Any, expected: Any, tolerance: float = 1e-12) -> None:
    a, b = tree.leaves(found), tree.leaves(expected)
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert np.shape(x) == np.shape(y) and np.asarray(x).dtype == np.asarray(y).dtype
        scale = max(1.0, float(np.max(np.abs(y), initial=0))) if np.size(y) else 1.0
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("lengths, reverse", [(SORTED, False), (MIXED, True)])
@pytest.mark.parametrize("name", ALONE)
def test_a_row_in_the_batch_is_the_row_alone(name: str, lengths: Any, reverse: bool) -> None:
    cell = CELLS[name]
    given = [floats(part) for part in data(cell, lengths)]
    found, expected = (
        rg.value_and_grad(f, argnums=(0, 1, 2), has_aux=True)(*given)
        for f in losses(cell, lengths, reverse)
    )
    close(found, expected)
    for part in found[1]:  # of the weights, of the carry, of the slices
        assert all(np.isfinite(g).all() for g in part) and any(np.any(g) for g in part)


@pytest.mark.parametrize("name", ["lstm", "gru", "rows", "unit"])
def test_second_order_is_that_of_the_rows_alone(name: str) -> None:
    cell = CELLS[name]
    given = [floats(part) for part in data(cell, MIXED)]

    def twice(f: Callable[..., Any]) -> Any:
        def slope(*parts: Any) -> Any:
            first = rg.grad(lambda *p: f(*p)[0], argnums=(0, 1, 2))(*parts)
            return sum(rnp.sum(g * g * 0.5 + g) for g in tree.leaves(first))

        return rg.grad(slope, argnums=(0, 1, 2))(*given)

    found, expected = map(twice, losses(cell, MIXED, False))
    close(found, expected, 1e-11)


def noisy(xs: Any, lengths: Any, noise: float) -> Any:
    def beyond(x: Array) -> Array:
        past = np.arange(len(x))[:, None] >= np.array(lengths)
        value = noise if x.dtype.kind == "f" else 10**6 if np.isnan(noise) else -(10**6)
        return np.where(past.reshape(past.shape + (1,) * (x.ndim - 2)), x.dtype.type(value), x)

    return tree.map(beyond, xs)


@pytest.mark.parametrize("lengths", [SORTED, MIXED], ids=["sorted", "mixed"])
@pytest.mark.parametrize("name", CELLS)
def test_what_stands_past_the_ends_changes_no_bit(name: str, lengths: Any) -> None:
    cell = CELLS[name]
    weights, init, xs = data(cell, lengths)

    @rg.jit
    def compute(fw: Any, fi: Any, fx: Any, xs: Any) -> Any:
        def loss(fw: Any, fi: Any, fx: Any) -> Any:
            parts = with_floats(weights, fw), with_floats(init, fi), with_floats(xs, fx)
            out = run(cell, *parts, np.array(lengths))
            return total(out), out

        (value, out), first = rg.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(fw, fi, fx)
        return value, out, first

    def bits(noise: float) -> tuple[list[bytes], Any]:
        given = noisy(xs, lengths, noise)
        result = compute(floats(weights), floats(init), floats(given), given)
        return [np.asarray(x).tobytes() for x in tree.leaves(result)], result

    expected, (value, out, gradients) = bits(0.5)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in tree.leaves(gradients))
    past = np.arange(T)[:, None] >= np.array(lengths)
    for y in (*tree.leaves(out[1]), *gradients[2]):
        assert not np.any(y[past])
    for noise in (np.nan, np.inf, -np.inf, 1e300):
        assert bits(noise)[0] == expected, noise


def test_second_order_does_not_see_what_stands_past_the_ends() -> None:
    cell = CELLS["unit"]
    weights, init, xs = data(cell, SORTED)

    @rg.jit
    def compute(xs: Any) -> Any:
        def slope(weights: Any, init: Any, xs: Any) -> Any:
            first = rg.grad(
                lambda w, i, x: total(run(cell, w, i, x, np.array(SORTED))), argnums=(0, 1, 2)
            )(weights, init, xs)
            return sum(rnp.sum(g * g) for g in tree.leaves(first))

        return rg.grad(slope, argnums=(0, 1, 2))(weights, init, xs)

    found = [
        [x.tobytes() for x in tree.leaves(compute(noisy(xs, SORTED, noise)))]
        for noise in (1.5, np.nan, np.inf)
    ]
    assert found[0] == found[1] == found[2]


@settings(max_examples=12)
@given(lengths=st.lists(st.integers(-1, 6), min_size=1, max_size=7), reverse=st.booleans())
def test_it_runs_the_rows_up_to_the_last_live_one(lengths: list[int], reverse: bool) -> None:
    cell = CELLS["gru"]
    weights, init, xs = data(cell, lengths, 5)
    compiled = counted(reverse)
    compiled(weights, init, xs, np.array(lengths))
    rows = [max([i + 1 for i, n in enumerate(lengths) if n > t], default=0) for t in range(5)]
    steps = sum(map(bool, rows))
    # Of one row there is nothing to leave out but steps.
    expected = (sum(rows), 5 * len(lengths), steps, 5)
    assert compiled._runnable().executable.ragged() == {0: expected, 1: expected}


COUNTED: dict[bool, Any] = {}


def counted(reverse: bool) -> Any:
    """The gradient of a loop over any batch, compiled once."""
    if reverse not in COUNTED:
        cell = CELLS["gru"]
        weights, _, xs = data(cell, (1, 2), 5)

        def compute(weights: Any, init: Any, xs: Any, lengths: Any) -> Any:
            return rg.grad(lambda w: total(run(cell, w, init, xs, lengths, reverse)))(weights)

        specs = tree.map(lambda x: rg.spec("f64", *x.shape), weights)
        COUNTED[reverse] = rg.compile(
            compute, specs, rg.spec("f64", "B", W), rg.spec("f64", 5, "B", xs.shape[-1]),
            rg.spec("i64", "B"), at={"B": 4},
        )  # fmt: skip
    return COUNTED[reverse]


def test_only_what_the_carries_need_stays_in_a_ragged_loop() -> None:
    """The same products in and behind the loops as without lengths, and no mask or constant is
    stacked: those are as they were in the steps that do not run, too."""
    cell = CELLS["lstm"]
    weights, init, xs = data(cell, SORTED)
    found = []
    for lengths in (None, np.array(SORTED)):
        compiled = rg.compile(
            rg.grad(lambda w, x, n=lengths: total(run(cell, w, init, x, n))),
            tree.map(lambda x: rg.spec("f64", *x.shape), weights), rg.spec("f64", *xs.shape),
        )  # fmt: skip
        nodes = compiled.ir("clean").nodes
        loops = [n for n in nodes if n.op.name == "scan"]
        bodies = [n.attrs["body"].nodes for n in loops]
        inside = [sum(n.op.name == "dot_general" for n in body) for body in bodies]
        outside = sum(n.op.name == "dot_general" for n in nodes)
        found.append((inside, outside, [len(n.outputs) for n in loops]))
    assert found[0] == found[1]
    assert [n.attrs["live"] for n in loops] == [
        [str(v.type) for v in n.inputs[n.attrs["carries"] :]].index("bool[4,5]") for n in loops
    ]


def test_a_batch_of_one_row_that_is_known_runs_its_steps_alone() -> None:
    cell = CELLS["lstm"]
    weights, init, xs = data(cell, (2,))
    call = rg.compile(
        lambda x, n: run(cell, weights, init, x, n), rg.spec("f64", *xs.shape), rg.spec("i64", 1)
    )
    end, y = run(cell, weights, init, xs[:2], None)
    close(call(xs, np.array([2])), (end, padded(y, 2)))
    assert call._runnable().executable.ragged() == {0: (2, 4, 2, 4)}


def test_lengths_in_eager_mode_and_as_a_list() -> None:
    cell = CELLS["gather"]
    weights, init, xs = data(cell, MIXED)
    expected = run(cell, weights, init, xs, np.array(MIXED))
    close(run(cell, weights, init, xs, list(MIXED)), expected)
    with rg.eager():
        close(tree.map(np.asarray, run(cell, weights, init, xs, np.array(MIXED))), expected)


def test_no_slices_and_no_steps() -> None:
    def count(carry: Any, _: Any) -> Any:
        return carry + 1, carry * 2

    end, y = rg.scan(count, np.arange(3.0), length=4, lengths=np.array([4, 0, 2]))
    assert end.tolist() == [4, 1, 4] and y.T.tolist() == [[0, 2, 4, 6], [0] * 4, [4, 6, 0, 0]]
    end, y = rg.scan(count, np.arange(3.0), length=0, lengths=np.array([4, 0, 2]))
    assert end.tolist() == [0, 1, 2] and y.shape == (0, 3)


def test_layers_stacked_both_ways_leave_rows_out() -> None:
    lengths = np.array([5, 4, 4, 1])
    layer = nn.LSTM(3, W, 2, bidirectional=True, seed=0)
    x = normal(4, 5, 3).astype(np.float32)
    step = rg.compile(
        rg.grad(lambda m, x, n: rnp.sum(m(x, lengths=n)[0] ** 2)),
        layer, rg.spec("f32", "B", "T", 3), rg.spec("i64", "B"), at={"B": 4, "T": 5},
    )  # fmt: skip
    step(layer, x, lengths)
    ran = step._runnable().executable.ragged()
    assert ran == dict.fromkeys(range(8), (14, 20, 5, 5))
    text = step.report()
    assert "ragged loops: 8" in text and "runs live rows" in text
    assert "last run: 14 of 20 rows in 5 of 5 steps" in text
    assert "GFLOP, 30%" in text.split("the last run avoided ")[1].splitlines()[0]


def test_the_report_tells_loops_that_run_all_rows() -> None:
    cell = CELLS["crossing"]
    weights, init, xs = data(cell, MIXED)
    call = rg.compile(
        lambda x, n: run(cell, weights, init, x, n),
        rg.spec("f64", *xs.shape), rg.spec("i64", 5),
    )  # fmt: skip
    assert "runs steps with a live row, on all rows" in call.report()
    assert "last run" not in call.report()
    call(xs, np.array([2, 0, 1, 0, 0]))
    assert "10 of 20 rows in 2 of 4 steps" in call.report() and "GFLOP, 50%" in call.report()


# --- errors

X = np.ones((T, 3, 2), np.float32)
C = np.ones((3, 2), np.float32)
ENDS = np.array([1, 2, 3])


def wrong_calls() -> dict[str, tuple[Callable[[], Any], type[Exception], str]]:
    errors = rg.errors

    def with_body(body: Any, init: Any = C, xs: Any = X, lengths: Any = ENDS) -> Any:
        return lambda: rg.scan(body, init, xs, lengths=lengths)

    def plain(c: Any, x: Any) -> Any:
        return c, c

    return {
        "too few": (with_body(plain, lengths=ENDS[:2]), errors.ShapeError, r"i64\[2\].*of 3 rows"),
        "a matrix": (with_body(plain, lengths=ENDS[:, None]), errors.ShapeError, r"i64\[3,1\]"),
        "a number": (with_body(plain, lengths=2), errors.ShapeError, "the lengths are"),
        "floats": (with_body(plain, lengths=ENDS * 1.0), errors.DTypeError, "they are integers"),
        "a scalar carry": (
            with_body(plain, {"a": C, "n": np.float32(1)}),
            errors.ShapeError,
            r"carry\.n has the shape \[\]",
        ),
        "another carry": (
            with_body(plain, (C, np.ones((2, 3)))), errors.ShapeError, r"carry\.1 has .* \[2, 3\]"
        ),
        "slices without rows": (
            with_body(plain, xs={"x": X, "t": np.arange(T)}),
            errors.ShapeError,
            r"xs\.t has the shape \[4\]",
        ),
        "results without rows": (
            with_body(lambda c, x: (c, {"h": c, "all": rnp.sum(c)})),
            errors.ShapeError,
            r"y\.all has the shape \[\]",
        ),
        "drift": (
            with_body(lambda c, x: (c[:, :1], c)), errors.ShapeError, "carry enters the body"
        ),
    }


@pytest.mark.parametrize("case", wrong_calls())
def test_errors_name_the_line_and_the_leaf(case: str) -> None:
    call, error, message = wrong_calls()[case]
    with pytest.raises(error, match=message) as caught:
        call()
    assert f"{__file__}:" in str(caught.value)


# --- with gradients that are cut, and in less memory


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_truncated_gradients_are_those_of_the_rows_alone(steps: int, symbolic: bool) -> None:
    cell, time, lengths = CELLS["lstm"], 7, (7, 6, 4, 4, 1, 0)
    weights, init, xs = data(cell, lengths, time)

    def loss(weights: Any, init: Any, xs: Any, lengths: Any) -> Any:
        return total(
            rg.scan(
                lambda c, x: cell.body(weights, c, x), init, xs, lengths=lengths, truncate=steps
            )
        )

    def alone(weights: Any, init: Any, xs: Any) -> Any:
        ends, outputs = [], []
        for row, n in enumerate(lengths):
            first = tree.map(lambda c, row=row: c[row : row + 1], init)
            end, y = rg.scan(
                lambda c, x: cell.body(weights, c, x), first, xs[:n, row : row + 1], truncate=steps
            )
            ends.append(end)
            outputs.append(padded(y, time - n))
        joined = tree.map(lambda *parts: rnp.concatenate(parts, axis=0), *ends)
        return total((joined, rnp.concatenate(outputs, axis=1)))

    b, t = ("B", "T") if symbolic else xs.shape[1::-1]
    compiled = rg.compile(
        rg.grad(loss, argnums=(0, 1, 2)),
        tree.map(lambda x: rg.spec("f64", *x.shape), weights),
        tree.map(lambda x: rg.spec("f64", b, *x.shape[1:]), init),
        rg.spec("f64", t, b, xs.shape[-1]), rg.spec("i64", b),
        **({"at": {"B": 6, "T": 7}} if symbolic else {}),
    )  # fmt: skip
    found = compiled(weights, init, xs, np.array(lengths))
    close(found, rg.grad(alone, argnums=(0, 1, 2))(weights, init, xs))


def test_less_memory_gives_the_same_gradient() -> None:
    cell, time = CELLS["lstm"], 64
    lengths = np.array([64, 60, 33, 9, 2])
    weights, init, xs = data(cell, tuple(lengths), time)

    def loss(weights: Any, init: Any, xs: Any, lengths: Any) -> Any:
        return total(run(cell, weights, init, xs, lengths)[0])

    specs = (
        tree.map(lambda x: rg.spec("f64", *x.shape), weights),
        tree.map(lambda x: rg.spec("f64", "B", *x.shape[1:]), init),
        rg.spec("f64", "T", "B", xs.shape[-1]), rg.spec("i64", "B"),
    )  # fmt: skip
    whole = rg.compile(rg.grad(loss), *specs, at={"B": 5, "T": time})
    expected = whole(weights, init, xs, lengths)
    most = whole.plan(B=5, T=time).peak_bytes
    small = rg.compile(rg.grad(loss), *specs, at={"B": 5, "T": time}, budget=int(most * 0.75))
    assert small.plan(B=5, T=time).peak_bytes <= most * 0.75
    close(small(weights, init, xs, lengths), expected, 1e-11)
    noise = noisy(xs, lengths, np.nan)
    again = small(weights, init, noise, lengths)
    clean = small(weights, init, xs, lengths)
    for a, b in zip(tree.leaves(again), tree.leaves(clean), strict=True):
        assert a.tobytes() == b.tobytes()
