"""Attention, norms, gates, blocks and convolutions beside PyTorch's: values, gradients, in f64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch", reason="torch is missing: make peers")

import retrograde as rg  # noqa: E402
import retrograde.numpy as rnp  # noqa: E402
from retrograde import masks, nn, tree  # noqa: E402
from retrograde.models import Transformer  # noqa: E402

Array = npt.NDArray[Any]
F = torch.nn.functional
B, T, S, W, H = 3, 7, 5, 12, 6
LENGTHS = np.array([7, 3, 5])
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2], [1, 2, 2, 2, 2, 3, 3], [4, 4, 4, 4, 4, 4, 4]])
INSIDE = np.arange(T) < LENGTHS[:, None]


def drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


def wide(model: Any) -> Any:
    rng = np.random.default_rng(5)
    return tree.map(lambda x: x + 0.2 * rng.normal(size=x.shape), model)


def given(model: Any) -> dict[str, Any]:
    """The parameters by path, as torch's leaves."""
    return {k: torch.tensor(v, requires_grad=True) for k, v in model.parameters().items()}


def compare(
    ours: Any, model: Any, theirs: Any, p: dict[str, Any], x: Array, keep: Array | None = None
) -> None:
    """Values, and gradients by x and all parameters, of sum(sin(y)) where `keep` is true."""
    kept = np.ones(x.shape[:2], bool) if keep is None else keep

    def loss(model: Any, x: Any) -> Any:
        return rnp.sum(rnp.where(kept[..., None], rnp.sin(ours(model, x)), 0.0))

    value, (slopes, by_x) = rg.jit(rg.value_and_grad(loss, argnums=(0, 1)))(model, x)
    tx = torch.tensor(x, requires_grad=True)
    total = torch.sin(theirs(tx))[torch.tensor(kept)].sum()
    total.backward()
    assert float(value) == pytest.approx(total.item(), abs=1e-9)
    np.testing.assert_allclose(by_x, tx.grad.numpy(), atol=1e-9)
    for name, g in slopes.parameters().items():
        np.testing.assert_allclose(g, p[name].grad.numpy(), atol=1e-9, err_msg=name)


def heads(x: Any, count: int) -> Any:
    return x.reshape(*x.shape[:2], count, -1).transpose(1, 2)


def attended(p: dict[str, Any], x: Any, kv: int, allowed: Array, turn: Any = None) -> Any:
    """A fused projection and PyTorch's attention, with keys and values shared by `enable_gqa`."""
    size = W // H
    fused = x @ p["qkv.weight"] + p["qkv.bias"]
    q, k, v = torch.split(fused, [W, kv * size, kv * size], dim=-1)
    q, k, v = heads(q, H), heads(k, kv), heads(v, kv)
    if turn is not None:
        q, k = turn(q), turn(k)
    mask = torch.tensor(np.broadcast_to(allowed, (B, T, T)).copy())[:, None]
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    y = y.transpose(1, 2).reshape(*x.shape[:2], W)
    return y @ p["out.weight"] + p["out.bias"]


AHEAD = np.arange(T) - np.arange(T)[:, None]  # how far a key lies behind the query
CAUSAL, NEAR = AHEAD <= 0, (AHEAD <= 0) & (AHEAD > -3)
SAME = SEGMENTS[:, :, None] == SEGMENTS[:, None, :]
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], Array]] = {
    "causal": ({}, {}, CAUSAL),
    "whole": ({"causal": False}, {}, np.ones((T, T), bool)),
    "kv 1": ({"kv_heads": 1}, {}, CAUSAL),
    "kv 2": ({"kv_heads": 2, "causal": False}, {}, np.ones((T, T), bool)),
    "window": ({"window": 3}, {}, NEAR),
    "segments": ({"kv_heads": 3}, {"segments": SEGMENTS}, CAUSAL & SAME),
    "lengths": ({"causal": False}, {"lengths": LENGTHS}, INSIDE[:, None]),
    "mask": ({"causal": False}, {"mask": masks.window(1, 2)}, (AHEAD >= -1) & (AHEAD <= 2)),
    "rotary": ({"rotary": True, "kv_heads": 3}, {}, CAUSAL),
}


def turned(x: Any) -> Any:
    """Complex numbers turned by their position (Su et al. 2021)."""
    half = x.shape[-1] // 2
    angles = np.arange(T)[:, None] * 10000.0 ** (-2 * np.arange(half) / x.shape[-1])
    z = torch.complex(x[..., :half], x[..., half:]) * torch.tensor(np.exp(1j * angles))
    return torch.cat([z.real, z.imag], -1)


@pytest.mark.parametrize("name", CASES)
def test_attention(name: str) -> None:
    options, more, allowed = CASES[name]
    layer = wide(nn.MultiHeadAttention(W, H, **options))
    p = given(layer)
    turn = turned if name == "rotary" else None
    compare(
        lambda m, x: m(x, **more), layer,
        lambda x: attended(p, x, options.get("kv_heads", H), allowed, turn=turn), p,
        drawn(B, T, W), INSIDE if name == "lengths" else None,
    )  # fmt: skip


