"""Faults in the C of kernels are caught, and named by the op whose kernel it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.runtime.native.toolchain import find_toolchain
from tests.certify import plants, programs
from tests.certify.plants import Plant
from tests.certify.test_faults import square

pytestmark = pytest.mark.skipif(find_toolchain() is None, reason="there is no C compiler")

TILE = "{j + t, rg_min(down, n - t), "
SHORT = "{j + t, rg_min(down, n - t) - (n - t > 1), "


def make_square() -> Any:
    specs = rg.spec("f32", 4, 4), rg.spec("f32", "B", 4)
    return rg.compile(rg.value_and_grad(square), *specs, backend="native")


def make_wave() -> Any:
    def wave(x: Any) -> Any:
        return rnp.sum(rnp.tanh(x) * x)

    return rg.compile(wave, rg.spec("f32", "B", 9), backend="native")


def make_attention() -> Any:
    def loss(x: Any, w: Any) -> Any:
        q, k, v = (rnp.moveaxis((x @ w[i]).reshape(*x.shape[:2], 2, 4), 2, 1) for i in range(3))
        scores = q @ rnp.swapaxes(k, 2, 3) * 0.5
        p = rnp.exp(scores - rnp.max(scores, axis=-1, keepdims=True))
        return rnp.sum((p / rnp.sum(p, axis=-1, keepdims=True) @ v) ** 2)

    specs = rg.spec("f32", "B", "T", 8), rg.spec("f32", 3, 8, 8)
    return rg.compile(rg.value_and_grad(loss, argnums=1), *specs, backend="native")


FAULTS: dict[str, tuple[Plant, Callable[[], Any], str, dict[str, int]]] = {
    "an elementwise kernel": (
        plants.c_text("math", "/ (1.0f + w)", "/ (1.0f + 1.01f * w)"), make_wave,
        "native kernels of", {"B": 3},
    ),
    "the edge of a product's tile": (
        plants.c_text("gemm", "(ct, sc, edge, step, h, w);   ", "(ct, sc, edge, step, h, w - 1); "),
        make_square, "native kernels of dot_general", {"B": 3},
    ),
    "a tile of attention is a key short": (
        plants.c_text("attention_forward", TILE, SHORT), make_attention,
        "native kernels of flash_attention", {"B": 2, "T": 37},
    ),
    "a tile of its gradient is a key short": (
        plants.c_text("attention_backward", TILE, SHORT), make_attention,
        "native kernels of flash_attention_grad", {"B": 2, "T": 37},
    ),
    "a product lowered on its side": (
        plants.transposed_operand, make_square, "lowering of dot_general", {"B": 3},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_caught_and_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, make, blame, sizes = FAULTS[name]
    plant(monkeypatch)
    found = make().certify(sizes=[sizes], directions=1, devices=["native"])
    assert not found.ok, str(found)
    assert (found.blame or "nothing").startswith(blame), str(found)


def test_kernels_that_are_right_are_certified() -> None:
    found = make_attention().certify(sizes=[{"B": 2, "T": 37}], directions=1, devices=["native"])
    assert found.ok, str(found)
    step = programs.make_mlp(backend="native")
    found = step.certify(sizes=[{"B": 3}])
    assert found.ok, str(found)
    assert {"numpy, unfused", "native, unfused"} <= {c.what for c in found.compared}
