"""What a compiled program certifies about itself: a printable result.

Invariant: `ok` is true only where everything that was compared agrees, and `blame` names what is at
fault first, in the order of the compiler: gradient rule, pass, memory plan, generated code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from retrograde.compiler.errors import VerifyError


@dataclass(frozen=True)
class Compared:
    """One comparison at one size: the worst `error` of it against the `bound` it had to keep.

    `kind`: "function", "gradient", "pass", "plan" or "run"; `what`: which of them."""

    kind: str
    what: str
    sizes: Mapping[str, int]
    error: float
    bound: float
    note: str = ""

    @property
    def ok(self) -> bool:
        return self.error <= self.bound


@dataclass(frozen=True)
class Fault:
    """What is at fault: `part` as in "pass simplify", and what was seen."""

    part: str
    seen: str

    def __str__(self) -> str:
        return f"{self.part}: {self.seen}"


@dataclass(frozen=True)
class Certificate:
    """All comparisons that were made of a program, and what is at fault if any failed.

    `proofs` is what is shown without numbers, of what the outputs see along time; `leaks` what they
    see beyond that, though nobody claimed that they do not."""

    name: str
    compared: tuple[Compared, ...]
    faults: tuple[Fault, ...]
    directions: int
    departures: tuple[str, ...] = ()
    proofs: tuple[str, ...] = ()
    leaks: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether all agrees."""
        return not self.faults and all(c.ok for c in self.compared)

    @property
    def blame(self) -> str | None:
        """The part at fault, such as "pass simplify"; None where nothing is."""
        return self.faults[0].part if self.faults else None

    @property
    def gradients(self) -> int:
        """How many gradients were compared with finite differences."""
        return len({c.what for c in self.compared if c.kind == "gradient"})

    def check(self) -> Certificate:
        """Itself; raises VerifyError where it is not ok."""
        if not self.ok:
            raise VerifyError(str(self))
        return self

    def __str__(self) -> str:
        verdict = "certified" if self.ok else "NOT certified"
        sizes = list(dict.fromkeys(_sizes(c.sizes) for c in self.compared))
        lines = [f"{self.name}: {verdict} (errors of their bounds)"]
        if any(sizes):
            lines.append(f"  at {'; '.join(s for s in sizes if s)}")
        for kind, title in _TITLES.items():
            lines += self._table(kind, title)
        lines += [f"  proven: {text}" for text in self.proofs]
        lines += [f"  {text}" for text in self.leaks]
        lines += [f"  departs: {text}" for text in self.departures]
        lines += [f"  at fault: {fault}" for fault in self.faults]
        return "\n".join(lines)

    def _table(self, kind: str, title: str) -> list[str]:
        found = [c for c in self.compared if c.kind == kind]
        if not found:
            return ["  no gradients in it"] if kind == "gradient" else []
        lines = [f"  {title.format(n=self.directions)}"]
        for what in dict.fromkeys(c.what for c in found):
            own = [c for c in found if c.what == what]
            worst = max(own, key=_used)
            failed = sum(not c.ok for c in own)
            mark = f"  FAILS at {failed} of {len(own)} sizes" if failed else ""
            note = f"  ({worst.note})" if worst.note and failed else ""
            lines.append(f"    {what}: {worst.error:.1e} of {worst.bound:.1e}{mark}{note}")
        return lines


_TITLES = {
    "function": "functions as they are differentiated against those written, in float64",
    "gradient": "gradients against finite differences in float64, in {n} directions",
    "pass": "graphs after all passes against the traced one, in float64",
    "plan": "memory: reads of what was written over",
    "run": "programs against the traced graph in float64",
}


def _used(c: Compared) -> float:
    if c.error != c.error:
        return float("inf")
    return c.error / c.bound if c.bound else (float("inf") if c.error else 0.0)


def _sizes(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={n}" for name, n in sizes.items())
