"""JAX on the CPU with a given number of threads; to be called before the first import of it."""

from __future__ import annotations

import os
from typing import Any


def jax_on(threads: int) -> Any:
    """The module.  Its pools are as large as the processors that it may run on."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if threads == 1:
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, allowed[:threads])
    import jax

    return jax
