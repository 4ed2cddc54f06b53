"""The C printer of kernels over rows: `RowKernel` -> the text of a function and its arguments.

Loops are plain: the C compiler turns them into vector code.  Totals run in a fixed number of
lanes, which are added in a fixed order, so that they do not depend on the width of vectors.
Arrays that no cache holds are written past the caches, a few lines at a time, and read ahead; that
changes no bit.  Invariant: nothing of a user's text is printed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retrograde.compiler.codegen.cstyle import (
    LINE,
    Extents,
    identity,
    joined,
    memory_type,
    padded,
    product,
    register_type,
    store,
)
from retrograde.compiler.codegen.kernel import Array, RowKernel
from retrograde.compiler.codegen.row_printer import RowPrinter, nested, pointer
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.graph import Node
from retrograde.compiler.passes.spaces import to_one
from retrograde.compiler.plan.fused import ROWS, partial_width
from retrograde.compiler.plan.sweeps import FAR, Sweep, far
from retrograde.compiler.plan.views import View

LANES = 32  # of a total; two vectors of f32 in flight with AVX-512
AT_ONCE = 64  # elements that are written past the caches together: reading goes on meanwhile
NEAREST = 1024  # elements ahead that are asked for at least; else a row
LONGEST = 16384  # elements of a row that is asked for ahead: of longer ones the processor does that
HEAD = "static i64 @(const i64 *a, i64 lo, i64 hi, i64 part) {"


@dataclass(frozen=True)
class Share:
    """How the work of a matrix product is cut: the panels, or the blocks of a result."""

    what: str  # "panels", "blocks", or "products" of a BLAS
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
    return Function(text, (out,), tuple(stride.open) if counts else (size,), items, LINE)


class _Rows(RowPrinter):
    """Rows lo to hi are one thread's; lanes of a total are elements of an array.

    Names: p0 is whether result 0 is written past the caches, p0r this row of it, w0 where elements
    at work are written, t0 the lines that go past the caches from there."""

    past: tuple[int, ...] = ()  # the results of the sweep at work that may go past the caches
    loop: int = 0  # the number of the sweep at work

    def function(self) -> Function:
        k, pointers = self.kernel, self.pointers
        body = self.body()
        rows = body
        if not self.flat:
            rows = self._rows([*self.row_starts(), *body])
        head = []
        for i, (name, y) in enumerate(pointers):
            if name[0] == "y" and int(name[1:]) in self.sums:
                name = f"z{name[1:]}"
            head.append(f"{pointer(name, y)} = (void *)a[{i}];")
        arrays = len(pointers)
        for i, (name, source) in enumerate(self.sources, arrays):
            head.append(f"const {memory_type(source.dtype)} *const {name} = (void *)a[{i}];")
        arrays += len(self.sources)
        for b, dtype in enumerate(k.sweeps.dtypes):
            width, kind = self.size(padded(k.inner, dtype)), memory_type(dtype)
            at = arrays + b
            head.append(f"{kind} *const b{b} = ({kind} *)a[{at}] + part * {width};")
        streamed = [j for j in range(len(self.results)) if self._past(j)]
        head += [self._decided(j) for j in streamed]
        if streamed:
            rows = [*rows, f"if ({' | '.join(f'p{j}' for j in streamed)}) rg_streamed();"]
        places = arrays + len(k.sweeps.dtypes)
        sizes = [f"const i64 n{i} = a[{places + i}];" for i in range(len(self.size.open))]
        lines = [f"  {line}" for line in [*sizes, *head, *rows, "return RG_OK;"]]
        return Function(
            "\n".join([HEAD, *lines, "}"]),
            (*(y.view for _, y in pointers), *(x for _, x in self.sources), *k.scratch),
            tuple(self.size.open), self._items(), LINE if self.flat else 1,
        )  # fmt: skip

    def _items(self) -> Dim:
        if self.flat:
            return self.kernel.inner
        return dims.ceil_div(self.kernel.rows, ROWS) if self.sums else self.kernel.rows

    def _rows(self, body: Sequence[str]) -> list[str]:
        """The loop over rows; with sums over all rows, over slices of a fixed number of rows."""
        if not self.sums:
            return nested("for (i64 r = lo; r < hi; r++)", body)
        n = self.size(self.kernel.inner)
        lines = []
        for j in self.sums:
            name, y = self.results[j]
            width = self.size(partial_width(self.kernel.inner, y.dtype))
            lines.append(f"{pointer(name, y)} = z{j} + t * {width};")
            lines.append(f"for (i64 i = 0; i < {n}; i++) {name}[i] = 0;")
        lines.append(f"const i64 end = rg_min({self.size(self.kernel.rows)}, (t + 1) * {ROWS});")
        lines += nested(f"for (i64 r = t * {ROWS}; r < end; r++)", body)
        for j, node in self.sums.items():
            if to_one(node):
                lines += self._summed(f"y{j}", register_type(self.results[j][1].dtype), n)
        return nested("for (i64 t = lo; t < hi; t++)", lines)

    def _summed(self, name: str, kind: str, n: str) -> list[str]:
        """Leaves the sum of a row of `n` in its first element."""
        lines = [
            f"{kind} s[{LANES}];",
            f"for (int l = 0; l < {LANES}; l++) s[l] = 0;",
            f"for (i64 at = 0; at < {n}; at += {LANES})",
            f"  for (i64 l = 0; l < rg_min({LANES}, {n} - at); l++) s[l] += {name}[at + l];",
        ]
        for lanes in (LANES >> k for k in range(1, LANES.bit_length())):
            lines.append(f"for (int l = 0; l < {lanes}; l++) s[l] += s[l + {lanes}];")
        return ["{", *(f"  {line}" for line in (*lines, f"{name}[0] = s[0];")), "}"]

    def _past(self, j: int) -> bool:
        """Whether result j may be written past the caches: not where it is read again."""
        k, y = self.kernel, self.results[j][1]
        return (
            y.dtype.bytes * LANES % LINE == 0 and dims.same(y.inner, 1)
            and j not in self.sums and k.body.outputs[j] not in k.sweeps.rows
            and j not in k.sweeps.results.values() and self._far(y) is not False
        )  # fmt: skip

    def _far(self, y: Array) -> bool | None:
        if not self.kernel.sweeps.large:
            return False
        return far((*self.kernel.outer, self.kernel.inner), y.dtype)

    def _large(self, y: Array) -> list[str]:
        """The conditions under which no cache holds an array over the space."""
        if self._far(y):
            return []
        count = " * ".join(self.size(d) for d in (*self.kernel.outer, self.kernel.inner))
        return [f"{count} >= {FAR // y.dtype.bytes}"]

    def _decided(self, j: int) -> str:
        """Where a result takes the place of an operand, its lines are in the cache."""
        name, y = self.results[j]
        apart = [f"(u64){name} != (u64){x}" for x, _ in self.operands.values()]
        line = [f"rg_on_line({name})"] if self.flat else []
        return f"const i64 p{j} = {' && '.join([*self._large(y), *apart, *line]) or '1'};"

    def _element(
        self, sweep: Sweep, stores: Sequence[int], totals: Sequence[tuple[str, Node]]
    ) -> list[str]:
        self.past = tuple(j for j in stores if self._past(j))
        self.loop = self.kernel.sweeps.sweeps.index(sweep)
        return super()._element(sweep, stores, totals)

    def _ahead(self, count: int) -> list[str]:
        """Asks for the next row, after `count` elements from `at` on: rows of a few KiB are too
        short for the processor to see where reading goes on.  All sweeps ask for a part, so that
        reading does not wait for computing."""
        k, lines = self.kernel, []
        sweeps = len(k.sweeps.sweeps)
        if isinstance(k.inner, int) and k.inner > LONGEST:
            return []
        n = self.size(k.inner)
        for v, (name, x) in self.operands.items():
            rows_on = len(k.outer) == 1 and dims.same(x.outer[0], k.inner) and dims.same(x.inner, 1)
            if v in k.sweeps.rows or not rows_on or self._far(x) is False:
                continue
            conditions = self._large(x)
            step = f"rg_max({n}, {NEAREST})"
            if isinstance(k.inner, int):
                step = str(max(k.inner, NEAREST))
            else:
                conditions.append(f"{n} <= {LONGEST}")
            only = f"if ({' && '.join(conditions)}) " if conditions else ""
            done = f"({self.loop} * {n} + at)" if self.loop else "at"
            part = f"{done} / {sweeps}" if sweeps > 1 else done
            bytes = -(-count * x.dtype.bytes // sweeps // LINE) * LINE
            lines.append(f"{only}rg_ahead({name}r + {step} + {part}, {bytes});")
        return lines

    def _stored(self, j: int, at: str) -> str:
        if j not in self.past:
            return super()._stored(j, at)
        value = self.names[self.kernel.body.outputs[j]]
        return f"w{j}[l] = {store(self.results[j][1].dtype, value)};"

    def _starts(self, count: int) -> list[str]:
        """Where `count` elements from `at` on are written; 0 for a rest, which no line holds."""
        lines = []
        for j in self.past:
            y, kind = self.results[j], memory_type(self.results[j][1].dtype)
            place = f"{self._row(y)} + at"
            if count:
                lines.append(f"{kind} t{j}[{count}] __attribute__((aligned({LINE})));")
                place = f"{self._through(j)} ? t{j} : {place}"
            lines.append(f"{kind} *const w{j} = {place};")
        return lines

    def _through(self, j: int) -> str:
        return f"p{j}" if self.flat else f"p{j}r"

    def _streams(self, count: int) -> list[str]:
        return [
            f"if ({self._through(j)}) rg_stream({self._row(self.results[j])} + at, t{j}, "
            f"{count * self.results[j][1].dtype.bytes});"
            for j in self.past
        ]

    def row_starts(self) -> list[str]:
        lines = super().row_starts()
        for j, (name, _) in enumerate(self.results):
            if self._past(j):
                lines.append(f"const i64 p{j}r = p{j} && rg_on_line({name}r);")
        return lines

    def elements(self, body: Sequence[str]) -> list[str]:
        first, last = ("lo", "hi") if self.flat else ("0", self.size(self.kernel.inner))
        if self.past:
            through = " | ".join(map(self._through, self.past))
            through = f"({through})" if len(self.past) > 1 else through
            body = ["const i64 i = at + l;", *body]
            loop = nested(f"for (i64 l = 0; l < {AT_ONCE}; l++)", body)
            lines = [*self._starts(AT_ONCE), "RG_SIMD", *loop, *self._streams(AT_ONCE)]
            lines += [] if self.flat or len(self.kernel.sweeps.sweeps) < 2 else self._ahead(AT_ONCE)
            head = f"for (; {through} && at + {AT_ONCE} <= {last}; at += {AT_ONCE})"
            rest = nested(f"for (i64 l = 0; l < {last} - at; l++)", body)
            lines = [*nested(head, lines), *self._starts(0), "RG_SIMD", *rest]
            return ["{", *(f"  {line}" for line in (f"i64 at = {first};", *lines)), "}"]
        return ["RG_SIMD", *nested(f"for (i64 i = {first}; i < {last}; i++)", body)]

    def totalled(
        self, number: int, totals: Sequence[tuple[str, Node]], body: Sequence[str]
    ) -> list[str]:
        """Whole runs of lanes, then the rest of the row, then the lanes."""
        n, done = self.size(self.kernel.inner), f"at{number}"
        lines: list[str] = []
        for name, node in totals:
            lines.append(f"{register_type(node.output.dtype)} {name}[{LANES}];")
            lines.append(f"for (int l = 0; l < {LANES}; l++) {name}[l] = {identity(node)};")

        def run(lanes: str, whole: int) -> list[str]:
            loop = nested(f"for (i64 l = 0; l < {lanes}; l++)", ["const i64 i = at + l;", *body])
            lines = [f"const i64 at = {done};", *self._starts(whole), "RG_SIMD", *loop]
            return [*lines, *self._streams(whole), *self._ahead(whole)] if whole else lines

        step = f"{done} + {LANES} <= {n}; {done} += {LANES}"
        lines += [f"i64 {done} = 0;", *nested(f"for (; {step})", run(str(LANES), LANES))]
        lines += ["{", *(f"  {line}" for line in run(f"{n} - at", 0)), "}"]
        for name, node in totals:
            lines += folded(node, name, LANES, "")
        return lines

    def running(self, name: str) -> str:
        return f"{name}[l]"

    def total(self, name: str) -> str:
        return f"{name}[0]"

    def once(self, stores: Sequence[str]) -> list[str]:
        return list(stores)


def folded(node: Node, name: str, lanes: int, pad: str) -> list[str]:
    """The statements that leave the total of all lanes in the first."""
    lines = []
    while lanes > 1:
        lanes //= 2
        both = joined(node, f"{name}[l]", f"{name}[l + {lanes}]")
        lines.append(f"{pad}for (int l = 0; l < {lanes}; l++) {name}[l] = {both};")
    return lines
