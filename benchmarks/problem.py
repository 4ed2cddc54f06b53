"""Sizes -> language-model training problems: the same first weights and batch for every contender.

`flops` counts the multiply-adds of the matrix products that a step needs, two operations each:
forward once, backward twice; of causal attention half, of ragged batches the real tokens."""

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

    @property
    def flops(self) -> float:
        projections = 24 * self.width**2 + 2 * self.length * self.width
        each = self.layers * projections + 2 * self.width * self.vocab
        return 3 * self.batch * self.length * each

    def weights(self) -> dict[str, npt.NDArray[Any]]:
        """The first parameters, float32, under the names and in the layout of
        `retrograde.models.GPT`: projections [inputs, outputs] and tables normal with standard
        deviation 0.02, biases 0, gains 1."""
        rng = np.random.default_rng([self.seed, 1])
        d = self.width
        drawn: dict[str, Any] = {
            "token_embedding.weight": (self.vocab, d),
            "position_embedding.weight": (self.length, d),
            "head.weight": (d, self.vocab),
        }
        for i in range(self.layers):
            drawn |= {
                f"blocks.{i}.qkv.weight": (d, 3 * d),
                f"blocks.{i}.attention_out.weight": (d, d),
                f"blocks.{i}.mlp_up.weight": (d, 4 * d),
                f"blocks.{i}.mlp_down.weight": (4 * d, d),
            }
        found = {
            name: np.float32(0.02) * rng.standard_normal(shape, np.float32)
            for name, shape in drawn.items()
        }
        for name in drawn:
            if name.startswith("blocks."):
                found[name.replace("weight", "bias")] = np.zeros(found[name].shape[1], np.float32)
        blocks = range(self.layers)
        norms = [f"blocks.{i}.{part}_norm" for i in blocks for part in ("attention", "mlp")]
        for name in (*norms, "final_norm"):
            found[f"{name}.weight"] = np.ones(d, np.float32)
            found[f"{name}.bias"] = np.zeros(d, np.float32)
        return found

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

    @property
    def flops(self) -> float:
        """Without the rewrite of products with the rows of a table, which needs less."""
        each = 16 * self.width**2 + 2 * self.width * self.vocab
        return 3 * self.batch * self.length * each

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


@dataclass(frozen=True)
class GRUProblem:
    """A language model of one GRU layer and the batch it is trained on; time comes first.

    Gates in the order reset, update, new; a bias on either side, as in `torch.nn.GRU`."""

    length: int = 128
    batch: int = 32
    width: int = 256
    vocab: int = 65
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    seed: int = 0

    def tiny(self) -> GRUProblem:
        """The same program with next to no data."""
        return replace(self, length=3, batch=2, width=4, vocab=7)

    @property
    def flops(self) -> float:
        """Without the rewrite of products with the rows of a table, which needs less."""
        each = 12 * self.width**2 + 2 * self.width * self.vocab
        return 3 * self.batch * self.length * each

    def weights(self) -> dict[str, npt.NDArray[Any]]:
        """The first parameters, float32: those of the embedding normal, the others uniform."""
        d = self.width
        shapes = {
            "input": (d, 3 * d),
            "hidden": (d, 3 * d),
            "input_bias": (3 * d,),
            "hidden_bias": (3 * d,),
            "head": (d, self.vocab),
            "head_bias": (self.vocab,),
        }
        return _drawn(self.seed, shapes, {"embedding": (self.vocab, d)}, d)

    @property
    def persistent_bytes(self) -> int:
        """What must outlive an AdamW step in float32: the parameters and two moments of each."""
        return 3 * sum(x.nbytes for x in self.weights().values())

    def tokens_and_targets(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Token ids [length, batch] and the id that follows each, drawn from the seed."""
        rng = np.random.default_rng(self.seed)
        ids = rng.integers(0, self.vocab, (self.length + 1, self.batch), dtype=np.int32)
        return np.ascontiguousarray(ids[:-1]), np.ascontiguousarray(ids[1:])

    def __str__(self) -> str:
        return f"GRU T{self.length} B{self.batch} d{self.width} V{self.vocab}"


@dataclass(frozen=True)
class RaggedProblem:
    """A language model of two LSTM layers on sequences of different lengths, longest first.

    Layers, gates and biases as in `LSTMProblem`; the loss is the mean over all real tokens."""

    length: int = 128
    shortest: int = 16
    batch: int = 32
    width: int = 256
    vocab: int = 65
    layers: int = 2
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    seed: int = 0

    def tiny(self) -> RaggedProblem:
        """The same program with next to no data."""
        return replace(self, length=4, shortest=2, batch=2, width=4, vocab=7)

    def lengths(self) -> npt.NDArray[np.int32]:
        """How many tokens each row has, [batch]: spread evenly, longest first."""
        spread = np.linspace(self.length, self.shortest, self.batch)
        return np.rint(spread).astype(np.int32)

    @property
    def flops(self) -> float:
        """Without the rewrite of products with the rows of a table, which needs less."""
        each = 16 * self.width**2 * self.layers + 2 * self.width * self.vocab
        return 3 * int(self.lengths().sum()) * each

    def weights(self) -> dict[str, npt.NDArray[Any]]:
        """The first parameters, float32: those of the embedding normal, the others uniform."""
        d = self.width
        shapes: dict[str, tuple[int, ...]] = {}
        for i in range(self.layers):
            shapes |= {f"input{i}": (d, 4 * d), f"hidden{i}": (d, 4 * d), f"bias{i}": (4 * d,)}
        shapes |= {"head": (d, self.vocab), "head_bias": (self.vocab,)}
        return _drawn(self.seed, shapes, {"embedding": (self.vocab, d)}, d)

    @property
    def persistent_bytes(self) -> int:
        """What must outlive an AdamW step in float32: the parameters and two moments of each."""
        return 3 * sum(x.nbytes for x in self.weights().values())

    def tokens_and_targets(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Token ids [length, batch] and the id that follows each; 0 beyond the end of a row."""
        rng = np.random.default_rng(self.seed)
        ids = rng.integers(0, self.vocab, (self.length + 1, self.batch), dtype=np.int32)
        real = np.arange(self.length)[:, None] < self.lengths()
        return np.where(real, ids[:-1], 0), np.where(real, ids[1:], 0)

    def __str__(self) -> str:
        return (
            f"{self.layers} x LSTM T{self.shortest}…{self.length} B{self.batch} "
            f"d{self.width} V{self.vocab}"
        )


def _drawn(
    seed: int,
    uniform: dict[str, tuple[int, ...]],
    normal: dict[str, tuple[int, ...]],
    width: int,
) -> dict[str, npt.NDArray[Any]]:
    rng = np.random.default_rng([seed, 1])
    bound = width**-0.5
    drawn = {name: rng.uniform(-bound, bound, shape) for name, shape in uniform.items()}
    drawn |= {name: rng.normal(size=shape) for name, shape in normal.items()}
    return {name: x.astype(np.float32) for name, x in drawn.items()}
