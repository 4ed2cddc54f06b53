"""Norms of gradients over time are those of an unrolled loop in float64; steps are left alone."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.carry_norms import measured
from retrograde.compiler.errors import DataError, ShapeError, TraceError, UnsupportedError

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(3)


def numbers(*shape: int) -> Array:
    return RNG.normal(size=shape) * 0.7


def f64(model: Any) -> Any:
    return rg.tree.map(lambda w: w.astype(np.float64), model)


def unrolled(
    step: Callable[..., Any], carry: Any, xs: Any, added: Any, reverse: bool = False
) -> tuple[Any, Any]:
    """The loop in Python; `step(carry, x, e)` adds e to the carry that it makes."""
    steps = len(rg.tree.leaves(xs)[0])
    rows: list[Any] = [None] * steps
    for t in reversed(range(steps)) if reverse else range(steps):
        x, e = (rg.tree.map(lambda a, t=t: a[t], part) for part in (xs, added))
        carry, rows[t] = step(carry, x, e)
    return carry, rnp.stack(rows)


def norms_by_hand(loss: Callable[[Any], Any], added: Any, rows: bool = False) -> list[Array]:
    """The gradient by what was added to each h_t, leaf by leaf: its norm at each step."""
    grads = rg.grad(loss)(added)
    lead = 2 if rows else 1
    return [
        np.sqrt((g.reshape(*g.shape[:lead], -1) ** 2).sum(-1)) for g in rg.tree.leaves(grads)
    ]


def check(found: Any, expected: list[Array]) -> None:
    assert len(found) == len(expected)
    for c, norms in zip(found, expected, strict=True):
        assert c.norms.dtype == np.float64
        np.testing.assert_allclose(c.norms, norms, rtol=1e-12, atol=1e-300, err_msg=c.label)


def cell(model: Any, carry: Any, x: Any) -> Any:
    h = rnp.tanh(x @ model["w"] + carry @ model["u"])
    return h, h


def perturbed(model: Any) -> Callable[..., Any]:
    def step(carry: Any, x: Any, e: Any) -> Any:
        h = cell(model, carry, x)[0] + e
        return h, h

    return step


T, B, D, H = 6, 3, 4, 5
MODEL = {"w": numbers(D, H), "u": numbers(H, H)}
XS = numbers(T, B, D)
READ = numbers(T, B, H)  # what the loss makes of the results


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("of", ["results", "last", "both"])
@pytest.mark.parametrize("steps", [0, 1, 6])
def test_a_plain_scan(reverse: bool, of: str, steps: int) -> None:
    xs, read = XS[:steps], READ[:steps]

    def read_off(last: Any, ys: Any) -> Any:
        total = rnp.sum(last**3) if of != "results" else 0.0
        return total + (rnp.sum(rnp.sin(ys) * read) if of != "last" and steps else 0.0)

    def loss(model: Any, xs: Any) -> Any:
        init = rnp.zeros((B, H), "f64")
        last, ys = rg.scan(lambda h, x: cell(model, h, x), init, xs, reverse=reverse)
        return read_off(last, ys) + 0.0 * rnp.sum(init)

    found = rg.diagnose.gradient_norms(loss, MODEL, xs)
    assert found[0].norms.shape == (steps,)
    assert found[0].reverse == (reverse,)
    if steps == 0:
        assert found[0].verdict == "no steps"
        return

    def by_hand(added: Any) -> Any:
        init = rnp.zeros((B, H), "f64")
        return read_off(*unrolled(perturbed(MODEL), init, xs, added, reverse))

    check(found, norms_by_hand(by_hand, np.zeros((steps, B, H))))
    assert found.loss == pytest.approx(float(rg.jit(by_hand)(np.zeros((steps, B, H)))))


def test_finite_differences_agree() -> None:
    def loss(h: Any, xs: Any) -> Any:
        last, ys = rg.scan(lambda h, x: cell(MODEL, h, x), h, xs)
        return rnp.sum(last**3) + rnp.sum(ys * READ)

    def value(added: Array) -> float:
        h, total = np.zeros((B, H)), 0.0
        for t in range(T):
            h = np.tanh(XS[t] @ MODEL["w"] + h @ MODEL["u"]) + added[t]
            total += (h * READ[t]).sum()
        return float(total + (h**3).sum())

    gradient = np.zeros((T, B, H))
    for i in np.ndindex(gradient.shape):
        e = np.zeros_like(gradient)
        e[i] = 1e-5
        gradient[i] = (value(e) - value(-e)) / 2e-5
    found = rg.diagnose.gradient_norms(loss, np.zeros((B, H)), XS)
    np.testing.assert_allclose(found[0].norms, np.sqrt((gradient**2).sum((1, 2))), rtol=1e-7)


def lstm_step(m: Any) -> Callable[..., Any]:
    """The LSTM written out, with something added to h and to c where they are made."""

    def step(carry: Any, x: Any, e: Any) -> Any:
        h, c = carry
        i, f, g, o = rnp.split(x @ m.weight_input + h @ m.weight_recurrent + m.bias, 4, axis=-1)
        c = rnp.sigmoid(f) * c + rnp.sigmoid(i) * rnp.tanh(g) + e[1]
        h = rnp.sigmoid(o) * rnp.tanh(c) + e[0]
        return (h, c), h

    return step


def guarded(step: Callable[..., Any]) -> Callable[..., Any]:
    """The step for rows of which some have ended: these keep their carry."""

    def run(carry: Any, given: Any, e: Any) -> Any:
        x, alive = given
        alive = alive[:, None]
        after, y = step(carry, x, e)
        kept = rg.tree.map(lambda new, old: rnp.where(alive, new, old), after, carry)
        return kept, rnp.where(alive, y, 0.0)

    return run


@pytest.mark.parametrize("lengths", [None, [6, 2, 4], [3, 0, 4]])
def test_an_lstm_layer_and_its_lengths(lengths: list[int] | None) -> None:
    layer = f64(rg.nn.LSTM(D, H, seed=1))
    x = np.swapaxes(XS, 0, 1).copy()
    ends = None if lengths is None else np.array(lengths, "i4")

    def read_off(ys: Any, carry: Any) -> Any:
        return rnp.sum(ys * READ) + rnp.sum(carry[0] ** 2) + rnp.sum(rnp.sin(carry[1]))

    def loss(layer: Any, x: Any, ends: Any) -> Any:
        y, (carry,) = layer(x, lengths=ends)
        return read_off(rnp.swapaxes(y, 0, 1), carry)

    found = rg.diagnose.gradient_norms(loss, layer, x, ends)
    assert [c.carry for c in found] == ["carry.0", "carry.1"]
    assert {c.scope for c in found} == {"forward.0"}

    def by_hand(added: Any) -> Any:
        step = lstm_step(layer.forward[0].cell)
        start = (rnp.zeros((B, H), "f64"), rnp.zeros((B, H), "f64"))
        if ends is None:
            carry, ys = unrolled(step, start, XS, added)
        else:
            alive = np.arange(T)[:, None] < ends
            carry, ys = unrolled(guarded(step), start, (XS, alive), added)
        return read_off(ys, carry)

    added = (np.zeros((T, B, H)), np.zeros((T, B, H)))
    check(found, norms_by_hand(by_hand, added))
    rows = rg.diagnose.gradient_norms(loss, layer, x, ends, per_row=True)
    check(rows, norms_by_hand(by_hand, added, rows=True))
    for one, all in zip(rows, found, strict=True):
        np.testing.assert_allclose(one.steps, all.norms, rtol=1e-12)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("axes", [1, 2])
def test_a_carry_that_is_chosen(swapped: bool, axes: int) -> None:
    """With a boolean for each row, rows that keep their carry count as 0; with one for each
    element, as in a clockwork network, h_t is what was chosen, and all of it counts."""
    flags = RNG.uniform(size=(T, B, H)) < 0.6 if axes == 2 else RNG.uniform(size=(T, B, 1)) < 0.6

    def chosen(flag: Any, new: Any, old: Any) -> Any:
        return rnp.where(~flag, old, new) if swapped else rnp.where(flag, new, old)

    def loss(xs: Any, flags: Any) -> Any:
        def body(h: Any, given: Any) -> Any:
            x, flag = given
            new = cell(MODEL, h, x)[0]
            y = rnp.sin(new)  # where nothing is chosen, `new` is no h_t
            return chosen(flag, new, h), y

        h, ys = rg.scan(body, rnp.zeros((B, H), "f64"), (xs, flags))
        return rnp.sum(ys * READ) + rnp.sum(h**3)

    def by_hand(added: Any) -> Any:
        def step(h: Any, given: Any, e: Any) -> Any:
            x, flag = given
            new = cell(MODEL, h, x)[0]
            y = rnp.sin(rnp.where(flag, new + e, new))
            old = h if axes == 1 else h + e
            return rnp.where(flag, new + e, old), y

        h, ys = unrolled(step, rnp.zeros((B, H), "f64"), (XS, flags), added)
        return rnp.sum(ys * READ) + rnp.sum(h**3)

    found = rg.diagnose.gradient_norms(loss, XS, flags)
    check(found, norms_by_hand(by_hand, np.zeros((T, B, H))))


def test_full_lengths_are_no_lengths() -> None:
    layer, x = f64(rg.nn.LSTM(D, H, seed=1)), np.swapaxes(XS, 0, 1).copy()

    def loss(layer: Any, x: Any, ends: Any) -> Any:
        return rnp.sum(layer(x, lengths=ends)[0] ** 2)

    whole = rg.diagnose.gradient_norms(loss, layer, x, None)
    ragged = rg.diagnose.gradient_norms(loss, layer, x, np.full(B, T, "i4"))
    check(ragged, [c.norms for c in whole])


def test_layers_that_run_both_ways() -> None:
    layer = f64(rg.nn.GRU(D, H, layers=2, bidirectional=True, seed=4))
    x = np.swapaxes(XS, 0, 1).copy()
    read = numbers(T, B, 2 * H)

    def loss(layer: Any, x: Any) -> Any:
        return rnp.sum(rnp.swapaxes(layer(x)[0], 0, 1) * read)

    def by_hand(added: Any) -> Any:
        ys: Any = XS
        for k in range(2):
            parts = []
            for way, one in enumerate((layer.forward[k].cell, layer.backward[k].cell)):

                def step(h: Any, x: Any, e: Any, one: Any = one) -> Any:
                    h = one(h, x)[0] + e
                    return h, h

                start = rnp.zeros((B, H), "f64")
                parts.append(unrolled(step, start, ys, added[2 * k + way], way == 1)[1])
            ys = rnp.concatenate(parts, axis=-1)
        return rnp.sum(ys * read)

    found = rg.diagnose.gradient_norms(loss, layer, x)
    assert [(c.scope, c.reverse) for c in found] == [
        ("forward.0", (False,)), ("backward.0", (True,)),
        ("forward.1", (False,)), ("backward.1", (True,)),
    ]  # fmt: skip
    check(found, norms_by_hand(by_hand, [np.zeros((T, B, H)) for _ in range(4)]))


@pytest.mark.parametrize("outer_reverse", [False, True])
def test_a_loop_in_a_loop(outer_reverse: bool) -> None:
    xs = numbers(2, T, B, D)

    def loss(model: Any, xs: Any) -> Any:
        def outer(h: Any, part: Any) -> Any:
            h, ys = rg.scan(lambda h, x: cell(model, h, x), h * 0.5, part, reverse=True)
            return h, rnp.sum(ys**2)

        h, sums = rg.scan(outer, rnp.zeros((B, H), "f64"), xs, reverse=outer_reverse)
        return rnp.sum(h**3) + rnp.sum(sums)

    def by_hand(added: Any) -> Any:
        outside, inside = added

        def outer(h: Any, part: Any, e: Any) -> Any:
            h, ys = unrolled(perturbed(MODEL), h * 0.5, part, e[1], True)
            return h + e[0], rnp.sum(ys**2)

        start = rnp.zeros((B, H), "f64")
        h, sums = unrolled(outer, start, xs, (outside, inside), outer_reverse)
        return rnp.sum(h**3) + rnp.sum(sums)

    found = rg.diagnose.gradient_norms(loss, MODEL, xs)
    assert [c.norms.shape for c in found] == [(2,), (2, T)]
    assert found[1].reverse == (outer_reverse, True)
    added = (np.zeros((2, B, H)), np.zeros((2, T, B, H)))
    outside, inside = rg.grad(by_hand)(added)
    check(
        found, [np.sqrt((outside**2).sum((1, 2))), np.sqrt((inside**2).sum((2, 3)))]
    )
    str(found)


@pytest.mark.parametrize("wrap", ["jit", "remat", "cond", "not taken"])
def test_loops_within_other_functions(wrap: str) -> None:
    def run(xs: Any, scale: Any) -> Any:
        return rg.scan(lambda h, x: cell(MODEL, h, x), rnp.zeros((B, H), "f64"), xs)[1] * scale

    def loss(xs: Any) -> Any:
        if wrap in ("jit", "remat"):
            ys = (rg.jit if wrap == "jit" else rg.remat)(run)(xs, 1.0)
        else:
            other = rnp.zeros((T, B, H), "f64")
            flag = rnp.sum(xs) < 1e9
            flag = flag if wrap == "cond" else ~flag
            ys = rg.cond(flag, lambda: run(xs, 1.0), lambda: other)
        return rnp.sum(ys * READ)

    def by_hand(added: Any) -> Any:
        return rnp.sum(unrolled(perturbed(MODEL), rnp.zeros((B, H), "f64"), XS, added)[1] * READ)

    found = rg.diagnose.gradient_norms(loss, XS)
    expected = norms_by_hand(by_hand, np.zeros((T, B, H)))
    check(found, [expected[0] * 0] if wrap == "not taken" else expected)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("of", ["last", "results"])
def test_a_gradient_that_is_cut(reverse: bool, of: str) -> None:
    """With truncate=4 over 6 steps, nothing comes back from the fifth that runs to the fourth."""

    def loss(xs: Any) -> Any:
        start = rnp.zeros((B, H), "f64")
        h, ys = rg.scan(lambda h, x: cell(MODEL, h, x), start, xs, reverse=reverse, truncate=4)
        return rnp.sum(h**3) if of == "last" else rnp.sum(ys * READ)

    def by_hand(added: Any) -> Any:
        h: Any = rnp.zeros((B, H), "f64")
        total: Any = 0.0
        for k in range(T):
            t = T - 1 - k if reverse else k
            h = rg.stop_gradient(h) if k == 4 else h
            h = cell(MODEL, h, XS[t])[0] + added[t]
            total = total + rnp.sum(h * READ[t])
        return rnp.sum(h**3) if of == "last" else total

    found = rg.diagnose.gradient_norms(loss, XS)
    check(found, norms_by_hand(by_hand, np.zeros((T, B, H))))
    first = found[0].norms[2:] if reverse else found[0].norms[:4]
    assert first.any() == (of == "results")


def test_carries_that_are_no_floats_or_handed_on() -> None:
    """A counter has no norm; (a, b) -> (new, a) is a register whose slots have norms of their
    own."""

    def loss(xs: Any) -> Any:
        def body(carry: Any, x: Any) -> Any:
            count, a, b = carry
            new = rnp.tanh(a + 0.5 * b + x)
            return (count + 1, new, a), new

        init = (0, rnp.zeros(B, "f64"), rnp.zeros(B, "f64"))
        _, ys = rg.scan(body, init, xs)
        return rnp.sum(ys * READ[:, :, 0])

    def by_hand(added: Any) -> Any:
        def step(carry: Any, x: Any, e: Any) -> Any:
            a, b = carry
            new = rnp.tanh(a + 0.5 * b + x) + e[0]
            return (new, a + e[1]), new

        start = (rnp.zeros(B, "f64"), rnp.zeros(B, "f64"))
        ys = unrolled(step, start, XS[:, :, 0], added)[1]
        return rnp.sum(ys * READ[:, :, 0])

    found = rg.diagnose.gradient_norms(loss, XS[:, :, 0].copy())
    assert [c.carry for c in found] == ["carry.1", "carry.2"]
    check(found, norms_by_hand(by_hand, (np.zeros((T, B)), np.zeros((T, B)))))


def powers(factor: float, dtype: str = "f32") -> Callable[..., Any]:
    def loss(h: Any, steps: Any) -> Any:
        h, _ = rg.scan(lambda h, _: (h * factor, None), h, steps)
        return rnp.sum(rnp.astype(h, "f32"))

    return loss


@pytest.mark.parametrize(
    ("factor", "word"), [(0.5, "vanishes"), (1.7, "explodes"), (1.0, "holds")]
)
def test_the_verdict_and_squares_beyond_the_range(factor: float, word: str) -> None:
    """1e-24 and 1e23 have no squares in f32."""
    steps = 80 if factor < 1 else 100
    found = rg.diagnose.gradient_norms(
        powers(factor), np.ones((B, 2), "f4"), np.zeros(steps, "f4")
    )[0]
    expected = np.sqrt(2 * B) * factor ** np.arange(steps - 1.0, -1.0, -1.0)
    np.testing.assert_allclose(found.norms, expected, rtol=1e-4)
    assert found.verdict.startswith(f"{word}: ")
    if factor != 1:
        assert f"{factor:g} times a step back" in found.verdict
        assert f"{expected[0]:.1e} at t=0" in found.verdict


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_half_precision_is_summed_in_single(dtype: str) -> None:
    """The sum of 300 squares of 16 overflows f16."""
    h = rnp.astype(np.ones(300, "f4"), dtype)

    def loss(h: Any) -> Any:
        h, _ = rg.scan(lambda h, _: (h * 1.0, None), h, length=4)
        return rnp.sum(rnp.astype(h, "f32")) * 16.0

    norms = rg.diagnose.gradient_norms(loss, h)[0].norms
    assert norms.dtype == np.float32
    np.testing.assert_allclose(norms, 16 * np.sqrt(300), rtol=1e-6)


def test_what_is_no_number_stays_what_it_is() -> None:
    inf = rg.diagnose.gradient_norms(powers(1e30), np.ones(B, "f4"), np.zeros(4, "f4"))[0]
    np.testing.assert_array_equal(np.isinf(inf.norms), [True, True, False, False])
    assert inf.verdict.startswith("not finite: inf, on its way back first at t=1; 2 of 4")

    def loss(h: Any, xs: Any) -> Any:
        h, _ = rg.scan(lambda h, x: (rnp.sqrt(h * x), None), h, xs)
        return rnp.sum(h)

    xs = np.array([1, 1, 0, 1, 1], "f4")
    nan = rg.diagnose.gradient_norms(loss, np.ones(B, "f4"), xs)[0]
    assert "NaN" in nan.verdict, nan.norms
    assert np.isfinite(nan.norms[-1])
    assert "!" in str(nan._line())
    zero = rg.diagnose.gradient_norms(powers(0.0), np.ones(B, "f4"), np.zeros(4, "f4"))[0]
    np.testing.assert_array_equal(zero.norms == 0, [True, True, True, False])


def test_a_gradient_that_vanishes_inside_of_each_turn() -> None:
    def loss(xs: Any) -> Any:
        def outer(total: Any, part: Any) -> Any:
            h, _ = rg.scan(lambda h, x: (h * 0.5 + x, None), rnp.zeros(B), part)
            return total + h, None

        return rnp.sum(rg.scan(outer, rnp.zeros(B), xs)[0])

    found = rg.diagnose.gradient_norms(loss, np.ones((3, 20, B), "f4"))
    assert found[0].verdict.startswith("holds")
    assert found[1].verdict.startswith("vanishes")


def test_nothing_larger_than_the_gradient_needs() -> None:
    """Of the loop's gradient alone, by its first carry, the program differs by single numbers."""
    steps, rows, width = 64, 7, 11

    def loss(h: Any, u: Any, xs: Any) -> Any:
        h, ys = rg.scan(lambda h, x: (rnp.tanh(x + h @ u),) * 2, h, xs)
        return rnp.sum(ys**2)

    def looked_at(h: Any, u: Any, xs: Any) -> Any:
        return measured(lambda: loss(h, u, xs), "loss", False).arrays

    def specs(steps: int | str) -> list[Any]:
        return [
            rg.spec("f32", rows, width), rg.spec("f32", width, width),
            rg.spec("f32", steps, rows, width),
        ]  # fmt: skip

    plain = rg.compile(rg.value_and_grad(loss), *specs("T"))
    with_norms = rg.compile(looked_at, *specs("T"))
    big = rows * width
    counts = [
        sum(
            b.bytes >= steps * big * 4 for b in program.plan(T=steps).buffers if b.kind != "input"
        )
        for program in (plain, with_norms)
    ]
    assert counts[1] <= counts[0]
    extra = with_norms.plan(T=steps).peak_bytes - plain.plan(T=steps).peak_bytes
    assert extra < steps * rows * 4
    assert with_norms.ir("order").text().count(" = scan ") == 2
    texts = [rg.compile(looked_at, *specs(t)).ir("order").text() for t in (32, 512)]
    assert texts[0].count("\n") == texts[1].count("\n")


