"""The generated C: its text, what stands above each kernel, and how little of it there is."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.compiler.codegen.c import row_function
from retrograde.compiler.codegen.kernel import kernel_of
from retrograde.compiler.codegen.kernel_file import c_comment, shown
from retrograde.compiler.ir.graph import Graph
from retrograde.compiler.ir.location import scope
from retrograde.compiler.ir.registry import Kind
from retrograde.compiler.pipeline import Options, compile_graph
from retrograde.compiler.plan.steps import CopyStep, FusedStep, OpStep
from retrograde.runtime.native.toolchain import find_toolchain

needs_cc = pytest.mark.skipif(find_toolchain() is None, reason="there is no C compiler")


def norm(x: Any, gain: Any, bias: Any) -> Any:
    d = x - rnp.mean(x, axis=-1, keepdims=True)
    return d * rnp.rsqrt(rnp.mean(d * d, axis=-1, keepdims=True) + 1e-5) * gain + bias


def norm_backward(x: Any, gain: Any, bias: Any, g: Any) -> Any:
    return rg.grad(lambda x: rnp.sum(norm(x, gain, bias) * g))(x)


def chain(x: Any, b: Any, scale: Any) -> Any:
    return rnp.maximum(rnp.exp(x * 2 + b) - scale, 0)


MATRIX, ROW = rg.spec("f32", "B", "T"), rg.spec("f32", "T")
CASES: dict[str, tuple[Callable[..., Any], list[Any]]] = {
    "softmax": (rnp.softmax, [MATRIX]),
    "layer_norm_backward": (norm_backward, [MATRIX, ROW, ROW, MATRIX]),
    "transposed": (lambda x: rnp.transpose(x, (2, 0, 1)) + 0, [rg.spec("f32", "B", "T", 6)]),
    "chain": (chain, [MATRIX, ROW, rg.spec("f32", "B", 1)]),
}  # fmt: skip


def native(graph: Graph, **options: Any) -> Any:
    return compile_graph(graph, Options(native=True, verify=True, **options))


def own(graph: Graph, **options: Any) -> str:
    return shown(native(graph, **options).program.recipes[0].kernels)


@pytest.mark.parametrize("name", CASES)
def test_text(name: str, golden: Callable[[str, str], None]) -> None:
    f, specs = CASES[name]
    steps = native(rg.trace(f, *specs)).planned.schedule.steps
    texts = [
        row_function(kernel_of(step)).text.replace("@", f"k{i}", 1)
        for i, step in enumerate(steps)
        if isinstance(step, (FusedStep, CopyStep))
        or (isinstance(step, OpStep) and step.node.op.kind is Kind.ELEMENTWISE)
    ]
    golden(f"c/{name}.c", "\n\n".join(texts) + "\n")


def layers(count: int) -> Graph:
    """The gradient of so many layers of one kind."""

    def loss(x: Any, parameters: Any) -> Any:
        for i, (gain, bias, w, v) in enumerate(parameters):
            with scope(f"blocks.{i}"):
                x = x + rnp.gelu(norm(x, gain, bias) @ w) @ v
        return rnp.sum(x * x)

    row = rg.spec("f32", 12)
    one = (row, row, rg.spec("f32", 12, 20), rg.spec("f32", 20, 12))
    x = rg.spec("f32", "B", 12)
    return rg.trace(rg.value_and_grad(loss, argnums=1), x, [one] * count)


def test_equal_layers_share_their_kernels() -> None:
    few, many = (own(layers(count)) for count in (3, 24))
    assert few.count("static i64 k") == many.count("static i64 k") > 10
    assert re.search(r"also .*@ blocks\.1, .* and 19 more places", " ".join(many.split()))


def code(text: str) -> str:
    """C from within a comment on, without comments."""
    return re.sub(r"/\*.*?\*/", "", f"/*{text}", flags=re.DOTALL)


@needs_cc
def test_a_size_changes_no_kernel() -> None:
    """Unless arrays become too large for the caches, or other values are worth keeping."""
    ids = rg.spec("i32", "B", "T")

    def loss(model: Any, tokens: Any, targets: Any) -> Any:
        return rg.losses.cross_entropy(model(tokens), targets)

    def kernels(**at: int) -> str:
        model = rg.models.GPT(vocab=11, width=24, layers=2, heads=3, context=512, seed=0)
        batch = {"tokens": ids, "targets": ids}
        optimizer = rg.optim.AdamW(1e-3)
        step = rg.compile_training(loss, model, optimizer, batch, backend="native", at=at)
        return code(step.source().split("/*", 1)[1])

    small = kernels(B=7, T=29)
    assert small.count("static i64 k") > 30
    assert small == kernels(B=16, T=64)


def test_lines_and_paths_stand_above_a_kernel() -> None:
    def f(x: Any) -> Any:
        with scope("block.mlp"):
            y = rnp.tanh(x) * 3
        return y + rnp.exp(y)

    text = own(rg.trace(f, rg.spec("f32", "B", 7)))
    first = f.__code__.co_firstlineno
    assert (
        f"\n\n/* test_c_printer.py:{first + 2} @ block.mlp: tanh, mul\n"
        f"   test_c_printer.py:{first + 3}: exp, add */\nstatic i64 k1("
    ) in text


HOSTILE = [
    "*/ #error out /*", "a*\\", "/", "*", "\n#error line", "\\\n", "*\\\n/", "\u2028x", "??/",
    "\u202e*/", "x" * 300, "*/" * 200, "\udc80", "//", "\x00",
]  # fmt: skip
PIECES = st.one_of(st.sampled_from(HOSTILE), st.text("*/\\ \n?a-"))


@given(st.lists(PIECES, min_size=1).map("".join))
def test_text_of_users_stays_in_the_comment(text: str) -> None:
    made = c_comment([text, f"a: {text}"])
    spliced = made.replace("\\\n", "")
    assert made.startswith("/* ") and made.endswith(" */")
    assert spliced.find("*/") == len(spliced) - 2 and spliced.rfind("/*") == 0
    assert all(c.isprintable() or c == "\n" for c in made)
    assert max(map(len, made.split("\n"))) <= 102
    made.encode()


@needs_cc
def test_hostile_names_compile() -> None:
    """A file, a function and module paths that would end a comment, were they let."""
    name = "*/ #error file\n#error line \\"
    module: dict[str, Any] = {"rnp": rnp, "scope": scope}
    body = 'def f(x):\n  with scope("*/ } #error scope /*"):\n    return rnp.tanh(x) * 2 + 1\n'
    exec(compile(body, name, "exec"), module)
    compiled = rg.compile(module["f"], rg.spec("f32", "B", 3), backend="native")
    text = compiled.source()
    assert "#error scope" in text
    assert "#error" not in code(text.split("/*", 1)[1])
    x = np.linspace(-1, 1, 12, dtype="f4").reshape(4, 3)
    np.testing.assert_allclose(compiled(x), np.tanh(x) * 2 + 1, rtol=1e-6)


@needs_cc
def test_source_is_the_schedule_and_its_kernels() -> None:
    text = rg.compile(rnp.softmax, MATRIX, backend="native").source()
    schedule, kernels = text.split("/*", 1)
    compile(schedule, "schedule", "exec")
    (number,) = re.findall(r"^        \((\d+), ", schedule, re.MULTILINE)
    assert f": max, maximum, sub, exp, sum, maximum, div */\nstatic i64 k{number}(" in kernels
    assert "rg_kernel_count" not in text and "RG_INLINE" not in text
    plain = rg.compile(rnp.softmax, MATRIX, backend="numpy").source()
    assert "static i64" not in plain


def test_a_dump_holds_the_files_that_are_compiled(tmp_path: Path) -> None:
    made = native(layers(3), dump=str(tmp_path))
    (folder,) = {p.parent for p in tmp_path.rglob("schedule.py")}
    files = made.program.recipes[0].kernels
    assert len(files) > 1
    names = ["kernels.c", *(f"kernels-{i}.c" for i in range(2, len(files) + 1))]
    assert [(folder / name).read_text() for name in names] == [file.text for file in files]
