"""Everything that is legal in the body of a loop: branches, loops, gradients, prints, draws.

Each is held against the same steps in NumPy: values to 1e-12, and gradients by differences of the
NumPy function, to 1e-6, and to 1e-12 against the loop run step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde import nn
from retrograde.errors import UnsupportedError

Array = npt.NDArray[Any]
B, D, STEPS = 2, 3, 6
LENGTHS = 0, 1, STEPS


def draw(*shape: int, seed: int = 0) -> Array:
    return np.asarray(np.random.default_rng([seed, *shape]).normal(size=shape))


W, H = draw(D, D) * 0.6, draw(B, D)


def sequence(steps: int) -> Array:
    return draw(steps, B, D, seed=steps)


# For each: the step in NumPy (w, h, x, t) -> (h, y), and as the body of a loop (w) -> body.
Step = Callable[[Array, Array, Array, int], tuple[Array, Array]]
CASES: dict[str, tuple[Step, Callable[[Any], Callable[[Any, Any], Any]]]] = {}


def case(reference: Step) -> Callable[[Any], Any]:
    def put(make: Any) -> Any:
        CASES[make.__name__] = (reference, make)
        return make

    return put


def _either(w: Array, h: Array, x: Array, t: int) -> tuple[Array, Array]:
    h = np.tanh(h @ w + x) if x.sum() > 0.1 * h.sum() else np.sin(h) + x
    return h, h * h


@case(_either)
def branch(w: Any) -> Any:
    def body(h: Any, x: Any) -> Any:
        h = rg.cond(
            rnp.sum(x) > 0.1 * rnp.sum(h), lambda: rnp.tanh(h @ w + x), lambda: rnp.sin(h) + x
        )
        return h, h * h

    return body


def _loop_in_branch(w: Array, h: Array, x: Array, t: int) -> tuple[Array, Array]:
    if x[0, 0] > 0:
        for row in x:
            h = np.tanh(h @ w + row)
    return h, h.sum(0)


@case(_loop_in_branch)
def loop_in_branch(w: Any) -> Any:
    def body(h: Any, x: Any) -> Any:
        def through(h: Any) -> Any:
            return rg.scan(lambda h, row: (rnp.tanh(h @ w + row), None), h, x)[0]

        h = rg.cond(x[0, 0] > 0, through, lambda h: h, h)
        return h, rnp.sum(h, axis=0)

    return body


def _halved(w: Array, h: Array, x: Array, t: int) -> tuple[Array, Array]:
    n = 1.0
    while n < abs(x).sum():
        n = n * 2
    h = np.tanh(h @ w + x / n)
    return h, h


@case(_halved)
def while_without_gradient(w: Any) -> Any:
    def body(h: Any, x: Any) -> Any:
        size = rg.stop_gradient(rnp.sum(abs(x)))
        n = rg.while_loop(lambda n: n < size, lambda n: n * 2, rnp.ones((), "f64"))
        h = rnp.tanh(h @ w + x / rg.stop_gradient(n))
        return h, h

    return body


def _plain(w: Array, h: Array, x: Array, t: int) -> tuple[Array, Array]:
    h = np.tanh(h @ w + x)
    return h, h * x


@case(_plain)
def own_gradient(w: Any) -> Any:
    """A custom gradient that is the right one, from residuals of its own."""
    act = rg.custom_vjp(
        lambda h, w, x: rnp.tanh(h @ w + x),
        lambda h, w, x: ((y := rnp.tanh(h @ w + x)), (h, w, y)),
        lambda kept, g: (
            (d := g * (1 - kept[2] ** 2)) @ kept[1].T, kept[0].T @ d, d,
        ),
    )  # fmt: skip

    def body(h: Any, x: Any) -> Any:
        h = act(h, w, x)
        return h, h * x

    return body


@case(_plain)
def recomputed(w: Any) -> Any:
    def body(h: Any, x: Any) -> Any:
        h = rg.remat(lambda h, x: rnp.tanh(h @ w + x))(h, x)
        return h, h * x

    return body


@case(_plain)
def jitted(w: Any) -> Any:
    step = rg.jit(lambda h, x, w: rnp.tanh(h @ w + x))

    def body(h: Any, x: Any) -> Any:
        h = step(h, x, w)
        return h, h * x

    return body


def _energy(w: Array, h: Array, x: Array, t: int) -> tuple[Array, Array]:
    """One step down the slope of sum(cos(h @ w) * x)."""
    h = h + 0.3 * (np.sin(h @ w) * x) @ w.T
    return h, h


@case(_energy)
def gradient_inside(w: Any) -> Any:
    def body(h: Any, x: Any) -> Any:
        h = h - 0.3 * rg.grad(lambda h: rnp.sum(rnp.cos(h @ w) * x))(h)
        return h, h

    return body


def _tangent(w: Array, h: Array, x: Array, t: int) -> tuple[Array, Array]:
    y = np.tanh(h @ w)
    return y, (1 - y * y) * (x @ w)


@case(_tangent)
def tangent_inside(w: Any) -> Any:
    return lambda h, x: rg.jvp(lambda h: rnp.tanh(h @ w), (h,), (x,))


def _curvature(w: Array, h: Array, x: Array, t: int) -> tuple[Array, Array]:
    """The Hessian of sum(sin(h @ w)) times x."""
    product = -(np.sin(h @ w) * (x @ w)) @ w.T
    return np.tanh(h + 0.2 * product), product


@case(_curvature)
def hessian_product_inside(w: Any) -> Any:
    def body(h: Any, x: Any) -> Any:
        slope = rg.grad(lambda h: rnp.sum(rnp.sin(h @ w)))
        _, product = rg.jvp(slope, (h,), (x,))
        return rnp.tanh(h + 0.2 * product), product

    return body


@case(_curvature)
def hessian_product_backwards(w: Any) -> Any:
    def body(h: Any, x: Any) -> Any:
        slope = rg.grad(lambda h: rnp.sum(rnp.sin(h @ w)))
        product = rg.grad(lambda h: rnp.sum(slope(h) * x))(h)
        return rnp.tanh(h + 0.2 * product), product

    return body


def looped(step: Step, w: Array, h: Array, xs: Array, reverse: bool) -> tuple[Array, list[Array]]:
    ys: list[Any] = [None] * len(xs)
    order = range(len(xs))
    for t in reversed(order) if reverse else order:
        h, ys[t] = step(w, h, xs[t], t)
    return h, ys


def loss_in_numpy(step: Step, w: Array, h: Array, xs: Array, reverse: bool) -> float:
    h, ys = looped(step, w, h, xs, reverse)
    return float(np.sin(h).sum() + sum(np.cos(2 * y).sum() for y in ys))


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("name", CASES)
def test_a_region_in_a_loop(name: str, reverse: bool) -> None:
    step, make = CASES[name]

    def run(w: Any, h: Any, xs: Any) -> Any:
        return rg.scan(make(w), h, xs, reverse=reverse)

    def loss(w: Any, h: Any, xs: Any) -> Any:
        h, ys = run(w, h, xs)
        return rnp.sum(rnp.sin(h)) + rnp.sum(rnp.cos(2 * ys))

    T = rg.dim("T", min=0)
    specs = rg.spec("f64", D, D), rg.spec("f64", B, D), rg.spec("f64", T, B, D)
    forward = rg.compile(run, *specs)
    gradients = rg.compile(rg.value_and_grad(loss, argnums=(0, 1, 2)), *specs)
    for steps in LENGTHS:
        arguments = W, H, sequence(steps)
        h, ys = looped(step, *arguments, reverse)
        last, found = forward(*arguments)
        np.testing.assert_allclose(last, h, rtol=1e-12, atol=1e-13)
        assert found.shape[0] == steps
        np.testing.assert_allclose(found, np.array(ys).reshape(found.shape), rtol=1e-12, atol=1e-13)
        value, slopes = gradients(*arguments)
        np.testing.assert_allclose(value, loss_in_numpy(step, *arguments, reverse), rtol=1e-12)
        with rg.eager():
            _, twin = rg.value_and_grad(loss, argnums=(0, 1, 2))(*arguments)
            twin = [np.asarray(g) for g in twin]
        for i, (g, truth) in enumerate(zip(slopes, twin, strict=True)):
            np.testing.assert_allclose(g, truth, rtol=1e-12, atol=1e-12)
            toward = draw(*g.shape, seed=9)

            def moved(e: float, i: int = i, toward: Array = toward) -> float:
                given = [x + e * toward if k == i else x for k, x in enumerate(arguments)]  # noqa: B023
                return loss_in_numpy(step, *given, reverse)

            slope = (moved(1e-6) - moved(-1e-6)) / 2e-6
            np.testing.assert_allclose(np.sum(g * toward), slope, rtol=1e-6, atol=1e-8)


# --- what is no derivative


def test_no_gradient_of_while_in_a_loop() -> None:
    def loss(h: Any, xs: Any) -> Any:
        def body(h: Any, x: Any) -> Any:
            h = rg.while_loop(lambda h: rnp.sum(h * h) > 1, lambda h: h * 0.5, h + x)
            return h, None

        return rnp.sum(rg.scan(body, h, xs)[0])

    xs = sequence(STEPS)
    h = H
    for x in xs:
        h = h + x
        while (h * h).sum() > 1:
            h = h * 0.5
    np.testing.assert_allclose(rg.jit(loss)(H, xs), h.sum(), rtol=1e-13)
    for argnums in (0, 1):
        with pytest.raises(UnsupportedError, match=r"test_scan_regions\.py:\d+: while has no der"):
            rg.grad(loss, argnums=argnums)(H, xs)
    with rg.eager(), pytest.raises(UnsupportedError, match=r"test_scan_regions\.py:\d+: while"):
        rg.grad(loss)(H, xs)


# --- prints


def printing(h: Any, xs: Any, reverse: bool = False) -> Any:
    """Shows a value of the carry and one that could leave the loop."""

    def body(h: Any, x: Any) -> Any:
        rg.debug.print("x {:.3f}", rnp.sum(x @ W))
        h = rnp.tanh(h @ W + x)
        rg.debug.print("h {:.3f}", rnp.sum(h))
        return h, rnp.sum(h)

    h, ys = rg.scan(body, h, xs, reverse=reverse)
    rg.debug.print("end {:.3f}", rnp.sum(h))
    return rnp.sum(h) + rnp.sum(ys)


def printed(h: Array, xs: Array, reverse: bool = False) -> str:
    lines = []
    for x in xs[::-1] if reverse else xs:
        lines.append(f"x {(x @ W).sum():.3f}")
        h = np.tanh(h @ W + x)
        lines.append(f"h {h.sum():.3f}")
    return "\n".join([*lines, f"end {h.sum():.3f}\n"])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("steps", LENGTHS)
def test_prints_once_a_step_in_order(
    steps: int, reverse: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    xs = sequence(steps)
    expected = printed(H, xs, reverse)

    def total(h: Any, xs: Any) -> Any:
        return printing(h, xs, reverse)

    def curved(h: Any, xs: Any) -> Any:
        return rnp.sum(rg.grad(total)(h, xs) ** 2)

    T = rg.dim("T", min=0)
    specs = rg.spec("f64", B, D), rg.spec("f64", T, B, D)
    for fn in (total, rg.grad(total), rg.value_and_grad(total, argnums=(0, 1)), rg.grad(curved)):
        compiled = rg.compile(fn, *specs)
        capsys.readouterr()
        compiled(H, xs)
        assert capsys.readouterr().out == expected
        with rg.eager():
            fn(H, xs)
        assert capsys.readouterr().out == expected


def test_a_loop_that_does_nothing_but_print(capsys: pytest.CaptureFixture[str]) -> None:
    def shown(xs: Any) -> Any:
        rg.scan(lambda c, x: (c, rg.debug.print("{}", x)), None, xs)
        rg.scan(lambda c, x: (c, rg.debug.print("{}", c)), xs[0], xs)
        return xs

    rg.jit(shown)(np.arange(3))
    assert capsys.readouterr().out == "0\n1\n2\n" + "0\n" * 3


def test_prints_of_loops_in_loops_and_branches(capsys: pytest.CaptureFixture[str]) -> None:
    def shown(xs: Any) -> Any:
        def inner(c: Any, x: Any) -> Any:
            rg.cond(x > 1, lambda: rg.debug.print("  {:.0f} of {:.0f}", x, c), lambda: None)
            return c + x, None

        def outer(c: Any, row: Any) -> Any:
            rg.debug.print("row {:.0f}", rnp.sum(row))
            return rg.scan(inner, c, row)

        return rg.scan(outer, rnp.zeros((), "f64"), xs)[0]

    xs = np.array([[1.0, 2.0], [3.0, 1.0]])
    wanted = "row 3\n  2 of 1\nrow 4\n  3 of 3\n"
    for fn in (shown, rg.grad(shown)):
        rg.jit(fn)(xs)
        assert capsys.readouterr().out == wanted


# --- draws and dropout


@pytest.mark.parametrize("how", ["carry", "fold", "split"])
def test_draws_differ_from_step_to_step(how: str) -> None:
    key = rg.random.key(3)
    scale, xs = draw(D), np.arange(STEPS, dtype=np.int32)

    def step(key: Any, i: Any, scale: Any) -> tuple[Any, Any]:
        if how == "carry":
            own, key = rg.random.split(key)
        elif how == "fold":
            own = rg.random.fold_in(key, i)
        else:
            own = i
        return key, scale * rg.random.normal(own, (D,), dtype="f64")

    def drawn(key: Any, scale: Any) -> Any:
        given = rg.random.split(key, STEPS) if how == "split" else rnp.asarray(xs)
        return rg.scan(lambda key, i: step(key, i, scale), key, given)[1]

    def unrolled(key: Any, scale: Any) -> Any:
        given = rg.random.split(key, STEPS) if how == "split" else rnp.asarray(xs)
        rows = []
        for t in range(STEPS):
            key, row = step(key, given[t], scale)
            rows.append(row)
        return rnp.stack(rows)

    found, truth = rg.jit(drawn)(key, scale), rg.jit(unrolled)(key, scale)
    np.testing.assert_array_equal(found, truth)
    assert len(np.unique(found)) == STEPS * D
    for loop in (drawn, unrolled):
        slope = rg.grad(lambda scale, loop=loop: rnp.sum(loop(key, scale) ** 2))(scale)
        np.testing.assert_allclose(slope, 2 * (truth**2).sum(0) / scale, rtol=1e-12)


class Dropping(nn.Module):
    """Dropout in the body of a loop that the user wrote."""

    weight: Any
    dropout: nn.Dropout

    def __init__(self) -> None:
        self.weight = W
        self.dropout = nn.Dropout(0.5)

    def __call__(self, xs: Any) -> Any:
        def body(h: Any, x: Any) -> Any:
            h = self.dropout(rnp.tanh(h @ self.weight + x))
            return h, h

        return rg.scan(body, rnp.zeros((B, D), "f64"), xs)


def test_dropout_in_a_loop() -> None:
    """One mask for all steps: the layer is called in one place; eager mode draws the same."""
    model, xs = Dropping(), sequence(STEPS)

    def loss(model: Any, xs: Any, key: Any) -> Any:
        with nn.context.dropout_keys(key):
            last, ys = model(xs)
        return rnp.sum(last) + rnp.sum(ys * ys), ys

    step = rg.value_and_grad(loss, has_aux=True)
    key = rg.random.key(5)
    (value, ys), slope = rg.jit(step)(model, xs, key)
    mask = ys[0] != 0
    assert 0 < mask.sum() < mask.size
    h, total = np.zeros((B, D)), 0.0
    for x, y in zip(xs, ys, strict=True):
        h = np.where(mask, np.tanh(h @ W + x) * 2, 0)
        np.testing.assert_allclose(y, h, rtol=1e-13)
        total += (h * h).sum()
    np.testing.assert_allclose(value, total + h.sum(), rtol=1e-13)
    with rg.eager():
        (twin, rows), truth = step(model, xs, key)
        np.testing.assert_allclose(np.asarray(rows), ys, rtol=1e-13)
        np.testing.assert_allclose(float(twin), value, rtol=1e-13)
        np.testing.assert_allclose(slope.weight, np.asarray(truth.weight), rtol=1e-12)
    with_another = rg.jit(step)(model, xs, rg.random.key(6))[0][1]
    assert not np.array_equal(with_another != 0, ys != 0)


def test_dropout_in_a_while_loop_is_the_same_step_by_step() -> None:
    dropout, key = nn.Dropout(0.5), rg.random.key(7)

    def thinned(x: Any, key: Any) -> Any:
        def turn(c: Any) -> Any:
            n, x = c
            return n + 1, dropout(x)

        with nn.context.dropout_keys(key):
            return rg.while_loop(lambda c: c[0] < 3, turn, (0, x))[1]

    x = np.ones((B, 40))
    found = rg.jit(thinned)(x, key)
    assert set(np.unique(found)) == {0, 8}
    with rg.eager():
        np.testing.assert_array_equal(np.asarray(thinned(x, key)), found)


# --- recomputation


def test_remat_in_a_body_keeps_nothing_of_it() -> None:
    """Of `tanh(tanh(h @ w) * x)` the plain loop stacks what backward reads, the other the carry."""

    def kept(wrap: Any) -> int:
        def loss(w: Any, h: Any, xs: Any) -> Any:
            step = wrap(lambda h, x: rnp.tanh(rnp.tanh(h @ w) * x))
            return rnp.sum(rg.scan(lambda h, x: (step(h, x), None), h, xs)[0])

        specs = rg.spec("f64", D, D), rg.spec("f64", B, D), rg.spec("f64", "T", B, D)
        graph = rg.trace(rg.grad(loss), *specs)
        forward = next(n for n in graph.nodes if n.op.name == "scan")
        return len(forward.outputs) - 1

    assert kept(rg.remat) == 1 < kept(lambda f: f)
