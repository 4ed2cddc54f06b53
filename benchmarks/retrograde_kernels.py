"""Kernel problems -> programs whose arrays all lie in the arena, as contenders.

What a kernel reads and what it returns is state of its program: donated inputs, of which the first
are replaced by themselves and the others by the results.  So a step copies nothing in or out, as
in a training step, where kernels find their arrays in the arena too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.kernels import KernelProblem, fingerprint, resident_bytes
from benchmarks.measure import Contender


def contender(problem: KernelProblem, threads: int, *, backend: str = "native") -> Contender:
    """The kernel and its gradient, ready to run."""
    from retrograde.execution import runnable

    arrays = problem.inputs()
    if backend == "native":
        from retrograde.runtime.native.toolchain import find_toolchain

        find_toolchain()  # looked for once a machine
    start = time.perf_counter()
    graph, count = in_arena(problem, arrays, backend), len(arrays)
    run = runnable(graph, {}, backend, threads)
    outputs = [np.zeros(v.type.shape, v.dtype.numpy) for v in graph.inputs[count:]]
    run.executable.set_state([*arrays.values(), *outputs])
    del arrays  # they are in the arena, and nowhere else
    seconds = time.perf_counter() - start
    kept = resident_bytes(problem, outputs)
    del outputs
    plan = run.executable.plan({})
    return Contender(
        step=lambda: run.run([], {}),
        persistent_bytes=kept,
        planned_peak_bytes=plan.peak_bytes,
        arena_bytes=plan.arena_bytes,
        numbers=lambda: fingerprint(run.executable.state()[count:]),
        compile_seconds=seconds,
    )


def in_arena(problem: KernelProblem, arrays: Mapping[str, Any], backend: str) -> Any:
    """The graph (inputs, old outputs) -> (inputs, outputs), in which each replaces its like."""
    import retrograde as rg
    from retrograde.execution import tracing_for

    def both(**given: Any) -> tuple[Any, ...]:
        return value_and_gradients(problem, given)

    names = list(arrays)
    specs = [rg.spec(x.dtype, *x.shape) for x in arrays.values()]
    with tracing_for(backend):
        plain = rg.trace(lambda *xs: both(**dict(zip(names, xs, strict=True))), *specs)
        olds = [rg.spec(v.dtype, *v.type.shape) for v in plain.outputs]

        def kernel(*xs: Any) -> tuple[Any, ...]:
            given = xs[: len(names)]
            return (*given, *both(**dict(zip(names, given, strict=True))))

        kernel.__name__ = problem.kind
        graph = rg.trace(kernel, *specs, *olds)
    return graph.replace(aliases=tuple((i, i) for i in range(len(graph.inputs))))


def value_and_gradients(problem: KernelProblem, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """The value of the kernel, and the gradients by what it is differentiated by."""
    import retrograde as rg

    function = FUNCTIONS[problem.kind]
    rest = {name: x for name, x in given.items() if name != "g" and name not in problem.wrt}
    if not problem.wrt:
        return (function(**rest),)

    def of(*xs: Any) -> Any:
        return function(**dict(zip(problem.wrt, xs, strict=True)), **rest)

    value, pullback = rg.vjp(of, *(given[name] for name in problem.wrt))
    return (value, *pullback(given["g"]))


# --- the functions, as users write them


def softmax(x: Any) -> Any:
    import retrograde.numpy as rnp

    return rnp.softmax(x, axis=-1)


def layer_norm(x: Any, gain: Any, bias: Any) -> Any:
    import retrograde.numpy as rnp

    mean = rnp.mean(x, axis=-1, keepdims=True)
    centred = x - mean
    variance = rnp.mean(centred * centred, axis=-1, keepdims=True)
    return centred / rnp.sqrt(variance + 1e-5) * gain + bias


def gelu(x: Any) -> Any:
    import retrograde.numpy as rnp

    return rnp.gelu(x)


def attention(q: Any, k: Any, v: Any) -> Any:
    import retrograde.numpy as rnp

    scores = q @ rnp.swapaxes(k, -1, -2) * q.shape[-1] ** -0.5
    steps = rnp.arange(q.shape[-2])
    scores = rnp.where(steps[:, None] >= steps[None, :], scores, -np.inf)
    return rnp.softmax(scores, axis=-1) @ v


def head(x: Any, w: Any, targets: Any) -> Any:
    import retrograde as rg

    return rg.losses.cross_entropy(x @ w, targets).value


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "softmax": softmax,
    "layer_norm": layer_norm,
    "gelu": gelu,
    "attention": attention,
    "head": head,
    "gemm": lambda x, w: x @ w,
    "gemm_transposed": lambda x, w: x.T @ w,
}
