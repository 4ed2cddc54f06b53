"""Sizes -> the same LSTM in PyTorch eager: the cell in a Python loop, or `torch.nn.LSTM`.

The loop is as users write it: one step is `x @ Wx + h @ Wh + b`, four gates, two states."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import Contender
from benchmarks.peers.torch_training import training_contender
from benchmarks.problem import LSTMProblem

CELLS = ("loop", "library")


class LSTM(nn.Module):
    """tokens [T, B] -> logits [T, B, V]; the parameters have the names of the problem's weights,
    those of the library's layer its own."""

    def __init__(self, problem: LSTMProblem, cell: str) -> None:
        if cell not in CELLS:
            raise ValueError(f"cell is one of {', '.join(CELLS)}, not {cell!r}")
        super().__init__()
        weights = {name: torch.from_numpy(x) for name, x in problem.weights().items()}
        self.layer = None
        if cell == "library":
            self.layer = nn.LSTM(problem.width, problem.width)
            own = dict(self.layer.named_parameters())
            with torch.no_grad():
                own["weight_ih_l0"].copy_(weights.pop("input").T)
                own["weight_hh_l0"].copy_(weights.pop("hidden").T)
                own["bias_ih_l0"].copy_(weights.pop("bias"))
                own["bias_hh_l0"].zero_()  # the problem has one bias
            own["bias_hh_l0"].requires_grad_(False)
        for name, x in weights.items():
            self.register_parameter(name, nn.Parameter(x))

    def forward(self, tokens: Tensor) -> Tensor:
        x = F.embedding(tokens, self.get_parameter("embedding"))
        hidden = self.states(x) if self.layer is None else self.layer(x)[0]
        return hidden @ self.get_parameter("head") + self.get_parameter("head_bias")

    def states(self, x: Tensor) -> Tensor:
        wx, wh, b = (self.get_parameter(name) for name in ("input", "hidden", "bias"))
        h = c = torch.zeros_like(x[0])
        states = []
        for step in x:
            gates = step @ wx + h @ wh + b
            i, f, g, o = gates.chunk(4, dim=-1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            states.append(h)
        return torch.stack(states)

    def gradients(self) -> dict[str, Any]:
        """After a backward pass, under the names and in the layout of the problem."""
        found = {name: p.grad for name, p in self.named_parameters() if p.grad is not None}
        if self.layer is not None:
            found["input"] = found.pop("layer.weight_ih_l0").T
            found["hidden"] = found.pop("layer.weight_hh_l0").T
            found["bias"] = found.pop("layer.bias_ih_l0")
        return {name: g.numpy() for name, g in found.items()}


def _batch(problem: LSTMProblem) -> tuple[Tensor, Tensor]:
    tokens, targets = (torch.from_numpy(ids).long() for ids in problem.tokens_and_targets())
    return tokens, targets


def _loss(model: LSTM, tokens: Tensor, targets: Tensor) -> Tensor:
    logits = model(tokens)
    return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


def loss_and_gradients(problem: LSTMProblem, cell: str = "loop") -> tuple[float, dict[str, Any]]:
    """At the first parameters."""
    model = LSTM(problem, cell)
    loss = _loss(model, *_batch(problem))
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item(), model.gradients()


def contender(
    problem: LSTMProblem, threads: int, *, cell: str = "loop", compiled: bool = False
) -> Contender:
    """The training step of the problem, ready to run; `compiled` by torch.compile."""
    torch.set_num_threads(threads)
    model = LSTM(problem, cell)
    tokens, targets = _batch(problem)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if compiled:
        model.compile()
    return training_contender(problem, parameters, lambda: _loss(model, tokens, targets))
