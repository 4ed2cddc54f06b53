"""The error classes: `rg.errors.ShapeError` and so on, all of them `RetrogradeError`."""

from retrograde.compiler.errors import (
    BudgetError,
    CheckpointError,
    DataError,
    DeviceError,
    DTypeError,
    OverrunError,
    RetrogradeError,
    ShapeError,
    TraceError,
    UnsupportedError,
    VerifyError,
)

__all__ = [
    "BudgetError",
    "CheckpointError",
    "DTypeError",
    "DataError",
    "DeviceError",
    "OverrunError",
    "RetrogradeError",
    "ShapeError",
    "TraceError",
    "UnsupportedError",
    "VerifyError",
]
