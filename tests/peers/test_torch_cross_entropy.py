"""Heads and their losses beside PyTorch's linear and cross_entropy, on every device."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch", reason="torch is missing: make peers")

import retrograde as rg  # noqa: E402
from retrograde.compiler.passes.cross_entropy import ChunkHeads, chunked  # noqa: E402
from retrograde.runtime.native.toolchain import find_toolchain  # noqa: E402

Array = npt.NDArray[Any]
BATCH, TIME, WIDTH, VOCAB = 3, 17, 20, 211
RUNS = [("numpy", "mean"), ("numpy", "sum")]
NATIVE = pytest.mark.skipif(find_toolchain() is None, reason="there is no C compiler")


def ours(
    backend: str, arrays: dict[str, Array], targets: Array, reduction: str, **options: Any
) -> list[Array]:
    """The loss and the gradients, without logits."""

    def loss(given: dict[str, Any], targets: Any) -> Any:
        logits = given["x"] @ given["w"].T
        if "b" in given:
            logits = logits + given["b"]
        found = rg.losses.cross_entropy(logits, targets, **options)
        return found.value if reduction == "mean" else found.sum

    with chunked(ChunkHeads(least=2, wider=0)):
        step = rg.compile(rg.value_and_grad(loss), arrays, targets, backend=backend, threads=2)
    assert "linear_cross_entropy_grad" in step.ir().text()
    value, gradients = step(arrays, targets)
    return [value, *(gradients[name] for name in arrays)]


def theirs(
    arrays: dict[str, Array], targets: Array, reduction: str, options: dict[str, Any]
) -> list[Array]:
    given = {name: torch.tensor(x.astype(np.float64), requires_grad=True)
             for name, x in arrays.items()}  # fmt: skip
    logits = torch.nn.functional.linear(given["x"], given["w"], given.get("b"))
    options = dict(options)
    if "weights" in options:
        options["weight"] = torch.tensor(options.pop("weights").astype(np.float64))
    loss = torch.nn.functional.cross_entropy(
        logits.reshape(-1, VOCAB), torch.tensor(targets.reshape(-1).astype(np.int64)),
        reduction=reduction, **options,
    )  # fmt: skip
    loss.backward()
    return [loss.detach().numpy(), *(x.grad.numpy() for x in given.values())]


OPTIONS: list[dict[str, Any]] = [
    {}, {"label_smoothing": 0.2}, {"ignore_index": 7}, {"weights": True},
    {"label_smoothing": 0.1, "ignore_index": -100, "weights": True},
]  # fmt: skip


@pytest.mark.parametrize(("backend", "reduction"), RUNS)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
def test_the_loss_and_its_gradients(
    options: dict[str, Any], backend: str, reduction: str
) -> None:
    compare(options, backend, reduction)


@NATIVE
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[-1]], ids=["plain", "all"])
def test_compiled_kernels(options: dict[str, Any]) -> None:
    compare(options, "native", "mean")


def compare(options: dict[str, Any], backend: str, reduction: str) -> None:
    bias = "weights" in options
    rng = np.random.default_rng(4)
    shapes = {"x": (BATCH, TIME, WIDTH), "w": (VOCAB, WIDTH)} | ({"b": (VOCAB,)} if bias else {})
    of = np.float32 if backend == "native" else np.float64
    arrays = {name: rng.standard_normal(shape).astype(of) for name, shape in shapes.items()}
    targets = rng.integers(0, VOCAB, (BATCH, TIME)).astype(np.int32)
    if "ignore_index" in options:
        targets[rng.uniform(size=targets.shape) < 0.4] = options["ignore_index"]
    if bias:
        options = {**options, "weights": rng.uniform(0.5, 2.0, VOCAB).astype(of)}
    found = ours(backend, arrays, targets, reduction, **options)
    tolerance = 2e-6 if backend == "native" else 1e-12
    for a, b in zip(found, theirs(arrays, targets, reduction, options), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, 0, tolerance * float(np.abs(b).max()))
