"""Gradients in float64 and optimizer steps beside PyTorch's, from the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch", reason="torch is missing: make peers")

import retrograde as rg  # noqa: E402
import retrograde.numpy as rnp  # noqa: E402
from benchmarks.peers import torch_gpt  # noqa: E402  # needs torch
from retrograde import nn, tree  # noqa: E402

Array = npt.NDArray[Any]
TOLERANCE = 1e-10


def assert_close(ours: dict[str, Array], theirs: dict[str, Array]) -> None:
    """Each array to TOLERANCE of its own largest number."""
    assert ours.keys() == theirs.keys()
    for name, x in theirs.items():
        assert ours[name].dtype == np.float64
        scale = np.abs(x).max()
        assert scale > 1e-8, f"{name}: nothing to compare"
        worst = np.abs(ours[name] - x).max() / scale
        assert worst <= TOLERANCE, f"{name}: {worst:.1e}"


def shaken(model: Any, size: float = 0.3) -> Any:
    """The model in float64, with numbers far from where signals are small."""
    rng = np.random.default_rng(6)
    return tree.map(lambda x: 1.0 * (x.ndim == 1) + size * rng.normal(size=x.shape), model)


def to_torch(x: Array) -> Any:
    return torch.tensor(x, requires_grad=x.dtype.kind == "f")


# --- GPT

SIZES = {"vocab": 13, "width": 12, "layers": 2, "heads": 3, "context": 9}


def peer_arrays(model: Any) -> dict[str, Array]:
    """Our arrays under PyTorch's names; its projections are [outputs, inputs]."""
    return {
        name: np.ascontiguousarray(x.T if x.ndim == 2 and "embedding" not in name else x)
        for name, x in model.parameters().items()
    }


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("remat", [True, False])
def test_gpt(tied: bool, remat: bool) -> None:
    model = shaken(rg.models.GPT(**SIZES, tied=tied, remat=remat))
    rng = np.random.default_rng(2)
    tokens, targets = rng.integers(0, 6, (2, 4, 7))  # few tokens: each comes several times

    def loss(model: Any, tokens: Any, targets: Any) -> Any:
        return rg.losses.cross_entropy(model(tokens), targets)

    value, gradient = rg.value_and_grad(loss)(model, tokens, targets)
    peer = torch_gpt.build(
        **SIZES, tied=tied, attention="manual", weights=peer_arrays(model), dtype="float64"
    )
    theirs = torch_gpt.loss_of(peer, torch.tensor(tokens), torch.tensor(targets))
    theirs.backward()
    assert float(value) == pytest.approx(theirs.item(), rel=1e-13)
    expected = {name: p.grad.numpy() for name, p in peer.named_parameters()}
    got = peer_arrays(gradient)
    # Softmax does not change when all scores of a query do, so this bias has no effect.
    for i in range(SIZES["layers"]):
        name, keys = f"blocks.{i}.qkv.bias", slice(12, 24)
        assert np.abs(got[name][keys]).max() < 1e-14
        got[name][keys] = expected[name][keys] = 0
    assert_close(got, expected)


# --- MLP

ACTIVATIONS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "relu": (rnp.relu, torch.relu),
    "gelu": (lambda x: rnp.gelu(x, approximate=False), torch.nn.functional.gelu),
    "tanh gelu": (
        rnp.gelu,
        lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    ),
    "silu": (rnp.silu, torch.nn.functional.silu),
    "softplus": (rnp.softplus, torch.nn.functional.softplus),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp(activation: str) -> None:
    ours, theirs = ACTIVATIONS[activation]
    model = shaken(
        nn.Sequential(nn.Linear(5, 9), ours, nn.LayerNorm(9), nn.Linear(9, 7), ours, nn.RMSNorm(7))
    )
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(6, 5)), rng.normal(size=(6, 7))

    def loss(model: Any, x: Any) -> Any:
        return rg.losses.huber(model(x), y, delta=0.7) + 0.1 * rg.losses.mae(model(x), y)

    (gradient, dx) = rg.grad(loss, argnums=(0, 1))(model, x)

    p = {name: to_torch(a) for name, a in model.parameters().items()}
    functional = torch.nn.functional
    tx, ty = to_torch(x), torch.tensor(y)
    h = theirs(tx @ p["layers.0.weight"] + p["layers.0.bias"])
    h = functional.layer_norm(h, (9,), p["layers.2.weight"], p["layers.2.bias"])
    h = theirs(h @ p["layers.3.weight"] + p["layers.3.bias"])
    h = functional.rms_norm(h, (7,), p["layers.5.weight"], eps=1e-5)
    (functional.huber_loss(h, ty, delta=0.7) + 0.1 * functional.l1_loss(h, ty)).backward()
    expected = {name: t.grad.numpy() for name, t in p.items()}
    assert_close({**gradient.parameters(), "x": dx}, {**expected, "x": tx.grad.numpy()})


