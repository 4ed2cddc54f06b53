"""`rg.cond` and `rg.while_loop`: trees, captures, gradients, loops, eager mode, messages."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.errors import DTypeError, ShapeError, TraceError, UnsupportedError

Array = npt.NDArray[Any]
X = np.array([1.0, 2.0, 4.0])
W = np.arange(9.0).reshape(3, 3) / 10


def test_cond_takes_one_branch_outside_of_a_trace_too() -> None:
    assert rg.cond(True, rnp.sum, rnp.max, X) == 7
    assert rg.cond(X[0] > 3, rnp.sum, rnp.max, X) == 4
    assert rg.cond(np.asarray(False), lambda: 1, lambda: 2) == 2


def test_one_program_serves_both_answers(capsys: pytest.CaptureFixture[str]) -> None:
    def then(x: Any) -> Any:
        print("traced")
        return x * 2

    def otherwise(x: Any) -> Any:
        return x

    found = [float(rg.cond(flag, then, otherwise, 3.0)) for flag in (True, False, True)]
    assert found == [6, 3, 6] and capsys.readouterr().out == "traced\n"


def test_trees_settings_and_captures() -> None:
    scale = np.array([2.0, 3.0, 5.0])

    def f(go: Any, state: Any, w: Any) -> Any:
        bias = rnp.tanh(w[0])
        return rg.cond(
            go,
            lambda s, how: {"h": s["h"] @ w + bias, "n": s["n"] + 1},
            lambda s, how: {"h": s["h"] * scale if how == "scaled" else s["h"], "n": s["n"]},
            state,
            "scaled",
        )

    c = rg.compile(f, rg.spec("bool"), {"h": rg.spec("f64", 3), "n": rg.spec("i32")}, W)
    state = {"h": X, "n": np.int32(4)}
    yes, no = c(np.asarray(True), state, W), c(np.asarray(False), state, W)
    np.testing.assert_allclose(yes["h"], X @ W + np.tanh(W[0]))
    np.testing.assert_array_equal(no["h"], X * scale)
    assert (yes["n"], no["n"]) == (5, 4) and yes["n"].dtype == np.int32


@pytest.mark.parametrize("go", (True, False))
def test_plain_numbers_take_the_dtype_of_the_other_branch(go: bool) -> None:
    x = np.asarray(1.5)
    assert rg.cond(go, lambda x: x, lambda x: 0, x).dtype == np.float64
    assert rg.cond(go, lambda: 1, lambda: 2).dtype == np.int32
    assert rg.cond(go, lambda: 1, lambda: 2.5).dtype == np.float32
    with rg.eager():
        found = rg.cond(go, lambda x: x, lambda x: 0, rnp.asarray(x))
        assert found.dtype.name == "f64" and float(found) == (1.5 if go else 0)


def test_gradients_are_those_of_the_branch_taken() -> None:
    def f(x: Any, w: Any) -> Any:
        return rg.cond(
            rnp.sum(x) > 0,
            lambda x: rnp.sum(rnp.log(x) * w[0]),
            lambda x: rnp.sum(rnp.sqrt(-x) @ w),
            x,
        )

    gx, gw = rg.grad(f, argnums=(0, 1))(X, W)
    np.testing.assert_allclose(gx, W[0] / X)
    np.testing.assert_allclose(gw, np.array([np.log(X), 0 * X, 0 * X]))
    gx, gw = rg.grad(f, argnums=(0, 1))(-X, W)
    np.testing.assert_allclose(gx, -0.5 / np.sqrt(X) * W.sum(1))
    np.testing.assert_allclose(gw, np.sqrt(X)[:, None] * np.ones(3))
    assert np.isfinite(rg.grad(f)(-X, W)).all()


@pytest.mark.parametrize("sign", (1, -1))
def test_second_order_and_tangents(sign: int) -> None:
    def f(x: Any) -> Any:
        return rg.cond(rnp.sum(x) > 0, lambda: rnp.sum(x**4), lambda: rnp.sum(rnp.exp(x)))

    x, v = sign * X, np.array([0.3, -1.0, 0.5])
    curve = 12 * x**2 if sign > 0 else np.exp(x)
    hessian = rg.grad(lambda x: rnp.sum(rg.grad(f)(x) * v))
    np.testing.assert_allclose(hessian(x), curve * v)
    value, tangent = rg.jvp(rg.grad(f), (x,), (v,))
    np.testing.assert_allclose(tangent, curve * v)
    np.testing.assert_allclose(value, 4 * x**3 if sign > 0 else np.exp(x))


def reference(xs: Array, h: Array, w: Array) -> tuple[Array, Array]:
    """Of the scan below, with its gradient by differences left to the caller."""
    ys = []
    for x in xs:
        if x.sum() > 0:
            h = np.tanh(h @ w + x)
        else:
            for _ in range(2):
                h = np.sin(h) + x
        ys.append(h)
    return h, np.array(ys)


def scanned(xs: Any, h: Any, w: Any) -> Any:
    def step(h: Any, x: Any) -> Any:
        h = rg.cond(
            rnp.sum(x) > 0,
            lambda: rnp.tanh(h @ w + x),
            lambda: rg.scan(lambda c, _: (rnp.sin(c) + x, None), h, length=2)[0],
        )
        return h, h

    return rg.scan(step, h, xs)


@pytest.mark.parametrize("length", (1, 6))
def test_branches_in_a_scan_and_a_scan_in_a_branch(length: int) -> None:
    rng = np.random.default_rng(3)
    xs, h = rng.standard_normal((length, 3)), rng.standard_normal(3)
    last, ys = rg.jit(scanned)(xs, h, W)
    expected_last, expected = reference(xs, h, W)
    np.testing.assert_allclose(last, expected_last)
    np.testing.assert_allclose(ys, expected)

    def loss(xs: Any, h: Any, w: Any) -> Any:
        return rnp.sum(scanned(xs, h, w)[1] ** 2)

    for i, g in enumerate(rg.grad(loss, argnums=(0, 1, 2))(xs, h, W)):
        args = [xs, h, W]
        d = rng.standard_normal(args[i].shape)

        def moved(t: float, i: int = i, d: Array = d, args: list[Array] = args) -> float:
            given = [x + t * d if k == i else x for k, x in enumerate(args)]
            return float(np.sum(reference(*given)[1] ** 2))

        slope = (moved(1e-6) - moved(-1e-6)) / 2e-6
        np.testing.assert_allclose(np.sum(g * d), slope, rtol=1e-6, atol=1e-8)


def test_a_branch_that_only_prints(capsys: pytest.CaptureFixture[str]) -> None:
    def f(x: Any) -> Any:
        rg.cond(x > 2, lambda: rg.debug.print("large {:.0f}", x), lambda: None)
        return x * x

    assert [float(rg.grad(f)(np.asarray(x))) for x in (1.0, 3.0)] == [2, 6]
    assert capsys.readouterr().out == "large 3\n"


# --- while_loop


def test_while_loop_counts_and_carries_trees() -> None:
    def collatz(n: Any) -> Any:
        def turn(c: Any) -> Any:
            n = c["n"]
            odd = n % 2 == 1
            return {"n": rg.cond(odd, lambda: 3 * n + 1, lambda: n // 2), "turns": c["turns"] + 1}

        return rg.while_loop(lambda c: c["n"] > 1, turn, {"n": n, "turns": 0})

    for n, turns in ((1, 0), (6, 8), (27, 111)):
        found = rg.jit(collatz)(np.asarray(n))
        assert found == {"n": 1, "turns": turns}


def test_while_loop_outside_of_a_trace_and_with_captures() -> None:
    limit = np.asarray(100.0)
    found = rg.while_loop(lambda x: rnp.sum(x) < limit, lambda x: x * 2, X)
    np.testing.assert_array_equal(found, X * 16)
    limit[...] = 20
    np.testing.assert_array_equal(
        rg.while_loop(lambda x: rnp.sum(x) < limit, lambda x: x * 2, X), X * 4
    )


def test_a_carry_that_begins_as_a_number_takes_the_dtype_of_the_body() -> None:
    count, value = rg.while_loop(
        lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] + np.asarray(1.0)), (0, 0)
    )  # fmt: skip
    assert (count.dtype, value.dtype) == (np.int32, np.float64) and value == 3
    with rg.eager():
        count, value = rg.while_loop(
            lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] + rnp.asarray(X)[0]), (0, 0)
        )
        assert (count.dtype.name, value.dtype.name) == ("i32", "f64") and float(value) == 3
        _, value = rg.while_loop(lambda c: c[0] < 0, lambda c: (c[0], rnp.sin(c[1])), (0, 0))
        assert value.dtype.name == "f32" and float(value) == 0


def test_generation_stops_at_its_token() -> None:
    """A loop of unknown length over a buffer of fixed size, in a model's way."""
    table = np.array([3, 2, 0, 1, 0])  # what follows what; 0 ends

    def generate(first: Any) -> Any:
        def turn(c: Any) -> Any:
            i, out = c
            return i + 1, out.at[i + 1].set(rnp.take(rnp.asarray(table), out[i]))

        out = rnp.zeros(6, "i64").at[0].set(first)
        return rg.while_loop(lambda c: (c[1][c[0]] != 0) & (c[0] < 5), turn, (0, out))

    count, out = rg.jit(generate)(np.asarray(3))
    assert count == 3 and out.tolist() == [3, 1, 2, 0, 0, 0]


