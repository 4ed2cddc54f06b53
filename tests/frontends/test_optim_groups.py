"""Adafactor against its formulas; groups of parameters against optimizers of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde import optim
from retrograde.errors import DataError

RNG = np.random.default_rng(5)


def arrays() -> dict[str, Any]:
    rng = np.random.default_rng(7)
    return {
        "head": {"bias": rng.normal(size=3), "weight": rng.normal(size=(4, 3))},
        "table": rng.normal(size=(2, 5, 3)),
    }


def cubes(m: Any, c: Any) -> Any:
    """A loss whose gradient is 4 (p - c)^3."""
    parts = m["head"]["bias"], m["head"]["weight"], m["table"]
    return sum(rnp.sum((p - c) ** 4) for p in parts)


def trained(optimizer: Any, steps: int = 4, **options: Any) -> tuple[Any, Any]:
    step = rg.compile_training(
        cubes, arrays(), optimizer, {"c": rg.spec("f64")}, backend="numpy", **options
    )
    for i in range(steps):
        metrics = step(c=np.asarray(np.sin(i)))
    return step, metrics


def flat(model: Any) -> dict[str, Any]:
    return {"head.bias": model["head"]["bias"], "head.weight": model["head"]["weight"],
            "table": model["table"]}  # fmt: skip


def adafactor(p: Any, rate: float, weight_decay: float, steps: int) -> Any:
    """Shazeer & Stern 2018, algorithms 4 and 5, with the step size of torch."""
    eps = np.finfo(p.dtype).eps
    row = np.zeros((*p.shape[:-1], 1))
    column = np.zeros((*p.shape[:-2], 1, p.shape[-1])) if p.ndim > 1 else 0.0
    v = np.zeros_like(p)
    for i in range(steps):
        t, g = i + 1, 4 * (p - np.sin(i)) ** 3
        share = t**-0.8
        if p.ndim > 1:
            row = (1 - share) * row + share * (g**2).mean(-1, keepdims=True)
            column = (1 - share) * column + share * (g**2).mean(-2, keepdims=True)
            second = row * column / np.maximum(row.mean(-2, keepdims=True), eps)
        else:
            v = (1 - share) * v + share * g**2
            second = v
        u = g / np.sqrt(np.maximum(second, eps**2))
        u = u / max(1.0, np.sqrt((u**2).mean()))
        size = max(1e-3, np.sqrt((p**2).mean())) * min(rate, 1 / np.sqrt(t))
        p = p * (1 - rate * weight_decay) - size * u
    return p


@pytest.mark.parametrize(("rate", "decay"), [(0.05, 0.0), (0.9, 0.1)])
def test_adafactor(rate: float, decay: float) -> None:
    step, _ = trained(optim.Adafactor(rate, weight_decay=decay))
    for name, p in flat(arrays()).items():
        np.testing.assert_allclose(
            flat(step.model)[name], adafactor(p, rate, decay, 4), rtol=1e-10, err_msg=name
        )


def test_adafactor_keeps_a_row_and_a_column_of_a_matrix() -> None:
    tensors, _ = trained(optim.Adafactor())[0].state()
    shapes = {k.removeprefix("optimizer."): x.shape for k, x in tensors.items() if "optim" in k}
    assert shapes == {
        "row.head.weight": (4, 1), "column.head.weight": (1, 3), "v.head.bias": (3,),
        "row.table": (2, 5, 1), "column.table": (2, 1, 3),
    }  # fmt: skip


def test_adafactor_is_clipped_by_the_norm_of_all() -> None:
    """The factor of clipping cancels in g / sqrt(V), but for the first moments' history."""
    a, m = trained(optim.Adafactor(0.1), steps=1, clip_norm=0.5)
    b, _ = trained(optim.Adafactor(0.1), steps=1)
    assert m["grad_norm"] > 0.5
    for name, p in flat(a.model).items():
        np.testing.assert_allclose(p, flat(b.model)[name], rtol=1e-7, err_msg=name)


def test_what_adafactor_does_not_take() -> None:
    with pytest.raises(DataError, match="exponent below 0"):
        optim.Adafactor(decay=0.5)
    with pytest.raises(DataError, match="clip is 0"):
        optim.Adafactor(clip=0)


# --- groups