def test_cross_attention() -> None:
    layer, memory, ends = wide(nn.CrossAttention(W, H, 4)), drawn(B, S, 4), np.array([5, 2, 1])
    p = given(layer)

    def theirs(x: Any) -> Any:
        k, v = torch.split(torch.tensor(memory) @ p["memory.weight"] + p["memory.bias"], W, -1)
        q = x @ p["query.weight"] + p["query.bias"]
        mask = torch.tensor(np.arange(S) < ends[:, None])[:, None, None]
        y = F.scaled_dot_product_attention(*(heads(z, H) for z in (q, k, v)), attn_mask=mask)
        return y.transpose(1, 2).reshape(B, T, W) @ p["out.weight"] + p["out.bias"]

    compare(lambda m, x: m(x, memory, lengths=ends), layer, theirs, p, drawn(B, T, W))


def test_rms_norm() -> None:
    layer = wide(nn.RMSNorm(W))
    p = given(layer)

    def theirs(x: Any) -> Any:
        return F.rms_norm(x, (W,), p["weight"], 1e-5)

    compare(lambda m, x: m(x), layer, theirs, p, drawn(B, T, W))


def test_swiglu_and_mlp() -> None:
    gated = wide(nn.SwiGLU(W, 10))
    p = given(gated)

    def swiglu(x: Any) -> Any:
        return (F.silu(x @ p["gate.weight"]) * (x @ p["up.weight"])) @ p["down.weight"]

    compare(lambda m, x: m(x), gated, swiglu, p, drawn(B, T, W))
    plain = wide(nn.MLP(W, 10, activation="silu"))
    q = given(plain)

    def mlp(x: Any) -> Any:
        inner = F.silu(x @ q["up.weight"] + q["up.bias"])
        return inner @ q["down.weight"] + q["down.bias"]

    compare(lambda m, x: m(x), plain, mlp, q, drawn(B, T, W))


@pytest.mark.parametrize(("causal", "size", "dilation"), [(True, 3, 2), (False, 5, 1)])
def test_convolution(causal: bool, size: int, dilation: int) -> None:
    layer = wide(nn.Conv1d(W, 4, size, causal=causal, dilation=dilation))
    p = given(layer)
    reach = (size - 1) * dilation
    sides = (reach, 0) if causal else (reach // 2, reach // 2)

    def theirs(x: Any) -> Any:
        weight = p["weight"].permute(2, 1, 0)
        y = F.conv1d(F.pad(x.transpose(1, 2), sides), weight, p["bias"], dilation=dilation)
        return y.transpose(1, 2)

    compare(lambda m, x: m(x), layer, theirs, p, drawn(B, T, W))


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_blocks_of_a_decoder(norm: str) -> None:
    """With PyTorch's own TransformerDecoderLayer, whose activation is the exact GELU there."""
    trunk = wide(Transformer(W, 1, H, causal=True, positions="none", norm=norm, memory_width=W))
    memory, ends = drawn(B, S, W), np.array([5, 2, 1])
    layer = torch.nn.TransformerDecoderLayer(
        W, H, 4 * W, 0.0, lambda x: F.gelu(x, approximate="tanh"), batch_first=True,
        norm_first=norm == "pre",
    ).double()  # fmt: skip
    p = trunk.parameters()
    at = "blocks.0."
    cross = np.concatenate([p[f"{at}cross.query.weight"], p[f"{at}cross.memory.weight"]], 1)
    bias = np.concatenate([p[f"{at}cross.query.bias"], p[f"{at}cross.memory.bias"]])
    arrays = {
        "self_attn.in_proj_weight": p[f"{at}attention.qkv.weight"].T,
        "self_attn.in_proj_bias": p[f"{at}attention.qkv.bias"],
        "self_attn.out_proj.weight": p[f"{at}attention.out.weight"].T,
        "self_attn.out_proj.bias": p[f"{at}attention.out.bias"],
        "multihead_attn.in_proj_weight": cross.T,
        "multihead_attn.in_proj_bias": bias,
        "multihead_attn.out_proj.weight": p[f"{at}cross.out.weight"].T,
        "multihead_attn.out_proj.bias": p[f"{at}cross.out.bias"],
        "linear1.weight": p[f"{at}mlp.up.weight"].T,
        "linear1.bias": p[f"{at}mlp.up.bias"],
        "linear2.weight": p[f"{at}mlp.down.weight"].T,
        "linear2.bias": p[f"{at}mlp.down.bias"],
    }
    for i, name in enumerate(("attention_norm", "cross_norm", "mlp_norm"), 1):
        arrays[f"norm{i}.weight"] = p[f"{at}{name}.weight"]
        arrays[f"norm{i}.bias"] = p[f"{at}{name}.bias"]
    layer.load_state_dict({k: torch.tensor(np.ascontiguousarray(v)) for k, v in arrays.items()})
    x = drawn(B, T, W)
    tx = torch.tensor(x, requires_grad=True)
    theirs = layer(
        tx, torch.tensor(memory), tgt_mask=torch.tensor(~CAUSAL),
        memory_key_padding_mask=torch.tensor(np.arange(S) >= ends[:, None]),
    )  # fmt: skip
    if norm == "pre":
        theirs = F.layer_norm(
            theirs, (W,), *(torch.tensor(p[f"final_norm.{k}"]) for k in ("weight", "bias"))
        )
    torch.sin(theirs).sum().backward()

    def loss(x: Any) -> Any:
        return rnp.sum(rnp.sin(trunk(x, memory=memory, memory_lengths=ends)))

    np.testing.assert_allclose(
        trunk(x, memory=memory, memory_lengths=ends), theirs.detach().numpy(), atol=1e-9
    )
    np.testing.assert_allclose(rg.grad(loss)(x), tx.grad.numpy(), atol=1e-9)
