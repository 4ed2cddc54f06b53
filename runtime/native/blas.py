"""The BLAS of NumPy's wheel, else of SciPy's -> functions of a copy that only this package uses.

The copy is another file under the cache folder, so the system loads it beside the original: with
one thread of its own, and with settings that nobody else sees or changes.  RETROGRADE_BLAS says who
computes products: `own` for compiled kernels, `blas`, or `auto` for what `preferred` says.
Invariant: the thread count of the BLAS that NumPy calls is never touched.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import itertools
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from retrograde.compiler.errors import DeviceError
from retrograde.runtime.native import cache as disk
from retrograde.runtime.native.toolchain import search

DTYPES = ("f32", "f64")
CHOICES = ("auto", "own", "blas")
_LETTERS = {"f32": "s", "f64": "d"}
_NAMES = (
    "cblas_dgemm", "cblas_sgemm", "openblas_set_num_threads", "openblas_get_num_threads",
    "openblas_get_config", "openblas_get_corename",
)  # fmt: skip
_PREFIXES, _SUFFIXES = ("scipy_", ""), ("64_", "_64", "")


class Unusable(Exception):
    """Why a library is not used."""


@dataclass(frozen=True)
class Blas:
    """A private copy of `origin`.  `products` has for each dtype the address of its cblas_?gemm and
    whether that takes sizes of 64 bits."""

    origin: str
    version: str
    kernels: str  # the processor that its code was chosen for, such as "Haswell"
    products: dict[str, tuple[int, int]]
    library: ctypes.CDLL = field(repr=False)  # its functions live as long as it does

    def describe(self) -> str:
        """The library on one line."""
        bits = 64 if self.products["f64"][1] else 32
        return (
            f"OpenBLAS {self.version}, {self.kernels} kernels, {bits}-bit sizes, "
            f"a copy of {self.origin}"
        )


def dtypes() -> tuple[str, ...]:
    """The dtypes whose products a BLAS computes.

    Raises DeviceError where RETROGRADE_BLAS asks for what is not there."""
    return choice()[0]


def choice() -> tuple[tuple[str, ...], str]:
    """The dtypes whose products a BLAS computes, and why."""
    wanted = os.environ.get("RETROGRADE_BLAS") or "auto"
    if wanted not in CHOICES:
        raise DeviceError(f"RETROGRADE_BLAS is {wanted!r}: set it to auto, own or blas")
    if wanted == "own":
        return (), "RETROGRADE_BLAS is own"
    if wanted == "blas":
        blas, reason = find()
        if blas is None:
            raise DeviceError(
                f"RETROGRADE_BLAS is blas, and there is none to use ({reason}): set it to auto"
            )
        return DTYPES, "RETROGRADE_BLAS is blas"
    found, _ = search()
    taken, why = preferred("" if found is None else found.vectors)
    if taken and find()[0] is None:
        return (), f"{why}, but {find()[1]}"
    return taken, why


def preferred(vectors: str) -> tuple[tuple[str, ...], str]:
    """The dtypes for which a BLAS is faster than kernels compiled for these vectors, and why.

    Measured on one core, products of 128 to 1024 rows and columns, our kernels to OpenBLAS: with
    AVX-512 1.1 to 1.4 in f64 and 1.0 to 1.1 in f32, with AVX2 0.95 to 1.1 in both; portable
    ones reach 0.9 to 1.1 of its SSE kernels and half of its AVX kernels."""
    if vectors == "portable":
        return DTYPES, "kernels compiled here have short vectors and no fused multiply-add"
    if not vectors:
        return (), "there is no compiler"
    return (), f"kernels compiled for {vectors} are at least as fast"


def products() -> dict[str, tuple[int, int]]:
    """By dtype the address of a product and whether its sizes have 64 bits; none without BLAS."""
    blas, _ = find()
    return {} if blas is None else blas.products


def find() -> tuple[Blas | None, str]:
    """The BLAS, else why there is none; looked for once."""
    return _find(disk.folder())


@cache
def _find(_place: Path) -> tuple[Blas | None, str]:
    reasons = []
    for origin in _candidates():
        try:
            return _copied(origin), ""
        except (Unusable, OSError, DeviceError) as error:
            reasons.append(f"{origin}: {error}")
    return None, "; ".join(reasons) or "neither NumPy nor SciPy has OpenBLAS in it"


def _candidates() -> Iterator[str]:
    """OpenBLAS libraries of this process: those that NumPy loaded, then SciPy's."""
    from threadpoolctl import threadpool_info  # type: ignore[import-untyped]

    np.ones((2, 2)) @ np.ones((2, 2))  # loads what is loaded lazily
    seen: set[str] = set()
    for module in ("numpy", "scipy.linalg.blas"):
        importlib.import_module(module)
        for pool in threadpool_info():
            path = pool["filepath"]
            if pool.get("internal_api") == "openblas" and path not in seen:
                seen.add(path)
                yield path