def test_groups_are_as_if_each_had_its_own_optimizer() -> None:
    whole = optim.groups(
        optim.AdamW(1e-2, weight_decay=0.5),
        {"head.*": {"rate": 0.1}, "*.bias": {"weight_decay": 0.0}},
    )
    step, metrics = trained(whole)
    alone = {
        "head.bias": optim.AdamW(1e-3, weight_decay=0.0),
        "head.weight": optim.AdamW(1e-3, weight_decay=0.5),
        "table": optim.AdamW(1e-2, weight_decay=0.5),
    }
    for name, optimizer in alone.items():
        expected = flat(trained(optimizer)[0].model)[name]
        np.testing.assert_allclose(flat(step.model)[name], expected, rtol=1e-12, err_msg=name)
    assert metrics["lr"] == pytest.approx(1e-2)


def test_a_schedule_is_multiplied() -> None:
    rates = optim.linear(1e-2, 0.0, 8)
    step, _ = trained(optim.groups(optim.SGD(rates), {"table": {"rate": 0.5}}))
    expected, _ = trained(optim.SGD(optim.linear(5e-3, 0.0, 8)))
    np.testing.assert_allclose(step.model["table"], expected.model["table"], rtol=1e-12)


def test_the_state_is_that_without_groups(tmp_path: Any) -> None:
    plain, _ = trained(optim.AdamW(1e-2))
    step = rg.compile_training(
        cubes, arrays(), optim.groups(optim.AdamW(1e-2), {"table": {"rate": 1.0}}),
        {"c": rg.spec("f64")}, backend="numpy",
    )  # fmt: skip
    plain.save(tmp_path / "run")
    step.restore(tmp_path / "run")
    step(c=np.asarray(0.5))
    plain(c=np.asarray(0.5))
    for name, x in plain.state()[0].items():
        np.testing.assert_allclose(step.state()[0][name], x, rtol=1e-12, err_msg=name)


def test_what_is_frozen_stays_and_has_no_part_in_the_norm() -> None:
    step, metrics = trained(optim.groups(optim.Adam(0.1), {"head.*": {"frozen": True}}), steps=1)
    for name in ("head.bias", "head.weight"):
        np.testing.assert_array_equal(flat(step.model)[name], flat(arrays())[name])
    g = 4 * arrays()["table"] ** 3
    assert metrics["grad_norm"] == pytest.approx(np.sqrt((g**2).sum()), rel=1e-6)
    assert not any("head" in name for name in step.state()[0] if name.startswith("optimizer."))


def test_later_patterns_win() -> None:
    settings = {"*": {"rate": 0.0}, "table": {"rate": 1.0}}
    step, _ = trained(optim.groups(optim.SGD(0.01), settings))
    np.testing.assert_array_equal(step.model["head"]["bias"], arrays()["head"]["bias"])
    expected, _ = trained(optim.SGD(0.01))
    np.testing.assert_allclose(step.model["table"], expected.model["table"], rtol=1e-12)


def test_groups_with_averages_and_a_scale() -> None:
    model = {k: v.astype(np.float32) for k, v in {"a": RNG.normal(size=3), "b": np.ones(2)}.items()}
    step = rg.compile_training(
        lambda m, c: rnp.sum((m["a"] - c) ** 2) + rnp.sum(m["b"] ** 2), model,
        optim.groups(optim.Adafactor(0.1), {"b": {"frozen": True}}), {"c": rg.spec("f32")},
        ema=0.5, precision="f16", backend="numpy",
    )  # fmt: skip
    step(c=np.asarray(0.25, np.float32))
    np.testing.assert_allclose(step.averaged["a"], (model["a"] + step.model["a"]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(step.averaged["b"], model["b"])


def test_groups_that_cannot_be() -> None:
    with pytest.raises(DataError, match=r"'\*\.scale' has no parameter; there is head\.bias"):
        trained(optim.groups(optim.SGD(0.1), {"*.scale": {"rate": 0.5}}))
    with pytest.raises(DataError, match="SGD has no 'betas'; there is rate, frozen, momentum"):
        optim.groups(optim.SGD(0.1), {"*": {"betas": (0.9, 0.9)}})
    with pytest.raises(DataError, match="frozen is True or False"):
        optim.groups(optim.SGD(0.1), {"*": {"frozen": 1}})
    with pytest.raises(DataError, match="factor of the learning rate"):
        optim.groups(optim.SGD(0.1), {"*": {"rate": -1.0}})
    with pytest.raises(DataError, match=r"take an optimizer of rg\.optim"):
        optim.groups(object(), {})  # type: ignore[arg-type]
    with pytest.raises(DataError, match="nothing to train"):
        trained(optim.groups(optim.SGD(0.1), {"*": {"frozen": True}}))
