"""RNN, LSTM and GRU beside PyTorch's: same weights, values and gradients, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch", reason="torch is missing: make peers")

import retrograde as rg  # noqa: E402
import retrograde.numpy as rnp  # noqa: E402
from retrograde import nn, tree  # noqa: E402

Array = npt.NDArray[Any]
B, T, D, W, P = 4, 7, 3, 5, 2
LENGTHS = np.array([7, 1, 4, 6])
TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}

KINDS: dict[str, tuple[Any, Any, dict[str, Any], dict[str, Any]]] = {
    "tanh": (nn.RNN, torch.nn.RNN, {}, {}),
    "relu": (nn.RNN, torch.nn.RNN, {"nonlinearity": "relu"}, {"nonlinearity": "relu"}),
    "lstm": (nn.LSTM, torch.nn.LSTM, {}, {}),
    "projection": (nn.LSTM, torch.nn.LSTM, {"projection": P}, {"proj_size": P}),
    "gru": (nn.GRU, torch.nn.GRU, {}, {}),
}


def pair(kind: str, layers: int, bidirectional: bool, bias: bool = True) -> tuple[Any, Any]:
    """One of PyTorch's with random weights, biases included, and ours with the same."""
    ours, theirs, own, peer_own = KINDS[kind]
    torch.manual_seed(3)
    peer = theirs(
        D, W, layers, bias=bias, bidirectional=bidirectional, batch_first=True, **peer_own
    ).double()
    layer = ours(D, W, layers, bias=bias, bidirectional=bidirectional, seed=0, **own)
    arrays = {name: x.detach().numpy() for name, x in peer.named_parameters()}
    return nn.from_torch_layout(layer, arrays), peer


def stacked_carries(carries: Any, bidirectional: bool) -> list[Any]:
    """Our carries in PyTorch's shape: h, or h and c, each [layers * directions, B, width]."""
    cells = [c for layer in carries for c in (layer if bidirectional else [layer])]
    columns = zip(*(c if isinstance(c, tuple) else (c,) for c in cells), strict=True)
    return [rnp.stack(list(column), axis=0) for column in columns]


def weights_for(shapes: list[tuple[int, ...]]) -> list[Array]:
    return [np.random.default_rng(k).normal(size=s) for k, s in enumerate(shapes)]


def run_peer(peer: Any, x: Any, carry: list[Any], lengths: Array | None) -> tuple[Any, list[Any]]:
    given = carry[0] if len(carry) == 1 else tuple(carry)
    if lengths is None:
        y, after = peer(x, given)
    else:
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            x, torch.from_numpy(lengths), batch_first=True, enforce_sorted=False
        )
        y, after = peer(packed, given)
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=True, total_length=T)
    return y, list(after) if isinstance(after, tuple) else [after]


@pytest.mark.parametrize("ragged", [False, True], ids=["full", "packed"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_pytorch(
    kind: str, layers: int, bidirectional: bool, ragged: bool
) -> None:
    layer, peer = pair(kind, layers, bidirectional)
    lengths = LENGTHS if ragged else None
    x = np.random.default_rng(1).normal(size=(B, T, D))
    carry = tree.map(
        lambda c: np.random.default_rng(c.shape[-1]).normal(size=c.shape), layer.initial(B)
    )
    start = stacked_carries(carry, bidirectional)
    start = [np.asarray(c) for c in start]
    start_t = [torch.from_numpy(c).requires_grad_() for c in start]
    x_t = torch.from_numpy(x).requires_grad_()
    y_t, after_t = run_peer(peer, x_t, start_t, lengths)
    scales = weights_for([tuple(v.shape) for v in (y_t, *after_t)])
    loss_t = sum(
        (v * torch.from_numpy(s)).sum() for v, s in zip((y_t, *after_t), scales, strict=True)
    )
    loss_t.backward()

    def loss(layer: Any, x: Any, carry: Any) -> Any:
        y, after = layer(x, carry, lengths)
        found = [y, *stacked_carries(after, bidirectional)]
        value = sum(rnp.sum(v * s) for v, s in zip(found, scales, strict=True))
        return value, found

    (value, found), (by_layer, by_x, by_carry) = rg.value_and_grad(
        loss, argnums=(0, 1, 2), has_aux=True
    )(layer, x, carry)
    assert float(value) == pytest.approx(loss_t.item(), rel=1e-10)
    for ours, theirs in zip(found, (y_t, *after_t), strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), **TOLERANCE)
    np.testing.assert_allclose(by_x, x_t.grad.numpy(), **TOLERANCE)
    for ours, theirs in zip(stacked_carries(by_carry, bidirectional), start_t, strict=True):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), **TOLERANCE)
    gradients = nn.to_torch_layout(by_layer)
    expected = {name: p.grad.numpy() for name, p in peer.named_parameters()}
    assert gradients.keys() == expected.keys()
    for name, theirs in expected.items():
        ours = gradients[name]
        if name.startswith("bias_hh"):
            # Where PyTorch adds two biases they have one gradient; ours is under bias_ih, and the
            # candidate of a GRU has a bias of its own here too.
            shared = 2 * W if kind == "gru" else ours.size
            ours = np.concatenate([gradients[name.replace("hh", "ih")][:shared], ours[shared:]])
        np.testing.assert_allclose(ours, theirs, **TOLERANCE, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_without_biases_and_back_into_pytorch(kind: str) -> None:
    layer, peer = pair(kind, 2, True, bias=False)
    assert list(nn.to_torch_layout(layer)) == [name for name, _ in peer.named_parameters()]
    x = np.random.default_rng(1).normal(size=(B, T, D))
    with torch.no_grad():
        expected = peer(torch.from_numpy(x))[0].numpy()
    np.testing.assert_allclose(layer(x)[0], expected, **TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_trained_here_runs_there(kind: str) -> None:
    layer, peer = pair(kind, 2, True)
    rng = np.random.default_rng(6)
    layer = tree.map(lambda w: w + 0.1 * rng.normal(size=w.shape), layer)
    arrays = nn.to_torch_layout(layer)
    assert list(arrays) == [name for name, _ in peer.named_parameters()]
    peer.load_state_dict({name: torch.from_numpy(a) for name, a in arrays.items()})
    x = rng.normal(size=(B, T, D))
    with torch.no_grad():
        expected = peer(torch.from_numpy(x))[0].numpy()
    np.testing.assert_allclose(layer(x)[0], expected, **TOLERANCE)


def test_the_layer_before_the_product_is_another() -> None:
    layer, peer = pair("gru", 1, False)
    before = nn.GRU(D, W, reset="before", seed=0)
    shared = {k: v for k, v in layer.parameters().items() if not k.endswith("recurrent_bias")}
    x = np.random.default_rng(1).normal(size=(B, T, D))
    with torch.no_grad():
        expected = peer(torch.from_numpy(x))[0].numpy()
    assert not np.allclose(before.replace(shared)(x)[0], expected, atol=1e-3)
