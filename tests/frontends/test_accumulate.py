"""Gradient accumulation: a batch in parts gives what it gives in one piece, in less memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde import tree
from retrograde.errors import BudgetError, DataError, ShapeError, UnsupportedError
from retrograde.models import GPT, RNNLM

B, T, V = 30, 7, 11
IDS = rg.spec("i32", "B", "T")
BOTH = pytest.mark.parametrize("backend", ["numpy", "native"])


def in_f64(model: Any) -> Any:
    return tree.map(lambda x: x.astype(np.float64), model)


def gpt(**options: Any) -> Any:
    return GPT(vocab=V, width=8, layers=1, heads=2, context=T, seed=3, **options)


def lstm(**options: Any) -> Any:
    return RNNLM(vocab=V, width=6, layers=2, seed=4, **options)


def batch(rng: np.random.Generator, rows: int = B, steps: int = T) -> dict[str, Any]:
    """Rows of different lengths: of the first six none has a token, of the others more and more."""
    lengths = np.minimum(np.arange(rows) // 4, steps).astype(np.int32)
    lengths[:6] = 0
    return {
        "tokens": rng.integers(0, V, (rows, steps)).astype(np.int32),
        "targets": rng.integers(0, V, (rows, steps)).astype(np.int32),
        "lengths": lengths,
    }


ENTRIES = {"tokens": IDS, "targets": IDS, "lengths": rg.spec("i32", "B")}


def masked(model: Any, tokens: Any, targets: Any, lengths: Any) -> Any:
    logits = model(tokens, lengths=lengths) if isinstance(model, RNNLM) else model(tokens)
    present = rnp.arange(tokens.shape[1]) < rnp.reshape(lengths, (-1, 1))
    return rg.losses.cross_entropy(logits, targets, present)


def many_terms(model: Any, tokens: Any, targets: Any, lengths: Any) -> Any:
    """Terms that count tokens, elements, what is not ignored, and once."""
    logits = model(tokens)
    present = rnp.arange(tokens.shape[1]) < rnp.reshape(lengths, (-1, 1))
    mean = rg.losses.cross_entropy(logits, targets, present)
    mean = mean + 0.3 * rg.losses.mse(logits, rnp.ones_like(logits))
    mean = mean + rg.losses.cross_entropy(logits, targets, ignore_index=2) / 4
    mean = mean + 0.2 * rg.Mean(rnp.sum(logits[:, 0] ** 2), logits.shape[0])
    shrunk = rnp.sum(model.token_embedding.weight**2)
    return mean + 0.05 * shrunk + rg.Mean(shrunk, rnp.sum(lengths))


def trained(loss: Any, model: Any, parts: int, backend: str, **options: Any) -> Any:
    """A step after two updates, and the metrics of both."""
    options = {"clip_norm": 0.5, **options}
    step = rg.compile_training(
        loss, model, rg.optim.SGD(0.5, momentum=0.9), ENTRIES, at={"B": B, "T": T},
        backend=backend, accumulate=parts, **options,
    )  # fmt: skip
    rng = np.random.default_rng(5)
    return step, [step(**batch(rng)) for _ in range(2)]


def assert_same(found: Any, wanted: Any, within: float) -> None:
    (step, metrics), (whole, expected) = found, wanted
    for got, want in zip(metrics, expected, strict=True):
        assert got == pytest.approx(want, rel=within, abs=within)
    tensors, _ = whole.state()
    for name, x in step.state()[0].items():
        assert np.abs(x - tensors[name]).max(initial=0) <= within, name


@pytest.mark.parametrize("parts", [2, 3, 5, 30])
def test_parts_of_different_counts_make_the_whole_batch(parts: int) -> None:
    whole = trained(many_terms, in_f64(gpt()), 1, "numpy")
    assert_same(trained(many_terms, in_f64(gpt()), parts, "numpy"), whole, 1e-12)


@BOTH
@pytest.mark.parametrize("make", [gpt, lstm])
def test_rows_draw_the_same_dropout_in_parts(make: Any, backend: str) -> None:
    whole = trained(masked, in_f64(make(dropout=0.3)), 1, backend)
    found = trained(masked, in_f64(make(dropout=0.3)), 5, backend)
    assert_same(found, whole, 1e-12)
    off = trained(masked, in_f64(make()), 5, backend)
    assert abs(off[1][0]["loss"] - found[1][0]["loss"]) > 1e-6


@BOTH
def test_single_precision_sums_in_f32(backend: str) -> None:
    whole = trained(many_terms, gpt(dropout=0.1), 1, backend)
    found = trained(many_terms, gpt(dropout=0.1), 3, backend)
    assert_same(found, whole, 2e-5)


def test_a_cut_gradient_is_cut_in_parts_too() -> None:
    whole = trained(masked, in_f64(lstm()), 1, "numpy", truncate=2)
    assert_same(trained(masked, in_f64(lstm()), 3, "numpy", truncate=2), whole, 1e-12)
    uncut = trained(masked, in_f64(lstm()), 3, "numpy")
    assert abs(uncut[1][1]["loss"] - whole[1][1]["loss"]) > 1e-9


def test_draws_go_by_the_rows_of_the_whole_batch() -> None:
    """By hand: what a loss draws in the shape of its rows, at any place in them."""

    def noisy(m: Any, x: Any, key: Any) -> Any:
        noise = rg.random.normal(key, x.shape, dtype=np.float64)
        flat = rg.random.uniform(rg.random.fold_in(key, 3), (x.shape[0] * 5,), dtype=np.float64)
        fixed = rg.random.uniform(rg.random.fold_in(key, 4), (5,), dtype=np.float64)
        y = (x + noise) * m["w"] * fixed + rnp.reshape(flat, (-1, 5))
        return rg.Mean(rnp.sum(y * y), y.size)

    entries = {"x": rg.spec("f64", "B", 5), "key": rg.spec("u32", 2)}
    given = {"x": np.random.default_rng(6).normal(size=(12, 5)), "key": rg.random.key(7)}
    found = []
    for parts in (1, 3, 4):
        step = rg.compile_training(
            noisy, {"w": np.ones(5)}, rg.optim.SGD(0.1), entries, accumulate=parts
        )
        found.append((step(**given)["loss"], step.model["w"]))
    for loss, w in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-14)
        assert np.abs(w - found[0][1]).max() <= 1e-14


def test_time_may_come_first_and_entries_may_be_whole() -> None:
    def loss(m: Any, x: Any, lengths: Any, scale: Any) -> Any:
        present = rnp.reshape(rnp.arange(x.shape[0]), (-1, 1)) < lengths
        y = rnp.tanh(x @ m["w"]) * scale
        return rg.Mean(rnp.sum(rnp.where(present, y[:, :, 0] ** 2, 0.0)), rnp.sum(lengths))

    entries = {
        "x": rg.spec("f64", "T", "N", 3), "lengths": rg.spec("i64", "N"),
        "scale": rg.spec("f64", 4),
    }  # fmt: skip
    rng = np.random.default_rng(8)
    given = {
        "x": rng.normal(size=(T, 6, 3)), "lengths": np.array([0, 0, 3, 7, 1, 5]),
        "scale": rng.normal(size=4),
    }  # fmt: skip
    w = rng.normal(size=(3, 4))
    one, two = (
        rg.compile_training(loss, {"w": w}, rg.optim.SGD(0.1), entries, accumulate=k)
        for k in (1, 3)
    )
    assert one(**given) == pytest.approx(two(**given), rel=1e-13)
    assert np.abs(one.model["w"] - two.model["w"]).max() <= 1e-14


# --- memory


def peak(parts: int, backend: str, rows: int, **options: Any) -> int:
    step = rg.compile_training(
        lambda m, tokens, targets: rg.losses.cross_entropy(m(tokens), targets),
        GPT(vocab=V, width=64, layers=1, heads=2, context=16),
        rg.optim.AdamW(1e-3),
        {"tokens": IDS, "targets": IDS},
        at={"B": rows, "T": 16}, backend=backend, accumulate=parts, **options,
    )  # fmt: skip
    planned = int(step.plan().peak_bytes)
    assert planned == step.peak()(B=rows, T=16)
    if backend == "numpy":
        step(**{k: np.zeros((rows, 16), np.int32) for k in ("tokens", "targets")})
        assert planned == step.peak_bytes
    return planned


@BOTH
def test_the_peak_is_that_of_a_part_and_the_sums(backend: str) -> None:
    arrays = tree.leaves(GPT(vocab=V, width=64, layers=1, heads=2, context=16))
    size, largest = sum(x.nbytes for x in arrays), max(x.nbytes for x in arrays)
    peaks = {k: peak(k, backend, 32) for k in (1, 2, 4, 8, 32)}
    assert list(peaks.values()) == sorted(peaks.values(), reverse=True)
    row = 2 * 16 * 4  # bytes of a row of the batch
    for k, found in peaks.items():
        # Of a part in one step there are the gradients too, which here are the sums.
        assert found <= peak(1, backend, 32 // k) + size + 32 * row + largest
    # The same parts, eight times as many: only the batch itself grows.
    assert peak(8 * 8, backend, 8 * 32) <= peaks[8] + (8 - 1) * 32 * row + 1024


@BOTH
def test_a_budget_is_kept_part_by_part(backend: str) -> None:
    free = trained(masked, in_f64(gpt(dropout=0.2)), 3, backend)
    with pytest.raises(BudgetError) as refused:
        trained(masked, in_f64(gpt(dropout=0.2)), 3, backend, budget=1)
    least = refused.value.minimum_bytes
    assert least < free[0].peak_bytes
    found = trained(masked, in_f64(gpt(dropout=0.2)), 3, backend, budget=least)
    assert_same(found, free, 0.0)
    assert found[0].peak_bytes == least


def test_loops_over_time_in_parts_keep_to_a_budget() -> None:
    free = trained(masked, in_f64(lstm(dropout=0.2)), 3, "numpy")
    budget = int(0.9 * free[0].peak_bytes)
    found = trained(masked, in_f64(lstm(dropout=0.2)), 3, "numpy", budget=budget)
    assert found[0].peak_bytes <= budget
    assert_same(found, free, 1e-12)


# --- what it lives with


def test_a_step_in_parts_is_certified() -> None:
    step, _ = trained(masked, lstm(dropout=0.2), 3, "numpy")
    found = step.certify(sizes=[{"B": 6, "T": 5}], recipes=False)
    assert found.ok, found.blame


def test_a_saved_step_goes_on_in_parts(tmp_path: Path) -> None:
    step, _ = trained(masked, gpt(dropout=0.2), 3, "numpy")
    step.save(tmp_path, program=True)
    given = batch(np.random.default_rng(9))
    wanted = step(**given)
    loaded = rg.load(tmp_path)
    with pytest.raises(ShapeError, match=r"test_accumulate\.py:\d+.*accumulate=3.*B = 29"):
        loaded(**batch(np.random.default_rng(9), rows=29))
    assert loaded(**given) == wanted
    again, _ = trained(masked, gpt(dropout=0.2), 3, "numpy")
    again.restore(tmp_path)
    assert again(**given) == wanted


def test_it_can_be_looked_into() -> None:
    step, _ = trained(masked, lstm(dropout=0.2), 3, "numpy")
    whole, _ = trained(masked, lstm(dropout=0.2), 1, "numpy")
    given = batch(np.random.default_rng(9))
    norms, wanted = (np.asarray(s.gradient_norms(**given).carries[0].norms) for s in (step, whole))
    assert np.allclose(norms, wanted, rtol=1e-3)
    assert step.first_nonfinite(**given) is None
    assert "scan" in str(step.ir("trace"))
    assert step.report()


# --- what it refuses


def compiled(loss: Any, entries: Any = None, parts: Any = 2, **options: Any) -> Any:
    entries = {"x": rg.spec("f64", "B", 5)} if entries is None else entries
    return rg.compile_training(
        loss, {"w": np.ones(5)}, rg.optim.SGD(0.1), entries, accumulate=parts, **options
    )


def squares(m: Any, x: Any, **rest: Any) -> Any:
    return rg.Mean(rnp.sum((x * m["w"]) ** 2), x.size)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda m, x: rnp.mean(x * m["w"]), r"returns a Tracer.*rg\.Mean\(sum, count\)"),
        (lambda m, x: squares(m, x) + rnp.mean(x * m["w"]), "count does not"),
        (lambda m, x: rg.Mean(rnp.sum(x * m["w"]), 5), "count does not"),
        (lambda m, x: squares(m, x) * rnp.sum(x), "weight of a Mean depends on the batch"),
        (lambda m, x: squares(m, x) / x.shape[0], "weight of a Mean depends on the batch"),
        (lambda m, x: rg.Mean(rnp.sum(x), rnp.sum(m["w"] * x)), "count of a Mean depends"),
    ],
)
def test_losses_that_do_not_add_up_are_refused(loss: Any, said: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"test_accumulate\.py:\d+.*{said}"):
        compiled(loss)


def test_batches_that_cannot_be_cut_are_refused() -> None:
    for parts in (0, -1, True):
        with pytest.raises(DataError, match=r"test_accumulate\.py.*accumulate"):
            compiled(squares, parts=parts)
    with pytest.raises(ShapeError, match=r"accumulate = 2\.5"):
        compiled(squares, parts=2.5)
    with pytest.raises(UnsupportedError, match=r"a size that has a name.*\(x\)"):
        compiled(squares, {"x": rg.spec("f64", 4, 5)})
    pairs = {"x": rg.spec("f64", "B", 5), "pairs": rg.spec("f64", "B", "B")}
    with pytest.raises(UnsupportedError, match="cannot cut pairs"):
        compiled(squares, pairs)
    doubled = {"x": rg.spec("f64", "B", 5), "twice": rg.spec("f64", "2*B")}
    with pytest.raises(UnsupportedError, match="cannot cut twice"):
        compiled(squares, doubled)
    with pytest.raises(ShapeError, match="at most 3 of B"):
        compiled(squares, {"x": rg.spec("f64", rg.dim("B", max=3), 5)}, parts=4)
    with pytest.raises(ShapeError, match=r"B = 7 is no multiple of 2"):
        compiled(squares, at={"B": 7})


def test_a_batch_that_is_no_multiple_changes_nothing() -> None:
    step = compiled(squares, parts=4)
    before = step.model["w"]
    for rows in (2, 6):
        said = rf"test_accumulate\.py:\d+: axis 0 of x.*accumulate=4.*B = {rows}"
        with pytest.raises(ShapeError, match=said):
            step(x=np.ones((rows, 5)))
    assert np.array_equal(step.model["w"], before)
    assert step(x=np.ones((8, 5)))["loss"] == 1.0
