"""The GPT: names and shapes, causality, gradients, ties, dropout, memory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde import tree
from retrograde.models import GPT

Array = npt.NDArray[Any]
SIZES: dict[str, Any] = {"vocab": 11, "width": 12, "layers": 2, "heads": 3, "context": 7}
B, T = 3, 5
IDS = rg.spec("i32", "B", "T")


def loss(model: Any, tokens: Any, targets: Any) -> Any:
    return rg.losses.cross_entropy(model(tokens), targets)


def widened(model: GPT) -> GPT:
    out: GPT = tree.map(lambda x: x.astype(np.float64), model)
    return out


@pytest.fixture
def tokens() -> Array:
    return np.random.default_rng(3).integers(0, 11, (B, T)).astype(np.int32)


@pytest.fixture
def targets() -> Array:
    return np.random.default_rng(4).integers(0, 11, (B, T)).astype(np.int32)


def step_of(model: Any, **options: Any) -> Any:
    return rg.compile_training(
        loss,
        model,
        rg.optim.AdamW(1e-2),
        batch={"tokens": IDS, "targets": IDS},
        at={"B": B, "T": T},
        clip_norm=1.0,
        **options,
    )


# --- shapes and first values


def test_arrays_have_the_documented_names_and_shapes() -> None:
    expected = {
        "token_embedding.weight": (11, 12),
        "position_embedding.weight": (7, 12),
        "final_norm.weight": (12,),
        "final_norm.bias": (12,),
        "head.weight": (12, 11),
    }
    for i in range(2):
        block = {
            "attention_norm.weight": (12,),
            "attention_norm.bias": (12,),
            "qkv.weight": (12, 36),
            "qkv.bias": (36,),
            "attention_out.weight": (12, 12),
            "attention_out.bias": (12,),
            "mlp_norm.weight": (12,),
            "mlp_norm.bias": (12,),
            "mlp_up.weight": (12, 48),
            "mlp_up.bias": (48,),
            "mlp_down.weight": (48, 12),
            "mlp_down.bias": (12,),
        }
        expected |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    assert {k: v.shape for k, v in GPT(**SIZES).parameters().items()} == expected
    tied = set(GPT(**SIZES, tied=True).parameters())
    assert tied == expected.keys() - {"head.weight"}


def test_first_values_are_those_of_gpt_2() -> None:
    model = GPT(vocab=300, width=128, layers=8, heads=4, context=100, seed=2)
    for name, x in model.parameters().items():
        if x.ndim == 1:
            assert np.all(x == (1 if name.endswith("norm.weight") else 0)), name
            continue
        residual = name.endswith(("attention_out.weight", "mlp_down.weight"))
        assert x.std() == pytest.approx(0.02 / math.sqrt(16) if residual else 0.02, rel=0.03), name
    weights = [x.tobytes() for x in model.parameters().values() if x.ndim == 2]
    assert len(set(weights)) == len(weights)


def test_the_seed_fixes_the_first_values() -> None:
    a, b, c = (GPT(**SIZES, seed=s).parameters() for s in (1, 1, 2))
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert not np.array_equal(a["head.weight"], c["head.weight"])


def test_the_first_loss_is_that_of_guessing(tokens: Array, targets: Array) -> None:
    model = GPT(**SIZES)
    logits = model(tokens)
    assert logits.shape == (B, T, 11) and logits.dtype == np.float32
    assert float(loss(model, tokens, targets)) == pytest.approx(math.log(11), rel=0.02)


# --- what it computes


def test_logits_depend_on_the_past_alone(tokens: Array) -> None:
    model = widened(GPT(**SIZES))
    logits = model(tokens)
    for t in range(T):
        changed = tokens.copy()
        changed[:, t] = (changed[:, t] + 1) % 11
        other = model(changed)
        np.testing.assert_allclose(other[:, :t], logits[:, :t], atol=1e-13)
        assert np.all(np.abs(other[:, t:] - logits[:, t:]).max(-1) > 1e-9)


def test_positions_tell_equal_tokens_apart() -> None:
    logits = GPT(**SIZES)(np.full((1, T), 4, np.int32))
    assert len({row.tobytes() for row in logits[0]}) == T


@pytest.mark.parametrize("remat", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_gradients_are_slopes(remat: bool, tied: bool, tokens: Array, targets: Array) -> None:
    model = widened(GPT(**SIZES, remat=remat, tied=tied))
    # At the first values most signals are near zero, which would hide a wrong factor.
    rng = np.random.default_rng(8)
    model = tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape), model)
    value = rg.jit(loss_value)
    gradient = rg.grad(loss)(model, tokens, targets)
    for _ in range(3):
        direction = tree.map(lambda x: rng.normal(size=x.shape), model)
        slope = sum(
            float(np.vdot(g, d))
            for g, d in zip(tree.leaves(gradient), tree.leaves(direction), strict=True)
        )
        expected = difference(value, model, direction, tokens, targets)
        assert slope == pytest.approx(expected, rel=1e-6)


def loss_value(model: Any, tokens: Any, targets: Any) -> Any:
    return loss(model, tokens, targets).value


def difference(value: Any, model: Any, direction: Any, *batch: Array) -> float:
    """The slope along a direction by central differences, to the sixth order of the step."""

    def at(h: float) -> float:
        moved = tree.map(lambda x, d: x + h * d, model, direction)
        return float(value(moved, *batch))

    def central(h: float) -> float:
        return (at(h) - at(-h)) / (2 * h)

    h = 1e-3
    a, b, c = central(h), central(2 * h), central(3 * h)
    return 1.5 * a - 0.6 * b + 0.1 * c


def test_each_gradient_is_its_own_slope(tokens: Array, targets: Array) -> None:
    model = widened(GPT(**SIZES))
    rng = np.random.default_rng(9)
    model = tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape), model)
    value = rg.jit(loss_value)
    gradient = rg.grad(loss)(model, tokens, targets).parameters()
    arrays = model.parameters()
    for name, x in arrays.items():
        d = rng.normal(size=x.shape)
        zero = model.replace({n: np.zeros_like(y) for n, y in arrays.items()})
        slope = difference(value, model, zero.replace({name: d}), tokens, targets)
        got = float(np.vdot(gradient[name], d))
        assert got == pytest.approx(slope, rel=1e-5, abs=1e-9), name


def test_recomputing_changes_no_bit(tokens: Array, targets: Array) -> None:
    steps = [step_of(GPT(**SIZES, dropout=0.2, remat=remat), seed=5) for remat in (True, False)]
    for _ in range(3):
        metrics = [step(tokens=tokens, targets=targets) for step in steps]
        assert metrics[0] == metrics[1]
    for a, b in zip(*(tree.leaves(step.model) for step in steps), strict=True):
        assert np.array_equal(a, b)


def test_it_learns_and_serves_every_size() -> None:
    step = step_of(GPT(**SIZES))
    rng = np.random.default_rng(1)
    losses = []
    for k in range(60):
        b, t = (B, T) if k < 40 else (1 + k % 4, 1 + k % 7)
        start = rng.integers(0, 11, (b, 1))
        row = ((start + 3 * np.arange(t + 1)) % 11).astype(np.int32)
        losses.append(step(tokens=row[:, :-1], targets=row[:, 1:])["loss"])
    assert losses[0] > 2 and max(losses[-10:]) < 0.7


# --- what may not be


def test_longer_than_the_context_is_an_error(targets: Array) -> None:
    model = GPT(**SIZES)
    compiled = rg.compile(lambda m, ids: m(ids), model, IDS)
    assert compiled(model, np.zeros((2, 7), np.int32)).shape == (2, 7, 11)
    with pytest.raises(rg.errors.DataError, match="7"):
        compiled(model, np.zeros((2, 8), np.int32))
    step = step_of(model)
    before = tree.leaves(step.model)
    with pytest.raises(rg.errors.DataError):
        step(tokens=np.zeros((2, 8), np.int32), targets=np.zeros((2, 8), np.int32))
    assert all(np.array_equal(a, b) for a, b in zip(before, tree.leaves(step.model), strict=True))


@pytest.mark.parametrize("which", ["tokens", "targets"])
@pytest.mark.parametrize("wrong", [11, -1])
def test_a_token_beyond_the_vocabulary_is_an_error(
    which: str, wrong: int, tokens: Array, targets: Array
) -> None:
    step = step_of(GPT(**SIZES))
    batch = {"tokens": tokens, "targets": targets}
    batch[which][1, 2] = wrong
    before = tree.leaves(step.model)
    with pytest.raises(rg.errors.DataError, match=str(wrong)):
        step(**batch)
    assert all(np.array_equal(a, b) for a, b in zip(before, tree.leaves(step.model), strict=True))


def test_settings_and_arguments_that_do_not_fit() -> None:
    with pytest.raises(rg.errors.ShapeError, match="no multiple of 5 heads"):
        GPT(**{**SIZES, "heads": 5})
    with pytest.raises(rg.errors.ShapeError, match="vocab is 0"):
        GPT(**{**SIZES, "vocab": 0})
    model = GPT(**SIZES)
    with pytest.raises(rg.errors.ShapeError, match=r"tokens \[B, T\], got i32\[5\]"):
        model(np.zeros(5, np.int32))
    with pytest.raises(rg.errors.DTypeError, match="integer tokens, got f32"):
        model(np.zeros((2, 5), np.float32))


# --- tied weights


def test_a_tied_table_is_one_array_with_both_gradients(tokens: Array, targets: Array) -> None:
    tied = widened(GPT(**SIZES, tied=True))
    rng = np.random.default_rng(8)
    tied = tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape), tied)
    table = tied.token_embedding.weight
    untied = widened(GPT(**SIZES)).replace({**tied.parameters(), "head.weight": table.T.copy()})
    one = rg.grad(loss)(tied, tokens, targets).parameters()
    two = rg.grad(loss)(untied, tokens, targets).parameters()
    both = two["token_embedding.weight"] + two["head.weight"].T
    np.testing.assert_allclose(one["token_embedding.weight"], both, rtol=1e-10, atol=1e-14)
    for name in one.keys() - {"token_embedding.weight"}:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-10, atol=1e-14)


def test_tied_weights_stay_tied_through_training_and_a_checkpoint(
    tokens: Array, targets: Array, tmp_path: Path
) -> None:
    step = step_of(GPT(**SIZES, tied=True))
    for _ in range(3):
        step(tokens=tokens, targets=targets)
    step.save(tmp_path / "saved")
    other = step_of(GPT(**SIZES, tied=True, seed=9))
    other.restore(tmp_path / "saved")
    assert step(tokens=tokens, targets=targets) == other(tokens=tokens, targets=targets)
    assert other.model.head is None
    untied = step_of(GPT(**SIZES))
    with pytest.raises(rg.errors.CheckpointError, match="another model"):
        untied.restore(tmp_path / "saved")


# --- dropout


def test_dropout_is_at_work_in_training_alone(tokens: Array, targets: Array) -> None:
    model = GPT(**SIZES, dropout=0.5)
    plain = GPT(**SIZES)
    assert np.array_equal(model(tokens), plain(tokens))
    assert np.array_equal(rg.jit(model.eval())(tokens), rg.jit(plain)(tokens))
    with_dropout = step_of(model)(tokens=tokens, targets=targets)
    assert with_dropout != step_of(plain)(tokens=tokens, targets=targets)
    assert with_dropout == step_of(model)(tokens=tokens, targets=targets)
    assert with_dropout != step_of(model, seed=1)(tokens=tokens, targets=targets)
    assert step_of(model.eval())(tokens=tokens, targets=targets) == step_of(plain)(
        tokens=tokens, targets=targets
    )


def test_dropped_numbers_differ_from_step_to_step(tokens: Array, targets: Array) -> None:
    frozen = rg.compile_training(
        loss,
        GPT(**SIZES, dropout=0.5),
        rg.optim.SGD(0.0),
        batch={"tokens": IDS, "targets": IDS},
    )
    losses = {frozen(tokens=tokens, targets=targets)["loss"] for _ in range(4)}
    assert len(losses) == 4


# --- memory


def step_at_recipe_size(remat: bool) -> Any:
    model = GPT(vocab=65, width=128, layers=4, heads=4, context=64, remat=remat)
    return rg.compile_training(
        loss,
        model,
        rg.optim.AdamW(1e-3),
        batch={"tokens": IDS, "targets": IDS},
        at={"B": 12, "T": 64},
        clip_norm=1.0,
    )


def test_recomputing_saves_what_it_is_meant_to() -> None:
    """PyTorch needs 37 MiB beside parameters and optimizer state here; 0.6 of it is 22 MiB."""
    plans = [step_at_recipe_size(remat).plan(B=12, T=64) for remat in (True, False)]
    with_remat, without = (plan.peak_bytes - plan.state_bytes for plan in plans)
    assert with_remat <= 22 * 2**20
    gelu_and_norms = 4 * (4 + 2) * 12 * 64 * 128 * 4  # per layer 4W + 2W numbers a token
    assert without - with_remat >= 0.75 * gelu_and_norms


def test_generation_needs_no_room_for_training() -> None:
    model = GPT(vocab=65, width=128, layers=4, heads=4, context=64)
    compiled = rg.compile(lambda m, ids: rnp.argmax(m(ids)[:, -1], -1), model, IDS)
    peak = compiled.plan(B=12, T=64).peak_bytes
    weights = sum(x.nbytes for x in model.parameters().values())
    assert peak - weights <= 4 * 2**20
