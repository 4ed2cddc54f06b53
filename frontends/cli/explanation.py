"""`retrograde compile`, `plan`, `certify`, `inspect`: a recipe -> what its step is and needs."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from retrograde.cli.recipes import compiled_step, find, settled
from retrograde.compiler.errors import BudgetError, DataError
from retrograde.compiler.ir.dims import Symbol
from retrograde.compiler.plan.bounds import PeakForm
from retrograde.compiler.plan.choice import Choice
from retrograde.compiler.program import standing

_ROWS, _COLUMNS = (1, 2, 4, 8, 16, 32, 64), (32, 64, 128, 256, 512)
_MOST_WAYS = 14  # of the frontier that are shown, about


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
    sizes: tuple[str, ...], directions: int, draws: int, claims: tuple[str, ...],
) -> bool:  # fmt: skip
    """Prints the certificate; whether it is ok."""
    claimed = [name.strip() for text in claims for name in text.split(",")]
    step = _compiled(recipe, pairs, config, data)
    at = [_sizes(sizes)] if sizes else None
    found = step.certify(sizes=at, directions=directions, seed=draws, claims=claimed)
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
    budget: str | None = None, at: str | None = None, output: str | None = None,
) -> None:  # fmt: skip
    """Prints the peak in closed form, and a table of it over batch sizes and lengths; under a
    budget what it trades; draws the arena."""
    planned_for = _sizes(at.split(",") if at else (), "--at")
    step = _compiled(recipe, pairs, config, data, budget, planned_for)
    symbols = step.ir().symbols()
    others = _sizes(sizes)
    rows = _axis("B", batch_sizes, _ROWS, symbols)
    columns = _axis("T", lengths, _COLUMNS, symbols)
    if budget is None:
        click.echo(_closed_form(step.peak().form))
    else:
        click.echo("\n".join(frontier_lines(step, budget)))
    click.echo("\n" + "\n".join(table_lines(step, rows, columns, symbols, others)))
    if budget is not None and "T" in symbols:
        click.echo("\n" + "\n".join(largest_lines(step, rows, symbols, budget, others)))
    if output is not None:
        step.timeline(output)
        click.echo(f"\nthe arena at {_at(step.plan().sizes)} is drawn in {output}")


def frontier_lines(step: Any, budget: str) -> list[str]:
    """What there is to choose from at the sizes of the plan: peak against work."""
    plan = step.plan()
    program = step._program
    found = program.frontier(plan.sizes)
    first = program.choose(plan.sizes, sys.maxsize)
    lines = [f"budget {budget} at {_at(plan.sizes)}", "", f"{'peak':>12}  {'work':>6}  recipe"]
    if not any(way.index == first.index and way.cost == first.cost for way in found):
        found = [first, *found]
    shown = _apart(found, plan.peak_bytes)
    for way in shown:
        chosen = " <- within the budget" if way.height == plan.peak_bytes else ""
        own = {n: size for n, size in way.sizes.items() if n not in plan.sizes}
        cut = f" ({_at(own)})" if own else ""
        much = f"{way.cost / first.cost:.3f}" if first.cost else "1"
        lines.append(f"{_size_text(way.height):>12}  {much:>6}  {way.recipe.name}{cut}{chosen}")
    if len(found) > len(shown):
        lines.append(f"  and {len(found) - len(shown)} more between those")
    bound = plan.order_lower_bound_bytes
    low = found[-1].height
    lines.append(
        f"no order of the steps needs less than {_size_text(bound)}: "
        f"the lowest peak is {standing(low, bound)}"
        + (" of that" if standing(low, bound).startswith("within") else "")
    )
    return lines


def _apart(found: Sequence[Choice], chosen: int) -> list[Choice]:
    """The ends, the one of the chosen peak, and what lies well apart between."""
    step = (found[0].height / max(1, found[-1].height)) ** (1 / _MOST_WAYS)
    kept: list[Choice] = []
    for way in found:
        far = not kept or way.height * step <= kept[-1].height
        if far or way is found[-1] or way.height == chosen:
            kept.append(way)
    return kept


def table_lines(
    step: Any, rows: Sequence[int], columns: Sequence[int], symbols: Mapping[str, Symbol],
    others: Mapping[str, int],
) -> list[str]:  # fmt: skip
    """The peak over batch sizes and lengths; with several recipes, which of them it is of."""
    recipes = [recipe.name for recipe in step._program.recipes]
    used: dict[str, str] = {}  # recipes by the letters that stand for them

    def cell(b: int, t: int) -> str:
        try:
            plan = step.plan(**_known(symbols, B=b, T=t, **others))
        except BudgetError as error:
            return f"({_size_text(error.minimum_bytes or 0)})"
        letter = _letter(recipes.index(plan.recipe))
        if len(recipes) == 1:
            return _size_text(plan.peak_bytes)
        used[letter] = plan.recipe
        return f"{_size_text(plan.peak_bytes)} {letter}"

    header = [f"B={b}" for b in rows] if "B" in symbols else ["peak"]
    titles = [f"T={t}" for t in columns] if "T" in symbols else ["peak"]
    cells = [[cell(b, t) for t in columns] for b in rows]
    wide = max(map(len, [*titles, *(text for row in cells for text in row)]))
    first = max(map(len, header))
    lines = [" " * first + "".join(f"  {title:>{wide}}" for title in titles)]
    for name, row in zip(header, cells, strict=True):
        lines.append(f"{name:<{first}}" + "".join(f"  {text:>{wide}}" for text in row))
    lines += [f"  {letter}: {name}" for letter, name in sorted(used.items())]
    if any(text.startswith("(") for row in cells for text in row):
        lines.append("  in brackets: the smallest peak, which is above the budget")
    return lines


def largest_lines(
    step: Any, rows: Sequence[int], symbols: Mapping[str, Symbol], budget: str,
    others: Mapping[str, int],
) -> list[str]:  # fmt: skip
    """The largest T within the budget, for each B."""
    lines = [f"largest T within {budget}"]
    for b in rows:
        known = {n: size for n, size in _known(symbols, B=b, **others).items() if n != "T"}
        try:
            found = step.largest("T", budget, **known)
            most = ", the most there is" if found == symbols["T"].max else ""
            text = f"{found}{most}"
        except BudgetError:
            text = "none"
        lines.append(f"  {f'B={b}: ' if 'B' in symbols else ''}{text}")
    return lines


def _letter(index: int) -> str:
    return chr(ord("a") + index) if index < 26 else f"a{index}"


def _at(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items())


def _compiled(
    recipe: str, pairs: tuple[str, ...], config: str | None, data: str | None,
    budget: str | None = None, at: Mapping[str, int] | None = None,
) -> Any:  # fmt: skip
    found = find(recipe)
    settings = settled(found, {"data": data}, pairs, config)
    return compiled_step(found.build(settings), settings, budget, at)


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


def _sizes(texts: Sequence[str], option: str = "--size") -> dict[str, int]:
    found: dict[str, int] = {}
    for text in texts:
        name, separator, number = text.partition("=")
        if not separator:
            raise DataError(f"{option} {text}: write {option} NAME=N, as in B=32")
        found[name.strip()] = _whole(number, f"{option} {text}")
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
