"""`retrograde data`: names of data sets -> their files in the cache, or a table of all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from retrograde.runtime.data import packages, sets


def listing() -> str:
    """Every data set: whether it is here, how much it downloads, and what it is."""
    rows = [("name", "here", "MiB", "about")]
    rows.extend(_row(name) for name in sets.NAMES)
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = (
        f"{name:{widths[0]}}  {here:{widths[1]}}  {size:>{widths[2]}}  {about}"
        for name, here, size, about in rows
    )
    return "\n".join((*lines, f"kept in {packages.folder()}"))


def fetch(names: Sequence[str]) -> Iterator[str]:
    """Fetches data sets, `all` for every one, and tells of each file where it lies."""
    chosen = sets.NAMES if "all" in names else names
    for name in chosen:  # a name that is misspelt is told before anything is downloaded
        sets.module(name)
    return _fetched(chosen)


def _fetched(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        needed = sets.packages_of(name)
        if not needed:
            yield f"{name}: nothing to download"
        for package in needed:
            was_there = packages.is_there(package)
            file = packages.fetch(package)
            yield f"{name}: {file} {'(was there)' if was_there else '(downloaded)'}"


def _row(name: str) -> tuple[str, str, str, str]:
    needed = sets.packages_of(name)
    here = all(packages.is_there(package) for package in needed)
    size = sum(package.bytes for package in needed) / (1 << 20)
    about: str = sets.module(name).ABOUT
    return name, "yes" if here else "no", f"{size:.1f}" if needed else "-", about
