"""Choosing a recipe: (recipes, sizes, budget) -> the cheapest that fits, with its sizes.

For a recipe with loops in segments that is the joint choice of how long a segment is and how many
states are kept.  The schedule of the states follows from both when the sizes are bound.  Invariant:
the candidates do not depend on the budget, so the peak of what is chosen never rises when the
budget falls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from retrograde.compiler.ir import dims
from retrograde.compiler.ops.segments import segment_count
from retrograde.compiler.plan.recipe import Recipe
from retrograde.compiler.plan.revolve import recomputed

# What a segment costs beside its operations, in operations: calls that are made once for it.
_PER_SEGMENT = 1_000_000
_FINENESS = 1.08  # between lengths of segments that are tried


@dataclass(frozen=True)
class Choice:
    """A recipe at given sizes, the plan's among them."""

    index: int
    recipe: Recipe
    sizes: Mapping[str, int]
    height: int  # bytes of the arena
    cost: float  # operations
    again: Mapping[str, int]  # by segment symbol: steps that run forward again


def choose(recipes: Sequence[Recipe], sizes: Mapping[str, int], budget: int | None) -> Choice:
    """The cheapest recipe whose arena is within `budget` (None: any), the first of the recipes if
    it is one of those; else the one with the lowest arena."""
    best: Choice | None = None
    lowest: Choice | None = None

    def beaten(cost: float) -> bool:
        return best is not None and cost > best.cost

    for index, recipe in sorted(enumerate(recipes), key=lambda item: bool(item[1].loops)):
        if not recipe.serves(sizes):
            continue
        for found in _ways(index, recipe, _with_runs(recipe, sizes), budget, beaten):
            if budget is None or found.height <= budget:
                if index == 0:
                    return found
                if best is None or _by_cost(found) < _by_cost(best):
                    best = found
            elif lowest is None or _by_height(found) < _by_height(lowest):
                lowest = found
    chosen = best or lowest
    assert chosen is not None, "the first recipes are for all sizes"
    return chosen


def _by_cost(found: Choice) -> tuple[float, int, int]:
    return found.cost, found.height, found.index


def _by_height(found: Choice) -> tuple[int, float, int]:
    return found.height, found.cost, found.index


def frontier(recipes: Sequence[Recipe], sizes: Mapping[str, int]) -> list[Choice]:
    """From the cheapest way to the one with the lowest arena: those that no other way beats in
    both."""
    ways: list[Choice] = []
    for index, recipe in enumerate(recipes):
        if recipe.serves(sizes):
            ways += _ways(index, recipe, _with_runs(recipe, sizes), None)
    ways.sort(key=lambda found: (found.cost, found.height, found.index))
    kept: list[Choice] = []
    for found in ways:
        if not kept or found.height < kept[-1].height:
            kept.append(found)
    return kept


def _with_runs(recipe: Recipe, sizes: Mapping[str, int]) -> dict[str, int]:
    full = dict(sizes)
    for runs in recipe.runs:
        steps = max(1, min(runs.steps, dims.evaluate(runs.length, sizes)))
        full[runs.name] = max(full.get(runs.name, 1), steps)
    return full


def _ways(
    index: int, recipe: Recipe, sizes: Mapping[str, int], budget: int | None,
    beaten: Callable[[float], bool] = lambda cost: False,
) -> Iterator[Choice]:  # fmt: skip
    """For each candidate length of a segment: the most states that fit, and the fewest.

    Ways that cost too much, as `beaten` says, are left out before they are laid out."""
    if not recipe.loops:
        cost = dims.evaluate(recipe.work, sizes) * recipe.slower
        if not beaten(cost):
            yield Choice(index, recipe, dict(sizes), recipe.layout(sizes)[2], cost, {})
        return
    if all(loop.given for loop in recipe.loops):
        yield _at(index, recipe, sizes, 1, 1)
        return
    longest = max(dims.evaluate(loop.length, sizes) for loop in recipe.loops)
    most_steps = min((loop.longest for loop in recipe.loops if loop.longest), default=longest)
    turns = max(loop.turns for loop in recipe.loops)
    for segment in _segment_lengths(longest, most_steps, turns):
        most = max(1, segment_count(longest, segment) - 1)

        # More states never cost more.
        if beaten(_costed(recipe, sizes, segment, most)[1]):
            continue

        def at(slots: int, segment: int = segment) -> Choice:
            return _at(index, recipe, sizes, segment, slots)

        low = at(1)
        yield low
        if most == 1 or (budget is not None and low.height > budget):
            continue
        fits = 1
        if budget is None or at(most).height <= budget:
            fits = most
        else:
            above = most
            while above - fits > 1:
                middle = (fits + above) // 2
                if at(middle).height <= budget:
                    fits = middle
                else:
                    above = middle
        if fits > 1:
            yield at(fits)


def _at(index: int, recipe: Recipe, sizes: Mapping[str, int], segment: int, slots: int) -> Choice:
    full, cost, again = _costed(recipe, sizes, segment, slots)
    return Choice(index, recipe, full, recipe.layout(full)[2], cost, again)


def _costed(
    recipe: Recipe, sizes: Mapping[str, int], segment: int, slots: int
) -> tuple[dict[str, int], float, dict[str, int]]:
    """(all sizes, operations, steps that run again by segment symbol)."""
    full = dict(sizes)
    for loop in recipe.loops:
        full[loop.segment] = segment
        if not loop.given:
            full[loop.slots] = slots
    cost: float = dims.evaluate(recipe.work, full)
    again: dict[str, int] = {}
    for loop in recipe.loops:
        length = dims.evaluate(loop.length, sizes)
        count = segment_count(length, segment)
        parts = recomputed(count, loop.given or slots)
        # The first segment is the shorter one, and runs again most often: an upper bound.
        steps, with_residuals = parts * segment, max(0, length - segment)
        again[loop.segment] = again.get(loop.segment, 0) + steps + with_residuals
        cost += dims.evaluate(loop.step, sizes) * steps
        cost += dims.evaluate(loop.again, sizes) * with_residuals
        cost += _PER_SEGMENT * (parts + 3 * count)
    return full, cost * recipe.slower, again


def _segment_lengths(length: int, most: int, turns: int = 1) -> list[int]:
    """Lengths from `most` down to one step: the least for each number of segments, and others
    between where there are few segments.  All are multiples of `turns`, but for that of a loop in
    one."""
    found = {max(1, min(most, length)), 1}
    count = 1.0
    while count <= length:
        found |= {-(-length // int(count)), int(length / count)}
        count *= _FINENESS
    found = {-(-steps // turns) * turns for steps in found}
    found |= {length, most // turns * turns or most}
    return sorted((steps for steps in found if 1 <= steps <= most), reverse=True)
