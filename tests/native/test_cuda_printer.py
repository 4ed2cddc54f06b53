"""Kernels printed for CUDA: their text, what nvcc makes of it, and what it computes on an emulated
device, beside the references."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.compiler import pipeline
from retrograde.compiler.codegen.cuda import BLOCK, FLAGS, LARGEST, WARP, CudaFunction, shape_of
from retrograde.compiler.ir.graph import Graph
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.pipeline import Options, compile_graph
from tests.native.cuda_harness import CXX, Emulated, cuda_of, cuda_source, emulated

Array = npt.NDArray[Any]

NVCC = shutil.which("nvcc")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc is there")
needs_cxx = pytest.mark.skipif(CXX is None, reason="no C++ compiler is there for the emulator")


@pytest.fixture(autouse=True)
def sums_over_all_rows_are_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CUDA printer refuses them within a group."""
    monkeypatch.setattr(pipeline, "NATIVE_END", pipeline.END)


def softmax(x: Any, g: Any) -> Any:
    return rnp.softmax(x), rg.grad(lambda x: rnp.sum(rnp.softmax(x) * g))(x)


def gelu(x: Any, g: Any) -> Any:
    return rnp.gelu(x), rg.grad(lambda x: rnp.sum(rnp.gelu(x) * g))(x)


def exact_gelu(x: Any, g: Any) -> Any:
    def f(x: Any) -> Any:
        return rnp.gelu(x, approximate=False)

    return f(x), rg.grad(lambda x: rnp.sum(f(x) * g))(x)


def normalised(x: Any, gain: Any, bias: Any) -> Any:
    d = x - rnp.mean(x, axis=-1, keepdims=True)
    return d * rnp.rsqrt(rnp.mean(d * d, axis=-1, keepdims=True) + 1e-5) * gain + bias


def layer_norm(x: Any, gain: Any, bias: Any, g: Any) -> Any:
    def f(*given: Any) -> Any:
        return rnp.sum(normalised(*given) * g)

    return normalised(x, gain, bias), rg.grad(f, argnums=(0, 1, 2))(x, gain, bias)


def moved(x: Any, b: Any) -> Any:
    """A transposed copy, and a chain over an array and one element a row."""
    return rnp.transpose(x), rnp.transpose(x) * 2 + b


def counted(x: Any) -> Any:
    """Totals of other types and kinds, with one element a row, and one written twice."""
    most = rnp.max(x, axis=-1, keepdims=True)
    return rnp.sum(x == most, axis=-1), rnp.prod(1 + x / 64, axis=-1), rnp.min(x, axis=-1)


def scaled(x: Any, r: Any) -> Any:
    """A result with one element a row takes the place of an operand that all threads read."""
    e = rnp.exp(r) * 2
    return x * e + x, e


def matrices(dtype: str, count: int) -> list[Any]:
    return [rg.spec(dtype, "B", "T") for _ in range(count)]


def norm_specs(dtype: str) -> list[Any]:
    row = rg.spec(dtype, "T")
    return [rg.spec(dtype, "B", "T"), row, row, rg.spec(dtype, "B", "T")]


CASES: dict[str, tuple[Callable[..., Any], list[Any]]] = {
    "softmax": (softmax, matrices("f32", 2)),
    "gelu": (gelu, matrices("f32", 2)),
    "exact_gelu": (exact_gelu, matrices("f32", 2)),
    "layer_norm": (layer_norm, norm_specs("f32")),
    "softmax_f64": (softmax, matrices("f64", 2)),
    "softmax_f16": (softmax, matrices("f16", 2)),
    "layer_norm_f16": (layer_norm, norm_specs("f16")),
    "gelu_bf16": (gelu, matrices("bf16", 2)),
    "moved": (moved, [rg.spec("f32", "B", "T"), rg.spec("f32", "T", 1)]),
    "counted": (counted, matrices("f32", 1)),
    "scaled": (scaled, [rg.spec("f32", "B", "T"), rg.spec("f32", "B", 1)]),
}  # fmt: skip


def graph_of(name: str) -> Graph:
    f, specs = CASES[name]
    return rg.trace(f, *specs)


def kernels_of(graph: Graph) -> list[CudaFunction]:
    schedule = compile_graph(graph, Options(native=True, verify=True)).planned.schedule
    return [f for step in schedule.steps if (f := cuda_of(step)) is not None]


