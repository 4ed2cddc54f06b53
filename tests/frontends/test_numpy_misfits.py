"""Arguments that do not fit: each error names this file's line and says what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import retrograde.numpy as rnp
from retrograde.compiler.errors import (
    DTypeError,
    RetrogradeError,
    ShapeError,
    TraceError,
    UnsupportedError,
)
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.graph import TensorType
from retrograde.tracer import Tracer

MISFITS: dict[str, tuple[Callable[[Any], Any], type[RetrogradeError], str]] = {
    "axis": (lambda x: rnp.sum(x, axis=3), ShapeError, "axis 3 of an array of 2"),
    "axis twice": (lambda x: rnp.sum(x, axis=(0, -2)), ShapeError, "name an axis twice"),
    "reshape": (lambda x: rnp.reshape(x, (5, 2)), ShapeError, "12 against 10"),
    "reshape -1": (lambda x: rnp.reshape(x, (5, -1)), ShapeError, "not a multiple"),
    "reshape -1 -1": (lambda x: rnp.reshape(x, (-1, -1)), ShapeError, "only one size"),
    "reshape F": (lambda x: x.reshape(12, order="F"), ShapeError, "row-major"),
    "squeeze": (lambda x: rnp.squeeze(x, 0), ShapeError, "its size is 3, not 1"),
    "concatenate": (lambda x: rnp.concatenate([x, x[:, :2]], 0), ShapeError, "do not agree"),
    "concatenate nothing": (lambda x: rnp.concatenate([]), ShapeError, "at least one"),
    "stack": (lambda x: rnp.stack([x, x[0]]), ShapeError, "arrays of one shape"),
    "split": (lambda x: rnp.split(x, 5, 1), ShapeError, "array_split"),
    "broadcast": (lambda x: rnp.broadcast_arrays(x, x[:, :2]), ShapeError, "do not broadcast"),
    "add": (lambda x: x + x[:, :2], ShapeError, "do not broadcast"),
    "matmul": (lambda x: x @ x, ShapeError, "do not fit"),
    "matmul batch": (lambda x: x[None][[0, 0]] @ x[:, :, None], ShapeError, "matmul"),
    "pad": (lambda x: rnp.pad(x, 9, mode="reflect"), ShapeError, "at least 10 elements"),
    "pad mode": (lambda x: rnp.pad(x, 1, mode="linear_ramp"), ShapeError, "edge, reflect"),
    "pad negative": (lambda x: rnp.pad(x, -1), ShapeError, "cannot be negative"),
    "repeat": (lambda x: rnp.repeat(x, [1, 2, 3], axis=0), ShapeError, "one count"),
    "take floats": (lambda x: rnp.take(x, x), DTypeError, "indices are integers"),
    "max of nothing": (lambda x: rnp.max(x[:0], axis=0), ShapeError, "no extreme"),
    "max where": (lambda x: rnp.max(x, where=x > 0), ShapeError, "initial="),
    "top_k": (lambda x: rnp.top_k(x, 5), ShapeError, "5 largest of 4"),
    "norm 2": (lambda x: rnp.linalg.norm(x, 2), UnsupportedError, "factorisation"),
    "solve": (lambda x: np.linalg.solve(x, x), UnsupportedError, "factorisation"),
    "one_hot": (lambda x: rnp.one_hot(x, 3), ShapeError, "takes integers"),
    "cumulative_sum": (lambda x: rnp.cumulative_sum(x), ShapeError, "name the axis"),
    "meshgrid": (lambda x: rnp.meshgrid(x[0], indexing="yx"), ShapeError, "'xy' or 'ij'"),
    "transpose": (lambda x: rnp.transpose(x, (0,)), ShapeError, "do not order"),
    "diagonal": (lambda x: rnp.diagonal(x, 0, 1, 1), ShapeError, "twice"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_misfits(trace: Any, name: str) -> None:
    call, error, says = MISFITS[name]
    with pytest.raises(error, match=says) as caught:
        trace(call, [TensorType(dtypes.f64, (3, 4))])
    assert f"{__file__}:{call.__code__.co_firstlineno}: " in str(caught.value)


def test_a_traced_value_does_not_leave_its_trace(trace: Any) -> None:
    kept: list[Tracer] = []
    trace(lambda x: kept.append(x) or x, [TensorType(dtypes.f32, (3,))])
    for use in (lambda x: x + 1, rnp.exp, np.exp, lambda x: x.sum()):
        with pytest.raises(TraceError, match=r"escaped|outside of the function"):
            use(kept[0])
