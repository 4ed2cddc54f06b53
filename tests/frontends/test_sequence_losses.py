"""Normalisations, pinball and CTC: against loops in Python, slopes, noise, and metrics."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import retrograde as rg
from retrograde import metrics, tree

Array = npt.NDArray[Any]
B, T, V = 3, 6, 5


def drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


def slope_holds(loss: Any, x: Array, *data: Any) -> None:
    gradient = rg.jit(rg.grad(lambda x, *d: loss(x, *d).value))(x, *data)
    value = rg.jit(lambda x, *d: loss(x, *d).value)
    way = drawn(*x.shape, seed=9)
    h = 1e-6
    numeric = (float(value(x + h * way, *data)) - float(value(x - h * way, *data))) / (2 * h)
    assert float(np.vdot(gradient, way)) == pytest.approx(numeric, rel=1e-6, abs=1e-9)


# --- token, sequence, sum


MASK = np.array([[1, 1, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]], bool)
SEGMENTS = np.array([[7, 7, 8, 9, 9, 9], [1, 1, 1, 1, 1, 1], [2, 2, 2, 3, 3, 2]])


def nll(x: Array, y: Array) -> Array:
    top = x - x.max(-1, keepdims=True)
    logs = top - np.log(np.exp(top).sum(-1, keepdims=True))
    return -np.take_along_axis(logs, y[..., None], -1)[..., 0]


@pytest.mark.parametrize("weighed", [False, True])
def test_what_counts_once(weighed: bool) -> None:
    x, y = drawn(B, T, V), np.random.default_rng(1).integers(0, V, (B, T))
    weights = np.array([1.0, 2.0, 0.5, 1.5, 3.0]) if weighed else None
    w = np.where(MASK, np.ones((B, T)) if weights is None else weights[y], 0.0)
    each = nll(x, y) * w
    borders = np.ones((B, T), bool)
    borders[:, 1:] = SEGMENTS[:, 1:] != SEGMENTS[:, :-1]
    runs = np.cumsum(borders.ravel()).reshape(B, T)
    by_row = [each[b].sum() / w[b].sum() for b in range(B) if w[b].sum()]
    by_run = [
        each[runs == r].sum() / w[runs == r].sum() for r in np.unique(runs) if w[runs == r].sum()
    ]
    expected: dict[str, tuple[float, float]] = {
        "token": (each.sum(), w.sum()),
        "sum": (each.sum(), B),
        "sequence": (sum(by_row), len(by_row)),
        "segments": (sum(by_run), len(by_run)),
    }
    for name, (total, count) in expected.items():
        given: dict[str, Any] = {"per": name}
        if name == "segments":
            given = {"per": "sequence", "segments": SEGMENTS}

        def loss(x: Any, y: Any, mask: Any, given: dict[str, Any] = given) -> Any:
            return rg.losses.cross_entropy(x, y, mask, weights=weights, **given)

        found = rg.jit(loss)(x, y, MASK)
        assert float(found.sum) == pytest.approx(total), name
        assert float(found.count) == pytest.approx(count), name
        slope_holds(loss, x, y, MASK)
        noisy = np.where(MASK[..., None], x, np.nan)
        run = rg.jit(rg.value_and_grad(loss))
        for a, b in zip(run(x, y, MASK), run(noisy, y, MASK), strict=True):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), name


@pytest.mark.parametrize("per", ["token", "sequence", "sum"])
def test_microbatches_are_one_batch(per: str) -> None:
    """Also where parts of the batch have unequal counts."""

    def loss(model: Any, x: Any, y: Any, mask: Any) -> Any:
        return rg.losses.cross_entropy(model(x), y, mask, per=per)

    y = np.random.default_rng(1).integers(0, V, (4, T)).astype(np.int32)
    mask = np.concatenate([MASK, MASK[:1]])
    batch = {"x": drawn(4, T, 3).astype(np.float32), "y": y, "mask": mask}
    specs = {"x": rg.spec("f32", "B", "T", 3), "y": rg.spec("i32", "B", "T"),
             "mask": rg.spec("bool", "B", "T")}  # fmt: skip
    after = []
    for parts in (1, 2, 4):
        step = rg.compile_training(
            loss, rg.nn.Linear(3, V, seed=1), rg.optim.SGD(0.5), batch=specs, accumulate=parts
        )
        step(**batch)
        after.append(step.model.parameters()["weight"])
    for other in after[1:]:
        np.testing.assert_allclose(other, after[0], atol=1e-6)


def test_elementwise_losses_take_normalisations() -> None:
    p, t = drawn(B, T, 2), drawn(B, T, 2, seed=1)
    mask = MASK.copy()
    for name, each in (("mse", (p - t) ** 2), ("mae", abs(p - t))):
        found = getattr(rg.losses, name)(p, t, mask, per="sequence")
        rows = [each[b][mask[b]].mean() for b in range(B) if mask[b].any()]
        assert float(found.value) == pytest.approx(np.mean(rows))
        found = getattr(rg.losses, name)(p, t, mask, per="sequence", segments=SEGMENTS)
        parts = [each[0, :2].mean(), each[0, 3:].mean(), each[2, :2].mean()]
        assert float(found.value) == pytest.approx(np.mean(parts))


# --- pinball


def test_pinball_is_its_formula_and_finds_quantiles() -> None:
    levels = (0.1, 0.5, 0.8)
    p, t = drawn(B, T, 3), drawn(B, T, seed=1)
    e = t[..., None] - p
    each = np.where(e >= 0, np.array(levels) * e, (np.array(levels) - 1) * e)
    found = rg.losses.pinball(p, t, levels, MASK)
    assert float(found.sum) == pytest.approx(each[MASK].sum())
    assert int(found.count) == 3 * MASK.sum()
    assert metrics.pinball(p, t, levels, MASK) == pytest.approx(each[MASK].mean())
    slope_holds(lambda p, t: rg.losses.pinball(p, t, levels, MASK), p, t)
    # Its minimum for a constant is the quantile.
    sample = np.sort(drawn(200, seed=3))
    losses = [metrics.pinball(np.full((200, 1), c), sample, [0.8]) for c in sample]
    assert sample[int(np.argmin(losses))] == pytest.approx(np.quantile(sample, 0.8), abs=0.05)


# --- CTC


def brute_force(x: Array, labels: tuple[int, ...], blank: int) -> float:
    """The sum over all paths, one by one."""
    logs = x - np.log(np.exp(x).sum(-1, keepdims=True))
    total = 0.0
    for path in itertools.product(range(x.shape[1]), repeat=len(x)):
        said = [c for i, c in enumerate(path) if i == 0 or c != path[i - 1]]
        if tuple(c for c in said if c != blank) == labels:
            total += math.exp(sum(logs[t, c] for t, c in enumerate(path)))
    return -math.log(total) if total else math.inf


@pytest.mark.parametrize("blank", [0, 2])
def test_ctc_is_the_sum_over_all_paths(blank: int) -> None:
    one, two = (1, 2) if blank == 0 else (0, 1)
    for time, labels in itertools.product(
        (1, 2, 4), ((), (one,), (one, two), (one, one), (two, one, two))
    ):
        x = drawn(1, time, 3, seed=time)
        targets = np.array([[*labels, -9]], np.int32)  # one more than there are
        expected = brute_force(x[0], labels, blank)
        found = rg.losses.ctc(x, targets, None, np.array([len(labels)]), blank=blank)
        assert float(found.value) == pytest.approx(expected, rel=1e-10)
        if math.isinf(expected):
            left = rg.losses.ctc(
                x, targets, None, np.array([len(labels)]), blank=blank, impossible="ignored"
            )
            assert (float(left.sum), int(left.count)) == (0.0, 0)


ENDS, SIZES = np.array([6, 4, 5]), np.array([3, 1, 2])
LABELS = np.array([[1, 1, 2], [3, 0, 0], [4, 2, 0]])


def test_slopes_of_ctc() -> None:
    slope_holds(lambda x, *d: rg.losses.ctc(x, *d), drawn(B, T, V), LABELS, ENDS, SIZES)
    slope_holds(
        lambda x, *d: rg.losses.ctc(x, *d, per="token"), drawn(B, T, V), LABELS, ENDS, SIZES
    )


def test_ctc_in_rows_is_ctc_one_by_one_and_noise_changes_no_bit() -> None:
    x = drawn(B, T, V)
    run = rg.jit(rg.value_and_grad(lambda x, *d: rg.losses.ctc(x, *d)))
    value, gradient = run(x, LABELS, ENDS, SIZES)
    for b in range(B):
        alone = run(x[b : b + 1, : ENDS[b]], LABELS[b : b + 1, : SIZES[b]], None, None)
        np.testing.assert_allclose(alone[1][0] / B, gradient[b, : ENDS[b]], atol=1e-14)
        assert not gradient[b, ENDS[b] :].any()
    for noise in (np.nan, np.inf, -np.inf):
        inside = np.arange(T) < ENDS[:, None]
        noisy = np.where(inside[..., None], x, noise)
        labels = np.where(np.arange(3) < SIZES[:, None], LABELS, 10**6)
        other = run(noisy, labels, ENDS, SIZES)
        for p, q in zip(tree.leaves((value, gradient)), tree.leaves(other), strict=True):
            assert np.asarray(p).tobytes() == np.asarray(q).tobytes()


def test_an_impossible_row_has_no_gradient() -> None:
    x, ends = drawn(B, T, V), np.array([3, 4, 5])  # 1 1 2 takes 4 steps
    value, gradient = rg.value_and_grad(lambda x: rg.losses.ctc(x, LABELS, ends, SIZES))(x)
    assert np.isinf(value) and not gradient[0].any() and np.all(np.isfinite(gradient))
    rest = rg.losses.ctc(x, LABELS, ends, SIZES, impossible="ignored")
    others = rg.losses.ctc(x[1:], LABELS[1:], ends[1:], SIZES[1:])
    assert int(rest.count) == 2 and float(rest.value) == pytest.approx(float(others.value))


WRONG: dict[str, tuple[Any, Any, str]] = {
    "per": (lambda: rg.losses.mse(drawn(2), drawn(2), per="x"), rg.errors.UnsupportedError, "sum"),
    "segments": (
        lambda: rg.losses.mse(drawn(B, T), drawn(B, T), segments=SEGMENTS),
        rg.errors.UnsupportedError,
        "per='sequence'",
    ),
    "shape": (
        lambda: rg.losses.mse(drawn(2, T), drawn(2, T), per="sequence", segments=SEGMENTS),
        rg.errors.ShapeError,
        "the segments are",
    ),
    "quantiles": (
        lambda: rg.losses.pinball(drawn(2, 1), drawn(2), [1.0]), rg.errors.ShapeError, "between"
    ),
    "levels": (
        lambda: rg.losses.pinball(drawn(2, 1), drawn(2), [0.1, 0.2]), rg.errors.ShapeError, "2 quan"
    ),
    "ctc": (
        lambda: rg.losses.ctc(drawn(B, T, V), LABELS[0]), rg.errors.ShapeError, "ctc takes logits"
    ),
    "blank": (
        lambda: rg.losses.ctc(drawn(B, T, V), LABELS, blank=V), rg.errors.ShapeError, "the blank"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_names_the_line(name: str) -> None:
    call, error, said = WRONG[name]
    with pytest.raises(error, match=said) as caught:
        call()
    assert __file__.rsplit("/", 1)[1] in str(caught.value)


# --- metrics


def test_metrics_of_classes() -> None:
    t = np.array([0, 0, 1, 1, 2, 5])
    p = np.array([0, 1, 1, 1, 0, 9])
    mask = np.array([1, 1, 1, 1, 1, 0])
    assert metrics.accuracy(p, t, mask) == 3 / 5
    each = metrics.f1(p, t, mask, average="none")
    assert each == {0: 0.5, 1: 0.8, 2: 0.0}
    assert metrics.f1(p, t, mask) == pytest.approx(1.3 / 3)
    assert metrics.f1(p, t, mask, average="micro") == 3 / 5
    assert math.isnan(metrics.accuracy([], []))
    with pytest.raises(rg.errors.ShapeError, match="unequal"):
        metrics.accuracy(p, t[1:])


def test_metrics_of_sequences() -> None:
    assert metrics.edit_distance("kitten", "sitting") == 3
    assert metrics.edit_distance("", "abc") == metrics.edit_distance("abc", "") == 3
    assert metrics.error_rate([[1, 2], [3]], [[1, 2, 3], [4]]) == 2 / 4
    assert metrics.word_error([[1, 2], [3], [5]], [[1, 2], [4], {(5,), (6,)}]) == 1 / 3
    same = [["the", "cat", "sat", "on", "the", "mat"]]
    assert metrics.bleu(same, same) == pytest.approx(100)
    # 5 of 6 words, 3 of 5, 1 of 4 and none of 3: no match of some n is 0, unless smoothed.
    near = [["the", "cat", "sat", "in", "the", "mat"]]
    assert metrics.bleu(near, same) == 0
    smooth = metrics.bleu(near, same, smooth=True)
    assert smooth == pytest.approx(100 * (5 / 6 * 4 / 6 * 2 / 5 * 1 / 4) ** 0.25)
    short = metrics.bleu([["the", "cat", "sat", "on"]], same)
    assert short == pytest.approx(100 * math.exp(1 - 6 / 4))
    assert metrics.bits_per_byte(8 * math.log(2), 4) == pytest.approx(2)


def test_metrics_of_series() -> None:
    past = np.array([1.0, 5, 2, 7, np.nan, 9])
    assert metrics.mae([1.0, 2], [3, 2]) == 1
    # |2-1|, |7-5|, |9-7|: the mean is 5/3.
    assert metrics.mase([1.0, 2], [3, 2], past, season=2) == pytest.approx(1 / (5 / 3))
    with pytest.raises(rg.errors.ShapeError, match="one season"):
        metrics.mase([1.0], [1.0], past, season=6)
