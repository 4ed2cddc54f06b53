"""Sizes -> one language-model training problem; every contender gets the same token ids."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
