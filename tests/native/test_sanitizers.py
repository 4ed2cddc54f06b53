"""Generated C under AddressSanitizer and UndefinedBehaviorSanitizer, every buffer in a block of its
own: models, and what indexes, runs, pads and draws.  Planted faults must be found."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, TensorType
from retrograde.compiler.pipeline import Options, compile_graph
from retrograde.runtime.device import get_device
from retrograde.runtime.executable import Executable
from retrograde.runtime.native.toolchain import find_toolchain
from tests.native import op_calls
from tests.native.standalone import CHECKS, Standalone, standalone

Array = npt.NDArray[Any]
VOCAB = 11


@pytest.fixture(scope="session")
def sanitizers(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where the compiler has none, or where they do not run."""
    toolchain = find_toolchain()
    if toolchain is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("probe")
    (folder / "probe.c").write_text("int main(void) { return 0; }\n", encoding="utf-8")
    command = [*toolchain.command, *CHECKS, "-o", "probe", "probe.c"]
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if built.returncode or subprocess.run([folder / "probe"], capture_output=True).returncode:
        pytest.skip(f"{toolchain.command[0]} has no sanitizers: {built.stderr.strip()[:200]}")


def numbers(graph: Graph, sizes: Mapping[str, int], below: int) -> list[Array]:
    """Inputs for a graph: small positive floats, and integers that are indices."""
    rng = np.random.default_rng(3)
    out = []
    for v in graph.inputs:
        shape = tuple(dims.evaluate(d, dict(sizes)) for d in v.shape)
        if v.dtype.is_float:
            out.append(np.asarray(np.abs(rng.normal(0, 0.1, shape))).astype(v.dtype.numpy))
        else:
            out.append(np.asarray(rng.integers(0, below, shape)).astype(v.dtype.numpy))
    return out


def training(model: Any, apply: Any, **batch: Any) -> Graph:
    def loss(model: Any, x: Any, y: Any) -> Any:
        return rg.losses.cross_entropy(apply(model, x), y)

    step = rg.compile_training(
        loss, model, rg.optim.AdamW(0.01), batch=batch, clip_norm=1.0, backend="native"
    )
    graph: Graph = step._traced.graph
    return graph


def mlp() -> Graph:
    """Two layers with a norm between them."""
    model = {
        "first": rg.nn.Linear(7, 33, seed=1), "norm": rg.nn.LayerNorm(33),
        "second": rg.nn.Linear(33, VOCAB, seed=2),
    }  # fmt: skip

    def apply(model: Any, x: Any) -> Any:
        return model["second"](rnp.tanh(model["norm"](model["first"](x))))

    return training(model, apply, x=rg.spec("f32", "N", 7), y=rg.spec("i32", "N"))


def gpt() -> Graph:
    model = rg.models.GPT(vocab=VOCAB, width=12, layers=1, heads=3, context=16, seed=1)
    ids = rg.spec("i32", "N", "M")
    return training(model, lambda model, x: model(x), x=ids, y=ids)


def lstm() -> Graph:
    model = rg.models.RNNLM(vocab=VOCAB, width=5, layers=1, cell="lstm", seed=1)
    ids = rg.spec("i32", "N", "M")
    return training(model, lambda model, x: model(x), x=ids, y=ids)


MODELS = {"mlp": mlp, "gpt": gpt, "lstm": lstm}


def check(program: Standalone, folder: Path, wanted: Sequence[Array]) -> None:
    built = program.build(folder)
    assert built.returncode == 0, built.stderr[:2000]
    ran = program.run(folder)
    assert ran.returncode == 0, ran.stderr[:3000]
    results = program.results(folder)
    assert results
    for i, found in results.items():
        wide = [x.astype(np.float64) for x in (found, wanted[i])]
        np.testing.assert_allclose(*wide, rtol=1e-3, atol=1e-4)


def by_numpy(graph: Graph, arrays: Sequence[Array], sizes: Mapping[str, int]) -> list[Array]:
    """All outputs on the NumPy device, state with its new values."""
    graph = replace(graph, aliases=())
    return Executable(compile_graph(graph, Options()).program, get_device("numpy")).run(
        arrays, sizes
    )


@pytest.mark.parametrize("name", MODELS)
def test_models_are_clean(name: str, sanitizers: None, tmp_path: Path) -> None:
    graph = MODELS[name]()
    sizes = {"N": 5, "M": 7}  # rows enough that the threads share those out, not launches
    arrays = numbers(graph, sizes, VOCAB)
    check(standalone(graph, arrays, sizes), tmp_path, by_numpy(graph, arrays, sizes))


@pytest.mark.parametrize("what", ["draws", "indexed", "structure"])
def test_ops_are_clean(what: str, sanitizers: None, tmp_path: Path) -> None:
    calls = {
        "draws": op_calls.draws,
        "indexed": lambda: op_calls.indexed(dtypes.f32, ("sliced",)),
        "structure": lambda: op_calls.structure(dtypes.i32, ("transposed",)),
    }[what]()
    sizes = {"N": 5, "M": 35}
    arrays = calls.arrays(sizes)
    check(standalone(calls.graph, arrays, sizes), tmp_path, by_numpy(calls.graph, arrays, sizes))


FAULTS = {
    "one element too many": (r"i64 i = lo; i < hi;", "i64 i = lo; i <= hi;"),
    "one element too early": (r"x0\[i\]", "x0[i - 1]"),
    "an odd address": (r"\(void \*\)a\[0\];", "(void *)(a[0] + 2);"),
    "a shift too far": (r"return RG_OK;", "{ int b = (int)hi + 31; return 1 << b; }"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(fault: str, sanitizers: None, tmp_path: Path) -> None:
    builder = Builder("planted", Expr)
    with builder:
        x = builder.input(TensorType(dtypes.f32, (op_calls.N,)))
        y = op_calls.op("abs", x) + 1.0
    graph, sizes = builder.finish([y.value]), {"N": 33}
    arrays = numbers(graph, sizes, 1)
    program = standalone(graph, arrays, sizes, threads=1)
    check(program, tmp_path, by_numpy(graph, arrays, sizes))
    (file,) = program.kernels
    start = file.index("static i64 k1(")
    old, new = FAULTS[fault]
    text, count = re.subn(old, new, file[start:], count=1)
    assert count == 1
    planted = replace(program, kernels=[file[:start] + text])
    built = planted.build(tmp_path)
    assert built.returncode == 0, built.stderr[:2000]
    ran = planted.run(tmp_path)
    assert ran.returncode != 0
    assert "AddressSanitizer" in ran.stderr or "runtime error" in ran.stderr, ran.stderr
