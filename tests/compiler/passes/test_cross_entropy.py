"""Heads become one op in what users write, with the same values and gradients; what is refused, and
why."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde import nn, tree
from retrograde.compiler.ir.graph import Graph
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.verify import verify
from retrograde.compiler.ops.region import nested
from retrograde.compiler.passes.cross_entropy import ChunkHeads, chunked
from retrograde.compiler.pipeline import Options, compile_graph
from retrograde.runtime.device import get_device
from retrograde.runtime.executable import Executable
from retrograde.traces import Declared

Array = npt.NDArray[Any]
V, D = 13, 5
RNG = np.random.default_rng(3)
X, W, B = RNG.standard_normal((3, 4, D)), RNG.standard_normal((D, V)), RNG.standard_normal(V)
T = RNG.integers(0, V, (3, 4)).astype(np.int32)
MASK = RNG.uniform(size=(3, 4)) < 0.6
KNOWN = np.where(MASK, T, -1).astype(np.int32)
BY_CLASS = RNG.uniform(0.5, 2.0, V)
cross_entropy = rg.losses.cross_entropy

Loss = Callable[..., Any]


def traced(fn: Loss, *arguments: Any) -> tuple[Graph, list[Array]]:
    declared = Declared.of(fn, arguments)
    trace, _ = declared.trace()
    arrays = [np.asarray(x) for x in (*tree.leaves(arguments), *trace.captured)]
    return trace.graph, arrays


def heads(graph: Graph) -> int:
    """How many heads are one op, wherever they are."""
    found = [n.op.name for node in graph.nodes for n in nested(node)]
    return found.count("linear_cross_entropy")


def rows_by_classes(graph: Graph) -> list[str]:
    """What still makes something of the size of the logits, which no other array here has."""
    return [
        node.op.name for outer in graph.nodes for node in nested(outer) for v in node.outputs
        if v.shape and v.shape[-1] == V and v.type.size == 12 * V
    ]  # fmt: skip


def same(found: list[Array], expected: list[Array]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


def becomes_one(fn: Loss, *arguments: Any, again: int = 0) -> Graph:
    """The value alone and with gradients by the first argument: as before, without logits; `again`
    tells how often the head is recomputed."""
    transform = ChunkHeads(least=2, wider=0)
    plain, arrays = traced(fn, *arguments)
    made = transform(plain)
    verify(made)
    assert heads(made) == 1 and not rows_by_classes(made)
    same(evaluate(made, arrays), evaluate(plain, arrays))
    both = rg.value_and_grad(fn)
    plain, arrays = traced(both, *arguments)
    with chunked(transform):
        gradient, _ = traced(both, *arguments)
    verify(gradient)
    assert heads(gradient) == 1 + again and not rows_by_classes(gradient)
    same(evaluate(gradient, arrays), evaluate(plain, arrays))
    return made


def written_out(x: Any, w: Any, t: Any) -> Any:
    logits = rnp.matmul(x, w)
    shifted = logits - rnp.max(logits, axis=-1, keepdims=True)
    logs = shifted - rnp.log(rnp.sum(rnp.exp(shifted), axis=-1, keepdims=True))
    return -rnp.mean(rnp.take_along_axis(logs, t[..., None], axis=-1))


def by_logsumexp(x: Any, w: Any, t: Any) -> Any:
    logits = rnp.matmul(x, w)
    picked = rnp.take_along_axis(logits, t[..., None], axis=-1)[..., 0]
    return rnp.mean(rnp.logsumexp(logits, axis=-1) - picked)


def smoothed_by_hand(x: Any, w: Any, t: Any) -> Any:
    logs = rnp.log_softmax(rnp.matmul(x, w), axis=-1)
    picked = rnp.take_along_axis(logs, t[..., None], axis=-1)
    return -0.9 * rnp.mean(picked) - 0.1 * rnp.mean(rnp.sum(logs, axis=-1)) / V


def flat(x: Any, w: Any, t: Any) -> Any:
    logits = rnp.reshape(rnp.matmul(x, w), (12, V))
    logs = rnp.log_softmax(logits, axis=-1)
    return -rnp.sum(logs[rnp.arange(12), rnp.reshape(t, (12,))])


def with_z_loss(x: Any, w: Any, t: Any) -> Any:
    logits = rnp.matmul(x, w)
    return cross_entropy(logits, t).value + 1e-2 * rnp.mean(rnp.logsumexp(logits, axis=-1) ** 2)


WRITTEN = {
    "matmul": lambda x, w, t: cross_entropy(x @ w, t).value,
    "einsum": lambda x, w, t: cross_entropy(rnp.einsum("btd,dv->btv", x, w), t).value,
    "sum": lambda x, w, t: cross_entropy(x @ w, t).sum,
    "transposed": lambda x, w, t: cross_entropy(x @ (w.T + 0).T, t).value,
    "reshaped": lambda x, w, t: (
        cross_entropy(rnp.reshape(x @ w, (12, V)), rnp.reshape(t, (12,))).value
    ),
    "mask": lambda x, w, t: cross_entropy(x @ w, t, MASK).value,
    "ignored": lambda x, w, t: cross_entropy(x @ w, KNOWN, ignore_index=-1).value,
    "smoothed": lambda x, w, t: cross_entropy(x @ w, t, MASK, label_smoothing=0.2).value,
    "weights": lambda x, w, t: cross_entropy(x @ w, t, weights=BY_CLASS).value,
    "all": lambda x, w, t: (
        cross_entropy(
            x @ w + B, KNOWN, label_smoothing=0.3, ignore_index=-1, weights=BY_CLASS
        ).value
    ),
    "bias": lambda x, w, t: cross_entropy(x @ w + B, t).value,
    "written out": written_out, "logsumexp": by_logsumexp, "by hand": smoothed_by_hand,
    "flat": flat, "z-loss": with_z_loss,
    "log_softmax": lambda x, w, t: -rnp.mean(
        rnp.take_along_axis(rnp.log_softmax(x @ w, axis=-1), t[..., None], axis=-1)
    ),
    "counted from the end": lambda x, w, t: -rnp.mean(
        rnp.take_along_axis(rnp.log_softmax(x @ w, axis=-1), t[..., None] - V, axis=-1)
    ),
    "recomputed": lambda x, w, t: cross_entropy(
        rg.remat(lambda x, w: rnp.tanh(x) @ w + B)(x, w), t
    ).value,
    "recomputed whole": rg.remat(lambda x, w, t: cross_entropy(rnp.tanh(x) @ w, t).value),
    "a late target": lambda x, w, t: (
        lambda logits: (rnp.logsumexp(logits, axis=-1) - cross_entropy(logits, t + 0).sum).sum()
    )(x @ w),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_what_users_write(name: str) -> None:
    fn = WRITTEN[name]
    again = name == "recomputed whole"  # as asked for
    becomes_one(lambda weights, t: fn(*weights, t), (X, W), T, again=again)


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer(bias: bool) -> None:
    layer = nn.Linear(D, V, bias=bias, seed=1)
    x = X.astype(np.float32)
    graph, arrays = traced(lambda m, x, t: cross_entropy(m(x), t).value, layer, x, T)
    made = ChunkHeads(least=2, wider=0)(graph)
    assert heads(made) == 1 and not rows_by_classes(made)
    named, _ = traced(lambda m, x, t: cross_entropy(m["out"](x), t).value, {"out": layer}, x, T)
    scopes = {n.op.name: n.scope for n in named.nodes}
    (one,) = (n for n in ChunkHeads(least=2, wider=0)(named).nodes if "linear" in n.op.name)
    assert one.scope == scopes["dot_general"]
    (found,), (expected,) = evaluate(made, arrays), evaluate(graph, arrays)
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("options", [{"tied": True}, {"tied": False}, {"remat": False}])
def test_models(options: dict[str, bool]) -> None:
    """Embeddings give up nothing; a head that is recomputed gives up its product."""
    sizes: dict[str, Any] = {"vocab": V, "width": 6, "layers": 1, "heads": 2, "context": 4}
    model = tree.map(
        lambda x: RNG.standard_normal(x.shape), rg.models.GPT(**sizes, **options, seed=2)
    )
    tokens = np.roll(T, 1, axis=1)

    def loss(model: Any, tokens: Any, t: Any) -> Any:
        return cross_entropy(model(tokens), t).value

    made = becomes_one(loss, model, tokens, T)
    assert any(n.op.name == "remat_call" for n in made.nodes) == options.get("remat", False)
    (one,) = (n for n in made.nodes if n.op.name == "linear_cross_entropy")
    assert one.loc is not None and one.loc.file == __file__


def test_a_recurrent_model_with_lengths() -> None:
    model = tree.map(
        lambda x: RNG.standard_normal(x.shape), rg.models.RNNLM(vocab=V, width=6, layers=1, seed=2)
    )
    lengths = np.array([4, 2, 3], np.int32)

    def loss(model: Any, tokens: Any, t: Any) -> Any:
        logits = model(tokens, lengths=lengths)
        return cross_entropy(logits, t, MASK).value

    plain, arrays = traced(rg.value_and_grad(loss), model, T, T)
    with chunked(ChunkHeads(least=2, wider=0)):
        made, _ = traced(rg.value_and_grad(loss), model, T, T)
    same(evaluate(made, arrays), evaluate(plain, arrays))
    assert heads(made) == 1


def test_two_heads_and_a_mask_that_depends_on_the_first() -> None:
    other = RNG.standard_normal((D, 2 * V))

    def loss(weights: Any, t: Any) -> Any:
        x, w = weights
        nll = rnp.logsumexp(x @ w, axis=-1) - rnp.take_along_axis(x @ w, t[..., None], -1)[..., 0]
        second = x @ other
        hard = cross_entropy(x @ w, t).sum > 0
        return cross_entropy(second, t, rnp.broadcast_to(hard, (3, 4))).value + 0 * nll.sum()

    both = rg.value_and_grad(loss)
    plain, arrays = traced(both, (X, W), T)
    with chunked(ChunkHeads(least=2, wider=0)):
        made, _ = traced(both, (X, W), T)
    verify(made)
    assert heads(made) == 2
    same(evaluate(made, arrays), evaluate(plain, arrays))


def accuracy(x: Any, w: Any, t: Any) -> Any:
    logits = x @ w
    right = rnp.mean((rnp.argmax(logits, axis=-1) == t).astype("f64"))
    return cross_entropy(logits, t).value + right


def two_targets(x: Any, w: Any, t: Any) -> Any:
    logits = x @ w
    return cross_entropy(logits, t).value + cross_entropy(logits, (t + 1) % V).value


def returned(x: Any, w: Any, t: Any) -> Any:
    logits = x @ w
    return cross_entropy(logits, t).value, logits


def learnt_from_itself(x: Any, w: Any, t: Any) -> Any:
    logits = x @ w
    lse = rnp.logsumexp(logits, axis=-1)
    return cross_entropy(rnp.where((lse > 1.0)[..., None], logits, 0.0), t).value


def shifted_by_less(x: Any, w: Any, t: Any) -> Any:
    logits = rnp.matmul(x, w)
    logs = logits - rnp.log(rnp.sum(rnp.exp(logits), axis=-1, keepdims=True))
    return rnp.mean(rnp.logsumexp(logits, axis=-1)) + rnp.mean(logs[..., 0])


REFUSED = {
    "accuracy": (accuracy, "is read by argmax"),
    "two targets": (two_targets, "several targets"),
    "returned": (returned, "is returned"),
    "itself": (learnt_from_itself, "is read by|depends on it"),
    "exp": (shifted_by_less, "is read by"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_why_and_change_nothing(name: str) -> None:
    fn, reason = REFUSED[name]
    refusals: list[str] = []
    graph, _ = traced(fn, X, W, T)
    made = ChunkHeads(least=2, wider=0, refusals=refusals)(graph)
    assert heads(made) == 0
    (line,) = refusals
    assert re.search(f"the logits stay whole: .*({reason})", line), line
    assert "test_cross_entropy.py" in line


def by_column(x: Any, w: Any, t: Any) -> Any:
    shifted = (logits := x @ w) - rnp.max(logits, axis=-1)
    logs = shifted - rnp.log(rnp.sum(rnp.exp(shifted), axis=-1, keepdims=True))
    return -rnp.mean(logs[rnp.arange(V), t])


def levels_by_column(x: Any, w: Any, t: Any) -> Any:
    shifted = (logits := x @ w) - rnp.max(logits, axis=-1, keepdims=True)
    return -rnp.mean((shifted - rnp.log(rnp.sum(rnp.exp(shifted), axis=-1)))[rnp.arange(V), t])


def added_across(x: Any, w: Any, t: Any) -> Any:
    top = rnp.max(logits := x @ w, axis=-1)
    return rnp.sum(top + rnp.log(rnp.sum(rnp.exp(logits - top[:, None]), axis=-1, keepdims=True)))


def biased_by_row(x: Any, w: Any, t: Any) -> Any:
    return rnp.mean(rnp.logsumexp(x @ w + (rnp.arange(V) * 0.5)[:, None], axis=-1))


def moved_away(x: Any, w: Any, t: Any) -> Any:
    top = rnp.reshape(rnp.max(logits := x @ w, axis=-1, keepdims=True), (1, V))
    shifted = logits - rnp.broadcast_to(top, (V, V))
    logs = shifted - rnp.log(rnp.sum(rnp.exp(shifted), axis=-1, keepdims=True))
    return -rnp.mean(logs[rnp.arange(V), t])


@pytest.mark.parametrize(
    "fn", [by_column, levels_by_column, added_across, biased_by_row, moved_away]
)
def test_rows_and_classes_of_one_number_are_not_mistaken_for_each_other(fn: Loss) -> None:
    """Without keepdims the numbers of rows stand beside the classes, where there are as many."""
    x = np.random.default_rng(5).standard_normal((V, D))
    graph, arrays = traced(fn, x, W, np.arange(V, dtype=np.int32)[::-1])
    made = ChunkHeads(least=2, wider=0)(graph)
    assert heads(made) == 0
    same(evaluate(made, arrays), evaluate(graph, arrays))


@pytest.mark.parametrize(
    ("transform", "dtype", "reason"),
    [
        (ChunkHeads(), np.float64, "13 classes of width 5 save little; 4096 would"),
        (ChunkHeads(least=2), np.float64, "13 classes of width 5 save little; 20 would"),
        (ChunkHeads(least=2, wider=0), np.float16, "f32 or f64, not f16"),
    ],
)
def test_sizes_and_types_that_are_left(
    transform: ChunkHeads, dtype: type[Any], reason: str
) -> None:
    refusals: list[str] = []
    transform = ChunkHeads(transform.least, transform.wider, refusals=refusals)
    arrays = (X.astype(dtype), W.astype(dtype), T)
    graph, _ = traced(lambda x, w, t: cross_entropy(x @ w, t).value, *arrays)
    assert heads(transform(graph)) == 0
    assert len(refusals) == 1 and reason in refusals[0]


def test_a_loss_in_a_loop_stays_as_it_is() -> None:
    """Other passes take its product out of the loop, for all steps at once."""

    def loss(w: Any, x: Any, t: Any) -> Any:
        def step(total: Any, now: Any) -> Any:
            return total + cross_entropy(now[0] @ w, now[1]).sum, None

        total, _ = rg.scan(step, rnp.zeros((), "f64"), (x, t))
        return total

    with chunked(ChunkHeads(least=2, wider=0)):
        graph, _ = traced(rg.grad(loss), W, X, T)
    assert heads(graph) == 0


def test_what_is_not_read_does_not_keep_the_logits() -> None:
    def loss(x: Any, w: Any, t: Any) -> Any:
        logits = x @ w
        rnp.argmax(logits, axis=-1)
        return cross_entropy(logits, t).value

    graph, _ = traced(loss, X, W, T)
    assert heads(ChunkHeads(least=2, wider=0)(graph)) == 1


def test_products_without_a_loss_are_no_heads() -> None:
    refusals: list[str] = []
    graph, _ = traced(lambda x, w: rnp.tanh(x @ w), X, W)
    assert ChunkHeads(least=2, wider=0, refusals=refusals)(graph) is graph
    assert not refusals


def test_the_pipeline_takes_wide_heads_where_it_is_asked_to() -> None:
    rng = np.random.default_rng(8)
    x, w, t = rng.standard_normal((2, 3)), rng.standard_normal((3, 4096)), np.array([4095, 17])
    graph, arrays = traced(lambda x, w, t: cross_entropy(x @ w, t).value, x, w, t)
    asked = compile_graph(graph, Options(heads=True))
    assert heads(asked.stages["heads"]) == 1 and "linear_cross_entropy" in asked.program.source
    assert "linear_cross_entropy" not in compile_graph(graph, Options()).program.source
    found = Executable(asked.program, get_device("numpy")).run(arrays, {})
    same(found, evaluate(graph, arrays))
