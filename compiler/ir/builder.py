"""Building graphs: operations in, `Graph` out.

Invariant: a builder appends nodes in an order that defines before it uses; what comes from an
enclosing builder, and every array that is not traced, enters as a captured input.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from retrograde.compiler.errors import (
    DTypeError,
    RetrogradeError,
    ShapeError,
    TraceError,
    UnsupportedError,
)
from retrograde.compiler.ir import dtypes, registry
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.graph import PRIMAL, Derivative, Graph, Node, Origin, TensorType, Value
from retrograde.compiler.ir.location import Loc, caller, current_scope, where

if TYPE_CHECKING:
    from retrograde.compiler.ir.expr import Expr
    from retrograde.compiler.ir.op import Op

_ids = itertools.count()  # node and value ids: unique in the process, never in a text form
_current: ContextVar[Builder | None] = ContextVar("retrograde_builder", default=None)


def next_id() -> int:
    """A fresh id for a value or node."""
    return next(_ids)


def new_value(type: TensorType) -> Value:
    """A fresh value."""
    return Value(next(_ids), type)


def current() -> Builder | None:
    """The innermost builder at work, or None outside a trace."""
    return _current.get()


def required() -> Builder:
    """The innermost builder; TraceError outside a trace."""
    found = _current.get()
    if found is None:
        raise TraceError(f"{where()}a traced value is used outside of the function being traced")
    return found


class Builder:
    """Collects the nodes of one graph.  `wrap(value, builder)` makes the expressions it hands out.

    As a context manager it is the target of every operation on expressions meanwhile.  `half`: the
    16-bit type in which precision is mixed, None where it is not.
    """

    def __init__(
        self, name: str, wrap: Callable[[Value, Builder], Expr], parent: Builder | None = None
    ) -> None:
        self.name = name
        self.wrap = wrap
        self.parent = parent
        self.half: DType | None = None if parent is None else parent.half
        self.nodes: list[Node] = []
        self.inputs: list[Value] = []
        self.input_names: list[str] = []
        self.derivatives: list[Derivative] = []  # what is known of the graph's values
        self.captured: list[Any] = []  # expressions of outer builders; arrays at the root
        self._lifted: dict[Any, Expr] = {}
        self._constants: dict[tuple[str, DType], Expr] = {}
        self._loc: Loc | None = None
        self._scope: str | None = None
        self._origin: Origin = PRIMAL
        self._token: Any = None
        self._closed = False

    def __enter__(self) -> Builder:
        self._token = _current.set(self)
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        _current.reset(self._token)
        self._closed = True
        # `array[0] = traced` asks for a float; NumPy turns our answer into an error of its own.
        if isinstance(error, ValueError) and isinstance(error.__cause__, TraceError):
            raise error.__cause__ from None

    @contextmanager
    def located(self, loc: Loc | None, scope: str | None, origin: Origin) -> Iterator[None]:
        """Nodes made inside carry this location, scope and origin."""
        saved = self._loc, self._scope, self._origin
        self._loc, self._scope, self._origin = loc, scope, origin
        try:
            yield
        finally:
            self._loc, self._scope, self._origin = saved

    @contextmanager
    def mixed(self, half: DType | None) -> Iterator[None]:
        """Operations made inside, also by builders that begin there, compute in mixed precision
        (see `ir.mixed`)."""
        saved, self.half = self.half, half
        try:
            yield
        finally:
            self.half = saved

    def locate(self, loc: Loc | None, scope: str | None, origin: Origin) -> None:
        """Nodes made from now on carry this location, scope and origin."""
        self._loc, self._scope, self._origin = loc, scope, origin

    @property
    def origin(self) -> Origin:
        return self._origin

    def input(self, type: TensorType, name: str = "") -> Expr:
        """Declares one more input."""
        value = new_value(type)
        self.inputs.append(value)
        self.input_names.append(name)
        return self.wrap(value, self)

    def constant(self, value: bool | int | float, dtype: DType) -> Expr:
        """A 0-d constant."""
        key = (repr(value), dtype)
        found = self._constants.get(key)
        if found is None:
            attrs = {"value": value, "dtype": dtype}
            (out,) = self.emit(registry.lookup("constant"), (), attrs)
            found = self._constants[key] = self.wrap(out, self)
        return found

    def lift(self, expr: Expr) -> Expr:
        """`expr` as seen in this builder: itself, or a captured input for an outer one's."""
        if expr.builder is self:
            return expr
        found = self._lifted.get(expr.value)
        if found is not None:
            return found
        if expr.builder._closed or not any(expr.builder is b for b in self.enclosing()):
            raise TraceError(
                f"{where()}a traced value ({expr.type}) escaped from the function it was made in "
                f"({expr.builder.name}): return it from that function instead of storing it"
            )
        return self._capture(expr.value, expr, expr.type, "capture")

    def lift_array(self, array: Any) -> Expr:
        """A NumPy array that is not traced, as a hidden input that is read again at each call."""
        found = self._lifted.get(id(array))
        if found is not None:
            return found
        if self.parent is not None:
            outer = self.parent.lift_array(array)
            return self._capture(id(array), outer, outer.type, "capture")
        type = TensorType(dtypes.dtype(array.dtype), tuple(array.shape))
        return self._capture(id(array), array, type, "array")

    def _capture(self, key: Any, source: Any, type: TensorType, name: str) -> Expr:
        inner = self.input(type, f"<{name} {len(self.captured)}>")
        self.captured.append(source)
        self._lifted[key] = inner
        return inner

    def enclosing(self) -> Iterator[Builder]:
        """The builders around this one, inside out."""
        outer = self.parent
        while outer is not None:
            yield outer
            outer = outer.parent

    def emit(self, op: Op, inputs: Sequence[Value], attrs: Mapping[str, Any]) -> tuple[Value, ...]:
        """Appends a node and returns its results; a misfit names the user's line."""
        if op.defaults:
            attrs = {**op.defaults, **attrs}
        types = tuple(v.type for v in inputs)
        try:
            out_types = op.infer(types, attrs)
        except (ShapeError, DTypeError, UnsupportedError) as error:
            if getattr(error, "located", False):
                raise
            raise _locate(error, op, self._loc) from None
        outputs = tuple(Value(next(_ids), t) for t in out_types)
        loc = self._loc or caller()
        scope = current_scope() if self._scope is None else self._scope
        node = Node(next(_ids), op, tuple(inputs), attrs, outputs, loc, scope, self._origin)
        self.nodes.append(node)
        return outputs

    def append(self, node: Node) -> None:
        """Appends a node of another graph as it is (its values become this graph's)."""
        self.nodes.append(node)

    def inline(self, graph: Graph, args: Sequence[Expr]) -> list[Expr]:
        """Appends the nodes of `graph` with its inputs bound to `args`; returns its outputs."""
        mapping = {v: self.lift(a).value for v, a in zip(graph.inputs, args, strict=True)}
        here = self._origin
        groups = {0: here.group}
        for node in graph.nodes:
            outputs = tuple(Value(next(_ids), v.type) for v in node.outputs)
            mapping.update(zip(node.outputs, outputs, strict=True))
            inputs = tuple(mapping[v] for v in node.inputs)
            old = node.origin
            if old.group not in groups:  # each inlined copy recomputes for itself
                groups[old.group] = next(_ids)
            role = here.role if here.group and old.role == "primal" else old.role
            ancestors = (node.id, *old.ancestors[:3])
            origin = Origin(role, old.made_by, ancestors, groups[old.group])
            self.nodes.append(
                Node(next(_ids), node.op, inputs, node.attrs, outputs, node.loc, node.scope, origin)
            )
        return [self.wrap(mapping[v], self) for v in graph.outputs]

    def inline_derived(self, graph: Graph, args: Sequence[Expr]) -> list[Expr]:
        """`inline`, which notes what the graph knows of its derivatives for the one being built."""
        spoken = tuple(dict.fromkeys(v for d in graph.derivatives for v in d.values()))
        count = len(graph.outputs)
        results = self.inline(graph.replace(outputs=(*graph.outputs, *spoken)), args)
        names = {v: e.value for v, e in zip(spoken, results[count:], strict=True)}
        self.derivatives.extend(d.renamed(names) for d in graph.derivatives)
        return results[:count]

    def finish(
        self,
        outputs: Sequence[Value],
        output_names: Sequence[str] = (),
        aliases: Sequence[tuple[int, int]] = (),
    ) -> Graph:
        """The graph built so far."""
        return Graph(
            self.name,
            tuple(self.inputs),
            tuple(self.nodes),
            tuple(outputs),
            tuple(self.input_names),
            tuple(output_names),
            tuple(aliases),
            tuple(self.derivatives),
        )


def _locate(error: RetrogradeError, op: Op, loc: Loc | None) -> RetrogradeError:
    located = type(error)(f"{where(loc)}{op.name}: {error}")
    located.located = True  # type: ignore[attr-defined]  # marks the message as complete
    return located
