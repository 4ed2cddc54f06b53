"""A workload: one problem, who solves it, and what has to hold between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

OWN = "retrograde"


@dataclass(frozen=True)
class Peer:
    """How a library solves the problem: a factory "module:function" and its options.

    `compiles` marks what takes long to be ready: it has a time limit, and no memory is measured."""

    library: str
    factory: str
    options: Mapping[str, Any] = field(default_factory=dict)
    compiles: bool = False


@dataclass(frozen=True)
class Target:
    """What contender `of` has to reach, beside `against`.

    measure  "times faster": medians of ratios, at least
             "of its memory": the share of the temporary memory, at most
             "of its bandwidth": the share of the bandwidth of a copy, at least
             "of its growth": growth of planned memory, for each doubling of the length, at most"""

    measure: str
    of: str
    against: str
    least: float
    aim: float

    @property
    def at_most(self) -> bool:
        return self.measure in ("of its memory", "of its growth")

    def met(self, value: float) -> str:
        """The verdict on a figure."""

        def reached(bound: float) -> bool:
            return value <= bound if self.at_most else value >= bound

        return "aim met" if reached(self.aim) else "met" if reached(self.least) else "NOT MET"


@dataclass(frozen=True)
class Workload:
    """`problem` has tiny() and flops, where memory bounds it also footprint; a name of a contender
    that begins with "retrograde" is one of ours.  `reference` says what right results are, to
    `tolerance`."""

    name: str
    problem: Any
    contenders: Mapping[str, Peer]
    targets: tuple[Target, ...] = ()
    reference: str = "torch"
    tolerance: float = 1e-3
    note: str = ""

    @property
    def footprint(self) -> int:
        return int(getattr(self.problem, "footprint", 0))

    @property
    def own(self) -> tuple[str, ...]:
        """The contenders that are ours."""
        return tuple(name for name in self.contenders if name.startswith(OWN))


def faster(against: str, least: float, aim: float, of: str = OWN) -> Target:
    """A target in time."""
    return Target("times faster", of, against, least, aim)
