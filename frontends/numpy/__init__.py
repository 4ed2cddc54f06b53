"""NumPy for traced values: array-API names and the common NumPy ones, on symbolic sizes.

Inside a trace these functions append ops to the graph; on plain arrays outside of one they compute
at once by the same definitions.  Constructors make f32 and i32 unless told otherwise.
"""

# ruff: noqa: F403  (each module names what it gives in __all__)

from __future__ import annotations

import difflib
import math
from typing import Any

import numpy as np

from retrograde.compiler.ir import dtypes as _dtypes
from retrograde.numpy import linalg as linalg
from retrograde.numpy.contraction import *
from retrograde.numpy.creation import *
from retrograde.numpy.elementwise import *
from retrograde.numpy.indexing import *
from retrograde.numpy.joining import *
from retrograde.numpy.linalg import *
from retrograde.numpy.logic import *
from retrograde.numpy.manipulation import *
from retrograde.numpy.padding import *
from retrograde.numpy.reductions import *
from retrograde.numpy.searching import *
from retrograde.numpy.special import *
from retrograde.numpy.types import *
from retrograde.numpy.updates import *

pi = math.pi
e = math.e
inf = math.inf
nan = math.nan
newaxis = None


def __getattr__(name: str) -> Any:
    if name == "bfloat16":  # ml_dtypes is imported on first use
        return _dtypes.bf16.numpy.type
    if hasattr(np, name):
        raise AttributeError(f"numpy.{name} is not in retrograde.numpy{_near(name)}")
    raise AttributeError(f"retrograde.numpy has no {name}{_near(name)}")


def _near(name: str) -> str:
    found = nearest(name)
    return f": did you mean {' or '.join(found)}?" if found else ""


def nearest(name: str) -> list[str]:
    """The public names closest to `name`."""
    known = [n for n in globals() if not n.startswith("_") and n not in _HIDDEN]
    return difflib.get_close_matches(name, known, n=3, cutoff=0.7)


_HIDDEN = {"annotations", "difflib", "math", "nearest", "Any", "np"}
