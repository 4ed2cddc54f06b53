"""Counts that are drawn."""

from __future__ import annotations

import numpy as np

from retrograde.recipes import pictures


def test_a_confusion_is_counted_by_truth_and_what_is_said() -> None:
    counts = pictures.counted(np.array([0, 0, 1, 1, 1, 3]), np.array([0, 1, 1, 1, 0, 3]), 4)
    assert counts.tolist() == [[1, 1, 0, 0], [1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