# --- LSTM as a plain loop


class LSTM(nn.Module):
    """Hochreiter & Schmidhuber 1997, with forget gates; a Python loop over a static length."""

    inputs: nn.Linear
    hidden: nn.Linear
    width: int

    def __call__(self, x: Any) -> Any:
        batch, length, _ = x.shape
        h = c = rnp.zeros((batch, self.width), x.dtype)
        outputs = []
        for t in range(length):
            gates = self.inputs(x[:, t]) + self.hidden(h)
            i, f, g, o = rnp.split(gates, 4, axis=1)
            c = rnp.sigmoid(f) * c + rnp.sigmoid(i) * rnp.tanh(g)
            h = rnp.sigmoid(o) * rnp.tanh(c)
            outputs.append(h)
        return rnp.stack(outputs, axis=1)


def test_lstm_as_a_python_loop() -> None:
    width, size, batch, length = 6, 4, 3, 11
    model = shaken(LSTM(nn.Linear(size, 4 * width), nn.Linear(width, 4 * width), width))
    rng = np.random.default_rng(4)
    x, weights = rng.normal(size=(batch, length, size)), rng.normal(size=(batch, length, width))

    def loss(model: Any, x: Any) -> Any:
        return rnp.sum(model(x) * weights)

    value, (gradient, dx) = rg.value_and_grad(loss, argnums=(0, 1))(model, x)

    peer = torch.nn.LSTM(size, width, batch_first=True, dtype=torch.float64)
    names = {
        "inputs.weight": peer.weight_ih_l0,
        "inputs.bias": peer.bias_ih_l0,
        "hidden.weight": peer.weight_hh_l0,
        "hidden.bias": peer.bias_hh_l0,
    }
    with torch.no_grad():
        for name, a in model.parameters().items():
            names[name].copy_(torch.tensor(a.T))  # its gates stand in the same order: i, f, g, o
    tx = to_torch(x)
    theirs = (peer(tx)[0] * torch.tensor(weights)).sum()
    theirs.backward()
    assert float(value) == pytest.approx(theirs.item(), rel=1e-12)
    expected = {name: p.grad.numpy().T for name, p in names.items()}
    assert_close({**gradient.parameters(), "x": dx}, {**expected, "x": tx.grad.numpy()})


# --- losses


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy(smoothing: float, weighted: bool) -> None:
    rng = np.random.default_rng(5)
    logits, targets = 3 * rng.normal(size=(6, 5, 4)), rng.integers(0, 4, (6, 5))
    targets[1, 2:] = -100
    weights = rng.random(4) + 0.5 if weighted else None

    def loss(logits: Any) -> Any:
        return rg.losses.cross_entropy(
            logits, targets, label_smoothing=smoothing, ignore_index=-100, weights=weights
        )

    value, gradient = rg.value_and_grad(loss)(logits)
    tl = to_torch(logits)
    theirs = torch.nn.functional.cross_entropy(
        tl.reshape(-1, 4),
        torch.tensor(targets.reshape(-1)),
        weight=None if weights is None else torch.tensor(weights),
        label_smoothing=smoothing,
        ignore_index=-100,
    )
    theirs.backward()
    assert float(value) == pytest.approx(theirs.item(), rel=1e-13)
    assert_close({"logits": gradient}, {"logits": tl.grad.numpy()})


def test_binary_cross_entropy() -> None:
    rng = np.random.default_rng(5)
    x, t = 5 * rng.normal(size=(6, 5)), rng.random((6, 5))
    gradient = rg.grad(lambda x: rg.losses.bce(x, t))(x)
    tx = to_torch(x)
    torch.nn.functional.binary_cross_entropy_with_logits(tx, torch.tensor(t)).backward()
    assert_close({"x": gradient}, {"x": tx.grad.numpy()})