def test_the_table_and_the_plot(tmp_path: Path) -> None:
    layer = rg.nn.LSTM(D, H, layers=2, bidirectional=True, seed=1)
    x = np.swapaxes(XS, 0, 1).astype("f4")

    def loss(layer: Any, x: Any) -> Any:
        return rnp.sum(layer(x)[0] ** 2)

    found = rg.diagnose.gradient_norms(loss, layer, x)
    table = str(found)
    assert table.startswith("|dL/dh_t| of loss = ")
    assert "test_diagnose.py:" in table and "@ backward.1  reverse  T=6" in table
    assert table.count("median") == len(found) == 8
    found.plot(tmp_path / "norms.svg")
    root = ET.parse(tmp_path / "norms.svg").getroot()
    name = "{http://www.w3.org/2000/svg}"
    curves = [p for p in root.iter(f"{name}path") if p.get("class") == "curve"]
    assert len(curves) == len(found)
    assert all(p.get("d", "").count("L") == T - 1 for p in curves)
    legend = [p.text for p in root.iter(f"{name}text") if p.get("class") == "legend"]
    assert legend == [f"{c.label}: {c.verdict}" for c in found]
    ticks = [p.text for p in root.iter(f"{name}text") if p.get("class") == "tick"]
    assert {"0", "5"} <= set(ticks)
    with pytest.raises(UnsupportedError, match=r"use \.svg"):
        found.plot(tmp_path / "norms.png")
    with pytest.raises(DataError, match="cannot write"):
        found.plot(tmp_path / "missing" / "norms.svg")


