"""Lengths -> seconds to compile a training step of recurrent models, and how many nodes it has.

    python -m benchmarks.compile_time                  # T = 32, 4096 and a symbol
    python -m benchmarks.compile_time --length 100000

A loop over time is one node, so both figures should not depend on the length.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.compiler.ir.graph import Graph

VOCAB, BATCH = 65, 20  # no length is another size too: equal constants are merged


def lstm(width: int) -> tuple[Any, Callable[..., Any]]:
    """The language model that comes with Retrograde: model and loss."""

    def loss(model: Any, tokens: Any, targets: Any) -> Any:
        return rg.losses.cross_entropy(model(tokens), targets)

    return rg.models.RNNLM(vocab=VOCAB, width=width, layers=1, cell="lstm"), loss


def gru(width: int) -> tuple[Any, Callable[..., Any]]:
    """A GRU that is written as one step, with its embedding and head in the loop."""
    draw = rg.random
    shapes = {
        "embedding": (VOCAB, width),
        "input": (width, 3 * width),
        "hidden": (width, 3 * width),
        "head": (width, VOCAB),
    }
    keys = draw.split(draw.key(0), len(shapes))
    weights = {
        name: draw.normal(key, shape) * width**-0.5
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }

    def loss(w: Any, tokens: Any, targets: Any) -> Any:
        def cell(h: Any, given: Any) -> Any:
            token, target = given
            xr, xz, xn = rnp.split(rnp.take(w["embedding"], token, axis=0) @ w["input"], 3, axis=-1)
            hr, hz, hn = rnp.split(h @ w["hidden"], 3, axis=-1)
            r, z = rnp.sigmoid(xr + hr), rnp.sigmoid(xz + hz)
            h = z * h + (1 - z) * rnp.tanh(xn + r * hn)
            return h, rg.losses.cross_entropy(h @ w["head"], target).value

        zero = rnp.zeros((tokens.shape[0], width))
        _, losses = rg.scan(cell, zero, (tokens.T, targets.T))
        return rnp.mean(losses)

    return weights, loss


MODELS: dict[str, Callable[[int], tuple[Any, Callable[..., Any]]]] = {"lstm": lstm, "gru": gru}


def training_step(name: str, length: int | str, width: int = 64, batch: int = BATCH) -> Any:
    """The compiled step of a model for one length, or for all with a symbol."""
    model, loss = MODELS[name](width)
    ids = rg.spec("i32", batch, length)
    return rg.compile_training(
        loss, model, rg.optim.AdamW(1e-3), batch={"tokens": ids, "targets": ids}, clip_norm=1.0
    )


def count(graph: Graph) -> int:
    """The nodes of a graph and of everything in it."""
    return sum(1 + sum(count(body) for _, body in node.subgraphs()) for node in graph.nodes)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--length", action="append", type=int, help="repeatable")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5, help="compilations; the best counts")
    options = parser.parse_args(arguments)
    table = Table(title=f"compiling a training step, B{BATCH} d{options.width} V{VOCAB}")
    for heading in ("model", "T", "seconds", "nodes traced", "nodes run"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    lengths: list[int | str] = [*(options.length or (32, 4096)), "T"]
    for name in MODELS:
        training_step(name, lengths[0], options.width)  # imports and caches
        for length in lengths:
            seconds = []
            for _ in range(options.rounds):
                start = time.perf_counter()
                step = training_step(name, length, options.width)
                seconds.append(time.perf_counter() - start)
            counts = (str(count(step.ir(stage))) for stage in ("trace", "order"))
            table.add_row(name, str(length), f"{min(seconds):.3f}", *counts)
    Console(width=None if sys.stdout.isatty() else 100).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
