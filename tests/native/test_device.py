"""The native device beside the NumPy device: the same programs, the same numbers, all modes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.runtime.native.toolchain import find_toolchain

pytestmark = pytest.mark.skipif(find_toolchain() is None, reason="there is no C compiler")

Array = npt.NDArray[Any]
VOCAB = 11


def language_model(seed: int) -> rg.models.GPT:
    return rg.models.GPT(vocab=VOCAB, width=24, layers=2, heads=3, context=16, seed=seed)


def recurrent(cell: str) -> Callable[[int], Any]:
    return lambda seed: rg.models.RNNLM(vocab=VOCAB, width=12, layers=2, cell=cell, seed=seed)


def loss(model: Any, tokens: Any, targets: Any) -> Any:
    return rg.losses.cross_entropy(model(tokens), targets)


def batch(rows: int, length: int, seed: int = 0) -> dict[str, Array]:
    ids = np.random.default_rng(seed).integers(0, VOCAB, (rows, length + 1), dtype=np.int32)
    return {"tokens": ids[:, :-1].copy(), "targets": ids[:, 1:].copy()}


def trainer(make: Callable[[int], Any], backend: str, **options: Any) -> Any:
    ids = rg.spec("i32", "B", "T")
    return rg.compile_training(
        loss, make(3), rg.optim.SGD(0.1, momentum=0.9), batch={"tokens": ids, "targets": ids},
        backend=backend, clip_norm=1.0, **options,
    )  # fmt: skip


def leaves(step: Any) -> list[Array]:
    return [np.asarray(x) for x in rg.tree.leaves(step.model)]


MODELS = {"gpt": language_model, "lstm": recurrent("lstm"), "gru": recurrent("gru")}


@pytest.mark.parametrize("name", MODELS)
def test_training_is_that_of_the_numpy_device(name: str) -> None:
    native, oracle = (trainer(MODELS[name], backend) for backend in ("native", "numpy"))
    for i, (rows, length) in enumerate([(3, 7), (5, 16), (1, 1), (3, 7)]):
        got, wanted = (step(**batch(rows, length, i)) for step in (native, oracle))
        assert got["loss"] == pytest.approx(wanted["loss"], rel=2e-6)
        assert got["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=2e-5)
    for a, b in zip(leaves(native), leaves(oracle), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_a_program_is_one_list_of_launches(name: str) -> None:
    source = trainer(MODELS[name], "native").source()
    body = source[source.index("def run():") : source.index("return run")]
    assert body.split()[2:] == ["run0()"]


@pytest.mark.parametrize("name", MODELS)
def test_the_bits_depend_on_no_number_of_threads(name: str) -> None:
    found = []
    for threads in (1, 2, 3, 1):
        step = trainer(MODELS[name], "native", threads=threads)
        metrics = [step(**batch(5, 9, i)) for i in range(2)]
        found.append([m["loss"] for m in metrics] + [x.tobytes() for x in leaves(step)])
    assert all(other == found[0] for other in found[1:])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("variable", ["RETROGRADE_POISON", "RETROGRADE_NO_REUSE"])
def test_memory_that_is_poisoned_or_never_reused_changes_no_bit(
    name: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> list[Any]:
        step = trainer(MODELS[name], "native", threads=2)
        return [step(**batch(4, 6))["loss"], *(x.tobytes() for x in leaves(step))]

    plain = run()
    monkeypatch.setenv(variable, "1")
    assert run() == plain


def test_an_index_out_of_range_is_told_as_by_the_numpy_device() -> None:
    ids, table = rg.spec("i32", "N"), rg.spec("f32", 7, 3)
    bad = np.array([0, 6, -7, 7, 2], np.int32)
    values = np.ones((7, 3), np.float32)
    messages = []
    for backend in ("numpy", "native"):
        compiled = rg.compile(lambda t, i: rnp.take(t, i, axis=0), table, ids, backend=backend)
        with pytest.raises(rg.errors.DataError) as caught:
            compiled(values, bad)
        messages.append(str(caught.value))
        np.testing.assert_array_equal(compiled(values, bad[:3]), values[:3])
    assert messages[0] == messages[1] and "index 7 is out of range" in messages[1]


def test_state_stays_as_it_was_when_a_step_refuses_its_data() -> None:
    step = trainer(language_model, "native")
    step(**batch(2, 5))
    before = [x.tobytes() for x in leaves(step)]
    wrong = batch(2, 5)
    wrong["tokens"][1, 3] = VOCAB
    with pytest.raises(rg.errors.DataError, match="out of range"):
        step(**wrong)
    assert [x.tobytes() for x in leaves(step)] == before


def ragged(h: Any, xs: Any, lengths: Any, w: Any) -> Any:
    def body(h: Any, x: Any) -> Any:
        h = rnp.tanh(x + h @ w)
        return h, h

    last, every = rg.scan(body, h, xs, lengths=lengths)
    return rnp.sum(last * last), every


@pytest.mark.parametrize("lengths", [[5, 3, 1], [0, 5, 2], [0, 0, 0], [4, 4, 4]])
def test_a_ragged_loop_runs_the_live_rows(lengths: list[int]) -> None:
    rng = np.random.default_rng(5)
    arrays = [rng.normal(size=s).astype(np.float32) for s in ((3, 4), (5, 3, 4), (4, 4))]
    specs = rg.spec("f32", "B", 4), rg.spec("f32", "T", "B", 4), rg.spec("i32", "B"), arrays[2]
    results = []
    for backend in ("numpy", "native"):
        compiled = rg.compile(ragged, *specs, backend=backend)
        results.append(compiled(arrays[0], arrays[1], np.array(lengths, np.int32), arrays[2]))
    for got, wanted in zip(results[1], results[0], strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)


def test_branches_and_while_loops_are_in_the_list() -> None:
    def f(x: Any) -> Any:
        def halve(state: Any) -> Any:
            return state[0] * 0.5, state[1] + 1

        value, count = rg.while_loop(lambda s: rnp.max(s[0]) > 1.0, halve, (x, 0))
        big = rg.cond(count > 3, lambda v: v + 1.0, lambda v: v - 1.0, value)
        return big, count

    compiled = rg.compile(f, rg.spec("f32", "N"), backend="native")
    source = compiled.source()
    assert '("while", [' in source and '("if", ' in source
    for scale in (0.5, 3.0, 100.0):
        x = np.linspace(0, scale, 37, dtype=np.float32)
        got, wanted = compiled(x), rg.compile(f, rg.spec("f32", "N"), backend="numpy")(x)
        np.testing.assert_array_equal(got[0], wanted[0])
        assert got[1] == wanted[1]


def test_a_new_size_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    step = trainer(recurrent("gru"), "native")
    step(**batch(2, 3))
    monkeypatch.setenv("PATH", "")
    for rows, length in ((3, 4), (7, 1), (2, 40)):
        assert np.isfinite(step(**batch(rows, length))["loss"])


WITHOUT = """
import warnings
import numpy as np
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import retrograde as rg
    for _ in range(2):
        step = rg.compile_training(
            lambda m, x: rg.Mean(((m(x) - x) ** 2).sum(), 1), rg.nn.Linear(3, 3),
            rg.optim.SGD(0.1), batch={"x": rg.spec("f32", "B", 3)},
        )
        for rows in (1, 4):
            step(x=np.ones((rows, 3), np.float32))