def test_refusals() -> None:
    with pytest.raises(UnsupportedError, match=r"runs no loop with a float carry.*rg\.scan"):
        rg.diagnose.gradient_norms(lambda x: rnp.sum(x**2), XS)
    with pytest.raises(TraceError, match="outside of the function being traced"):
        rg.jit(lambda x: rg.diagnose.gradient_norms(powers(1.0), x, x).loss)(np.ones(3))

    def many(x: Any) -> Any:
        return rg.scan(lambda h, x: (h + x, h), x[0], x)[1]

    with pytest.raises(ShapeError, match="a gradient is that of one number"):
        rg.diagnose.gradient_norms(many, XS)


# --- training steps


class Tagger(rg.nn.Module):
    embed: rg.nn.Embedding
    layers: rg.nn.LSTM
    head: rg.nn.Linear


WEIGHTS = numbers(9).astype("f4")


def tagging(model: Tagger, tokens: Any, targets: Any) -> rg.Mean:
    y, _ = model.layers(model.embed(tokens))
    kept = rnp.astype(tokens > 1, "f32") * rnp.asarray(WEIGHTS)[tokens] ** 2
    wanted = rnp.astype(rnp.expand_dims(targets, -1) == rnp.arange(9), "f32")
    losses = rnp.sum((model.head(y) - wanted) ** 2, axis=-1)
    return rg.Mean(rnp.sum(losses * kept), rnp.sum(tokens > 1))


