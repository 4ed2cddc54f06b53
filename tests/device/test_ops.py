"""Every op of the registry on every device against the interpreter, in each dtype that it takes,
alone and between neighbours that it may be grouped with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from retrograde.compiler.errors import DeviceError, DTypeError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.expr import Expr, cast
from retrograde.compiler.ir.graph import Graph, TensorType
from retrograde.compiler.ir.registry import all_ops, lookup
from retrograde.runtime.protocol import Device
from tests.compiler.ops.harness import build, numpy_dtype
from tests.compiler.ops.samples import Sample
from tests.device.harness import check
from tests.device.op_samples import calls

Array = npt.NDArray[Any]

CASES = list(calls())
IDS = [f"{name}-{i}" for i, (name, _) in enumerate(CASES)]
DTYPES = ("f64", "f32", "f16", "bf16", "i32", "bool")


def operands(s: Sample, dtype: str) -> list[Array] | None:
    """The sample's floats as `dtype`; None where there are none to change."""
    arrays = s.operands()
    floats = [x.dtype == np.float64 for x in arrays]
    if dtype == "f64":
        return arrays
    if not any(floats) or any(hasattr(v, "nodes") for v in s.attrs.values()):
        return None
    out = []
    for x, is_float in zip(arrays, floats, strict=True):
        if is_float and dtype == "bool":
            out.append(x > 0)
        elif is_float and dtype == "i32":
            out.append(np.rint(np.abs(x) * 2).astype(np.int32))
        else:
            out.append(x.astype(numpy_dtype(dtype)) if is_float else x)
    return out


def surrounded(name: str, arrays: Sequence[Array], attrs: Any) -> Graph:
    """The op with work on each side, so that its operands are temporaries and may be taken over."""
    builder = Builder(name, Expr)
    with builder:
        inputs = [builder.input(TensorType(dtypes.dtype(x.dtype), x.shape)) for x in arrays]
        fed: list[Any] = []
        for x in inputs:
            if x.dtype.is_float:
                fed.append((x + 1.0) - 1.0)
            elif x.dtype is dtypes.bool_:
                fed.append(~(~x))
            else:
                fed.append(x)
        results = lookup(name)(*fed, **attrs)
        results = results if isinstance(results, tuple) else (results,)
        after = []
        for y in results:
            again = y * y if y.dtype is not dtypes.bool_ else cast(y, dtypes.f32)
            after.append(again if y.ndim == 0 else lookup("flip")(again, axes=(0,)))
    return builder.finish([e.value for e in (*after, *results)])


def test_every_op_has_samples() -> None:
    in_segments = {"scan_sweep", "scan_replay"}  # tests/device/test_segments.py
    missing = {op.name for op in all_ops()} - {name for name, _ in CASES} - in_segments
    assert not missing, f"add calls to tests/device/op_samples.py for {sorted(missing)}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_op(device: Device, dtype: str) -> None:
    """One test for all ops of a dtype: a compile is cheap, a test item is not."""
    if dtype == "bf16" and device.name == "cupy":
        graph = build("neg", [np.zeros(3, numpy_dtype(dtype))], {})
        with pytest.raises(DeviceError, match="no arrays of bfloat16"):
            check(graph, device, [[np.zeros(3, numpy_dtype(dtype))]])
        return
    failures, ran = [], 0
    for label, (name, s) in zip(IDS, CASES, strict=True):
        arrays = operands(s, dtype)
        if arrays is None:
            continue
        for make in (build, surrounded) if dtype == "f64" else (surrounded,):
            try:
                graph = make(name, arrays, s.attrs)
            except DTypeError:
                continue  # not for this type
            try:
                check(graph, device, [arrays])
            except Exception as error:
                text = " ".join(str(error).split())[:300]
                failures.append(f"{label} ({make.__name__}): {type(error).__name__}: {text}")
            ran += 1
    assert not failures, f"{len(failures)} of {ran}:\n" + "\n".join(failures)
    assert ran > 50
