"""Loops whose turns copy nothing: carries in histories, gates by part, rows looked up by turn."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.runtime.native.toolchain import find_toolchain

pytestmark = pytest.mark.skipif(find_toolchain() is None, reason="there is no C compiler")

Array = npt.NDArray[Any]
B, D = 13, 5
WIDTH = 20  # of the LSTM


def old_and_new(h: Any, c: Any, xs: Any, w: Any) -> Any:
    def body(carry: Any, x: Any) -> Any:
        h, c = carry
        new = rnp.tanh(x + h @ w), c * 0.5 + h
        return new, (h, new[0], c, new[1] - c)

    return rg.scan(body, (h, c), xs)


def backwards(h: Any, c: Any, xs: Any, w: Any) -> Any:
    def body(carry: Any, x: Any) -> Any:
        h, c = carry
        new = rnp.tanh(x + h @ w), c + rnp.sin(h)
        return new, (h, new[1], new[0])

    return rg.scan(body, (h, c), xs, reverse=True)


def places_change(h: Any, c: Any, xs: Any, w: Any) -> Any:
    """Each carry takes the other's place; both are stacked, one of them twice."""

    def body(carry: Any, x: Any) -> Any:
        h, c = carry
        return (c, h + x), (h, c, h, h + x)

    return rg.scan(body, (h, c), xs)


def nothing_changes(h: Any, c: Any, xs: Any, w: Any) -> Any:
    def body(carry: Any, x: Any) -> Any:
        h, c = carry
        return (h, x), (h, c, x @ w)

    return rg.scan(body, (h, c), xs)


def product_alone(h: Any, c: Any, xs: Any, w: Any) -> Any:
    """The new state is a product, which is written where it is stacked."""

    def body(carry: Any, x: Any) -> Any:
        h, c = carry
        h = (h + x) @ w
        return (h, c * 0.9), (h, c)

    return rg.scan(body, (h, c), xs)


def within(h: Any, c: Any, xs: Any, w: Any) -> Any:
    """A loop in a loop, whose states are both stacked."""

    def outer(carry: Any, x: Any) -> Any:
        def inner(h: Any, _: Any) -> Any:
            h = rnp.tanh(h @ w + x)
            return h, h

        h, c = carry
        h, every = rg.scan(inner, h, length=3)
        return (h, c + h), (h, c, rnp.sum(every, axis=0))

    return rg.scan(outer, (h, c), xs)


def gates(h: Any, c: Any, xs: Any, w: Any) -> Any:
    """Parts of a sum, and one gate that is the product of two parts."""

    def body(carry: Any, x: Any) -> Any:
        h, c = carry
        z = rnp.concatenate([h @ w, x + c], axis=-1) * 2.0 + rnp.concatenate([x, h], axis=-1)
        a, b = rnp.split(z, 2, axis=-1)
        h, c = rnp.tanh(a) * rnp.sin(b), rnp.sin(b) + c
        return (h, c), (h, c)

    return rg.scan(body, (h, c), xs)


CELLS = [old_and_new, backwards, places_change, nothing_changes, product_alone, within, gates]


def specs() -> list[Any]:
    state = rg.spec("f64", "B", D)
    return [state, state, rg.spec("f64", rg.dim("T", min=0), "B", D), rg.spec("f64", D, D)]


def arguments(steps: int, seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=s) for s in ((B, D), (B, D), (steps, B, D), (D, D))]


