"""A recipe's model in PyTorch eager (benchmarks/peers/recipes) -> its training, as a contender."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.measure import Contender
from benchmarks.recipe_problem import RecipeProblem


class Training:
    """The model, and fused AdamW with the rates of the recipe."""

    def __init__(self, problem: RecipeProblem, **changed: Any) -> None:
        given, name = problem.arrays, problem.recipe.replace("-", "_")
        file = importlib.import_module(f"benchmarks.peers.recipes.{name}")
        weights, self.settings = dict(given.weights), {**given.settings, **changed}
        self.model: nn.Module = file.model(weights, self.settings)
        if weights:
            raise ValueError(f"weights that are not in the peer's model: {', '.join(weights)}")
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.adamw = torch.optim.AdamW(
            self.parameters, betas=given.betas, weight_decay=self.settings["weight_decay"],
            fused=True,
        )  # fmt: skip
        self.rates, self.done = given.rates, 0
        self.batches = [
            {name: _tensor(x) for name, x in batch.items()} for batch in given.batches
        ]

    def step(self, batch: dict[str, torch.Tensor]) -> tuple[float, float]:
        """The loss before an update, and the norm of its gradients."""
        self.adamw.zero_grad(set_to_none=True)
        loss = self.model(**batch)
        loss.backward()
        norm = torch.zeros(())
        if self.settings["clip_norm"] is not None:
            norm = nn.utils.clip_grad_norm_(
                self.parameters, self.settings["clip_norm"], foreach=True
            )
        for group in self.adamw.param_groups:
            group["lr"] = self.rates[min(self.done, len(self.rates) - 1)]
        self.adamw.step()
        self.done += 1
        return loss.item(), norm.item()

    def run(self) -> list[float]:
        """One pass over the batches."""
        return [x for batch in self.batches for x in self.step(batch)]


def contender(problem: RecipeProblem, threads: int) -> Contender:
    """A pass of the training over the problem's batches, ready to run."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    training = Training(problem)
    return Contender(
        step=training.run,
        persistent_bytes=problem.persistent_bytes,
        numbers=lambda: Training(problem, dropout=0.0).run(),
    )


def _tensor(x: np.ndarray[Any, Any]) -> torch.Tensor:
    """PyTorch takes indices in 64 bits."""
    tensor = torch.from_numpy(np.ascontiguousarray(x))
    return tensor.long() if x.dtype.kind == "i" else tensor
