"""Byte-pair tokens: a text -> merges of bytes that occur together often -> int32 tokens, and back.

After Sennrich, Haddow and Birch, "Neural machine translation of rare words with subword units"
(ACL 2016), on bytes as in Radford et al., "Language models are unsupervised multitask learners"
(2019).  Invariant: the same text gives the same merges; every text, and every bytes, comes back
from its tokens unchanged.
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import DataError

Pair = tuple[int, int]

_BYTES = 256
# No merge crosses from one of these to the next: a word with the blank before it, a number, a run
# of signs, or of blanks but for the last.  What is above ASCII counts as letters.
_PIECE = re.compile(
    rb" ?[A-Za-z\x80-\xff]+| ?[0-9]+| ?[^A-Za-z0-9\s\x80-\xff]+|\s+(?!\S)|\s+", re.ASCII
)
_CACHED = 1 << 18  # pieces whose tokens are remembered


@dataclass(frozen=True)
class BytePairs:
    """Tokens 0 to 255 are bytes, then one for each of `merges`, then `specials`.

    A merge is two earlier tokens that become one.  Specials stand for no text: `encode` makes none
    of them, `decode` leaves them out, and `special(name)` is their token.
    """

    merges: tuple[Pair, ...] = ()
    specials: tuple[str, ...] = ()
    _known: dict[bytes, tuple[int, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        for number, pair in enumerate(self.merges):
            if len(pair) != 2 or not all(0 <= part < _BYTES + number for part in pair):
                raise DataError(f"merge {number} is {pair}: it joins two tokens made before it")
        if len(set(self.merges)) != len(self.merges):
            raise DataError("a merge is listed twice")
        if len(set(self.specials)) != len(self.specials):
            raise DataError("a special token is listed twice")

    @classmethod
    def train(
        cls, text: str | bytes | Iterable[str], merges: int, specials: Sequence[str] = ()
    ) -> BytePairs:
        """At most `merges` merges, each of the pair that is most frequent then.

        The pair of the lower tokens wins a tie.  It ends early where no pair occurs twice.
        """
        if merges < 0:
            raise DataError(f"the number of merges must not be negative: {merges}")
        texts = [text] if isinstance(text, str | bytes) else text
        pieces: Counter[bytes] = Counter()
        for part in texts:
            pieces.update(_PIECE.findall(_encoded(part)))
        return cls(tuple(_merges(pieces, merges)), tuple(specials))

    def __len__(self) -> int:
        return _BYTES + len(self.merges) + len(self.specials)

    def encode(self, text: str | bytes) -> npt.NDArray[np.int32]:
        """The tokens of a text, int32[n]."""
        known = self._known
        out: list[int] = []
        for piece in _PIECE.findall(_encoded(text)):
            tokens = known.get(piece)
            if tokens is None:
                tokens = self._tokens(piece)
                if len(known) < _CACHED:
                    known[piece] = tokens
            out.extend(tokens)
        return np.array(out, np.int32)

    def decode(self, tokens: npt.ArrayLike) -> str:
        """The text of `tokens`; what is no UTF-8, as a cut-off letter, becomes U+FFFD."""
        content = self.decode_bytes(tokens)
        try:
            return content.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return content.decode("utf-8", "replace")

    def decode_bytes(self, tokens: npt.ArrayLike) -> bytes:
        """The bytes of `tokens`; raises `DataError` for one that there is not."""
        array = np.asarray(tokens).reshape(-1)
        if array.size == 0:
            return b""
        if array.dtype.kind not in "iu":
            raise DataError(f"tokens are integers, not {array.dtype}")
        if array.min() < 0 or array.max() >= len(self):
            raise DataError(
                f"tokens from {array.min()} to {array.max()} do not fit {len(self)} byte-pair "
                "tokens: they were made with others"
            )
        contents = self.contents
        return b"".join([contents[token] for token in array.tolist()])

    def special(self, name: str) -> int:
        """The token of one of `specials`."""
        if name not in self.specials:
            raise DataError(f"there is no special token {name!r}; there are {self.specials}")
        return _BYTES + len(self.merges) + self.specials.index(name)

    @cached_property
    def contents(self) -> tuple[bytes, ...]:
        """The bytes that each token stands for."""
        found = [bytes([byte]) for byte in range(_BYTES)]
        for left, right in self.merges:
            found.append(found[left] + found[right])
        return (*found, *(b"" for _ in self.specials))

    def to_json(self) -> dict[str, Any]:
        """A JSON object, as a checkpoint's metadata keeps it."""
        merges = [list(pair) for pair in self.merges]
        return {"kind": "byte pairs", "merges": merges, "specials": list(self.specials)}

    @classmethod
    def from_json(cls, data: Any) -> BytePairs:
        """What `to_json` gave; raises `DataError` for anything else."""
        if not isinstance(data, dict) or data.get("kind") != "byte pairs":
            raise DataError("this is not the JSON of byte-pair tokens")
        merges, specials = data.get("merges"), data.get("specials", [])
        if not isinstance(merges, list) or not all(_is_pair(pair) for pair in merges):
            raise DataError("the JSON of byte-pair tokens lacks its 'merges', pairs of tokens")
        if not isinstance(specials, list) or not all(isinstance(s, str) for s in specials):
            raise DataError("the 'specials' of byte-pair tokens are strings")
        return cls(tuple((left, right) for left, right in merges), tuple(specials))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as a JSON file."""
        goal = Path(path)
        scratch = goal.with_name(f".{goal.name}.part")
        scratch.write_text(json.dumps(self.to_json()), encoding="utf-8")
        os.replace(scratch, goal)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> BytePairs:
        """Read a file that `save` wrote."""
        try:
            return cls.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{path}: cannot be read as byte-pair tokens: {error}") from error

    @cached_property
    def _ranks(self) -> dict[Pair, int]:
        return {pair: _BYTES + number for number, pair in enumerate(self.merges)}

    def _tokens(self, piece: bytes) -> tuple[int, ...]:
        """The tokens of a piece: the earliest merge first, everywhere, until there is none."""
        ranks, parts = self._ranks, list(piece)
        if len(parts) > 256:
            return self._tokens_of_long(piece)
        while len(parts) > 1:
            least = min(itertools.pairwise(parts), key=lambda p: ranks.get(p, 1 << 60))
            if least not in ranks:
                break
            parts = _joined(parts, least, ranks[least])
        return tuple(parts)

    def _tokens_of_long(self, piece: bytes) -> tuple[int, ...]:
        """The same in O(n log n), for a piece that is no word: a line of signs, a row of blanks."""
        ranks, parts = self._ranks, list(piece)
        count = len(parts)
        after, before = list(range(1, count + 1)), list(range(-1, count - 1))
        heap: list[tuple[int, int, int, int]] = []

        def push(left: int) -> None:
            right = after[left]
            if right < count and (rank := ranks.get((parts[left], parts[right]))) is not None:
                heapq.heappush(heap, (rank, left, parts[left], parts[right]))

        for left in range(count - 1):
            push(left)
        while heap:
            rank, left, first, second = heapq.heappop(heap)
            right = after[left]
            if parts[left] != first or right >= count or parts[right] != second:
                continue  # one of both has become part of another token
            parts[left], parts[right] = rank, -1
            after[left] = after[right]
            if after[left] < count:
                before[after[left]] = left
            push(left)
            if before[left] >= 0:
                push(before[left])
        return tuple(part for part in parts if part >= 0)


def _merges(pieces: Counter[bytes], wanted: int) -> list[Pair]:
    """The merges, by counts of pairs that are kept up with every merge."""
    ordered = sorted(pieces.items())
    words = [list(piece) for piece, _ in ordered]
    weights = [count for _, count in ordered]
    counts: Counter[Pair] = Counter()
    within: dict[Pair, set[int]] = {}
    for number, word in enumerate(words):
        for pair in itertools.pairwise(word):
            counts[pair] += weights[number]
            within.setdefault(pair, set()).add(number)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)
    merges: list[Pair] = []
    while heap and len(merges) < wanted:
        count, pair = heapq.heappop(heap)
        if counts[pair] != -count:
            continue  # it has been pushed again with the count of today
        if -count < 2:
            break
        token = _BYTES + len(merges)
        merges.append(pair)
        changed: set[Pair] = set()
        for number in within.pop(pair):
            old, weight = words[number], weights[number]
            new = _joined(old, pair, token)
            for gone in itertools.pairwise(old):
                counts[gone] -= weight
                changed.add(gone)
            for made in itertools.pairwise(new):
                counts[made] += weight
                within.setdefault(made, set()).add(number)
                changed.add(made)
            words[number] = new
        for other in changed:
            if counts[other] > 0:
                heapq.heappush(heap, (-counts[other], other))
            else:
                del counts[other]
    return merges


def _joined(parts: list[int], pair: Pair, token: int) -> list[int]:
    """`parts` with every `pair`, from left to right, become `token`."""
    first, second = pair
    out: list[int] = []
    at, last = 0, len(parts) - 1
    while at <= last:
        if at < last and parts[at] == first and parts[at + 1] == second:
            out.append(token)
            at += 2
        else:
            out.append(parts[at])
            at += 1
    return out


def _encoded(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(type(part) is int for part in pair)
