"""One C compiler: its command -> its kind, the flags that it takes, the vectors they choose.

Invariant: a compiler is taken only if a small program that it compiled with all of these flags has
run here and computed as IEEE 754 says, without contracting products and sums.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
from pathlib import Path

from retrograde.compiler.errors import DeviceError

# Without these the bits would not be what the program says; a compiler has to take them.
REQUIRED = ("-O2", "-ftree-vectorize", "-std=gnu11", "-fPIC", "-ffp-contract=off", "-fwrapv")
OPTIONAL = (
    "-mprefer-vector-width=512", "-fno-math-errno", "-fno-trapping-math", "-pthread", "-pipe",
)  # fmt: skip
_LINES_SHOWN = 12
_ALLOWED_SECONDS = 120.0  # for the first run of a compiler, which may have to unpack itself

PROGRAM = """\
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#define FAST 1
#elif defined(__FLT_EVAL_METHOD__) && (__FLT_EVAL_METHOD__ == 1 || __FLT_EVAL_METHOD__ == 2)
#define FAST 1
#else
#define FAST 0
#endif
#if defined(__AVX512F__)
#define VECTORS "AVX-512"
#elif defined(__AVX2__)
#define VECTORS "AVX2"
#elif defined(__ARM_NEON)
#define VECTORS "NEON"
#else
#define VECTORS "portable"
#endif
#if defined(__clang__)
#define KIND "clang"
#else
#define KIND "gcc"
#endif

typedef float f32x8 __attribute__((vector_size(32)));

static volatile float one_and_a_bit = 1.000244140625f, sum = -1.00048828125f;

/* On its own: a product that has another use is not contracted. */
__attribute__((noinline)) static float rounded_twice(float a, float b, float c) {
  return a * b + c;
}

int main(void) {
  float a = one_and_a_bit, zero = 0 * a;
  int contracted = rounded_twice(a, a, sum) != 0; /* 2^-24 if the product is not rounded */
  float missing = zero / zero;
  f32x8 v = {a, a, a, a, a, a, a, a};
  v = v * v;
  int wrong = missing == missing || v[7] != a * a || __builtin_fmaf(a, a, sum) == 0;
  printf("%d %d %s %s\\n", (int)sizeof(void *), FAST | contracted | wrong, KIND, VECTORS);
  return 0;
}
"""


class Unusable(DeviceError):
    """Why a compiler cannot be taken."""


class Inexact(Unusable):
    """It changes results: a matter of the compiler, not of one flag that could be left out."""


def accepted(command: tuple[str, ...], scratch: Path) -> tuple[str, str, tuple[str, ...]]:
    """The kind of compiler, the vectors, and the flags that it takes."""
    wished = (native_flag(command), *OPTIONAL)
    try:
        kind, vectors = _try(command, (*REQUIRED, *wished), scratch)
        return kind, vectors, (*REQUIRED, *wished)
    except Inexact:
        raise
    except Unusable:
        kind, vectors = _try(command, REQUIRED, scratch)  # if not even so, the reason is told
    taken: tuple[str, ...] = REQUIRED
    for flag in wished:
        try:
            kind, vectors = _try(command, (*taken, flag), scratch)
            taken = (*taken, flag)
        except Unusable:
            continue
    return kind, vectors, taken


def native_flag(command: tuple[str, ...]) -> str:
    """How the compiler is told to use all that this processor has."""
    arm = os.uname().machine in ("arm64", "aarch64", "ppc64le")
    return "-mcpu=native" if arm or is_zig(command) else "-march=native"


def is_zig(command: tuple[str, ...]) -> bool:
    """Whether it is `zig cc` or `python -m ziglang cc`."""
    return "cc" in command[1:] and (Path(command[0]).name == "zig" or "ziglang" in command)


def _try(command: tuple[str, ...], flags: tuple[str, ...], scratch: Path) -> tuple[str, str]:
    """Compiles the probe and runs it: the kind of compiler and the vectors."""
    (scratch / "probe.c").write_text(PROGRAM, encoding="utf-8")
    (scratch / "probe").unlink(missing_ok=True)
    status, said = run((*command, *flags, "probe.c", "-o", "probe", "-lm"), scratch)
    if status:
        raise Unusable(f"it refuses a small program:\n{first_lines(said)}")
    if not (scratch / "probe").is_file():
        raise Unusable("it makes no program of a C source")
    try:
        status, said = run((str(scratch / "probe"),), scratch)
    except Unusable as reason:
        raise Unusable(
            f"{reason}. If programs may not run from there, set RETROGRADE_CACHE_DIR to a folder "
            "where they may"
        ) from None
    match = re.fullmatch(r"(\d+) (\d) (\w+) ([\w-]+)", said.strip())
    if status or match is None:
        raise Unusable(f"a small program from it fails (status {status}) {first_lines(said)}")
    if int(match[1]) != ctypes.sizeof(ctypes.c_void_p):
        raise Unusable(f"its pointers have {match[1]} bytes, those of this Python do not")
    if match[2] != "0":
        raise Inexact("it does not compute as IEEE 754 says, or contracts products and sums")
    return match[3], match[4]


def version(command: tuple[str, ...], option: str = "--version") -> str:
    """The first line of what the compiler says of itself."""
    status, said = run((*command, option), None)
    lines = said.strip().splitlines()
    return lines[0] if lines and not status else "of unknown version"


def run(
    command: tuple[str, ...], folder: Path | None, allowed: float | None = _ALLOWED_SECONDS
) -> tuple[int, str]:
    """The exit status of a program and all that it said; raises OSError on a full disk."""
    import subprocess

    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=allowed,
        )
    except subprocess.TimeoutExpired:
        raise Unusable(f"{command[0]} does not end within {allowed:.0f} seconds") from None
    except OSError as error:  # no disk is full: this is about the program
        raise Unusable(f"{command[0]} cannot be run: {error.strerror or error}") from error
    if done.returncode and "No space left on device" in done.stdout:
        raise OSError(errno.ENOSPC, "No space left on device")
    return done.returncode, done.stdout


def first_lines(text: str) -> str:
    """The beginning of a compiler's message: what follows is mostly its consequence."""
    lines = text.strip().splitlines()
    more = [f"… {len(lines) - _LINES_SHOWN} more lines"] if len(lines) > _LINES_SHOWN else []
    return "\n".join([*lines[:_LINES_SHOWN], *more])
