"""Calls on arrays: which are served by one program, and which need another."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.errors import DataError, DTypeError, ShapeError, TraceError, UnsupportedError
from retrograde.jitted import Jit, shared_jit

RNG = np.random.default_rng(1)


def normal(*shape: int) -> Any:
    return RNG.standard_normal(shape)


def programs(f: Any) -> Jit:
    """The programs that `rg.jit` keeps for a function."""
    return shared_jit(f, ("jit",), f)


def test_a_second_size_becomes_a_symbol() -> None:
    def f(x: Any, y: Any) -> Any:
        return rnp.sum(x + y, axis=0)

    g = rg.jit(f)
    for n in (5, 7, 9, 6, 5, 100):
        x, y = normal(n, 3), normal(n, 3)
        np.testing.assert_allclose(g(x, y), np.sum(x + y, axis=0))
    assert programs(f).compilations == 2  # for 5, and for every other
    symbols = [t.shape for t in programs(f)._signatures.popitem()[1].programs[0].types]
    assert str(symbols[0][0]) == str(symbols[1][0]) == "x_0"


def test_axes_that_come_apart_get_symbols_of_their_own() -> None:
    def f(x: Any, y: Any) -> Any:
        return rnp.sum(x) * y

    g = rg.jit(f)
    for a, b in ((5, 5), (7, 7), (6, 8), (9, 4), (11, 3)):
        x, y = normal(a), normal(b)
        np.testing.assert_allclose(g(x, y), np.sum(x) * y)
    assert programs(f).compilations == 3


def test_sizes_that_broadcast_stay() -> None:
    def f(x: Any, y: Any) -> Any:
        return x * y

    g = rg.jit(f)
    for a, b in ((5, 5), (1, 5), (5, 1), (7, 1), (0, 1), (1, 1), (9, 9), (8, 1)):
        x, y = normal(a, 2), normal(b, 2)
        np.testing.assert_array_equal(g(x, y), x * y)


def test_python_that_needs_the_size_compiles_for_each() -> None:
    def f(x: Any) -> Any:
        total = x[0]
        for i in range(1, x.shape[0]):
            total = total * x[i]
        return total

    for n in (2, 3, 5, 3, 2):
        x = normal(n)
        np.testing.assert_allclose(rg.jit(f)(x), np.prod(x))
    assert programs(f).compilations == 3


def test_a_look_up_by_size_compiles_for_each() -> None:
    table = {3: 10.0, 4: 20.0}
    f = rg.jit(lambda x: x * table[x.shape[0]])
    for n in (3, 4, 3):
        np.testing.assert_array_equal(f(np.ones(n)), np.full(n, table[n]))
    with pytest.raises(KeyError):
        f(np.ones(5))


def test_an_error_of_the_function_shows_itself() -> None:
    def f(x: Any, y: Any) -> Any:
        return x @ y

    assert rg.jit(f)(normal(3, 4), normal(4, 5)).shape == (3, 5)
    with pytest.raises(ShapeError, match=r"test_jit\.py:\d+"):
        rg.jit(f)(normal(3, 4), normal(6, 5))
    assert rg.jit(f)(normal(3, 6), normal(6, 5)).shape == (3, 5)


def test_dtypes_structures_and_settings_make_signatures() -> None:
    def f(x: Any, power: int = 2, flag: bool = True) -> Any:
        leaf = x["a"] if isinstance(x, dict) else x
        return leaf**power if flag else leaf

    g = rg.jit(f)
    x = normal(3)
    np.testing.assert_allclose(g(x), x**2)
    np.testing.assert_allclose(g(x, 3), x**3)
    np.testing.assert_allclose(g(x, power=3, flag=False), x)
    np.testing.assert_allclose(g({"a": x}), x**2)
    assert g(x.astype(np.float32)).dtype == np.float32
    np.testing.assert_array_equal(g(np.arange(4)), np.arange(4) ** 2)
    assert programs(f).traces == 6
    g(normal(3), 3)
    assert programs(f).traces == 6


def test_floats_are_traced_and_weak() -> None:
    def f(x: Any, rate: float) -> Any:
        return x * rate

    x = normal(3).astype(np.float32)
    for rate in (0.1, 0.2, np.float64(0.3)):
        y = rg.jit(f)(x, rate)
        assert y.dtype == np.float32
        np.testing.assert_allclose(y, x * np.float32(rate))
    assert programs(f).traces == 1


def test_unhashable_arguments_are_named() -> None:
    with pytest.raises(TraceError, match=r"test_jit\.py.*bytearray"):
        rg.jit(lambda x, s: x)(normal(2), bytearray(b"x"))


def test_results_are_fresh() -> None:
    x = normal(3)
    f = rg.jit(lambda x: {"same": x, "twice": x * 2})
    a, b = f(x), f(x)
    a["same"][:] = 0
    a["twice"][:] = 0
    np.testing.assert_array_equal(b["twice"], 2 * x)
    np.testing.assert_array_equal(f(x)["same"], x)
    assert x.any()


def test_unusual_memory() -> None:
    base = normal(6, 8)
    f = rg.jit(lambda x: x * 2)
    for x in (base[::2, ::-1], base.T, np.asfortranarray(base), base[:, 1:2], base.astype(">f8")):
        np.testing.assert_array_equal(f(x), x * 2)
    frozen = base.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(f(frozen), base * 2)


def test_gradients_share_their_programs() -> None:
    def f(x: Any) -> Any:
        return rnp.sum(x**2)

    for _ in range(3):
        rg.grad(f)(normal(4))
    assert shared_jit(f, ("grad", 0, False), f).traces == 1


def test_methods_and_callable_objects() -> None:
    class Scaler:
        def __init__(self, scale: Any) -> None:
            self.scale = scale

        @rg.jit
        def decorated(self, x: Any) -> Any:
            return x * self.scale

        def plain(self, x: Any) -> Any:
            return x * self.scale

        def __call__(self, x: Any) -> Any:
            return x * self.scale

    s, x = Scaler(np.full(3, 2.0)), normal(3)
    calls = (s.decorated, rg.jit(s.plain), rg.jit(s))
    for call in calls:
        np.testing.assert_allclose(call(x), 2 * x)
    s.scale = np.full(3, 5.0)
    for call in calls:
        np.testing.assert_allclose(call(x), 5 * x)
    s.scale = 7  # a setting now, no array
    for call in calls:
        np.testing.assert_allclose(call(x), 7 * x)


def test_threads_may_call_at_once() -> None:
    f = rg.jit(lambda x: rnp.tanh(x @ x.T).sum(axis=1))
    xs = [normal(n, 20) for n in (30, 40, 50, 60)]
    expected = [np.tanh(x @ x.T).sum(1) for x in xs]
    found: dict[int, Any] = {}

    def work(i: int) -> None:
        for _ in range(5):
            found[i] = f(xs[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for i in range(4):
        np.testing.assert_allclose(found[i], expected[i])


# --- compile


def test_compiled_runs_at_every_size() -> None:
    c = rg.compile(
        lambda x, w: rnp.tanh(x) @ w, rg.spec("f64", "B", "T", 3), rg.spec("f64", 3, 4),
        at={"B": 4, "T": 8},
    )  # fmt: skip
    w = normal(3, 4)
    run = c._runnable()
    for _ in range(20):
        b, t = RNG.integers(1, 9, 2)
        x = normal(b, t, 3)
        np.testing.assert_allclose(c(x, w), np.tanh(x) @ w)
        assert c.plan(B=b, T=t).peak_bytes == c.peak()(B=b, T=t)
    assert c._runnable() is run
    assert c.plan().sizes == {"B": 4, "T": 8}
    assert c.plan(T=2).sizes == {"B": 4, "T": 2}


def test_compiled_takes_trees_arrays_and_settings() -> None:
    p = {"w": normal(2, 3), "n": 2}
    c = rg.compile(lambda p, x: {"y": x @ p["w"] * p["n"]}, p, rg.spec("f64", "B", 2))
    x = normal(4, 2)
    np.testing.assert_allclose(c(p, x)["y"], x @ p["w"] * 2)
    with pytest.raises(DataError, match=r"p\.n is 3.*compiled for 2"):
        c({"w": p["w"], "n": 3}, x)
    with pytest.raises(ShapeError, match=r"missing 'p.w'|missing '0.w'"):
        c({"n": 2}, x)


def test_bad_arguments_are_named() -> None:
    c = rg.compile(lambda x, y: x @ y, rg.spec("f32", "B", 3), rg.spec("f32", 3, "N"))
    x, y = np.ones((2, 3), np.float32), np.ones((3, 4), np.float32)
    assert c(x, y).shape == (2, 4)
    with pytest.raises(DTypeError, match=r"test_jit\.py.*x: expected f32\[B,3\], got f64\[2, 3\]"):
        c(x.astype(float), y)
    with pytest.raises(ShapeError, match=r"y: .*axis 0"):
        c(x, np.ones((5, 4), np.float32))
    with pytest.raises(ShapeError, match=r"x: .*\(2 axes\)"):
        c(x[0], y)
    with pytest.raises(ShapeError, match="B = 0"):
        c(x[:0], y)
    with pytest.raises(ShapeError, match="missing"):
        c(x)


def test_what_compiled_tells() -> None:
    def f(x: Any, w: Any) -> Any:
        hidden = rnp.tanh(x @ w)
        return {"loss": rnp.sum(hidden)}

    c = rg.compile(f, rg.spec("f32", "B", 6), rg.spec("f32", 6, 5))
    assert "B" in str(c.peak()) and c.peak()(B=3) == c.plan(B=3).peak_bytes
    assert "planned peak" in c.report(B=3) and "f at B=3" in c.report(B=3)
    assert c.report()
    assert "def bind(" in c.source()
    assert c.ir().text() == rg.trace(f, rg.spec("f32", "B", 6), rg.spec("f32", 6, 5)).text()
    assert "dot_general" in c.explain("w") and "test_jit.py" in c.explain("loss")
    line = c.explain("w").split("test_jit.py:")[1].split()[0]
    assert "dot_general" in c.explain(f"test_jit.py:{line}")
    limit = c.plan(B=100).peak_bytes
    assert c.largest("B", budget=limit) >= 100
    assert c.plan(B=c.largest("B", budget=limit)).peak_bytes <= limit
    assert c.plan(B=c.largest("B", budget=limit) + 1).peak_bytes > limit
    assert c.largest("B", budget="1MiB") > 1000
    with pytest.raises(rg.errors.BudgetError):
        c.largest("B", budget=8)
    for bad in (lambda: c.plan(), lambda: c.plan(C=3), lambda: c.plan(B=0)):
        with pytest.raises(ShapeError, match=r"test_jit\.py"):
            bad()
    with pytest.raises(UnsupportedError, match=r"'trace'|trace"):
        c.ir("nothing")
    with pytest.raises(UnsupportedError, match="w"):
        c.explain("nothing")


def test_drawings(tmp_path: Any) -> None:
    c = rg.compile(lambda x: rnp.tanh(x), rg.spec("f32", "B"))
    c.inspect(tmp_path / "a.svg")
    c.inspect(tmp_path / "a.dot")
    assert "<svg" in (tmp_path / "a.svg").read_text()
    assert "digraph" in (tmp_path / "a.dot").read_text()
    with pytest.raises(UnsupportedError, match=r"svg or .dot"):
        c.inspect(tmp_path / "a.png")


def test_options_that_cannot_be_say_so() -> None:
    x = rg.spec("f32", "B")
    with pytest.raises(UnsupportedError, match=r"test_jit\.py.*precision='f8'"):
        rg.compile(lambda x: x, x, precision="f8")
    with pytest.raises(rg.errors.DeviceError, match="gpu"):
        rg.compile(lambda x: x, x, backend="gpu")
    with pytest.raises(ShapeError, match=r"no size 'T'; there are B"):
        rg.compile(lambda x: x, x, at={"T": 3})


def test_threads_are_limited_while_it_runs() -> None:
    from threadpoolctl import threadpool_info

    seen: list[int] = []
    c = rg.compile(lambda x: x @ x, rg.spec("f32", 3, 3), threads=1)
    run = c._runnable().executable.run

    def spy(*args: Any) -> Any:
        seen.extend(p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas")
        return run(*args)

    c._runnable().executable.run = spy  # type: ignore[method-assign]
    c(np.ones((3, 3), np.float32))
    assert set(seen) == {1}
    with pytest.raises(rg.errors.DeviceError, match="threads=0"):
        rg.compile(lambda x: x, rg.spec("f32", 2), threads=0)


def test_clones_run_on_their_own() -> None:
    c = rg.compile(lambda x: x * 2, rg.spec("f64", "B"))
    d = c.clone()
    x = normal(3)
    np.testing.assert_array_equal(d(x), c(x))
    assert d._runnable().executable is not c._runnable().executable


def test_a_number_of_threads_that_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETROGRADE_THREADS", "²")  # a digit, which int refuses
    with pytest.raises(rg.errors.DeviceError, match="RETROGRADE_THREADS is '²'"):
        rg.compile(lambda x: x, rg.spec("f32", 2))
