"""Text for language models: files or Python's own source -> characters -> int32 tokens.

Invariant: the same text gives the same vocabulary, tokens and parts on every run; a character that
is not in the vocabulary becomes `UNKNOWN`, never an error; no passage is in two parts.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import DataError
from retrograde.runtime.data.splits import Part, part_of

UNKNOWN = "\ufffd"  # token 0 of every vocabulary

# Installed packages are not the standard library, and the folders of tests hold as much generated
# data as source.
_SKIPPED_FOLDERS = frozenset(
    ["site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"]
)
_CHUNK = 1 << 20  # characters worked on at a time, so that 12 MB of text need little extra memory
_CODE_POINTS = 0x110000
_BLOCK_TOKENS = 1024  # a validation block is no shorter than this, unless the text is tiny


# --- sources


def stdlib_text() -> str:
    """The source of Python's standard library: about 12 MB of text that every machine has.

    All `.py` files without tests and installed packages, by relative path, joined with a newline.
    Files that are not UTF-8 are left out.  Raises `DataError` on a Python without its sources.
    """
    return "\n".join(_stdlib().values())


def _stdlib() -> dict[str, str]:
    """Path below the library's folder -> source, in the order of paths."""
    root = Path(sysconfig.get_path("stdlib"))
    found = {
        file.relative_to(root).as_posix(): text
        for file in source_files(root)
        if (text := _decoded(file))
    }
    if not found:
        raise DataError(
            f"{root}: this Python comes without the source of its standard library. "
            "Train on a text of your own: --data FILE."
        )
    return found


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a UTF-8 file; raises `DataError` where it is missing, empty or no text."""
    file = Path(path)
    try:
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{file}: there is no such file. Name a text file in UTF-8.") from error
    except IsADirectoryError as error:
        raise DataError(
            f"{file}: this is a directory. Name one file; `cat {file}/* > all.txt` joins many."
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path itself
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{file}: cannot be read: {reason}.") from error
    if not content.strip():
        raise DataError(f"{file}: the file is empty or blank. Name a file with some text in it.")
    if (position := content.find(b"\0")) >= 0:
        raise DataError(
            f"{file}: binary, not text (a NUL at byte {position}). Name a text file in UTF-8."
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file}: not UTF-8 (byte 0x{content[error.start]:02x} at {error.start}). "
            f"Convert it first: iconv -f latin1 -t utf-8 {file} > utf8.txt, where latin1 stands "
            "for the encoding it is in."
        ) from error


def source_files(root: Path) -> list[Path]:
    """The `.py` files below `root` by path, without tests and installed packages."""
    found: list[Path] = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
        found.extend(Path(folder, name) for name in files if name.endswith(".py"))
    # The order of os.walk is that of the file system; the order of paths is everyone's.
    return sorted(found, key=lambda file: file.relative_to(root).as_posix())


def _decoded(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


# --- characters


@dataclass(frozen=True)
class Vocabulary:
    """Characters and their tokens: token 0 is `UNKNOWN`, then `characters` by code point."""

    characters: str

    def __post_init__(self) -> None:
        if UNKNOWN in self.characters:
            raise DataError("a vocabulary must not list the unknown character: it is token 0")
        if any(a >= b for a, b in pairwise(self.characters)):
            raise DataError("the characters of a vocabulary must be distinct and in order")

    @classmethod
    def of(cls, text: str, *, minimum_count: int = 1, limit: int | None = None) -> Vocabulary:
        """The characters that occur at least `minimum_count` times, at most the `limit` most
        frequent (the lower code point wins a tie).  All others will be `UNKNOWN`.
        """
        if not text:
            raise DataError("a vocabulary cannot be made of an empty text")
        if minimum_count < 1 or (limit is not None and limit < 1):
            raise DataError(
                f"minimum_count and limit must be at least 1, not {minimum_count} and {limit}"
            )
        counts = np.zeros(_CODE_POINTS, np.int64)
        for _, codes in _code_points(text):
            part = np.bincount(codes)
            counts[: part.size] += part
        counts[ord(UNKNOWN)] = 0
        kept = np.flatnonzero(counts >= minimum_count)
        if limit is not None:
            # A stable sort of falling counts leaves equal ones in the order of code points.
            kept = kept[np.argsort(-counts[kept], kind="stable")[:limit]]
        return cls("".join(map(chr, sorted(kept.tolist()))))

    def __len__(self) -> int:
        return 1 + len(self.characters)

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        """One token a character; what the vocabulary lacks becomes 0."""
        tokens = np.empty(len(text), np.int32)
        table = self._token_of
        for start, codes in _code_points(text):
            # Clipping sends everything beyond the last character to the table's last entry, 0.
            table.take(codes, mode="clip", out=tokens[start : start + codes.size])
        return tokens

    def decode(self, tokens: npt.ArrayLike) -> str:
        """The text of `tokens`; raises `DataError` for one that no character has."""
        array = np.asarray(tokens)
        if array.size == 0:
            return ""
        if array.dtype.kind not in "iu":
            raise DataError(f"tokens are integers, not {array.dtype}")
        if array.min() < 0 or array.max() >= len(self):
            raise DataError(
                f"tokens from {array.min()} to {array.max()} do not fit a vocabulary of "
                f"{len(self)} (0 to {len(self) - 1}): it is not the one they were made with"
            )
        encoded: bytes = self._code_of[array.reshape(-1)].tobytes()
        return encoded.decode("utf-32-le", "surrogatepass")

    def to_json(self) -> dict[str, Any]:
        """A JSON object, as a checkpoint's metadata keeps it."""
        return {"kind": "characters", "characters": self.characters}

    @classmethod
    def from_json(cls, data: Any) -> Vocabulary:
        """What `to_json` gave; raises `DataError` for anything else."""
        if not isinstance(data, dict) or data.get("kind") != "characters":
            raise DataError("this is not the JSON of a character vocabulary")
        characters = data.get("characters")
        if not isinstance(characters, str):
            raise DataError("the JSON of a character vocabulary lacks its 'characters'")
        return cls(characters)

    @cached_property
    def _code_of(self) -> npt.NDArray[np.uint32]:
        return np.array([ord(UNKNOWN), *map(ord, self.characters)], "<u4")

    @cached_property
    def _token_of(self) -> npt.NDArray[np.int32]:
        codes = self._code_of[1:]
        table = np.zeros(int(codes.max(initial=0)) + 2, np.int32)
        table[codes] = np.arange(1, len(self), dtype=np.int32)
        return table


