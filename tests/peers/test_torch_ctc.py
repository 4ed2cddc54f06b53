"""CTC beside PyTorch's: values and gradients, in float64 and on the native device in f32."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is missing: make peers")

import retrograde as rg  # noqa: E402
from retrograde.runtime.native.toolchain import find_toolchain  # noqa: E402

B, T, S, V = 5, 23, 6, 9
ENDS, SIZES = np.array([23, 14, 20, 6, 9]), np.array([6, 5, 0, 3, 1])


@pytest.mark.parametrize("per", ["sequence", "token"])
@pytest.mark.parametrize("backend", ["numpy", "native"])
def test_ctc_is_that_of_torch(per: str, backend: str) -> None:
    if backend == "native" and find_toolchain() is None:
        pytest.skip("there is no C compiler")
    rng = np.random.default_rng(3)
    x = rng.normal(size=(B, T, V))
    labels = rng.integers(1, 4, (B, S)).astype(np.int32)  # few, so that equal ones meet
    theirs = torch.tensor(x, requires_grad=True)
    total = torch.nn.functional.ctc_loss(
        theirs.log_softmax(-1).transpose(0, 1), torch.tensor(labels), torch.tensor(ENDS),
        torch.tensor(SIZES), reduction="sum",
    )  # fmt: skip
    total = total / (B if per == "sequence" else SIZES.sum())
    total.backward()

    def loss(x: object, labels: object, ends: object, sizes: object) -> rg.Mean:
        return rg.losses.ctc(x, labels, ends, sizes, per=per)

    given = x if backend == "numpy" else x.astype(np.float32)
    run = rg.compile(rg.value_and_grad(loss), given, labels, ENDS, SIZES, backend=backend)
    value, gradient = run(given, labels, ENDS, SIZES)
    tolerance = 1e-12 if backend == "numpy" else 2e-5
    assert float(value) == pytest.approx(total.item(), rel=tolerance)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), atol=tolerance)