class Momentum:
    """An optimizer of the user's own."""

    def init(self, params: Any) -> Any:
        return [np.zeros_like(p) for p in params]

    def learning_rate(self, step: Any) -> Any:
        return 0.01

    def update(self, grads: Any, state: Any, params: Any, step: Any) -> Any:
        state = [0.9 * m + g for m, g in zip(state, grads, strict=True)]
        return [p - 0.01 * m for p, m in zip(params, state, strict=True)], state


def tagger() -> Any:
    numbers = rg.nn.Source(5)
    model = Tagger(
        rg.nn.Embedding(9, D, seed=numbers),
        rg.nn.LSTM(D, H, layers=2, dropout=0.4, recurrent_dropout=0.2, seed=numbers),
        rg.nn.Linear(H, 9, seed=numbers),
    )
    ids = rg.spec("i32", "B", "T")
    return rg.compile_training(tagging, model, Momentum(), {"tokens": ids, "targets": ids})


def batch(rows: int, steps: int) -> dict[str, Array]:
    return {k: RNG.integers(0, 9, (rows, steps)).astype("i4") for k in ("tokens", "targets")}


def test_a_training_step_is_looked_at_and_left_alone() -> None:
    step, data = tagger(), batch(4, 7)
    twin = step.clone()
    for _ in range(2):
        step(**data), twin(**data)
    before = step.state()[0]
    found = step.gradient_norms(**data)
    assert step.first_nonfinite(**data) is None
    rows = step.gradient_norms(**data, per_row=True)
    after = step.state()[0]
    assert all(np.array_equal(before[k], after[k]) for k in before)
    assert [c.scope for c in found] == ["layers.forward.0"] * 2 + ["layers.forward.1"] * 2
    metrics = step(**data)
    assert metrics == twin(**data)  # nothing has changed, the dropout masks included
    assert found.loss == pytest.approx(metrics["loss"], rel=1e-6)
    assert step.gradient_norms(**data).loss != pytest.approx(metrics["loss"], rel=1e-3)
    assert [c.norms.shape for c in rows] == [(7, 4)] * 4
    assert [c.norms.shape for c in step.gradient_norms(**batch(2, 11))] == [(11,)] * 4
    with pytest.raises(DataError, match="'targets' is missing"):
        step.gradient_norms(tokens=data["tokens"])


def test_a_step_reads_captured_arrays_as_they_are() -> None:
    step, data = tagger(), batch(4, 7)
    first = step.gradient_norms(**data)
    WEIGHTS[:] *= 2
    try:
        second = step.gradient_norms(**data)
    finally:
        WEIGHTS[:] /= 2
    assert second.loss > first.loss * 1.5


def test_a_step_names_the_parameter_that_is_no_number() -> None:
    step, data = tagger(), batch(4, 7)
    model = step.model
    model.layers.forward[1].cell.bias[2] = np.nan
    step.model = model
    found = step.first_nonfinite(**data)
    assert found.input == "layers.forward.1.cell.bias"
    assert found.reaches[:2] == ("grad_norm", "loss")
    assert "NaN in the input layers.forward.1.cell.bias" in str(found)
