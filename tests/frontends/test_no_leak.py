"""No leak: what may not be seen changes no bit of any output, loss or gradient that may not see it.

Every model that looks along time, under every mask it takes: causal, lengths, segments, windows and
their products.  Each program is compiled once; what counts in its loss is an input.  Planted leaks
are found by the same comparison."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde import tree
from tests.frontends.leak_families import (
    FAMILIES,
    INSIDE,
    LENGTHS,
    SEGMENTS,
    SOURCES,
    B,
    Family,
    S,
    T,
    V,
    gpt,
    numbers,
    of_pairs,
)

Array = npt.NDArray[Any]
NUMBERS = (np.nan, np.inf, -np.inf, -3e9)  # what may stand in padding; integers are -5 there


class Program:
    """Outputs, loss and gradients of a family, where `counts` says what is in the loss."""

    def __init__(self, family: Family, backend: str = "numpy") -> None:
        self.family = family
        rng = np.random.default_rng(5)
        self.model = tree.map(
            lambda x: (x + 0.2 * rng.normal(size=x.shape)).astype("f4"), family.make()
        )
        self.targets = rng.integers(0, V, (B, T))

        def loss(model: Any, frames: Any, ids: Any, targets: Any, counts: Any, masks: Any) -> Any:
            out = family.call(model, frames, ids, **masks)
            return rg.losses.cross_entropy(out, targets, counts), out

        self.frames, self.ids = numbers()
        known = {"lengths": LENGTHS, "segments": SEGMENTS}
        self.masks = {name: known[name] for name in family.masks}
        self.run = rg.compile(
            rg.value_and_grad(loss, argnums=(0, 1), has_aux=True), self.model, self.frames,
            self.ids, self.targets, INSIDE, self.masks, backend=backend,
        )  # fmt: skip

    def __call__(self, counts: Array, forbidden: Array | None = None, noise: float = 0) -> Any:
        """(outputs that count, loss, gradients), with noise where it is forbidden."""
        frames, ids = dict(self.frames), dict(self.ids)
        if forbidden is not None:
            ids["tokens"] = np.where(forbidden, self._other(noise), ids["tokens"])
            for name in ("frames", "times"):
                x = frames[name]
                hidden = forbidden.reshape(B, T, *(1,) * (x.ndim - 2))
                frames[name] = np.where(hidden, noise or 40 - 3 * x, x).astype("f4")
        return self._made(frames, ids, counts)

    def with_source(self, counts: Array, noise: float) -> Any:
        """As above, with noise beyond the lengths of the source."""
        hidden = (np.arange(S) >= SOURCES[:, None])[..., None]
        source = np.where(hidden, noise, self.frames["source"]).astype("f4")
        return self._made({**self.frames, "source": source}, self.ids, counts)

    def _other(self, noise: float) -> Any:
        return (self.ids["tokens"] + 3) % V if not noise else -5

    def _made(self, frames: Any, ids: Any, counts: Array) -> Any:
        (value, out), gradients = self.run(
            self.model, frames, ids, self.targets, counts, self.masks
        )
        shown = np.asarray(out)[counts]
        return [shown, np.asarray(value), *tree.leaves(gradients)]


def rules(family: Family) -> Iterator[tuple[str, Array, Array, tuple[float, ...]]]:
    """What is looked at, what it may not see, and what may stand there."""
    time = np.arange(T)
    inside = INSIDE if "lengths" in family.masks else np.ones((B, T), bool)
    later = np.broadcast_to(time >= T // 2, (B, T))
    if family.causal:
        yield "causal", inside & ~later, later & inside, (0,)
    if "lengths" in family.masks:
        yield "lengths", inside, ~inside, (0, *NUMBERS)
    one = np.array([[2], [4], [2]])
    if "segments" in family.masks:
        own = inside & (one == SEGMENTS)
        yield "segments", own, inside & (one != SEGMENTS), (0,)
        if family.causal:
            early = own & (time < np.array([[5], [2], [2]]))
            forbidden = inside & ((time >= np.array([[5], [2], [2]])) | (one != SEGMENTS))
            yield "causal & segments", early, forbidden, (0,)
    if family.window is not None:
        last = time == T - 1
        seen = time > T - 1 - family.window
        if "lengths" in family.masks:
            first, last = last & inside, np.zeros((B, T), bool) | (last & inside)
            assert first.any()
        yield "window", np.broadcast_to(last, (B, T)), np.broadcast_to(~seen, (B, T)) & inside, (0,)


def equal_bits(a: Any, b: Any) -> bool:
    return all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


def leaks(program: Program) -> list[str]:
    """The rules that are broken."""
    found = []
    for name, counts, forbidden, noises in rules(program.family):
        plain = program(counts)
        assert all(np.all(np.isfinite(x)) for x in plain), name
        if any(not equal_bits(plain, program(counts, forbidden, n)) for n in noises):
            found.append(name)
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_what_may_not_be_seen_changes_no_bit(name: str) -> None:
    program = Program(FAMILIES[name])
    assert leaks(program) == []
    counts = next(rules(program.family))[1]
    plain = program(counts)
    assert not equal_bits(plain, program(counts, counts))  # what may be seen is
    if program.family.call is of_pairs:
        for noise in (7.0, *NUMBERS):
            assert equal_bits(plain, program.with_source(counts, noise))


# --- leaks that are planted


def forgets(*names: str) -> Any:
    """A way to call a family that leaves masks out."""

    def wrap(call: Any) -> Any:
        return lambda model, frames, ids, **masks: call(
            model, frames, ids, **{k: x for k, x in masks.items() if k not in names}
        )

    return wrap


def adds_a_mean(call: Any) -> Any:
    def made(model: Any, frames: Any, ids: Any, **masks: Any) -> Any:
        x = call(model, frames, ids, **masks)
        return x + 0.01 * rnp.mean(x, axis=1, keepdims=True)

    return made


def moves_on(call: Any) -> Any:
    """What is said of the next step."""

    def made(model: Any, frames: Any, ids: Any, **masks: Any) -> Any:
        x = call(model, frames, ids, **masks)
        return rnp.concatenate([x[:, 1:], x[:, :1]], axis=1)

    return made


def source_unbounded(call: Any) -> Any:
    return lambda model, frames, ids, lengths: model(
        frames["source"], ids["tokens"], None, lengths
    )


PLANTED: dict[str, tuple[str, dict[str, Any], Any, set[str]]] = {
    "no lengths": ("tagger, lstm", {}, forgets("lengths"), {"lengths"}),
    "no lengths in attention": ("encoder", {}, forgets("lengths"), {"lengths"}),
    "no segments in a loop": (
        "gru", {}, forgets("segments"), {"segments", "causal & segments"}
    ),
    "no segments in attention": (
        "gpt, rotary, shared keys", {}, forgets("segments"), {"segments", "causal & segments"}
    ),
    "no segments in a convolution": (
        "tcn", {}, forgets("segments"), {"segments", "causal & segments"}
    ),
    "both ways": ("tagger, attention", {"causal": True}, None, {"causal", "causal & segments"}),
    "a window too wide": (
        "gpt, window alone", {"make": gpt(window=3), "window": 2}, None, {"window"}
    ),
    "a mean": ("ssm", {}, adds_a_mean, {"causal", "segments", "causal & segments"}),
    "the next step": ("rnn", {}, moves_on, {"causal", "segments", "causal & segments"}),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_leaks_are_found(name: str) -> None:
    of, changed, wrap, broken = PLANTED[name]
    family = replace(FAMILIES[of], **changed)
    if wrap is not None:
        family = replace(family, call=wrap(family.call))
    assert set(leaks(Program(family))) == broken


def test_a_source_without_lengths_leaks() -> None:
    family = FAMILIES["seq2seq"]
    program = Program(replace(family, call=source_unbounded(family.call)))
    assert not equal_bits(program(INSIDE), program.with_source(INSIDE, 7.0))
