"""Examples: mappings of arrays, one for each sequence -> arrays of many, padded to a length.

An example is `{"field": array}`; an array with axes has time first, one without is of the whole
sequence, like a label.  A plain row of tokens stands for `{"tokens": row[:-1], "targets":
row[1:]}`.
Invariant: what is padded is a copy, and the examples stay as they are.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import DataError

Array = npt.NDArray[Any]
Example = Mapping[str, Any]
Batch = dict[str, Array]
# Which field has the length of which name; a name for all fields that have a time axis.
Lengths = str | Mapping[str, str]
_INT64 = np.dtype(np.int64)


def next_tokens(row: npt.ArrayLike) -> Batch:
    """`{"tokens": row[:-1], "targets": row[1:]}` of n + 1 tokens, int32[n]."""
    tokens = np.asarray(row)
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise DataError(f"tokens must be integers on one axis, not {tokens.dtype}{tokens.shape}")
    if tokens.size < 2:
        raise DataError(
            f"a sequence of {tokens.size} tokens has none to predict and one to predict it by: "
            "leave it out, or add a token for the beginning or the end"
        )
    narrow = narrowed(tokens)
    return {"tokens": narrow[:-1], "targets": narrow[1:]}


def fields_of(example: Any, number: int) -> Batch:
    """The arrays of one example; whole numbers become int32, and lists arrays."""
    if not isinstance(example, Mapping):
        return next_tokens(example)
    if not example:
        raise DataError(f"example {number} has no field")
    return {str(name): narrowed(np.asarray(value)) for name, value in example.items()}


def narrowed(array: Array) -> Array:
    """64-bit integers as int32 where they fit, all else as it is."""
    if array.dtype != _INT64:
        return array
    if array.size and (array.max() > 2**31 - 1 or array.min() < -(2**31)):
        raise DataError(f"the number {array.max()} does not fit 32 bits")
    return array.astype(np.int32)


class Collection:
    """The examples of a data set: what all have in common, their lengths, and padded batches.

    `examples` is any sequence; each item is asked for when it is needed, so it may be made then.
    Raises `DataError` where examples do not agree in fields, types and shapes but for the time.
    """

    def __init__(self, examples: Sequence[Any], lengths: Lengths = "lengths") -> None:
        if len(examples) < 1:
            raise DataError("there is no example to make batches of")
        self.examples = examples
        first = fields_of(examples[0], 0)
        self.timed = _timed(first, lengths)
        self.names = tuple(sorted(set(self.timed.values())))
        if taken := set(self.names) & first.keys():
            raise DataError(f"the examples have a field {min(taken)!r} already: name lengths anew")
        self.kinds = {name: self._kind(name, array) for name, array in first.items()}
        rows = [self._lengths_of(fields_of(e, i), i) for i, e in enumerate(examples)]
        self.lengths = np.array(rows, np.int64).reshape(len(rows), len(self.names))

    def __len__(self) -> int:
        return len(self.examples)

    @cached_property
    def longest(self) -> npt.NDArray[np.int64]:
        """The longest of the lengths of each example, int64[n]; 0 where nothing has a time axis."""
        return np.asarray(self.lengths.max(axis=1, initial=0))

    def get(self, number: int) -> Batch:
        """The arrays of one example."""
        return fields_of(self.examples[number], number)

    def padded(
        self, numbers: Iterable[int], sizes: Mapping[str, int], pad: float | Mapping[str, Any]
    ) -> Batch:
        """Examples side by side: `[B, size, …]` for what has time, then the lengths, int32[B]."""
        chosen = [int(number) for number in numbers]
        parts = [self.get(number) for number in chosen]
        out: Batch = {}
        for name, (dtype, rest) in self.kinds.items():
            if name not in self.timed:
                out[name] = np.stack([part[name] for part in parts])
                continue
            size = sizes[self.timed[name]]
            filler = pad_value(name, dtype, pad)
            out[name] = np.full((len(parts), size, *rest), filler, dtype)
            for row, part in zip(out[name], parts, strict=True):
                row[: part[name].shape[0]] = part[name]
        for column, name in enumerate(self.names):
            out[name] = self.lengths[chosen, column].astype(np.int32)
        return out

    def fingerprint(self) -> dict[str, Any]:
        """How many examples there are and the CRC-32 of all they hold: JSON."""
        crc = 0
        for number in range(len(self)):
            for name, array in sorted(self.get(number).items()):
                crc = zlib.crc32(f"{name} {array.dtype} {array.shape};".encode(), crc)
                crc = zlib.crc32(np.ascontiguousarray(array).data, crc)
        return {"examples": len(self), "crc32": crc}

    def _kind(self, name: str, array: Array) -> tuple[np.dtype[Any], tuple[int, ...]]:
        return array.dtype, array.shape[1:] if name in self.timed else array.shape

    def _lengths_of(self, arrays: Batch, number: int) -> list[int]:
        if arrays.keys() != self.kinds.keys():
            raise DataError(
                f"example {number} has the fields {sorted(arrays)}, the first {sorted(self.kinds)}"
            )
        found: dict[str, int] = {}
        for name, array in arrays.items():
            if name in self.timed and not array.ndim:
                raise DataError(f"field {name!r} of example {number} has no time axis")
            if self._kind(name, array) != self.kinds[name]:
                raise DataError(
                    f"field {name!r} of example {number} is {array.dtype}{list(array.shape)}, in "
                    f"the first it is {self.kinds[name][0]} with {list(self.kinds[name][1])} "
                    "beside the time. A field whose first axis is time is named in `lengths`."
                )
            if name in self.timed:
                length = found.setdefault(self.timed[name], array.shape[0])
                if length != array.shape[0]:
                    raise DataError(
                        f"field {name!r} of example {number} has {array.shape[0]} steps and "
                        f"another {length}: say which belong together, as in "
                        "lengths={'source': 'source_lengths', 'target': 'target_lengths'}"
                    )
        return [found[name] for name in self.names]


def pad_value(name: str, dtype: np.dtype[Any], pad: float | Mapping[str, Any]) -> Any:
    """What a field is padded with; raises `DataError` if its type has no such number."""
    value = pad.get(name, 0) if isinstance(pad, Mapping) else pad
    with np.errstate(all="ignore"):
        try:
            fits = np.asarray(value).astype(dtype)
        except (TypeError, ValueError) as error:
            raise DataError(f"{name!r} of {dtype} cannot be padded with {value!r}") from error
    if isinstance(pad, Mapping) and not _same(fits, value):
        raise DataError(f"{name!r} of {dtype} cannot be padded with {value!r}")
    if not isinstance(pad, Mapping) and not _same(fits, value):
        return np.zeros((), dtype)  # one number for all fields is of those that have it
    return fits


def _same(fits: Array, value: Any) -> bool:
    return bool(fits == value) or (value != value and bool(fits != fits))


def _timed(first: Batch, lengths: Lengths) -> dict[str, str]:
    if isinstance(lengths, str):
        return {name: lengths for name, array in first.items() if array.ndim}
    if unknown := set(lengths) - set(first):
        raise DataError(f"lengths names a field {min(unknown)!r}; there are {sorted(first)}")
    return dict(lengths)
