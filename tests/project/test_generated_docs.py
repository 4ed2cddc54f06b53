"""docs/ops.md and docs/promotion.md are what the declarations make of them."""

from __future__ import annotations

import numpy as np
import op_table
import pytest

from retrograde.compiler.errors import DTypeError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.registry import NotDifferentiable, all_ops


def test_the_committed_pages_are_up_to_date() -> None:
    for path, text in op_table.pages():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is out of date: make docs"


def test_every_op_stands_in_the_table_once_and_says_what_it_computes() -> None:
    page = op_table.ops_page()
    for op in all_ops():
        assert page.count(f"| `{op.name}` | ") == 1
        assert op.doc, f"{op.name} has no doc"
        if isinstance(op.vjp, NotDifferentiable):
            assert op.vjp.reason, f"{op.name} gives no reason for having no gradient"


def test_rows_have_one_cell_a_column() -> None:
    rows = [line for line in op_table.ops_page().splitlines() if line.startswith("| `")]
    assert len(rows) == len(list(all_ops()))
    for row in rows:
        assert row.replace("\\|", "").count("|") == 6, row


def test_the_promotion_page_holds_what_arrays_do() -> None:
    """Every cell beside NumPy, where the two agree: all pairs of one kind, and with booleans."""
    lines = op_table.promotion_page().splitlines()
    rows = [line.split("|")[1:-1] for line in lines if "**" in line]
    columns, *table = [[cell.strip(" *`") for cell in row] for row in rows]
    cells = {
        (row[0], column): cell
        for row in table
        for column, cell in zip(columns[1:], row[1:], strict=True)
    }
    assert len(cells) == len(dtypes.ALL) * (len(dtypes.ALL) + 3)
    for a in dtypes.ALL:
        for b in dtypes.ALL:
            cell = cells[a.name, b.name]
            assert cell == cells[b.name, a.name]
            if cell == "-":
                with pytest.raises(DTypeError):
                    dtypes.promote(a, b)
                continue
            kinds = {a.kind, b.kind}
            if "bf16" not in (a.name, b.name) and (len(kinds) == 1 or "bool" in kinds):
                assert np.promote_types(a.numpy, b.numpy) == dtypes.dtype(cell).numpy
