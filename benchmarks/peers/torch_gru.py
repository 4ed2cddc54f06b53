"""Sizes -> the same GRU in PyTorch eager: `torch.nn.GRU`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import Contender
from benchmarks.peers.torch_training import training_contender
from benchmarks.problem import GRUProblem


def contender(problem: GRUProblem, threads: int) -> Contender:
    """The training step of the problem, ready to run."""
    torch.set_num_threads(threads)
    weights = {name: torch.from_numpy(x) for name, x in problem.weights().items()}
    layer = nn.GRU(problem.width, problem.width)
    own = dict(layer.named_parameters())
    with torch.no_grad():
        own["weight_ih_l0"].copy_(weights.pop("input").T)
        own["weight_hh_l0"].copy_(weights.pop("hidden").T)
        own["bias_ih_l0"].copy_(weights.pop("input_bias"))
        own["bias_hh_l0"].copy_(weights.pop("hidden_bias"))
    rest = {name: nn.Parameter(x) for name, x in weights.items()}
    tokens, targets = (torch.from_numpy(ids).long() for ids in problem.tokens_and_targets())

    def loss() -> Tensor:
        hidden = layer(F.embedding(tokens, rest["embedding"]))[0]
        logits = hidden @ rest["head"] + rest["head_bias"]
        return F.cross_entropy(logits.view(-1, problem.vocab), targets.view(-1))

    return training_contender(problem, [*own.values(), *rest.values()], loss)