# --- the copy


def _copied(origin: str) -> Blas:
    about = os.stat(origin)
    facts = f"{os.path.realpath(origin)} {about.st_size} {about.st_mtime_ns}"
    stem = f"blas-{hashlib.sha256(facts.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}"
    path = disk.fetch(stem, ".so", lambda scratch: _copy(origin, scratch / f"{stem}.so"))
    try:
        # What the copy asks of itself it must not get from another BLAS with the same names.
        mode = os.RTLD_NOW | os.RTLD_LOCAL | getattr(os, "RTLD_DEEPBIND", 0)
        library = ctypes.CDLL(os.fspath(path), mode=mode)
    finally:
        disk.release(path)
    return _opened(origin, library)


def _copy(origin: str, to: Path) -> None:
    shutil.copyfile(origin, to)


def _opened(origin: str, library: ctypes.CDLL) -> Blas:
    prefix, suffix = _spelling(library)

    def named(name: str) -> Any:
        return library[f"{prefix}openblas_{name}{suffix}"]

    named("set_num_threads")(1)
    if named("get_num_threads")() != 1:
        raise Unusable("its copy keeps more than one thread")
    stop = getattr(library, "blas_thread_shutdown_", None)
    if stop is not None:  # the threads that it began to wait with when it was loaded
        stop()
    config, kernels = named("get_config"), named("get_corename")
    config.restype = kernels.restype = ctypes.c_char_p
    words = (config() or b"").decode("ascii", "replace").split()
    wide = int("USE64BITINT" in words)
    found = {}
    for dtype, letter in _LETTERS.items():
        function = library[f"{prefix}cblas_{letter}gemm{suffix}"]
        _try(function, wide, dtype)
        found[dtype] = ctypes.cast(function, ctypes.c_void_p).value or 0, wide
    version = words[1] if words[:1] == ["OpenBLAS"] and len(words) > 1 else "of unknown version"
    name = (kernels() or b"unknown").decode("ascii", "replace")
    return Blas(origin, version, name, found, library)


def _spelling(library: ctypes.CDLL) -> tuple[str, str]:
    """What stands before and behind its names: wheels have their own, so that two may be loaded."""
    for prefix, suffix in itertools.product(_PREFIXES, _SUFFIXES):
        if all(hasattr(library, f"{prefix}{name}{suffix}") for name in _NAMES):
            return prefix, suffix
    raise Unusable("it does not have the names of an OpenBLAS")


def _try(function: Any, wide: int, dtype: str) -> None:
    """One small product: an interface that is not what it says shows in the result."""
    real = ctypes.c_float if dtype == "f32" else ctypes.c_double
    size, pointer = ctypes.c_int64 if wide else ctypes.c_int, ctypes.c_void_p
    function.restype = None
    function.argtypes = [
        *[ctypes.c_int] * 3, *[size] * 3, real, pointer, size, pointer, size, real, pointer, size,
    ]  # fmt: skip
    a = np.arange(15, dtype=dtype.replace("f32", "f4").replace("f64", "f8")).reshape(5, 3)
    b = a.reshape(3, 5)[:, ::-1].copy()
    c = np.full((5, 5), np.nan, a.dtype)
    at = [x.ctypes.data for x in (a, b, c)]
    function(101, 111, 111, 5, 5, 3, 1.0, at[0], 3, at[1], 5, 0.0, at[2], 5)
    if not np.array_equal(c, (a[:, :, None] * b[None]).sum(1)):
        raise Unusable(f"its product of {dtype} is wrong: {sys.byteorder} {wide=}")
