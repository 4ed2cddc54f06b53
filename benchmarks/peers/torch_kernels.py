"""Kernel problems in PyTorch, eager or by torch.compile: value and gradients, as contenders."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.kernels import KernelProblem, fingerprint, resident_bytes
from benchmarks.measure import Contender

FUNCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "softmax": lambda x: F.softmax(x, dim=-1),
    "layer_norm": lambda x, gain, bias: F.layer_norm(x, x.shape[-1:], gain, bias),
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "attention": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "head": lambda x, w, targets: F.cross_entropy(x @ w, targets),
    "gemm": lambda x, w: x @ w,
    "gemm_transposed": lambda x, w: x.T @ w,
}


def contender(problem: KernelProblem, threads: int, *, compiled: bool = False) -> Contender:
    """The kernel and its gradient, ready to run.  A step frees the results of the one before."""
    torch.set_num_threads(threads)
    given = {name: torch.from_numpy(x) for name, x in problem.inputs().items()}
    cotangent = given.pop("g", None)
    if "targets" in given:
        given["targets"] = given["targets"].long()
    wrt = [given[name].requires_grad_() for name in problem.wrt]
    function = FUNCTIONS[problem.kind]
    if compiled:
        function = torch.compile(function)
    results: list[Any] = []

    def step() -> None:
        results.clear()
        value = function(**given)
        gradients = torch.autograd.grad(value, wrt, cotangent) if wrt else ()
        results.extend((value.detach(), *gradients))

    start = time.perf_counter()
    step()
    return Contender(
        step=step,
        persistent_bytes=resident_bytes(problem, results),
        compile_seconds=time.perf_counter() - start if compiled else 0.0,
        numbers=lambda: fingerprint(results),
    )