def test_no_gradient_of_while_loop() -> None:
    def f(x: Any) -> Any:
        return rg.while_loop(lambda c: c < 100, lambda c: c * c, rnp.sum(x))

    with pytest.raises(UnsupportedError, match=r"test_branches.py:\d+: while has .*rg\.scan"):
        rg.grad(f)(X)
    with rg.eager(), pytest.raises(UnsupportedError, match=r"rg\.scan"):
        rg.grad(f)(X)
    found = rg.grad(lambda x: rnp.sum(x) * rg.stop_gradient(f(x)))(X)
    np.testing.assert_array_equal(found, np.full(3, 7.0**4))


# --- eager mode


def test_eager_mode_runs_what_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with rg.eager():
        x = rnp.asarray(X)
        found = rg.cond(rnp.sum(x) > 0, lambda x: (print(f"sum {rnp.sum(x):.0f}"), x)[1],
                        lambda x: print("never"), x)  # fmt: skip
        np.testing.assert_array_equal(found, X)
        n = rg.while_loop(lambda n: n < 3, lambda n: (print("n", n), n + 1)[1], 1)
        assert int(n) == 3
        g = rg.grad(lambda x: rg.cond(x[0] > 0, lambda: rnp.sum(x * x), lambda: x[1]))(x)
        np.testing.assert_array_equal(g, 2 * X)
    assert capsys.readouterr().out == "sum 7\nn 1\nn 2\n"