def everything(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The results, and the gradients of a number that all of them are in."""

    def total(*given: Any) -> Any:
        found = enumerate(rg.tree.leaves(fn(*given)))
        weighted = [rnp.sum(rnp.sin(x) * (k + 1.0)) for k, x in found]
        return sum(weighted[1:], weighted[0])

    def both(*given: Any) -> Any:
        return rg.tree.leaves(fn(*given)), rg.value_and_grad(total, argnums=(0, 1, 2, 3))(*given)

    return both


def flat(found: Any) -> list[Array]:
    return [np.asarray(x) for x in rg.tree.leaves(found)]


@pytest.mark.parametrize("cell", CELLS)
def test_states_are_those_of_the_numpy_device(cell: Callable[..., Any]) -> None:
    native, oracle = (
        rg.compile(everything(cell), *specs(), backend=backend) for backend in ("native", "numpy")
    )
    for steps in (4, 1, 0, 7):
        found, wanted = flat(native(*arguments(steps))), flat(oracle(*arguments(steps)))
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("cell", CELLS)
def test_no_bit_depends_on_threads_or_on_what_memory_held(
    cell: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def bits(threads: int) -> list[bytes]:
        compiled = rg.compile(everything(cell), *specs(), backend="native", threads=threads)
        return [x.tobytes() for x in flat(compiled(*arguments(6, seed=2)))]

    wanted = bits(1)
    assert bits(2) == bits(3) == wanted
    for variable in ("RETROGRADE_POISON", "RETROGRADE_NO_REUSE"):
        monkeypatch.setenv(variable, "1")
        assert bits(2) == wanted
        monkeypatch.delenv(variable)


def kernels_of_turns(compiled: Any) -> list[list[int]]:
    """The kernels that a turn launches, by loop, from the list of launches."""
    text = compiled.source()
    turns = re.findall(r"\(T, -?1, \[\n(.*?)\n *\]\),", text, flags=re.DOTALL)
    found = []
    for turn in turns:
        launched = re.findall(r"^ *(?:rt\.blocks)?\((\d+), ", turn, flags=re.MULTILINE)
        found.append([int(k) for k in launched])
    return found


def lstm(w: Any, tokens: Any) -> Any:
    def cell(carry: Any, x: Any) -> Any:
        h, c = carry
        i, f, g, o = rnp.split(x + h @ w["hidden"] + w["bias"], 4, axis=-1)
        c = rnp.sigmoid(f) * c + rnp.sigmoid(i) * rnp.tanh(g)
        h = rnp.sigmoid(o) * rnp.tanh(c)
        return (h, c), h

    x = rnp.take(w["embedding"], tokens, axis=0) @ w["input"]
    zero = rnp.zeros((tokens.shape[1], WIDTH), "f32")
    return rnp.mean(rg.scan(cell, (zero, zero), x)[1] ** 2)


SHAPES = {
    "embedding": (7, WIDTH), "input": (WIDTH, 4 * WIDTH), "hidden": (WIDTH, 4 * WIDTH),
    "bias": (4 * WIDTH,),
}  # fmt: skip


def compiled_lstm(backend: str, threads: int = 2) -> Any:
    weights = {name: rg.spec("f32", *shape) for name, shape in SHAPES.items()}
    step = rg.value_and_grad(lstm)
    at = {"T": 64, "B": 8}
    ids = rg.spec("i32", "T", "B")
    return rg.compile(step, weights, ids, backend=backend, threads=threads, at=at)


def lstm_arguments(steps: int = 9, batch: int = 5) -> tuple[dict[str, Array], Array]:
    rng = np.random.default_rng(1)
    weights = {n: 0.3 * rng.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}
    return weights, rng.integers(-7, 7, (steps, batch)).astype(np.int32)


def test_a_turn_of_an_lstm_is_two_launches() -> None:
    compiled = compiled_lstm("native")
    turns = kernels_of_turns(compiled)
    assert turns and all(len(turn) == 2 for turn in turns)
    assert "x0at" in compiled.source()  # rows of the table are read where they lie
    oracle = compiled_lstm("numpy")
    found, wanted = flat(compiled(*lstm_arguments())), flat(oracle(*lstm_arguments()))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_an_index_is_refused_before_the_loop_as_by_the_numpy_device() -> None:
    weights, tokens = lstm_arguments()
    tokens[3, 2] = 7
    messages = []
    for backend in ("native", "numpy"):
        compiled = compiled_lstm(backend)
        with pytest.raises(rg.errors.DataError) as caught:
            compiled(weights, tokens)
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and "index 7 is out of range" in messages[0]


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_the_bits_of_an_lstm_depend_on_no_number_of_threads(batch: int) -> None:
    found = []
    for threads in (1, 2, 3):
        results = flat(compiled_lstm("native", threads)(*lstm_arguments(6, batch)))
        found.append([x.tobytes() for x in results])
    assert found[0] == found[1] == found[2]