# --- attention


@pytest.mark.parametrize("causal", [True, False])
def test_multi_head_attention(causal: bool) -> None:
    width, heads, batch, length = 8, 2, 3, 5
    layer = shaken(nn.MultiHeadAttention(width, heads, causal=causal), 0.5)
    rng = np.random.default_rng(7)
    x, weights = rng.normal(size=(batch, length, width)), rng.normal(size=(batch, length, width))
    lengths = np.array([5, 2, 3])

    def loss(layer: Any, x: Any) -> Any:
        return rnp.sum(layer(x, lengths=lengths) * weights)

    gradient, dx = rg.grad(loss, argnums=(0, 1))(layer, x)

    peer = torch.nn.MultiheadAttention(width, heads, batch_first=True, dtype=torch.float64)
    names = {
        "qkv.weight": peer.in_proj_weight,
        "qkv.bias": peer.in_proj_bias,
        "out.weight": peer.out_proj.weight,
        "out.bias": peer.out_proj.bias,
    }
    with torch.no_grad():
        for name, a in layer.parameters().items():
            names[name].copy_(torch.tensor(a.T))
    past = np.arange(length) >= lengths[:, None]
    tx = to_torch(np.where(past[..., None], 0.0, x))  # as which x counts there
    beyond = torch.tensor(past)
    ahead = torch.tensor(~np.tri(length, dtype=bool)) if causal else None
    out, _ = peer(tx, tx, tx, key_padding_mask=beyond, attn_mask=ahead)
    (out * torch.tensor(weights)).sum().backward()
    got = {**gradient.parameters(), "x": dx}
    expected = {name: p.grad.numpy().T for name, p in names.items()} | {
        "x": np.where(past[..., None], 0.0, tx.grad.numpy())
    }
    # Softmax does not change when all scores of a query do, so this bias has no effect.
    keys = slice(width, 2 * width)
    assert np.abs(got["qkv.bias"][keys]).max() < 1e-13
    got["qkv.bias"] = np.delete(got["qkv.bias"], np.arange(width, 2 * width))
    expected["qkv.bias"] = np.delete(expected["qkv.bias"], np.arange(width, 2 * width))
    assert_close(got, expected)


# --- optimizers

OPTIMIZERS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "adamw": (
        rg.optim.AdamW(0.02, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3),
        lambda p: torch.optim.AdamW(p, 0.02, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3),
    ),
    "adam": (
        rg.optim.Adam(0.02, weight_decay=0.3),
        lambda p: torch.optim.Adam(p, 0.02, weight_decay=0.3),
    ),
    "sgd": (
        rg.optim.SGD(0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.2])
def test_optimizer_steps(name: str, clip: float | None) -> None:
    ours, make = OPTIMIZERS[name]
    rng = np.random.default_rng(8)
    model = shaken(nn.Linear(5, 3, seed=1), 0.5)

    def loss(model: Any, x: Any, y: Any) -> Any:
        return rg.losses.mse(rnp.tanh(model(x)), y)

    specs = {"x": rg.spec("f64", "B", 5), "y": rg.spec("f64", "B", 3)}
    step = rg.compile_training(loss, model, ours, batch=specs, clip_norm=clip)
    weights = {n: to_torch(a) for n, a in model.parameters().items()}
    optimizer = make(list(weights.values()))
    for _ in range(12):
        x, y = rng.normal(size=(4, 5)), 3 * rng.normal(size=(4, 3))
        metrics = step(x=x, y=y)
        optimizer.zero_grad()
        out = torch.tanh(torch.tensor(x) @ weights["weight"] + weights["bias"])
        theirs = torch.nn.functional.mse_loss(out, torch.tensor(y))
        theirs.backward()
        norm = torch.nn.utils.clip_grad_norm_(list(weights.values()), clip or 1e30)
        optimizer.step()
        assert metrics["loss"] == pytest.approx(theirs.item(), rel=1e-12)
        assert metrics["grad_norm"] == pytest.approx(norm.item(), rel=1e-12)
        if clip:
            assert norm.item() > clip  # it is at work
    assert_close(
        step.model.parameters(), {n: t.detach().numpy() for n, t in weights.items()}
    )
