"""The origin of a NaN is found: the op, its line, the steps of the loops, or the input."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.compiler.errors import TraceError
from retrograde.diagnose import NonFinite, first_nonfinite

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(8)
T, B = 12, 3


def steps(*shape: int) -> Array:
    """Positive numbers, other ones at each step."""
    return RNG.uniform(0.5, 1.5, shape).astype("f4")


def marked(fn: Callable[..., Any], mark: str = "HERE") -> str:
    """file:line of the line of `fn` that is marked."""
    lines, first = inspect.getsourcelines(fn)
    (at,) = [i for i, line in enumerate(lines) if f"# {mark}" in line]
    return f"test_nonfinite.py:{first + at}"


def logs(h: Any, x: Any) -> Any:
    h = 0.5 * h
    y = rnp.log(x)  # HERE
    return h + y, h


def planted(at: int) -> Array:
    xs = steps(T, B)
    xs[at, 1] = -2.0
    return xs


@pytest.mark.parametrize("reverse", [False, True])
def test_in_a_loop(reverse: bool) -> None:
    def fn(xs: Any) -> Any:
        return rg.scan(logs, rnp.zeros(B), xs, reverse=reverse)  # LOOP

    found = first_nonfinite(fn, planted(7))
    assert found is not None
    assert (found.kind, found.op, found.line) == ("NaN", "log", marked(logs))
    assert found.steps == (7,)
    assert found.loops == (marked(fn, "LOOP"),)
    assert found.role == "primal" and found.input is None
    assert (found.result.type, found.result.size, found.result.nans) == (f"f32[{B}]", B, 1)
    (operand,) = found.operands
    assert operand.low == -2.0 and 0.5 <= (operand.high or 0) <= 1.5 and not operand.nans
    text = str(found)
    assert f"made by log, in {marked(logs)}" in text
    assert f"at step t=7 of {marked(fn, 'LOOP')}" in text
    assert "1 of 3 NaN" in text


def test_all_is_finite() -> None:
    def fn(xs: Any) -> Any:
        return rg.scan(logs, rnp.zeros(B), xs)

    assert first_nonfinite(fn, steps(T, B)) is None
    assert first_nonfinite(fn, steps(0, B)) is None
    assert first_nonfinite(lambda xs: rnp.sum(fn(xs)[1]), steps(T, B), gradients=True) is None


def test_the_first_of_several() -> None:
    def fn(xs: Any) -> Any:
        return rg.scan(logs, rnp.zeros(B), xs)

    xs = planted(9)
    xs[4, 0] = -1.0
    found = first_nonfinite(fn, xs)
    assert found is not None and found.steps == (4,)
    found = first_nonfinite(lambda xs: rg.scan(logs, rnp.zeros(B), xs, reverse=True), xs)
    assert found is not None and found.steps == (9,)


def test_in_a_loop_in_a_loop() -> None:
    def fn(xs: Any) -> Any:
        def outer(h: Any, part: Any) -> Any:
            h, ys = rg.scan(logs, h, part, reverse=True)  # INNER
            return h * 0.5, rnp.sum(ys)

        return rg.scan(outer, rnp.zeros(B), xs)  # OUTER

    xs = steps(4, T, B)
    xs[2, 5, 0] = -1.0
    found = first_nonfinite(fn, xs)
    assert found is not None
    assert (found.line, found.steps) == (marked(logs), (2, 5))
    assert found.loops == (marked(fn, "OUTER"), marked(fn, "INNER"))


@pytest.mark.parametrize("wrap", [rg.jit, rg.remat])
def test_in_an_inner_function(wrap: Callable[..., Any]) -> None:
    @wrap
    def inner(xs: Any) -> Any:
        return rg.scan(logs, rnp.zeros(B), xs)[1]

    found = first_nonfinite(lambda xs: rnp.sum(inner(xs)), planted(3), gradients=True)
    assert found is not None
    assert (found.line, found.steps, found.role) == (marked(logs), (3,), "primal")
    assert found.reaches[0] == "the value"


def test_in_a_branch_of_a_loop() -> None:
    def body(h: Any, x: Any) -> Any:
        h = rg.cond(
            rnp.sum(x) > 0,
            lambda: h + x,
            lambda: h + rnp.sqrt(x),  # HERE
        )
        return h, rnp.sum(h)

    xs = steps(T, B)
    xs[6] = -xs[6]
    found = first_nonfinite(lambda xs: rg.scan(body, rnp.zeros(B), xs), xs)
    assert found is not None
    assert (found.op, found.line, found.steps) == ("sqrt", marked(body), (6,))


def test_in_a_loop_of_unknown_length() -> None:
    def halved(carry: Any) -> Any:
        n, x = carry
        x = x - 1.0
        return n + 1, x + 0.0 * rnp.sqrt(x)  # HERE

    def fn(x: Any) -> Any:
        return rg.while_loop(lambda c: c[0] < 9, halved, (0, x))

    found = first_nonfinite(fn, np.array([9.5, 3.5], "f4"))
    assert found is not None
    assert (found.op, found.line, found.steps) == ("sqrt", marked(halved), (3,))


def test_in_the_gradient_alone() -> None:
    def body(h: Any, x: Any) -> Any:
        h = h + rnp.sqrt(x)  # HERE
        return h, None

    def loss(xs: Any) -> Any:
        return rnp.sum(rg.scan(body, rnp.zeros(B), xs * xs)[0] * 0.0)

    xs = steps(T, B)
    xs[5, 2] = 0.0
    assert first_nonfinite(loss, xs) is None
    found = first_nonfinite(loss, xs, gradients=True)
    assert found is not None
    assert (found.role, found.line, found.steps) == ("cotangent", marked(body), (5,))
    assert found.reaches == ("the gradient by xs",)
    assert f"in the gradient of {marked(body)}" in str(found)


def test_an_input_is_named() -> None:
    cell = rg.nn.GRU(2, 4, seed=0)

    def loss(model: Any, batch: Any) -> Any:
        return rg.Mean(rnp.sum(model["cell"](batch["x"])[0]), batch["x"].size)

    x = RNG.normal(size=(B, T, 2)).astype("f4")
    model = {"cell": rg.tree.map(np.copy, cell)}
    assert first_nonfinite(loss, model, {"x": x}, gradients=True) is None
    x[1, 4] = np.nan
    found = first_nonfinite(loss, model, {"x": x})
    assert found is not None
    assert found.input == "batch.x" and found.op == "" and found.steps == ()
    assert "NaN in the input batch.x" in str(found) and "2 of 72 NaN" in str(found)
    model["cell"].forward[0].cell.bias[1] = np.nan
    found = first_nonfinite(loss, model, {"x": x})
    assert found is not None
    assert found.input == "model.cell.forward.0.cell.bias" and found.others == 1


CAPTURED = steps(B)


def test_an_array_from_outside_is_named() -> None:
    CAPTURED[1] = np.nan
    try:
        found = first_nonfinite(lambda x: x * CAPTURED, steps(B))
    finally:
        CAPTURED[1] = 1.0
    assert found is not None and found.input is not None and "array" in found.input


def test_padding_that_is_no_number_is_no_fault() -> None:
    layer = rg.nn.LSTM(2, 4, seed=0, bidirectional=True)

    def loss(layer: Any, x: Any, lengths: Any) -> Any:
        return rnp.sum(layer(x, lengths=lengths)[0] ** 2)

    x = RNG.normal(size=(B, T, 2)).astype("f4")
    lengths = np.array([4, T, 1], "i4")
    x[0, 4:], x[2, 1:] = np.nan, np.inf
    assert first_nonfinite(loss, layer, x, lengths, gradients=True) is None
    found = first_nonfinite(loss, layer, x, lengths, masked=True)
    assert found is not None and found.input == "x" and found.reaches == ()
    x[1, 5, 0] = np.nan
    found = first_nonfinite(loss, layer, x, lengths)
    assert found is not None and found.input == "x" and found.reaches == ("out",)


def test_what_a_mask_keeps_away_is_no_fault() -> None:
    """The masked 0/0 comes first, at every step; what arrives is the log of step 7."""

    def body(h: Any, x: Any) -> Any:
        share = x / (x - x)  # MASKED
        h, y = logs(h, x)
        return h, (y, rnp.where(x < 1e9, 1.0, share))

    def fn(xs: Any) -> Any:
        h, (_, ones) = rg.scan(body, rnp.zeros(B), xs)
        return rnp.sum(ones), h

    assert first_nonfinite(fn, steps(T, B)) is None
    xs = planted(7)
    xs[2, 2] = 0.0
    found = first_nonfinite(fn, xs)
    assert found is not None
    assert (found.op, found.line, found.steps) == ("log", marked(logs), (7,))
    assert found.reaches == ("out.1",)
    found = first_nonfinite(fn, xs, masked=True)
    assert found is not None
    assert (found.op, found.line, found.steps) == ("div", marked(body, "MASKED"), (2,))
    assert "it reaches no result" in str(found)


def test_infinities_count_where_they_are_asked_for() -> None:
    def attention(scores: Any, kept: Any) -> Any:
        return rnp.sum(rnp.exp(rnp.where(kept, scores, -np.inf)))

    scores = RNG.normal(size=(4, 5)).astype("f4")
    kept = RNG.uniform(size=(4, 5)) < 0.5
    for inf in (False, True):
        assert first_nonfinite(attention, scores, kept, gradients=True, inf=inf) is None

    def body(h: Any, x: Any) -> Any:
        h = rnp.exp(x)  # HERE
        return h, h - h  # THERE

    def fn(xs: Any) -> Any:
        return rg.scan(body, rnp.zeros(B), xs)[1]

    xs = steps(T, B)
    xs[8, 1] = 200.0
    found = first_nonfinite(fn, xs)
    assert found is not None
    assert (found.kind, found.op, found.line) == ("NaN", "sub", marked(body, "THERE"))
    assert found.steps == (8,) and found.operands[0].infs == 1
    assert "inf=True tells where that comes from" in str(found)
    found = first_nonfinite(fn, xs, inf=True)
    assert found is not None
    assert (found.kind, found.op, found.line) == ("inf", "exp", marked(body))
    assert found.steps == (8,) and found.operands[0].high == 200.0
    assert first_nonfinite(lambda xs: rnp.exp(xs), xs) is None
    assert first_nonfinite(lambda xs: rnp.exp(xs), xs, inf=True) is not None


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f64"])
def test_other_dtypes(dtype: str) -> None:
    xs = rnp.astype(planted(5), dtype)

    def fn(xs: Any) -> Any:
        return rg.scan(logs, rnp.zeros(B, dtype), xs)[0]

    found = first_nonfinite(fn, xs)
    assert found is not None and found.steps == (5,)
    assert found.result.type == f"{dtype}[{B}]"


def test_numbers_and_settings_are_arguments_too() -> None:
    def fn(x: Any, power: int, scale: float, kind: str) -> Any:
        assert kind == "log"
        return rnp.log(x * scale) ** power

    assert first_nonfinite(fn, steps(B), 2, 1.5, "log") is None
    found = first_nonfinite(fn, steps(B), 2, -1.5, "log", gradients=False)
    assert found is not None and found.op == "log"
    assert first_nonfinite(fn, steps(B), 2, float("nan"), "log") == NonFinite(
        "NaN", "", None, "", "primal", (), (), found.result.__class__("f64[]", 1, None, None, 1, 0),
        (), "scale", 0, ("out",),
    )  # fmt: skip


def test_a_custom_gradient() -> None:
    def forward(x: Any) -> Any:
        return x * 2.0, x

    def backward(x: Any, g: Any) -> Any:
        return (g / (x - x),)  # HERE

    doubled = rg.custom_vjp(lambda x: x * 2.0, forward, backward)

    def body(h: Any, x: Any) -> Any:
        return h + doubled(x) * 0.0, None

    def loss(xs: Any) -> Any:
        return rnp.sum(rg.scan(body, rnp.zeros(B), xs)[0])

    found = first_nonfinite(loss, steps(T, B), gradients=True)
    assert found is not None
    assert (found.op, found.line) == ("div", marked(backward))
    assert found.steps == (T - 1,)  # backward, the last step comes first


def test_it_runs_outside_of_traces() -> None:
    with pytest.raises(TraceError, match="outside of the function being traced"):
        rg.jit(lambda x: first_nonfinite(rnp.log, x))(steps(B))
    with rg.eager(), pytest.raises(TraceError, match=r"and of rg\.eager\(\)"):
        first_nonfinite(rnp.log, steps(B))


def test_a_training_step_finds_line_and_step() -> None:
    class Decay(rg.nn.Module):
        rate: Any

        def __call__(self, xs: Any) -> Any:
            def body(h: Any, x: Any) -> Any:
                return h * self.rate + rnp.sqrt(x - self.rate), h  # HERE

            return rg.scan(body, rnp.zeros(B), xs)[1]

    def loss(model: Any, xs: Any) -> Any:
        return rnp.mean(model(xs) ** 2)

    model = Decay(np.full(B, 0.1, "f4"))
    step = rg.compile_training(loss, model, rg.optim.SGD(1e-3), {"xs": rg.spec("f32", "T", B)})
    assert step.first_nonfinite(xs=steps(T, B)) is None
    xs = steps(T, B)
    xs[10, 0] = 0.0
    before = step.state()[0]
    found = step.first_nonfinite(xs=xs)
    assert found is not None
    assert (found.op, found.line, found.steps) == ("sqrt", marked(Decay.__call__), (10,))
    assert set(found.reaches[:2]) == {"loss", "grad_norm"}
    after = step.state()[0]
    assert all(np.array_equal(before[k], after[k]) for k in before)
