"""How strong the gradient is at every step: a loss -> ||dL/dh_t|| of each carry of each loop.

The loss is traced, probes are put on the carries of its scans, and its gradient by the probes is
compiled and run: the norms are taken inside of the backward loop, as the cotangents pass.
Invariant: no loop is unrolled, and beside what dL/dh_t itself needs there is one number a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from retrograde import tree
from retrograde.compiler.errors import TraceError, UnsupportedError
from retrograde.compiler.ir.builder import required
from retrograde.compiler.ir.expr import zeros
from retrograde.compiler.ir.location import where
from retrograde.compiler.passes.backward import Backward
from retrograde.compiler.passes.watch import WatchedCarry, watch_carries
from retrograde.gradients import single
from retrograde.jitted import shared_jit
from retrograde.norms_shown import CarryNorms, GradientNorms
from retrograde.tracing import is_traced, name_of, trace_inner


class Measured:
    """The value of a loss and, for each carry, the norms: what a compiled program returns."""

    def __init__(self, carries: tuple[WatchedCarry, ...], arrays: Sequence[Any]) -> None:
        self.carries = carries
        self.arrays = tuple(arrays)  # the value, then the norms of each carry

    def shown(self, name: str) -> GradientNorms:
        """The same for people."""
        value, *norms = self.arrays
        return GradientNorms(
            name,
            float(value),
            tuple(
                CarryNorms(c.loc, c.scope, c.reverse, c.carry, x, x.ndim > len(c.reverse))
                for c, x in zip(self.carries, norms, strict=True)
            ),
        )


tree.register(
    Measured,
    lambda m: (m.arrays, m.carries, ["value", *map(str, range(len(m.carries)))]),
    lambda carries, arrays: Measured(carries, arrays),
)


def gradient_norms(
    loss: Callable[..., Any], /, *args: Any, per_row: bool = False, **kwargs: Any
) -> GradientNorms:
    """||dL/dh_t||, the Euclidean norm, for each step t of each `rg.scan` that the loss runs.

    `loss(*args)` returns one float or a `Mean`; the arguments are trees of arrays, such as a model
    and a batch.  h_t is the carry that leaves step t, and dL/dh_t all that the loss feels of it:
    by the later steps, by the step's own results that are made of h_t, and by the carry that the
    loop returns.  t is the place in `xs`, also where the loop runs in reverse.  Each float leaf of
    a carry has an array [T] of its own, a loop inside of a loop [T outside, T inside]; `per_row`
    gives [T, B], with the rows of axis 0 apart.  A row that has ended (`lengths`) has the norm 0,
    and so has what is not run (the branch of a cond).  A gradient that is cut (`truncate`) is
    measured as it is cut.

    Norms are f32, of f64 carries f64; squares neither overflow nor vanish.  Loops inside of
    `custom_vjp` and `while_loop` are not looked at, nor are those of derivatives within the loss.
    Raises UnsupportedError where no loop has a float carry."""
    if is_traced():
        raise TraceError(
            f"{where()}gradient_norms returns numbers: call it outside of the function being "
            "traced, and of rg.eager()"
        )

    def call(*args: Any, **kwargs: Any) -> Measured:
        return measured(lambda: loss(*args, **kwargs), name_of(loss), per_row)

    found: Measured = shared_jit(loss, ("gradient_norms", per_row), call)(*args, **kwargs)
    return found.shown(name_of(loss))


def measured(loss: Callable[[], Any], name: str, per_row: bool) -> Measured:
    """The loss and its norms, in the trace at work."""
    traced = trace_inner(name, [], [], lambda _: single(loss(), name))
    graph, carries = watch_carries(traced.graph, per_row)
    if not carries:
        raise UnsupportedError(
            f"{where()}{name} runs no loop with a float carry, so there are no steps to look at: "
            "write the loop as rg.scan (recurrent layers do), not in Python, and not inside of "
            "custom_vjp"
        )
    n = len(traced.graph.inputs)
    probes = graph.inputs[n:]
    backward = Backward((0,), tuple(range(n, n + len(probes))))(graph)
    seed = required().constant(1.0, graph.outputs[0].dtype)
    still = [zeros(v.type) for v in probes]
    value, *norms = required().inline(backward, [*traced.captured, *still, seed])
    return Measured(carries, [value, *norms])