def arrays_of(graph: Graph, rows: int, row: int, seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    sizes = {"B": rows, "T": row}
    out = []
    for v in graph.inputs:
        shape = [d if isinstance(d, int) else sizes[str(d)] for d in v.shape]
        out.append(rng.normal(size=shape).astype(v.dtype.numpy))
    return out


@pytest.mark.parametrize("name", ["softmax", "gelu", "layer_norm"])
def test_text(name: str, golden: Callable[[str, str], None]) -> None:
    texts = [f.text.replace("@", f"k{i}", 1) for i, f in enumerate(kernels_of(graph_of(name)))]
    golden(f"cuda/{name}.cu", "\n\n".join(texts) + "\n")


@pytest.mark.parametrize("name", CASES)
def test_text_is_the_same_for_every_size(name: str) -> None:
    graph = graph_of(name)
    texts = []
    for rows, row in ((7, 5), (2, 4000)):
        options = Options(native=True, at={"B": rows, "T": row})
        steps = compile_graph(graph, options).planned.schedule.steps
        texts.append([f.text for step in steps if (f := cuda_of(step)) is not None])
    assert texts[0] == texts[1]


@needs_nvcc
@pytest.mark.parametrize("target", ["ptx", "cubin"])
def test_nvcc_compiles_every_kernel(target: str, tmp_path: Path) -> None:
    assert NVCC is not None
    functions = [f for name in CASES for f in kernels_of(graph_of(name))]
    assert len(functions) > 15
    source, made = tmp_path / "kernels.cu", tmp_path / f"kernels.{target}"
    source.write_text(cuda_source(functions), encoding="utf-8")
    command = [NVCC, "-arch=sm_90", f"-{target}", *FLAGS, "-o", str(made), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr
    if target == "ptx":
        text = made.read_text()
        for i in range(len(functions)):
            assert f".entry k{i}(" in text
        assert ".local" not in text  # nothing of a thread's own lies in memory


def close(found: Array, expected: Array) -> None:
    """Within some last places of the results' largest element."""
    assert found.dtype == expected.dtype and found.shape == expected.shape
    if found.dtype.kind in "iub":
        np.testing.assert_array_equal(found, expected)
        return
    ulp = {"float64": 1e-15, "float32": 1e-6, "float16": 4e-3, "bfloat16": 3e-2}[found.dtype.name]
    a, b = found.astype(np.float64), expected.astype(np.float64)
    np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
    np.testing.assert_array_equal(np.isinf(a), np.isinf(b))
    finite = np.isfinite(a)
    np.testing.assert_array_equal(a[np.isinf(a)], b[np.isinf(b)])
    scale = np.max(np.abs(b[finite]), initial=1.0)
    np.testing.assert_allclose(a[finite], b[finite], rtol=8 * ulp, atol=8 * ulp * scale)


@pytest.fixture(scope="module")
def emulate(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Emulated]:
    folder = tmp_path_factory.mktemp("cuda")
    made: dict[str, Emulated] = {}

    def of(name: str) -> Emulated:
        if name not in made:
            made[name] = Emulated(graph_of(name), folder)
        return made[name]

    return of


# One element; less than a warp; more than a warp; a block a row, and some rows for each block; the
# largest block.
SIZES = [(1, 1), (9, 5), (6, 33), (70, 257), (7, 1500), (1, 16500)]


@needs_cxx
@pytest.mark.parametrize("name", CASES)
def test_computes_what_the_references_do(name: str, emulate: Callable[[str], Emulated]) -> None:
    run = emulate(name)
    for rows, row in SIZES:
        given = arrays_of(run.graph, rows, row)
        expected = evaluate(run.graph, given)
        found = run(*given)
        for x, y in zip(found, expected, strict=True):
            close(x, y)
        again = run(*given, seed=rows)
        for x, y in zip(found, again, strict=True):
            assert x.tobytes() == y.tobytes(), "depends on which thread comes first"


@needs_cxx
@pytest.mark.parametrize("name", ["softmax", "layer_norm"])
def test_every_kind_of_launch_ran(name: str, emulate: Callable[[str], Emulated]) -> None:
    run, shapes = emulate(name), set()
    for rows, row in SIZES:
        run(*arrays_of(run.graph, rows, row))
        shapes |= {made.shape.across for made in run.launched if made.function.meets}
    assert shapes == {WARP, BLOCK, LARGEST}


@needs_cxx
def test_special_values_travel(emulate: Callable[[str], Emulated]) -> None:
    run = emulate("softmax")
    for row in (3, 40, 1100):
        x, g = arrays_of(run.graph, 5, row)
        x[0, ::2] = -np.inf
        x[1, row // 2] = np.nan
        x[2] = -np.inf
        x[3, -1] = np.inf
        with np.errstate(all="ignore"):
            expected = evaluate(run.graph, [x, g])
        for a, b in zip(run(x, g), expected, strict=True):
            close(a, b)


@needs_cxx
def test_a_row_has_the_same_bits_in_every_launch(emulate: Callable[[str], Emulated]) -> None:
    run = emulate("layer_norm")
    x, gain, bias, g = arrays_of(run.graph, 41, 300)
    whole = run(x, gain, bias, g)
    part = run(x[17:19].copy(), gain, bias, g[17:19].copy())
    for a, b in zip(whole[:2], part[:2], strict=True):
        assert a[17:19].tobytes() == b.tobytes()


@needs_cxx
def test_few_blocks_go_on_to_all_elements(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=5000).astype("f4")
    (f,) = kernels_of(rg.trace(rnp.tanh, rg.spec("f32", "N")))
    assert f.flat
    library = emulated([f], tmp_path)
    out = np.full_like(x, 7)
    given = [x.ctypes.data, out.ctypes.data, x.size]
    assert not f.sizes
    fault = library.launch0((ctypes.c_int64 * 3)(*given), 2, BLOCK, 1, ctypes.c_uint64(3))
    assert fault == 0
    np.testing.assert_allclose(out, np.tanh(x), rtol=1e-6)


def launched(f: CudaFunction, folder: Path, blocks: int) -> tuple[list[bytes], set[int]]:
    """The bits that a kernel over a matrix leaves and its faults, for some orders of threads."""
    rows, row = 7, 1500
    x = np.random.default_rng(0).normal(size=(rows, row)).astype("f4")
    library, bits, faults = emulated([f], folder), [], set()
    for seed in range(6):
        outs = [np.zeros((rows, row + 64), v.dtype.numpy) for v in f.places[1:]]
        given = [x.ctypes.data, *(y.ctypes.data for y in outs), *(row for _ in f.sizes), rows]
        arguments = (ctypes.c_int64 * len(given))(*given)
        faults.add(library.launch0(arguments, blocks, BLOCK, 1, ctypes.c_uint64(seed)))
        bits.append(b"".join(y.tobytes() for y in outs[: len(outs) - f.scratch]))
    return bits, faults


@needs_cxx
@pytest.mark.parametrize("name", ["softmax", "counted"])
def test_a_block_goes_on_to_all_rows(name: str, tmp_path: Path) -> None:
    """Nothing of a row is left to the next one, however far its warps are apart."""
    f = next(f for f in kernels_of(graph_of(name)) if f.meets)
    alone, faults = launched(f, tmp_path, blocks=7)
    assert faults == {0} and len(set(alone)) == 1
    for blocks in (1, 2):
        assert launched(f, tmp_path, blocks) == (alone, {0})


@needs_cxx
def test_the_emulator_sees_who_does_not_wait(tmp_path: Path) -> None:
    """Without its barriers a total depends on the order of threads; one that not all come to is a
    fault.  Else the tests above would show little."""
    f = next(f for f in kernels_of(graph_of("softmax")) if f.meets)
    head = "#undef __syncthreads\n#define __syncthreads() "
    careless = replace(f, text=f"{head}(void)0\n{f.text}")
    assert len(set(launched(careless, tmp_path, blocks=3)[0])) > 1
    halted = replace(f, text=f"{head}if (threadIdx.x) emulator::wait(emulator::AT_BLOCK)\n{f.text}")
    assert launched(halted, tmp_path, blocks=3)[1] == {1}


@given(st.integers(1, 1 << 40), st.integers(1, 1 << 24), st.integers(1, 5000), st.booleans(),
       st.booleans(), st.booleans())  # fmt: skip
def test_launches_are_ones_that_devices_take(
    rows: int, inner: int, at_once: int, flat: bool, meets: bool, scratch: bool
) -> None:
    f = CudaFunction("", (), (), rows, inner, flat, meets, int(scratch))
    shape = shape_of(f, rows, inner, at_once)
    threads = shape.across * shape.down
    assert 1 <= threads <= 1024 and 1 <= shape.blocks <= 1 << 16
    if meets and not flat:
        assert shape.across % WARP == 0
        assert shape.down == 1 or shape.across == WARP
    if scratch and not flat:
        assert shape.blocks * shape.down <= at_once
