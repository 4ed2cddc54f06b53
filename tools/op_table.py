"""The op registry and the promotion rules -> docs/ops.md and docs/promotion.md.

Invariant: everything in the tables is read off the declarations; tests/project fails where a page
and the declarations differ.

    python tools/op_table.py            writes both pages
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import retrograde.compiler.ops  # noqa: F401  # declares the ops
from retrograde.compiler.ir.dtypes import promotion_table
from retrograde.compiler.ir.op import Op
from retrograde.compiler.ir.registry import Kind, NotDifferentiable, all_ops

DOCS = Path(__file__).resolve().parents[1] / "docs"

MADE = "<!-- made by tools/op_table.py: change the declarations and run `make docs` -->\n"

KINDS = {
    Kind.ELEMENTWISE: "Each element of the result is made of the elements at the same index of the "
    "operands, which broadcast as NumPy's do.",
    Kind.REDUCE: "Axes disappear, or stay with size 1.",
    Kind.CUMULATIVE: "Each element of the result is made of all elements up to there along `axis`.",
    Kind.CONTRACT: "Matrix products and their generalisation.",
    Kind.MOVE: "Elements change place only.",
    Kind.INDEX: "The places come from data.",
    Kind.RANDOM: "The bits depend on a key and a position, and on nothing else.",
    Kind.CREATE: "No tensor goes in.",
    Kind.REGION: "The op holds sub-graphs.",
    Kind.COMPOSITE: "The op carries a decomposition into the others, which devices run.",
    Kind.OPAQUE: "Devices run the op's reference.",
}

OPS_HEAD = """# Ops

Every operation of the IR, as declared in `compiler/ops`. What users call is `retrograde.numpy`,
which is made of these.

An op that says nothing at an edge follows NumPy there: NaN, infinities, zero-size and 0-d arrays.

**Gradient.** *yes*: the op has a gradient rule, which is made of ops and so can be differentiated
again. *by parts*: the op is differentiated as what it is made of. *no*: cotangents stop here, for
the reason given. A star marks a derivative that is infinite or undefined somewhere, as that of
`log` at 0.

**Operands** of unequal types: *common*: they meet in one type ([promotion.md](promotion.md)).
*float*: likewise, and integers become f32. *bool*: they are compared with zero. *select*: the first
becomes a boolean, the others meet. *as they are*: nothing is converted.
"""

PROMOTION_HEAD = """# Promotion

The type in which two operands meet. Within a kind the wider type wins. Signed and unsigned integers
meet in the next wider signed type. A float absorbs integers, and booleans yield to everything.

Numbers are weak. A Python number or a NumPy scalar takes the type of the array it meets, unless its
kind is higher: `x / np.sqrt(64)` stays f32 for an f32 array, and `n * 1.5` is f32 for an integer
array. The last three columns show this. On their own, `1.5` is f32 and `1` is i32.

Arrays keep the type that they come with: a float64 argument computes in float64.

A dash stands for no common type: no integer type holds u64 and a signed type. (NumPy takes f64
there, which holds neither exactly.) That is a `DTypeError`; cast one of them.
"""


def ops_page() -> str:
    """The text of docs/ops.md."""
    parts = [MADE, OPS_HEAD]
    for kind in Kind:
        rows = [_row(op) for op in all_ops() if op.kind is kind]
        if rows:
            head = "| op | computes | convention | gradient | operands |\n|---|---|---|---|---|\n"
            title = f"## {kind.value.capitalize()}\n\n{KINDS[kind]}\n\n"
            parts.append(title + head + "".join(rows))
    return "\n".join(parts)


def promotion_page() -> str:
    """The text of docs/promotion.md."""
    return "\n".join([MADE, PROMOTION_HEAD, promotion_table()])


def pages() -> Iterator[tuple[Path, str]]:
    """Every page that is made here, and its text."""
    yield DOCS / "ops.md", ops_page()
    yield DOCS / "promotion.md", promotion_page()


def _row(op: Op) -> str:
    promotion = "as they are" if op.promotion == "none" else op.promotion
    cells = [f"`{op.name}`", op.doc, op.convention, _gradient(op), promotion]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def _gradient(op: Op) -> str:
    if isinstance(op.vjp, NotDifferentiable):
        return f"no: {op.vjp.reason}"
    star = " \\*" if op.singular else ""
    return ("by parts" if op.vjp is None else "yes") + star


if __name__ == "__main__":
    for path, text in pages():
        path.write_text(text, encoding="utf-8")
