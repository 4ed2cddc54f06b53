"""Random sequence models on the native device beside the NumPy device: value and gradients, at many
sizes.

No bit may depend on threads or on memory, and what is computed lies no further from float64 than
twice what NumPy makes of it.  `make fuzz` takes many models, the suite a few.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import retrograde as rg
from retrograde.runtime.native.toolchain import find_toolchain
from tests.device.harness import same_bits
from tests.native.sequence_models import Model

pytestmark = [
    pytest.mark.skipif(find_toolchain() is None, reason="there is no C compiler"),
    pytest.mark.filterwarnings("ignore"),
]

Array = npt.NDArray[Any]
SIZES = ((3, 5), (1, 1), (2, 7), (0, 3), (4, 0), (5, 1), (1, 9), (7, 17), (16, 33), (70, 2))
MODES = {
    "one thread": (1, ""), "two threads": (2, ""), "three threads": (3, ""),
    "poison": (2, "RETROGRADE_POISON"), "no reuse": (2, "RETROGRADE_NO_REUSE"),
}  # fmt: skip
# The least by which results may differ from float64, beside their size: a few roundings.
ROUNDINGS = {"f64": 1e-12, "f32": 4e-6, "bf16": 0.06, "f16": 0.008}
DTYPES = ("f32", "f32", "f64", "bf16", "f16")
SEEDS = st.integers(0, 2**32 - 1)
PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)
EXAMPLES = max(settings().max_examples // 25, 1)  # of the profile: `make fuzz` asks for more


class Compared:
    """A model compiled in all ways."""

    def __init__(self, model: Model, dtype: str) -> None:
        self.model, self.dtype = model, dtype
        self.truth = self._compile("f64", "numpy")
        self.plain = self._compile(dtype, "numpy")
        self.native = {}
        for mode, (threads, variable) in MODES.items():
            with pytest.MonkeyPatch.context() as patch:
                if variable:
                    patch.setenv(variable, "1")
                self.native[mode] = self._compile(dtype, "native", threads=threads)

    def _compile(self, dtype: str, backend: str, **options: Any) -> Any:
        self.model.dtype = dtype
        step = rg.value_and_grad(self.model.loss, argnums=0)
        return rg.compile(step, *self.model.specs(dtype), backend=backend, **options)

    def check(self, rows: int, steps: int, seed: int) -> None:
        arrays = self.model.arrays(self.dtype, rows, steps, seed)
        found = {mode: flat(run(*arrays)) for mode, run in self.native.items()}
        found["again"] = flat(self.native["two threads"](*arrays))
        first = found["one thread"]
        for mode, others in found.items():
            for a, b in zip(first, others, strict=True):
                same_bits(a, b, f"{mode} differs from one thread at {rows}, {steps}")
        truth = flat(self.truth(*self.model.arrays("f64", rows, steps, seed)))
        plain = flat(self.plain(*arrays))
        scale = max([1.0, *(np.abs(x).max(initial=0.0) for x in truth)])
        near = ROUNDINGS[self.dtype] * scale
        for i, (a, b, true) in enumerate(zip(first, plain, truth, strict=True)):
            assert np.isfinite(a).all() or not np.isfinite(b).all(), f"{i} at {rows}, {steps}"
            off = np.abs(a.astype(np.float64) - true).max(initial=0.0)
            beside = np.abs(b.astype(np.float64) - true).max(initial=0.0)
            assert not off > 2 * beside + near, (
                f"output {i} at {rows}, {steps}: off by {off}, NumPy by {beside}, of {scale}"
            )


def flat(results: Any) -> list[Array]:
    return [np.asarray(x) for x in rg.tree.leaves(results)]


@settings(phases=PHASES, max_examples=EXAMPLES)
@given(seed=SEEDS, pieces=st.integers(1, 5), dtype=st.sampled_from(DTYPES))
def test_random_model(seed: int, pieces: int, dtype: str) -> None:
    compared = Compared(Model(seed, pieces), dtype)
    for i, (rows, steps) in enumerate(SIZES):
        compared.check(rows, steps, i)
