"""`retrograde compile`, `plan`, `certify`, `inspect`: a recipe -> what its step is and needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from retrograde.cli.recipes import compiled_step, find, settled
from retrograde.compiler.errors import DataError
from retrograde.compiler.ir.dims import Symbol
from retrograde.compiler.plan.bounds import PeakForm

_ROWS, _COLUMNS = (1, 2, 4, 8, 16, 32, 64), (32, 64, 128, 256, 512)


def show_report(
    recipe: str, *, pairs: tuple[str, ...], config: str | None, data: str | None,
    sizes: tuple[str, ...], output: str | None,
) -> None:  # fmt: skip
    """Prints the report; saves the step in its first state to `output`."""
    step = _compiled(recipe, pairs, config, data)
    click.echo(step.report(**_sizes(sizes)), nl=False)
    if output is not None:
        step.save(output, program=True)
        click.echo(f"\nsaved in {output}: rg.load({output!r}) gives the step")


def show_certificate(
    recipe: str, *, pairs: tuple[str, ...], config: str | None, data: str | None,
    sizes: tuple[str, ...], directions: int, draws: int,
) -> bool:  # fmt: skip
    """Prints the certificate; whether it is ok."""
    step = _compiled(recipe, pairs, config, data)
    at = [_sizes(sizes)] if sizes else None
    found = step.certify(sizes=at, directions=directions, seed=draws)
    click.echo(str(found))
    return bool(found.ok)


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
    click.echo(_closed_form(step.peak().form) + "\n")
    symbols = step.ir().symbols()
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


def _closed_form(form: PeakForm) -> str:
    """The peak over the sizes, one term a line."""
    terms = [str(term) for term in form.terms]
    start = "peak in bytes" if form.exact else "peak in bytes, at least"
    if len(terms) == 1:
        return f"{start} = {terms[0]}"
    return "\n".join([f"{start} the largest of", *(f"  {term}" for term in terms)])


def _axis(
    name: str, given: str | None, default: Sequence[int], symbols: Mapping[str, Symbol]
) -> Sequence[int]:
    """The sizes of one axis of the table; one entry where the step has no such size."""
    if name not in symbols:
        if given is not None:
            known = ", ".join(symbols) or "none"
            raise DataError(f"-{name}: this step has no size {name}; it has {known}")
        return (0,)
    low, high = symbols[name].min, symbols[name].max
    if given is None:
        fitting = [n for n in default if low <= n and (high is None or n <= high)]
        return fitting or [low if high is None else high]
    numbers = [_whole(part, f"-{name} {given}") for part in given.split(",")]
    if high is not None and max(numbers) > high:
        raise DataError(
            f"-{name} {given}: {name} is at most {high} with these settings; for char-gpt "
            f"--set length={max(numbers)} changes that"
        )
    return numbers


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


def _known(symbols: Mapping[str, Symbol], **sizes: int) -> dict[str, int]:
    """Without B and T where the step has none."""
    return {n: size for n, size in sizes.items() if n in symbols or n not in ("B", "T")}


def _size_text(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count < 2**30 else f"{count / 2**30:.2f} GiB"
