"""`retrograde doctor`: this machine -> what Retrograde finds on it, one fact a line."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_LIBRARIES = ("numpy", "scipy", "ml_dtypes", "optree", "safetensors", "networkx", "graphviz")
_VARIABLES = (
    "VERIFY", "DUMP", "POISON", "NO_REUSE", "RED_ZONES", "THREADS", "CC", "CACHE_DIR", "CACHE_MB",
    "CONFIG", "BACKEND", "BLAS", "WITHOUT", "STOP_AFTER",
)  # fmt: skip


def findings() -> str:
    """The facts, aligned."""
    facts = list(_facts())
    wide = max(len(name) for name, _ in facts)
    return "\n".join(f"{name:<{wide}}  {text}" for name, text in facts)


def _facts() -> Iterator[tuple[str, str]]:
    yield "retrograde", _version("retrograde")
    yield "python", f"{platform.python_version()} ({sys.executable})"
    yield "system", platform.platform()
    yield "processor", _processor()
    yield "cores", f"{_usable_cores()} usable of {os.cpu_count()}"
    yield "memory", _memory()
    yield from _blas()
    for name in _LIBRARIES:
        yield name, _version(name)
    yield "cupy", _cupy()
    yield "dot", shutil.which("dot") or "not found: pictures are drawn plainly"
    yield from _compiler()
    yield from _products()
    yield "cache", _cache()
    for name in _VARIABLES:
        value = os.environ.get(f"RETROGRADE_{name}")
        if value is not None:
            yield f"RETROGRADE_{name}", value


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return "unknown"
    return f"{total / 2**30:.1f} GiB"


def _blas() -> Iterator[tuple[str, str]]:
    """The libraries that matrix products run in, with their threads."""
    import numpy as np
    from threadpoolctl import threadpool_info  # type: ignore[import-untyped]

    np.ones((2, 2)) @ np.ones((2, 2))  # loads what is loaded lazily
    found = [pool for pool in threadpool_info() if pool.get("user_api") == "blas"]
    for pool in found:
        kernel = f", {pool['architecture']}" if pool.get("architecture") else ""
        yield "blas", (
            f"{pool.get('internal_api')} {pool.get('version')}{kernel}, "
            f"{pool.get('num_threads')} threads ({pool.get('filepath')})"
        )
    if not found:
        yield "blas", "none found: matrix products will be slow"


def _cupy() -> str:
    if importlib.util.find_spec("cupy") is None:
        return "not installed: only the CPU is used (pip install 'retrograde[gpu]')"
    from retrograde.compiler.errors import DeviceError
    from retrograde.runtime.device import get_device

    try:
        get_device("cupy")
    except DeviceError as error:
        return f"not usable: {error}"
    return "usable"


def _compiler() -> Iterator[tuple[str, str]]:
    """The C compiler, its flags, and the vectors that they choose."""
    from retrograde.compiler.errors import DeviceError
    from retrograde.runtime.native.toolchain import search

    try:
        found, refused = search()
    except DeviceError as error:
        yield "compiler", f"not usable: {error}"
        return
    for reason in refused:
        yield "compiler", f"not usable: {reason}"
    if found is None:
        yield "compiler", "none: only NumPy is used (apt install gcc, or pip install ziglang)"
        return
    yield "compiler", found.describe()
    yield "flags", " ".join(found.flags)
    yield "vectors", found.vectors


def _products() -> Iterator[tuple[str, str]]:
    """Who computes the matrix products of compiled code, and why."""
    from retrograde.compiler.errors import DeviceError
    from retrograde.runtime.native import blas

    try:
        taken, why = blas.choice()
    except DeviceError as error:
        yield "products", f"refused: {error}"
        return
    rest = [name for name in (*blas.DTYPES, "f16", "bf16") if name not in taken]
    who = [f"{', '.join(taken)} by BLAS but for loops"] if taken else []
    who += [f"{', '.join(rest)} by compiled kernels"] if rest else []
    yield "products", f"{'; '.join(who)} ({why})"
    found, reason = blas.find()
    yield "products blas", f"none: {reason}" if found is None else found.describe()


def _cache() -> str:
    from retrograde.cli.cache import state
    from retrograde.compiler.errors import DeviceError

    try:
        return state()
    except DeviceError as error:
        return f"refused: {error}"
