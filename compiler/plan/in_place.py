"""Writing a result where an operand lies: (step, old place, new place) -> whether it may.

Invariant: yes only where no element is written before every statement of the step that reads it has
run.
"""

from __future__ import annotations

from collections.abc import Sequence

from retrograde.compiler.ir.dims import same
from retrograde.compiler.ir.graph import same_shape
from retrograde.compiler.ir.registry import Kind
from retrograde.compiler.passes.spaces import gathers
from retrograde.compiler.plan.fused import first_write, last_read
from retrograde.compiler.plan.steps import (
    CopyStep,
    FusedStep,
    MatmulStep,
    OpStep,
    Step,
    Tile,
    reads,
    walk_all,
    writes,
)
from retrograde.compiler.plan.views import Operand, Storage, Turn, View


def takes_over(step: Step, old: View, new: View) -> bool:
    """Whether `step` may write `new` where it reads `old`."""
    if not (new.whole and old.whole) or not same(new.storage.bytes, old.storage.bytes):
        return False
    if new.dtype is not old.dtype or not same_shape(new.shape, old.shape):
        return False
    if any(v.storage is old.storage and not old.equals(v) for v in reads(step)):
        return False
    if isinstance(step, OpStep):
        places = [i for i, x in enumerate(step.operands) if old.equals(x)]
        return all(i in step.node.op.inplace for i in places)
    if isinstance(step, FusedStep):
        return _fused_takes_over(step, old, new)
    if isinstance(step, (CopyStep, MatmulStep)):
        return not any(v.storage is old.storage for v in reads(step))
    return False


def made_in(
    steps: Sequence[Step], place: View, new: Operand, merged: list[tuple[Storage, Storage]]
) -> bool:
    """Whether the new carry can be written right where the old one lies, by the only one of `steps`
    that writes it; then it is, and `merged` tells so."""
    if not isinstance(new, View) or isinstance(new, Turn) or new.storage.kind != "value":
        return False
    if any(storage is new.storage for storage, _ in merged):
        return False
    writers = [s for s in walk_all(steps) if any(v.storage is new.storage for v in writes(s))]
    if len(writers) != 1 or writers[0] not in steps:
        return False
    after = steps[steps.index(writers[0]) + 1 :]
    if any(v.storage is place.storage for s in after for v in (*reads(s), *writes(s))):
        return False
    if not takes_over(writers[0], place, new):
        return False
    merged.append((new.storage, place.storage))
    return True


def _fused_takes_over(step: FusedStep, old: View, new: View) -> bool:
    result = next(j for j, v in enumerate(step.results) if v.storage is new.storage)
    if step.sweeps is not None:
        body = step.node.attrs["body"]
        values = [v for v, x in zip(body.inputs, step.operands, strict=True) if old.equals(x)]
        if any(v in n.inputs for n in body.nodes if gathers(n) for v in values):
            return False  # what is gathered from is read at any place
        # What has one element a row is read before all, and never lies where a result does; a sum
        # over all rows is written after all; the old value of state may be read by an earlier step.
        read = max(map(step.sweeps.last_read, values), default=-1)
        return read <= step.sweeps.after[result]
    written = first_write(step, result)
    for i, x in enumerate(step.operands):
        if not old.equals(x):
            continue
        read = last_read(step, i)
        if read > written:
            return False
        if read == written:
            statement = step.statements[read]
            tile = Tile("x", i)
            places = [k for k, t in enumerate(statement.operands) if t == tile]
            if not all(k in statement.node.op.inplace for k in places):
                return False
            if statement.node.op.kind is not Kind.ELEMENTWISE:
                return False
    return True
