"""A decoder-only language model: tokens [B, T] -> logits [B, T, vocab].

Pre-norm blocks, learned positions, one fused query-key-value projection, tanh-approximated GELU, a
four times wider MLP, a final layer norm, and a head without a bias that may share the table of the
token embedding.  Source: Radford et al. 2019 (GPT-2).  Invariant: logits at time t depend on tokens
up to t alone.

Names and shapes of the arrays (W width, V vocab, C context; a projection is [inputs, outputs], the
columns of `qkv` are all queries, then all keys, then all values, each of them head after head):

    token_embedding.weight [V, W]            position_embedding.weight [C, W]
    blocks.{i}.attention_norm.weight, .bias  blocks.{i}.qkv.weight [W, 3W], .bias
    blocks.{i}.attention_out.weight [W, W]   blocks.{i}.mlp_norm.weight, .bias
    blocks.{i}.mlp_up.weight [W, 4W], .bias  blocks.{i}.mlp_down.weight [4W, W], .bias
    final_norm.weight, .bias                 head.weight [W, V]  (absent when tied)
"""

from __future__ import annotations

import math
from collections.abc import Callable

import retrograde.numpy as rnp
from retrograde.compiler.errors import DTypeError, ShapeError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.location import where
from retrograde.custom import remat
from retrograde.nn import Dropout, Embedding, LayerNorm, Linear, Module, checks
from retrograde.nn.attention import self_attention
from retrograde.nn.initial import Source, source
from retrograde.numpy.primitives import Array
from retrograde.tracing import is_traced

STD = 0.02  # of every weight (Radford et al. 2019)


class Block(Module):
    """One transformer block, [B, T, W] -> [B, T, W].

    With `recompute`, the backward pass computes the norms and the MLP again from the residual
    stream, which is kept anyway: one matrix product more, 10 W numbers a token less."""

    attention_norm: LayerNorm
    qkv: Linear
    attention_out: Linear
    mlp_norm: LayerNorm
    mlp_up: Linear
    mlp_down: Linear
    attention_dropout: Dropout
    mlp_dropout: Dropout
    heads: int
    recompute: bool

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        layers: int,
        dropout: float,
        recompute: bool,
        numbers: Source,
    ) -> None:
        # 2 * layers branches add up in the residual stream.
        residual = STD / math.sqrt(2 * layers)
        self.attention_norm = LayerNorm(width)
        self.qkv = Linear(width, 3 * width, seed=numbers, std=STD)
        self.attention_out = Linear(width, width, seed=numbers, std=residual)
        self.mlp_norm = LayerNorm(width)
        self.mlp_up = Linear(width, 4 * width, seed=numbers, std=STD)
        self.mlp_down = Linear(4 * width, width, seed=numbers, std=residual)
        self.attention_dropout = Dropout(dropout)
        self.mlp_dropout = Dropout(dropout)
        self.heads = heads
        self.recompute = recompute

    def __call__(self, x: Array) -> Array:
        qkv = _again(self.recompute, lambda x: self.qkv(self.attention_norm(x)), x)
        mixed = self.attention_out(self_attention(qkv, self.heads, causal=True))
        x = x + self.attention_dropout(mixed)
        return x + self.mlp_dropout(_again(self.recompute, self.mlp, x))

    def mlp(self, x: Array) -> Array:
        """[B, T, W] -> [B, T, W], through 4W."""
        return self.mlp_down(rnp.gelu(self.mlp_up(self.mlp_norm(x))))


def _again(recompute: bool, fn: Callable[[Array], Array], x: Array) -> Array:
    """fn(x), computed again in the backward pass if `recompute`; on plain arrays there is none."""
    return remat(fn)(x) if recompute and is_traced() else fn(x)


class GPT(Module):
    """The model.  `remat=True` computes twice in each block what takes most memory to keep, at the
    same bits; a budget of the program decides about that by itself, value by value.

    Weights are normal with standard deviation 0.02, those of the projections into the residual
    stream 0.02/sqrt(2 layers); biases are 0 and gains 1.  `dropout` acts on the embeddings and on
    what each block adds.  A T beyond `context` is a DataError when the program runs."""

    token_embedding: Embedding
    position_embedding: Embedding
    embedding_dropout: Dropout
    blocks: tuple[Block, ...]
    final_norm: LayerNorm
    head: Linear | None
    recompute: bool

    def __init__(
        self,
        *,
        vocab: int,
        width: int,
        layers: int,
        heads: int,
        context: int,
        seed: int = 0,
        dropout: float = 0.0,
        tied: bool = False,
        remat: bool = False,
    ) -> None:
        sizes = {"vocab": vocab, "width": width, "heads": heads, "context": context}
        for name, size in sizes.items():
            checks.positive(size, name)
        if layers < 0:
            raise ShapeError(f"{where()}layers is {layers}: it is not negative")
        if width % heads:
            raise ShapeError(f"{where()}the width {width} is no multiple of {heads} heads")
        numbers = source(seed)
        self.token_embedding = Embedding(vocab, width, seed=numbers, std=STD)
        self.position_embedding = Embedding(context, width, seed=numbers, std=STD)
        self.embedding_dropout = Dropout(dropout)
        self.blocks = tuple(
            Block(
                width, heads, layers=layers, dropout=dropout, recompute=remat, numbers=numbers
            )
            for _ in range(layers)
        )
        self.final_norm = LayerNorm(width)
        self.head = None if tied else Linear(width, vocab, bias=False, seed=numbers, std=STD)
        self.recompute = remat

    @property
    def vocab(self) -> int:
        """How many tokens there are."""
        return int(self.token_embedding.weight.shape[0])

    @property
    def context(self) -> int:
        """How many positions there are: the longest T."""
        return int(self.position_embedding.weight.shape[0])

    def __call__(self, tokens: Array) -> Array:
        if len(tokens.shape) != 2:
            raise ShapeError(f"{where()}GPT takes tokens [B, T], got {checks.shown(tokens)}")
        if not dtypes.dtype(tokens.dtype).is_integer:
            raise DTypeError(f"{where()}GPT takes integer tokens, got {checks.shown(tokens)}")
        positions = rnp.arange(tokens.shape[1])
        x = self.token_embedding(tokens) + self.position_embedding(positions)
        x = self.embedding_dropout(x)
        for block in self.blocks:
            x = block(x)
        return _again(self.recompute, self._logits, x)

    def _logits(self, x: Array) -> Array:
        x = self.final_norm(x)
        return self.token_embedding.attend(x) if self.head is None else self.head(x)
