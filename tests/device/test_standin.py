"""The stand-in for CuPy is strict: what CuPy refuses, it refuses."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.device import fake_cupy as cp

REFUSED: dict[str, Callable[[Any], Any]] = {
    "float": float,
    "int": int,
    "bool": bool,
    "iteration": list,
    "np.asarray": np.asarray,
    "a NumPy operand on the right": lambda x: x + np.ones(3),
    "a NumPy operand on the left": lambda x: np.ones(3) + x,
    "a NumPy operand of a ufunc": lambda x: cp.add(x, np.ones(3)),
    "a NumPy array as out": lambda x: cp.add(x, x, out=np.ones(3)),
    "a NumPy index": lambda x: x[np.array([0, 1])],
    "assigning a NumPy array": lambda x: x.__setitem__(slice(None), np.ones(3)),
    "copying from a NumPy array": lambda x: cp.copyto(x, np.ones(3)),
    "setting another type": lambda x: x.set(np.ones(3, np.float32)),
    "setting another shape": lambda x: x.set(np.ones(4)),
    "setting a strided array": lambda x: cp.zeros((3, 2))[:, 0].set(np.ones(3)),
    "maximum.reduce": lambda x: cp.maximum.reduce(x),
    "minimum.accumulate": lambda x: cp.minimum.accumulate(x),
    "multiply.at": lambda x: cp.multiply.at(x, cp.asarray([0]), x[:1]),
    "add.at of int64": lambda x: cp.add.at(cp.zeros(3, np.int64), cp.asarray([0]), cp.asarray([1])),
    "vecdot": lambda x: cp.vecdot(x, x),
    "take with a mode": lambda x: cp.take(x, cp.asarray([0]), mode="wrap"),
    "an unstable sort": lambda x: cp.argsort(x, kind="quicksort"),
    "a keyword that is not there": lambda x: cp.exp(x, where=True),
    "exp of integers into integers": lambda x: cp.exp(
        cp.ones(3, np.int32), out=cp.ones(3, np.int32)
    ),
    "isnan of booleans into floats": lambda x: cp.left_shift(x, x),
    "bfloat16": lambda x: cp.zeros(3, importlib.import_module("ml_dtypes").bfloat16),
    "a NumPy function without a counterpart": lambda x: np.median(x),
    "np.take_along_axis": lambda x: np.take_along_axis(x, x, 0),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str) -> None:
    with pytest.raises(
        (TypeError, NotImplementedError, AttributeError, ValueError, RuntimeError, IndexError)
    ):
        REFUSED[what](cp.ones(3))


def test_memory_is_shared_by_views() -> None:
    memory = cp.zeros(64, np.uint8)
    view = cp.ndarray((2, 3), np.float32, memory.data + 8, (4, 8))
    view[...] = 1.5
    assert memory.get()[8:32].view(np.float32).tolist() == [1.5] * 6
    assert not memory.get()[:8].any() and not memory.get()[32:].any()
    memory[8:12] = 0xFF
    assert np.isnan(view.get()[0, 0])


def test_numpy_functions_are_handed_over() -> None:
    x = cp.asarray(np.array([3.0, 1.0, 2.0]))
    assert np.sum(x).item() == 6.0 and np.exp(x).get()[1] == np.e
    assert isinstance(np.argsort(x), cp.ndarray) and np.argsort(x).get().tolist() == [1, 2, 0]


def test_loops_and_signatures_are_those_of_cupy() -> None:
    """Where CuPy can be imported (that takes no GPU): the same loops, no keyword that it lacks."""
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed: the stand-in is not compared")
    for name, mine in vars(cp).items():
        theirs = getattr(cupy, name, None)
        if isinstance(mine, cp.Ufunc):
            types = {t.split("->")[0][0] for t in theirs.types}
            assert set(mine.loops) <= types, name
        elif inspect.isfunction(mine) and mine.__module__ == cp.__name__ and name[0] != "_":
            assert theirs is not None, name
            try:
                known = inspect.signature(theirs).parameters
            except (TypeError, ValueError):
                continue
            if "kwargs" not in known:
                assert set(inspect.signature(mine).parameters) <= set(known), name
