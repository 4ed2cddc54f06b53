"""What cannot be traced ends in TraceError with this file's line and what to write instead."""

from __future__ import annotations

import copy
import math
import operator
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import retrograde.numpy as rnp
from retrograde.compiler.errors import RetrogradeError, ShapeError, TraceError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.graph import TensorType

B, T = dims.dim("B"), dims.dim("T")
OUT = np.zeros(3)

# x: f32[B,T,4], s: f32[], i: i32[] (traced); B, T: sizes.  One line each: it has to be named.
CASES: dict[str, tuple[Callable[..., Any], str]] = {
    # numbers that do not exist yet
    "float": (lambda x, s, i: float(s), "float"),
    "int": (lambda x, s, i: int(i), "astype"),
    "bool": (lambda x, s, i: bool(s > 0), "rnp.where"),
    "if": (lambda x, s, i: 1 if s > 0 else 2, "rnp.where"),
    "and": (lambda x, s, i: (s > 0) and (s < 1), "& | ~"),
    "not": (lambda x, s, i: not s, "& | ~"),
    "chain": (lambda x, s, i: 0 < s < 1, "& | ~"),
    "max of two": (lambda x, s, i: max(s, s + 1), "rnp.where"),
    "sorted": (lambda x, s, i: sorted([s, s + 1]), "rnp.where"),
    "complex": (lambda x, s, i: complex(s), "complex"),
    "math.sqrt": (lambda x, s, i: math.sqrt(s), "rnp"),
    "math.floor": (lambda x, s, i: math.floor(s), "rnp.floor"),
    "math.ceil": (lambda x, s, i: math.ceil(s), "rnp.ceil"),
    "math.trunc": (lambda x, s, i: math.trunc(s), "rnp.trunc"),
    "index": (lambda x, s, i: operator.index(i), "rnp.take"),
    "list index": (lambda x, s, i: [1, 2, 3][i], "rnp.take"),
    "range": (lambda x, s, i: range(i), "static sizes"),
    "item": (lambda x, s, i: s.item(), "0-d array"),
    "tolist": (lambda x, s, i: x.tolist(), "caller"),
    "tobytes": (lambda x, s, i: x.tobytes(), "return it"),
    "format": (lambda x, s, i: f"{s:.3f}", "rg.debug.print"),
    "percent": (lambda x, s, i: "%f" % s, "float"),  # noqa: UP031
    "pickle": (lambda x, s, i: pickle.dumps(s), "return it"),
    "dlpack": (lambda x, s, i: np.from_dlpack(x), "retrograde.numpy"),
    "in": (lambda x, s, i: 1.0 in x, "rnp.any"),
    "iterate": (lambda x, s, i: list(x), "rg.scan"),
    "unpack": (lambda x, s, i: (lambda a, b: a)(*x), "rg.scan"),
    "iterate scalar": (lambda x, s, i: list(s), "rg.scan"),
    "len": (lambda x, s, i: len(x), "x.shape[0]"),
    "len of scalar": (lambda x, s, i: len(s), "no axes"),
    # making NumPy arrays
    "np.asarray": (lambda x, s, i: np.asarray(x), "rnp.asarray"),
    "np.array": (lambda x, s, i: np.array(x, dtype=np.float64), "rnp.asarray"),
    "np.array of two": (lambda x, s, i: np.array([x, x]), "rnp.stack"),
    "np.array of numbers": (lambda x, s, i: np.array([s, 1.0]), "rnp.stack"),
    "np.array nested": (lambda x, s, i: np.array([[1.0, s], [s, 2.0]]), "rnp.stack"),
    "np.float32": (lambda x, s, i: np.float32(s), "rnp.asarray"),
    "np.int64": (lambda x, s, i: np.int64(i), "rnp.asarray"),
    "np.full": (lambda x, s, i: np.full((3,), s), "rnp.asarray"),
    "np.full like": (lambda x, s, i: np.full_like(OUT, s), "rnp"),
    "assignment": (lambda x, s, i: OUT.__setitem__(0, s), "at[i].set"),
    "assignment of a row": (lambda x, s, i: OUT.__setitem__(slice(None), x[0, 0, :3]), ".set(v)"),
    "fill": (lambda x, s, i: OUT.fill(s), "rnp"),
    "in place": (lambda x, s, i: OUT.__iadd__(s), "y = y + x"),
    "np.copyto": (lambda x, s, i: np.copyto(OUT, x[0, 0, :3]), "rnp.where"),
    "np.random": (lambda x, s, i: np.random.default_rng(0).normal(x), "rnp.asarray"),
    # sizes
    "np.ones": (lambda x, s, i: np.ones((B, T)), "rnp.ones"),
    "np.zeros": (lambda x, s, i: np.zeros(x.shape), "rnp.zeros"),
    "np.empty": (lambda x, s, i: np.empty(T), "rnp"),
    "np.full of size": (lambda x, s, i: np.full((T,), 1.0), "rnp"),
    "np.arange": (lambda x, s, i: np.arange(T), "rnp.arange"),
    "np.arange from": (lambda x, s, i: np.arange(1, x.shape[1]), "rnp.arange"),
    "np.eye": (lambda x, s, i: np.eye(T), "rnp"),
    "np.linspace": (lambda x, s, i: np.linspace(0, 1, T), "rnp"),
    "np.array of size": (lambda x, s, i: np.array([1, T]), "rnp"),
    "np.random size": (lambda x, s, i: np.random.default_rng(0).normal(size=(B, 3)), "rnp"),
    "range of size": (lambda x, s, i: range(T), "rg.scan"),
    "np.zeros of data": (lambda x, s, i: np.zeros((i,)), "static sizes"),
    "rnp.zeros of data": (lambda x, s, i: rnp.zeros((i,)), "static sizes"),
    "np.arange of data": (lambda x, s, i: np.arange(i), "rnp.asarray"),
    "rnp.arange of data": (lambda x, s, i: rnp.arange(i), "start + rnp.arange(n)"),
    "reshape by data": (lambda x, s, i: x.reshape(i, -1), "static sizes"),
    "axis by data": (lambda x, s, i: x.sum(axis=i), "static sizes"),
    # shapes that depend on data
    "nonzero": (lambda x, s, i: np.nonzero(x), "rnp.where"),
    "x.nonzero": (lambda x, s, i: x.nonzero(), "rnp.where"),
    "where of one": (lambda x, s, i: np.where(x > 0), "both branches"),
    "unique": (lambda x, s, i: np.unique(x), "rnp.sort"),
    "argwhere": (lambda x, s, i: np.argwhere(x > 0), "rnp.where"),
    "flatnonzero": (lambda x, s, i: np.flatnonzero(x > 0), "rnp.where"),
    "extract": (lambda x, s, i: np.extract(x > 0, x), "rnp.where"),
    "compress": (lambda x, s, i: x.compress([True]), "rnp.where"),
    "mask": (lambda x, s, i: x[x > 0], "rnp.where"),
    "slice": (lambda x, s, i: x[:, i : i + 3], "rnp.take"),
    # writes
    "x[0] = 1": (lambda x, s, i: x.__setitem__(0, 1.0), "x = x.at[...].set(value)"),
    "x[0] += 1": (lambda x, s, i: operator.setitem(x, 0, x[0] + 1), "x.at[...].add(value)"),
    "del x[0]": (lambda x, s, i: x.__delitem__(0), "never change"),
    "x.sort": (lambda x, s, i: x.sort(), "x = rnp.sort(x)"),
    "x.fill": (lambda x, s, i: x.fill(0), "rnp.full_like"),
    "np.put": (lambda x, s, i: np.put(x, [0], 1.0), "x.at[index].set"),
    "np.add.at": (lambda x, s, i: np.add.at(x, 0, 1.0), "x.at[index].add"),
    "np.add.at array": (lambda x, s, i: np.add.at(OUT, 0, s), "x.at[index].add"),
    "out ufunc": (lambda x, s, i: np.exp(s, out=OUT), "use the result"),
    "out function": (lambda x, s, i: np.sum(x, axis=0, out=OUT), "use the result"),
    "out method": (lambda x, s, i: x.sum(out=OUT), "y = x.sum()"),
    "out accumulate": (lambda x, s, i: np.add.accumulate(x, out=OUT), "use the result"),
    "where ufunc": (lambda x, s, i: np.log(x, where=x > 0), "rnp.where(mask, rnp.log(x), x)"),
    # what there is no counterpart of
    "unknown ufunc": (lambda x, s, i: np.logaddexp2(x, x), "rnp.logaddexp"),
    "unknown method": (lambda x, s, i: np.hypot.reduce(x), "no counterpart"),
    "reduceat": (lambda x, s, i: np.add.reduceat(x, [0, 1]), "cannot be traced"),
    "unknown function": (lambda x, s, i: np.nanmedian(x), "no counterpart"),
    "fft": (lambda x, s, i: np.fft.fft(x), "no counterpart"),
    "linalg": (lambda x, s, i: np.linalg.pinv(x), "no counterpart"),
    "unknown argument": (lambda x, s, i: np.sort(x, order="a"), "rnp.sort takes"),
    "casting": (lambda x, s, i: np.add(x, 1, casting="unsafe"), "rnp.add"),
    "strides": (lambda x, s, i: x.strides, "memory"),
    "view": (lambda x, s, i: x.view(np.int32), "memory"),
    "save": (lambda x, s, i: np.save("x.npy", x), "return the value"),
    "apply": (lambda x, s, i: np.apply_along_axis(np.sum, 0, x), "rg.scan"),
    "array2string": (lambda x, s, i: np.array2string(x), "rg.debug.print"),
    "assert_allclose": (lambda x, s, i: np.testing.assert_allclose(x, x), ""),
    # operands that are no arrays
    "string": (lambda x, s, i: x + "a", "str as an array"),
    "None": (lambda x, s, i: x * None, "NoneType as an array"),
    "== None": (lambda x, s, i: x == None, "NoneType as an array"),  # noqa: E711
    "list": (lambda x, s, i: x - [1.0], "rnp.asarray"),
    "dict": (lambda x, s, i: rnp.exp({}), "dict as an array"),
    "matmul scalar": (lambda x, s, i: x @ s, "use *"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_untraceable(trace: Any, name: str) -> None:
    call, says = CASES[name]
    types = [
        TensorType(dtypes.f32, (B, T, 4)),
        TensorType(dtypes.f32),
        TensorType(dtypes.i32),
    ]
    with pytest.raises(TraceError) as caught:
        trace(call, types)
    message = str(caught.value)
    assert f"{__file__}:{call.__code__.co_firstlineno}: " in message
    assert says in message


@pytest.mark.parametrize(
    "call",
    [
        lambda x: 1 if x.shape[0] > 7 else 2,
        lambda x: x.shape[0] == x.shape[1],
        lambda x: np.tri(x.shape[1]),
        lambda x: np.tile(OUT, x.shape[1]),
    ],
)
def test_a_question_about_sizes_without_one_answer_is_refused(trace: Any, call: Any) -> None:
    with pytest.raises(ShapeError, match=r"cannot decide .* rg\.dim\(name, min=, max=\)") as caught:
        trace(call, [TensorType(dtypes.f32, (B, T))])
    assert str(caught.value).startswith(f"{__file__}:{call.__code__.co_firstlineno}: ")


def test_trace_error_is_none_of_the_errors_that_numpy_swallows() -> None:
    assert issubclass(TraceError, RetrogradeError)
    assert not issubclass(TraceError, (TypeError, ValueError, AttributeError, IndexError))


def test_the_line_is_the_users_however_deep_numpy_calls(trace: Any) -> None:
    def model(x: Any) -> Any:
        y = np.exp(x)
        return np.mean(y) if y.sum() > 0 else y

    with pytest.raises(TraceError) as caught:
        trace(model, [TensorType(dtypes.f32, (3,))])
    assert f"{__file__}:{model.__code__.co_firstlineno + 2}: " in str(caught.value)


def test_other_errors_of_user_code_stay_what_they_are(trace: Any) -> None:
    def model(x: Any) -> Any:
        raise ValueError("mine") from TypeError("other")

    with pytest.raises(ValueError, match="mine"):
        trace(model, [TensorType(dtypes.f32, (3,))])


def test_unknown_attributes_are_attribute_errors(trace: Any) -> None:
    def model(x: Any) -> Any:
        assert not hasattr(x, "__array_interface__")
        assert not hasattr(x, "no_such_thing")
        assert copy.copy(x) is x and copy.deepcopy(x) is x
        with pytest.raises(AttributeError, match=r"did you mean rnp\.softmax"):
            _ = x.soft_max
        return x

    trace(model, [TensorType(dtypes.f32, (3,))])
