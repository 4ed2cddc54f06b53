"""`certify()`: a compiled program -> its certificate.

In this order, which is that of the compiler: the gradients in the traced graph against finite
differences in float64; the graph after every pass, in float64, against the traced one; the memory
plan, by running it on names; the programs, fused and not, with each recipe, on each device, against
the traced graph in float64.  Invariant: the program that is certified is not changed, and nothing
it says of itself is taken for granted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from retrograde.certificates import blame
from retrograde.certificates.certificate import Certificate, Compared, Fault
from retrograde.certificates.claims import Claims
from retrograde.certificates.drawing import integer_ranges, rounds
from retrograde.certificates.numbers import distance, worst
from retrograde.certificates.programs import (
    UNLIMITED,
    Made,
    choices,
    compiled,
    outputs,
    plan_sizes,
)
from retrograde.certificates.subject import Point, Subject, points
from retrograde.certificates.visibility import visibility
from retrograde.compiler.errors import DataError, ShapeError
from retrograde.compiler.ir.graph import Graph
from retrograde.compiler.ir.location import where
from retrograde.compiler.ops.region import silent
from retrograde.compiler.pipeline import CompiledRecipe, Options
from retrograde.compiler.plan.replay import misreads, overlaps
from retrograde.compiler.program import Program
from retrograde.execution import checked_backend, options_for
from retrograde.runtime.device import get_device
from retrograde.runtime.protocol import Device

MANY = 4  # recipes


def certificate(
    subject: Subject,
    sizes: Sequence[Mapping[str, int]] | None,
    directions: int,
    devices: str | Sequence[str] | None,
    trust: bool,
    seed: int,
    recipes: bool = True,
    claims: Sequence[str] = (),
) -> Certificate:
    """Everything compared; see `Explained.certify`."""
    if directions < 1:
        raise DataError(f"{where()}directions={directions}: give at least one")
    seen = visibility(subject.graph, (claims,) if isinstance(claims, str) else claims)
    symbols = subject.graph.symbols()
    at = [subject.sizes] if subject.examples is not None else sizes or rounds(symbols)
    for given in at:
        _check_sizes(given, subject)
    found = points(subject, [dict(x) for x in at], integer_ranges(subject.graph), seed)
    work = _Work(subject, found, directions, trust, seed)
    work.gradients()
    own = _own(subject)
    work.passes(own)
    work.plans(own)
    work.runs(own)
    for label, device, options in _others(own, devices, recipes):
        try:
            made = compiled(label, work.graph, device, options)
        except Exception as error:  # the compiler is what may be wrong
            work.uncompiled(label, error)
            continue
        work.passes(made)
        work.plans(made)
        work.runs(made)
    return Certificate(
        subject.graph.name, tuple(work.compared), (*seen.faults, *work.faults), directions,
        tuple(map(str, work.departures)), seen.proofs, seen.leaks,
    )  # fmt: skip


def _check_sizes(given: Mapping[str, int], subject: Subject) -> None:
    symbols = subject.graph.symbols()
    if set(given) != set(symbols):
        raise ShapeError(
            f"{where()}certify at {dict(given)}: sizes of {', '.join(symbols) or 'nothing'} are "
            "needed"
        )
    for name, n in given.items():
        s = symbols[name]
        if n < s.min or (s.max is not None and n > s.max):
            raise ShapeError(f"{where()}certify at {dict(given)}: {name} is out of bounds of {s}")


def _own(subject: Subject) -> Made:
    run = subject.run
    device = run.executable.device
    label = f"as compiled ({device.name})"
    return Made(label, run.executable.program, run.recipes, device, run.options)


def _others(
    own: Made, devices: str | Sequence[str] | None, recipes: bool
) -> Iterator[tuple[str, Device, Options]]:
    """The other ways to compile the graph: with every recipe of the ladder, and without fusing."""
    given = (devices,) if isinstance(devices, str) else devices
    names = list(given or dict.fromkeys((own.device.name, "numpy")))
    for name in names:
        device = own.device if name == own.device.name else get_device(checked_backend(name))
        options = replace(options_for(device, own.options.at), dump=None)
        if name == "numpy" and recipes:
            every = replace(options, budget=UNLIMITED)
            yield "numpy, every recipe", device, every
        elif name != own.device.name:
            yield name, device, options
        plain = replace(options, without=("group",))
        yield f"{name}, unfused", device, plain


class _Work:
    """The comparisons made so far, and what they told."""

    def __init__(
        self, subject: Subject, found: Sequence[Point], directions: int, trust: bool, seed: int
    ) -> None:
        self.subject = subject
        self.graph = silent(subject.graph)
        self.points = found
        self.directions = directions
        self.trust = trust
        self.seed = seed
        self.compared: list[Compared] = []
        self.faults: list[Fault] = []
        self.departures: list[Fault] = []
        self._stages: dict[Graph, dict[int, bool]] = {}  # by point, whether the graph is right

    def blame(self, fault: Fault) -> None:
        if all(fault.part != known.part for known in self.faults):
            self.faults.append(fault)

    def uncompiled(self, label: str, error: Exception) -> None:
        """A program that could not be made of the graph."""
        note = f"{error!r:.200}"
        self.compared.append(Compared("run", label, {}, float("inf"), 0.0, note))
        self.blame(Fault(f"compilation ({label})", note))

    def gradients(self) -> None:
        """Those of the traced graph, where all the rules are at work."""
        if not self.subject.graph.derivatives:
            return
        for k, point in enumerate(self.points):
            rng = np.random.default_rng((self.seed, k))
            claims = Claims(self.graph, point.wide, point.sizes, rng, self.trust)
            self.compared += claims.compared(self.directions)
            for told in claims.departures:
                if all(told.part != known.part for known in self.departures):
                    self.departures.append(told)
            for fault in claims.faults:
                self.blame(fault)

    def passes(self, made: Made) -> None:
        """The graph after each pass that led to each recipe."""
        for index, recipe in enumerate(made.recipes):
            for k, point in self._points(made, index):
                if not recipe.recipe.serves(point.sizes):
                    continue
                sizes = plan_sizes(recipe.recipe, point.sizes)
                self._stages_of(recipe, k, point, sizes)

    def _points(self, made: Made, index: int) -> list[tuple[int, Point]]:
        """Where a recipe is looked at: of many that only certificates are made for, each at one of
        the sizes."""
        found = list(enumerate(self.points))
        if len(made.recipes) <= MANY or made.program is self.subject.run.executable.program:
            return found
        return [found[index % len(found)]]

    def _stages_of(
        self, recipe: CompiledRecipe, k: int, point: Point, sizes: Mapping[str, int]
    ) -> None:
        """The last graph, which is the one that runs; where it parts, each from the first on."""
        *_, last = recipe.stages.values()
        seen = self._stages.setdefault(last, {})
        if k in seen:
            return
        error, bound, note = self._stage(last, point, sizes)
        seen[k] = error <= bound
        name = recipe.recipe.name
        if not seen[k]:
            for stage, graph in recipe.stages.items():
                error, bound, note = self._stage(graph, point, sizes)
                if not error <= bound:
                    seen_text = f"{note} parts from the traced graph ({name})"
                    self.blame(Fault(f"pass {stage}", seen_text))
                    break
        self.compared.append(Compared("pass", name, point.sizes, error, bound, note))

    def _stage(
        self, graph: Graph, point: Point, sizes: Mapping[str, int]
    ) -> tuple[float, float, str]:
        try:
            got = blame.stage_outputs(graph, point, sizes)
        except Exception as error:  # what a pass breaks may break anywhere
            return float("inf"), 0.0, f"what it leaves cannot be evaluated ({error!r:.200})"
        far = worst([distance(x, r, None) for x, r in zip(got, point.reference, strict=True)])
        names = self.graph.output_names
        which = names[far.which] if far.which < len(names) else f"output {far.which}"
        return far.error, far.bound, which

    def plans(self, made: Made) -> None:
        """The order of the steps on the places of their values, in names."""
        for index, recipe in enumerate(made.recipes):
            for _, point in self._points(made, index):
                for program, choice in choices(made, index, point.sizes):
                    pairs = overlaps(program.recipes[0], choice.sizes)
                    lost = misreads(recipe.planned, program.recipes[0], choice.sizes)
                    what = made.named(index)
                    count = float(len(pairs) + len(lost))
                    note = str(lost[0]) if lost else ""
                    self.compared.append(Compared("plan", what, point.sizes, count, 0.0, note))
                    if pairs:
                        a, b = pairs[0]
                        self.blame(Fault("placement", f"{a} and {b} lie on one another ({what})"))
                    elif lost:
                        self.blame(Fault("memory plan", f"{lost[0]} ({what})"))

    def runs(self, made: Made) -> None:
        """What the programs compute; a part at fault is looked for once for each program."""
        for index in range(len(made.recipes)):
            told = False
            for _, point in self._points(made, index):
                for program, choice in choices(made, index, point.sizes):
                    error, bound, note = self._run(program, made, point)
                    what = made.named(index)
                    self.compared.append(Compared("run", what, point.sizes, error, bound, note))
                    if error <= bound or told:
                        continue
                    told = True
                    if not self._explained(made.recipes[index]):
                        self.blame(blame.found(self.graph, made, index, choice.sizes, point))

    def _explained(self, recipe: CompiledRecipe) -> bool:
        """Whether a fault that was found already lies in what this recipe is made of."""
        *_, last = recipe.stages.values()
        wrong = not all(self._stages.get(last, {}).values())
        return wrong or any(f.part in ("placement", "memory plan") for f in self.faults)

    def _run(self, program: Program, made: Made, point: Point) -> tuple[float, float, str]:
        try:
            got = outputs(program, made.device, point.sizes, point.inputs)
        except Exception as error:  # wrong code may fail in any way
            return float("inf"), 0.0, f"{error!r:.200}"
        far = blame.apart(got, point)
        names = self.graph.output_names
        return far.error, far.bound, names[far.which] if far.which < len(names) else "output"
