"""Claims about what a model sees along time: a traced graph -> what is proven, and what leaks.

"causality": what a model makes at a place depends on the places up to it.  "segment isolation": on
the places of its own segment.  Looked at are the outputs along time, and in a training step the
logits under its losses.  Invariant: what is told as proven holds for all finite numbers, at all
sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from retrograde.certificates.certificate import Fault
from retrograde.compiler.errors import DataError
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Symbol
from retrograde.compiler.ir.graph import Graph, Node, Value
from retrograde.compiler.ir.location import where
from retrograde.compiler.passes.dependence import Dependence, Leak
from retrograde.compiler.passes.time_axes import flattened

CLAIMS = ("causality", "segment isolation")
_LOSSES = frozenset({"token_nll", "linear_cross_entropy"})
_SEGMENTS = ("segments", "segment_ids", "segment")


@dataclass(frozen=True)
class Visibility:
    """What is proven of a graph, what was found to leak though nothing was claimed, and the faults
    of claims."""

    proofs: tuple[str, ...] = ()
    leaks: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()


def visibility(graph: Graph, claims: Sequence[str] = ()) -> Visibility:
    """Decides both claims where the graph has a time axis; those among `claims` must hold.

    DataError for an unknown claim, or one of a graph without time or segments."""
    for claim in claims:
        if claim not in CLAIMS:
            raise DataError(f"{where()}there is no claim {claim!r}; there are {', '.join(CLAIMS)}")
    found = _subject(graph)
    if found is None:
        if claims:
            raise DataError(
                f"{where()}{graph.name} has no time axis: an input and an output, or logits under "
                "a loss, share a named size, as in [B, T]"
            )
        return Visibility()
    part, time, names = found
    segments = _segments(part, time)
    if segments is None and "segment isolation" in claims:
        raise DataError(
            f"{where()}{graph.name} has no input called segments, integers [B, {time.name}]"
        )
    seen = Dependence.of(part, time, segments)
    proofs, leaks, faults = [], [], []
    for claim, leak, name in _answers(seen, names, segments is not None):
        if leak is None:
            proofs.append(f"{claim}: {name}, for every length {time.name}")
        elif claim in claims:
            faults.append(Fault(claim, str(leak)))
        else:
            leaks.append(f"no {claim}: {name}: {leak}")
    return Visibility(tuple(proofs), tuple(leaks), tuple(faults))


def _answers(
    seen: Dependence, names: Sequence[str], segments: bool
) -> Iterator[tuple[str, Leak | None, str]]:
    for v, name in zip(seen.graph.outputs, names, strict=True):
        yield "causality", seen.leak(v), name
        if segments:
            yield "segment isolation", seen.segment_leak(v), name


def _subject(graph: Graph) -> tuple[Graph, Symbol, list[str]] | None:
    """The part of a graph that makes what is looked at, its time, and what that is called."""
    names = graph.output_names or ("",) * len(graph.outputs)
    shown = [(v, name or "out") for v, name in zip(graph.outputs, names, strict=True)]
    for made in (shown, _under_losses(graph)):
        time = _time(graph, [v for v, _ in made])
        if time is None:
            continue
        kept = [(v, name) for v, name in made if _along(v, time)]
        part = graph.replace(
            outputs=tuple(v for v, _ in kept), output_names=(), aliases=(), derivatives=()
        )
        return flattened(part, time), time, [name for _, name in kept]
    return None


def _under_losses(graph: Graph) -> list[tuple[Value, str]]:
    """What the losses of the model are taken of."""

    def is_loss(node: Node) -> bool:
        return node.op.name in _LOSSES and node.origin.role == "primal"

    return [
        (node.inputs[0], f"what the loss at {node.place} reads")
        for node in graph.nodes
        if is_loss(node)
    ]


def _time(graph: Graph, made: Sequence[Value]) -> Symbol | None:
    """The size that inputs and results share, but for that of the batch: T if it is called so, else
    that of the second axis."""
    shared = [
        s
        for s in graph.symbols().values()
        if any(_along(v, s) for v in made)
    ]
    for s in shared:
        if s.name == "T":
            return s
    seconds = [
        s
        for v in graph.inputs
        if v.type.ndim >= 2
        for s in shared
        if v.shape[1] is dims.dim(s.name, s.min, s.max)
    ]
    return seconds[0] if seconds else None


def _along(v: Value, time: Symbol) -> bool:
    return any(time in dims.symbols(d) for d in v.shape if isinstance(d, dims.Poly))


def _segments(graph: Graph, time: Symbol) -> int | None:
    for i, (v, name) in enumerate(zip(graph.inputs, graph.input_names, strict=False)):
        last = name.rpartition(".")[2]
        if last in _SEGMENTS and v.dtype.is_integer and _along(v, time):
            return i
    return None
