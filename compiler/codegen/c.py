"""The C printer of kernels over rows: `RowKernel` -> the text of a function and its arguments.

Loops are plain: the C compiler turns them into vector code.  Totals run in a fixed number of lanes,
which are added in a fixed order, so that they do not depend on the width of vectors.  Invariant:
nothing of a user's text is printed but in comments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from retrograde.compiler.codegen.cstyle import (
    Extents,
    expression,
    literal,
    load,
    memory_type,
    product,
    register_type,
    rounded,
    store,
)
from retrograde.compiler.codegen.kernel import Array, RowKernel
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.graph import Node, Value
from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.plan.sweeps import Sweep
from retrograde.compiler.plan.views import Literal, View

LANES = 32  # of a total; two vectors of f32 in flight with AVX-512
GRAIN = 64  # elements: threads never share a cache line
HEAD = "static i64 @(const i64 *a, i64 lo, i64 hi, i64 part) {"

# How a total begins, goes on with one element, and the op that joins two lanes.
_TOTALS = {
    "sum": "add", "row_dot": "add", "dot_general": "add", "prod": "mul",
    "max": "maximum", "min": "minimum", "any": "add", "all": "mul",
}  # fmt: skip


@dataclass(frozen=True)
class Share:
    """How the work of a matrix product is cut: the panels, or the blocks of a result."""

    what: str  # "panels" or "blocks"
    dtype: DType
    batch: Dim
    rows: Dim
    columns: Dim


@dataclass(frozen=True)
class Function:
    """A kernel's text, with @ for its name, and what a launch gives it: places, then sizes."""

    text: str
    places: tuple[View, ...]
    sizes: tuple[Dim, ...]
    items: Dim
    grain: int = 1
    mixed: tuple[View | Dim, ...] = ()  # all arguments in their order, where places are among sizes
    share: Share | None = None  # how items follow from the machine, where `items` does not tell


def row_function(kernel: RowKernel) -> Function:
    """The C function of a kernel."""
    return _Rows(kernel).function()


def fill_function(out: View, size: Dim, counts: bool) -> Function:
    """The function that writes a size everywhere, or with `counts` 0, 1 … below it."""
    kind, held = memory_type(out.dtype), register_type(out.dtype)
    value = f"({held})" + ("i" if counts else "a[1]")
    stride = Extents()
    place = product("i", stride(out.strides[0])) if counts else "i"
    steps = [f"  const i64 n{i} = a[{1 + i}];" for i in range(len(stride.open))]
    text = "\n".join([
        HEAD,
        *steps,
        f"  {kind} *const y = (void *)a[0];",
        f"  for (i64 i = lo; i < hi; i++) y[{place}] = {store(out.dtype, value)};",
        "  return RG_OK;",
        "}",
    ])  # fmt: skip
    items: Dim = size if counts else dims.product(out.shape)
    return Function(text, (out,), tuple(stride.open) if counts else (size,), items, GRAIN)