print(step.source().count("rt.native"), [str(w.message) for w in caught])
"""


def test_without_a_compiler_everything_works_with_one_notice(tmp_path: Path) -> None:
    hidden = ("RETROGRADE_BACKEND", "RETROGRADE_CC")
    env = {k: v for k, v in os.environ.items() if k not in hidden}
    env |= {"PATH": str(tmp_path), "RETROGRADE_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("0 ['") and done.stdout.count("compiler") >= 1
    assert done.stdout.count("', '") == 0, "one notice"


def test_state_that_a_step_writes_and_never_reads() -> None:
    """An optimizer that remembers the last direction: what was there before goes unread."""

    class Signed:
        def init(self, params: list[Any]) -> list[Array]:
            return [np.zeros(x.shape, x.dtype) for x in params]

        def update(self, grads: Any, state: Any, params: Any, step: Any) -> Any:
            last = [rnp.sign(g) * rnp.sqrt(rnp.abs(g)) for g in grads]
            return [p - 0.1 * s for p, s in zip(params, last, strict=True)], last

        def learning_rate(self, step: Any) -> float:
            return 0.1

    def square(w: Any, x: Any) -> Any:
        return rnp.sum(rnp.softmax(w * x, axis=-1) * w)

    rng = np.random.default_rng(5)
    w, x = (rng.normal(size=(7, 9)).astype("f4") for _ in range(2))
    native, oracle = (
        rg.compile_training(
            square, w, Signed(), batch={"x": rg.spec("f32", 7, 9)}, backend=backend, threads=2
        )
        for backend in ("native", "numpy")
    )
    for step in (native, oracle, native, oracle):
        step(x=x)
    found, wanted = native.state()[0], oracle.state()[0]
    assert found.keys() == wanted.keys()
    for name in found:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_with_rows_of_their_own_share_nothing_that_moves(threads: int) -> None:
    """A slice of a turn that has no rows is written by one thread while another is turns behind."""

    def f(h: Any, xs: Any, ws: Any) -> Any:
        def body(h: Any, turn: Any) -> Any:
            x, w = turn
            return (rnp.tanh(h + x * rnp.reshape(w, (1, -1))),) * 2

        return rg.scan(body, h, (xs, ws))

    specs = rg.spec("f64", "B", 33), rg.spec("f64", "T", "B", 33), rg.spec("f64", "T", 33)
    rng = np.random.default_rng(0)
    arguments = [rng.normal(size=s) for s in ((71, 33), (40, 71, 33), (40, 33))]
    one, many = (rg.compile(f, *specs, backend="native", threads=n) for n in (1, threads))
    assert "rt.split" not in many.source()
    wanted = [np.asarray(x).tobytes() for x in one(*arguments)]
    for _ in range(5):
        assert [np.asarray(x).tobytes() for x in many(*arguments)] == wanted
