"""`retrograde compile`, `plan`, `inspect`: a recipe -> what its training step is and needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from retrograde.cli.recipes import compiled_step, find, settled
from retrograde.compiler.errors import DataError

_ROWS, _COLUMNS = (1, 2, 4, 8, 16, 32, 64), (32, 64, 128, 256, 512)


def show_report(
    recipe: str, *, pairs: tuple[str, ...], config: str | None, data: str | None,
    sizes: tuple[str, ...],
) -> None:  # fmt: skip
    """Prints the report."""
    click.echo(_compiled(recipe, pairs, config, data).report(**_sizes(sizes)), nl=False)


def draw(
    recipe: str, output: str, *, pairs: tuple[str, ...], config: str | None, data: str | None,
    stage: str,
) -> None:  # fmt: skip
    """Draws the graph of a stage."""
    _compiled(recipe, pairs, config, data).inspect(output, stage)
    click.echo(f"{stage} drawn in {output}")


def show_plan(
    recipe: str, *, pairs: tuple[str, ...], config: str | None, data: str | None,
    batch_sizes: str | None, lengths: str | None, sizes: tuple[str, ...],
) -> None:  # fmt: skip
    """Prints the peak in closed form, and a table of it over batch sizes and lengths."""
    step = _compiled(recipe, pairs, config, data)
    click.echo(f"peak = {step.peak()} bytes\n")
    symbols = list(step.ir().symbols())
    rows = _axis("B", batch_sizes, _ROWS, symbols)
    columns = _axis("T", lengths, _COLUMNS, symbols)
    others = _sizes(sizes)
    header = [f"B={b}" for b in rows] if "B" in symbols else ["peak"]
    titles = [f"T={t}" for t in columns] if "T" in symbols else ["peak"]
    cells = [
        [_size_text(step.plan(**_known(symbols, B=b, T=t, **others)).peak_bytes) for t in columns]
        for b in rows
    ]
    wide = max(map(len, [*titles, *(cell for row in cells for cell in row)]))
    first = max(map(len, header))
    click.echo(" " * first + "".join(f"  {title:>{wide}}" for title in titles))
    for name, row in zip(header, cells, strict=True):
        click.echo(f"{name:<{first}}" + "".join(f"  {cell:>{wide}}" for cell in row))


def _compiled(recipe: str, pairs: tuple[str, ...], config: str | None, data: str | None) -> Any:
    found = find(recipe)
    settings = settled(found, {"data": data}, pairs, config)
    return compiled_step(found.build(settings), settings)


def _axis(
    name: str, given: str | None, default: Sequence[int], symbols: Sequence[str]
) -> Sequence[int]:
    """The sizes of one axis of the table; one entry where the step has no such size."""
    if name not in symbols:
        if given is not None:
            raise DataError(f"-{name}: this step has no size {name}; it has {_listed(symbols)}")
        return (0,)
    if given is None:
        return default
    return [_whole(part, f"-{name} {given}") for part in given.split(",")]


def _sizes(texts: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for text in texts:
        name, separator, number = text.partition("=")
        if not separator:
            raise DataError(f"--size {text}: write --size NAME=N, as in B=32")
        found[name.strip()] = _whole(number, f"--size {text}")
    return found


def _whole(text: str, source: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise DataError(f"{source}: {text!r} is no whole number") from None


def _known(symbols: Sequence[str], **sizes: int) -> dict[str, int]:
    """Without B and T where the step has none."""
    return {n: size for n, size in sizes.items() if n in symbols or n not in ("B", "T")}


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _size_text(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count < 2**30 else f"{count / 2**30:.2f} GiB"
