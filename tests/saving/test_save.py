"""Saved and loaded, a compiled function is what it was: the bits, the plan, what it tells."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import retrograde as rg
import retrograde.numpy as rnp
from retrograde import tree
from retrograde.compiler.ir import dtypes, parse
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.registry import lookup
from retrograde.errors import CheckpointError, DataError, DTypeError, ShapeError, UnsupportedError
from retrograde.runtime.native.toolchain import find_toolchain
from tests.saving.programs import GPT, NAN_WITH_SIGN, PROGRAMS, SIZES, D, Net, compiled, net, normal

X = rg.spec("f32", "B", 5)


def same_bits(a: Any, b: Any) -> bool:
    left, right = tree.flatten(a), tree.flatten(b)
    return left[1] == right[1] and all(
        x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
        for x, y in zip(left[0], right[0], strict=True)
    )


def saved(c: Any, path: Path, **options: Any) -> Any:
    c.save(path / "program")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return rg.load(path / "program", **options)


def check_same(name: str, c: Any, loaded: Any) -> None:
    program = PROGRAMS[name]
    for b, t in SIZES:
        arguments = program.arguments(b, t)
        assert same_bits(c(*arguments), loaded(*arguments)), (b, t)
    assert all(made.as_decided for made in loaded._run.recipes)
    assert loaded.ir().text() == c.ir().text()
    assert loaded.source() == c.source()
    assert str(loaded.peak()) == str(c.peak())
    names = [s.name for s in c._program.symbols]
    for b, t in (*SIZES, (17, 5), (100, 12)):
        sizes = {n: v for n, v in (("B", b + 2), ("T", t)) if n in names}
        if program.budget is None or b < 20:
            assert loaded.plan(**sizes) == c.plan(**sizes)
            assert loaded.report(**sizes) == c.report(**sizes)
    assert repr(loaded) == repr(c)
    assert isinstance(loaded, rg.Compiled)


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_is_loaded_is_what_was_saved(name: str, tmp_path: Path) -> None:
    c = compiled(name)
    loaded = saved(c, tmp_path)
    check_same(name, c, loaded)
    before = (tmp_path / "program").read_bytes()
    again = saved(loaded, tmp_path)
    assert (tmp_path / "program").read_bytes() == before
    check_same(name, c, again.clone())


@pytest.mark.skipif(find_toolchain() is None, reason="there is no C compiler")
@pytest.mark.parametrize("name", ["gpt", "lstm in a budget", "ragged", "trees"])
def test_on_the_native_device(name: str, tmp_path: Path) -> None:
    c = compiled(name, "native")
    check_same(name, c, saved(c, tmp_path))


def test_every_recipe_of_a_budget_is_there(tmp_path: Path) -> None:
    c = compiled("lstm in a budget")
    loaded = saved(c, tmp_path)
    recipes = [r.name for r in c._program.recipes]
    assert len(recipes) > 3 and [r.name for r in loaded._program.recipes] == recipes
    taken = {c.plan(B=3, T=t).recipe for t in range(1, 120)}
    assert len(taken) > 2
    for t in range(1, 120):
        assert loaded.plan(B=3, T=t) == c.plan(B=3, T=t)
    with pytest.raises(rg.errors.BudgetError) as refusal:
        loaded.plan(B=3000, T=400)
    assert refusal.value.minimum_bytes


def test_nothing_is_searched_when_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    c = compiled("lstm")
    c.save(tmp_path / "p")

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a search")

    monkeypatch.setattr("retrograde.compiler.plan.build.place", never)
    monkeypatch.setattr("retrograde.compiler.plan.schedule._greedy", never)
    rg.load(tmp_path / "p")


def test_another_compiler_plans_anew_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a later version would: its last pass makes another graph."""
    c = compiled("lstm")
    c.save(tmp_path / "p")
    from retrograde.compiler import pipeline

    fewer = tuple(stage for stage in pipeline.END if stage[0] != "cse-again")
    monkeypatch.setattr(pipeline, "END", fewer)
    monkeypatch.setattr(pipeline, "LOOPS", pipeline.LOOPS[:1])
    monkeypatch.setattr("retrograde.version.__version__", "0.0.7")
    with pytest.warns(rg.compiler.errors.Notice, match=r"planned anew.*is 0\.0\.7"):
        loaded = rg.load(tmp_path / "p")
    arguments = PROGRAMS["lstm"].arguments(3, 5)
    for x, y in zip(tree.leaves(c(*arguments)), tree.leaves(loaded(*arguments)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_arrays_from_outside_are_those_of_the_moment(tmp_path: Path) -> None:
    w = normal(5, 3)
    c = rg.compile(lambda x: x @ w, X)
    x = normal(4, 5)
    c.save(tmp_path / "before")
    w *= 2
    c.save(tmp_path / "after")
    w *= 0
    assert np.array_equal(rg.load(tmp_path / "before")(x) * 2, rg.load(tmp_path / "after")(x))
    assert c(x).any() == 0


def test_nan_keeps_its_bits_in_arrays_from_outside(tmp_path: Path) -> None:
    c = rg.compile(lambda x: (x, NAN_WITH_SIGN[...]), X)
    _, kept = saved(c, tmp_path)(normal(2, 5))
    assert kept.tobytes() == NAN_WITH_SIGN.tobytes()


def test_a_dict_of_arrays_stands_for_a_module(tmp_path: Path) -> None:
    loaded = saved(compiled("module"), tmp_path)
    x, m = normal(3, 5), net(4)
    assert np.array_equal(loaded(m.parameters(), x), loaded(m, x))
    missing = m.parameters()
    missing["more"] = missing.pop("parts.0.weight")
    with pytest.raises(ShapeError, match=r"argument\.0: 'parts\.0\.weight' is missing"):
        loaded(missing, x)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    loaded = saved(compiled("module"), tmp_path)
    x, m = normal(3, 5), net()
    other = net()
    other.scale = 0.25
    fewer = net()
    fewer.parts = fewer.parts[:1]
    for arguments, error, said in (
        ((m,), ShapeError, "takes 2 arguments, got 1"),
        ((m, x[:, :4]), ShapeError, "x: expected f32"),
        ((m, x.astype(float)), DTypeError, "x: expected f32"),
        ((other, x), DataError, r"scale is 0\.25, and the program was saved for 0\.5"),
        ((fewer, x), ShapeError, "parts: a list of 2 was expected"),
        ((m.parts[0], x), ShapeError, "a Net was expected, got a Linear"),
        ((x, m), ShapeError, "a Net, or a dict of its arrays by path was expected"),
    ):
        with pytest.raises(error, match=said):
            loaded(*arguments)
    trees = saved(compiled("trees"), tmp_path)
    d, k, flag, pair = PROGRAMS["trees"].arguments(2, 2)
    for arguments, error, said in (
        (({"y": d["x"]}, k, flag, pair), ShapeError, "missing"),
        ((d, True, flag, pair), DataError, "is True, and the program was saved for 3"),
        ((d, 3.0, flag, pair), DataError, r"is 3\.0"),
        ((d, k, "no", pair), DataError, "'no', and the program was saved for yes"),
        ((d, k, flag, tuple(pair)), ShapeError, "a named tuple with first, second"),
    ):
        with pytest.raises(error, match=said):
            trees(*arguments)


def test_ties_are_kept(tmp_path: Path) -> None:
    w = normal(5, 5)
    tied = Net([rg.nn.Linear(5, 5), rg.nn.Linear(5, 5)], {"shift": normal(5)}, 1.0, rnp.tanh)
    tied.parts[0].weight = tied.parts[1].weight = w
    c = rg.compile(lambda m, x: m(x), tied, X)
    loaded = saved(c, tmp_path)
    x = normal(2, 5)
    assert np.array_equal(c(tied, x), loaded(tied, x))
    tied.parts[1].weight = w.copy()
    with pytest.raises(ShapeError, match="tied"):
        loaded(tied, x)


@pytest.mark.parametrize(
    ("fn", "specs", "said"),
    [
        (lambda f, x: f(x), (lambda x: x, X), "is .*<lambda>"),
        (lambda m, x: m(x), (Net([], {"shift": normal(5)}, 1.0, lambda x: x), X), "activation is"),
        (lambda o, x: x, (object(), X), "is object, which a file cannot tell"),
    ],
)
def test_what_a_file_cannot_describe(fn: Any, specs: Any, said: str, tmp_path: Path) -> None:
    c = rg.compile(fn, *specs)
    with pytest.raises(UnsupportedError, match=said):
        c.save(tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_names_of_every_kind_come_back(tmp_path: Path) -> None:
    names = ['*/ "', "a'b\n#", "\\", "return", "int", "%0: f32[]", "into", "\ud800", "é", " "]
    c = rg.compile(
        lambda d: {n[::-1]: rnp.exp(x) * i for i, (n, x) in enumerate(d.items())},
        {n: rg.spec("f32", "lambda_", 5) for n in names},
        at={"lambda_": 2},
    )
    loaded = saved(c, tmp_path)
    given = {n: normal(3, 5, seed=i) for i, n in enumerate(names)}
    assert same_bits(c(given), loaded(given))
    assert loaded.ir().input_names == c.ir().input_names
    graph = c.ir()
    for text in ('x" */ int main', "a\n    import os", "return\\", "\u2028"):
        scoped = [
            type(n)(n.id, n.op, n.inputs, n.attrs, n.outputs, n.loc, text, n.origin)
            for n in graph.nodes
        ]
        odd = graph.replace(name=text, nodes=tuple(scoped))
        assert parse(odd.text()).text() == odd.text()


PROGRAM = """
import sys
import numpy as np
import retrograde as rg
import retrograde.numpy as rnp

class Own(rg.nn.Module):
    head: rg.nn.Linear
    act: object = rnp.tanh

    def __call__(self, x):
        return self.act(self.head(x))

def f(model, x):
    return {"y": model(x), "g": rg.grad(lambda m: rnp.sum(m(x) ** 2))(model).head.weight}

def g(model, x):
    return model, x

if __name__ == "__main__":
    import own
    model = own.Own(rg.nn.Linear(5, 3, seed=2))
    x = rg.spec("f32", "B", 5)
    arguments = (model, np.arange(20, dtype=np.float32).reshape(4, 5) / 9)
    c = rg.compile(own.f, model, x, at={"B": 6})
    c.save("f.rg")
    rg.compile(own.g, model, x).save("g.rg")
    np.savez("model.npz", **model.parameters())
    np.savez("out.npz", **c(*arguments), peak=[c.peak()(B=b) for b in range(1, 50)])
"""

LOADER = """
import sys
import warnings
warnings.simplefilter("error")
import numpy as np
import retrograde as rg

c = rg.load("f.rg")
out = c(dict(np.load("model.npz")), np.arange(20, dtype=np.float32).reshape(4, 5) / 9)
kept = np.load("out.npz")
assert out["y"].tobytes() == kept["y"].tobytes() and out["g"].tobytes() == kept["g"].tobytes()
assert [c.peak()(B=b) for b in range(1, 50)] == kept["peak"].tolist()
assert "own" not in sys.modules
try:
    rg.load("g.rg")
except rg.errors.CheckpointError as error:
    assert "import own before loading" in str(error), error
import own
model, x = rg.load("g.rg")(own.Own(rg.nn.Linear(5, 3, seed=2)), np.zeros((2, 5), np.float32))
assert isinstance(model, own.Own) and model.act is rg.numpy.tanh
"""


def test_another_process_without_the_module(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(PROGRAM)
    for seed, script in ((1, "own.py"), (2, "-c")):
        done = subprocess.run(
            [sys.executable, script, *([LOADER] if script == "-c" else [])],
            cwd=tmp_path,
            env={**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    c = compiled("constants")
    path = tmp_path / "p"
    c.save(path)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match="No space left"):
            compiled("mean").save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["p"]
    with pytest.raises(CheckpointError, match="cannot be written"):
        c.save(tmp_path / "missing" / "p")
    with pytest.raises(CheckpointError, match="is a folder"):
        c.save(tmp_path)


def test_saving_is_deterministic_and_readable(tmp_path: Path) -> None:
    import zipfile

    compiled("gpt").save(tmp_path / "a")
    compiled("gpt").save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with zipfile.ZipFile(tmp_path / "a") as archive:
        assert parse(archive.read("graph.ir").decode()).text() == compiled("gpt").ir().text()
        assert json.loads(archive.read("program.json"))["at"] == {"B": 4, "T": 16}


def test_options_can_be_others_when_loading(tmp_path: Path) -> None:
    loaded = saved(compiled("lstm"), tmp_path, threads=1)
    assert loaded._threads == 1
    with pytest.raises(rg.errors.DeviceError, match="unknown backend 'tpu'"):
        rg.load(tmp_path / "program", backend="tpu")
    assert loaded.largest("T", "1MiB", B=D) == compiled("lstm").largest("T", "1MiB", B=D)
    assert GPT is PROGRAMS["gpt"].specs[0]


NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70), st.floats(), st.booleans(), st.sampled_from([-0.0, 5e-324])
)


@given(NUMBERS)
def test_every_number_comes_back(number: float) -> None:
    with Builder("numbers", Expr) as builder:
        made = lookup("constant")(value=number, dtype=dtypes.f64)
    graph = builder.finish([made.value])
    (node,) = parse(graph.text()).nodes
    assert repr(node.attrs["value"]) == repr(number)
    assert type(node.attrs["value"]) is type(number)