@dataclass
class _Rows:
    kernel: RowKernel
    size: Extents = field(default_factory=Extents)
    lines: list[str] = field(default_factory=list)
    names: dict[Value, str] = field(default_factory=dict)
    arrays: dict[Value, tuple[str, Array]] = field(default_factory=dict)

    def function(self) -> Function:
        k = self.kernel
        operands = [(v, x) for v, x in k.operands.items() if isinstance(x, Array)]
        self.arrays = {v: (f"x{i}", x) for i, (v, x) in enumerate(operands)}
        self.written = [(f"y{j}", y) for j, y in enumerate(k.results)]
        flat = not k.outer
        body = self._body(2 if not flat else 1)
        pointers = [*self.arrays.values(), *self.written]
        head = [
            f"  {_pointer(name, y, name.startswith('x'))} = (void *)a[{i}];"
            for i, (name, y) in enumerate(pointers)
        ]
        for b, dtype in enumerate(k.sweeps.dtypes):
            at = len(pointers) + b
            width = self.size(_padded(k.inner, dtype))
            kind = memory_type(dtype)
            head.append(f"  {kind} *const b{b} = ({kind} *)a[{at}] + part * {width};")
        if flat:
            rows = body
        else:
            rows = [
                "  for (i64 r = lo; r < hi; r++) {",
                *self._places(),
                *body,
                "  }",
            ]
        places = len(pointers) + len(k.sweeps.dtypes)
        sizes = [f"  const i64 n{i} = a[{places + i}];" for i in range(len(self.size.open))]
        text = "\n".join([HEAD, *sizes, *head, *rows, "  return RG_OK;", "}"])
        return Function(
            text, (*(y.view for _, y in pointers), *k.scratch), tuple(self.size.open),
            k.inner if flat else k.rows, GRAIN if flat else 1,
        )  # fmt: skip

    def _places(self) -> list[str]:
        """The beginning of each array's row."""
        k, lines = self.kernel, []
        axes = [f"i{n}" for n in range(len(k.outer))]
        if len(axes) == 1:
            axes = ["r"]
        else:
            lines.append("    i64 q = r;")
            for n in range(len(axes) - 1, 0, -1):
                extent = self.size(k.outer[n])
                lines.append(f"    const i64 i{n} = q % {extent}; q /= {extent};")
            lines.append("    const i64 i0 = q;")
        for name, y in [*self.arrays.values(), *self.written]:
            steps = [product(i, self.size(s)) for i, s in zip(axes, y.outer, strict=True)]
            offset = "".join(f" + {s}" for s in steps if s != "0")
            lines.append(f"    {_pointer(name + 'r', y, name[0] == 'x')} = {name}{offset};")
        return lines

    # --- the body of a row

    def _body(self, depth: int) -> list[str]:
        k, pad = self.kernel, "  " * depth
        lines: list[str] = []
        for v, x in k.operands.items():
            if isinstance(x, Literal):
                lines.append(self._define(v, literal(x.value, x.dtype), pad))
            elif v in k.sweeps.rows or dims.same(x.inner, 0):
                lines.append(self._define(v, load(x.dtype, f"{self._row(v)}[0]"), pad))
        lines += self._row_nodes(k.sweeps.before, pad)
        for j, v in enumerate(k.body.outputs):
            if k.sweeps.after[j] < 0:
                lines.append(self._stored(j, v, "0", pad))
        for n, sweep in enumerate(k.sweeps.sweeps):
            lines += self._sweep(sweep, n, pad)
            lines += self._row_nodes(sweep.rows, pad)
            for j in sweep.stores:
                v = k.body.outputs[j]
                if v in k.sweeps.rows:
                    lines.append(self._stored(j, v, "0", pad))
        return lines

    def _row(self, v: Value) -> str:
        return f"{self.arrays[v][0]}{'r' if self.kernel.outer else ''}"

    def _define(self, v: Value, value: str, pad: str) -> str:
        name = self.names.setdefault(v, f"v{len(self.names)}")
        return f"{pad}const {register_type(v.dtype)} {name} = {value};"

    def _row_nodes(self, nodes: Sequence[Node], pad: str) -> list[str]:
        return [
            self._define(n.output, expression(n, [self.names[v] for v in n.inputs]), pad)
            for n in nodes
        ]

    def _stored(self, j: int, v: Value, at: str, pad: str) -> str:
        name, y = self.written[j]
        row = f"{name}{'r' if self.kernel.outer else ''}"
        return f"{pad}{row}[{at}] = {store(y.dtype, self.names[v])};"

    def _sweep(self, sweep: Sweep, number: int, pad: str) -> list[str]:
        k = self.kernel
        stores = [j for j in sweep.stores if k.body.outputs[j] not in k.sweeps.rows]
        if not (sweep.totals or stores or sweep.keeps):
            return []
        n = self.size(k.inner)
        if not sweep.totals:
            first, last = ("0", n) if k.outer else ("lo", "hi")
            body = self._elements(sweep, stores, pad + "  ")
            return [
                f"{pad}RG_SIMD",
                f"{pad}for (i64 i = {first}; i < {last}; i++) {{",
                *body,
                f"{pad}}}",
            ]
        lanes = [(f"s{number}_{t}", node) for t, node in enumerate(sweep.totals)]
        lines = []
        for name, node in lanes:
            kind = register_type(node.output.dtype)
            lines.append(f"{pad}{kind} {name}[{LANES}];")
            lines.append(
                f"{pad}for (int l = 0; l < {LANES}; l++) {name}[l] = {identity(node)};"
            )
        inner = pad + "    "
        body = [
            f"{inner}const i64 i = at + l;",
            *self._elements(sweep, stores, inner),
            *(f"{inner}{name}[l] = {self._total(node, name + '[l]')};" for name, node in lanes),
        ]
        lines += [
            f"{pad}i64 at{number} = 0;",
            f"{pad}for (; at{number} + {LANES} <= {n}; at{number} += {LANES}) {{",
            f"{pad}  const i64 at = at{number};",
            f"{pad}  RG_SIMD",
            f"{pad}  for (i64 l = 0; l < {LANES}; l++) {{",
            *body,
            f"{pad}  }}",
            f"{pad}}}",
            f"{pad}{{",
            f"{pad}  const i64 at = at{number};",
            f"{pad}  RG_SIMD",
            f"{pad}  for (i64 l = 0; l < {n} - at; l++) {{",
            *body,
            f"{pad}  }}",
            f"{pad}}}",
        ]
        for name, node in lanes:
            lines += folded(node, name, LANES, pad)
            total = rounded(node.output.dtype, f"{name}[0]")
            lines.append(self._define(node.output, total, pad))
        return lines

    def _elements(self, sweep: Sweep, stores: Sequence[int], pad: str) -> list[str]:
        """What is done with element `i` of a row."""
        k = self.kernel
        lines: list[str] = []
        saved = dict(self.names)
        for v in k.body.inputs:
            if v in sweep.reads and v not in self.names:
                x = k.operands[v]
                assert isinstance(x, Array)
                place = f"{self._row(v)}[{product('i', self.size(x.inner))}]"
                lines.append(self._define(v, load(x.dtype, place), pad))
        for v in sweep.reads:
            if v in self.names or v in k.operands:
                continue
            if v in k.sweeps.buffers:
                value = load(v.dtype, f"b{k.sweeps.buffers[v]}[i]")
            else:
                value = load(v.dtype, f"y{k.sweeps.results[v]}r[i]")
            lines.append(self._define(v, value, pad))
        for node in sweep.nodes:
            operands = [self.names[v] for v in node.inputs]
            lines.append(self._define(node.output, expression(node, operands), pad))
        for j in stores:
            y = self.written[j][1]
            at = product("i", self.size(y.inner))
            lines.append(self._stored(j, k.body.outputs[j], at, pad))
        for v in sweep.keeps:
            lines.append(
                f"{pad}b{k.sweeps.buffers[v]}[i] = {store(v.dtype, self.names[v])};"
            )
        self._inside = dict(self.names)
        self.names = saved
        return lines

    def _total(self, node: Node, total: str) -> str:
        names = self._inside
        value = names[node.inputs[0]]
        if node.op.name == "row_dot":
            value = f"{value} * {names[node.inputs[1]]}"
        return joined(node, total, value)


