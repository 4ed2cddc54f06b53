"""The texts to go on from: what a user gives -> one array of tokens a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import DataError
from retrograde.compiler.ir.location import where

Array = npt.NDArray[Any]


def rows_of(prompts: Any, lengths: Any = None) -> tuple[list[Array], bool]:
    """The rows, and whether there is one that was not given as a batch.

    `prompts`: tokens [P], a list of such, or an array [B, P], of which `lengths` [B] says how many
    tokens of each row count.  DataError for what is empty or no token."""
    single = _is_text(prompts)
    given = [prompts] if single else list(prompts)
    rows = [np.asarray(x) for x in given]
    if lengths is not None:
        counts = np.asarray(lengths).reshape(-1)
        if len(counts) != len(rows):
            raise DataError(f"{where()}{len(counts)} lengths for {len(rows)} prompts")
        if any(not 0 < n <= x.size for n, x in zip(counts, rows, strict=True)):
            raise DataError(
                f"{where()}the lengths {counts.tolist()} do not fit prompts of "
                f"{[x.size for x in rows]} tokens"
            )
        rows = [x[: int(n)] for n, x in zip(counts, rows, strict=True)]
    if not rows:
        raise DataError(f"{where()}there are no prompts")
    for x in rows:
        if x.ndim != 1 or (x.size and x.dtype.kind not in "iu"):
            raise DataError(
                f"{where()}a prompt is {x.dtype}{list(x.shape)}: it is whole numbers in a row"
            )
        if not x.size:
            raise DataError(f"{where()}the prompt is empty: there is nothing to go on from")
    return [x.astype(np.int64) for x in rows], single


def _is_text(prompts: Any) -> bool:
    if isinstance(prompts, np.ndarray):
        return prompts.ndim == 1 and prompts.dtype != object
    return isinstance(prompts, Sequence) and all(
        isinstance(x, (int, np.integer)) for x in prompts
    )


def numbers(stop: Any) -> frozenset[int]:
    """Stop tokens: one, or several."""
    if isinstance(stop, (int, np.integer)):
        return frozenset({int(stop)})
    return frozenset(int(x) for x in stop)
