"""`load(path)`: what a compiled function or training step was saved to -> that, compiled anew."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def load(
    path: str | os.PathLike[str],
    *,
    backend: str | None = None,
    threads: int | None = None,
    trust: bool = False,
) -> Any:
    """The compiled function that `save` or `export` wrote to `path`, to be called as before; of a
    checkpoint that was saved with `program=True`, the training step.

    Its plan is the one it had.  Code is generated anew, or comes from the cache; nothing in a saved
    file is executed.  `backend` and `threads` are those it was compiled with unless given.  An
    exported file holds compiled code: it is loaded only with `trust=True`, which runs that code, so
    say so only of a file from where you would also take a program.  Raises CheckpointError for a
    file that is damaged, of another format, or untrusted, DeviceError for compiled code of another
    processor."""
    if Path(path).is_dir():
        from retrograde.loaded_steps import load_step  # few programs load anything

        return load_step(Path(path), backend, threads)
    from retrograde.loaded import load_function

    return load_function(path, backend, threads, trust)