# --- what does not fit


@pytest.mark.parametrize(
    ("then", "otherwise", "error", "message"),
    [
        (lambda x: {"a": {"b": x}}, lambda x: {"a": {"b": x[:2]}}, ShapeError,
         r"the result a\.b of rg\.cond is f64\[3\] of then and f64\[2\] of otherwise"),
        (lambda x: [x, x], lambda x: [x, x.astype("f32")], DTypeError,
         r"the result 1 of rg\.cond is f64\[3\] of then and f32\[3\] of otherwise.*astype"),
        (lambda x: x, lambda x: (x, x), ShapeError, "branches of rg.cond return other structures"),
        (lambda x: x > 0, lambda x: x, DTypeError, r"the result of rg\.cond is bool\[3\]"),
        (lambda x: 1.5, lambda x: rnp.sum(x).astype("i32"), DTypeError, r"f64\[\] of then and i32"),
        (lambda x: "text", lambda x: x, TraceError, "then returns something that is a str"),
        (None, lambda x: x, TraceError, "a NoneType is no function"),
    ],
)  # fmt: skip
def test_branches_that_disagree(
    then: Any, otherwise: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        rg.trace(lambda x: rg.cond(x[0] > 0, then, otherwise, x), rg.spec("f64", 3))
    assert "test_branches.py" in str(caught.value)


@pytest.mark.parametrize(
    ("condition", "error", "message"),
    [
        (lambda x: x > 0, ShapeError, r"bool\[3\], and one boolean decides.*rnp\.any.*rnp\.where"),
        (lambda x: x[0], DTypeError, r"f64\[\], not a boolean: compare it"),
        (lambda x: 1, DTypeError, "not a boolean"),
        (lambda x: None, TraceError, "the condition of rg.cond is a NoneType"),
    ],
)
def test_conditions_that_are_none(condition: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        rg.trace(lambda x: rg.cond(condition(x), rnp.sin, rnp.cos, x), rg.spec("f64", 3))
    if condition(X) is not None:
        with pytest.raises(error, match=r"not a boolean|one boolean"):
            rg.trace(lambda x: rg.while_loop(condition, rnp.sin, x), rg.spec("f64", 3))


def test_carries_that_drift() -> None:
    init = {"h": X, "n": np.asarray(0, np.int32)}

    def go_on(c: Any) -> Any:
        return c["n"] < 3

    with pytest.raises(ShapeError, match=r"carry\.h enters the body of while_loop as f64\[3\]"):
        rg.while_loop(go_on, lambda c: {**c, "h": c["h"][:2]}, init)
    with pytest.raises(DTypeError, match=r"carry\.n enters the body of while_loop as i32\[\]"):
        rg.while_loop(go_on, lambda c: {**c, "n": c["n"] + c["h"][0]}, init)
    with pytest.raises(ShapeError, match="body of while_loop returns a carry of another structure"):
        rg.while_loop(go_on, lambda c: {"h": c["h"]}, init)
    with pytest.raises(ShapeError, match="needs a carry"):
        rg.while_loop(lambda c: True, lambda c: c, ())


# --- programs


def test_branches_in_a_training_step() -> None:
    """Donated state that only one branch changes, over several steps."""

    def loss(w: Any, x: Any) -> Any:
        scale = rg.cond(x[0] > 0, lambda: rnp.sum((x @ w) ** 2), lambda: rnp.sum(w * w) * 0.5)
        return scale

    w = W.copy()
    step = rg.compile(
        lambda w, x: w - 0.1 * rg.grad(loss)(w, x), rg.spec("f64", 3, 3), rg.spec("f64", 3)
    )
    for x in (X, -X, X):
        expected = w - 0.1 * (2 * np.outer(x, x @ w) if x[0] > 0 else w)
        w = step(w, x)
        np.testing.assert_allclose(w, expected)


@pytest.mark.numpy_schedule
def test_text_and_report_show_the_branches() -> None:
    c = rg.compile(
        lambda x: rg.while_loop(
            lambda c: rnp.sum(c) < 9, lambda c: rg.cond(c[0] > 1, lambda: c * 2, lambda: c + 1), x
        ),
        rg.spec("f64", 3),
    )
    assert "condition=graph" in c.ir().text() and "then=graph" in c.ir().text()
    source = c.source()
    assert "while True:" in source and source.count("rt.truth(") == 2
    np.testing.assert_array_equal(c(np.zeros(3)), [4, 4, 4])
