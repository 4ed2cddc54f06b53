"""Gaps around every buffer change no bit, and tell of a kernel that writes beyond its arrays."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.compiler.errors import OverrunError
from retrograde.compiler.program import KernelFile, Recipe
from retrograde.models import GPT
from retrograde.runtime import red_zones

B, T, V = 3, 17, 11


def _step(backend: str, **settings: Any) -> tuple[Any, list[dict[str, float]]]:
    ids = rg.spec("i32", "B", "T")
    step = rg.compile_training(
        lambda model, tokens, targets: rg.losses.cross_entropy(model(tokens), targets),
        GPT(vocab=V, width=24, layers=2, heads=3, context=T, seed=1), rg.optim.AdamW(1e-2),
        {"tokens": ids, "targets": ids}, at={"B": B, "T": T}, clip_norm=1.0, backend=backend,
        **settings,
    )  # fmt: skip
    rng = np.random.default_rng(5)
    drawn = [rng.integers(0, V, (2, b, t)).astype("i4") for b, t in ((B, T), (2, 5), (B, T))]
    return step, [step(tokens=x[0], targets=x[1]) for x in drawn]


@pytest.mark.parametrize("backend", ["numpy", "native"])
def test_gaps_change_no_bit(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    plain, expected = _step(backend)
    monkeypatch.setenv("RETROGRADE_RED_ZONES", "1")
    zoned, found = _step(backend)
    assert found == expected
    for name, x in plain.state()[0].items():
        assert np.array_equal(x, zoned.state()[0][name]), name
    plan = zoned.plan(B=B, T=T)
    spans = sorted((b.offset, b.offset + b.bytes) for b in plan.buffers)
    assert spans[0][0] >= 256 and plan.peak_bytes - spans[-1][1] >= 256
    assert all(right[0] - left[1] >= 256 for left, right in pairwise(spans))
    assert zoned.peak_bytes == plan.peak_bytes == zoned.peak()(B=B, T=T)


def _wave(x: Any) -> Any:
    return rnp.sum(rnp.sin(x) * x, axis=0)


def test_a_kernel_that_writes_too_far_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETROGRADE_RED_ZONES", "1")
    x = np.random.default_rng(1).standard_normal((33, 9)).astype("f4")
    compiled = rg.compile(_wave, rg.spec("f32", "N", 9), backend="native")
    compiled(x)
    recipe = compiled._runnable().executable.program.recipes[0]
    planted = Recipe(**{**vars_of(recipe), "kernels": tuple(map(_one_row_more, recipe.kernels))})
    assert planted.kernels != recipe.kernels
    again = rg.compile(_wave, rg.spec("f32", "N", 9), backend="native")
    executable = again._runnable().executable
    object.__setattr__(executable.program, "recipes", (planted,))
    with pytest.raises(OverrunError, match=r"between the .*test_red_zones\.py"):
        again(x)


def vars_of(recipe: Recipe) -> dict[str, Any]:
    return {name: getattr(recipe, name) for name in Recipe.__dataclass_fields__}


def _one_row_more(file: KernelFile) -> KernelFile:
    """Kernels that go one item too far."""
    head, mark, own = file.text.partition("the kernels of this program")
    return file._replace(text=head + mark + own.replace("< hi;", "<= hi;"))


def test_a_write_on_numpy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETROGRADE_RED_ZONES", "1")
    compiled = rg.compile(_wave, rg.spec("f32", "N", 9), backend="numpy")
    x = np.random.default_rng(1).standard_normal((33, 9)).astype("f4")
    compiled(x)
    executable = compiled._runnable().executable
    (bound,) = executable._bound.values()
    zones = red_zones.of(executable.program.recipes[0], bound.sizes)
    run, target = bound.run, zones[1]

    def overrunning() -> None:
        run()
        executable._arena.view(target.offset + 7, np.dtype("u1"), (2,), None)[:] = 3

    bound.run = overrunning
    with pytest.raises(OverrunError, match="2 bytes from 7 to 9 of the 256 between the input"):
        compiled(x)
