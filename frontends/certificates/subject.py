"""What is certified: a traced graph, the program made of it, and what its inputs hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from retrograde.certificates.drawing import Ranges, draw
from retrograde.compiler.errors import DataError
from retrograde.compiler.ir.graph import Graph
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.location import where
from retrograde.compiler.ops.region import silent
from retrograde.compiler.passes.widen import widened
from retrograde.execution import Runnable

if TYPE_CHECKING:
    from retrograde.training_graph import StepParts, TracedStep

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Subject:
    """`held`: the inputs whose numbers are known, by index; `trained`: those of them that may be
    any number near, which they are moved to; `examples`: what the user gave for the others, in
    their order, with their sizes."""

    graph: Graph
    run: Runnable
    held: Mapping[int, Array]
    trained: Sequence[int] = ()
    examples: Sequence[Array] | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)


def of_step(
    parts: StepParts, traced: TracedStep, run: Runnable, first: Sequence[Array],
    rest: Sequence[Array], examples: Sequence[Array] | None, sizes: Mapping[str, int],
) -> Subject:  # fmt: skip
    """A training step.  `first`: its state and key; `rest`: what comes behind the batch."""
    after = len(first) + len(parts.batch_types)
    held = dict(enumerate(np.array(x) for x in first))
    held |= dict(enumerate((np.array(x) for x in rest), after))
    return Subject(traced.graph, run, held, range(len(parts.parameters)), examples, sizes)


@dataclass(frozen=True)
class Point:
    """Inputs at some sizes, and what the traced graph makes of them: in float64, and in its own
    precision."""

    sizes: Mapping[str, int]
    inputs: list[Array]
    reference: list[Array]
    own: list[Array]

    @property
    def wide(self) -> list[Array]:
        """The inputs in float64."""
        return [wide(x) for x in self.inputs]


def wide(x: Array) -> Array:
    return x.astype(np.float64) if x.dtype.kind == "f" or x.dtype.name == "bfloat16" else x


def points(
    subject: Subject, sizes: Sequence[Mapping[str, int]], ranges: Ranges, seed: int
) -> list[Point]:
    """Inputs at each of the sizes.  State goes on from point to point, as training does: moments
    are not zero from the second one on."""
    graph = silent(subject.graph)
    replaced = {i: o for o, i in graph.aliases}
    held = dict(subject.held)
    rng = np.random.default_rng(seed)
    for i in subject.trained:
        x = held[i]
        noise = rng.standard_normal(x.shape)
        held[i] = (wide(x) * (1 + 0.1 * noise) + 0.02 * rng.standard_normal(x.shape)).astype(
            x.dtype
        )
    found = []
    for k, at in enumerate(sizes):
        point = _point(subject, graph, held, at, ranges, seed + k)
        found.append(point)
        new = {i: point.own[o] for i, o in replaced.items()}
        if all(np.all(np.isfinite(wide(x))) for x in new.values() if x.dtype.kind == "f"):
            held.update(new)
    return found


def _point(
    subject: Subject, graph: Graph, held: Mapping[int, Array], at: Mapping[str, int],
    ranges: Ranges, seed: int,
) -> Point:  # fmt: skip
    best: Point | None = None
    fewest = -1
    for positive in (False, True):
        rng = np.random.default_rng(seed)
        given = iter(subject.examples or ())
        inputs = []
        for i in range(len(graph.inputs)):
            if i in held:
                inputs.append(held[i])
            elif subject.examples is not None:
                inputs.append(next(given))
            else:
                inputs.append(draw(graph, i, at, ranges, rng, positive))
        try:
            own = evaluate(graph, inputs, at)
        except DataError as error:
            raise DataError(
                f"{where()}certify() found no numbers that {graph.name} takes at {dict(at)} "
                f"({error}): give it some, as in certify(*args), or certify(**batch) for a "
                "training step"
            ) from None
        odd = sum(int(np.sum(~np.isfinite(wide(x)))) for x in own if x.dtype.kind == "f")
        if best is None or odd < fewest:
            reference = evaluate(widened(graph).graph, [wide(x) for x in inputs], at)
            best, fewest = Point(at, inputs, reference, own), odd
        if not odd or subject.examples is not None:
            break
    assert best is not None
    return best
