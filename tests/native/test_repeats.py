"""Launches that come again with other buffers are one run and a table: the same numbers, the same
bits, poisoned or not; what is shown of a model's lines does not decide what is compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.compiler.codegen.native_lists import LaunchList
from retrograde.compiler.codegen.repeats import HOLE, Line, folded
from retrograde.compiler.plan.recipe import KernelFile
from retrograde.runtime.numpy_device import LARGE, NumpyArena

LAYERS = 7


def _layers(weights: Any, x: Any) -> Any:
    for w, gain in weights:
        h = x * gain
        x = x + rnp.tanh((h / rnp.sqrt(rnp.mean(h * h, axis=-1, keepdims=True) + 1e-3)) @ w)
    return rnp.sum(x * x)


def _weights(layers: int) -> list[tuple[Any, Any]]:
    rng = np.random.default_rng(3)
    return [
        (rng.standard_normal((24, 24)).astype("f4") / 5, rng.standard_normal(24).astype("f4"))
        for _ in range(layers)
    ]


def _compiled(layers: int) -> Any:
    specs = [(rg.spec("f32", 24, 24), rg.spec("f32", 24)) for _ in range(layers)]
    return rg.compile(
        rg.value_and_grad(_layers), specs, rg.spec("f32", "B", 24), backend="native"
    )


def test_more_layers_are_more_rows_of_a_table_but_no_more_code() -> None:
    lists = [
        _compiled(n).source().split("rt.native([")[1].split("\n    ])")[0]
        for n in (2 * LAYERS, 6 * LAYERS)
    ]
    tables = [text.count("rt.repeated(") for text in lists]
    assert tables[0] == tables[1] == 2, "the way forward and the way back"
    few, many = (len(text.splitlines()) for text in lists)
    assert many == few + 2 * 4 * LAYERS, "a row for each layer more, in both tables"


@pytest.mark.parametrize("poison", [False, True])
def test_tables_launch_what_lines_did(monkeypatch: pytest.MonkeyPatch, poison: bool) -> None:
    x = np.random.default_rng(5).standard_normal((37, 24)).astype("f4")
    weights = _weights(LAYERS)
    if poison:
        monkeypatch.setenv("RETROGRADE_POISON", "1")
    repeated = _compiled(LAYERS)
    assert "rt.repeated(" in repeated.source()
    monkeypatch.setattr(
        "retrograde.compiler.codegen.native.folded",
        lambda lines, pad: [f"{pad}{x}" if isinstance(x, Line) else x for x in lines],
    )
    one_by_one = _compiled(LAYERS)
    assert "rt.repeated(" not in one_by_one.source()
    for rows in (37, 5):
        a, b = (c(weights, x[:rows]) for c in (repeated, one_by_one))
        np.testing.assert_array_equal(a[0], b[0])
        for (w, gain), (w2, gain2) in zip(a[1], b[1], strict=True):
            np.testing.assert_array_equal(w, w2)
            np.testing.assert_array_equal(gain, gain2)
    reference = rg.compile(
        rg.value_and_grad(_layers), [(rg.spec("f32", 24, 24), rg.spec("f32", 24))] * LAYERS,
        rg.spec("f32", "B", 24), backend="numpy",
    )(weights, x)  # fmt: skip
    np.testing.assert_allclose(repeated(weights, x)[0], reference[0], rtol=1e-5)


lines = st.lists(
    st.tuples(st.sampled_from("abcde"), st.tuples(st.integers(0, 40), st.integers(0, 40))),
    min_size=1, max_size=6,
)  # fmt: skip


@given(lines, lines, st.integers(1, 30), st.integers(0, 9), st.randoms(use_true_random=False))
def test_a_folded_list_has_the_launches_of_the_lines(
    before: Any, block: Any, times: int, comments: int, random: Any
) -> None:
    """Folded text, evaluated, against the lines one by one, as tables of numbers."""
    written: list[Line | str] = []
    wanted: list[Any] = []
    kinds = {name: i for i, name in enumerate("abcde")}
    for name, _ in [*before, *(block * times), *before]:
        buffers = (random.randrange(40), random.randrange(40))
        if random.randrange(10) < comments:
            written.append("    # a comment")
        text = f"({kinds[name]}, bytes[{HOLE}] // 4, 3, (m + at[{HOLE}], 7,)),"
        written.append(Line(text, buffers))
        wanted.append((kinds[name], (buffers[0] + 1), 3, (1000 + 10 * buffers[1], 7)))
    from retrograde.compiler.codegen.native_support import NativeSupport

    class _Support:
        repeated = NativeSupport.repeated

    entries = eval(
        "[\n" + "\n".join(folded(written, "    ")) + "\n]",
        {"rt": _Support(), "m": 1000, "at": [10 * i for i in range(40)],
         "bytes": [4 * (i + 1) for i in range(40)]},
    )  # fmt: skip
    for found, expected in zip(
        LaunchList.of(entries).tables(2), LaunchList.of(wanted).tables(2), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_what_a_kernel_is_for_is_not_compiled() -> None:
    """The same model twenty lines further down is the same code."""
    source = "def model(w, x):\n    return rnp.sum(rnp.tanh(x @ w) * x) + rnp.max(x)\n"
    codes, texts = [], []
    for lines_above in (0, 20):
        space: dict[str, Any] = {"rnp": rnp}
        exec(compile("\n" * lines_above + source, "model.py", "exec"), space)
        compiled = rg.compile(
            rg.grad(space["model"]), rg.spec("f32", 8, 8), rg.spec("f32", "B", 8),
            backend="native",
        )  # fmt: skip
        files: tuple[KernelFile, ...] = compiled._runnable().executable.program.recipes[0].kernels
        codes.append([file.code for file in files])
        texts.append([file.text for file in files])
    assert codes[0] == codes[1]
    assert texts[0] != texts[1], "what is shown has the lines"
    assert not any("model.py" in code for code in codes[0])


def test_an_arena_grows_where_it_lies() -> None:
    arena = NumpyArena(LARGE)
    view = arena.view(64, "f4", (1000,), None)
    view[:] = np.arange(1000)
    assert arena.grow(LARGE + 4096) and arena.bytes == LARGE + 4096
    arena.view(LARGE, "f4", (1024,), None)[:] = 1.0
    np.testing.assert_array_equal(view, np.arange(1000))
    assert not arena.grow(4 * LARGE)
    assert not NumpyArena(4096).grow(8192), "a small arena has no addresses to spare"
