"""Joining: what is left around the loops, what is in them, and that the numbers stay.

The models of `joining.py` are ordinary ones and odd ones; the pass knows none of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.compiler import pipeline
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.graph import Graph, Node
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.registry import Kind
from retrograde.compiler.ir.verify import verify
from retrograde.compiler.passes.cse import CSE
from retrograde.compiler.passes.dce import DCE
from retrograde.compiler.passes.expand import Expand
from retrograde.compiler.passes.fold import Fold
from retrograde.compiler.passes.regions import everywhere
from retrograde.compiler.passes.scan_hoist import HoistScan
from retrograde.compiler.passes.scan_join import JoinScan
from retrograde.compiler.passes.simplify import Simplify
from retrograde.runtime.device import get_device
from tests.compiler.passes.harness import plain
from tests.compiler.passes.joining import MODELS, B, D, H, V, inputs_for, lstm, rnn, start
from tests.device.harness import MODES, executable

LENGTHS = (0, 1, 2, 5)
# Of these nothing float over all steps is left but what the loops stack, and inputs.
EMPTIED = (
    "language", "masked_language", "last_step", "last_of_all", "both_ways", "deep", "tied",
    "two_heads", "with_lengths", "mse_outside", "mse_inside", "loss_of_each_step",
    "reversed_loop", "only_the_largest", "normalised_by_all", "rows_of_all_steps", "rearranged",
    "loop_behind_loop", "begun_by_the_other", "dropped",
    "next_token", "loop_in_loop",
)  # fmt: skip


def prepared(graph: Graph) -> Graph:
    for transform in (DCE(), Expand(), Simplify(), Fold(), CSE()):
        graph = everywhere(transform, graph)
    return graph


def joined(graph: Graph, merge: bool = True) -> Graph:
    found = JoinScan(merge)(graph)
    verify(found, made_by="join", before=graph)
    return found


def with_joining() -> tuple[tuple[str, Any], ...]:
    """The pipeline with joining in its place."""
    found: list[tuple[str, Any]] = []
    for name, transform in pipeline.PIPELINE:
        found.append((name, transform))
        if name == "cse":
            found.append(("join", JoinScan()))
    return tuple(found)


def bodies(graph: Graph) -> list[Graph]:
    return [body for node in graph.nodes if node.op.name == "scan" for _, body in node.subgraphs()]


def count(graph: Graph, name: str) -> int:
    return sum(node.op.name == name for node in graph.nodes)


def has_steps(d: dims.Dim) -> bool:
    return any(s.name == "T" for s in dims.symbols(d))


def over_all_steps(graph: Graph) -> Iterator[Node]:
    """What makes floats with a width for all steps: loops, and moves of inputs, apart."""
    given = set(graph.inputs)
    for node in graph.nodes:
        if node.op.kind is Kind.MOVE and all(v in given for v in node.inputs):
            given.update(node.outputs)
            continue
        if node.op.name == "scan":
            continue
        for v in node.outputs:
            wide = any(not has_steps(d) for d in v.shape[1:] if not dims.same(d, B))
            if v.dtype.is_float and any(map(has_steps, v.shape)) and wide:
                yield node


def agree(before: Graph, after: Graph, rtol: float = 1e-12) -> None:
    for steps in LENGTHS:
        if steps < before.symbols()["T"].min:
            continue
        arrays = inputs_for(before, steps, seed=steps)
        wanted = evaluate(before, arrays, {"T": steps})
        found = evaluate(after, arrays, {"T": steps})
        for x, y in zip(wanted, found, strict=True):
            np.testing.assert_allclose(y, x, rtol=rtol, atol=rtol, strict=True)


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_the_numbers_stay(name: str, merge: bool) -> None:
    before = prepared(MODELS[name]())
    after = joined(before, merge)
    agree(before, after)
    assert JoinScan(merge)(after).text() == after.text()


@pytest.mark.parametrize("name", MODELS)
def test_the_numbers_stay_when_the_work_leaves_the_loops_again(name: str) -> None:
    before = after = MODELS[name]()
    for pass_name, transform in with_joining():
        after = everywhere(transform, after)
        verify(after, made_by=pass_name)
    agree(before, after)


@pytest.mark.parametrize("name", ["masked_language", "deep", "shifted_by_one", "with_lengths"])
def test_compiled_programs_give_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = MODELS[name]()
    monkeypatch.setattr(pipeline, "PIPELINE", with_joining())
    _, program = executable(graph, get_device("numpy"), MODES["poison"])
    for steps in (1, 5):
        arrays = inputs_for(graph, steps)
        for x, y in zip(
            evaluate(graph, arrays), program.run(arrays, {"T": steps}), strict=True
        ):
            np.testing.assert_allclose(y, x, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", EMPTIED)
def test_nothing_wide_is_there_for_all_steps(name: str) -> None:
    before = prepared(MODELS[name]())
    assert not list(over_all_steps(joined(before)))


def test_most_models_had_something_to_join() -> None:
    """The test above would pass for a pass that had nothing to do."""
    had = [name for name in EMPTIED if list(over_all_steps(prepared(MODELS[name]())))]
    assert set(EMPTIED) - set(had) == {"mse_inside", "loss_of_each_step"}


# --- golden texts


def _forward() -> Graph:
    """Embedding, running state, head and a total: all in one loop."""

    def total(table: Any, head: Any, tokens: Any) -> Any:
        xs = rnp.swapaxes(rnp.take(table, tokens, axis=0), 0, 1)
        _, ys = rg.scan(lambda h, x: (h * 0.5 + x, h * 0.5 + x), rnp.zeros((B, D), "f64"), xs)
        return rnp.sum(rnp.exp(rnp.swapaxes(ys, 0, 1) @ head))

    return rg.trace(  # type: ignore[no-any-return]
        total, rg.spec("f64", V, D), rg.spec("f64", D, 5), rg.spec("i32", B, "T")
    )


def _backward() -> Graph:
    """A squared error outside of the loop, and its gradient."""

    def loss(w: Any, xs: Any, target: Any) -> Any:
        _, ys = rg.scan(lambda h, x: (rnp.tanh(h * w + x),) * 2, rnp.zeros((B,), "f64"), xs)
        return rnp.mean((ys - target) ** 2)

    steps = rg.spec("f64", "T", B)
    return rg.trace(rg.value_and_grad(loss), rg.spec("f64"), steps, steps)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name, build", [("forward", _forward), ("backward", _backward)])
def test_goldens(
    name: str, build: Callable[[], Graph], golden: Callable[[str, str], None]
) -> None:
    golden(f"passes/join-{name}.ir", plain(joined(prepared(build()))) + "\n")


# --- what is where


def test_the_head_is_computed_once_where_its_gradient_is() -> None:
    after = joined(prepared(MODELS["language"]()))
    forward, backward = bodies(after)
    assert count(forward, "exp") == 0 and count(forward, "dot_general") == 2
    assert count(backward, "log") == 1 and count(backward, "scatter_add") == 2
    assert count(after, "dot_general") == count(after, "exp") == count(after, "gather") == 0


def test_what_two_loops_make_is_a_recomputation_in_the_later() -> None:
    after = joined(prepared(MODELS["language"]()))
    first, second = ([n for n in body.nodes if n.op.name == "gather"] for body in bodies(after))
    table = first[0]
    again = next(n for n in second if n.origin.ancestors[0] == table.origin.ancestors[0])
    assert (table.origin.role, table.origin.group) == ("primal", 0)
    assert (again.origin.role, again.origin.made_by) == ("recompute", "join")
    assert again.origin.group != 0
    outside = everywhere(CSE(), HoistScan()(after))  # side by side again, they stay two
    assert sum(n.op.name == "gather" and n.output.shape[-1] == D for n in outside.nodes) == 2


def test_loops_over_the_results_of_loops_become_one() -> None:
    before = prepared(MODELS["deep"]())
    assert [len(bodies(g)) for g in (before, joined(before), joined(before, False))] == [6, 2, 6]
    forward, backward = bodies(joined(before))
    assert count(forward, "dot_general") == 6
    assert not forward.name.endswith("backward") and backward.name.endswith("backward")


def test_a_loop_that_begins_where_the_other_ends_stays_behind_it() -> None:
    before = prepared(MODELS["begun_by_the_other"]())
    assert len(bodies(joined(before))) == len(bodies(before)) == 4


def test_a_result_of_all_steps_is_computed_once_outside() -> None:
    after = joined(prepared(MODELS["with_results"]()))
    stacked = [n for n in after.nodes if n.op.name == "dot_general" and n.output.type.ndim == 3]
    assert len(stacked) == 1
    heads = [n for body in bodies(after) for n in body.nodes if n.op.name == "dot_general"]
    assert not any(dims.same(n.output.shape[-1], 5) and n.output.shape[0] == B for n in heads)


def test_what_needs_another_total_of_the_same_loop_stays() -> None:
    """The spread about a mean over time needs the mean first, a second look at all steps."""
    after = joined(prepared(MODELS["spread_about_the_mean"]()))
    forward, _ = bodies(after)
    assert count(forward, "tanh") == 2  # the mean's part joined
    assert count(after, "sin") == 1


def test_random_bits_stay_where_they_are_drawn() -> None:
    after = joined(prepared(MODELS["dropped"]()))
    assert count(after, "random_bits") == 1
    assert not any(count(body, "random_bits") for body in bodies(after))


def test_attention_over_time_stays() -> None:
    before = prepared(MODELS["attending_over_time"]())
    after = joined(before)
    square = [n for n in after.nodes if sum(map(has_steps, n.outputs[0].shape)) == 2]
    assert count(after, "exp") == 1
    assert not any(n.op.name == "transpose" and dims.same(n.output.shape[1], B) for n in square)


def test_what_is_printed_is_printed_in_order() -> None:
    def loss(w: Any, xs: Any) -> Any:
        def step(h: Any, x: Any) -> Any:
            h = rnp.tanh(x @ w["x"] + h @ w["h"])
            rg.debug.print("step {}", rnp.sum(h))
            return h, h

        _, ys = rg.scan(step, start()[0], xs)
        shown = rnp.sum(rnp.exp(ys))
        rg.debug.print("sum {}", shown)
        _, zs = rg.scan(step, start()[0], ys[..., :D])
        return shown * rnp.sum(rnp.exp(zs))

    spec = {"x": rg.spec("f64", D, H), "h": rg.spec("f64", H, H)}
    before = prepared(rg.trace(rg.value_and_grad(loss), spec, rg.spec("f64", "T", B, D)))
    after = joined(before)
    effects = [n.op.name for n in after.nodes if n.op.name in ("scan", "debug_print")]
    assert effects[:3] == ["scan", "debug_print", "scan"]
    assert len(bodies(after)) == 4 - 1  # the loops backward print nothing, and become one


def test_equal_sizes_are_told_apart() -> None:
    """Every axis has size 4: only positions say which are the steps."""
    n = 4

    def loss(w: Any, xs: Any, targets: Any) -> Any:
        _, ys = rnn_of(n, w, rnp.swapaxes(xs, 0, 1))
        y = rnp.swapaxes(ys, 0, 1)
        mixed = rnp.sum(rnp.tanh(rnp.einsum("bti,bsi->bts", y, y)))
        flat = rnp.sum(rnp.sin(y.reshape((n * n, n)) @ w["o"]))
        return rg.losses.cross_entropy(y @ w["o"], targets).sum + mixed + flat

    spec = {name: rg.spec("f64", n, n) for name in ("x", "h", "o")}
    given = (spec, rg.spec("f64", n, n, n), rg.spec("i32", n, n))
    before = prepared(rg.trace(rg.value_and_grad(loss), *given))
    after = joined(before)
    assert after is not before
    draw = np.random.default_rng(3)
    arrays = [
        draw.normal(size=[int(d) for d in v.shape]) if v.dtype.is_float
        else draw.integers(0, n, [int(d) for d in v.shape]).astype("i4") for v in before.inputs
    ]  # fmt: skip
    for x, y in zip(evaluate(before, arrays), evaluate(after, arrays), strict=True):
        np.testing.assert_allclose(y, x, rtol=1e-11, atol=1e-12)


def rnn_of(width: int, w: Any, xs: Any) -> Any:
    def step(h: Any, x: Any) -> Any:
        h = rnp.tanh(x @ w["x"] + h @ w["h"])
        return h, h

    return rg.scan(step, rnp.zeros((xs.shape[1], width), "f64"), xs)


def test_a_batch_of_any_size_joins() -> None:
    def loss(w: Any, tokens: Any, targets: Any) -> Any:
        xs = rnp.swapaxes(rnp.take(w["table"], tokens, axis=0), 0, 1)
        ys = rnp.swapaxes(rnn_of(H, w, xs)[1], 0, 1)
        return rg.losses.cross_entropy(ys @ w["o"], targets)

    shapes = {"table": (V, D), "x": (D, H), "h": (H, H), "o": (H, V)}
    spec = {name: rg.spec("f64", *shape) for name, shape in shapes.items()}
    tokens = rg.spec("i32", "B", "T")
    before = prepared(rg.trace(rg.value_and_grad(loss), spec, tokens, tokens))
    after = joined(before)
    left = [n for n in after.nodes if n.op.name != "scan" and n.outputs[0].dtype.is_float]
    assert not any(has_steps(d) for n in left for d in n.outputs[0].shape)
    draw = np.random.default_rng(5)
    for batch, steps in ((1, 1), (3, 3), (2, 5)):
        arrays = [draw.normal(size=s) for s in (shapes[k] for k in sorted(shapes))]
        named = {f"w.{k}": x for k, x in zip(sorted(shapes), arrays, strict=True)}
        named |= {
            k: draw.integers(0, V, (batch, steps)).astype("i4") for k in ("tokens", "targets")
        }
        given = [named[name] for name in before.input_names]
        for x, y in zip(evaluate(before, given), evaluate(after, given), strict=True):
            np.testing.assert_allclose(y, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_half_precision_is_summed_in_f32(dtype: str) -> None:
    """600 ones: step by step in bf16 they would stay at 256."""

    def total(xs: Any) -> Any:
        _, ys = rg.scan(lambda h, x: (x, rnp.exp(x - h)), rnp.zeros((), dtype), xs)
        return rnp.sum(ys * 0.0 + 1.0)

    before = prepared(rg.trace(total, rg.spec(dtype, "T")))
    after = joined(before)
    assert after is not before
    xs = np.zeros(600).astype(before.inputs[0].dtype.numpy)
    (found,) = evaluate(after, [xs])
    assert found == np.asarray(600).astype(xs.dtype)


def test_one_step_and_no_loop_are_left_alone() -> None:
    def loss(w: Any, xs: Any) -> Any:
        return rnp.sum(rnp.exp(rnn(w, xs)[1]))

    spec = {"x": rg.spec("f64", D, H), "h": rg.spec("f64", H, H)}
    single = prepared(rg.trace(loss, spec, rg.spec("f64", 1, B, D)))
    assert JoinScan()(single) is single
    plain_graph = prepared(rg.trace(lambda x: rnp.sum(x * 2.0), rg.spec("f64", "T", 3)))
    assert JoinScan()(plain_graph) is plain_graph


def test_the_number_of_nodes_does_not_depend_on_the_length() -> None:
    def nodes(steps: int) -> Counter[str]:
        def loss(w: Any, xs: Any) -> Any:
            _, ys = rg.scan(lambda c, x: lstm(w, c, x), start(), xs)
            return rnp.sum(rnp.exp(ys))

        shapes = {"x": (D, 4 * H), "h": (H, 4 * H), "b": (4 * H,)}
        spec = {name: rg.spec("f64", *shape) for name, shape in shapes.items()}
        graph = joined(prepared(rg.trace(rg.grad(loss), spec, rg.spec("f64", steps, B, D))))
        inner = (n for body in bodies(graph) for n in body.nodes)
        return Counter(n.op.name for n in (*graph.nodes, *inner))

    assert nodes(32) == nodes(4096)
