"""Finds heads in a graph: logits that are read for cross-entropy alone -> `Head`, or `Refused`.

Taken are the logits of one product, maybe reshaped, with a bias, with rows cleared by a mask, that
go on to `token_nll`, `logsumexp` or `log_softmax`, or to the same written out with max, exp, sum
and log, and from there to one target a row, to sums over the classes or to products with a vector
of them.  Invariant: what the ends of a head compute follows from the losses and log-sum-exps of its
rows, up to rounding; nothing else reads what is inside of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.graph import Graph, Node, Value, same_shape
from retrograde.compiler.ops.contract import free_axes
from retrograde.compiler.ops.region import effects_of

# From a form to the next: the totals and the largest are those of the classes.
_NEXT = {
    ("logits", "max"): "top", ("shifted", "exp"): "weights", ("weights", "sum"): "total",
    ("total", "log"): "level",
}  # fmt: skip
_ROWS = frozenset({"top", "total", "level"})  # forms with a number for each row


class Refused(Exception):
    """Why something that looks like a head is left as it is."""


@dataclass(frozen=True)
class End:
    """A node that reads logits and is replaced: `kind` says by what.  `log` tells that what it
    reads are the logarithms of probabilities; `by` is the vector of a product."""

    kind: str  # nll, lse, pick, sum, dot
    log: bool = False
    by: Value | None = None


@dataclass
class Head:
    """x [rows…, d] by w [d, classes], or [classes, d] if `transposed`, and what becomes of it."""

    product: Node
    x: Value
    order: tuple[int, ...]  # the axes of x, those of the rows first
    w: Value
    transposed: bool
    classes: Dim
    bias: Value | None = None
    kept: list[Value] = field(default_factory=list)  # conditions of the rows' shape
    target: tuple[Value, bool] | None = None  # and whether it counts from the end below 0
    ends: dict[Node, End] = field(default_factory=dict)
    inside: set[Node] = field(default_factory=set)

    @property
    def rows(self) -> Dim:
        return dims.product(self.x.shape[i] for i in self.order[:-1])


def right_matrix(v: Value, axis: int, makers: dict[Value, Node]) -> tuple[Value, bool]:
    """The matrix whose `axis` is summed over, before it was transposed, and whether its columns are
    the summed axis."""
    while (node := makers.get(v)) is not None and node.op.name == "transpose":
        v, axis = node.inputs[0], node.attrs["perm"][axis]
    return v, axis == 1


def is_product(node: Node) -> bool:
    """Whether the node multiplies rows with a matrix, classes last."""
    if node.op.name != "dot_general" or node.attrs["batch"] != ((), ()):
        return False
    x, w = node.inputs
    return w.type.ndim == 2 and x.type.ndim >= 2 and len(node.attrs["contract"][1]) == 1


class Matcher:
    """Reads one graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.makers = graph.producers()
        self.users = graph.users()
        self.places = {node: i for i, node in enumerate(graph.nodes)}

    def match(self, product: Node) -> Head | None:
        """The head that begins with `product`; None where no softmax follows, Refused where it is
        close to one."""
        x, w = product.inputs
        (mine,), (theirs,) = product.attrs["contract"]
        matrix, transposed = right_matrix(w, theirs, self.makers)
        order = (*free_axes(x.type.ndim, (mine,)), mine)
        classes = product.output.shape[-1]
        self.head = head = Head(product, x, order, matrix, transposed, classes)
        self.forms: dict[Value, str] = {}
        logits = self._adjusted(product.output)
        self._follow(logits, "logits")
        if not any(end.kind in ("nll", "lse", "pick") for end in head.ends.values()):
            return None
        self._check_private()
        self._check_order()
        return head

    def _by(self, v: Value, *names: str) -> Node | None:
        node = self.makers.get(v)
        return node if node is not None and node.op.name in names else None

    # --- from the product to the logits that are read

    def _adjusted(self, v: Value) -> Value:
        """Past reshapes, a bias and masks, each of which is all that reads what is before it."""
        head = self.head
        head.inside.add(head.product)
        while len(users := list(self.users.get(v, ()))) == 1:
            node, name = users[0], users[0].op.name
            if name == "reshape" and self._keeps_classes(node):
                pass
            elif name == "add" and head.bias is None and not head.kept:
                a, b = node.inputs
                head.bias = self._vector(b if a is v else a)
                if head.bias is None:
                    break
            elif name == "select" and (rows := self._row_mask(node, v)) is not None:
                head.kept.append(rows)
            else:
                break
            head.inside.add(node)
            v = node.output
        return v

    def _keeps_classes(self, node: Node) -> bool:
        shape = node.output.shape
        return len(shape) > 0 and dims.same(shape[-1], self.head.classes)

    def _vector(self, v: Value) -> Value | None:
        """What is one number for each class, from before it was given more axes in front."""
        classes = self.head.classes
        while v.type.ndim > 1 and (node := self._by(v, "reshape", "broadcast_to")) is not None:
            alone = all(dims.same(d, 1) for d in v.shape[:-1])
            if not dims.same(v.shape[-1], classes) or (node.op.name == "reshape" and not alone):
                return None
            v = node.inputs[0]
        fits = v.type.ndim == 1 and dims.same(v.shape[0], classes)
        return v if fits and not dims.same(v.shape[0], 1) else None

    def _row_mask(self, node: Node, v: Value) -> Value | None:
        """The condition of select(condition by row, v, 0)."""
        condition, kept, other = node.inputs
        while (moved := self._by(other, "broadcast_to", "reshape")) is not None:
            other = moved.inputs[0]
        zero = self._by(other, "constant")
        if kept is not v or zero is None or zero.attrs["value"] != 0:
            return None
        if condition.type.ndim != v.type.ndim or not dims.same(condition.shape[-1], 1):
            return None
        return condition if same_shape(condition.shape[:-1], v.shape[:-1]) else None

    # --- from the logits to the ends

    def _follow(self, v: Value, form: str) -> None:
        """Reads all that reads `v`.  Forms: logits, top (of each row), shifted (by that), weights
        (exp of it), total (of a row), level (its log), logs (of the probabilities)."""
        if v in self.forms:
            return
        self.forms[v] = form
        for node in self.users.get(v, ()):
            if node not in self.head.ends:
                self._read(node, v, form)

    def _go(self, node: Node, form: str) -> None:
        self.head.inside.add(node)
        self._follow(node.output, form)

    def _read(self, node: Node, v: Value, form: str) -> None:
        name, last = node.op.name, v.type.ndim - 1
        along = node.attrs.get("axes") == (last,)
        if self._moves(node, form):
            self._go(node, form)
        elif form in ("logits", "logs") and self._ended(node, v, form == "logs"):
            return
        elif (form, name) in _NEXT and (along or name in ("exp", "log")):
            self._go(node, _NEXT[form, name])
        elif form == "logits" and name == "log_softmax" and node.attrs["axis"] == last:
            self._go(node, "logs")
        elif name == "sub":
            self._less(node)
        elif name == "add" and self._levelled(node):
            self.head.ends[node] = End("lse")

    def _moves(self, node: Node, form: str) -> bool:
        """Whether a node only gives a form another shape, or marks it."""
        name, x = node.op.name, node.inputs[0]
        if name == "reshape":
            return self._by_row(x) if form in _ROWS else self._keeps_classes(node)
        if name == "broadcast_to":
            return form in _ROWS and self._met(x, node.output)
        return name == "stop_gradient" and form == "top"

    def _by_row(self, v: Value) -> bool:
        """Whether a form of rows has one number for each, in their order."""
        return dims.same(v.type.size, self.head.rows)

    def _levelled(self, node: Node) -> bool:
        """Whether a sum is the level of each row above zero."""
        forms = {self.forms.get(x) for x in node.inputs}
        return forms == {"top", "level"} and all(map(self._by_row, (*node.inputs, node.output)))

    def _met(self, rows: Value, v: Value) -> bool:
        """Whether each row of `v` meets its own number of `rows`, as [T, 1] beside [T, T] does and
        [T] does not."""
        lead, last = v.shape[:-1], rows.shape[-1:]
        return same_shape(rows.shape, (*lead, *last)) and (
            dims.same(last[0], 1) or not self._by_row(rows)
        )

    def _less(self, node: Node) -> None:
        """A difference of forms, once both are known."""
        a, b = (self.forms.get(x) for x in node.inputs)
        if not self._met(*reversed(node.inputs)):
            return
        if a == "logits" and b == "top":
            self._go(node, "shifted")
        elif a == "shifted" and b == "level":
            self._go(node, "logs")

    def _ended(self, node: Node, v: Value, log: bool) -> bool:
        """Notes an end that reads logits, or the logarithms of probabilities."""
        name, last = node.op.name, v.type.ndim - 1
        end: End | None = None
        if name == "token_nll" and not log and node.inputs[0] is v:
            self._aim(node.inputs[1], False)
            end = End("nll")
        elif name == "logsumexp" and not log and node.attrs["axes"] == (last,):
            end = End("lse")
        elif name == "gather" and node.inputs[0] is v and self._one_a_row(node, v):
            self._aim(node.inputs[-1], node.attrs["wrap"])
            end = End("pick", log)
        elif name == "sum" and node.attrs["axes"] == (last,):
            end = End("sum", log)
        elif name == "dot_general" and node.inputs[0] is v:
            by = node.inputs[1]
            ends = node.attrs["contract"] == ((last,), (0,)) and node.attrs["batch"] == ((), ())
            if ends and by.type.ndim == 1:
                end = End("dot", log, by)
        if end is None:
            return False
        self.head.ends[node] = end
        return True

    def _aim(self, target: Value, wrap: bool) -> None:
        while (node := self._by(target, "reshape")) is not None:
            target = node.inputs[0]
        found = self.head.target
        if found is not None and found[0] is not target:
            raise Refused("its rows have several targets each")
        self.head.target = (target, wrap and (found is None or found[1]))

    def _one_a_row(self, node: Node, v: Value) -> bool:
        """Whether a gather takes one class of each row, in order."""
        *counters, target = node.inputs[1:]
        if node.attrs["axes"] != tuple(range(v.type.ndim)):
            return False
        rows = v.shape[:-1]
        shape = target.shape[: len(rows)]
        rest = target.shape[len(rows) :]
        if not same_shape(shape, rows) or not all(dims.same(d, 1) for d in rest):
            return False
        return all(
            self._counts(counter, axis, target.shape) for axis, counter in enumerate(counters)
        )

    def _counts(self, v: Value, axis: int, shape: tuple[Dim, ...]) -> bool:
        """Whether `v` is, everywhere, the place along `axis`."""
        if not same_shape(v.shape, shape):
            return False
        if dims.same(shape[axis], 1) and (zero := self._by(self._base(v), "constant")) is not None:
            return bool(zero.attrs["value"] == 0)
        while (node := self._by(v, "broadcast_to", "cast")) is not None:
            v = node.inputs[0]
        if v.type.ndim != len(shape):
            return False
        for i, d in enumerate(v.shape):
            if not dims.same(d, shape[axis] if i == axis else 1):
                return False
        node = self._by(self._base(v), "iota")
        return node is not None and dims.same(node.output.shape[0], shape[axis])

    def _base(self, v: Value) -> Value:
        while (node := self._by(v, "broadcast_to", "cast", "reshape")) is not None:
            v = node.inputs[0]
        return v

    # --- whether it may be taken

    def _check_private(self) -> None:
        """Logits that something else reads have to be there whole."""
        head, kept = self.head, set(self.graph.outputs)
        known = head.inside | set(head.ends)
        for node in head.inside:
            for v in node.outputs:
                if v in kept:
                    raise Refused(f"the result of {node.op.name} ({node.place}) is returned")
                for user in self.users.get(v, ()):
                    if user not in known:
                        what = f"the result of {node.op.name} ({node.place})"
                        raise Refused(f"{what} is read by {user.op.name} ({user.place}) too")

    def _check_order(self) -> None:
        """What the head reads beside its product must not depend on it."""
        head = self.head
        own = head.inside | set(head.ends)
        vectors = (end.by for end in head.ends.values())
        given = (head.bias, *head.kept, *vectors, head.target and head.target[0])
        for node in self._above([v for v in given if v is not None]):
            if node in own:
                raise Refused(f"a target, mask or bias depends on it ({node.place})")
            if effects_of(node) and self.places[node] > self.places[head.product]:
                raise Refused(f"a target or mask is made after it by what acts ({node.place})")

    def _above(self, values: list[Value]) -> Iterator[Node]:
        seen: set[Node] = set()
        while values:
            node = self.makers.get(values.pop())
            if node is not None and node not in seen:
                seen.add(node)
                values.extend(node.inputs)
                yield node
