"""Recipes beside PyTorch: a recurrent model, attention, an encoder with a decoder.

The same weights, batches and steps; the models are written anew of PyTorch's operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is missing: make peers")

from retrograde.cli.recipes import RECIPES, compiled_step  # noqa: E402
from retrograde.recipes import cartpole  # noqa: E402
from retrograde.runtime.data.sets import cartpole as episodes  # noqa: E402
from retrograde.runtime.data.sets import cmudict, japanese_vowels  # noqa: E402
from tests.recipes import small  # noqa: E402

STEPS = 60
P = dict[str, Any]
F = torch.nn.functional


def gru(p: P, name: str, x: Any, lengths: Any, h: Any = None, reverse: bool = False) -> Any:
    """[B, T, inputs] -> [B, T, width], zeros beyond a row's length; the state stays there."""
    w, u = p[f"{name}.cell.weight_input"], p[f"{name}.cell.weight_recurrent"]
    bias, recurrent = p[f"{name}.cell.bias"], p[f"{name}.cell.recurrent_bias"]
    h = torch.zeros(len(x), u.shape[0]) if h is None else h
    out: list[Any] = [None] * x.shape[1]
    steps = range(x.shape[1])
    for t in reversed(steps) if reverse else steps:
        of_x = (x[:, t] @ w + bias).chunk(3, dim=-1)
        of_h = (h @ u).chunk(3, dim=-1)
        r, z = torch.sigmoid(of_x[0] + of_h[0]), torch.sigmoid(of_x[1] + of_h[1])
        n = torch.tanh(of_x[2] + r * (of_h[2] + recurrent))
        inside = (t < lengths)[:, None]
        h = torch.where(inside, (1 - z) * n + z * h, h)
        out[t] = torch.where(inside, h, torch.zeros_like(h))
    return torch.stack(out, dim=1)


def both_ways(p: P, name: str, x: Any, lengths: Any) -> Any:
    ahead = gru(p, f"{name}.forward.0", x, lengths)
    return torch.cat([ahead, gru(p, f"{name}.backward.0", x, lengths, reverse=True)], dim=-1)


def linear(p: P, name: str, x: Any) -> Any:
    out = x @ p[f"{name}.weight"]
    return out + p[f"{name}.bias"] if f"{name}.bias" in p else out


def speakers(p: P, b: P) -> Any:
    states = both_ways(p, "rnn", b["frames"], b["lengths"])
    logits = linear(p, "head", states.sum(1) / b["lengths"][:, None])
    return F.cross_entropy(logits, b["label"].long())


def policy(p: P, b: P) -> Any:
    told = torch.cat(
        [b["states"] / torch.from_numpy(cartpole._SPREAD), b["to_go"][:, :, None] / 500.0], dim=-1
    )
    batch, time = b["before"].shape
    x = linear(p, "of_state", told) + p["before.weight"][b["before"].long()]
    x = x + p["positions.weight"][:time]
    width, heads = x.shape[-1], 2

    def norm(name: str, x: Any) -> Any:
        return F.layer_norm(x, (width,), p[f"{name}.weight"], p[f"{name}.bias"])

    for block in ("blocks.0", "blocks.1"):
        qkv = linear(p, f"{block}.attention.qkv", norm(f"{block}.attention_norm", x))
        split = qkv.reshape(batch, time, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*split, is_causal=True)
        mixed = mixed.transpose(1, 2).reshape(batch, time, width)
        x = x + linear(p, f"{block}.attention.out", mixed)
        up = F.gelu(linear(p, f"{block}.up", norm(f"{block}.mlp_norm", x)), approximate="tanh")
        x = x + linear(p, f"{block}.down", up)
    return taught(linear(p, "head", norm("norm", x)), b["actions"], b["lengths"])


def pronunciation(p: P, b: P) -> Any:
    def embedded(name: str, tokens: Any) -> Any:
        table = p[f"{name}.table.weight"]
        return table[tokens.long()] * table.shape[1] ** 0.5

    n, m = b["source_lengths"], b["lengths"]
    memory = both_ways(p, "encoder", embedded("source_embedding", b["source"]), n)
    first = torch.tanh(linear(p, "bridge", memory.sum(1) / n[:, None]))
    h = gru(p, "decoder.forward.0", embedded("embedding", b["tokens"]), m, first)
    allowed = (torch.arange(memory.shape[1]) < n[:, None])[:, None]
    seen = F.scaled_dot_product_attention(linear(p, "query", h), memory, memory, allowed)
    x = torch.tanh(linear(p, "mix", torch.cat([h, seen], dim=-1)))
    return taught(linear(p, "head", x), b["targets"], m)


def taught(logits: Any, targets: Any, lengths: Any) -> Any:
    inside = torch.arange(targets.shape[1]) < lengths[:, None]
    return F.cross_entropy(logits[inside], targets.long()[inside])


CASES: dict[str, tuple[Callable[[P, P], Any], dict[str, Any]]] = {
    "japanese-vowels": (speakers, {"width": 16}),
    "cartpole": (policy, {"layers": 2, "width": 16}),
    "cmudict": (pronunciation, {"width": 16}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_short_run_ends_where_pytorch_ends(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(japanese_vowels, "load", small.speakers)
    monkeypatch.setattr(cmudict, "load", small.dictionary)
    logged = episodes.load(20)
    monkeypatch.setattr(episodes, "load", lambda: logged)
    theirs_of, more = CASES[name]
    settings = small.settings(name, steps=STEPS, dropout=0.0, **more)
    training = RECIPES[name].build(settings)
    p = {
        key: torch.tensor(np.array(x), requires_grad=True)
        for key, x in training.model.parameters().items()
    }
    optimizer = torch.optim.AdamW(
        p.values(), betas=(0.9, 0.98), weight_decay=settings["weight_decay"]
    )
    step = compiled_step(training, settings)
    pairs = []
    for k in range(STEPS):
        batch = next(training.batches)
        ours = step(**batch)
        theirs = theirs_of(p, {key: torch.from_numpy(x) for key, x in batch.items()})
        optimizer.zero_grad()
        theirs.backward()
        norm = torch.nn.utils.clip_grad_norm_(p.values(), settings["clip_norm"])
        for group in optimizer.param_groups:
            group["lr"] = float(ours["lr"])
        optimizer.step()
        pairs.append((float(ours["loss"]), theirs.item()))
        if k < 10:  # rounding has not grown yet
            assert pairs[-1][0] == pytest.approx(pairs[-1][1], rel=1e-4)
            assert float(ours["grad_norm"]) == pytest.approx(norm.item(), rel=1e-3)
    ours_end, theirs_end = np.mean(pairs[-10:], axis=0)
    assert ours_end < np.mean(pairs[:10], axis=0)[0]
    assert ours_end == pytest.approx(theirs_end, rel=0.01)
