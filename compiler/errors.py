"""Every error class of Retrograde.  Input: a message; invariant: all derive from `RetrogradeError`.

A message names the user's line where it is known, the shapes or sizes involved, and a way out.
"""

from __future__ import annotations


class RetrogradeError(Exception):
    """Base of every error that Retrograde raises on purpose."""


class TraceError(RetrogradeError):
    """Python that cannot be traced: names the user's line and what to write instead.

    It is deliberately no `TypeError` or `ValueError`: NumPy swallows those while probing objects.
    """


class ShapeError(RetrogradeError):
    """Shapes, ranks, axes or sizes that do not fit, or whose fit cannot be decided."""


class DTypeError(RetrogradeError):
    """A data type that is unknown, unsupported, or wrong for the operation."""


class UnsupportedError(RetrogradeError):
    """A combination that Retrograde does not support; the message says what does work."""


class BudgetError(RetrogradeError):
    """A memory budget that cannot be met.

    `minimum_bytes` is the smallest peak that can be scheduled, `lower_bound_bytes` the proven
    bound, `operation` the node that needs it.
    """

    def __init__(
        self,
        message: str,
        *,
        minimum_bytes: int | None = None,
        lower_bound_bytes: int | None = None,
        operation: str | None = None,
    ) -> None:
        super().__init__(message)
        self.minimum_bytes = minimum_bytes
        self.lower_bound_bytes = lower_bound_bytes
        self.operation = operation


class DataError(RetrogradeError):
    """Input data that is missing, empty, malformed or out of range."""

    placed = False  # whether the message names the line already


class CheckpointError(RetrogradeError):
    """A checkpoint that is missing, damaged, or belongs to another model."""


class DeviceError(RetrogradeError):
    """A device that is not there or cannot run the program."""


class VerifyError(RetrogradeError):
    """A graph that breaks an invariant of the IR: names the pass, the node and its line."""


class OverrunError(RetrogradeError):
    """A run that wrote between buffers: names the buffer before the gap and the one behind it.

    Raised only where RETROGRADE_RED_ZONES asks for gaps; what the run left behind is not to be
    trusted."""


class Notice(UserWarning):
    """Something legal that is probably not meant: names the user's line and what to write."""
