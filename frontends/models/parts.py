"""What models share: checks of tokens and frames, embeddings, positions.

Input: tokens [B, T] or frames [B, T, inputs]; output: [B, T, width].  Invariant: with lengths, what
stands beyond them, NaN, infinities and any number included, changes no bit.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import Any

import retrograde.numpy as rnp
from retrograde import masks
from retrograde.compiler.errors import DTypeError, ShapeError, UnsupportedError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.location import skip_frames_under, where
from retrograde.nn import Dropout, Embedding, Linear, Module, checks, sinusoidal
from retrograde.nn.attention import within
from retrograde.nn.initial import Source, source
from retrograde.numpy.primitives import Array

skip_frames_under(os.path.abspath(__file__))
_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep

POSITIONS = ("learned", "sinusoidal", "rotary", "none")


def asked_at() -> str:
    """The line outside of the models that is to blame, as the beginning of a message."""
    return where(outside=_HERE)


def check_tokens(tokens: Any, model: str) -> None:
    """Integers [B, T]."""
    if len(getattr(tokens, "shape", ())) != 2:
        got = checks.shown(tokens) if hasattr(tokens, "shape") else type(tokens).__name__
        raise ShapeError(f"{asked_at()}{model} takes tokens [B, T], got {got}")
    if not dtypes.dtype(tokens.dtype).is_integer:
        raise DTypeError(f"{asked_at()}{model} takes integer tokens, got {checks.shown(tokens)}")


def check_frames(frames: Any, width: int, model: str) -> None:
    """Floats [B, T, width]."""
    checks.last_axis(frames, width, model)
    if len(frames.shape) != 3:
        raise ShapeError(
            f"{asked_at()}{model} takes [B, T, {width}], got {checks.shown(frames)}"
        )


def one_of(value: str, known: Iterable[str], what: str) -> str:
    """`value`, if it is one of the known names."""
    if value not in tuple(known):
        raise UnsupportedError(f"{asked_at()}{what} is {value!r}: it is {', '.join(known)}")
    return value


def tokens_within(tokens: Array, lengths: Array | None) -> Array:
    """Tokens with 0 beyond each row's length, where any number may stand."""
    return tokens if lengths is None else within(tokens, lengths)


class TokenEmbedding(Module):
    """sqrt(width) times rows of a table: tokens [B, T] -> [B, T, width], each number about 1.

    `table.weight` is normal with standard deviation 1/sqrt(width), as a head that shares it needs
    (Vaswani et al. 2017, section 3.4).  With `lengths`, tokens beyond them may be any number."""

    table: Embedding

    def __init__(self, vocab: int, width: int, *, seed: int | Source | None = None) -> None:
        width = checks.positive(width, "the width")
        self.table = Embedding(vocab, width, seed=seed, std=1.0 / math.sqrt(width))

    @property
    def vocab(self) -> int:
        """How many tokens there are."""
        return int(self.table.weight.shape[0])

    def __call__(self, tokens: Array, lengths: Array | None = None) -> Array:
        check_tokens(tokens, "TokenEmbedding")
        return self.table(tokens_within(tokens, lengths)) * math.sqrt(self.table.weight.shape[1])

    def attend(self, x: Array) -> Array:
        """Logits by the same table: [..., width] -> [..., vocab]."""
        return self.table.attend(x)


class FrameEmbedding(Module):
    """Frames of numbers (audio, sensors, features): [B, T, inputs] -> [B, T, width], by a Linear.

    With `lengths`, frames beyond them are taken as zeros."""

    projection: Linear

    def __init__(self, inputs: int, width: int, *, seed: int | Source | None = None) -> None:
        self.projection = Linear(inputs, width, seed=seed)

    def __call__(self, frames: Array, lengths: Array | None = None) -> Array:
        check_frames(frames, self.projection.weight.shape[0], "FrameEmbedding")
        return self.projection(frames if lengths is None else within(frames, lengths))


