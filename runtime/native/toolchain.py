"""C compilers: C source -> a shared library, by the first compiler of the ladder that works.

The ladder: RETROGRADE_CC, cc, gcc, clang, zig (on the path or as the package `ziglang`).  One is
taken when a small program that it compiles with our flags runs and computes as IEEE 754 says.
Invariant: what was compiled from other source, by another compiler, with other flags or for another
processor is never loaded.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from retrograde.compiler.errors import DeviceError, Notice
from retrograde.runtime.native import cache as disk
from retrograde.runtime.native import probe

FORMAT = 1  # of what is kept: another number, and nothing kept before is used

# They reorder sums, and take NaN and infinities for impossible; but masks are -inf.
_FORBIDDEN = re.compile(
    r"-Ofast|-ffast-math|-funsafe-math-optimizations|-fassociative-math|-ffinite-math-only"
    r"|-freciprocal-math|-fno-signed-zeros|-ffp-model=(fast|aggressive)|-mdaz-ftz"
)
# Variables that change what a compiler finds and makes.
_VARIABLES = (
    "CPATH", "C_INCLUDE_PATH", "LIBRARY_PATH", "COMPILER_PATH", "GCC_EXEC_PREFIX",
    "CCC_OVERRIDE_OPTIONS", "SDKROOT", "MACOSX_DEPLOYMENT_TARGET",
)  # fmt: skip
_ADVICE = (
    "Install one (Debian, Ubuntu: apt install gcc; Fedora: dnf install gcc; macOS: xcode-select "
    "--install; anywhere: pip install ziglang), or name one by RETROGRADE_CC"
)

_told: list[bool] = []  # that there is no compiler
_provided: dict[str, bytes] = {}  # libraries by the digest of their source


@dataclass(frozen=True)
class Toolchain:
    """A compiler that works: how it is called, and with which flags.

    `vectors` is the width that generated code chooses: "AVX-512", "AVX2", "NEON" or "portable".
    """

    command: tuple[str, ...]
    version: str
    kind: str  # "gcc", "clang" or "zig"
    flags: tuple[str, ...]
    vectors: str = "portable"

    def describe(self) -> str:
        """The compiler on one line."""
        return f"{self.version}, {shlex.join(self.command)}"


def find_toolchain() -> Toolchain | None:
    """The first compiler that works; None, with one notice a process, where there is none.

    Raises DeviceError if RETROGRADE_CC names one that does not work."""
    found, refused = search()
    if found is None:
        _tell_missing(refused)
    return found


def search() -> tuple[Toolchain | None, tuple[str, ...]]:
    """The first compiler that works, and why those before it do not; says nothing about it."""
    chosen = os.environ.get("RETROGRADE_CC", "")
    return _search(chosen, os.environ.get("PATH"), disk.folder())


def shared_library(source: str, toolchain: Toolchain | None, *, name: str) -> Path:
    """The shared library of a C source, compiled or from the cache; `load` it next.

    `name` is the beginning of the file's name.  May be called from several threads.  Raises
    DeviceError where there is no compiler, or where it refuses the source.
    """
    given = _provided.get(source_digest(source)) if _provided else None
    if given is not None:
        return _given(given)
    compiler = needed() if toolchain is None else toolchain
    stem = f"{_plain(name)}-{_key(source, compiler)}"
    return disk.fetch(stem, ".so", lambda scratch: _compile(source, compiler, scratch, stem))


def needed() -> Toolchain:
    """The compiler that works.  Raises DeviceError where there is none."""
    toolchain = find_toolchain()
    if toolchain is None:
        raise DeviceError(f"there is no C compiler. {_ADVICE}; or use backend='numpy'")
    return toolchain


def provide(digest: str, library: bytes) -> None:
    """From now on `library` is what `shared_library` makes of the source with this digest."""
    _provided[digest] = library


def is_provided(source: str) -> bool:
    """Whether `provide` gave the library of a source."""
    return source_digest(source) in _provided


def source_digest(source: str) -> str:
    """Names a source, for `provide`."""
    return hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()


def library_bytes(source: str, *, name: str) -> bytes:
    """The shared library of a C source, as it lies in the file."""
    path = shared_library(source, None, name=name)
    try:
        return path.read_bytes()
    finally:
        disk.release(path)


def machine() -> list[str]:
    """What compiled code depends on: the system, the binary interface, the processor."""
    return list(_machine())


def _given(library: bytes) -> Path:
    stem = f"given-{hashlib.sha256(library).hexdigest()[:32]}"
    return disk.fetch(stem, ".so", lambda scratch: _put(scratch / f"{stem}.so", library))


def _put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def load(path: Path) -> ctypes.CDLL:
    """The library at a path from `shared_library`; calls of its functions release the GIL."""
    try:
        return ctypes.CDLL(os.fspath(path), mode=os.RTLD_NOW | os.RTLD_LOCAL)
    except OSError as error:
        raise DeviceError(
            f"compiled code cannot be loaded ({error}). If {Path(path).parent} is on a file system "
            "that forbids to run programs, set RETROGRADE_CACHE_DIR to a folder on another one; "
            "or use backend='numpy'"
        ) from error
    finally:
        disk.release(Path(path))


# --- finding


@cache
def _search(
    chosen: str, path: str | None, place: Path
) -> tuple[Toolchain | None, tuple[str, ...]]:
    if chosen.strip():
        return _chosen(chosen), ()
    refused: list[str] = []
    for command in _ladder():
        try:
            return _probed(command), tuple(refused)
        except probe.Unusable as reason:
            refused.append(f"{shlex.join(command)}: {reason}")
    return None, tuple(refused)


def _chosen(text: str) -> Toolchain:
    try:
        command = shlex.split(text)
    except ValueError as error:
        raise DeviceError(
            f"RETROGRADE_CC is {text!r}, no command: {error}. Write it as for a shell"
        ) from None
    program = _which(command[0])
    if program is None:
        raise DeviceError(
            f"RETROGRADE_CC is {text!r}: there is no such program. Name a C compiler, or unset it"
        )
    fast = next((word for word in command if _FORBIDDEN.match(word)), None)
    if fast is not None:
        raise DeviceError(
            f"RETROGRADE_CC is {text!r}: {fast} changes results, and NaN and infinities would no "
            "longer travel. Leave it out"
        )
    try:
        return _probed((program, *command[1:]))
    except probe.Unusable as reason:
        raise DeviceError(
            f"RETROGRADE_CC is {text!r}, which cannot be used: {reason}\nName another C compiler, "
            "unset it, or use backend='numpy'"
        ) from None


def _ladder() -> Iterator[tuple[str, ...]]:
    for name in ("cc", "gcc", "clang"):
        program = _which(name)
        if program is not None:
            yield (program,)
    zig = _which("zig") or _packaged_zig()
    if zig is not None:
        yield (zig, "cc")


def _which(name: str) -> str | None:
    """The program of that name; absolute, because it is to run elsewhere."""
    program = shutil.which(name)
    return None if program is None else os.path.abspath(program)


def _packaged_zig() -> str | None:
    """The compiler in the package `ziglang`: what `python -m ziglang` runs."""
    spec = importlib.util.find_spec("ziglang")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        program = shutil.which("zig", path=folder)
        if program is not None:
            return program
    return None


def _tell_missing(refused: tuple[str, ...]) -> None:
    if _told:
        return
    _told.append(True)
    tried = "\n".join(refused) or "cc, gcc, clang and zig are not on the PATH"
    warnings.warn(
        f"no C compiler works here, so the NumPy device runs everything, more slowly. {_ADVICE}. "
        f"What was tried:\n{tried}",
        Notice,
        stacklevel=3,
    )


# --- probing


def _probed(command: tuple[str, ...]) -> Toolchain:
    """What the compiler is and takes: from the cache, else by trying; raises probe.Unusable."""
    wanted = (probe.native_flag(command), *probe.REQUIRED, *probe.OPTIONAL)
    stem = f"toolchain-{_digest(command, 'toolchain', probe.PROGRAM, *wanted)}"
    path = disk.fetch(stem, ".txt", lambda scratch: _probe(command, scratch, stem))
    try:
        facts = json.loads(path.read_bytes())
    finally:
        disk.release(path)
    return Toolchain(
        tuple(facts["command"]),
        facts["version"],
        facts["kind"],
        tuple(facts["flags"]),
        facts["vectors"],
    )


def _probe(command: tuple[str, ...], scratch: Path, stem: str) -> None:
    version = probe.version(command)
    kind, vectors, flags = probe.accepted(command, scratch)
    if probe.is_zig(command):
        zig = command[: command.index("cc")]
        kind, version = "zig", f"zig {probe.version(zig, 'version')}, {version}"
    facts = Toolchain(command, version, kind, flags, vectors)
    (scratch / f"{stem}.txt").write_text(json.dumps(asdict(facts)), encoding="utf-8")


# --- compiling


def _compile(source: str, toolchain: Toolchain, scratch: Path, stem: str) -> None:
    (scratch / f"{stem}.c").write_text(source, encoding="utf-8", errors="surrogateescape")
    files = (f"{stem}.c", "-shared", "-o", f"{stem}.so", "-lm")
    status, said = probe.run((*toolchain.command, *toolchain.flags, *files), scratch, allowed=None)
    if not status and (scratch / f"{stem}.so").is_file():
        return
    (scratch / f"{stem}.log").write_text(said, encoding="utf-8", errors="replace")
    kept = scratch.parent / f"{stem}.c"
    raise DeviceError(
        f"the C compiler refuses generated code: {toolchain.describe()} ends with status {status}. "
        "This is a fault of Retrograde or of the compiler, not of your code: please report it with "
        f"{kept}; until then use backend='numpy', or another compiler by RETROGRADE_CC.\n"
        f"{probe.first_lines(said)}"
    )


# --- keys


def _plain(name: str) -> str:
    """The beginning of a file's name, whatever `name` holds."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:40] or "code"


