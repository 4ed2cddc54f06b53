"""Adafactor beside PyTorch's: same arrays, same gradients, same steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is missing: make peers")

import retrograde as rg  # noqa: E402
import retrograde.numpy as rnp  # noqa: E402


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adafactor_is_that_of_pytorch(decay: float) -> None:
    rng = np.random.default_rng(11)
    shapes = {"a": (7,), "b": (5, 3), "c": (2, 3, 4)}
    arrays = {name: rng.normal(size=shape) for name, shape in shapes.items()}

    def loss(m: Any, x: Any) -> Any:
        return sum(rnp.sum((m[name] - x) ** 4) for name in arrays)

    step = rg.compile_training(
        loss, arrays, rg.optim.Adafactor(0.03, weight_decay=decay), {"x": rg.spec("f64")},
        backend="numpy",
    )  # fmt: skip
    theirs = {name: torch.tensor(x, requires_grad=True) for name, x in arrays.items()}
    optimizer = torch.optim.Adafactor(theirs.values(), lr=0.03, weight_decay=decay)
    for i in range(6):
        step(x=np.asarray(np.cos(i)))
        optimizer.zero_grad()
        sum(((p - float(np.cos(i))) ** 4).sum() for p in theirs.values()).backward()
        optimizer.step()
    for name, p in theirs.items():
        np.testing.assert_allclose(step.model[name], p.detach().numpy(), rtol=1e-9, err_msg=name)
