"""What does not fit is refused by an error of ours that names the user's line, before it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.errors import DataError, DTypeError, ShapeError, TraceError, UnsupportedError

SGD = rg.optim.SGD(0.1)
F64, T2 = np.ones((2, 3)), rg.spec("f64", rg.dim("T", min=2, max=9), 3)
compiled = rg.compile(lambda x: x * 2, T2)
pair = rg.compile(lambda x, y: x * y[:, None], rg.spec("f64", "T", 3), rg.spec("f64", "T"))
double = rg.compile(lambda x: x, rg.spec("f64", "2*T"))


def pulled() -> Any:
    return rg.vjp(lambda x: x @ x.T, F64)[1]


def train(loss: Any = lambda w, x: rnp.sum(w * x), optimizer: Any = SGD, **options: Any) -> Any:
    batch = {"x": rg.spec("f64", "B")}
    return rg.compile_training(loss, np.ones(1), optimizer, batch, **options)


def steps(length: Any) -> Any:
    return rg.scan(lambda c, _: (c, c), np.zeros(2), length=length)


def shown(x: Any) -> Any:
    rg.debug.print("{:.2f}", x)
    return x


CASES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "rank": (lambda: compiled(np.ones(3)), ShapeError, "2 axes"),
    "width": (lambda: compiled(np.ones((2, 4))), ShapeError, "axis 1 is 4, expected 3"),
    "below": (lambda: compiled(np.ones((1, 3))), ShapeError, "T = 1, which must be 2..9"),
    "above": (lambda: compiled(np.ones((10, 3))), ShapeError, "T = 10"),
    "two sizes": (lambda: pair(F64, np.ones(3)), ShapeError, "expected T = 2"),
    "odd": (lambda: double(np.ones(3)), ShapeError, r"no whole T makes 2\*T"),
    "dtype": (lambda: compiled(np.ones((2, 3), np.float32)), DTypeError, "astype"),
    "strings": (lambda: compiled("abc"), DTypeError, "give an array"),
    "complex array": (lambda: rg.jit(lambda x: x)(np.ones(3, complex)), DTypeError, "complex128"),
    "complex number": (lambda: rg.jit(lambda x: x * 1j)(F64), DTypeError, "complex"),
    "unknown dtype": (lambda: rg.spec("f65", "B"), DTypeError, "f65"),
    "cotangent": (lambda: pulled()(np.ones(3)), ShapeError, "cotangent 0"),
    "plan of text": (lambda: compiled.plan(T="x"), ShapeError, "T = 'x' is no size"),
    "plan of half": (lambda: compiled.plan(T=2.5), ShapeError, "T = 2.5 is no size"),
    "at of text": (lambda: rg.compile(rnp.tanh, T2, at={"T": "x"}), ShapeError, "no size"),
    "at of a number": (lambda: rg.compile(rnp.tanh, T2, at=5), ShapeError, "name the sizes"),
    "no budget": (lambda: compiled.largest("T", None), ShapeError, "budget = None"),
    "endless budget": (lambda: compiled.largest("T", "INF"), UnsupportedError, "'INF'"),
    "no function": (lambda: rg.compile(None, T2), TraceError, "NoneType"),
    "no function to trace": (lambda: rg.trace(5, T2), TraceError, "int is no function"),
    "no function to call": (lambda: rg.grad("f")(F64), TraceError, "str is no function"),
    "a class": (lambda: train(optimizer=rg.optim.SGD), DataError, "SGD is no optimizer"),
    "no optimizer": (lambda: train(optimizer=0.1), DataError, "float is no optimizer"),
    "no loss": (lambda: train(3), TraceError, "int is no function"),
    "no argument": (lambda: train(lambda w, y: w), DataError, r"\(w, y\).*with x in the batch"),
    "clip of text": (lambda: train(clip_norm="a"), DataError, "clip_norm is 'a'"),
    "a scan backwards": (lambda: steps(-1), ShapeError, "length = -1 is negative"),
    "half a step": (lambda: steps(2.5), ShapeError, "length = 2.5 is no size"),
    "an axis of text": (lambda: rg.jit(lambda x: x.sum(axis="a"))(F64), ShapeError, "no axis"),
    "a format": (lambda: rg.jit(shown)(F64), UnsupportedError, "does not fit f64"),
    "a key": (lambda: rg.jit(lambda x: {1: 2}.get(x, x))(F64), TraceError, "dictionary key"),
    "a member": (lambda: rg.jit(lambda x: x if x in {1, 2} else 0)(F64), TraceError, "set"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_misfit_names_the_line(case: str) -> None:
    call, error, message = CASES[case]
    with pytest.raises(error, match=message) as caught:
        call()
    assert f"{__file__}:" in str(caught.value)


def test_bytes_in_the_other_order_are_read() -> None:
    x = np.arange(6.0).reshape(2, 3)
    foreign = x.astype(x.dtype.newbyteorder())
    np.testing.assert_array_equal(compiled(foreign), x * 2)
    np.testing.assert_array_equal(rg.jit(lambda x: x + foreign)(foreign), x * 2)


def test_sizes_that_come_out_negative() -> None:
    """T - 3 has no bound that keeps it from being negative: only a run can tell."""
    c = rg.compile(lambda x: rnp.zeros((x.shape[0] - 3,)), rg.spec("f32", "T"))
    d = rg.compile(lambda x: rnp.ones((x.shape[0] - 3, 2)) * x[0], rg.spec("f32", "T"))
    e = rg.compile(
        lambda x: rg.scan(lambda c, _: (c + 1, None), x[0], length=x.shape[0] - 3)[0],
        rg.spec("f32", "T"),
    )
    x = np.ones(5, np.float32)
    assert c(x).shape == (2,) and d(x).shape == (2, 2) and e(x) == 3
    assert c(x[:3]).shape == (0,) and d(x[:3]).shape == (0, 2) and e(x[:3]) == 1
    for call in (c, d, e):
        with pytest.raises(ShapeError, match=r"T - 3.*at these sizes"):
            call(x[:2])
        assert call(x) is not None


def test_the_number_of_steps_may_be_a_numpy_integer() -> None:
    assert steps(np.int64(2))[1].shape == (2, 2)
    assert steps(np.array(3))[1].shape == (3, 2)
