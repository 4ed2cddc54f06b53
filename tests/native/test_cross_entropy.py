"""Heads and their losses as kernels: beside float64, at every edge of panels, tiles, blocks and
slices, with the same bits for any number of threads, without the logits in the plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.compiler.errors import DataError
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.dims import dim
from retrograde.compiler.ir.dtypes import dtype as dtype_of
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, TensorType
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.passes.backward import Backward
from retrograde.compiler.passes.cross_entropy import ChunkHeads, chunked
from retrograde.compiler.pipeline import Options, compile_graph
from retrograde.compiler.plan import cross_entropy as cut
from retrograde.runtime.executable import Executable
from retrograde.runtime.native.device import NativeDevice
from retrograde.runtime.native.toolchain import find_toolchain

pytestmark = pytest.mark.skipif(find_toolchain() is None, reason="there is no C compiler")

Array = npt.NDArray[Any]
INF, NAN = math.inf, math.nan
N = dim("N", min=0)


def head(
    d: int, v: int, extras: tuple[str, ...] = (), transposed: bool = False, dtype: str = "f32",
    target: str = "i32",
) -> Graph:  # fmt: skip
    """nll, lse and the cotangents of x, w and the bias, of N rows."""
    of, integer = dtype_of(dtype), dtype_of(target)
    types = {"bias": TensorType(of, (v,)), "kept": TensorType(dtype_of("bool"), (N,))}
    builder = Builder("head", Expr)
    with builder:
        inputs = [
            builder.input(TensorType(of, (N, d)), "x"),
            builder.input(TensorType(of, (v, d) if transposed else (d, v)), "w"),
            builder.input(TensorType(integer, (N,)), "target"),
            *(builder.input(types[name], name) for name in extras),
        ]
        results = lookup("linear_cross_entropy")(*inputs, extras=extras, transposed=transposed)
    graph = builder.finish([e.value for e in results])
    wrt = (0, 1, 3) if "bias" in extras else (0, 1)
    return Backward((0, 1), wrt)(graph)


def arrays_of(graph: Graph, n: int, seed: int = 0) -> list[Array]:
    """Random operands and cotangents."""
    rng = np.random.default_rng(seed)
    x, w = graph.inputs[:2]
    (classes,) = set(w.shape) - {x.shape[1]} or {x.shape[1]}
    made = []
    for name, value in zip(graph.input_names, graph.inputs, strict=True):
        shape = tuple(d if isinstance(d, int) else n for d in value.shape)
        of = value.dtype.numpy
        if name == "target":
            made.append(rng.integers(0, classes, shape).astype(of))
        elif name == "kept":
            made.append(rng.uniform(size=shape) < 0.7)
        else:
            numbers = rng.standard_normal(shape)
            if name == "w":
                numbers /= np.sqrt(max(x.shape[1], 1))  # logits of about 1
            made.append(numbers.astype(of))
    return made


class Native:
    """A graph compiled for some threads, with its logits nowhere."""

    def __init__(self, graph: Graph, threads: int = 2, poison: bool = False) -> None:
        options = Options(native=True, threads=threads, verify=True, poison=poison)
        program = compile_graph(graph, options).program
        assert "evaluator" not in program.source
        self.run = Executable(program, NativeDevice(threads), poison=poison)

    def __call__(self, arrays: Sequence[Array], n: int) -> list[Array]:
        return self.run.run(list(arrays), {"N": n})


def widened(arrays: Sequence[Array]) -> list[Array]:
    return [x.astype(np.float64) if x.dtype.kind == "f" else x for x in arrays]


def check(n: int, d: int, v: int, dtype: str = "f32", **options: Any) -> None:
    graph = head(d, v, dtype=dtype, **options)
    arrays = arrays_of(graph, n)
    if "kept" in options.get("extras", ()):
        arrays[2][~arrays[graph.input_names.index("kept")]] = 10**6
    found = Native(graph)(arrays, n)
    expected = evaluate(head(d, v, dtype="f64", **options), widened(arrays))
    tolerance = 2e-6 if dtype == "f32" else 1e-14
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == arrays[0].dtype and a.shape == b.shape
        scale = float(np.max(np.abs(b), initial=1.0))
        np.testing.assert_allclose(a, b, 0, tolerance * scale)


EXTRAS = [(), ("bias",), ("kept",), ("bias", "kept")]


@pytest.mark.parametrize("extras", EXTRAS)
@pytest.mark.parametrize("transposed", [False, True])
def test_values_and_gradients(extras: tuple[str, ...], transposed: bool) -> None:
    check(151, 37, 331, extras=extras, transposed=transposed)
    if len(extras) == 2:
        check(151, 37, 331, "f64", extras=extras, transposed=transposed)


@pytest.mark.parametrize("v", [1, 2, 31, 32, 33, 63, 65, 127, 509, 511, 512, 513, 1025, 4099])
def test_classes_at_the_edges_of_panels_blocks_and_slices(v: int) -> None:
    check(29, 8, v)


@pytest.mark.parametrize("n", [0, 1, 2, 11, 13, 71, 73, 143, 144, 145, 289])
def test_rows_at_the_edges_of_tiles(n: int) -> None:
    check(n, 16, 67, extras=("bias",))


@pytest.mark.parametrize("d", [0, 1, 2, 15, 17, 31, 32, 33, 64, 513, 1031])
@pytest.mark.parametrize("transposed", [False, True])
def test_widths_at_the_edges_of_panels(d: int, transposed: bool) -> None:
    check(19, d, 97, transposed=transposed)


@pytest.mark.parametrize("target", ["i64", "i16", "u8", "u64"])
def test_targets_of_every_integer(target: str) -> None:
    check(23, 5, 47, target=target)


def test_many_slices_of_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut, "BLOCK_BYTES", 64 * 24 * 4)
    graph = head(24, 2100)
    made = cut.head_cut(next(n for n in graph.nodes if n.op.name.endswith("entropy")))
    assert made is not None and made.block == 64 and made.slice == 192 and made.slices == 11
    check(300, 24, 2100)


@pytest.mark.parametrize("extras", [(), ("bias", "kept")])
def test_the_bits_depend_on_no_number_of_threads(extras: tuple[str, ...]) -> None:
    graph = head(40, 700, extras, transposed=True)
    arrays = arrays_of(graph, 211)
    found = [Native(graph, threads)(arrays, 211) for threads in (1, 2, 3, 1)]
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert a.tobytes() == b.tobytes()


def test_nothing_is_read_before_it_is_written() -> None:
    graph = head(20, 300, ("bias", "kept"))
    arrays = arrays_of(graph, 50)
    plain, poisoned = Native(graph), Native(graph, poison=True)
    for _ in range(2):
        for a, b in zip(plain(arrays, 50), poisoned(arrays, 50), strict=True):
            assert a.tobytes() == b.tobytes()


def test_one_program_for_all_numbers_of_rows() -> None:
    graph, wide = head(9, 130, ("kept",)), head(9, 130, ("kept",), dtype="f64")
    native = Native(graph)
    for n in (5, 160, 0, 1, 5):
        arrays = arrays_of(graph, n, seed=n)
        for a, b in zip(native(arrays, n), evaluate(wide, widened(arrays)), strict=True):
            np.testing.assert_allclose(a, b, 2e-5, 2e-5)


def test_rows_that_are_left_out_may_hold_anything() -> None:
    graph = head(12, 65, ("bias", "kept"))
    arrays = arrays_of(graph, 40)
    kept = arrays[4]
    native = Native(graph)
    clean = native(arrays, 40)
    arrays[0][~kept], arrays[2][~kept] = NAN, -5
    for a, b in zip(native(arrays, 40), clean, strict=True):
        assert a.tobytes() == b.tobytes()
    np.testing.assert_allclose(clean[0][~kept], np.log(65), rtol=1e-6)
    assert not clean[2][~kept].any()
    kept[...] = False
    nll, lse, *gradients = native(arrays, 40)
    np.testing.assert_allclose([*nll, *lse], np.log(65), rtol=1e-6)
    assert not any(g.any() for g in gradients)


@pytest.mark.parametrize("v", [7, 600])
def test_infinities_and_nan_go_as_through_the_reference(v: int) -> None:
    graph = head(1, v, ("bias",))
    x = np.ones((6, 1), np.float32)
    special = np.zeros((6, v), np.float32)
    special[0, 3] = INF
    special[1, 3] = -INF
    special[2] = -INF
    special[3, v - 1] = NAN
    special[4, 0], special[4, v - 1] = INF, -INF
    special[5, 1] = 3e38
    native = Native(graph)
    for row in range(6):
        w = special[row : row + 1]
        g = np.ones(1, np.float32)
        for target in (0, 3, v - 1):
            arrays = [x[:1], w, np.array([target], np.int32), np.zeros(v, np.float32), g, g]
            with np.errstate(all="ignore"):
                expected = evaluate(graph, arrays)
            nll, lse, dx, *rest = native(arrays, 1)
            for a, b in zip((nll, lse, *rest), (*expected[:2], *expected[3:]), strict=True):
                np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)
            # 0 * inf of one class is added to the term of the target, which may be infinite.
            np.testing.assert_array_equal(np.isfinite(dx), np.isfinite(expected[2]))


def test_large_logits_do_not_overflow() -> None:
    graph, wide = head(3, 50), head(3, 50, dtype="f64")
    arrays = arrays_of(graph, 30)
    arrays[0] *= 3e3
    for a, b in zip(Native(graph)(arrays, 30), evaluate(wide, widened(arrays)), strict=True):
        np.testing.assert_allclose(a, b, 1e-5, 1e-3 * max(1.0, float(np.abs(b).max()) * 1e-3))


@pytest.mark.parametrize("transposed", [False, True])
def test_a_target_beyond_the_classes(transposed: bool) -> None:
    graph = head(4, 50, transposed=transposed)
    arrays = arrays_of(graph, 9)
    native = Native(graph)
    for wrong in (50, -1, 2**31 - 1):
        arrays[2][:] = 7
        arrays[2][5] = wrong
        with pytest.raises(DataError, match=f"index {wrong} is out of range.*size 50"):
            native(arrays, 9)
    arrays[2][:] = 49
    assert np.isfinite(native(arrays, 9)[0]).all()


# --- what users write


def loss(weights: Any, t: Any) -> Any:
    x, w, b = weights
    return rg.losses.cross_entropy(
        x @ w + b, t, ignore_index=-1, label_smoothing=0.1, weights=rnp.ones(w.shape[1], x.dtype)
    ).value


def test_a_loss_with_its_gradients_and_its_plan() -> None:
    n, d, v = 600, 32, 4500
    rng = np.random.default_rng(5)
    weights = tuple(
        rng.standard_normal(shape).astype(np.float32) for shape in ((n, d), (d, v), (v,))
    )
    t = np.where(rng.uniform(size=n) < 0.5, rng.integers(0, v, n), -1).astype(np.int32)
    both = rg.value_and_grad(loss)
    whole = rg.compile(both, weights, t, backend="numpy")
    with chunked(ChunkHeads()):
        made = rg.compile(both, weights, t, backend="native", threads=2)
    value, gradients = made(weights, t)
    other, others = rg.compile(both, wide := tuple(widened(weights)), t, backend="numpy")(wide, t)
    assert value == pytest.approx(other, rel=1e-6)
    for a, b in zip(gradients, others, strict=True):
        np.testing.assert_allclose(a, b, 0, 2e-6 * float(np.abs(b).max()))
    logits = 4 * n * v
    assert max(b.bytes for b in whole.plan().buffers) >= logits
    temporary = [b.bytes for b in made.plan().buffers if b.kind != "input"]
    assert max(temporary) < logits / 4
    assert made.plan().peak_bytes < whole.plan().peak_bytes / 3


def test_the_plan_of_a_large_head() -> None:
    """2048 tokens, width 256, 32768 classes: what PyTorch takes 780 MB for, its gradients aside."""
    options = Options(native=True, threads=2)
    graph = head(256, 32768, transposed=True)
    program = compile_graph(graph, options).program
    plan = program.plan({"N": 2048})
    given = sum(b.bytes for b in plan.buffers if b.kind == "input")
    assert plan.peak_bytes - given < 0.12 * 780e6
    assert max(b.bytes for b in plan.buffers) < 2048 * 32768 * 4 / 6
