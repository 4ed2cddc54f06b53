"""Python's own tokens: the standard library -> logical lines of tokens, each with its role.

What each token is comes from Python's tokenizer and parser: a name is what is called, a method, an
attribute, a parameter, …, which mostly the tokens around it tell.  Every machine has this data, but
it is that of its Python version.  Invariant: a file is in one part as a whole, by the hash of its
path; as many roles as words; comments are left out.
"""

from __future__ import annotations

import ast
import hashlib
import io
import keyword
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from retrograde.compiler.errors import DataError
from retrograde.runtime.data.packages import Package
from retrograde.runtime.data.splits import part_of
from retrograde.runtime.data.text import source_files

ABOUT = "tagging: the tokens of Python's standard library and their roles; no download"
PACKAGES: tuple[Package, ...] = ()
ROLES = (
    "argument",
    "attribute",
    "call",
    "class",
    "function",
    "import",
    "keyword",
    "method",
    "name",
    "number",
    "operator",
    "parameter",
    "store",
    "string",
)
_SKIPPED = frozenset(
    [tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING]
)
_PLAIN = {tokenize.NUMBER: "number", tokenize.STRING: "string", tokenize.OP: "operator"}
_SOFT_KEYWORDS = frozenset(["match", "case", "type"])
# From Python 3.12 on an f-string is many tokens (from 3.14 on a t-string too); it is joined again.
_STARTS = frozenset(getattr(tokenize, f"{kind}STRING_START", -1) for kind in "FT")
_ENDS = frozenset(getattr(tokenize, f"{kind}STRING_END", -1) for kind in "FT")

Place = tuple[int, int]  # line from 1, column from 0 in bytes of UTF-8


@dataclass(frozen=True)
class Line:
    """One logical line: `words[i]` is a token as written and `roles[i]` one of `ROLES`."""

    words: tuple[str, ...]
    roles: tuple[str, ...]
    file: str


@dataclass(frozen=True)
class PythonTokens:
    """The lines of each part, by path and in order."""

    training: list[Line]
    validation: list[Line]
    test: list[Line]


def load(files: int | None = 300) -> PythonTokens:
    """The lines of `files` files (those whose paths hash lowest), or of all with None."""
    root = Path(sysconfig.get_path("stdlib"))
    listed = [file.relative_to(root).as_posix() for file in source_files(root)]
    if not listed or (files is not None and files < 1):
        raise DataError(f"{root}: no source to read, of {files} files asked for")
    if files is not None:
        kept = set(sorted(listed, key=lambda p: hashlib.sha256(p.encode()).digest())[:files])
        listed = [name for name in listed if name in kept]
    found = PythonTokens([], [], [])
    for name in listed:
        try:
            source = (root / name).read_bytes().decode("utf-8-sig")
        except (OSError, UnicodeDecodeError):
            continue
        part: list[Line] = getattr(found, part_of(name, validation=0.1, test=0.1))
        part.extend(lines(source, name))
    return found


def lines(source: str, file: str) -> list[Line]:
    """The logical lines of one file; none where it is not Python of this version."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            places = _places(ast.parse(source))
        return list(_lines(source, file, places))
    except (SyntaxError, ValueError, RecursionError, tokenize.TokenError):
        return []


def _lines(source: str, file: str, places: dict[Place, str]) -> Iterator[Line]:
    words: list[str] = []
    roles: list[str] = []
    for kind, word, place in _tokens(source):
        if kind in (tokenize.NEWLINE, tokenize.ENDMARKER):
            if words:
                yield Line(tuple(words), tuple(roles), file)
            words, roles = [], []
            continue
        role = _PLAIN.get(kind)
        if role is None and keyword.iskeyword(word):
            role = "keyword"
        if role is None:
            role = places.get(place) or _by_neighbours(word, words)
            if words and words[0] in ("import", "from"):
                role = "import"
        words.append(word)
        roles.append(role)


def _by_neighbours(word: str, before: list[str]) -> str:
    """The role of a name that the parser gives no place of."""
    if not before:
        return "keyword" if word in _SOFT_KEYWORDS else "name"
    return {"def": "function", "class": "class", "as": "store"}.get(before[-1], "name")


def _tokens(source: str) -> Iterator[tuple[int, str, Place]]:
    """(kind, word, place) of what is no comment or layout."""
    depth = 0
    start: Place = (1, 0)
    rows = io.StringIO(source).readlines()
    for token in tokenize.generate_tokens(iter([*rows, ""]).__next__):
        if token.type in _STARTS:
            start = start if depth else token.start
            depth += 1
        elif token.type in _ENDS:
            depth -= 1
            if not depth:
                yield tokenize.STRING, _between(rows, start, token.end), start
        elif depth == 0 and token.type not in _SKIPPED:
            row, column = token.start
            # The parser counts bytes; behind the last line there is a row that is none.
            before = rows[row - 1][:column] if row <= len(rows) else ""
            yield token.type, token.string, (row, len(before.encode("utf-8")))


def _between(rows: list[str], start: Place, end: Place) -> str:
    """The source from one place to another, columns in characters."""
    (first, column), (last, after) = start, end
    if first == last:
        return rows[first - 1][column:after]
    return "".join([rows[first - 1][column:], *rows[first : last - 1], rows[last - 1][:after]])


def _places(tree: ast.AST) -> dict[Place, str]:
    """Where the parser saw a name, and as what."""
    found: dict[Place, str] = {}
    called: set[int] = set()
    for node in ast.walk(tree):  # a call comes before what it calls
        match node:
            case ast.Call(func=func):
                called.add(id(func))
            case ast.Name(lineno=line, col_offset=column, ctx=context):
                role = "name" if isinstance(context, ast.Load) else "store"
                found[line, column] = "call" if id(node) in called else role
            case ast.Attribute(end_lineno=int(line), end_col_offset=int(end), attr=attr):
                role = "method" if id(node) in called else "attribute"
                found[line, end - len(attr.encode("utf-8"))] = role
            case ast.arg(lineno=line, col_offset=column):
                found[line, column] = "parameter"
            case ast.MatchAs(lineno=line, col_offset=column, pattern=None, name=str()):
                found[line, column] = "store"
            case ast.MatchStar(lineno=line, col_offset=column, name=str()):
                found[line, column + 1] = "store"  # behind the star
            case ast.keyword(lineno=line, col_offset=column, arg=str()):
                found[line, column] = "argument"
    return found
