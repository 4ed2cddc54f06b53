"""What does not fit a loop is refused with the line and the leaf: at once, traced, eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.errors import DataError, DTypeError, ShapeError, TraceError

XS, H = np.ones((4, 3)), np.zeros(3)
PAIR = r"must return a tuple \(carry, y\)"


def drifting(change: Callable[[Any], Any], init: Any = None) -> Callable[[], Any]:
    """A loop whose carry `change` makes another."""
    start = {"a": {"h": H, "n": np.zeros((), "i4")}} if init is None else init
    return lambda: rg.scan(lambda c, x: (change(c), x), start, XS)


def returning(result: Callable[[Any, Any], Any]) -> Callable[[], Any]:
    return lambda: rg.scan(result, H, XS)


def over(xs: Any, **options: Any) -> Callable[[], Any]:
    return lambda: rg.scan(lambda c, x: (c, c), H, xs, **options)


CASES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "shape": (
        drifting(lambda c: {"a": {**c["a"], "h": rnp.concatenate([c["a"]["h"], H])}}), ShapeError,
        r"carry\.a\.h enters the body of scan as f64\[3\] and leaves it as f64\[6\]",
    ),
    "broadcast": (drifting(lambda c: c + H, np.ones(1)), ShapeError, r"carry .*f64\[1\].*f64\[3\]"),
    "dtype": (
        drifting(lambda c: {"a": {**c["a"], "n": c["a"]["n"] * 0.5}}), DTypeError,
        r"carry\.a\.n enters the body of scan as i32\[\] and leaves it as f32.*astype\('i32'\)",
    ),
    "narrower": (drifting(lambda c: c.astype("f32"), H), DTypeError, r"begin with f32, or cast"),
    "flag": (drifting(lambda c: c + 1, np.array(True)), DTypeError, r"bool\[\] and leaves it as i"),
    "leaf gone": (drifting(lambda c: {"a": {"h": c["a"]["h"]}}), ShapeError, r"missing 'a\.n'"),
    "leaf more": (drifting(lambda c: {**c, "b": H}), ShapeError, "not expected 'b'"),
    "tuple": (drifting(lambda c: (c, c), H), ShapeError, "one array was expected, got a tree"),
    "nothing": (drifting(lambda c: None, H), ShapeError, "one array was expected, got nothing"),
    "text": (drifting(lambda c: "h", H), TraceError, "carry is a str"),
    "no pair": (returning(lambda c, x: None), TraceError, PAIR + ".*a NoneType"),
    "an array": (returning(lambda c, x: c), TraceError, PAIR),
    "three": (returning(lambda c, x: (c, x, x)), TraceError, PAIR + ".*a tuple of 3"),
    "a list": (returning(lambda c, x: [c, x]), TraceError, PAIR + ".*a list of 2"),
    "a result of text": (returning(lambda c, x: (c, "y")), TraceError, "step result of scan is a"),
    "unequal": (
        over({"a": XS, "b": XS[:3]}), ShapeError,
        r"xs\.b has 3 steps along axis 0 \(f64\[3,3\]\), and xs\.a 4",
    ),
    "length": (over(XS, length=5), ShapeError, r"xs has 4 steps .*and length 5"),
    "negative": (over(None, length=-2), ShapeError, "length = -2 is negative"),
    "half": (over(None, length=1.5), ShapeError, "length = 1.5 is no size"),
    "no length": (over(None), TraceError, "needs length="),
    "no leaves": (over({}), TraceError, "needs length="),
    "scalar": (over(np.float64(3)), ShapeError, "runs over axis 0, and xs is a scalar"),
    "scalar leaf": (over((XS, 2.5)), ShapeError, r"xs\.1 is a scalar"),
    "list of numbers": (over([1.0, 2.0]), ShapeError, r"xs\.0 is a scalar"),
    "way": (over(XS, reverse="yes"), TraceError, "reverse is a str, and must be True or False"),
    "way as an array": (over(XS, reverse=np.array([True])), TraceError, "reverse is a ndarray"),
}  # fmt: skip


@pytest.mark.parametrize("mode", ["at once", "traced", "eager", "in a gradient"])
@pytest.mark.parametrize("case", CASES)
def test_a_loop_that_does_not_fit(case: str, mode: str) -> None:
    call, error, message = CASES[case]

    def run() -> Any:
        if mode == "at once":
            return call()
        if mode == "eager":
            with rg.eager():
                return call()
        if mode == "traced":
            return rg.trace(lambda _: call(), rg.spec("f64"))
        return rg.grad(lambda x: x + rnp.sum(call()[0]))(np.ones(()))

    with pytest.raises(error, match=message) as caught:
        run()
    assert f"{__file__}:" in str(caught.value)


def test_a_length_or_direction_that_only_a_run_would_know() -> None:
    with pytest.raises(TraceError, match="static sizes"):
        rg.jit(lambda n: rg.scan(lambda c, _: (c, c), H, length=n))(np.array(3))
    with pytest.raises(TraceError, match=r"reverse is a Tracer.*rg\.cond"):
        rg.jit(lambda r: rg.scan(lambda c, x: (c, x), H, XS, reverse=r))(np.array(True))


def test_symbols_that_may_differ() -> None:
    specs = rg.spec("f64", "T", 3), rg.spec("f64", "S", 3)
    with pytest.raises(ShapeError, match=r"xs\.1 has S steps .* and xs\.0 T"):
        rg.trace(lambda a, b: rg.scan(lambda c, x: (c, x[0]), H, (a, b)), *specs)
    with pytest.raises(ShapeError, match=r"carry enters .* f64\[N\] and leaves it as f64\[2\*N\]"):
        rg.trace(
            lambda a: rg.scan(lambda c, x: (rnp.concatenate([c, x]), None), a[0], a),
            rg.spec("f64", "T", "N"),
        )


def test_step_results_that_change_in_eager_mode() -> None:
    """There a body may look at numbers, and return what no compiled loop can."""

    def run(other: Callable[[Any], Any]) -> None:
        rg.scan(lambda n, x: (n + 1, x if int(n) < 2 else other(x)), 0, XS)

    with rg.eager():
        with pytest.raises(
            ShapeError, match=r"y of scan is f64\[3\] at step 0 and f64\[2\] at step 2"
        ):
            run(lambda x: x[:2])
        with pytest.raises(ShapeError, match="another structure at step 2 than at step 0"):
            run(lambda x: (x, x))


def test_numbers_take_the_type_of_the_carry_in_eager_mode_too() -> None:
    def run(xs: Any) -> Any:
        return rg.scan(lambda c, x: ((c[0] + x, c[1] + 1), (c[0], 1.5, True)), (0, 0), xs)

    compiled = rg.jit(run)(XS[:, 0])
    with rg.eager():
        stepped = rg.tree.map(np.asarray, run(rnp.asarray(XS[:, 0])))
    for a, b in zip(rg.tree.leaves(compiled), rg.tree.leaves(stepped), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("slots", [0, -1, "many", 1.5])
def test_slots_are_a_number_of_states(slots: Any) -> None:
    with pytest.raises((DataError, ShapeError), match=r"test_scan_misfits\.py.*slots"):
        rg.scan(lambda c, x: (c + x, None), 0.0, np.ones(3, np.float32), slots=slots)
