"""Trees and modules: paths, ties, structures, modes."""

from __future__ import annotations

import collections
from typing import Any, NamedTuple

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde import tree
from retrograde.errors import ShapeError, TraceError


class Layer(rg.nn.Module):
    weight: Any
    bias: Any = None
    rate: float = 0.5

    def __call__(self, x: Any) -> Any:
        return x @ self.weight


class Model(rg.nn.Module):
    first: Layer
    blocks: list[Layer]
    extra: dict[str, Any]
    heads: int = 4

    def __call__(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        return self.first(x)


class Pair(NamedTuple):
    a: Any
    b: Any


def ones(*shape: int) -> Any:
    return np.ones(shape, np.float32)


def model() -> Model:
    shared = ones(3, 3)
    return Model(
        Layer(shared, ones(3)), [Layer(shared), Layer(ones(3, 3))], {"z": ones(2), "a": ones(5)}
    )


def test_paths_are_names() -> None:
    nested = {"b": [ones(1), None, (ones(2),)], "a": Pair(ones(3), {"k": ones(4)})}
    assert tree.paths(nested) == ["a.a", "a.b.k", "b.0", "b.2.0"]
    assert tree.paths(ones(2)) == [""]
    assert tree.paths({"m": model()})[:2] == ["m.first.weight", "m.first.bias"]


def test_a_tied_array_is_one_leaf() -> None:
    m = model()
    assert tree.paths(m) == [
        *("first.weight", "first.bias", "blocks.1.weight", "extra.a", "extra.z"),
    ]
    doubled = tree.map(lambda x: x * 2, m)
    assert doubled.first.weight is doubled.blocks[0].weight
    assert doubled.first.weight is not doubled.blocks[1].weight
    assert list(m.parameters()) == tree.paths(m)
    again = m.replace({"first.weight": 7 * ones(3, 3)})
    assert again.blocks[0].weight is again.first.weight
    assert again.blocks[0].weight[0, 0] == 7
    assert m.first.weight[0, 0] == 1


def test_arrays_outside_of_a_module_are_not_tied() -> None:
    x = ones(2)
    assert len(tree.leaves([x, x])) == 2
    assert len(tree.leaves([Layer(x), Layer(x)])) == 2
    assert len(tree.leaves({"list": Model(Layer(x), [Layer(x)], {})})) == 1


def test_equal_by_chance_is_not_tied() -> None:
    m = Layer(ones(3, 3), ones(3, 3))
    same = ones(3, 3)
    both = tree.map(lambda x: same, m)
    assert len(tree.leaves(both)) == 2
    assert tree.structure(both) == tree.structure(m)


def test_reductions_stay_leaves() -> None:
    m = Layer(ones(3, 3), ones(3))
    sums = tree.map(np.sum, m)  # NumPy returns scalars, which alone would be static
    assert tree.structure(sums) == tree.structure(m)
    assert tree.leaves(sums)[0].shape == ()


def test_structures_compare_static_fields() -> None:
    assert tree.structure(Layer(ones(2), rate=0.5)) == tree.structure(Layer(ones(7), rate=0.5))
    assert tree.structure(Layer(ones(2), rate=1.0)) != tree.structure(Layer(ones(2), rate=0.5))
    assert tree.structure(Layer(ones(2), rate=1)) != tree.structure(Layer(ones(2), rate=1.0))
    assert hash(tree.structure(model())) == hash(tree.structure(model()))
    assert tree.structure(model()) == tree.structure(tree.map(lambda x: x + 1, model()))


def test_containers_inside_of_a_module_come_back() -> None:
    given = {"p": Pair(ones(1), 3), "t": (ones(2), "name"), "e": []}
    m = Model(Layer(ones(1)), [], given)
    back = tree.map(lambda x: x, m)
    assert isinstance(back.extra["p"], Pair) and back.extra["p"].b == 3
    assert back.extra["t"][1] == "name" and back.extra["e"] == []
    loose = Model(Layer(ones(1)), [], collections.defaultdict(list, k=ones(3)))
    assert tree.structure(tree.map(lambda x: x, loose)) == tree.structure(loose)


def test_an_unhashable_field_is_named() -> None:
    with pytest.raises(TraceError, match=r"test_tree\.py.*'rate'.*bytearray"):
        tree.leaves(Layer(ones(2), rate=bytearray()))  # type: ignore[arg-type]


def test_maps_over_unequal_trees_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"missing 'b'.*not expected 'c'"):
        tree.map(lambda x, y: x, {"a": 1, "b": 2}, {"a": 1, "c": 2})


def test_own_init_and_modes() -> None:
    class Own(rg.nn.Module):
        def __init__(self, n: int) -> None:
            self.n = n
            self.parts = (Layer(ones(n)), rg.nn.Dropout(0.5))

    m = Own(2)
    assert tree.paths(m) == ["parts.0.weight"]
    quiet = m.eval()
    assert m.training and m.parts[1].training
    assert not quiet.training and not quiet.parts[1].training
    assert quiet.parts[0].weight is m.parts[0].weight
    assert tree.structure(quiet) != tree.structure(m)
    assert tree.structure(quiet.train()) == tree.structure(m)
    assert "f32[2]" in repr(m) and "training=False" in repr(quiet)


def test_replace_names_what_there_is() -> None:
    with pytest.raises(ShapeError, match=r"'weigth'.*weight, bias"):
        Layer(ones(2), ones(1)).replace(weigth=ones(2))


def test_nodes_carry_the_path_of_their_module() -> None:
    graph = rg.trace(lambda m, x: m(x) + 1, model(), rg.spec("f32", "B", 3))
    scopes = {n.op.name: n.scope for n in graph.nodes if n.op.name != "constant"}
    dots = [n.scope for n in graph.nodes if n.op.name == "dot_general"]
    assert dots == ["blocks.0", "blocks.1", "first"]
    assert scopes["add"] == ""
    assert graph.input_names[:3] == ("m.first.weight", "m.first.bias", "m.blocks.1.weight")


def test_a_module_from_a_closure_has_paths_too() -> None:
    m = model()
    graph = rg.trace(lambda x: m(x), rg.spec("f32", "B", 3))
    dots = [n.scope for n in graph.nodes if n.op.name == "dot_general"]
    assert dots == ["blocks.0", "blocks.1", "first"]


def test_gradients_of_a_module_are_a_module() -> None:
    m = model()
    grads = rg.grad(lambda m, x: rnp.sum(m(x) ** 2))(m, ones(2, 3))
    assert isinstance(grads, Model)
    assert grads.first.weight is grads.blocks[0].weight
    assert tree.structure(grads) == tree.structure(m)
    # bias and extras are not used: zeros of their shape, and not tied to one another
    np.testing.assert_array_equal(grads.extra["a"], np.zeros(5))

    untied = Model(Layer(m.first.weight.copy()), [Layer(m.first.weight.copy()), m.blocks[1]], {})
    parts = rg.grad(lambda m, x: rnp.sum(m(x) ** 2))(untied, ones(2, 3))
    np.testing.assert_allclose(grads.first.weight, parts.first.weight + parts.blocks[0].weight)
