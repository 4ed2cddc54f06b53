"""A list of launches -> memory written, by threads that all walk the list (see pool.c).

Invariant: after a run, failed or not, the argument tables hold what they held before it.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import DeviceError
from retrograde.runtime.native.toolchain import load, shared_library

Table = npt.NDArray[np.int64]

SPIN = 300e-6  # seconds that a worker stays awake after its last work
_LINE = 16  # numbers; rows of tables that share no line of cache
_NO_THREADS = -1
TOO_DEEP = -(2**63)  # the fault of a list whose calls and loops nest deeper than 64


class Code(IntEnum):
    """What an instruction does, and what stands in the seven numbers behind it."""

    LAUNCH = 0  # kernel, first argument, items, grain, barrier, spread
    LOOP = 1  # turns, direction (1 or -1), first mover, movers, its END, barrier after each turn
    END = 2  # its LOOP
    TEST = 3  # argument with the address of a byte, target if that is zero
    JUMP = 4  # target
    CALL = 5  # target, start, first mover, movers
    RETURN = 6
    COPY = 7  # arguments with destination, source and number of bytes, barrier
    CHAIN = 8  # blocks, launches behind it (`grain` items of each are a block), barrier
    TURNS = 9  # turns, direction, argument with the address of numbers, CASEs behind it, its END
    CASE = 10  # of the turns with the number that it has behind its TURNS: target, movers as above


class Spread(IntEnum):
    """Who does the items of a launch."""

    SHARED = 0  # all threads, each its share
    OWN = 1  # each thread all of its own: `items` is the argument that holds their number
    FIRST = 2  # thread 0 all of them; a barrier follows


@dataclass(eq=False)
class Fault(Exception):
    """The kernel launched by instruction `index` returned `code`."""

    index: int
    code: int

    def __str__(self) -> str:
        return f"instruction {self.index} failed with code {self.code}"


def table(parts: int, arguments: int) -> Table:
    """Zeros, one row for each thread; rows are padded, so that no two lie on one line of cache."""
    row = max(-(-arguments // _LINE), 1) * _LINE
    flat = np.zeros(parts * row + _LINE, np.int64)
    start = -(flat.ctypes.data // 8) % _LINE
    return flat[start : start + parts * row].reshape(parts, row)


class Pool:
    """Up to `threads` threads, of which the caller of a run is one.

    The others start with the first run that needs them, stay awake for `spin` seconds after their
    last work, and end with the process or the pool.  Several Python threads may call: one run goes
    after the other.  A forked child starts threads of its own.
    """

    def __init__(self, threads: int, spin: float = SPIN) -> None:
        check_count(threads)
        self._library = _library()
        handle = self._library.rg_pool_create(threads, round(spin * 1e9))
        if not handle:
            raise DeviceError("there is no memory for a pool of threads")
        self.threads = threads
        self._handle = ctypes.c_void_p(handle)
        end = weakref.finalize(self, self._library.rg_pool_destroy, self._handle)
        end.atexit = False  # The system ends threads with the process, whatever they wait for.

    def run(
        self,
        code: Table,
        kernels: Table,
        origin: Table,
        work: Table,
        movers: Table | None = None,
    ) -> None:
        """Walks the list once: see `bind`, which checks the list once for many runs."""
        self.bind(code, kernels, origin, work, movers)()

    def bind(
        self,
        code: Table,
        kernels: Table,
        origin: Table,
        work: Table,
        movers: Table | None = None,
    ) -> Callable[[], None]:
        """What runs `code` [n, 8] once, on as many threads as the tables have rows.

        `kernels` [k] are addresses of functions, `movers` [m, 2] arguments and their strides.
        `origin` and `work` [parts, arguments] are equal whenever a run begins: with new arguments,
        write both.  A run releases the GIL; Ctrl-C takes effect after it.  It raises `Fault` if a
        kernel returned something else than 0, and `DeviceError` if there are no threads to be had.
        """
        movers = np.zeros((0, 2), np.int64) if movers is None else movers
        _check(code, (None, 8), "code")
        _check(movers, (None, 2), "movers")
        _check(kernels, (None,), "kernels")
        _check(origin, (None, None), "origin")
        _check(work, origin.shape, "work")
        parts, arguments = origin.shape
        library = self._library
        unsound = library.rg_check(
            _at(code), len(code), len(kernels), _at(movers), len(movers), arguments
        )
        if unsound or not np.all(kernels):
            where = f"instruction {unsound - 1}" if unsound else "a kernel without an address"
            raise ValueError(f"no sound list: {where} of {len(code)}")
        if not 1 <= parts <= self.threads:
            raise ValueError(f"{parts} rows of arguments for a pool of {self.threads} threads")
        run, fault = library.rg_run, ctypes.c_int64()
        numbers: list[Any] = [
            self._handle, _at(code), len(code), _at(kernels), _at(movers), _at(origin), _at(work),
            arguments, parts, ctypes.byref(fault),
        ]  # fmt: skip
        held = (self, code, kernels, movers, origin, work)

        def call() -> None:
            done = run(*numbers)
            if done > 0:
                raise Fault(done - 1, fault.value)
            if done == _NO_THREADS:
                raise DeviceError(
                    f"the system gives no {parts} threads: set RETROGRADE_THREADS to fewer"
                )
            assert done == 0 and held

        return call


_POOLS: dict[int, Pool] = {}


def pool(threads: int | None = None) -> Pool:
    """The pool of that many threads (see `thread_count`) that the whole process shares."""
    count = thread_count() if threads is None else threads
    # No lock, which a fork could leave taken: of two pools made at once one is dropped, unused.
    return _POOLS.get(count) or _POOLS.setdefault(count, Pool(count))


def check_count(threads: int) -> None:
    """Raises DeviceError for a number of threads that no pool has."""
    if not 1 <= threads <= 1024:
        raise DeviceError(f"a pool has 1 to 1024 threads, not {threads}")


def share(items: int, grain: int, parts: int, part: int) -> tuple[int, int]:
    """The items [lo, hi) that thread `part` of `parts` does, cut at multiples of `grain`."""
    low, high = ctypes.c_int64(), ctypes.c_int64()
    _library().rg_share(items, grain, parts, part, ctypes.byref(low), ctypes.byref(high))
    return low.value, high.value


def thread_count() -> int:
    """`RETROGRADE_THREADS`, else the number of cores that this process may use."""
    wanted = os.environ.get("RETROGRADE_THREADS", "").strip()
    if wanted:
        if not wanted.isdecimal() or not 1 <= int(wanted) <= 1024:
            raise DeviceError(
                f"RETROGRADE_THREADS is {wanted!r}: set it to a number from 1 to 1024"
            )
        return int(wanted)
    if hasattr(os, "sched_getaffinity"):
        return min(len(os.sched_getaffinity(0)), 1024)
    return min(os.cpu_count() or 1, 1024)


def _check(array: Table, shape: tuple[int | None, ...], name: str) -> None:
    fits = len(shape) == array.ndim and all(
        wanted is None or wanted == there for wanted, there in zip(shape, array.shape, strict=True)
    )
    if array.dtype != np.int64 or not fits or not array.flags.c_contiguous:
        raise ValueError(f"{name} is {array.dtype}{array.shape}: wanted int64{shape}, contiguous")


def _at(array: Table) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def source() -> str:
    """The C of the pool."""
    return Path(__file__).with_name("pool.c").read_text(encoding="utf-8")


@cache
def _library() -> ctypes.CDLL:
    library = load(shared_library(source(), None, name="pool"))
    i64, pointer = ctypes.c_int64, ctypes.c_void_p
    library.rg_pool_create.restype = pointer
    library.rg_pool_create.argtypes = [i64, i64]
    library.rg_pool_destroy.restype = None
    library.rg_pool_destroy.argtypes = [pointer]
    library.rg_check.restype = i64
    library.rg_check.argtypes = [pointer, i64, i64, pointer, i64, i64]
    library.rg_share.restype = None
    library.rg_share.argtypes = [i64, i64, i64, i64, pointer, pointer]
    library.rg_run.restype = i64
    library.rg_run.argtypes = [pointer, pointer, i64, *[pointer] * 4, i64, i64, pointer]
    return library
