"""What a function reads from outside is what it is at the call: never a stale constant."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.jitted import shared_jit

W = np.arange(3.0)
SETTINGS = {"power": 2}


def jitted(f: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[[], int]]:
    """The compiled function, and how many different programs its traces made."""
    return rg.jit(f), lambda: shared_jit(f, ("jit",), f).compilations


def traces(f: Callable[..., Any]) -> int:
    """How often `f` has been traced."""
    return shared_jit(f, ("jit",), f).traces


def test_an_array_changed_in_place() -> None:
    w = np.arange(3.0)
    f, programs = jitted(lambda x: x * w)
    x = np.ones(3)
    np.testing.assert_array_equal(f(x), [0, 1, 2])
    w[1] = 7
    np.testing.assert_array_equal(f(x), [0, 7, 2])
    assert programs() == 1


def test_an_array_that_changes_often_is_data() -> None:
    """Python may have read it, so its first changes are traced; then it is read and no more."""
    w, other = np.arange(3.0), np.full(3, 2.0)

    def f(x: Any) -> Any:
        return x * w + other

    for i in range(10):
        w[:] = i
        np.testing.assert_array_equal(rg.jit(f)(np.ones(3)), np.full(3, i + 2.0))
    assert traces(f) == 4
    other[:] = 5
    np.testing.assert_array_equal(rg.jit(f)(np.ones(3)), np.full(3, 14.0))


def test_an_array_that_python_reads_beside() -> None:
    w = np.ones(3)
    f, _ = jitted(lambda x: x * w * float(w[0]))
    c = rg.compile(lambda x: x * w * float(w[0]), rg.spec("f64", 3))
    for i in range(6):
        w[:] = i
        np.testing.assert_array_equal(f(np.ones(3)), np.full(3, i * i))
        np.testing.assert_array_equal(c(np.ones(3)), np.full(3, i * i))


def test_a_mask_of_another_count_selects_anew() -> None:
    mask = np.array([True, False, True])
    f, _ = jitted(lambda x: x[mask] * 2)
    x = np.arange(6.0).reshape(3, 2)
    for bits in ([1, 0, 1], [1, 1, 1], [0, 1, 0], [0, 0, 0], [1, 1, 0], [0, 1, 1]):
        mask[:] = bits
        np.testing.assert_array_equal(f(x), x[mask] * 2)


def test_an_array_replaced() -> None:
    w = np.arange(3.0)
    f, programs = jitted(lambda x: x * w)
    x = np.ones(3)
    f(x)
    w = np.full(3, 5.0)
    np.testing.assert_array_equal(f(x), [5, 5, 5])
    assert programs() == 1
    w = np.full((2, 3), 4.0, np.float32)  # of another shape and dtype
    np.testing.assert_array_equal(f(x), np.full((2, 3), 4.0))
    assert programs() == 2
    w = np.full(3, 6.0)
    np.testing.assert_array_equal(f(x), [6, 6, 6])


def test_a_global_array(monkeypatch: pytest.MonkeyPatch) -> None:
    f, programs = jitted(lambda x: x + W)
    x = np.zeros(3)
    np.testing.assert_array_equal(f(x), [0, 1, 2])
    monkeypatch.setitem(globals(), "W", np.full(3, 9.0))
    np.testing.assert_array_equal(f(x), [9, 9, 9])
    assert programs() == 1


def helper(x: Any) -> Any:
    return x * W ** SETTINGS["power"]


def test_through_a_function_that_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    f, _ = jitted(lambda x: helper(x) + 1)
    x = np.ones(3)
    np.testing.assert_array_equal(f(x), [1, 2, 5])
    monkeypatch.setitem(globals(), "W", np.full(3, 3.0))
    np.testing.assert_array_equal(f(x), [10, 10, 10])
    monkeypatch.setitem(SETTINGS, "power", 3)
    np.testing.assert_array_equal(f(x), [28, 28, 28])
    monkeypatch.setitem(globals(), "helper", lambda x: x)
    np.testing.assert_array_equal(f(x), [2, 2, 2])


def test_settings_of_the_closure() -> None:
    scale, name, limits = 2, "tanh", [0.5, 1.0]
    f, programs = jitted(lambda x: getattr(rnp, name)(x) * scale + limits[1])
    x = np.ones(3)
    np.testing.assert_allclose(f(x), np.tanh(1) * 2 + 1, rtol=1e-7)
    scale = 3
    np.testing.assert_allclose(f(x)[0], np.tanh(1) * 3 + 1)
    name = "sin"
    np.testing.assert_allclose(f(x)[0], np.sin(1) * 3 + 1)
    limits[1] = -1.0
    np.testing.assert_allclose(f(x)[0], np.sin(1) * 3 - 1)
    limits.append(2.0)
    f(x)
    assert programs() == 4  # the longer list makes no other program
    scale = True  # == 1, and another setting
    np.testing.assert_allclose(f(x)[0], np.sin(1) - 1)


def test_defaults_partials_and_wrappers() -> None:
    import functools

    def f(x: Any, w: Any, *, k: Any = None) -> Any:
        return x * w + (0 if k is None else k)

    w, k = np.full(3, 2.0), np.ones(3)
    bound = functools.partial(f, w=w, k=k)
    g = rg.jit(bound)
    x = np.ones(3)
    np.testing.assert_array_equal(g(x), [3, 3, 3])
    w[:], k[:] = 5, 2
    np.testing.assert_array_equal(g(x), [7, 7, 7])

    h = rg.jit(rg.grad(lambda x: rnp.sum(x * w)))
    np.testing.assert_array_equal(h(x), w)
    w[:] = 8
    np.testing.assert_array_equal(h(x), w)

    def default(x: Any, w: Any = w) -> Any:
        return x * w

    d = rg.jit(default)
    d(x)
    w[:] = 4
    np.testing.assert_array_equal(d(x), w)


def test_gradients_and_pullbacks_read_anew() -> None:
    w = np.full(3, 2.0)

    def loss(x: Any) -> Any:
        return rnp.sum(x * x * w)

    x = np.ones(3)
    np.testing.assert_array_equal(rg.grad(loss)(x), 2 * w)
    w = np.full(3, 5.0)
    np.testing.assert_array_equal(rg.grad(loss)(x), 2 * w)
    out, pull = rg.vjp(loss, x)
    assert out == 15
    np.testing.assert_array_equal(pull(1.0)[0], 2 * w)
    np.testing.assert_array_equal(rg.scan(lambda c, _: (c + w, None), x, length=2)[0], 1 + 2 * w)
    w = w + 1
    np.testing.assert_array_equal(rg.scan(lambda c, _: (c + w, None), x, length=2)[0], 1 + 2 * w)


class Layer(rg.nn.Module):
    weight: Any
    scale: float = 1.0

    def __call__(self, x: Any) -> Any:
        return x @ self.weight * self.scale


def test_a_module_in_the_closure() -> None:
    layers = [Layer(np.eye(2)), Layer(2 * np.eye(2))]
    f, programs = jitted(lambda x: layers[1](layers[0](x)))
    x = np.ones((1, 2))
    np.testing.assert_array_equal(f(x), [[2, 2]])
    layers[0].weight = 3 * np.eye(2)
    np.testing.assert_array_equal(f(x), [[6, 6]])
    layers[1] = Layer(5 * np.eye(2))
    np.testing.assert_array_equal(f(x), [[15, 15]])
    assert programs() == 1
    layers[1].scale = 2.0
    np.testing.assert_array_equal(f(x), [[30, 30]])
    layers[0] = layers[0].replace(weight=np.eye(2))
    np.testing.assert_array_equal(f(x), [[10, 10]])
    del layers[0]
    layers.append(Layer(np.eye(2)))
    np.testing.assert_array_equal(f(x), [[10, 10]])


def test_a_module_is_a_function() -> None:
    layer = Layer(np.eye(2))
    f, c = rg.jit(layer), rg.compile(layer, rg.spec("f64", "B", 2))
    x = np.array([[1.0, 2.0]])
    for weight, scale in ((np.eye(2), 1.0), (3 * np.eye(2), 1.0), (3 * np.eye(2), 5.0)):
        layer.weight, layer.scale = weight, scale
        np.testing.assert_array_equal(f(x), x @ weight * scale)
        np.testing.assert_array_equal(c(x), x @ weight * scale)


class Setting:
    def __init__(self) -> None:
        self.k, self.w = 2.0, np.ones(2)


class Reader:
    def __init__(self) -> None:
        self.setting = Setting()

    def read(self, x: Any) -> Any:
        return scaled(self.setting, x)


class LoudReader(Reader):
    def read(self, x: Any) -> Any:
        return super().read(x) + 0


def scaled(setting: Any, x: Any) -> Any:
    return x * setting.k * setting.w


def ask(reader: Any, x: Any) -> Any:
    return reader.read(x)


def test_attributes_that_only_a_called_function_names() -> None:
    setting, reader, x = Setting(), LoudReader(), np.ones(2)
    by_closure, _ = jitted(lambda x: scaled(setting, x) + ask(reader, x))
    by_argument, _ = jitted(lambda reader, x: ask(reader, x))
    for k in (2.0, 3.0, 5.0):
        setting.k = reader.setting.k = k
        setting.w = np.full(2, k + 1)
        np.testing.assert_array_equal(by_closure(x), x * k * (k + 1) + x * k)
        np.testing.assert_array_equal(by_argument(reader, x), x * k)


def test_attributes_that_nothing_names() -> None:
    class Own:
        def __init__(self) -> None:
            self.w0, self.w1, self.items = 1.0, 2.0, [3.0, 4.0]

        def __getitem__(self, i: int) -> float:
            return self.items[i]

        def __rmul__(self, x: Any) -> Any:
            return x * self.items[0]

    own = Own()
    functions = [
        lambda x: x * getattr(own, "w0"),  # noqa: B009
        lambda x: x * sum(getattr(own, f"w{i}") for i in range(2)),
        lambda x: x * sum(v for k, v in vars(own).items() if k != "items"),
        lambda x: x * own[1],
        lambda x: x * own,
    ]
    compiled = [rg.jit(f) for f in functions]
    x = np.ones(2)
    for i in range(3):
        own.w0, own.w1, own.items = 7.0 + i, 8.0 - 2 * i, [2.0 + i, 3.0 - i]
        for f, c in zip(functions, compiled, strict=True):
            np.testing.assert_array_equal(c(x), f(x))


def test_settings_in_objects_of_the_standard_library() -> None:
    import collections
    import contextvars
    import types

    space, queue = types.SimpleNamespace(k=1.0, w=np.ones(2)), collections.deque([1.0])
    context = contextvars.ContextVar("context", default=1.0)
    f, _ = jitted(lambda x: x * space.k * space.w * queue[0] * context.get())
    f.k = 1.0  # type: ignore[attr-defined]
    g, _ = jitted(lambda x: x * f.k)  # type: ignore[attr-defined]
    x = np.ones(2)
    for i in range(4):
        f.k = space.k = 2.0 + i  # type: ignore[attr-defined]
        space.w, queue[0] = np.full(2, 3.0 * i), 5.0 - i
        context.set(1.5 * i)
        np.testing.assert_allclose(f(x), x * space.k * space.w * queue[0] * context.get())
        np.testing.assert_array_equal(g(x), x * space.k)


def test_one_list_under_two_names_that_part() -> None:
    first, second = [1.0], [2.0]
    a, b, c = first, second, first
    f, _ = jitted(lambda x: x * (a[0] + 10 * b[0] + 100 * c[0]))
    np.testing.assert_array_equal(f(np.ones(1)), [121])
    c = second
    np.testing.assert_array_equal(f(np.ones(1)), [221])


def test_a_method_called_on_an_object() -> None:
    class Config:
        rate = 2.0

        def rated(self, x: Any) -> Any:
            return x * self.rate

    config = Config()
    f, _ = jitted(lambda x: config.rated(x))
    x = np.ones(2)
    np.testing.assert_array_equal(f(x), [2, 2])
    config.rate = 3.0
    np.testing.assert_array_equal(f(x), [3, 3])
    config.rated = lambda x: x  # type: ignore[method-assign]
    np.testing.assert_array_equal(f(x), [1, 1])


def test_two_names_of_one_array_that_part() -> None:
    a = b = np.full(3, 2.0)
    f, _ = jitted(lambda x: x * a + b)
    x = np.ones(3)
    np.testing.assert_array_equal(f(x), [4, 4, 4])
    b = np.full(3, 10.0)
    np.testing.assert_array_equal(f(x), [12, 12, 12])
    a = np.full(3, 3.0)
    np.testing.assert_array_equal(f(x), [13, 13, 13])
    b = a
    np.testing.assert_array_equal(f(x), [6, 6, 6])


def test_what_numpy_made_of_an_array() -> None:
    """A view, a copy and a number computed while tracing follow the array they were made of."""
    w = np.arange(6.0).reshape(2, 3)
    x = np.ones(2)
    functions = [
        (lambda x: x @ w, lambda: x @ w),
        (lambda x: w.T @ x, lambda: w.T @ x),
        (lambda x: x * w[::-1, 1], lambda: x * w[::-1, 1]),
        (lambda x: x * w.sum(axis=1), lambda: x * w.sum(axis=1)),
        (lambda x: x * w.max(), lambda: x * w.max()),
        (lambda x: x * float(w[0, 2]), lambda: x * w[0, 2]),
        (lambda x: (w @ w.T) @ x + w[:, 0] * x, lambda: (w @ w.T) @ x + w[:, 0] * x),
    ]
    compiled = [(rg.jit(f), expected) for f, expected in functions]

    def check() -> None:
        for f, expected in compiled:
            np.testing.assert_allclose(f(x), expected())

    check()
    w[0] = 7
    check()
    w = np.array([[3.0, 1.0, 4.0], [1.0, 5.0, 9.0]])
    check()
    w = np.asfortranarray(w * 2)
    check()
    w = w.astype(np.float32)
    check()


def test_views_cost_no_new_trace() -> None:
    w = np.arange(6.0).reshape(2, 3)
    f, programs = jitted(lambda x: x @ w + (w.T @ x)[:3])
    x = np.ones(2)
    f(x)
    w = w * 3
    np.testing.assert_allclose(f(x), 2 * (x @ w))
    assert programs() == 1


def test_an_array_made_while_tracing_costs_no_new_program() -> None:
    w = np.ones(3)
    f, _ = jitted(lambda x: x * w + np.array([1.0, 2.0, 3.0]))
    x = np.ones(3)
    for i in range(4):
        w[:] = i
        np.testing.assert_array_equal(f(x), i + np.array([1.0, 2.0, 3.0]))
    jit = next(iter(f.__closure__ or ())).cell_contents  # the function itself
    assert shared_jit(jit, ("jit",), jit).compilations == 1


def test_a_function_that_counts_its_traces_is_not_traced_for_it() -> None:
    count = 0

    def f(x: Any) -> Any:
        nonlocal count
        count += 1
        return x * 2

    for _ in range(3):
        rg.jit(f)(np.ones(2))
    assert count == 1


def test_a_log_that_grows_beside_is_no_setting() -> None:
    class Trainer:
        def __init__(self) -> None:
            self.w = np.ones(2)
            self.history: list[float] = []

        def step(self, x: Any) -> Any:
            return x * self.w

    trainer = Trainer()
    f = rg.jit(trainer.step)
    for i in range(3):
        trainer.history.append(i)
        f(np.ones(2))
    assert shared_jit(trainer.step, ("jit",), trainer.step).traces == 1


def test_compiled_functions_read_anew() -> None:
    w, power = np.full(3, 2.0), 2
    c = rg.compile(lambda x: x**power * w, rg.spec("f64", "B", 3))
    x = np.full((2, 3), 3.0)
    np.testing.assert_array_equal(c(x), np.full((2, 3), 18.0))
    w = np.full(3, 5.0)
    np.testing.assert_array_equal(c(x), np.full((2, 3), 45.0))
    power = 1
    np.testing.assert_array_equal(c(x), np.full((2, 3), 15.0))
    w = np.full((1, 3), 4.0)
    np.testing.assert_array_equal(c(x), np.full((2, 3), 12.0))


def test_functions_and_objects_that_are_replaced() -> None:
    class Mode(enum.Enum):
        SQUARE = 1
        CUBE = 2

    activation, mode = rnp.tanh, Mode.SQUARE

    def f(x: Any) -> Any:
        return activation(x**2 if mode is Mode.SQUARE else x**3)

    x = np.array([0.5])
    np.testing.assert_allclose(rg.jit(f)(x), np.tanh(0.25))
    activation = rnp.sin
    np.testing.assert_allclose(rg.jit(f)(x), np.sin(0.25))
    activation = np.cos
    np.testing.assert_allclose(rg.jit(f)(x), np.cos(0.25))
    mode = Mode.CUBE
    np.testing.assert_allclose(rg.jit(f)(x), np.cos(0.125))
    activation = rg.grad(lambda y: rnp.sum(y * y))
    np.testing.assert_allclose(rg.jit(f)(x), 0.25)


def test_one_object_seen_by_two_functions() -> None:
    class Config:
        a, b = 2.0, 3.0

    config = Config()
    g, h = (lambda x: x * config.a), (lambda x: x + config.b)
    f, _ = jitted(lambda x: h(g(x)))
    np.testing.assert_array_equal(f(np.ones(1)), [5])
    config.b = 4.0
    np.testing.assert_array_equal(f(np.ones(1)), [6])
    Config.a = 5.0
    np.testing.assert_array_equal(f(np.ones(1)), [9])


def test_cycles_and_large_data_end() -> None:
    loop: list[Any] = [np.ones(2)]
    loop.append(loop)
    f, _ = jitted(lambda x: x * loop[0])
    np.testing.assert_array_equal(f(np.ones(2)), [1, 1])
    loop[0] = np.full(2, 3.0)
    np.testing.assert_array_equal(f(np.ones(2)), [3, 3])