def folded(node: Node, name: str, lanes: int, pad: str) -> list[str]:
    """The statements that leave the total of all lanes in the first."""
    lines = []
    while lanes > 1:
        lanes //= 2
        both = joined(node, f"{name}[l]", f"{name}[l + {lanes}]")
        lines.append(f"{pad}for (int l = 0; l < {lanes}; l++) {name}[l] = {both};")
    return lines


def joined(node: Node, a: str, b: str) -> str:
    """Two totals as one."""
    dtype = node.output.dtype
    return lookup(_TOTALS[node.op.name]).c_expression([a, b], dtype, dtype)


def identity(node: Node) -> str:
    dtype, name = node.output.dtype, node.op.name
    if _TOTALS[name] == "add":
        return literal(0, dtype)
    if name in ("prod", "all"):
        return literal(1, dtype)
    low = name == "max"
    if dtype.is_float:
        return "-INFINITY" if low else "INFINITY"
    bits = 8 * dtype.bytes
    if dtype.kind == "uint" or dtype.name == "bool":
        return literal(0 if low else (1 if dtype.name == "bool" else 2**bits - 1), dtype)
    return literal(-(2 ** (bits - 1)) if low else 2 ** (bits - 1) - 1, dtype)


def _pointer(name: str, y: Array, const: bool) -> str:
    kind = memory_type(y.dtype)
    return f"const {kind} *const {name}" if const else f"{kind} *const {name}"


def _padded(width: Dim, dtype: DType) -> Dim:
    """The elements of a row of working memory: whole cache lines."""
    per = GRAIN // dtype.bytes
    return dims.align(width, per)
