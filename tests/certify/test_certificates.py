"""Programs that are right say so, at every size, with every recipe, and change nothing by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.compiler.pipeline import NEEDED, STAGES
from retrograde.errors import DataError, ShapeError, VerifyError
from tests.certify import plants, programs

TIMES = [{"B": 2, "T": 5}, {"B": 3, "T": 1}]


@pytest.mark.parametrize("make", [programs.make_net, programs.make_remat, programs.make_custom])
def test_functions_are_certified(make: Any) -> None:
    found = make().certify()
    assert found.ok, str(found)
    assert found.gradients and found.blame is None
    assert {c.kind for c in found.compared} == {"function", "gradient", "pass", "plan", "run"}
    assert found.check() is found
    assert "certified" in str(found) and "NOT" not in str(found)


def test_a_loop_is_certified_with_every_recipe() -> None:
    found = programs.make_loop().certify(sizes=[{"B": 2, "T": 7}, {"B": 3, "T": 1}])
    assert found.ok, str(found)
    names = {c.what for c in found.compared if c.kind == "run"}
    assert "numpy, every recipe, keep some states" in names
    assert "numpy, unfused" in names


@pytest.mark.parametrize("make", [programs.make_mlp, programs.make_gpt, programs.make_lstm])
def test_training_steps_are_certified_and_stay_as_they_are(make: Any) -> None:
    step = make()
    before, _ = step.state()
    small = make is programs.make_mlp
    found = step.certify(sizes=[{"B": 3}] if small else TIMES, recipes=small)
    assert found.ok, str(found)
    after, _ = step.state()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_step_under_a_budget_is_certified() -> None:
    step = programs.make_lstm(budget="1MiB", at={"B": 4, "T": 40})
    found = step.certify(sizes=[{"B": 2, "T": 5}], directions=1, recipes=False)
    assert found.ok, str(found)
    assert any("keep some states" in c.what for c in found.compared)


def test_truncation_is_what_the_gradient_is_told() -> None:
    step = programs.make_lstm(truncate=2)
    found = step.certify(sizes=[{"B": 2, "T": 5}], directions=1, recipes=False)
    assert found.ok, str(found)


def test_stop_gradient_is_what_the_gradient_is_told() -> None:
    def loss(x: Any) -> Any:
        return rnp.sum(rg.stop_gradient(rnp.exp(x)) * x)

    assert rg.compile(rg.grad(loss), rg.spec("f32", "B", 3)).certify().ok


def test_a_derivative_of_a_derivative_is_certified() -> None:
    def inner(x: Any) -> Any:
        return rnp.sum(rnp.tanh(x) ** 3)

    second = rg.grad(lambda x: rnp.sum(rg.grad(inner)(x) * x))
    found = rg.compile(second, rg.spec("f32", "B", 3)).certify()
    assert found.ok and found.gradients >= 2, str(found)


def test_a_custom_gradient_that_is_another_is_told_and_may_be_trusted() -> None:
    through = rg.custom_vjp(rnp.floor, lambda x: (rnp.floor(x), None), lambda r, g: (g,))
    loss = rg.grad(lambda x: rnp.sum(rnp.sin(through(3.0 * x) * 0.3) * x))
    compiled = rg.compile(loss, rg.spec("f32", "B", 3))
    found = compiled.certify()
    assert not found.ok
    assert found.blame is not None and found.blame.startswith("custom gradient of")
    with pytest.raises(VerifyError, match="custom gradient"):
        found.check()
    trusted = compiled.certify(trust_custom=True)
    assert trusted.ok, str(trusted)
    assert len(trusted.departures) == 1


def test_examples_are_taken_as_they_are() -> None:
    def loss(x: Any, n: Any) -> Any:
        return rnp.sum(rnp.log(x) * n)

    compiled = rg.compile(rg.grad(loss), rg.spec("f32", "B"), rg.spec("i32", "B"))
    x = np.array([0.5, 2.0, 7.0], np.float32)
    found = compiled.certify(x, np.array([1, 2, 3], np.int32))
    assert found.ok and {tuple(c.sizes.items()) for c in found.compared} == {(("B", 3),)}
    step = programs.make_mlp()
    batch = {"x": programs.numbers(4, 5), "y": np.array([0, 2, 1, 2], np.int32)}
    assert step.certify(**batch).ok


def test_what_cannot_be_certified_is_refused() -> None:
    compiled = programs.make_net()
    with pytest.raises(ShapeError, match="sizes of B are needed"):
        compiled.certify(sizes=[{"T": 3}])
    with pytest.raises(DataError, match="directions=0"):
        compiled.certify(directions=0)
    with pytest.raises(DataError, match="in their order"):
        compiled.certify(x=1)


def test_a_loaded_program_certifies_itself(tmp_path: Path) -> None:
    compiled = programs.make_net()
    compiled.save(tmp_path / "net.rg")
    found = rg.load(tmp_path / "net.rg").certify(sizes=programs.SMALL)
    assert found.ok, str(found)
    assert found.gradients == compiled.certify(sizes=programs.SMALL).gradients


def test_a_jitted_function_is_certified_at_its_arguments() -> None:
    @rg.jit
    def energy(x: Any) -> Any:
        return rg.grad(lambda y: rnp.sum(rnp.tanh(y) ** 2))(x)

    found = energy.certify(programs.numbers(3, 2))
    assert found.ok and found.gradients, str(found)


@pytest.mark.parametrize("stage", [s for s in STAGES if s not in NEEDED])
def test_a_program_without_a_stage_computes_the_same(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = {name: programs.numbers(*t.shape) for name, t in programs.CELL.items()}
    xs = programs.numbers(5, 2, 3)
    for make, args in (
        (programs.make_loop, (p, xs)),
        (programs.make_remat, (programs.numbers(4, 4), programs.numbers(3, 4), rg.random.key(1))),
    ):
        expected = make()(*args)
        for variable in ("WITHOUT", "STOP_AFTER"):
            monkeypatch.setenv(f"RETROGRADE_{variable}", stage)
            got = make()(*args)
            monkeypatch.delenv(f"RETROGRADE_{variable}")
            for a, b in zip(rg.tree.leaves(got), rg.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5)


def test_a_stage_that_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, stage in (("WITHOUT", "fuse"), ("STOP_AFTER", "last"), ("WITHOUT", "order")):
        monkeypatch.setenv(f"RETROGRADE_{variable}", stage)
        with pytest.raises(DataError, match=f"RETROGRADE_{variable}"):
            programs.make_net()
        monkeypatch.delenv(f"RETROGRADE_{variable}")


def test_pullbacks_and_directional_derivatives_are_gradients_too() -> None:
    def pulled(x: Any, g: Any) -> Any:
        y, back = rg.vjp(lambda z: rnp.tanh(z) * z, x)
        return y, back(g * 2.0)

    def pushed(x: Any, t: Any) -> Any:
        return rg.jvp(lambda z: rnp.exp(z) * rnp.sin(z), (x,), (t,))

    x = rg.spec("f32", "B", 3)
    for fn in (pulled, pushed):
        found = rg.compile(fn, x, x).certify(sizes=programs.SMALL)
        assert found.ok and found.gradients, str(found)


def test_a_wrong_pullback_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    plants.rule("tanh", plants.scaled(1.5))(monkeypatch)

    def pulled(x: Any, g: Any) -> Any:
        return rg.vjp(rnp.tanh, x)[1](g)

    x = rg.spec("f32", "B", 3)
    found = rg.compile(pulled, x, x).certify(sizes=programs.SMALL)
    assert found.blame == "gradient of tanh", str(found)


def test_a_saved_gradient_that_is_wrong_is_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        plants.rule("tanh", plants.scaled(1.5))(patch)
        programs.make_net().save(tmp_path / "net.rg")
    found = rg.load(tmp_path / "net.rg").certify(sizes=programs.SMALL)
    assert found.blame == "backward pass", str(found)


def test_what_is_not_there_without_a_fault_is_not_said() -> None:
    text = str(rg.compile(lambda x: x * 2.0, rg.spec("f32", "B")).certify())
    assert "no gradients in it" in text and "at fault" not in text
