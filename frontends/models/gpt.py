"""A decoder-only language model: tokens [B, T] -> logits [B, T, vocab].

Pre-norm blocks, learned positions, one fused query-key-value projection, tanh-approximated GELU, a
four times wider MLP, a final layer norm, and a head without a bias that may share the table of the
token embedding.  Source: Radford et al. 2019 (GPT-2).  Options take other positions (Vaswani et al.
2017; Su et al. 2021), norms after each sum, SwiGLU (Shazeer 2020), shared keys and values (Ainslie
et al. 2023) and a sliding window.  Invariant: logits at time t depend on tokens up to t alone, and
with segments on those of its own segment alone.

Names and shapes of the arrays (W width, V vocab, C context; a projection is [inputs, outputs], the
columns of `qkv` are all queries, then all keys, then all values, each of them head after head):

    token_embedding.weight [V, W]            position_embedding.weight [C, W]
    blocks.{i}.attention_norm.weight, .bias  blocks.{i}.qkv.weight [W, 3W], .bias
    blocks.{i}.attention_out.weight [W, W]   blocks.{i}.mlp_norm.weight, .bias
    blocks.{i}.mlp_up.weight [W, 4W], .bias  blocks.{i}.mlp_down.weight [4W, W], .bias
    final_norm.weight, .bias                 head.weight [W, V]  (absent when tied)

With S kv_heads of heads, `qkv.weight` is [W, W + 2 S W / heads]; SwiGLU has `mlp_gate.weight`,
`mlp_up.weight` [W, I] and `mlp_down.weight` [I, W] without biases, I = 8/3 W rounded up to a
multiple of 8; there is no `position_embedding` unless positions are learned, and no `final_norm`
with norms after the sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import retrograde.numpy as rnp
from retrograde import masks
from retrograde.compiler.errors import ShapeError
from retrograde.custom import remat
from retrograde.models.parts import POSITIONS, asked_at, check_tokens, one_of, tokens_within
from retrograde.models.transformer import MLPS, NORMS
from retrograde.nn import Dropout, Embedding, LayerNorm, Linear, Module, Rotary, checks, sinusoidal
from retrograde.nn.attention import kv_heads_of, open_to, self_attention
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
    mlp_gate: Linear | None
    mlp_up: Linear
    mlp_down: Linear
    attention_dropout: Dropout
    mlp_dropout: Dropout
    rotary: Rotary | None
    heads: int
    kv_heads: int | None
    pre: bool
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
        pre: bool = True,
        gated: bool = False,
        kv_heads: int | None = None,
        rotary: bool = False,
    ) -> None:
        # 2 * layers branches add up in the residual stream.
        residual = STD / math.sqrt(2 * layers)
        size = width // heads
        shared = heads if kv_heads is None else kv_heads
        inner = -(-8 * width // 24) * 8 if gated else 4 * width
        self.attention_norm = LayerNorm(width)
        self.qkv = Linear(width, width + 2 * shared * size, seed=numbers, std=STD)
        self.attention_out = Linear(width, width, seed=numbers, std=residual)
        self.mlp_norm = LayerNorm(width)
        self.mlp_gate = Linear(width, inner, False, seed=numbers, std=STD) if gated else None
        self.mlp_up = Linear(width, inner, not gated, seed=numbers, std=STD)
        self.mlp_down = Linear(inner, width, not gated, seed=numbers, std=residual)
        self.attention_dropout = Dropout(dropout)
        self.mlp_dropout = Dropout(dropout)
        self.rotary = Rotary(size) if rotary else None
        self.heads = heads
        self.kv_heads = kv_heads
        self.pre = pre
        self.recompute = recompute

    def __call__(
        self, x: Array, mask: Array | None = None, positions: Array | None = None
    ) -> Array:
        qkv = _again(self.recompute, lambda x: self.projected(x), x)
        mixed = self_attention(
            qkv, self.heads, causal=True, mask=mask, kv_heads=self.kv_heads, rotary=self.rotary,
            positions=positions,
        )  # fmt: skip
        x = x + self.attention_dropout(self.attention_out(mixed))
        x = x if self.pre else self.attention_norm(x)
        x = x + self.mlp_dropout(_again(self.recompute, self.mlp, x))
        return x if self.pre else self.mlp_norm(x)

    def projected(self, x: Array) -> Array:
        """Queries, keys and values: [B, T, W] -> [B, T, W + 2 S W / heads]."""
        return self.qkv(self.attention_norm(x) if self.pre else x)

    def mlp(self, x: Array) -> Array:
        """[B, T, W] -> [B, T, W], through 4W or, with a gate, 8/3 W."""
        x = self.mlp_norm(x) if self.pre else x
        if self.mlp_gate is None:
            return self.mlp_down(rnp.gelu(self.mlp_up(x)))
        return self.mlp_down(rnp.silu(self.mlp_gate(x)) * self.mlp_up(x))


def _again(recompute: bool, fn: Callable[[Array], Array], x: Array) -> Array:
    """fn(x), computed again in the backward pass if `recompute`; on plain arrays there is none."""
    return remat(fn)(x) if recompute and is_traced() else fn(x)


class GPT(Module):
    """The model.  `remat=True` computes twice in each block what takes most memory to keep, at the
    same bits; a budget of the program decides about that by itself, value by value.

    Weights are normal with standard deviation 0.02, those of the projections into the residual
    stream 0.02/sqrt(2 layers); biases are 0 and gains 1.  `dropout` acts on the embeddings and on
    what each block adds.

    `positions` is "learned", beyond whose `context` a T is a DataError when the program runs;
    "sinusoidal" (added to sqrt(width) times the embedding), "rotary" or "none", which have no end.
    `norm` is "pre" or "post", `mlp` "gelu" or "swiglu"; `kv_heads` heads of keys and values serve
    all heads of queries; a token sees at most the last `window` tokens, itself included.

    Called with `segments` [B, T], a token sees those of equal number alone, and positions count
    from 0 in each; with `positions` [T] or [B, T], those; with `lengths` [B], tokens beyond them
    may be any number."""

    token_embedding: Embedding
    position_embedding: Embedding | None
    embedding_dropout: Dropout
    blocks: tuple[Block, ...]
    final_norm: LayerNorm | None
    head: Linear | None
    recompute: bool
    longest: int
    positions: str
    window: int | None

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
        positions: str = "learned",
        norm: str = "pre",
        mlp: str = "gelu",
        kv_heads: int | None = None,
        window: int | None = None,
    ) -> None:
        sizes = {"vocab": vocab, "width": width, "heads": heads, "context": context}
        for name, size in sizes.items():
            checks.positive(size, name)
        if layers < 0:
            raise ShapeError(f"{asked_at()}layers is {layers}: it is not negative")
        if width % heads:
            raise ShapeError(f"{asked_at()}the width {width} is no multiple of {heads} heads")
        one_of(norm, NORMS, "the norm")
        one_of(mlp, MLPS, "the mlp")
        self.positions = one_of(positions, POSITIONS, "positions")
        self.window = None if window is None else checks.positive(window, "the window")
        self.longest = int(context)
        shared = kv_heads_of(heads, kv_heads)
        numbers = source(seed)
        self.token_embedding = Embedding(vocab, width, seed=numbers, std=STD)
        learned = positions == "learned"
        self.position_embedding = (
            Embedding(context, width, seed=numbers, std=STD) if learned else None
        )
        self.embedding_dropout = Dropout(dropout)
        self.blocks = tuple(
            Block(
                width, heads, layers=layers, dropout=dropout, recompute=remat, numbers=numbers,
                pre=norm == "pre", gated=mlp == "swiglu", kv_heads=shared,
                rotary=positions == "rotary",
            )
            for _ in range(layers)
        )  # fmt: skip
        self.final_norm = LayerNorm(width) if norm == "pre" else None
        self.head = None if tied else Linear(width, vocab, bias=False, seed=numbers, std=STD)
        self.recompute = remat

    @property
    def vocab(self) -> int:
        """How many tokens there are."""
        return int(self.token_embedding.weight.shape[0])

    @property
    def context(self) -> int:
        """How many positions there are: the longest T, where positions are learned."""
        return self.longest

    def __call__(
        self,
        tokens: Array,
        segments: Array | None = None,
        positions: Array | None = None,
        lengths: Array | None = None,
    ) -> Array:
        check_tokens(tokens, "GPT")
        time = tokens.shape[1]
        if positions is None and segments is not None:
            positions = masks.positions(segments)
        rules = open_to(None, lengths, segments, self.window, True)
        mask = None if rules is None else rules.array(time, time, heads=True)
        x = self._embedded(tokens_within(tokens, lengths), positions)
        for block in self.blocks:
            x = block(x, mask, positions)
        return _again(self.recompute, self._logits, x)

    def _embedded(self, tokens: Array, positions: Array | None) -> Array:
        places = rnp.arange(tokens.shape[1]) if positions is None else positions
        x = self.token_embedding(tokens)
        if self.position_embedding is not None:
            x = x + self.position_embedding(places)
        elif self.positions == "sinusoidal":
            width = x.shape[-1]
            x = x * math.sqrt(width) + rnp.astype(sinusoidal(places, width), x.dtype)
        return self.embedding_dropout(x)

    def _logits(self, x: Array) -> Array:
        x = x if self.final_norm is None else self.final_norm(x)
        return self.token_embedding.attend(x) if self.head is None else self.head(x)
