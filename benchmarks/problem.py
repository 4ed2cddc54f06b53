"""Sizes -> language-model training problems; every contender gets the same token ids."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class GPTProblem:
    """A decoder-only language model and the batch it is trained on."""

    vocab: int = 65
    width: int = 128
    layers: int = 4
    heads: int = 4
    batch: int = 12
    length: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    seed: int = 0

    def tiny(self) -> GPTProblem:
        """The same program with next to no data: what it leaves resident is the library itself."""
        return replace(self, vocab=7, width=2 * self.heads, batch=2, length=3)

    @property
    def parameter_count(self) -> int:
        """Trained numbers: embeddings, blocks, final norm and the untied head without a bias."""
        norm = 2 * self.width
        attention = 4 * self.width * self.width + 4 * self.width
        mlp = 8 * self.width * self.width + 5 * self.width
        embeddings = (self.vocab + self.length) * self.width
        head = self.width * self.vocab
        return embeddings + self.layers * (2 * norm + attention + mlp) + norm + head

    @property
    def persistent_bytes(self) -> int:
        """What must outlive an AdamW step in float32: the parameters and two moments of each."""
        return 3 * 4 * self.parameter_count

    def tokens_and_targets(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Token ids [batch, length] and the id that follows each, drawn from the seed."""
        rng = np.random.default_rng(self.seed)
        ids = rng.integers(0, self.vocab, (self.batch, self.length + 1), dtype=np.int32)
        return np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])

    def __str__(self) -> str:
        return (
            f"GPT V{self.vocab} T{self.length} B{self.batch} "
            f"d{self.width} h{self.heads} L{self.layers}"
        )


@dataclass(frozen=True)
class LSTMProblem:
    """A language model of one LSTM layer and the batch it is trained on; time comes first.

    Gates in the order input, forget, cell, output; one bias."""

    length: int = 128
    batch: int = 32
    width: int = 256
    vocab: int = 65
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    seed: int = 0

    def tiny(self) -> LSTMProblem:
        """The same program with next to no data: what it leaves resident is the library itself."""
        return replace(self, length=3, batch=2, width=4, vocab=7)

    def weights(self) -> dict[str, npt.NDArray[Any]]:
        """The first parameters, float32: those of the embedding normal, the others uniform."""
        rng = np.random.default_rng([self.seed, 1])
        bound = self.width**-0.5
        shapes = {
            "input": (self.width, 4 * self.width),
            "hidden": (self.width, 4 * self.width),
            "bias": (4 * self.width,),
            "head": (self.width, self.vocab),
            "head_bias": (self.vocab,),
        }
        drawn = {name: rng.uniform(-bound, bound, shape) for name, shape in shapes.items()}
        drawn["embedding"] = rng.normal(size=(self.vocab, self.width))
        return {name: x.astype(np.float32) for name, x in drawn.items()}

    @property
    def persistent_bytes(self) -> int:
        """What must outlive an AdamW step in float32: the parameters and two moments of each."""
        count = self.width * (8 * self.width + 4 + 2 * self.vocab) + self.vocab
        return 3 * 4 * count

    def tokens_and_targets(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Token ids [length, batch] and the id that follows each, drawn from the seed."""
        rng = np.random.default_rng(self.seed)
        ids = rng.integers(0, self.vocab, (self.length + 1, self.batch), dtype=np.int32)
        return np.ascontiguousarray(ids[:-1]), np.ascontiguousarray(ids[1:])

    def __str__(self) -> str:
        return f"LSTM T{self.length} B{self.batch} d{self.width} V{self.vocab}"
