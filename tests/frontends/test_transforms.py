"""Transforms compose: gradients of gradients, through scans, remat and custom gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

import retrograde as rg
import retrograde.numpy as rnp
from retrograde import tree
from retrograde.errors import DTypeError, ShapeError, TraceError, UnsupportedError

Array = npt.NDArray[Any]
RNG = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape)


def slope(f: Callable[[Array], Any], x: Array, direction: Array, eps: float = 1e-5) -> float:
    """The derivative of a scalar function along a direction, by differences."""
    return float((f(x + eps * direction) - f(x - eps * direction)) / (2 * eps))


def check(f: Callable[[Any], Any], x: Array, tolerance: float = 1e-7) -> None:
    """The gradient of `f`, and that of its gradient, against differences."""
    d, e = normal(*x.shape), normal(*x.shape)
    g = rg.grad(f)(x)
    assert g.shape == x.shape and g.dtype == x.dtype
    expected = slope(rg.jit(f), x, d)
    np.testing.assert_allclose(np.sum(g * d), expected, rtol=tolerance, atol=1e-9)
    along = lambda x: rnp.sum(rg.grad(f)(x) * e)  # noqa: E731
    np.testing.assert_allclose(
        np.sum(rg.grad(along)(x) * d), slope(rg.jit(along), x, d), rtol=tolerance * 10, atol=1e-8
    )


# --- grad and value_and_grad


def test_gradient_and_value() -> None:
    w, x = normal(3, 4), normal(5, 3)
    value, g = rg.value_and_grad(lambda w, x: rnp.sum(rnp.tanh(x @ w)))(w, x)
    np.testing.assert_allclose(value, np.sum(np.tanh(x @ w)))
    np.testing.assert_allclose(g, x.T @ (1 - np.tanh(x @ w) ** 2))


def test_argnums() -> None:
    def f(a: Any, b: Any, c: Any) -> Any:
        return rnp.sum(a * b["p"] * c)

    a, b, c = normal(3), {"p": normal(3)}, normal(3)
    np.testing.assert_allclose(rg.grad(f, argnums=2)(a, b, c), a * b["p"])
    np.testing.assert_allclose(rg.grad(f, argnums=-1)(a, b, c), a * b["p"])
    ga, gb = rg.grad(f, argnums=(0, 1))(a, b, c)
    np.testing.assert_allclose(ga, b["p"] * c)
    np.testing.assert_allclose(gb["p"], a * c)
    with pytest.raises(TraceError, match=r"test_transforms\.py.*argnums 3.*f is called with 3"):
        rg.grad(f, argnums=3)(a, b, c)


def test_has_aux() -> None:
    def f(x: Any) -> Any:
        return rnp.sum(x**3), {"twice": 2 * x, "n": x.shape[0]}

    x = normal(4)
    g, aux = rg.grad(f, has_aux=True)(x)
    (value, aux2), g2 = rg.value_and_grad(f, has_aux=True)(x)
    np.testing.assert_allclose(g, 3 * x**2)
    np.testing.assert_array_equal(g, g2)
    np.testing.assert_allclose(value, np.sum(x**3))
    np.testing.assert_array_equal(aux["twice"], 2 * x)
    assert int(aux2["n"]) == 4
    with pytest.raises(TraceError, match=r"test_transforms\.py.*pair"):
        rg.grad(lambda x: rnp.sum(x), has_aux=True)(x)


def test_unused_inputs_have_zero_gradients() -> None:
    a, b = rg.grad(lambda a, b: rnp.sum(a), argnums=(0, 1))(normal(2, 3), normal(4))
    np.testing.assert_array_equal(a, np.ones((2, 3)))
    np.testing.assert_array_equal(b, np.zeros(4))
    np.testing.assert_array_equal(rg.grad(lambda a: 3.0)(normal(5)), np.zeros(5))


def test_python_numbers_are_differentiated_by() -> None:
    assert float(rg.grad(lambda x: x**3)(2.0)) == 12
    assert float(rg.grad(rg.grad(lambda x: x**3))(2.0)) == 12
    assert rg.grad(lambda x: x * 2)(1.0).dtype == np.float32
    x = normal(3).astype(np.float32)
    assert rg.grad(lambda s: rnp.sum(s * x))(2.0).dtype == np.float32


def test_gradients_keep_dtypes() -> None:
    for dtype in (np.float16, np.float32, np.float64):
        x = normal(3).astype(dtype)
        assert rg.grad(lambda x: rnp.sum(x * np.float64(2)))(x).dtype == dtype


@pytest.mark.parametrize(
    "f",
    [
        lambda x: rnp.sum(rnp.sin(x) * x),
        lambda x: rnp.sum(rnp.exp(-x * x) @ x.T),
        lambda x: rnp.sum(x[0] * x[-1]) + rnp.sum(x[[0, 0, 2]] ** 3),
        lambda x: rnp.sum(rg.remat(lambda y: rnp.tanh(rnp.sin(y)))(x) ** 2),
        lambda x: rnp.sum(rg.scan(lambda c, r: (rnp.tanh(c * r + c), c), x[0], x)[1] ** 2),
        lambda x: rg.vjp(lambda y: rnp.sum(y**3), x)[1](1.0)[0].sum(),
        lambda x: rnp.sum(rg.grad(lambda y: rnp.sum(rnp.sin(y * y)))(x) * x),
        lambda x: rg.jvp(lambda y: rnp.sum(y**3), (x,), (x * x,))[1],
        lambda x: rnp.sum(rg.jit(lambda y: y * y * y)(x)),
    ],
)  # fmt: skip
def test_composition(f: Callable[[Any], Any]) -> None:
    check(f, normal(3, 4))


def test_third_order() -> None:
    f = rg.grad(rg.grad(rg.grad(lambda x: rnp.exp(2 * x))))
    np.testing.assert_allclose(f(np.float64(0.3)), 8 * np.exp(0.6), rtol=1e-6)
    np.testing.assert_allclose(f(np.array(0.3)), 8 * np.exp(0.6), rtol=1e-12)


def test_gradient_errors_name_line_and_leaf() -> None:
    with pytest.raises(DTypeError, match=r"test_transforms\.py:\d+.*p\.ids of f.*i64\[3\]"):

        def f(p: Any) -> Any:
            return rnp.sum(p["w"])

        rg.grad(f)({"w": normal(2), "ids": np.arange(3)})
    with pytest.raises(ShapeError, match=r"test_transforms\.py.*f64\[3\].*mean or sum"):
        rg.grad(lambda x: x * 2)(normal(3))
    with pytest.raises(ShapeError, match=r"test_transforms\.py.*2 arrays.*has_aux"):
        rg.grad(lambda x: (rnp.sum(x), x))(normal(3))
    with pytest.raises(DTypeError, match=r"test_transforms\.py.*i32.*float"):
        rg.grad(lambda x: rnp.argmax(x))(normal(3))


# --- vjp and jvp


def test_vjp_on_arrays() -> None:
    w, x = normal(3, 4), normal(5, 3)
    out, pull = rg.vjp(lambda w, x: {"y": rnp.tanh(x @ w), "n": x.shape[0]}, w, x)
    g = normal(5, 4)
    dw, dx = pull({"y": g, "n": None})
    s = g * (1 - np.tanh(x @ w) ** 2)
    np.testing.assert_allclose(out["y"], np.tanh(x @ w))
    np.testing.assert_allclose(dw, x.T @ s)
    np.testing.assert_allclose(dx, s @ w.T)
    again, _ = pull({"y": 2 * g, "n": None})
    np.testing.assert_allclose(again, 2 * dw)


def test_vjp_keeps_what_it_saw() -> None:
    x = normal(4)
    _, pull = rg.vjp(lambda x: rnp.sum(x**3), x)
    kept = 3 * x**2
    x[:] = 0
    np.testing.assert_allclose(pull(1.0)[0], kept)


def test_vjp_of_integer_leaves_is_none() -> None:
    _, pull = rg.vjp(lambda x, i: x[i], normal(5), np.array([1, 1, 3]))
    dx, di = pull(np.array([1.0, 2.0, 4.0]))
    np.testing.assert_array_equal(dx, [0, 3, 0, 4, 0])
    assert di is None


def test_vjp_at_many_sizes() -> None:
    f = lambda x: rnp.sum(x, axis=0)  # noqa: E731  # the pullback reads no value of x, only its size
    for n in (3, 5, 7):
        _, pull = rg.vjp(f, normal(n, 2))
        np.testing.assert_array_equal(pull(np.array([1.0, 2.0]))[0], np.tile([1.0, 2.0], (n, 1)))
    _, pull = rg.vjp(lambda x: (x * x, rnp.sum(x)), x := normal(9, 2))
    np.testing.assert_allclose(pull((None, 3.0))[0], np.full((9, 2), 3.0))
    np.testing.assert_allclose(pull((np.ones((9, 2)), None))[0], 2 * x)


def test_pullback_refuses_what_does_not_fit() -> None:
    out, pull = rg.vjp(lambda x: (x, 2 * x), normal(3))
    with pytest.raises(ShapeError, match=r"test_transforms\.py.*structure"):
        pull(out[0])
    with pytest.raises(ShapeError):
        pull((normal(3), normal(4)))


@given(st.integers(1, 4), st.integers(1, 5))
def test_jvp_agrees_with_vjp(n: int, m: int) -> None:
    x, dx, g = normal(n, 3), normal(n, 3), normal(n, m)
    w, dw = normal(3, m), normal(3, m)

    def f(x: Any, w: Any) -> Any:
        return rnp.sin(x @ w) + rnp.sum(x)

    _, tangent = rg.jvp(f, (x, w), (dx, dw))
    _, pull = rg.vjp(f, x, w)
    cx, cw = pull(g)
    np.testing.assert_allclose(np.sum(tangent * g), np.sum(cx * dx) + np.sum(cw * dw), rtol=1e-9)


def test_jvp_of_integers_and_mismatch() -> None:
    out, tangent = rg.jvp(lambda x, i: (x[i], i), (normal(4), np.array([2])), (np.ones(4), None))
    assert out[1][0] == 2 and tangent[0][0] == 1 and tangent[1][0] == 0
    with pytest.raises(ShapeError, match=r"test_transforms\.py.*tangent of x is f64\[3\]"):
        rg.jvp(lambda x: x, (normal(4),), (normal(3),))


# --- stop_gradient, custom_vjp, remat


def test_stop_gradient() -> None:
    x = normal(3)
    np.testing.assert_allclose(rg.grad(lambda x: rnp.sum(rg.stop_gradient(x) * x))(x), x)
    nested = rg.grad(lambda t: rnp.sum(rg.stop_gradient(t)["a"] ** 2 + t["a"]))({"a": x})
    np.testing.assert_array_equal(nested["a"], np.ones(3))
    np.testing.assert_array_equal(rg.jit(rg.stop_gradient)(x), x)


def clipped(limit: float) -> Callable[[Any], Any]:
    return rg.custom_vjp(
        lambda x: x * 1.0,
        lambda x: (x * 1.0, ()),
        lambda _, g: (rnp.clip(g, -limit, limit),),
    )


def test_custom_gradient() -> None:
    x = normal(3)
    f = clipped(0.5)
    np.testing.assert_array_equal(f(x), x)
    np.testing.assert_allclose(rg.grad(lambda x: rnp.sum(f(x) * 3))(x), np.full(3, 0.5))
    np.testing.assert_allclose(rg.grad(lambda x: rnp.sum(f(x) * 0.1))(x), np.full(3, 0.1))


def test_custom_gradient_of_trees_and_settings() -> None:
    calls: list[str] = []

    def f(p: Any, x: Any, power: int) -> Any:
        return {"y": p["w"] * x**power}

    def forward(p: Any, x: Any, power: int) -> Any:
        calls.append("forward")
        return f(p, x, power), (x, power)

    def backward(kept: Any, g: Any) -> Any:
        x, power = kept
        return {"w": g["y"] * x**power}, None, None

    g = rg.custom_vjp(f, forward, backward)
    p, x = {"w": normal(3), "unused": normal(2)}, normal(3)
    dp, dx = rg.grad(lambda p, x: rnp.sum(g(p, x, 3)["y"]), argnums=(0, 1))(p, x)
    np.testing.assert_allclose(dp["w"], x**3)
    np.testing.assert_array_equal(dp["unused"], np.zeros(2))
    np.testing.assert_array_equal(dx, np.zeros(3))
    assert calls


def test_custom_gradient_uses_arrays_from_outside() -> None:
    scale = normal(3)
    f = rg.custom_vjp(
        lambda x: x * scale, lambda x: (x * scale, scale), lambda s, g: (g * s * 10 + scale,)
    )
    x = normal(3)
    np.testing.assert_allclose(rg.grad(lambda x: rnp.sum(f(x)))(x), scale * 11)
    scale[:] = 1
    np.testing.assert_allclose(rg.grad(lambda x: rnp.sum(f(x)))(x), np.full(3, 11.0))


def test_custom_gradient_does_not_lose_gradients() -> None:
    def loss(w: Any, x: Any) -> Any:
        f = rg.custom_vjp(lambda x: x * w, lambda x: (x * w, None), lambda _, g: (g,))
        return rnp.sum(f(x))

    with pytest.raises(UnsupportedError, match=r"test_transforms\.py.*pass it as an argument"):
        rg.grad(loss)(normal(3), normal(3))


def test_custom_gradient_is_checked() -> None:
    def bad(x: Any) -> Any:
        f = rg.custom_vjp(lambda x: x, lambda x: (x, ()), lambda _, g: (g[:1],))
        return rnp.sum(f(x))

    with pytest.raises(ShapeError, match=r"f64\[1\] as the cotangent of x, which is f64\[3\]"):
        rg.grad(bad)(normal(3))
    f = rg.custom_vjp(lambda x: x, lambda x: (x[:1], ()), lambda _, g: (g,))
    with pytest.raises(ShapeError, match="its forward"):
        f(normal(3))
    two = rg.custom_vjp(lambda x, y: x * y, lambda x, y: (x * y, ()), lambda _, g: g)
    with pytest.raises(ShapeError, match="1 cotangents for 2 arguments"):
        two(normal(3), normal(3))


def test_remat_keeps_bits_and_masks() -> None:
    key = rg.random.key(3)

    def block(x: Any, key: Any) -> Any:
        kept = rg.random.bernoulli(key, 0.5, x.shape)
        return rnp.where(kept, rnp.tanh(x) * 2, 0.0)

    def loss(f: Any) -> Any:
        return lambda x, key: rnp.sum(f(f(x, key), rg.random.fold_in(key, 1)) ** 2)

    x = normal(5, 7)
    plain = rg.value_and_grad(loss(block))(x, key)
    again = rg.value_and_grad(loss(rg.remat(block)))(x, key)
    np.testing.assert_array_equal(plain[0], again[0])
    np.testing.assert_array_equal(plain[1], again[1])
    assert 0 < np.mean(plain[1] == 0) < 1


def test_remat_recomputes() -> None:
    def f(x: Any) -> Any:
        return rnp.sum(rg.remat(lambda y: rnp.exp(rnp.sin(y)))(x))

    c = rg.compile(lambda x: rg.value_and_grad(f)(x), rg.spec("f64", 4))
    for stage in ("expand", "clean"):  # merging equal nodes must not undo it
        roles = [n.origin.role for n in c.ir(stage).nodes if n.op.name == "sin"]
        assert sorted(roles) == ["primal", "recompute"]


# --- scan


def test_scan_sums_and_stacks() -> None:
    xs = normal(6, 3)
    last, ys = rg.scan(lambda c, x: (c + x, c * 2), np.zeros(3), xs)
    np.testing.assert_allclose(last, xs.sum(0))
    np.testing.assert_allclose(ys[1:], 2 * np.cumsum(xs, 0)[:-1])
    back, ys = rg.scan(lambda c, x: (c + x, c * 2), np.zeros(3), xs, reverse=True)
    np.testing.assert_allclose(ys[:-1], 2 * np.cumsum(xs[::-1], 0)[::-1][1:])
    np.testing.assert_allclose(back, xs.sum(0))


def test_scan_of_trees_settings_and_numbers() -> None:
    last, ys = rg.scan(
        lambda c, x: ({"n": c["n"] + 1, "s": c["s"] + x["a"]}, (x["b"], None)),
        {"n": 0, "s": 0.0},
        {"a": normal(4).astype(np.float32), "b": np.arange(8).reshape(4, 2)},
    )
    assert last["n"] == 4 and last["n"].dtype == np.int32 and last["s"].dtype == np.float32
    np.testing.assert_array_equal(ys[0], np.arange(8).reshape(4, 2))
    count, evens = rg.scan(lambda c, _: (c + 2, c), 0, length=5)
    assert count == 10 and evens.tolist() == [0, 2, 4, 6, 8]


def test_a_plain_number_takes_the_dtype_of_the_carry() -> None:
    last, _ = rg.scan(lambda c, x: (c + x, None), 0.0, normal(4))
    assert last.dtype == np.float64
    last, _ = rg.scan(lambda c, x: (c + x, None), 0, normal(4).astype(np.float32))
    assert last.dtype == np.float32


@pytest.mark.parametrize("n", [0, 1, 5])
def test_scan_of_any_length_agrees_with_a_loop(n: int) -> None:
    w, h, xs = normal(3, 3), normal(3), normal(n, 3)

    def scanned(w: Any, h: Any, xs: Any) -> Any:
        last, ys = rg.scan(lambda c, x: ((d := rnp.tanh(c @ w + x)), d * x), h, xs)
        return rnp.sum(last) + rnp.sum(ys**2)

    def looped(w: Any, h: Any, xs: Any) -> Any:
        total = 0.0
        for t in range(n):
            h = rnp.tanh(h @ w + xs[t])
            total = total + rnp.sum((h * xs[t]) ** 2)
        return rnp.sum(h) + total

    a = rg.value_and_grad(scanned, argnums=(0, 1, 2))(w, h, xs)
    b = rg.value_and_grad(looped, argnums=(0, 1, 2))(w, h, xs)
    tree.map(lambda p, q: np.testing.assert_allclose(p, q, rtol=1e-10), a, b)


def test_scan_length_is_symbolic() -> None:
    c = rg.compile(
        lambda xs: rg.scan(lambda c, x: (c + x, c), rnp.zeros(2), xs),
        rg.spec("f32", rg.dim("T", min=0), 2),
    )
    assert len([n for n in c.ir().nodes if n.op.name == "scan"]) == 1
    for n in (0, 1, 9):
        xs = normal(n, 2).astype(np.float32)
        last, ys = c(xs)
        np.testing.assert_allclose(last, xs.sum(0, dtype=np.float32), rtol=1e-5, atol=1e-6)
        assert ys.shape == (n, 2)


def test_a_carry_that_drifts_is_named() -> None:
    init = {"h": np.zeros(3, np.float32), "n": np.zeros((), np.int32)}
    xs = normal(4, 3).astype(np.float32)
    with pytest.raises(ShapeError, match=r"test_transforms\.py.*carry\.h .*f32\[3\].*f32\[4,?3?\]"):
        rg.scan(lambda c, x: ({**c, "h": rnp.concatenate([c["h"], x[:1]])}, x), init, xs)
    with pytest.raises(DTypeError, match=r"carry\.n enters .*i32.*leaves it as f32"):
        rg.scan(lambda c, x: ({**c, "n": c["n"] + x[0]}, x), init, xs)
    with pytest.raises(ShapeError, match=r"missing 'n'"):
        rg.scan(lambda c, x: ({"h": c["h"]}, x), init, xs)
    with pytest.raises(TraceError, match=r"\(carry, y\)"):
        rg.scan(lambda c, x: c, init, xs)
    with pytest.raises(ShapeError, match=r"xs\.b has 5 steps.*xs\.a 4"):
        rg.scan(lambda c, x: (c, x), 0.0, {"a": normal(4), "b": normal(5)})
    with pytest.raises(TraceError, match="length="):
        rg.scan(lambda c, x: (c, c), 0.0)


# --- tracing, eager mode, printing


def test_trace_names_inputs_and_outputs() -> None:
    def f(tokens: Any, p: Any) -> Any:
        return {"loss": rnp.sum(p["w"]) * 2.0, "n": tokens.shape[0], "y": 3}

    graph = rg.trace(f, rg.spec("i32", "B", "T"), {"w": normal(2, 3)})
    assert graph.input_names == ("tokens", "p.w")
    assert graph.output_names == ("loss", "n", "y")
    assert [str(v.type) for v in graph.outputs] == ["f64[]", "i32[]", "i32[]"]
    assert rg.trace(lambda x: (x, x), rg.spec("f32", 2)).output_names == ("out.0", "out.1")


def test_sizes_of_one_name_are_one() -> None:
    t = rg.dim("T", min=4, max=64)
    graph = rg.trace(lambda x, y: x + y, rg.spec("f32", "B", "T"), rg.spec("f32", "B", t))
    (symbol,) = (s for s in graph.symbols().values() if s.name == "T")
    assert (symbol.min, symbol.max) == (4, 64)
    with pytest.raises(ShapeError, match="T must be at least 9 by one spec and at most 3"):
        rg.trace(
            lambda x, y: x,
            rg.spec("f32", rg.dim("T", min=9)),
            rg.spec("f32", rg.dim("T", min=1, max=3)),
        )


def test_what_escapes_is_refused() -> None:
    kept: list[Any] = []
    rg.jit(lambda x: kept.append(x) or x)(normal(3))
    with pytest.raises(TraceError, match=r"test_transforms\.py"):
        rg.jit(lambda x: x + kept[0])(normal(3))
    with pytest.raises(TraceError, match="str"):
        rg.jit(lambda x: "name")(normal(3))
    with pytest.raises(TraceError):
        rg.jit(lambda x: x)(kept[0])


def test_eager_shows_numbers() -> None:
    seen: list[str] = []

    def f(x: Any) -> Any:
        y = x * 2
        seen.append(str(y))
        if y[0] > 0:  # needs the number
            return rnp.sum(y)
        return rnp.sum(-y)

    x = np.array([1.5, -2.0])
    with rg.eager():
        value, g = rg.value_and_grad(f)(x)
        assert float(value) == -1 and f"{value:.1f}" == "-1.0"
        np.testing.assert_array_equal(np.asarray(g), [2, 2])
        assert "[ 3. -4.]" in seen[0]
        last, ys = rg.scan(lambda c, x: (c + x, c), 0.0, x)
        assert last.item() == -0.5 and ys.tolist() == [0, 1.5]
        assert rg.grad(rg.grad(lambda x: x**3))(2.0).item() == 12
    np.testing.assert_array_equal(np.asarray(rnp.asarray(g.numpy()) + 1), [3, 3])
    with pytest.raises(TraceError):
        rg.jit(f)(x)


def test_eager_agrees_with_compiled() -> None:
    w, xs = normal(3, 3), normal(5, 3)

    def f(w: Any, xs: Any) -> Any:
        body = rg.remat(lambda c, x: rnp.tanh(c @ w + x))
        last, ys = rg.scan(lambda c, x: (body(c, x), c), xs[0], xs)
        return rnp.sum(last * last) + rnp.sum(ys)

    compiled = rg.value_and_grad(f)(w, xs)
    with rg.eager():
        eager = rg.value_and_grad(f)(w, xs)
    np.testing.assert_allclose(np.asarray(eager[0]), compiled[0], rtol=1e-12)
    np.testing.assert_allclose(np.asarray(eager[1]), compiled[1], rtol=1e-10)


def test_debug_print(capsys: pytest.CaptureFixture[str]) -> None:
    def f(x: Any) -> Any:
        rg.debug.print("x {}", x)

        def inner(y: Any) -> Any:
            rg.debug.print("sum {:.2f}", rnp.sum(y))
            return rnp.sum(y * y)

        return rg.remat(inner)(x)

    g = rg.jit(rg.value_and_grad(f))
    capsys.readouterr()
    g(np.array([1.0, 2.0]))
    assert capsys.readouterr().out == "x [1. 2.]\nsum 3.00\n"
    g(np.array([3.0, 4.0]))
    assert capsys.readouterr().out == "x [3. 4.]\nsum 7.00\n"
    with rg.eager():
        rg.value_and_grad(f)(np.array([5.0, 6.0]))
    assert capsys.readouterr().out == "x [5. 6.]\nsum 11.00\n"
    rg.scan(lambda c, x: (rg.debug.print("c {}", c), (c + x, None))[1], 0.0, np.array([1.0, 2.0]))
    assert capsys.readouterr().out == "c 0.0\nc 1.0\n"
    with pytest.raises(UnsupportedError, match=r"test_transforms\.py"):
        rg.jit(lambda x: (rg.debug.print("{} {}", x), x)[1])(np.ones(2))


@pytest.mark.parametrize("number", [3.0, np.float32(3.0), np.array(3.0, "f4"), np.array(3.0)])
def test_a_tangent_has_the_type_of_its_value(number: Any) -> None:
    value, tangent = rg.jvp(lambda x: x * x, (number,), (number / 3,))
    assert (value, tangent) == (9.0, 6.0)
    assert value.dtype == tangent.dtype
