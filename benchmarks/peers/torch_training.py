"""A loss and its parameters in PyTorch -> a training step as a contender: clipping and AdamW."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from benchmarks.measure import Contender
from benchmarks.problem import GRUProblem, LSTMProblem, RaggedProblem


def training_contender(
    problem: LSTMProblem | GRUProblem | RaggedProblem,
    parameters: Sequence[Tensor],
    loss_of: Callable[[], Tensor],
) -> Contender:
    """A step is `loss_of`, backward, the clipping of the problem and fused AdamW."""
    adamw = torch.optim.AdamW(
        parameters,
        lr=problem.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=problem.weight_decay,
        fused=True,
    )

    def step() -> tuple[float, float]:
        adamw.zero_grad(set_to_none=True)
        loss = loss_of()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(parameters, problem.clip_norm, foreach=True)
        adamw.step()
        return loss.item(), norm.item()

    return Contender(step=step, persistent_bytes=problem.persistent_bytes)
