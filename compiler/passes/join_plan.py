"""What joins one loop, and the loops that become one with it.

Facts of a graph and a loop in it -> a `Plan`: how the body gets each step of what the loop reads,
which sums over its steps it carries, and which other loops become one with it.  Invariant: what the
loop needs from outside does not depend on its results.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.graph import Node, Value
from retrograde.compiler.ir.registry import Kind
from retrograde.compiler.ops.scan import parts
from retrograde.compiler.passes.cuts import Cut, Need, Needs, over_all
from retrograde.compiler.passes.dce import has_effect
from retrograde.compiler.passes.devectorize import rule_for
from retrograde.compiler.passes.devectorize_sums import SUMS
from retrograde.compiler.passes.join_facts import Facts
from retrograde.compiler.passes.regions import is_apart
from retrograde.compiler.passes.scan_hoist import is_costly


class Key(NamedTuple):
    """One step of a value that has the steps at a cut."""

    value: Value
    cut: Cut


class Source(Enum):
    """Where the body gets a step from, other than from a node of its own."""

    LOOP = "loop"  # a result of the loop's own step
    SLICE = "slice"  # a value over all steps, sliced


@dataclass(frozen=True)
class Made:
    """By a node of the body: this one's step."""

    node: Node
    needs: Needs


Choice = Source | Made | None  # None: the body cannot have it


def plan_for(facts: Facts, loop: Node, staying: set[Value], merge: bool) -> Plan:
    """What joins `loop`; `staying` values are over all steps outside in any case."""
    plan = Plan(facts, [loop], staying)
    while merge:
        for other in plan.neighbours():
            wider = Plan(facts, sorted([other, *plan.loops], key=facts.place.__getitem__), staying)
            if wider.possible():
                plan = wider
                break
        else:
            break
    plan.choose_sums()
    return plan


