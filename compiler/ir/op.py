"""Op declarations: one `Op` object says everything about an operation.

Invariant: an op stands in one place: name, kind, shape rule, NumPy reference, gradient, cost and
device statement are fields of one object, made by one call in `retrograde.compiler.ops`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from retrograde.compiler.errors import VerifyError
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.builder import required
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.expr import Expr, apply
from retrograde.compiler.ir.graph import Attrs, Graph, Node, Origin, TensorType
from retrograde.compiler.ir.registry import Kind, NotDifferentiable, lookup


def _no_differentiation(graph: Graph, of: tuple[int, ...], wrt: tuple[int, ...]) -> Graph:
    raise VerifyError(f"no differentiation of {graph.name} outside of the backward pass")


@dataclass(frozen=True, slots=True)
class VjpContext:
    """What a gradient rule sees: the op's operands and results as expressions of one graph.

    `needs[i]` tells whether the i-th input's cotangent is asked for."""

    node: Node
    inputs: tuple[Expr, ...]
    outputs: tuple[Expr, ...]
    needs: tuple[bool, ...]
    residuals: tuple[Any, ...] = ()  # what `augment` returned beside the outputs
    # (sub-graph, outputs, inputs) -> its backward graph, for ops that hold one
    differentiate: Callable[[Graph, tuple[int, ...], tuple[int, ...]], Graph] = _no_differentiation

    @property
    def attrs(self) -> Attrs:
        return self.node.attrs


@contextmanager
def recomputing(ctx: VjpContext) -> Iterator[None]:
    """What a gradient rule makes inside is a recomputation: never merged with the forward values,
    which would keep those alive until the rule runs."""
    node = ctx.node
    origin = Origin("recompute", "backward", (node.id,), group=node.id)
    with required().located(node.loc, node.scope, origin):
        yield


def unbroadcast(g: Expr, type: TensorType) -> Expr:
    """Sums `g` over the axes along which an operand of `type` was stretched to g's shape."""
    extra = g.ndim - type.ndim
    stretched = tuple(
        extra + i for i, (a, b) in enumerate(zip(g.shape[extra:], type.shape, strict=True))
        if not dims.same(a, b)
    )  # fmt: skip
    axes = (*range(extra), *stretched)
    if not axes:
        return g
    g = lookup("sum")(g, axes=axes, keepdims=False)
    out: Expr = g if not stretched else lookup("reshape")(g, shape=type.shape)
    return out


# Cotangents of the outputs (None where zero) -> cotangents of the inputs (None where zero).
Vjp = Callable[[VjpContext, "tuple[Expr | None, ...]"], "Sequence[Expr | None]"]
# Emits the op for a graph that will be differentiated -> (outputs, residuals).  The context has no
# outputs yet.
Augment = Callable[[VjpContext], "tuple[Sequence[Expr], Sequence[Any]]"]
Infer = Callable[[tuple[TensorType, ...], Attrs], tuple[TensorType, ...]]
Evaluate = Callable[..., Any]  # (attrs with concrete sizes, *arrays) -> array or tuple of arrays
Cost = Callable[[Sequence[TensorType], Sequence[TensorType], Attrs], Dim]


def elements_cost(
    inputs: Sequence[TensorType], outputs: Sequence[TensorType], attrs: Attrs
) -> Dim:
    """One operation per element of the largest operand or result (or a bound on it)."""
    return _largest(tuple([t.size for t in (*outputs, *inputs)]))


@lru_cache(maxsize=1 << 12)
def _largest(sizes: tuple[Dim, ...]) -> Dim:
    largest: Dim = 0
    for size in sizes:
        if dims.dominates(largest, size):
            continue
        largest = size if dims.dominates(size, largest) else largest + size
    return largest


def no_cost(inputs: Sequence[TensorType], outputs: Sequence[TensorType], attrs: Attrs) -> Dim:
    """Nothing is computed."""
    return 0


@dataclass(frozen=True, eq=False)
class Op:
    """A declared operation.

    - `infer(types, attrs)` -> output types; raises ShapeError or DTypeError.
    - `evaluate(attrs, *arrays)`: the NumPy reference, the definition of the op; sizes in `attrs`
      are concrete there.
    - `vjp`: the gradient rule, `NotDifferentiable(reason)`, or None for a composite or region
      that is differentiated through its decomposition.
    - `promotion`: how operands of unequal dtypes meet. "common": promoted together; "float": so,
      and integers become f32; "select": all but operand 0, which becomes bool; "bool": all become
      bool; "none": taken as they are.
    - `mixed`: how it computes where precision is mixed (`ir.mixed`): "half", "wide", or "" as its
      operands are.
    - `cost`: floating-point operations as a dimension.
    - `numpy`: for elementwise ops, the statement(s) that write `{out}` from `{0}`, `{1}` … with
      the array module `{xp}`, one a line; other kinds are lowered by kind.
    - `c`: for elementwise ops, the C expression of one result element; see `c_expression`.
    - `inplace`: operands whose buffer the result may take over, element by element.
    - `decompose(attrs, *exprs)` -> expression(s), for composites.
    - `augment(context)` -> (outputs, residuals): emits a region op in the form whose gradient
      rule reads `ctx.residuals`; None where the op itself serves.
    - `singular`: the derivative is infinite or undefined somewhere in the domain (log at 0).
    - `effect`: the ordered channel the op acts on; None for pure ops.
    - `checks_data`: evaluation may raise DataError on the values of the operands.
    - `doc` is one line for the op table; `convention` says what holds at ties, kinks, empty rows.
    """

    name: str
    kind: Kind
    infer: Infer
    evaluate: Evaluate
    vjp: Vjp | NotDifferentiable | None
    doc: str = ""
    convention: str = ""
    promotion: str = "none"
    mixed: str = ""
    cost: Cost = elements_cost
    numpy: str | None = None
    c: str | Mapping[str, str] | None = None
    inplace: tuple[int, ...] = ()
    decompose: Callable[..., Any] | None = None
    augment: Augment | None = None
    effect: str | None = None
    singular: bool = False
    has_regions: bool = False
    checks_data: bool = False
    defaults: Attrs = field(default_factory=dict)

    def __call__(self, *operands: Any, **attrs: Any) -> Any:
        """Applies the op in the graph being built: one expression, or a tuple of them."""
        return apply(self, operands, attrs)

    def c_expression(self, operands: Sequence[str], of: DType, result: DType) -> str:
        """The C expression of a result element from `operands`, plain C variables (each may be
        read more than once).

        `of` is the dtype of the operands (of operand 1 for select), `result` the result's.  The
        expression may be wider than the result (i8 + i8 is an int in C): it is to be assigned to
        a variable of the result's C type.  Booleans are u8, 0 or 1, in and out.  f16 and bf16
        operands are handed in as f32 variables; what comes out for an f16 or bf16 result is an
        f32 still to be rounded (`rg_round_f16`, `rg_store_f16` of csource/math.h).

        The field `c` is a template of that, or one for each kind of dtype ("bool", "uint", "int",
        "float"; "" for the rest): `{0}`, `{1}`, `{2}` are the operands, `{t}` the name of the type
        they are computed in (f32 for f16 and bf16), `{r}` the name of the result's dtype."""
        if self.c is None:
            raise VerifyError(f"{self.name} has no C expression: it is not elementwise")
        c = self.c
        template = c if isinstance(c, str) else c.get(of.kind, c.get("", ""))
        carried = "f32" if of.is_float and of.bytes == 2 else of.name
        return template.format(*operands, t=carried, r=result.name)

    def __repr__(self) -> str:
        return f"<Op {self.name}>"
