"""einsum against NumPy: subscripts of every form, the order of contractions, misfits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import retrograde.numpy as rnp
from retrograde.compiler.errors import ShapeError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.graph import TensorType


def data(shape: Any, seed: int = 0, low: float = 0.1, high: float = 0.9) -> Any:
    return np.random.default_rng(seed).uniform(low, high, shape)


def close(ours: Any, theirs: Any, rtol: float = 1e-12) -> None:
    if isinstance(theirs, tuple):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            close(a, b, rtol)
        return
    assert np.shape(ours) == np.shape(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=1e-12)


EINSUM = {
    "ij,jk": ((2, 3), (3, 4)),
    "ij,jk->ki": ((2, 3), (3, 4)),
    "bthd,bshd->bhts": ((2, 5, 3, 4), (2, 6, 3, 4)),
    "bhts,bshd->bthd": ((2, 3, 5, 6), (2, 6, 3, 4)),
    "...ij,...jk->...ik": ((6, 1, 2, 3), (5, 3, 4)),
    "...i,...i": ((5, 3), (5, 3)),
    "i...,i->...": ((3, 4, 5), (3,)),
    "i,j->ij": ((2,), (3,)),
    "i,i->i": ((4,), (4,)),
    "ii->i": ((4, 4),),
    "ii": ((4, 4),),
    "iij->j": ((4, 4, 3),),
    "iji->j": ((4, 3, 4),),
    "ij->": ((2, 3),),
    "ij->ji": ((2, 3),),
    "ba": ((2, 3),),
    "ij,kl->il": ((2, 3), (4, 5)),
    "ij,j,jk->ik": ((2, 3), (3,), (3, 4)),
    "ab,bc,cd,de->ae": ((2, 3), (3, 4), (4, 5), (5, 6)),
    "abc,cd,abd->b": ((2, 3, 4), (4, 5), (2, 3, 5)),
    "...->...": ((2, 3),),
    "i...j->...": ((2, 3, 4),),
    ",i->i": ((), (4,)),
    "aab,bcc->ac": ((2, 2, 3), (3, 4, 4)),
}


@pytest.mark.parametrize("text", EINSUM)
@pytest.mark.parametrize("way", ["outside", "by numpy", "symbolic"])
def test_einsum(run: Any, symbolic: Any, text: str, way: str) -> None:
    arrays = [data(s, i) for i, s in enumerate(EINSUM[text])]
    want = np.einsum(text, *arrays)
    if way == "outside":
        close(rnp.einsum(text, *arrays), want)
    elif way == "by numpy":
        close(run(lambda *xs: np.einsum(text, *xs), *arrays), want)
    else:
        close(run(lambda *xs: rnp.einsum(text, *xs), *arrays, shapes=symbolic(*arrays)), want)


def test_einsum_stretches_axes_of_size_1_and_takes_lists_of_labels(run: Any) -> None:
    x, y = data((2, 1), 1), data((3, 4), 2)
    close(rnp.einsum("ij,jk->ik", x, y), np.einsum("ij,jk->ik", x, y))
    close(rnp.einsum(x.T, [0, 1], y.T[:, :2], [2, 1], [0, 2]), (x.T @ y.T[:, :2].T))
    xs = [data((2, 3), 1), data((3, 4), 2), data((4, 5), 3)]
    close(run(lambda a, b, c: rnp.einsum("ij,jk,kl", a, b, c), *xs), xs[0] @ xs[1] @ xs[2])


@pytest.mark.parametrize(
    ("text", "shapes", "says"),
    [
        ("ij,jk->ik", ((2, 3), (4, 5)), "label 'j' is 3 and 4"),
        ("ij->ik", ((2, 3),), "each label of the operands once"),
        ("ij->ii", ((2, 3),), "each label of the operands once"),
        ("ijk->i", ((2, 3),), "has 3 labels for 2 axes"),
        ("i,j", ((2,),), "names 2 operands, got 1"),
        ("...i->i", ((2, 3),), "lacks the ellipsis"),
        ("i1->i", ((2, 3),), "not letters"),
        ("ii->i", ((2, 3),), "label 'i' is 2 and 3"),
    ],
)
def test_einsum_misfits(text: str, shapes: Any, says: str) -> None:
    with pytest.raises(ShapeError, match=says) as caught:
        rnp.einsum(text, *(data(s) for s in shapes))
    assert "test_einsum.py" in str(caught.value)


def test_einsum_is_one_contraction_per_pair_and_meets_cheapest_first(trace: Any) -> None:
    def f(a: Any, b: Any, c: Any) -> Any:
        return rnp.einsum("ij,jk,kl->il", a, b, c)

    types = [TensorType(dtypes.f32, s) for s in ((100, 2), (2, 100), (100, 2))]
    graph, _, _ = trace(f, types)
    dots = [n for n in graph.nodes if n.op.name == "dot_general"]
    assert [tuple(n.output.shape) for n in dots] == [(2, 2), (100, 2)]
