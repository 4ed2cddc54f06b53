"""Why a model does not learn: `rg.diagnose`, gradients over time and the origin of a NaN.

A function and its arguments -> what is found, printable.  Invariant: loops over time are run as
loops, and nothing that is looked at changes.
"""

from __future__ import annotations

from retrograde.carry_norms import gradient_norms
from retrograde.nonfinite import Looked, NonFinite, first_nonfinite
from retrograde.norms_shown import CarryNorms, GradientNorms

__all__ = [
    "CarryNorms", "GradientNorms", "Looked", "NonFinite", "first_nonfinite", "gradient_norms",
]  # fmt: skip
