"""Retrograde: a symbolic graph compiler for sequence models; this is the namespace users import."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from retrograde import debug, errors, numpy, random, tree
from retrograde.branches import cond, while_loop
from retrograde.compiled import Compiled, compile
from retrograde.custom import custom_vjp, remat, stop_gradient
from retrograde.eager_mode import eager
from retrograde.gradients import grad, jvp, value_and_grad, vjp
from retrograde.jitted import jit
from retrograde.loading import load
from retrograde.loops import scan
from retrograde.mean import Mean
from retrograde.specs import Spec, dim, spec
from retrograde.tracer import Tracer
from retrograde.traces import trace
from retrograde.training import TrainStep, compile_training
from retrograde.version import __version__

if TYPE_CHECKING:
    from retrograde import diagnose, generation, losses, masks, metrics, models, nn, optim
    from retrograde.generation import generate, stream
    from retrograde.teaching import scheduled_sampling

__all__ = [
    "Compiled",
    "Mean",
    "Spec",
    "Tracer",
    "TrainStep",
    "__version__",
    "compile",
    "compile_training",
    "cond",
    "custom_vjp",
    "debug",
    "diagnose",
    "dim",
    "eager",
    "errors",
    "generate",
    "generation",
    "grad",
    "jit",
    "jvp",
    "load",
    "losses",
    "masks",
    "metrics",
    "models",
    "nn",
    "numpy",
    "optim",
    "random",
    "remat",
    "scan",
    "scheduled_sampling",
    "spec",
    "stop_gradient",
    "stream",
    "trace",
    "tree",
    "value_and_grad",
    "vjp",
    "while_loop",
]

_ON_FIRST_USE = ("diagnose", "generation", "losses", "masks", "metrics", "models", "nn", "optim")
_FROM = {"generate": "generation", "stream": "generation", "scheduled_sampling": "teaching"}


def __getattr__(name: str) -> Any:
    if name in _ON_FIRST_USE:
        return importlib.import_module(f"retrograde.{name}")
    if name in _FROM:
        return getattr(importlib.import_module(f"retrograde.{_FROM[name]}"), name)
    raise AttributeError(f"retrograde has no {name!r}")
