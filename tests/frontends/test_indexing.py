"""Indexing and updates against NumPy itself: random index expressions, sizes known or symbolic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import retrograde.numpy as rnp
from retrograde.compiler.errors import (
    DataError,
    DTypeError,
    RetrogradeError,
    ShapeError,
    TraceError,
    UnsupportedError,
)
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.graph import TensorType


def numbered(shape: tuple[int, ...]) -> Any:
    """An array whose elements all differ."""
    return np.arange(1.0, 1.0 + np.prod(shape, dtype=int)).reshape(shape)


# --- random index expressions

shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
bounds = st.none() | st.integers(-7, 7)
slices = st.builds(slice, bounds, bounds, st.sampled_from([None, 1, 2, 3, -1, -2, -3]))


@st.composite
def indices(draw: Any, shape: tuple[int, ...], arrays: bool = True) -> Any:
    """An index expression for an array of `shape`; most are valid."""
    common = draw(st.lists(st.integers(1, 3), max_size=2))
    items: list[Any] = []
    axis = 0
    while axis < len(shape) and draw(st.integers(0, 5)):
        size = shape[axis]
        kinds = ["slice", "slice", "integer"] + ["array", "list", "mask"] * (arrays and size > 0)
        kind = draw(st.sampled_from(kinds))
        axis += 1
        if kind == "slice":
            items.append(draw(slices))
        elif kind == "integer":
            items.append(
                draw(st.integers(-size - (draw(st.integers(0, 9)) == 0), max(size - 1, 0)))
            )
        elif kind == "mask":
            width = draw(st.integers(1, len(shape) - axis + 1))
            covered = shape[axis - 1 : axis - 1 + width]
            axis += width - 1
            bits = draw(st.lists(st.booleans(), min_size=(n := int(np.prod(covered))), max_size=n))
            items.append(np.array(bits, dtype=bool).reshape(covered))
        else:
            sizes = [n if draw(st.booleans()) else 1 for n in common]
            count = int(np.prod(sizes, dtype=int))
            values = draw(st.lists(st.integers(-size, size - 1), min_size=count, max_size=count))
            made = np.array(values, draw(st.sampled_from([np.int64, np.int32]))).reshape(sizes)
            items.append(made.tolist() if kind == "list" and made.ndim else made)
    for _ in range(draw(st.integers(0, 2))):
        items.insert(draw(st.integers(0, len(items))), None)
    if draw(st.integers(0, 2)) == 0:
        items.insert(draw(st.integers(0, len(items))), Ellipsis)
    if len(items) == 1 and draw(st.booleans()):
        return items[0]
    return tuple(items)


@given(st.data())
def test_reading_as_numpy(run: Any, data: Any) -> None:
    x = numbered(data.draw(shapes))
    index = data.draw(indices(x.shape))
    try:
        want = x[index]
    except IndexError:
        with pytest.raises(RetrogradeError):
            run(lambda x: x[index], x)
        return
    np.testing.assert_array_equal(run(lambda x: x[index], x), want)


def test_an_ellipsis_keeps_index_arrays_apart_even_where_it_stands_for_nothing(run: Any) -> None:
    x = numbered((2, 3, 4))
    for index in [
        (slice(None), [0, 2, 1], ..., 1),
        (slice(None), [0, 2, 1], 1),
        (..., [0, 2, 1], 1),
    ]:
        np.testing.assert_array_equal(run(lambda x, index=index: x[index], x), x[index])
    assert x[:, [0, 2, 1], ..., 1].shape != x[:, [0, 2, 1], 1].shape


@given(st.data())
def test_reading_on_symbolic_sizes(run: Any, data: Any) -> None:
    """Where a size decides, the answer is that of NumPy at this size, or a refusal to guess."""
    x = numbered(data.draw(shapes))
    index = data.draw(indices(x.shape, arrays=False))
    try:
        want = x[index]
    except IndexError:
        assume(False)
    names = "ABCD"
    least = data.draw(st.sampled_from([0, 1, 5]))
    assume(min(x.shape, default=9) >= least)
    shape = [dims.dim(names[i], min=least) for i in range(x.ndim)]
    try:
        ours = run(lambda x: x[index], x, shapes=[shape])
    except ShapeError as error:
        assert "out of range" in str(error)
        items = index if isinstance(index, tuple) else (index,)
        assert any(isinstance(i, int) and not -least <= i < least for i in items)
        return
    np.testing.assert_array_equal(ours, want)


@given(st.data())
def test_traced_index_arrays(run: Any, data: Any) -> None:
    """The same index arrays as inputs of the program instead of arrays of the closure."""
    x = numbered(data.draw(shapes))
    index = data.draw(indices(x.shape))
    items = index if isinstance(index, tuple) else (index,)
    places = [
        i for i, item in enumerate(items) if isinstance(item, np.ndarray) and item.dtype != bool
    ]
    try:
        want = x[tuple(items)]
    except IndexError:
        return  # out of range: the data decide, see below

    def call(x: Any, *traced: Any) -> Any:
        given = list(items)
        for place, array in zip(places, traced, strict=True):
            given[place] = array
        return x[tuple(given)]

    np.testing.assert_array_equal(run(call, x, *(items[i] for i in places)), want)


@given(st.data())
def test_set_and_add_as_numpy(run: Any, data: Any) -> None:
    x = numbered(data.draw(shapes))
    index = data.draw(indices(x.shape))
    try:
        selected = x[index]
    except IndexError:
        assume(False)
    stretched = [n if data.draw(st.booleans()) else 1 for n in selected.shape]
    values = -numbered(tuple(stretched))
    changed, added = x.copy(), x.copy()
    changed[index] = values
    np.add.at(added, index, values)
    ours = run(lambda x, v: [x.at[index].set(v), x.at[index].add(v)], x, values)
    np.testing.assert_array_equal(ours[0], changed)
    np.testing.assert_array_equal(ours[1], added)


@given(st.data())
def test_other_updates_as_numpy(run: Any, data: Any) -> None:
    x = numbered(data.draw(shapes))
    index = data.draw(indices(x.shape, arrays=False))
    try:
        selected = x[index]
    except IndexError:
        assume(False)
    values = numbered(selected.shape) / 4 + 0.5
    updates: dict[str, Callable[[Any, Any], Any]] = {
        "subtract": np.subtract,
        "multiply": np.multiply,
        "divide": np.divide,
        "power": np.power,
        "max": np.maximum,
        "min": np.minimum,
    }
    for name, act in updates.items():
        want = x.copy()
        with np.errstate(over="ignore"):
            want[index] = act(selected, values)
        ours = run(lambda x, v, name=name: getattr(x.at[index], name)(v), x, values)
        np.testing.assert_allclose(ours, want, rtol=1e-15)


# --- lengths of symbolic slices


def test_slices_of_symbolic_axes_have_equal_lengths_where_they_should(trace: Any) -> None:
    T, K = dims.dim("T"), dims.dim("K")

    def f(x: Any) -> Any:
        t = x.shape[0]
        assert x[:3].shape == (dims.dim_min(3, t), 2)
        assert dims.same(x[2:].shape[0], x[:-2].shape[0])
        assert dims.same(x[-3:].shape[0], x[:3].shape[0])
        assert dims.same(x[1:].shape[0], t - 1)
        assert dims.same(x[::-1].shape[0], t)
        assert dims.same(x[::2].shape[0], dims.floordiv(t + 1, 2))
        assert dims.same(x[1 : t - 1].shape[0], x[1:-1].shape[0])
        assert dims.same(x[t - 1 :].shape[0], 1)
        assert dims.same(x[: x[:K].shape[0]].shape[0], dims.dim_min(K, t))
        assert dims.same(x[: 2 * t].shape[0], t)
        assert x[t - 1].shape == (2,)
        assert x[-t].shape == (2,)
        return x[2:] - x[:-2] + x[1:-1].sum() + x[-1] + x[t - 1]

    trace(f, [TensorType(dtypes.f32, (T, 2))])


@pytest.mark.parametrize("size", range(0, 7))
def test_slices_at_every_size(run: Any, size: int) -> None:
    x, T = numbered((size, 2)), dims.dim("T", min=0)
    cuts = [
        slice(2), slice(2, None), slice(-2, None), slice(None, -2), slice(1, -1), slice(4, 1),
        slice(None, None, -1), slice(3, 0, -1), slice(-2, None, -2), slice(None, 2, -1),
        slice(None, -3, -1), slice(1, 5, 3), slice(-4, -1), slice(-1, -4), slice(9, 2, -3),
    ]  # fmt: skip
    ours = run(lambda x: [x[c] for c in cuts], x, shapes=[(T, 2)])
    for mine, cut in zip(ours, cuts, strict=True):
        np.testing.assert_array_equal(mine, x[cut], err_msg=str(cut))


# --- masks


def test_a_mask_of_the_closure_is_read_again_at_each_run(trace: Any) -> None:
    from retrograde.compiler.ir.interpreter import evaluate

    x, mask = numbered((4, 3)), np.array([True, False, True, False])
    graph, captured, _ = trace(lambda x: x[mask], [TensorType(dtypes.f64, (4, 3))])
    assert captured[0] is mask
    np.testing.assert_array_equal(evaluate(graph, [x, *captured])[0], x[mask])
    mask[:] = [False, True, False, True]
    np.testing.assert_array_equal(evaluate(graph, [x, *captured])[0], x[mask])
    mask[0] = True  # another count: the shape of the program is another one
    with pytest.raises(DataError):
        evaluate(graph, [x, *captured])


def test_updates_under_a_mask(run: Any) -> None:
    x = numbered((3, 4))
    want = np.where(x > 5, -1.0, x)
    np.testing.assert_array_equal(run(lambda x: x.at[x > 5].set(-1.0), x), want)
    np.testing.assert_array_equal(
        run(lambda x: x.at[x[:, 0] > 1].multiply(2.0), x), np.where((x[:, :1] > 1), x * 2, x)
    )
    mask = x > 5
    values = -numbered((int(mask.sum()),))
    want = x.copy()
    want[mask] *= values
    np.testing.assert_array_equal(run(lambda x, v: x.at[mask].multiply(v), x, values), want)


def test_updates_outside_of_a_trace_leave_the_array_alone() -> None:
    x = numbered((3, 4))
    kept = x.copy()
    ours = rnp.at(x)[1:, ::2].set(0.0)
    np.testing.assert_array_equal(x, kept)
    x[1:, ::2] = 0.0
    np.testing.assert_array_equal(ours, x)
    np.testing.assert_array_equal(rnp.at(x)[0].get(), x[0])


def test_values_take_the_dtype_of_the_array_or_are_refused(run: Any) -> None:
    i = np.zeros(3, np.int32)
    assert run(lambda i: i.at[0].set(7), i).dtype == np.int32
    assert run(lambda x: x.at[0].add(np.float64(1)), i.astype(np.float32)).dtype == np.float32
    with pytest.raises(DTypeError, match="float do not fit into i32"):
        run(lambda i: i.at[0].set(1.5), i)
    with pytest.raises(DTypeError, match="int do not fit into bool"):
        run(lambda b: b.at[0].set(1), i.astype(bool))


def test_duplicates(run: Any) -> None:
    x, v = np.zeros(4), np.array([1.0, 2.0, 4.0])
    first, second = run(lambda x, v: [x.at[[1, 1, 3]].set(v), x.at[[1, 1, 3]].add(v)], x, v)
    np.testing.assert_array_equal(first, [0, 2, 0, 4])
    np.testing.assert_array_equal(second, [0, 3, 0, 4])
    with pytest.raises(UnsupportedError, match=r"\.multiply with index arrays"):
        run(lambda x, v: x.at[[1, 1, 3]].multiply(v), x, v)
    assert run(lambda x, i: x.at[i].max(9.0), x, np.int32(2))[2] == 9.0


def test_an_index_out_of_range_at_run_time_is_a_data_error(run: Any) -> None:
    x = numbered((4, 3))
    for i in (4, -5):
        with pytest.raises(DataError):
            run(lambda x, i: x[i], x, np.int32(i))
        with pytest.raises(DataError):
            run(lambda x, i: x.at[i, 1].add(1.0), x, np.int32(i))


MISFITS: dict[str, tuple[Callable[[Any], Any], type[RetrogradeError], str]] = {
    "integer": (lambda x: x[4], ShapeError, "index 4 is out of range on axis 0 of size 4"),
    "negative": (lambda x: x[:, -4], ShapeError, "index -4 is out of range on axis 1 of size 3"),
    "too many": (lambda x: x[0, 0, 0], ShapeError, "too many indices"),
    "two ellipses": (lambda x: x[..., ...], ShapeError, "only one Ellipsis"),
    "step 0": (lambda x: x[::0], ShapeError, "step 0"),
    "float": (lambda x: x[1.0], ShapeError, "no index"),
    "float slice": (lambda x: x[:2.0], ShapeError, "give an integer"),
    "float array": (lambda x: x[np.array([1.0])], DTypeError, "indices are integers"),
    "string": (lambda x: x["a"], ShapeError, "no index"),
    "boolean": (lambda x: x[True], ShapeError, "single boolean"),
    "mask": (lambda x: x[np.array([True, False])], ShapeError, "a mask of shape"),
    "traced mask": (lambda x: x[x > 0], TraceError, "rnp.where"),
    "traced bound": (lambda x: x[: x[0, 0].astype("i32")], TraceError, "rnp.take"),
    "unequal": (lambda x: x[[0, 1], [0, 1, 2]], ShapeError, "do not broadcast"),
    "ragged": (lambda x: x[[[0, 1], [2]]], ShapeError, "unequal lengths"),
    "values": (lambda x: x.at[0].set(np.ones(4)), ShapeError, "stretch"),
    "masked values": (lambda x: x.at[x > 0].set(x), TraceError, "takes one number"),
    "no index": (lambda x: x.at.set(1.0), ShapeError, "say where"),
    "assignment": (lambda x: x.__setitem__(0, 1.0), TraceError, r"x = x\.at\[\.\.\.\]\.set"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_misfits(trace: Any, name: str) -> None:
    call, error, says = MISFITS[name]
    with pytest.raises(error, match=says) as caught:
        trace(call, [TensorType(dtypes.f64, (4, 3))])
    assert f"{__file__}:{call.__code__.co_firstlineno}: " in str(caught.value)


def test_an_index_that_no_bound_covers_asks_for_one(trace: Any) -> None:
    T = dims.dim("T", min=3)
    trace(lambda x: x[2] + x[-3], [TensorType(dtypes.f32, (T,))])
    for i in (3, -4):
        with pytest.raises(ShapeError, match=r"may be out of range .* rg\.dim\('T', min="):
            trace(lambda x, i=i: x[i], [TensorType(dtypes.f32, (T,))])


def test_a_window_is_one_slice_and_a_full_index_no_op(trace: Any) -> None:
    def ops(index: Any) -> list[str]:
        graph, _, _ = trace(lambda x: x[index], [TensorType(dtypes.f32, (4, 5, 6))])
        return [n.op.name for n in graph.nodes]

    assert ops(...) == ops(slice(None)) == []
    assert ops((0, slice(1, 3))) == ["slice", "reshape"]
    assert ops((slice(None), None)) == ["reshape"]
    assert ops((slice(None), slice(None, None, -1))) == ["flip"]
    assert ops(np.array([1, 2])) == ["gather"]
