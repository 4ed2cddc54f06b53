"""The polynomials of compiler/codegen/csource/math.h: functions and intervals -> coefficients.

    python tools/minimax.py [name ...]

Remez's exchange algorithm: the polynomial whose weighted error |w(z) (g(z) - p(z))| is smallest at
its worst place, found by solving for equal errors of alternating sign at degree + 2 places and
moving those to the extremes of the error.  The weight makes it the relative error of the function
that is built on p.  Coefficients are rounded to the type they serve, lowest power first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mpmath
import numpy as np
from mpmath import mp, mpf

mp.dps = 60
Real = Any  # an mpf: mpmath has no types
GRID = 1200  # places between which an extreme of the error is sought


@dataclass(frozen=True)
class Task:
    """p(z) of `degree` for g on [low, high] with weight w, in f32 or f64."""

    g: Callable[[Real], Real]
    w: Callable[[Real], Real]
    low: Real
    high: Real
    degree: int
    bits: int = 64


def minimax(task: Task, rounds: int = 30) -> tuple[list[Real], Real]:
    """The coefficients, lowest power first, and the weighted error."""
    n = task.degree + 2
    low, high = mpf(task.low), mpf(task.high)
    centre, half = (low + high) / 2, (high - low) / 2
    grid = [centre - half * mpmath.cos(mp.pi * i / GRID) for i in range(GRID + 1)]
    values = [(z, task.g(z), task.w(z)) for z in grid]
    places = [round(i * GRID / (n - 1)) for i in range(n)]
    for _ in range(rounds):
        rows, right = mpmath.matrix(n, n), mpmath.matrix(n, 1)
        for i, place in enumerate(places):
            z, g, w = values[place]
            for k in range(n - 1):
                rows[i, k] = ((z - centre) / half) ** k
            rows[i, n - 1] = (-1) ** i / w
            right[i] = g
        solved = mpmath.lu_solve(rows, right)
        p = [solved[k] for k in range(n - 1)]
        errors = [w * (g - mpmath.polyval(p[::-1], (z - centre) / half)) for z, g, w in values]
        new = _extremes(errors, n)
        worst = max(map(abs, errors))
        if new == places or worst <= abs(solved[n - 1]) * mpf("1.001"):
            break
        places = new
    return _shifted(p, centre, half), worst


def _extremes(errors: list[Real], n: int) -> list[int]:
    """`n` neighbouring places of alternating sign where the error is extreme."""
    found: list[int] = []
    for i, e in enumerate(errors):
        if found and (errors[found[-1]] > 0) == (e > 0):
            if abs(e) > abs(errors[found[-1]]):
                found[-1] = i
        else:
            found.append(i)
    while len(found) > n:
        found.pop(0 if abs(errors[found[0]]) < abs(errors[found[-1]]) else -1)
    if len(found) < n:
        raise ValueError("too few extremes: a lower degree is enough, or the grid is too coarse")
    return found


def _shifted(p: list[Real], centre: Real, half: Real) -> list[Real]:
    """The coefficients in z of a polynomial in (z - centre) / half."""
    out = [mpf(0)]
    for c in reversed(p):
        scaled = [a / half for a in out]
        out = [mpf(0), *scaled]
        for i, a in enumerate(scaled):
            out[i] -= a * centre
        out[0] += c
    return out[: len(p)]


def _relative(f: Callable[[Real], Real]) -> Callable[[Real], Real]:
    return lambda z: 1 / abs(f(z))


def _exp(z: Real) -> Real:
    """(e^z - 1 - z) / z^2, and at 0 its limit."""
    return mpmath.hyp1f1(1, 3, z) / 2


def _log(z: Real) -> Real:
    """(log(1 + z) - z + z^2 / 2) / z^3."""
    return mpmath.hyp2f1(1, 3, 4, -z) / 3


def _atanh(z: Real) -> Real:
    """2 (atanh(s) / s - 1) / s^2 with z = s^2."""
    return 2 * mpmath.hyp2f1(1, 1.5, 2.5, z) / 3


def _erf(z: Real) -> Real:
    """erf(x) / x - 1 with z = x^2."""
    return 2 / mpmath.sqrt(mp.pi) * mpmath.hyp1f1(0.5, 1.5, -z) - 1


def _sin(z: Real) -> Real:
    """(sin(x) - x) / x^3 with z = x^2."""
    return -mpmath.hyper([1], [2, 2.5], -z / 4) / 6


def _cos(z: Real) -> Real:
    """(cos(x) - 1 + x^2 / 2) / x^4 with z = x^2."""
    return mpmath.hyper([1], [2.5, 3], -z / 4) / 24


def _atan(z: Real) -> Real:
    """(atan(x) - x) / x^3 with z = x^2."""
    return -mpmath.hyp2f1(1, 1.5, 2.5, -z) / 3


def _asin(z: Real) -> Real:
    """(asin(x) - x) / x^3 with z = x^2."""
    return (mpmath.asin(mpmath.sqrt(z)) / mpmath.sqrt(z) - 1) / z if z else mpf(1) / 6


def _erfcx(t: Real) -> Real:
    """(1 + 2x) e^(x^2) erfc(x) with t = (x - 4) / (x + 4)."""
    x = 4 * (1 + t) / (1 - t)
    return (1 + 2 * x) * mpmath.exp(x * x) * mpmath.erfc(x)


def _tanh(z: Real) -> Real:
    """(tanh(x) - x) / x^3 with z = x^2."""
    x = mpmath.sqrt(z)
    return (mpmath.tanh(x) / x - 1) / z if z else -mpf(1) / 3


def _logerfc(x: Real) -> Real:
    return mpmath.log(mpmath.erfc(x))


LN2 = mpmath.log(2)
R = LN2 / 2 * mpf("1.001")  # |z| after a multiple of log 2 is taken away
F = (mpmath.sqrt(mpf("0.5")) - 1) * mpf("1.0001"), (mpmath.sqrt(2) - 1) * mpf("1.0001")
S2 = (F[1] / (2 + F[1])) ** 2 * mpf("1.001")
Q2 = (mp.pi / 4) ** 2 * mpf("1.001")
T2 = (mpmath.sqrt(2) - 1) ** 2 * mpf("1.001")
ERFC_END = mpf(28)


def _one(z: Real) -> Real:
    return mpf(1)


TASKS = {
    # e^z = 1 + z + z^2 p(z), relative to e^z - 1
    "exp_f32": Task(_exp, lambda z: abs(z) + mpf("1e-9"), -R, R, 4, 32),
    "exp_f64": Task(_exp, lambda z: abs(z) + mpf("1e-9"), -R, R, 10),
    "expm1_f32": Task(_exp, lambda z: abs(z) + mpf("1e-9"), -R, R, 5, 32),
    # 2^z = 1 + z p(z)
    "exp2_f32": Task(
        lambda z: LN2 * mpmath.hyp1f1(1, 2, z * LN2), lambda z: abs(z) + mpf("1e-9"),
        mpf("-0.5"), mpf("0.5"), 5, 32,
    ),
    # log(1 + z) = z - z^2 / 2 + z^3 p(z)
    "log_f32": Task(_log, lambda z: z * z + mpf("1e-9"), *F, 8, 32),
    # log(1 + f) = 2 atanh(s), s = f / (2 + f), z = s^2: 2s + s^3 p(z)
    "log_f64": Task(_atanh, lambda z: z + mpf("1e-9"), mpf(0), S2, 6),
    # tanh(x) = x + x^3 p(x^2) up to 0.6
    "tanh_f32": Task(_tanh, lambda z: z + mpf("1e-9"), mpf(0), mpf("0.3601"), 4, 32),
    # erf(x) = x + x p(x^2) up to 1;  erf(x) = 1 - e^p(x) from 1 to 4
    "erf_f32": Task(_erf, _one, mpf(0), mpf("1.0001"), 6, 32),
    "erf_f64": Task(_erf, _one, mpf(0), mpf("1.0001"), 12),
    "erf_tail_f32": Task(_logerfc, mpmath.erfc, mpf(1), mpf(4), 6, 32),
    # erfc(x) = e^(-x^2) p(t) / (1 + 2x), t = (x - 4) / (x + 4), up to 28 (Schonfelder 1978)
    "erfc_f64": Task(_erfcx, _relative(_erfcx), mpf(-1), (ERFC_END - 4) / (ERFC_END + 4), 23),
    # sin(x) = x + x^3 p(x^2), cos(x) = 1 - x^2 / 2 + x^4 p(x^2)
    "sin_f32": Task(_sin, lambda z: z + mpf("1e-9"), mpf(0), Q2, 2, 32),
    "cos_f32": Task(_cos, lambda z: z * z + mpf("1e-9"), mpf(0), Q2, 2, 32),
    "sin_f64": Task(_sin, lambda z: z + mpf("1e-9"), mpf(0), Q2, 5),
    "cos_f64": Task(_cos, lambda z: z * z + mpf("1e-9"), mpf(0), Q2, 5),
    # atan(x) = x + x^3 p(x^2) up to tan(pi / 8), asin(x) = x + x^3 p(x^2) up to 1/2
    "atan_f64": Task(_atan, lambda z: z + mpf("1e-9"), mpf(0), T2, 10),
    "asin_f64": Task(_asin, lambda z: z + mpf("1e-9"), mpf(0), mpf("0.2501"), 12),
}  # fmt: skip


def main(names: list[str]) -> None:
    for name in names or TASKS:
        task = TASKS[name]
        p, worst = minimax(task)
        kind = np.float32 if task.bits == 32 else np.float64
        rounded = [kind(mpmath.nstr(c, 25)) for c in p]
        suffix = "f" if task.bits == 32 else ""
        print(f"{name}: error 2^{float(mpmath.log(worst, 2)):.1f}")
        print("    " + ", ".join(f"{_hex(float(c))}{suffix}" for c in rounded))


def _hex(x: float) -> str:
    """A hexadecimal C constant without trailing zeros."""
    mantissa, exponent = x.hex().split("p")
    return f"{mantissa.rstrip('0').rstrip('.')}p{exponent}"


if __name__ == "__main__":
    main(sys.argv[1:])
