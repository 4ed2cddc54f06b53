"""Numbers for people: bytes in binary units, operations in decimal ones."""

from __future__ import annotations


def bytes_text(count: int) -> str:
    """Bytes in binary units with two decimals."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{count} B" if unit == "B" else f"{size:.2f} {unit}"
        size /= 1024
    raise AssertionError  # the loop always returns


def count_text(number: int) -> str:
    """A count with three digits: 1.23 M."""
    for limit, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= limit:
            return f"{number / limit:.3g} {unit}"
    return str(number)
