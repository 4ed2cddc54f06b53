"""Tokens on disk: rows of tokens <-> one file that is mapped into memory, not read.

The file: 8 bytes `RGTOKEN1`, then little-endian uint32 bytes a token (2 or 4), uint32 CRC-32 of the
tokens as int32, uint64 how many, uint64 size of the vocabulary (0: not told), zeros up to byte 64,
then the tokens as uint16 or int32.  Invariant: a file appears whole, by a rename, and one that is
cut off or has another size than its head tells is refused.
"""

from __future__ import annotations

import os
import secrets
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import DataError

MAGIC = b"RGTOKEN1"
HEAD = 64
_LAYOUT = struct.Struct("<8sIIQQ")
_CHUNK = 1 << 20  # tokens checked at a time
_DTYPES: dict[int, np.dtype[Any]] = {2: np.dtype("<u2"), 4: np.dtype("<i4")}


class TokenFile:
    """A file of tokens.  `len` counts them; indexing gives int32, copied from the mapping."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises `DataError` where the file is missing, cut off, or of another kind."""
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                head = file.read(HEAD)
                size = os.fstat(file.fileno()).st_size
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}.") from error
        if len(head) < HEAD or not head.startswith(MAGIC):
            raise DataError(f"{path}: not a file of tokens. Make one with TokenFile.write.")
        _, width, self.crc32, count, vocabulary = _LAYOUT.unpack_from(head)
        if width not in _DTYPES or size != HEAD + count * width:
            raise DataError(
                f"{path}: damaged: {size} bytes, and the head tells of {count} tokens of {width}. "
                "Write the file anew."
            )
        self.vocabulary: int | None = vocabulary or None
        self.tokens: npt.NDArray[Any] = (
            np.memmap(self.path, _DTYPES[width], "r", offset=HEAD, shape=(count,))
            if count
            else np.empty(0, _DTYPES[width])
        )

    @classmethod
    def write(
        cls,
        path: str | os.PathLike[str],
        parts: Iterable[npt.ArrayLike],
        vocabulary: int | None = None,
    ) -> TokenFile:
        """Write rows of tokens one behind the other; only one is in memory at a time.

        Tokens take 2 bytes each where `vocabulary`, one more than the greatest, is at most 65536.
        """
        if vocabulary is not None and not 1 <= vocabulary <= 2**31:
            raise DataError(f"the vocabulary must have 1 to 2**31 tokens, not {vocabulary}")
        width = 2 if vocabulary is not None and vocabulary <= 1 << 16 else 4
        goal = Path(path)
        scratch = goal.with_name(f".{goal.name}.{secrets.token_hex(6)}")
        count = crc = 0
        try:
            with scratch.open("wb") as file:
                file.write(bytes(HEAD))
                for part in parts:
                    row = _row(part, vocabulary)
                    crc = zlib.crc32(row.data, crc)
                    count += row.size
                    file.write(row.astype(_DTYPES[width]).tobytes())
                file.seek(0)
                file.write(_LAYOUT.pack(MAGIC, width, crc, count, vocabulary or 0))
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, goal)
        except OSError as error:
            raise DataError(f"{goal}: cannot be written: {error.strerror or error}.") from error
        finally:
            scratch.unlink(missing_ok=True)
        return cls(goal)

    def __len__(self) -> int:
        return int(self.tokens.size)

    def __getitem__(self, index: Any) -> npt.NDArray[np.int32]:
        return np.array(self.tokens[index], np.int32)

    def verify(self) -> None:
        """Read all of it; raises `DataError` where a token is not what was written."""
        if checksum(self.tokens) != self.crc32:
            raise DataError(f"{self.path}: damaged: the CRC-32 is another. Write the file anew.")


def checksum(tokens: npt.NDArray[Any]) -> int:
    """The CRC-32 of the tokens as little-endian int32, read a piece at a time."""
    crc = 0
    for start in range(0, tokens.size, _CHUNK):
        crc = zlib.crc32(tokens[start : start + _CHUNK].astype("<i4").data, crc)
    return crc


def _row(part: npt.ArrayLike, vocabulary: int | None) -> npt.NDArray[np.int32]:
    row = np.asarray(part)
    if row.ndim != 1 or (row.size and row.dtype.kind not in "iu"):
        raise DataError(f"tokens must be integers on one axis, not {row.dtype}{row.shape}")
    limit = 2**31 if vocabulary is None else vocabulary
    if row.size and (row.min() < 0 or row.max() >= limit):
        raise DataError(f"tokens from {row.min()} to {row.max()} do not fit 0 to {limit - 1}")
    return np.ascontiguousarray(row, "<i4")
