"""Metrics as event files for TensorBoard: names and values at steps -> a folder that it reads.

Written by tensorboardX, of the extra `tensorboard`.  Invariant: what was written behind the step
that a run resumes at is taken back.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from retrograde.compiler.errors import DataError


class Events:
    """Writes to the folder `path`, from `step` on."""

    def __init__(self, path: str | os.PathLike[str], step: int = 0) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise DataError(
                "event files for TensorBoard need the package tensorboardX: "
                "pip install 'retrograde[tensorboard]'"
            ) from error
        # Files are named by the second: a run that resumes in the same one must not replace them.
        self._writer: Any = SummaryWriter(
            os.fspath(path), purge_step=step + 1 if step else None, filename_suffix=f".{step:08}"
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers at a step; a validation's `validation_loss` is shown beside `loss`."""
        for name, value in values.items():
            head, _, tail = name.partition("validation_")
            tag = f"{tail}/validation" if not head and tail else f"{name}/training"
            self._writer.add_scalar(tag, value, step)

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()
