"""C files that are compiled before they are wanted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.compiler.codegen.foreseen import foreseen
from retrograde.compiler.errors import DeviceError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.graph import Graph
from retrograde.runtime.native import ahead, toolchain

SOURCE = "int rg_number(void) {{ return {}; }}\n"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """The sources that went to the compiler, with an empty cache."""
    monkeypatch.setenv("RETROGRADE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(ahead, "_begun", set())
    compile, sources = toolchain._compile, list[str]()

    def heard(source: str, *rest: Any) -> None:
        sources.append(source)
        compile(source, *rest)

    monkeypatch.setattr(toolchain, "_compile", heard)
    yield sources


def until(done: Any) -> None:
    for _ in range(1000):
        if done():
            return
        time.sleep(0.02)
    raise AssertionError("it was not done within 20 seconds")


def step_of(width: int, heads: int, layers: int) -> Any:
    model = rg.models.GPT(vocab=19, width=width, layers=layers, heads=heads, context=24)

    def loss(model: Any, tokens: Any, targets: Any) -> Any:
        return rg.losses.cross_entropy(model(tokens), targets)

    ids = rg.spec("i32", "B", "T")
    return rg.compile_training(
        loss, model, rg.optim.AdamW(1e-3), {"tokens": ids, "targets": ids},
        at={"B": 3, "T": 16}, backend="native", threads=2,
    )  # fmt: skip


def codes(step: Any) -> set[str]:
    return {file.code for file in step._run.executable.program.recipes[0].kernels}


def test_products_and_attention_are_foreseen_to_the_letter() -> None:
    """And models of other sizes share them."""
    one, other = step_of(16, 2, 1), step_of(40, 5, 2)
    early = {file.code for file in foreseen(one.ir("trace"))}
    assert len(early) == 3
    assert early == {file.code for file in foreseen(other.ir("trace"))}
    assert early <= codes(one) and early <= codes(other)
    assert {len(file.numbers) for file in foreseen(one.ir("trace"))} == {1, 2}


def test_products_of_a_blas_are_not_foreseen() -> None:
    graph = rg.trace(rnp.matmul, rg.spec("f32", "B", 7), rg.spec("f32", 7, 5))
    assert isinstance(graph, Graph)
    assert len(foreseen(graph)) == 1 and not foreseen(graph, ("f32",))


def test_products_in_bodies_are_foreseen() -> None:
    def cell(h: Any, x: Any) -> Any:
        h = rnp.tanh(x + h @ rnp.ones((6, 6)))
        return h, h

    graph = rg.trace(lambda h, xs: rg.scan(cell, h, xs), rg.spec("f32", "B", 6),
                     rg.spec("f32", "T", "B", 6))  # fmt: skip
    assert "dot_general" not in {node.op.name for node in graph.nodes}
    assert len(foreseen(graph)) == 1


def test_what_was_begun_is_compiled_once(made: list[str]) -> None:
    compiler = toolchain.needed()
    texts = [SOURCE.format(n) for n in range(3)]
    ahead.begin([("number", text) for text in texts], compiler)
    ahead.begin([("number", texts[1])], compiler)
    found = [toolchain.load(toolchain.shared_library(text, compiler, name="number"))
             for text in texts]  # fmt: skip
    assert [library.rg_number() for library in found] == [0, 1, 2]
    assert sorted(text for text in made if "rg_number" in text) == texts


def test_a_file_that_does_not_compile_is_told_to_who_loads_it(made: list[str]) -> None:
    compiler, text = toolchain.needed(), "no C at all\n"
    ahead.begin([("number", text), ("number", SOURCE.format(7))], compiler)
    until(lambda: text in made)
    with pytest.raises(DeviceError, match="refuses generated code"):
        toolchain.shared_library(text, compiler, name="number")


def test_compiling_begins_before_the_first_run(made: list[str]) -> None:
    compiled = rg.compile(
        lambda x, w: rnp.tanh(x @ w) * 0.71875, rg.spec("f32", "B", 7), rg.spec("f32", 7, 5),
        backend="native",
    )  # fmt: skip

    def rows() -> list[str]:
        return [text for text in made if "0.71875f" in text]

    until(rows)
    x, w = np.arange(21, dtype="f4").reshape(3, 7) / 9, np.arange(35, dtype="f4").reshape(7, 5) / 40
    assert np.allclose(compiled(x, w), np.tanh(x @ w) * 0.71875, atol=1e-6)
    assert len(rows()) == 1


@pytest.mark.parametrize("dtype", ["f32", "f64", "f16", "bf16"])
def test_one_function_multiplies_batches_of_any_axes(dtype: str) -> None:
    """Also where an operand has no axis that the other one has, and lies transposed."""

    def products(a: Any, b: Any, c: Any) -> Any:
        return a @ b, rnp.swapaxes(b, -1, -2) @ c, a @ rnp.swapaxes(c[0], -1, -2)

    shapes = (2, 1, 3, 5, 7), (2, 4, 3, 7, 6), (1, 4, 1, 7, 7)
    rng = np.random.default_rng(5)
    specs = [rg.spec(dtype, *shape) for shape in shapes]
    given = [rng.normal(size=shape).astype(dtypes.dtype(dtype).numpy) for shape in shapes]
    found = rg.compile(products, *specs, backend="native")(*given)
    wanted = rg.compile(products, *specs, backend="numpy")(*given)
    tolerance = {"f64": 1e-12, "f32": 1e-5}.get(dtype, 0.06)
    for x, y in zip(found, wanted, strict=True):
        assert x.shape == y.shape
        assert np.allclose(x.astype("f8"), y.astype("f8"), atol=tolerance, rtol=tolerance)