class PatchEmbedding(Module):
    """Patches of a series or of frames: [B, T, inputs] -> [B, T / patch, width], by a Linear.

    The `patch` frames of a patch lie side by side, `weight` is [patch inputs, width].  T is a
    multiple of the patch: an array of another T is a ShapeError, a T that is not known yet is made
    one by writing it so, rg.spec("f32", "B", "4*P", inputs).  With `lengths` (in frames), frames
    beyond them are zeros; `lengths_after` counts the patches that hold any.  Source: Dosovitskiy et
    al. 2020; Nie et al. 2022."""

    projection: Linear
    patch: int

    def __init__(
        self, inputs: int, width: int, patch: int, *, seed: int | Source | None = None
    ) -> None:
        self.patch = checks.positive(patch, "the patch")
        inputs = checks.positive(inputs, "the number of inputs of PatchEmbedding")
        self.projection = Linear(self.patch * inputs, width, seed=seed)

    def __call__(self, frames: Array, lengths: Array | None = None) -> Array:
        wide = self.projection.weight.shape[0]
        check_frames(frames, wide // self.patch, "PatchEmbedding")
        batch, time, _ = frames.shape
        count = time // self.patch
        if not dims.same(count * self.patch, time):
            raise ShapeError(
                f"{where()}PatchEmbedding takes a time that is a multiple of {self.patch}, got "
                f"{checks.shown(frames)}: pad the frames, and give lengths"
            )
        frames = frames if lengths is None else within(frames, lengths)
        return self.projection(rnp.reshape(frames, (batch, count, wide)))

    def lengths_after(self, lengths: Array) -> Array:
        """How many patches hold a frame of each row."""
        return (lengths + (self.patch - 1)) // self.patch


class EventEmbedding(Module):
    """Events with time stamps: kinds [B, T], times [B, T] (and values [B, T, inputs]) ->
    [B, T, width].

    An event is the sum of the row of its kind, of sines and cosines of its time (in the unit of
    `scale`; Vaswani et al. 2017, at times as Zuo et al. 2020 do) through a Linear, of log(1 + the
    time since the event before) times a vector, and of its values through a Linear.  With
    `lengths`, what stands beyond them may be anything.  The first event of a row, or of one of the
    `segments`, has none before it: 0."""

    kinds: TokenEmbedding
    waves: Linear
    gap: Array
    values: Linear | None
    scale: float

    def __init__(
        self,
        kinds: int,
        width: int,
        *,
        inputs: int = 0,
        scale: float = 1.0,
        seed: int | Source | None = None,
    ) -> None:
        if not scale > 0:
            raise ShapeError(f"{where()}the scale of EventEmbedding is {scale}: it is positive")
        numbers = source(seed)
        width = checks.positive(width, "the width of EventEmbedding")
        self.kinds = TokenEmbedding(kinds, width, seed=numbers)
        self.waves = Linear(2 * (-(-width // 2)), width, seed=numbers)
        self.gap = numbers.normal((width,), 1.0)
        self.values = Linear(inputs, width, seed=numbers) if inputs else None
        self.scale = float(scale)

    def __call__(
        self,
        kinds: Array,
        times: Array,
        values: Array | None = None,
        lengths: Array | None = None,
        segments: Array | None = None,
    ) -> Array:
        check_tokens(kinds, "EventEmbedding")
        if len(times.shape) != 2 or not all(map(dims.same, times.shape, kinds.shape)):
            raise ShapeError(
                f"{where()}the times are {checks.shown(times)}: one for each of the events "
                f"{checks.shown(kinds)}"
            )
        if (values is None) != (self.values is None):
            said = "no values" if values is None else "values, and it was made without inputs="
            raise ShapeError(f"{where()}this EventEmbedding got {said}")
        if lengths is not None:
            times = within(times, lengths)
        times = times * (1.0 / self.scale)
        since = times[:, 1:] - times[:, :-1]
        since = rnp.concatenate([times[:, :1] * 0.0, since], axis=1)
        if segments is not None:
            since = rnp.where(masks.changes(segments), rnp.zeros_like(since), since)
        if lengths is not None:
            since = within(since, lengths)
        x = self.kinds(kinds, lengths)
        waves = sinusoidal(times, self.waves.weight.shape[0])
        x = x + self.waves(rnp.astype(waves, x.dtype))
        gaps = rnp.log1p(rnp.maximum(since, 0.0))
        x = x + rnp.expand_dims(rnp.astype(gaps, x.dtype), -1) * self.gap
        if self.values is None or values is None:
            return x
        check_frames(values, self.values.weight.shape[0], "EventEmbedding")
        return x + self.values(values if lengths is None else within(values, lengths))


def input_embedding(
    vocab: int | None, inputs: int | None, width: int, numbers: Source, model: str
) -> TokenEmbedding | FrameEmbedding:
    """One for tokens, or one for frames."""
    if (vocab is None) == (inputs is None):
        raise ShapeError(f"{where()}{model} takes vocab= for tokens, or inputs= for frames")
    if vocab is not None:
        return TokenEmbedding(vocab, width, seed=numbers)
    assert inputs is not None
    return FrameEmbedding(inputs, width, seed=numbers)


class Positions(Module):
    """Adds positions to x [B, T, width], or nothing where attention turns by them.

    `learned` has a table of `context` rows, beyond which a position is a DataError when the program
    runs; `sinusoidal`, `rotary` and `none` have no longest position."""

    table: Embedding | None
    dropout: Dropout
    kind: str

    def __init__(
        self, kind: str, width: int, context: int | None, dropout: float, numbers: Source
    ) -> None:
        self.kind = one_of(kind, POSITIONS, "positions")
        if kind == "learned" and context is None:
            raise ShapeError(f"{where()}learned positions take context=, how many there are")
        learned = kind == "learned" and context is not None
        std = 1.0 / math.sqrt(width)
        self.table = Embedding(context or 1, width, seed=numbers, std=std) if learned else None
        self.dropout = Dropout(dropout)

    def __call__(self, x: Array, positions: Array | None) -> Array:
        places = rnp.arange(x.shape[1]) if positions is None else positions
        width = x.shape[-1]
        if self.table is not None:
            x = x + self.table(places) * math.sqrt(width)
        elif self.kind == "sinusoidal":
            x = x + rnp.astype(sinusoidal(places, width), x.dtype)
        return self.dropout(x)
