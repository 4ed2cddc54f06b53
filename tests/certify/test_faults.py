"""Faults that are planted in the compiler are caught, and named by the part they are in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

import retrograde as rg
import retrograde.numpy as rnp
from tests.certify import plants, programs
from tests.certify.plants import PASSES, Plant


def moving(x: Any) -> Any:
    """Slices and flips that are views of something else."""
    h = rnp.tanh(x)
    return rnp.sum(h[:, 2:5] * h[:, 1:4]) + rnp.sum(h * h[:, ::-1] * rnp.arange(6.0, dtype="f32"))


def make_moving() -> Any:
    return rg.compile(rg.value_and_grad(moving), rg.spec("f32", "B", 6), backend="numpy")


def square(w: Any, x: Any) -> Any:
    return rnp.sum((x @ w) ** 3)


def make_square() -> Any:
    specs = rg.spec("f32", 4, 4), rg.spec("f32", "B", 4)
    return rg.compile(rg.value_and_grad(square), *specs, backend="numpy")


def make_folding() -> Any:
    def loss(x: Any) -> Any:
        return rnp.sum(rnp.exp(x) * rnp.sqrt(rnp.asarray(2.0, "f32")))

    return rg.compile(rg.value_and_grad(loss), rg.spec("f32", "B"), backend="numpy")


@dataclass(frozen=True)
class Fault:
    """What is planted in which program, and what the certificate has to say."""

    plant: Plant
    make: Callable[[], Any]
    blame: str
    sizes: Sequence[dict[str, int]] = field(default_factory=lambda: programs.SMALL)
    recipes: bool = False  # whether it is only seen where a budget chooses


net, loop = programs.make_net, programs.make_loop
STEPS = [{"B": 2, "T": 7}]

FAULTS: dict[str, Fault] = {
    # gradient rules
    "tanh by a factor": Fault(
        plants.rule("tanh", plants.scaled(1.01)), net, "gradient of tanh"
    ),
    "exp of the other sign": Fault(plants.rule("exp", plants.scaled(-1.0)), net, "gradient of exp"),
    "one side of a product": Fault(plants.rule("mul", plants.lost(1)), net, "gradient of mul"),
    "a quotient's denominator": Fault(
        plants.rule("div", plants.scaled(0.5, 1)), net, "gradient of div"
    ),
    "a transposed cotangent": Fault(
        plants.rule("dot_general", plants.untransposed), make_square, "gradient of dot_general"
    ),
    "a choice the wrong way": Fault(
        plants.rule("select", lambda ctx, p: [p[0], p[2], p[1]]), net, "gradient of select"
    ),
    "a table's gradient": Fault(
        plants.rule("gather", plants.scaled(2.0)), net, "gradient of gather"
    ),
    "a rule inside of a loop": Fault(
        plants.rule("tanh", plants.scaled(0.99)), loop, "gradient of tanh", STEPS
    ),
    "a loop's constants": Fault(
        plants.rule("scan", lambda ctx, p: [*p[:-1], None]), loop, "gradient of scan", STEPS
    ),
    "a dropped accumulation": Fault(
        plants.dropped_accumulation, net, "accumulation of cotangents"
    ),
    "a bias that is not summed": Fault(plants.wrong_unbroadcast, net, "gradient of add"),
    "a recompute with another key": Fault(
        plants.another_key, programs.make_remat, "gradient of remat_call"
    ),
    "a custom gradient": Fault(
        lambda patch: None, lambda: programs.make_custom(1.5), "custom gradient of"
    ),
    "a function made over": Fault(plants.primal_changed, net, "pass backward"),
    # passes
    "simplify takes one function for another": Fault(
        plants.after(PASSES["simplify"], "exp", plants.swap_op("exp2")), net, "pass simplify"
    ),
    "a composite taken apart wrongly": Fault(
        plants.wrong_expansion, programs.make_mlp, "pass expand"
    ),
    "unequal constants merged": Fault(plants.cse_of_constants, net, "pass cse"),
    "a stale constant": Fault(plants.stale_fold, make_folding, "pass fold"),
    "dce drops an addend": Fault(
        plants.after(PASSES["dce"], "add", plants.first_only), net, "pass dce"
    ),
    "a loop turned round": Fault(
        plants.after(PASSES["hoist"], "scan", plants.other_way), loop, "pass hoist", STEPS
    ),
    "a sum over time without its last": Fault(
        plants.after(PASSES["sink"], "add", plants.first_only), loop, "pass sink", STEPS
    ),
    "a wrong recompute": Fault(plants.wrong_recompute, loop, "pass lean", STEPS, True),
    "a segment off by one step": Fault(plants.shifted_slice, loop, "pass segments", STEPS, True),
    "a fused quotient upside down": Fault(
        plants.after(PASSES["group"], "div", plants.swapped), net, "pass group"
    ),
    # the plan
    "a live buffer used again": Fault(plants.short_lives, net, "memory plan"),
    "buffers on one another": Fault(plants.one_place, net, "placement"),
    "buffers that meet at other sizes": Fault(plants.lost_edge, net, "placement"),
    "a result over what is read again": Fault(plants.in_any_place, net, "memory plan"),
    "an update before the last read": Fault(
        plants.early_updates, programs.make_mlp, "memory plan"
    ),
    # the schedule's code
    "a slice off by one": Fault(plants.shifted_view, make_moving, "numpy code of slice"),
    "a flip that is lost": Fault(plants.lost_flip, make_moving, "numpy code of"),
    "a transposed operand": Fault(
        plants.transposed_operand, make_square, "numpy code of dot_general"
    ),
    "expm1 for exp": Fault(
        plants.numpy_statement("exp", "{xp}.expm1({0}, out={out})"), net, "numpy code of"
    ),
    "a sum without its last row": Fault(plants.short_sum, net, "numpy code of sum"),
    "an index off by one": Fault(plants.shifted_gather, net, "numpy code of gather"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_caught_and_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = FAULTS[name]
    fault.plant(monkeypatch)
    monkeypatch.setenv("RETROGRADE_VERIFY", "0")
    found = fault.make().certify(sizes=fault.sizes, recipes=fault.recipes)
    assert not found.ok, str(found)
    named = found.blame or "nothing"
    assert named.startswith(fault.blame), str(found)


def test_there_are_enough_of_them() -> None:
    assert len(FAULTS) >= 25