def _key(source: str, toolchain: Toolchain) -> str:
    return _digest(
        toolchain.command, "library", source, toolchain.kind, toolchain.version, *toolchain.flags
    )


def _digest(command: tuple[str, ...], *parts: str) -> str:
    """Names what a compiler makes of `parts` on this machine."""
    hashed = hashlib.sha256()
    count = str(len(command))
    compiler = (count, *command, *_programs(command), *_variables())
    for part in (str(FORMAT), *_machine(), *compiler, *parts):
        data = part.encode("utf-8", "surrogateescape")
        hashed.update(len(data).to_bytes(8, "little"))
        hashed.update(data)
    return hashed.hexdigest()[:32]


def _programs(command: tuple[str, ...]) -> Iterator[str]:
    """The files that the words of a command name, so that an updated compiler is another one."""
    for word in command:
        program = None if word.startswith("-") else shutil.which(word)
        if program is not None:
            real = os.path.realpath(program)
            found = os.stat(real)
            yield f"{program} {real} {found.st_mtime_ns} {found.st_size}"


def _variables() -> Iterator[str]:
    for name in _VARIABLES:
        yield f"{name}={os.environ.get(name)}"


@cache
def _machine() -> tuple[str, ...]:
    """The processor and the binary interface."""
    libc = os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in os.confstr_names else ""
    system = os.uname()
    pointer = ctypes.sizeof(ctypes.c_void_p)
    return (sys.platform, sys.byteorder, system.machine, str(pointer), str(libc), *_processor())


def _processor() -> Iterator[str]:
    """Model and features of the first processor; without /proc, the name of the machine."""
    names = {
        "vendor_id", "cpu family", "model", "model name", "stepping", "flags", "Features", "cpu",
        "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "isa", "uarch",
    }  # fmt: skip
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if not line.strip():  # the next processor
                    return
                if line.partition(":")[0].strip() in names:
                    yield line.strip()
    except OSError:
        system = os.uname()
        yield f"{system.nodename} {system.version}"