def _code_points(text: str) -> Iterator[tuple[int, npt.NDArray[np.uint32]]]:
    """The code points of `text` in pieces, each with the position it starts at."""
    for start in range(0, len(text), _CHUNK):
        encoded = text[start : start + _CHUNK].encode("utf-32-le", "surrogatepass")
        yield start, np.frombuffer(encoded, "<u4")


# --- parts


def split(
    tokens: npt.NDArray[Any], validation: float = 0.1, blocks: int = 16
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """`(training, validation)` tokens: every token is in exactly one of them.

    The text is cut into `blocks` equal stripes (fewer if their validation parts would be under
    1024 tokens), and the last `validation` of each stripe is held out.  So both parts see the
    whole text, and since windows are cut from one part or the other after the split, no window of
    one shares a token with a window of the other.  Where two stripes meet, a part skips from one
    passage to a later one, as it does at the end of a file.
    """
    if tokens.ndim != 1:
        raise DataError(f"tokens must have one axis, not the shape {tokens.shape}")
    if not 0.0 < validation < 1.0:
        raise DataError(f"the validation part must lie between 0 and 1, not {validation}")
    if blocks < 1:
        raise DataError(f"blocks must be at least 1, not {blocks}")
    stripes = _stripes(tokens.size, validation, blocks)
    parts = (
        np.concatenate([tokens[start:middle] for start, middle, _ in stripes]),
        np.concatenate([tokens[middle:end] for _, middle, end in stripes]),
    )
    if not all(part.size for part in parts):
        raise DataError(
            f"{tokens.size} tokens are too few to hold out {validation:.0%} of them; "
            "use a longer text"
        )
    return parts


def _stripes(size: int, held_out: float, blocks: int) -> list[tuple[int, int, int]]:
    """(start, where what is held out begins, end) of each stripe."""
    count = max(1, min(blocks, int(size * held_out) // _BLOCK_TOKENS))
    edges = [size * index // count for index in range(count + 1)]
    return [(a, b - round((b - a) * held_out), b) for a, b in pairwise(edges)]


@dataclass(frozen=True)
class Parts:
    """A text to train on, one to validate on, and one to judge by at the end."""

    training: str
    validation: str
    test: str


def stdlib_parts() -> Parts:
    """The standard library (see `stdlib_text`), each file in one part as a whole.

    The hash of a file's path decides: a twentieth of the files is for validation, another one for
    the test.
    """
    texts: dict[Part, list[str]] = {"training": [], "validation": [], "test": []}
    for path, content in _stdlib().items():
        texts[part_of(path)].append(content)
    return Parts(**{part: "\n".join(contents) for part, contents in texts.items()})


def text_parts(text: str, held_out: float = 0.1, blocks: int = 16) -> Parts:
    """One text in stripes, as `split` cuts it; the ends of the stripes are, half and half, for
    validation and the test.  Raises `DataError` where a part would be empty.
    """
    training, validation, test = [], [], []
    for start, middle, end in _stripes(len(text), held_out, blocks):
        half = (middle + end) // 2
        training.append(text[start:middle])
        validation.append(text[middle:half])
        test.append(text[half:end])
    parts = Parts("".join(training), "".join(validation), "".join(test))
    if not (parts.training and parts.validation and parts.test):
        raise DataError(
            f"the text is too short: of {len(text)} characters {held_out:.0%} are held out, for "
            "validation and for a test. Use a longer text."
        )
    return parts
