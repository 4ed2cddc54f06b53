"""C sources that will be wanted -> their libraries in the cache, compiled while other work goes on.

Invariant: what is compiled ahead is only ever found in the cache.  A fault is told to who loads the
library, and what was not begun in time is compiled then.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from retrograde.runtime.native import cache as disk
from retrograde.runtime.native.pool import thread_count
from retrograde.runtime.native.toolchain import (
    Toolchain,
    is_provided,
    shared_library,
    source_digest,
)

_begun: set[str] = set()  # digests of sources


def begin(sources: Sequence[tuple[str, str]], toolchain: Toolchain | None) -> None:
    """Begins to compile those (name, source) pairs that were not begun before, in their order, and
    returns at once.

    One processor is left to the caller.  A process that ends waits for nothing."""
    wanted = []
    for name, text in sources:
        digest = source_digest(text)
        if digest not in _begun and not is_provided(text):
            _begun.add(digest)
            wanted.append((name, text))
    left = iter(wanted)
    taking = threading.Lock()

    def work() -> None:
        while True:
            with taking:
                found = next(left, None)
            if found is None:
                return
            name, text = found
            try:
                disk.release(shared_library(text, toolchain, name=name))
            except Exception:
                return  # told to who loads it

    for _ in range(max(1, min(len(wanted), thread_count() - 1))):
        threading.Thread(target=work, name="retrograde-ahead", daemon=True).start()
