"""Causality and the isolation of segments of every model that looks along time, from its graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.certificates.visibility import Visibility, visibility
from retrograde.compiler.ir.interpreter import evaluate
from tests.frontends.leak_families import FAMILIES, F, Family

TIME = rg.dim("T", max=8)
BOTH = ("causality", "segment isolation")
FRAMES = {
    "frames": rg.spec("f32", "B", TIME, F), "times": rg.spec("f32", "B", TIME),
    "source": rg.spec("f32", "B", "S", F),
}  # fmt: skip
IDS = {"tokens": rg.spec("i32", "B", TIME), "source_lengths": rg.spec("i32", "B")}
MASKS = {"lengths": rg.spec("i32", "B"), "segments": rg.spec("i32", "B", TIME)}


def seen(
    family: Family, masks: tuple[str, ...], claims: tuple[str, ...],
    then: Callable[[Any, Any], Any] = lambda x, masks: x,
) -> Visibility:  # fmt: skip
    def call(model: Any, frames: Any, ids: Any, masks: Any) -> Any:
        return then(family.call(model, frames, ids, **masks), masks)

    given = {name: MASKS[name] for name in masks}
    return visibility(rg.trace(call, family.make(), FRAMES, IDS, given), claims)


def claims_of(family: Family, masks: tuple[str, ...]) -> tuple[str, ...]:
    holds = (family.causal, "segments" in masks)
    return tuple(claim for claim, it in zip(BOTH, holds, strict=True) if it)


@pytest.mark.parametrize("name", FAMILIES)
def test_claims_hold_for_every_mask(name: str) -> None:
    family = FAMILIES[name]
    for masks in {(), family.masks, family.masks[:1], family.masks[1:]}:
        claims = claims_of(family, masks)
        if claims:
            found = seen(family, masks, claims)
            assert not found.faults, (masks, found.faults)
            assert len(found.proofs) >= len(claims)


FAULTS: dict[str, tuple[Callable[[Any, Any], Any], tuple[str, ...]]] = {
    "a mean": (lambda x, masks: x + rnp.mean(x, axis=1, keepdims=True), BOTH),
    "the next step": (lambda x, masks: x[:, 1:], BOTH),
    "a running sum": (lambda x, masks: rnp.cumsum(x, axis=1), BOTH[1:]),
    "turned round": (lambda x, masks: rnp.flip(x, axis=1), BOTH),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["gpt", "lstm", "tcn", "ssm", "trajectories"])
def test_what_is_planted_behind_a_model_is_found(name: str, fault: str) -> None:
    then, broken = FAULTS[fault]
    found = seen(FAMILIES[name], ("segments",), BOTH, then)
    assert tuple(f.part for f in found.faults) == broken
    assert all("test_claims_of_models.py:" in f.seen for f in found.faults)


@pytest.mark.parametrize("name", FAMILIES)
def test_segments_that_are_not_given_on_are_found(name: str) -> None:
    family = FAMILIES[name]
    if "segments" not in family.masks:
        return

    def call(model: Any, frames: Any, ids: Any, segments: Any) -> Any:
        return family.call(model, frames, ids) + rnp.expand_dims(segments, -1) * 0

    graph = rg.trace(call, family.make(), FRAMES, IDS, MASKS["segments"])
    found = visibility(graph, ("segment isolation",))
    assert [f.part for f in found.faults] == ["segment isolation"]


def several(x: Any, inner: bool) -> Any:
    """[B, T, F] -> [B, 3 T, F], the three of a step side by side, or all steps three times."""
    batch, time, width = x.shape
    wide = rnp.broadcast_to(rnp.expand_dims(x, 2), (batch, time, 3, width))
    wide = wide if inner else rnp.swapaxes(wide, 1, 2)
    return rnp.reshape(wide, (batch, 3 * time, width))


def apart(y: Any, like: Any, inner: bool) -> Any:
    """The second of the three."""
    batch, time, width = like.shape
    if inner:
        return rnp.reshape(y, (batch, time, 3, width))[:, :, 1]
    return rnp.reshape(y, (batch, 3, time, width))[:, 1]


def moved_on(x: Any, steps: int) -> Any:
    """What stood so many places before."""
    return rnp.pad(x, ((0, 0), (steps, 0), (0, 0)))[:, : x.shape[1]]


def flat(x: Any) -> Any:
    return rnp.reshape(x, (x.shape[0] * x.shape[1], x.shape[2]))


def later(x: Any) -> Any:
    return rnp.concatenate([x[:, 1:], x[:, :1] * 0.0], axis=1)


FACTORS: dict[str, tuple[Callable[[Any], Any], bool]] = {
    "sums within and over steps": (lambda x: apart(rnp.cumsum(several(x, True), 1), x, True), True),
    "sums over all steps, thrice": (
        lambda x: apart(rnp.cumsum(several(x, False), 1), x, False), False
    ),
    "sums from row to row": (lambda x: rnp.reshape(rnp.cumsum(flat(x), 0), x.shape), False),
    "steps of two orders": (
        lambda x: rnp.reshape(flat(x) + flat(rnp.swapaxes(x, 0, 1)), x.shape), False
    ),
    "a part of a later step": (
        lambda x: apart(moved_on(several(later(x), True), 1), x, True), False
    ),
    "a loop over rows and steps": (
        lambda x: rnp.reshape(
            rg.scan(lambda h, y: (h + y, h), rnp.zeros(F), flat(x))[1], x.shape
        ),
        False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FACTORS)
def test_steps_among_other_factors(name: str) -> None:
    fn, causal = FACTORS[name]
    graph = rg.trace(fn, FRAMES["frames"])
    assert bool(visibility(graph).proofs) is causal
    x = np.random.default_rng(0).normal(size=(2, 5, F)).astype("f4")
    changed = x.copy()
    changed[:, 3] += 1
    before, after = (evaluate(graph, [v], {"B": 2, "T": 5})[0] for v in (x, changed))
    assert np.array_equal(before[:, :3], after[:, :3]) is causal