class Plan:
    """Some loops over the same steps that are to be one, and what joins them."""

    def __init__(self, facts: Facts, loops: Sequence[Node], staying: set[Value]) -> None:
        self.facts = facts
        self.loops = list(loops)
        self.staying = staying
        self.length = loops[0].attrs["length"]
        self.own = {v: loop for loop in loops for v in loop.outputs[loop.attrs["carries"] :]}
        self.behind = facts.reached(v for loop in loops for v in loop.outputs)
        self.choices: dict[Key, Choice] = {}
        self.new: dict[Key, frozenset[Key]] = {}  # what each needs laid out with the steps in front
        self.sums: dict[Node, Needs] = {}
        first = over_all(self.length)
        self.slices = {loop: [Key(v, first) for v in sliced(loop)] for loop in loops}
        for keys in self.slices.values():
            for key in keys:
                self._decide(key)

    # --- where each step comes from

    def _decide(self, key: Key) -> bool:
        """Settles how the body gets `key`, and all that it is made of; False if it cannot."""
        work = [key]
        while work:
            top = work[-1]
            if top in self.choices:
                work.pop()
                continue
            choice = self._choice(top)
            if isinstance(choice, Made):
                steps = steps_of(choice.node, choice.needs)
                missing = [step for step in steps if step not in self.choices]
                if missing:
                    work.extend(missing)
                    continue
                whole = wholes_of(choice.node, choice.needs)
                if any(self.choices[p] is None for p in steps) or not self._outside(whole):
                    choice = self._sliced(top)
                elif not self._pays([top], steps):
                    choice = self._sliced(top) or choice
            self.choices[top] = choice
            self.new[work.pop()] = self._new(top, choice)
        return self.choices[key] is not None

    def _choice(self, key: Key) -> Choice:
        v, cut = key
        if v in self.own:
            return Source.LOOP if cut == over_all(self.length) else None
        node = self.facts.makers.get(v)
        rule = None if node is None or v in self.staying or has_effect(node) else rule_for(node)
        needs = None if rule is None or node is None else rule.pull(node, cut, self.facts.makers)
        if node is None or needs is None:
            return self._sliced(key)
        return Made(node, needs)

    def _sliced(self, key: Key) -> Choice:
        return None if key.value in self.behind else Source.SLICE

    def _outside(self, values: Iterable[Value]) -> bool:
        return not any(v in self.behind for v in values)

    def cone(self, keys: Iterable[Key]) -> list[Key]:
        """`keys` and all that they are made of, operands first."""
        done: dict[Key, None] = {}
        for key in keys:
            work = [key]
            while work:
                choice = self.choices[work[-1]]
                steps = steps_of(choice.node, choice.needs) if isinstance(choice, Made) else []
                missing = [p for p in steps if p not in done]
                if missing and work[-1] not in done:
                    work.extend(reversed(missing))
                else:
                    done[work.pop()] = None
        return list(done)

    def made(self, keys: Iterable[Key]) -> Iterator[Made]:
        for key in keys:
            choice = self.choices[key]
            if isinstance(choice, Made):
                yield choice

    def needed(self, keys: Iterable[Key]) -> set[Value]:
        """What the steps of `keys` need from outside."""
        cone = self.cone(keys)
        found = {key.value for key in cone if self.choices[key] is Source.SLICE}
        for made in self.made(cone):
            found.update(wholes_of(made.node, made.needs))
        return found

    def _new(self, key: Key, choice: Choice) -> frozenset[Key]:
        """What has to be laid out anew so that the body has `key`."""
        if isinstance(choice, Made):
            return self._laid_out(steps_of(choice.node, choice.needs))
        return frozenset([key] if choice is Source.SLICE and not self._lies_ready(key) else ())

    def _laid_out(self, keys: Sequence[Key]) -> frozenset[Key]:
        return frozenset().union(*(self.new[key] for key in keys))

    def _pays(self, keys: Sequence[Key], parts: Sequence[Key]) -> bool:
        """Whether to make `keys` of `parts` lays out no more anew than what else would be there:
        they, and the largest value on the way to them."""
        new = self._laid_out(parts)
        if not new:
            return True
        laid_out, own = _bytes(new), _bytes(keys)
        between = (key for key in self.cone(parts) if isinstance(self.choices[key], Made))
        return any(
            dims.decide_le(laid_out, bound) is True
            for bound in (own, *(own + _bytes([key]) for key in between))
        )

    def _lies_ready(self, key: Key) -> bool:
        """Inputs come in any layout, other values with the steps on the axis that they are on."""
        if key.value in self.facts.makers:
            return key.cut == over_all(self.length)
        return key.cut.steps.complete

    # --- loops that become one

    def neighbours(self) -> list[Node]:
        """The loops over the same steps whose results this one reads, the last first."""
        found: set[Node] = set()
        for key in self.cone(k for keys in self.slices.values() for k in keys):
            made = self.facts.makers.get(key.value)
            if self.choices[key] is Source.SLICE and made is not None and self._same_steps(made):
                found.add(made)
        return sorted(found, key=self.facts.place.__getitem__, reverse=True)

    def _same_steps(self, node: Node) -> bool:
        if node.op.name != "scan" or is_apart(node):
            return False
        if not dims.same(node.attrs["length"], self.length):
            return False
        first = self.loops[0]
        if node.attrs["reverse"] != first.attrs["reverse"]:
            return False
        if (node.origin.role == "cotangent") != (first.origin.role == "cotangent"):
            return False  # what runs forward is not kept waiting for what runs backward
        return not has_effect(node)  # which would act later then

    def possible(self) -> bool:
        """Whether no loop needs anything but steps of the others."""
        if any(self.choices[key] is None for keys in self.slices.values() for key in keys):
            return False
        return all(self._outside((*starts(x), *fixed(x))) for x in self.loops)

    # --- sums over the steps

    def choose_sums(self) -> None:
        """The sums that the loop carries: of its own results, and of what it computes anyway."""
        joined = {made.node for made in self.made(self.cone(self.keys())) if is_costly(made.node)}
        needed = self.needed(self.keys())
        for x in self.loops:
            needed.update((*starts(x), *fixed(x)))
        results = {v for x in self.loops for v in x.outputs}
        later: set[Value] = set()  # what depends on the chosen sums
        for node in self.facts.sums:
            needs = SUMS[node.op.name].pull(node, self.facts.cuts, self.facts.makers)
            if needs is None:
                continue
            steps, whole = steps_of(node, needs), wholes_of(node, needs)
            if not all(dims.same(key.cut.steps.length, self.length) for key in steps):
                continue
            if not self._outside(whole) or not all(map(self._decide, steps)):
                continue
            cone = self.cone(steps)
            if not self._pays(steps, steps):
                continue
            if not any(self.choices[key] is Source.LOOP for key in cone) and not any(
                made.node in joined for made in self.made(cone)
            ):
                continue
            outside = self.needed(steps) | set(whole)
            reached = self.facts.reached(node.outputs)
            if outside & (later | reached) or needed & reached or reached & results:
                continue
            self.sums[node] = needs
            needed |= outside
            later |= reached

    def keys(self) -> list[Key]:
        """The steps that the body needs."""
        found = [key for keys in self.slices.values() for key in keys]
        for node, needs in self.sums.items():
            found.extend(steps_of(node, needs))
        return found

    @property
    def changes(self) -> bool:
        """Whether anything joins; a slice of an input in another layout is no work."""
        if self.sums or len(self.loops) > 1:
            return True
        for key in self.keys():
            cone = self.cone([key])
            if any(made.node.op.kind is not Kind.MOVE for made in self.made(cone)):
                return True
            if not any(isinstance(self.choices[k], Source) for k in cone):
                return True  # the same number at all places
        return False


def _bytes(keys: Iterable[Key]) -> Dim:
    """What one step of `keys` takes."""
    total: Dim = 0
    for v, cut in keys:
        total = total + dims.product(cut.shape(v.shape)) * v.dtype.bytes
    return total


def starts(loop: Node) -> list[Value]:
    """The carries before the first step."""
    return parts(loop.inputs, loop.attrs)[0]


def sliced(loop: Node) -> list[Value]:
    return parts(loop.inputs, loop.attrs)[1]


def fixed(loop: Node) -> list[Value]:
    """What the body reads whole."""
    return parts(loop.inputs, loop.attrs)[2]


def steps_of(node: Node, needs: Needs) -> list[Key]:
    """What a step of the node takes a step of."""
    pairs = zip(node.inputs, needs, strict=True)
    return [Key(v, need) for v, need in pairs if isinstance(need, Cut)]


def wholes_of(node: Node, needs: Needs) -> list[Value]:
    """What a step of the node takes whole."""
    return [v for v, need in zip(node.inputs, needs, strict=True) if need is Need.WHOLE]
