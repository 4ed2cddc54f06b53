"""Mixed precision: what is computed in which type; steps without a number change nothing."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.compiler.errors import DataError, UnsupportedError
from retrograde.precision import FIRST_SCALE, GOOD_STEPS

HALVES = ("bf16", "f16")
LOOSE = {"bf16": 3e-2, "f16": 4e-3}  # a few units in the last place of activations


class Regression(rg.nn.Module):
    """Rows of numbers to one number, through a hidden layer with a norm."""

    up: rg.nn.Linear
    norm: rg.nn.LayerNorm
    down: rg.nn.Linear

    def __call__(self, x: Any) -> Any:
        return self.down(rnp.tanh(self.norm(self.up(x))))


def regression() -> Regression:
    return Regression(
        rg.nn.Linear(5, 16, seed=1), rg.nn.LayerNorm(16), rg.nn.Linear(16, 1, seed=2)
    )


def squared(model: Any, x: Any, y: Any) -> Any:
    return rg.losses.mse(model(x)[:, 0], y)


SPECS = {"x": rg.spec("f32", "B", 5), "y": rg.spec("f32", "B")}


def rows(seed: int, count: int = 6, size: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(count, 5)) * size).astype(np.float32)
    return {"x": x, "y": np.sin(x.sum(1)).astype(np.float32)}


def dtypes_of(fn: Any, *args: Any, precision: str) -> dict[str, set[str]]:
    """The dtypes of the results of each op in the traced program."""
    compiled = rg.compile(fn, *args, precision=precision, backend="numpy")
    found: dict[str, set[str]] = {}
    for node in compiled.ir("trace").nodes:
        found.setdefault(node.op.name, set()).update(v.dtype.name for v in node.outputs)
    return found


@pytest.mark.parametrize("half", HALVES)
def test_products_are_in_16_bits_and_sums_in_32(half: str) -> None:
    model = rg.models.GPT(vocab=7, width=8, layers=1, heads=2, context=6, seed=3)

    def loss(model: Any, tokens: Any) -> Any:
        return rg.losses.cross_entropy(model(tokens), tokens)

    found = dtypes_of(loss, model, rg.spec("i32", "B", "T"), precision=half)
    for op in ("dot_general", "attention", "gelu", "add"):
        assert found[op] == {half}, op
    assert found["layer_norm"] == {half, "f32"}  # the result; the mean and the deviation
    assert found["token_nll"] == {"f32"}
    assert found["sum"] == {"f32"}


@pytest.mark.parametrize("half", HALVES)
def test_exponentials_powers_and_running_sums_are_in_32_bits(half: str) -> None:
    def fn(w: Any, x: Any) -> Any:
        h = x @ w
        return rnp.exp(h), rnp.log1p(h * h), h**1.5, rnp.cumsum(h, axis=0), rnp.sum(h), rnp.tanh(h)

    specs = rg.spec("f32", 3, 4), rg.spec("f32", "B", 3)
    compiled = rg.compile(fn, *specs, precision=half, backend="numpy")
    w, x = np.full((3, 4), 0.25, np.float32), np.full((2, 3), 0.5, np.float32)
    assert [y.dtype.name for y in compiled(w, x)] == ["float32"] * 5 + [
        "bfloat16" if half == "bf16" else "float16"
    ]


def test_what_is_stretched_over_16_bits_becomes_so_and_equals_meet_in_32() -> None:
    def fn(w: Any, x: Any, bias: Any, mask: Any) -> Any:
        h = x @ w
        return h + bias, h * mask, h - x, rnp.where(mask > 0, h, bias), rnp.concatenate([h, x])

    specs = rg.spec("f32", 3, 3), rg.spec("f32", "B", 3), rg.spec("f32", 3), rg.spec("f32", "B", 1)
    graph = rg.compile(fn, *specs, precision="bf16", backend="numpy").ir("trace")
    assert [v.dtype.name for v in graph.outputs] == ["bf16", "bf16", "f32", "bf16", "f32"]


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("backend", ["numpy", "native"])
def test_gradients_are_in_32_bits_and_close_to_those_of_32(half: str, backend: str) -> None:
    model, batch = regression(), rows(4)

    def both(model: Any, x: Any, y: Any) -> Any:
        return rg.value_and_grad(squared)(model, x, y)

    specs = SPECS["x"], SPECS["y"]
    wide = rg.compile(both, model, *specs, backend="numpy")(model, *batch.values())
    mixed = rg.compile(both, model, *specs, precision=half, backend=backend)
    value, grads = mixed(model, *batch.values())
    assert value.dtype == np.float32
    np.testing.assert_allclose(value, wide[0], rtol=LOOSE[half])
    for name, g in grads.parameters().items():
        assert g.dtype == np.float32, name
        expected = wide[1].parameters()[name]
        np.testing.assert_allclose(g, expected, atol=LOOSE[half] * np.abs(expected).max())


@pytest.mark.parametrize("half", HALVES)
def test_a_carry_that_a_user_begins_in_32_bits_stays_in_32(half: str) -> None:
    def run(w: Any, xs: Any) -> Any:
        def cell(total: Any, x: Any) -> Any:
            total = total + x @ w
            return total, total

        return rg.scan(cell, rnp.zeros((3, 4), "f32"), xs)

    specs = rg.spec("f32", 5, 4), rg.spec("f32", "T", 3, 5)
    rng = np.random.default_rng(5)
    w = (rng.integers(-3, 4, (5, 4)) / 4).astype(np.float32)  # exact in 16 bits
    xs = (rng.integers(-3, 4, (40, 3, 5)) / 4).astype(np.float32)
    last, ys = rg.compile(run, *specs, precision=half, backend="numpy")(w, xs)
    assert last.dtype == ys.dtype == np.float32
    np.testing.assert_array_equal(ys, np.cumsum(xs @ w, axis=0))


@pytest.mark.parametrize("half", HALVES)
def test_cells_keep_their_states_in_16_bits(half: str) -> None:
    layer = rg.nn.LSTM(3, 4, seed=6)
    found = dtypes_of(lambda m, x: m(x)[0], layer, rg.spec("f32", "B", "T", 3), precision=half)
    assert found["scan"] == {half}


@pytest.mark.parametrize("half", HALVES)
def test_rules_and_recomputation_of_the_user(half: str) -> None:
    clipped = rg.custom_vjp(
        lambda x: rnp.clip(x, -1.0, 1.0), lambda x: (rnp.clip(x, -1.0, 1.0), x),
        lambda x, g: (g * 0.5,),
    )  # fmt: skip

    def loss(w: Any, x: Any) -> Any:
        return rnp.sum(rg.remat(lambda w: clipped(x @ w))(w))

    w, x = np.ones((3, 2), np.float32), np.full((4, 3), 0.25, np.float32)
    both = rg.compile(rg.value_and_grad(loss), w, x, precision=half, backend="numpy")
    value, g = both(w, x)
    assert value == 4 * 2 * 0.75 and g.dtype == np.float32
    np.testing.assert_array_equal(g, np.full((3, 2), 0.5, np.float32))


def test_another_precision_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"precision='fp8': it is 'bf16' or 'f16'"):
        rg.compile(lambda x: x, rg.spec("f32", 3), precision="fp8")
    with pytest.raises(UnsupportedError, match="'bf16' or 'f16'"):
        rg.compile_training(squared, regression(), rg.optim.SGD(0.1), SPECS, precision="f32")


# --- training


def compiled_step(**options: Any) -> Any:
    options = {"backend": "numpy", **options}
    return rg.compile_training(squared, regression(), rg.optim.AdamW(1e-2), SPECS, **options)


def scaled_step(scale: float = 2.0**8, **options: Any) -> Any:
    """A step in f16 whose scale has settled: the first one is too high for these gradients."""
    step = compiled_step(precision="f16", **options)
    tensors, meta = step.state()
    tensors["optimizer.loss_scale.scale"] = np.asarray(scale, np.float32)
    step.set_state(tensors, meta)
    return step


@pytest.mark.parametrize("backend", ["numpy", "native"])
@pytest.mark.parametrize("half", HALVES)
def test_training_follows_that_in_32_bits(half: str, backend: str) -> None:
    wide, mixed = compiled_step(), compiled_step(precision=half, backend=backend)
    for k in range(60):
        batch = rows(k, count=5 + k % 3)
        a, b = wide(**batch), mixed(**batch)
    assert b["loss"] < 0.5
    assert b["loss"] == pytest.approx(a["loss"], rel=0.1)
    for name, p in mixed.model.parameters().items():
        assert p.dtype == np.float32, name


@pytest.mark.parametrize("backend", ["numpy", "native"])
def test_an_overflow_changes_nothing_but_the_scale(backend: str) -> None:
    step = scaled_step(ema=0.9, clip_norm=1.0, backend=backend)
    for k in range(3):
        assert step(**rows(k))["skipped"] == 0.0
    before, _ = step.state()
    metrics = step(**rows(9, size=1e6))  # beyond the largest f16
    after, _ = step.state()
    assert metrics["skipped"] == 1.0 and metrics["scale"] == 2.0**8
    scaling = {name for name in after if "loss_scale" in name}
    assert len(scaling) == 2 and set(before) == set(after)
    for name in set(after) - scaling:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    assert after["optimizer.loss_scale.scale"] == 2.0**7
    assert after["optimizer.loss_scale.good_steps"] == 0
    metrics = step(**rows(3))
    assert metrics["skipped"] == 0.0 and metrics["scale"] == 2.0**7
    assert step.state()[0]["step"] == 4


def test_the_step_behind_an_overflow_is_the_one_without_it() -> None:
    with_it, without = (scaled_step(ema=0.5) for _ in range(2))
    for k in range(2):
        with_it(**rows(k))
        without(**rows(k))
    with_it(**rows(9, size=1e6))
    with_it(**rows(2))
    tensors, meta = without.state()
    half = {"optimizer.loss_scale.scale": np.float32(2.0**7)}
    without.set_state({**tensors, **{k: np.asarray(v) for k, v in half.items()}}, meta)
    without(**rows(2))
    for name, x in without.state()[0].items():
        if "good_steps" not in name:
            np.testing.assert_array_equal(with_it.state()[0][name], x, err_msg=name)


def test_a_first_scale_that_is_too_high_settles() -> None:
    step = compiled_step(precision="f16")
    metrics = [step(**rows(k, size=20.0)) for k in range(20)]
    assert metrics[0]["scale"] == FIRST_SCALE and metrics[-1]["skipped"] == 0.0
    skipped = [m["skipped"] for m in metrics]
    assert 0 < sum(skipped) < 8
    for m, following in itertools.pairwise(metrics):
        assert following["scale"] == m["scale"] * (0.5 if m["skipped"] else 1.0)
    assert step.state()[0]["step"] == 20 - sum(skipped)


def test_the_scale_rises_after_many_good_steps() -> None:
    step = scaled_step()
    tensors, meta = step.state()
    tensors["optimizer.loss_scale.good_steps"] = np.asarray(GOOD_STEPS - 2, np.int32)
    step.set_state(tensors, meta)
    scales = [step(**rows(k))["scale"] for k in range(4)]
    assert scales == [2.0**8, 2.0**8, 2.0**9, 2.0**9]
    assert step.state()[0]["optimizer.loss_scale.good_steps"] == 2


def test_the_scale_changes_no_metric() -> None:
    """Dividing by a power of two is exact: loss, norm and clipping are those without a scale."""
    one, other = (scaled_step(scale, clip_norm=0.1) for scale in (2.0**8, 2.0**11))
    a, b = one(**rows(7)), other(**rows(7))
    assert a["loss"] == b["loss"]
    assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)  # subnormals of f16


def test_parts_of_a_batch_are_scaled_alike() -> None:
    whole, parts = scaled_step(), scaled_step(accumulate=3)
    batch = rows(8, count=12)
    a, b = whole(**batch), parts(**batch)
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=LOOSE["f16"])


def test_a_step_resumes_bit_for_bit_with_its_scale_and_average(tmp_path: Any) -> None:
    step = compiled_step(precision="f16", ema=0.8)
    step(**rows(0))
    step(**rows(1, size=1e6))
    step.save(tmp_path / "run")
    other = compiled_step(precision="f16", ema=0.8)
    other.restore(tmp_path / "run")
    for k in range(2, 4):
        assert step(**rows(k)) == other(**rows(k))
    for name, x in step.state()[0].items():
        np.testing.assert_array_equal(x, other.state()[0][name], err_msg=name)


def test_the_plan_shows_what_16_bits_save() -> None:
    def loss(model: Any, tokens: Any) -> Any:
        return rg.losses.cross_entropy(model(tokens), tokens)

    def activations(precision: str | None) -> int:
        model = rg.models.GPT(vocab=11, width=64, layers=3, heads=2, context=64, seed=1)
        step = rg.compile_training(
            loss, model, rg.optim.SGD(0.1), {"tokens": rg.spec("i32", "B", "T")},
            at={"B": 16, "T": 64}, precision=precision, backend="native",
        )  # fmt: skip
        state = sum(x.nbytes for x in model.parameters().values())
        return int(step.plan(B=16, T=64).peak_bytes) - state

    assert activations("bf16") < 0.65 * activations(None)


# --- the running average


@pytest.mark.parametrize("backend", ["numpy", "native"])
def test_the_average_follows_the_parameters(backend: str) -> None:
    step = compiled_step(ema=0.75, backend=backend)
    average = {name: x.copy() for name, x in step.model.parameters().items()}
    for k in range(4):
        step(**rows(k))
        now = step.model.parameters()
        average = {name: 0.75 * a + 0.25 * now[name] for name, a in average.items()}
    for name, x in step.averaged.parameters().items():
        np.testing.assert_allclose(x, average[name], rtol=1e-5, atol=1e-7, err_msg=name)


def test_averaging_changes_no_step() -> None:
    with_it, without = compiled_step(ema=0.9), compiled_step()
    for k in range(3):
        assert with_it(**rows(k)) == without(**rows(k))
    for name, x in without.model.parameters().items():
        np.testing.assert_array_equal(with_it.model.parameters()[name], x, err_msg=name)


def test_an_average_beside_a_state_that_is_no_dict() -> None:
    class Momentum:
        """An optimizer whose state is a list."""

        def learning_rate(self, step: Any) -> float:
            return 0.1

        def init(self, params: Any) -> Any:
            return [np.zeros_like(p) for p in params]

        def update(self, grads: Any, state: Any, params: Any, step: Any) -> Any:
            state = [s * 0.5 + g for s, g in zip(state, grads, strict=True)]
            return [p - 0.1 * s for p, s in zip(params, state, strict=True)], state

    step = rg.compile_training(
        squared, regression(), Momentum(), SPECS, ema=0.5, precision="f16", backend="numpy"
    )
    first = step.model.up.weight
    assert step(**rows(0))["skipped"] == 0.0
    np.testing.assert_allclose(
        step.averaged.up.weight, (first + step.model.up.weight) / 2, rtol=1e-5, atol=1e-7
    )


def test_what_is_no_decay() -> None:
    for ema in (1.0, -0.1, True, "0.9"):
        with pytest.raises(DataError, match="the decay of the running average"):
            compiled_step(ema=ema)
    with pytest.raises(DataError, match="keeps no average"):
        _ = compiled_step().averaged
