"""Ragged batches on every device: what runs on the live rows alone is what all rows give, in all
modes of memory; and it ran no row more than it had to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from retrograde.runtime.protocol import Device
from tests.device.harness import check
from tests.frontends.ragged_cells import CELLS, arrays, graph_of

# (steps, lengths): sorted, in any order, none at all, all alike, beyond the steps, one row.
BATCHES: tuple[tuple[int, tuple[int, ...]], ...] = (
    (5, (5, 4, 4, 2, 1, 0)),
    (5, (1, 0, 5, 0, 3)),
    (4, (2, 9, -3, 1)),
    (3, (3, 3, 3)),
    (3, (0, 0)),
    (1, (1, 0, 1, 0)),
    (5, (3,)),
    (0, (0, 2, 0)),
)


def rows_of(time: int, lengths: Any) -> list[int]:
    """The rows of each step: up to the last that has it."""
    return [max((i + 1 for i, n in enumerate(lengths) if n > t), default=0) for t in range(time)]


def checked(device: Device, name: str, gradient: bool, reverse: bool) -> None:
    cell = CELLS[name]
    graph = graph_of(cell, gradient, reverse)
    runs = [arrays(cell, t, n, gradient) for t, n in BATCHES]
    compiled = check(graph, device, runs, 1e-11)
    cut = cell.rowwise[gradient]
    time, lengths = BATCHES[1]
    compiled(arrays(cell, time, lengths, gradient))
    rows = rows_of(time, lengths)
    steps = sum(1 for n in rows if n)
    ran = sum(rows) if cut else steps * len(lengths)
    for run in compiled.runs.values():
        assert set(run.ragged().values()) == {(ran, time * len(lengths), steps, time)}
        assert len(run.ragged()) == 1 + gradient


@pytest.mark.parametrize("reverse", (False, True), ids=("forward", "reverse"))
@pytest.mark.parametrize("name", CELLS)
def test_loop(device: Device, name: str, reverse: bool) -> None:
    checked(device, name, False, reverse)


@pytest.mark.parametrize("name", CELLS)
def test_gradient_of_loop(device: Device, name: str) -> None:
    checked(device, name, True, name in ("lstm", "unit", "rows"))


def test_the_counts_are_those_of_the_last_run(device: Device) -> None:
    cell = CELLS["lstm"]
    compiled = check(graph_of(cell, False), device, [arrays(cell, 3, (3, 1), False)])
    compiled(arrays(cell, 4, (1, 1, 2), False))
    for run in compiled.runs.values():
        assert run.ragged() == {0: (6, 12, 2, 4)}
        assert run.clone().ragged() == {}


def test_lengths_of_one_size_make_one_turn_for_each_number_of_rows(device: Device) -> None:
    """Sorted rows: as many rows in each step as have it."""
    cell = CELLS["gru"]
    lengths = np.sort(np.random.default_rng(2).integers(0, 30, 17))[::-1]
    compiled = check(graph_of(cell, True), device, [arrays(cell, 30, lengths, True)], 1e-10)
    for run in compiled.runs.values():
        for rows, *_ in run.ragged().values():
            assert rows == lengths.sum()
