"""Branches and open-ended loops on every device: only what is taken runs, results lie in common
places, effects keep their order, in loops and around them, first and second order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from retrograde.compiler.errors import DataError, UnsupportedError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, TensorType
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.registry import lookup as op
from retrograde.compiler.ir.text import parse
from retrograde.compiler.passes.backward import Backward
from retrograde.compiler.pipeline import Options, compile_graph
from retrograde.compiler.plan.steps import BranchStep, CopyStep
from retrograde.runtime.protocol import Device
from tests.device.harness import MODES, check, executable, same_bits

T = dims.dim("T", min=0)
F64, BOOL = dtypes.f64, dtypes.bool_
Array = np.ndarray[Any, Any]


def graph_of(fn: Callable[..., Any], *types: TensorType, name: str = "f") -> Graph:
    builder = Builder(name, Expr)
    with builder:
        results = fn(*(builder.input(t) for t in types))
        results = results if isinstance(results, (tuple, list)) else (results,)
        return builder.finish([e.value for e in results])


def f64(*shape: Any) -> TensorType:
    return TensorType(F64, shape)


FLAG = TensorType(BOOL)


def cond(flag: Expr, then: Any, otherwise: Any, *operands: Expr) -> Any:
    types = [x.type for x in operands]
    first, second = graph_of(then, *types, name="then"), graph_of(otherwise, *types, name="no")
    return op("cond")(flag, *operands, then=first, otherwise=second)


def drawn(graph: Graph, seed: int = 0, **sizes: int) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [
        np.asarray(rng.standard_normal([dims.evaluate(d, sizes) for d in v.shape]))
        for v in graph.inputs
        if v.dtype is F64
    ]


def total(x: Expr) -> Expr:
    out: Expr = op("sum")(x, axes=tuple(range(x.ndim)), keepdims=False)
    return out


BRANCHES: dict[str, tuple[Any, Any]] = {
    "work on both sides": (
        lambda x, w: (op("tanh")(x @ w), total(x)),
        lambda x, w: (op("sin")(x) * 2.0, total(w)),
    ),
    "views and operands": (
        lambda x, w: (op("flip")(x, axes=(0,)), total(x * x)),
        lambda x, w: (x, op("reshape")(op("slice")(w, start=(1, 2), stop=(2, 3), step=(1, 1)),
                                       shape=())),
    ),
    "one value twice": (
        lambda x, w: (op("broadcast_to")(total(w), shape=x.shape), total(w)),
        lambda x, w: (x * total(x), total(x)),
    ),
    "constants": (
        lambda x, w: (op("broadcast_to")(op("constant")(value=0.5, dtype=F64), shape=x.shape),
                      op("constant")(value=2.0, dtype=F64)),
        lambda x, w: (x + 1.0, op("constant")(value=3.0, dtype=F64)),
    ),
    "parts put together": (
        lambda x, w: (
            op("concatenate")(
                *(op("sin")(op("slice")(x, start=(0, i), stop=(T, 3), step=(1, 1)))
                  if i else op("slice")(x, start=(0, 0), stop=(T, 1), step=(1, 1))
                  for i in (0, 1)),
                axis=1,
            ),
            total(x),
        ),
        lambda x, w: (x @ op("transpose")(w, perm=(1, 0)), total(w)),
    ),
}  # fmt: skip


def branched(name: str) -> Graph:
    def f(flag: Expr, x: Expr, w: Expr) -> Any:
        a, b = cond(flag, *BRANCHES[name], x * 2.0, w)
        return a * a, b, op("concatenate")(a, x, axis=1)

    return graph_of(f, FLAG, f64(T, 3), f64(3, 3))


@pytest.mark.parametrize("name", BRANCHES)
def test_cond(device: Device, name: str) -> None:
    graph = branched(name)
    arrays = [drawn(graph, t, T=t) for t in (0, 1, 5)]
    runs = [[np.asarray(flag), *given] for given in arrays for flag in (True, False)]
    check(graph, device, runs)
    gradient = Backward((0, 1, 2), (1, 2))(graph)
    arrays = [drawn(gradient, t, T=t) for t in (0, 1, 5)]
    check(gradient, device, [[np.asarray(flag), *given] for given in arrays
                             for flag in (True, False)], 1e-11)  # fmt: skip


def test_results_are_made_where_they_are_wanted() -> None:
    """No copies at the ends of branches that compute their results, into parts of a whole too."""

    def f(flag: Expr, x: Expr) -> Any:
        (y,) = (cond(flag, op("sin"), op("exp"), x),)
        return op("concatenate")(y, x, axis=0)

    schedule = compile_graph(graph_of(f, FLAG, f64(4, 3))).planned.schedule
    step, copy = schedule.steps
    assert isinstance(step, BranchStep) and isinstance(copy, CopyStep)
    assert [len(run) for run in (step.then, step.otherwise)] == [1, 1]


def test_branches_share_their_memory() -> None:
    """Temporaries of one branch lie where those of the other do."""

    def wide(x: Expr) -> Expr:
        big = op("broadcast_to")(op("reshape")(x, shape=(3, 1)), shape=(3, 1000))
        return op("sum")(op("cumsum")(big, axis=1, reverse=False), axes=(1,), keepdims=False)

    def peak(otherwise: Any) -> int:
        graph = graph_of(lambda flag, x: cond(flag, wide, otherwise, x), FLAG, f64(3))
        return compile_graph(graph).program.plan({}).peak_bytes

    assert peak(lambda x: wide(x * 2.0)) - peak(op("sin")) < 1000 < 3000 * 8 < peak(op("sin"))


def test_the_branch_not_taken_does_not_run(device: Device) -> None:
    """Neither its values nor its errors nor its derivatives are anywhere."""

    def f(x: Expr, i: Expr) -> Any:
        first = op("gather")(x, i, axes=(0,), wrap=False)
        return cond(
            first > 0.0,
            lambda x, i: op("log")(op("gather")(x, i, axes=(0,), wrap=False)),
            lambda x, i: total(x),
            x, i,
        )  # fmt: skip

    graph = graph_of(f, f64(3), TensorType(dtypes.i32, ()))
    gradient = Backward((0,), (0,))(graph)
    one = np.asarray(1.0)
    for x in (np.array([0.0, 2.0, 3.0]), np.array([4.0, 2.0, 3.0])):
        (found,) = check(gradient, device, [[x, np.int32(0), one]])([x, np.int32(0), one])[1:]
        assert np.isfinite(found).all()

    def guarded(flag: Expr, ids: Expr, table: Expr) -> Any:
        return cond(
            flag, lambda i, w: op("gather")(w, i, axes=(0,), wrap=False),
            lambda i, w: op("neg")(w), ids, table,
        )  # fmt: skip

    graph = graph_of(guarded, FLAG, TensorType(dtypes.i32, (4,)), f64(4, 3))
    wrong = np.array([0, 9, 1, 2], np.int32)
    given = [np.asarray(False), wrong, np.ones((4, 3))]
    check(graph, device, [given])
    _, run = executable(graph, device)
    with pytest.raises(DataError):
        run.run([np.asarray(True), *given[1:]], {})


def looped(x: Expr, h: Expr, w: Expr, length: Any = T) -> Any:
    """A cond in the body of a scan, which tests the slice, and a scan in one of its branches."""

    def rows(h: Expr, w: Expr) -> Expr:
        body = graph_of(lambda c, r: (op("tanh")(c + r),), f64(3), f64(3), name="rows")
        out: Expr = op("scan")(h, w, body=body, carries=1, slices=1, length=3, reverse=False)
        return out

    def turn(h: Expr, x: Expr, w: Expr) -> Any:
        new = cond(
            total(x) > 0.0,
            lambda h, x, w: op("tanh")(h @ w + x),
            lambda h, x, w: rows(h, w) * x,
            h, x, w,
        )  # fmt: skip
        return new, new * x

    body = graph_of(turn, f64(3), f64(3), f64(3, 3), name="body")
    return op("scan")(h, x, w, body=body, carries=1, slices=1, length=length, reverse=False)


def test_cond_in_a_loop_and_a_loop_in_it(device: Device) -> None:
    graph = graph_of(looped, f64(T, 3), f64(3), f64(3, 3))
    check(graph, device, [drawn(graph, 3, T=t) for t in (0, 1, 2, 7)])
    first = Backward((0, 1), (0, 1, 2))(graph)
    check(first, device, [drawn(first, 3, T=t) for t in (0, 1, 2, 7)], 1e-10)
    second = Backward((2, 3, 4), (0, 1, 2))(first)
    check(second, device, [drawn(second, 3, T=t) for t in (0, 1, 5)], 1e-9)


def test_the_gradient_runs_one_branch() -> None:
    """The backward branch is computed again from the operands: nothing else is kept."""
    graph = graph_of(
        lambda flag, x: cond(flag, lambda x: op("tanh")(op("exp")(x)), op("sin"), x),
        FLAG, f64(3),
    )  # fmt: skip
    gradient = Backward((0,), (1,))(graph)
    names = [n.op.name for n in gradient.nodes]
    assert names == ["cond", "cond"]
    inner = {key: [n.op.name for n in g.nodes] for key, g in gradient.nodes[1].subgraphs()}
    assert "sin" not in inner["otherwise"] and "cos" in inner["otherwise"]
    assert {n.origin.role for _, g in gradient.nodes[1].subgraphs() for n in g.nodes} <= {
        "recompute", "cotangent",
    }  # fmt: skip


# --- while


def halving(h: Expr, w: Expr) -> Any:
    def turn(h: Expr, n: Expr, w: Expr) -> Any:
        return op("sin")(h) * 0.5 + w * 0.01, n + 1.0

    operands = (h, op("constant")(value=0.0, dtype=F64), w)
    types = [x.type for x in operands]
    test = graph_of(lambda h, n, w: total(op("abs")(h)) > 0.5, *types, name="condition")
    body = graph_of(turn, *types, name="body")
    return op("while")(*operands, condition=test, body=body, carries=2)


def test_while_ends_when_its_condition_says_so(device: Device) -> None:
    graph = graph_of(lambda h, w: halving(h * 1.0, w), f64(T), f64(T))
    runs = [[scale * x for x in drawn(graph, 5, T=t)] for t in (0, 1, 4) for scale in (0.0, 1, 9)]
    check(graph, device, runs)
    turns = [float(evaluate(graph, arrays)[1]) for arrays in runs]
    assert turns[0] == 0 and len(set(turns)) > 2


SWAPS: dict[str, Any] = {
    "swap": lambda a, b, n: (b, a, n + 1.0),
    "rotate": lambda a, b, n: (b, op("tanh")(a), n + 1.0),
    "transposed": lambda a, b, n: (op("transpose")(a, perm=(1, 0)), a @ b, n + 1.0),
    "one value twice": lambda a, b, n: (a + b, a + b, n + 1.0),
    "stay": lambda a, b, n: (a, b, n + 1.0),
    "constant": lambda a, b, n: (
        op("broadcast_to")(op("constant")(value=0.5, dtype=F64), shape=(3, 3)), a, n + 1.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SWAPS)
def test_carries_of_while(device: Device, name: str) -> None:
    types = f64(3, 3), f64(3, 3), f64()

    def f(a: Expr, b: Expr, n: Expr) -> Any:
        test = graph_of(lambda a, b, n: n < 4.0, *types, name="condition")
        body = graph_of(SWAPS[name], *types, name="body")
        x, y, turns = op("while")(a, b, n, condition=test, body=body, carries=3)
        return x + y, x - y, op("concatenate")(x, y, axis=0), turns

    graph = graph_of(f, *types)
    a, b, _ = drawn(graph)
    check(graph, device, [[a, b, np.asarray(n)] for n in (4.0, 3.0, 2.0, -3.0)])


def test_while_in_a_loop_in_a_branch(device: Device) -> None:
    """Its flag is a carry; no turn is taken where it begins as false."""

    def search(h: Expr, x: Expr) -> Any:
        operands = (op("less")(total(h), 3.0), h, x)
        types = [v.type for v in operands]
        test = graph_of(lambda go, h, x: go, *types, name="condition")
        body = graph_of(
            lambda go, h, x: (total(h + x * x) < 3.0, h + x * x), *types, name="body"
        )  # fmt: skip
        _, h = op("while")(*operands, condition=test, body=body, carries=2)
        return h * 0.5, total(h)

    def f(flag: Expr, xs: Expr, h: Expr) -> Any:
        body = graph_of(search, f64(2), f64(2), name="step")
        return cond(
            flag,
            lambda xs, h: op("scan")(h, xs, body=body, carries=1, slices=1, length=T,
                                     reverse=False),
            lambda xs, h: (h, op("sum")(xs, axes=(1,), keepdims=False)),
            xs, h,
        )  # fmt: skip

    graph = graph_of(f, FLAG, f64(T, 2), f64(2))
    check(graph, device, [[np.asarray(flag), *drawn(graph, 2, T=t)]
                          for t in (0, 1, 4) for flag in (True, False)])  # fmt: skip


def test_while_refuses_a_derivative_and_takes_a_cut_one() -> None:
    graph = graph_of(lambda h, w: halving(h, w)[0] * w, f64(3), f64(3))
    with pytest.raises(UnsupportedError, match=r"while has no derivative.*rg\.scan"):
        Backward((0,), (0,))(graph)
    cut = graph_of(lambda h, w: op("stop_gradient")(halving(h, w)[0]) * w, f64(3), f64(3))
    h, w = drawn(cut)
    found = evaluate(Backward((0,), (0, 1))(cut), [h, w, np.ones(3)])
    same_bits(found[1], np.zeros(3))
    np.testing.assert_allclose(found[2] * w, found[0])


# --- effects and texts

PRINTING = """dims T>=0
graph f(%0: f64[], %1: f64[T]) {
  = debug_print %0 {format="start {:.0f}"}
  %2: f64[] = scan %0, %1 {
    body=graph body(%0: f64[], %1: f64[]) {
      %2: bool[] = less %1, %0
      %3: f64[] = cond %2, %0, %1 {
        otherwise=graph no(%0: f64[], %1: f64[]) {
          %2: f64[] = add %0, %1
          return %2
        },
        then=graph yes(%0: f64[], %1: f64[]) {
          = debug_print %0, %1 {format="{:.0f} above {:.0f}"}
          return %0
        }
      }
      = cond %2, %1 {
        otherwise=graph no(%0: f64[]) {
          = debug_print %0 {format="not {:.0f}"}
          return
        },
        then=graph yes(%0: f64[]) {
          return
        }
      }
      return %3
    }, carries=1, length=T, reverse=False, slices=1}
  %3: f64[] = while %2 {
    body=graph body(%0: f64[]) {
      %1: f64[] = neg %0
      = debug_print %1 {format="turn {:.0f}"}
      return %1
    },
    carries=1,
    condition=graph condition(%0: f64[]) {
      %1: f64[] = constant {dtype=f64, value=0.0}
      %2: bool[] = less %1, %0
      = debug_print %2 {format="goes on: {}"}
      return %2
    }}
  = debug_print %3 {format="end {:.0f}"}
  return %3 }"""
SHOWN = "start 2|2 above 1|not 3|5 above 4|goes on: True|turn -5|goes on: False|end -5|"


def test_effects_of_what_is_taken_come_in_order(
    device: Device, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = parse(PRINTING)
    assert parse(graph.text()).text() == graph.text()
    arrays = [np.asarray(2.0), np.array([1.0, 3.0, 4.0])]
    evaluate(graph, arrays)
    assert capsys.readouterr().out.replace("\n", "|") == SHOWN
    for options in MODES.values():
        _, run = executable(graph, device, options)
        run.run(arrays, {"T": 3})
        assert capsys.readouterr().out.replace("\n", "|") == SHOWN


def test_a_recomputed_branch_prints_once(capsys: pytest.CaptureFixture[str]) -> None:
    graph = parse(PRINTING)
    scan = next(n for n in graph.nodes if n.op.name == "scan")
    loop = graph.replace(
        nodes=tuple(n for n in graph.nodes if n.op.name == "scan"), outputs=scan.outputs
    )
    gradient = Backward((0,), (0, 1))(loop)
    _, *found = evaluate(gradient, [np.asarray(2.0), np.array([1.0, 3.0, 4.0]), np.asarray(1.0)])
    assert capsys.readouterr().out.replace("\n", "|") == "2 above 1|not 3|5 above 4|"
    np.testing.assert_array_equal(found[0], 1.0)
    np.testing.assert_array_equal(found[1], [0.0, 1.0, 0.0])


def test_dead_results_and_operands_leave_the_branches() -> None:
    def f(flag: Expr, x: Expr, w: Expr) -> Any:
        first, _ = cond(
            flag, lambda x, w: (op("sin")(x), x @ w), lambda x, w: (x, op("exp")(x)), x, w
        )
        return first

    stages = compile_graph(graph_of(f, FLAG, f64(3, 3), f64(3, 3)), Options(verify=True)).stages
    (node,) = stages["clean"].nodes
    assert len(node.inputs) == 2 and len(node.outputs) == 1
    assert [[n.op.name for n in g.nodes] for _, g in sorted(node.subgraphs())] == [[], ["sin"]]
