"""Sizes -> the same stacked LSTM in PyTorch eager: `torch.nn.LSTM` on packed sequences.

Embedding, head and loss work on the packed tokens too, so nothing is computed for padding."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from benchmarks.measure import Contender
from benchmarks.peers.torch_training import training_contender
from benchmarks.problem import RaggedProblem


def contender(problem: RaggedProblem, threads: int) -> Contender:
    """The training step of the problem, ready to run."""
    torch.set_num_threads(threads)
    weights = {name: torch.from_numpy(x) for name, x in problem.weights().items()}
    layer = nn.LSTM(problem.width, problem.width, num_layers=problem.layers)
    own = dict(layer.named_parameters())
    trained = []
    with torch.no_grad():
        for i in range(problem.layers):
            own[f"weight_ih_l{i}"].copy_(weights.pop(f"input{i}").T)
            own[f"weight_hh_l{i}"].copy_(weights.pop(f"hidden{i}").T)
            own[f"bias_ih_l{i}"].copy_(weights.pop(f"bias{i}"))
            own[f"bias_hh_l{i}"].zero_()  # the problem has one bias
            own[f"bias_hh_l{i}"].requires_grad_(False)
            trained += [own[f"{name}_l{i}"] for name in ("weight_ih", "weight_hh", "bias_ih")]
    rest = {name: nn.Parameter(x) for name, x in weights.items()}
    lengths = torch.from_numpy(problem.lengths()).long()
    ids, targets = (
        pack_padded_sequence(torch.from_numpy(x).long(), lengths)
        for x in problem.tokens_and_targets()
    )

    def loss() -> Tensor:
        x = PackedSequence(F.embedding(ids.data, rest["embedding"]), ids.batch_sizes)
        hidden = layer(x)[0].data
        return F.cross_entropy(hidden @ rest["head"] + rest["head_bias"], targets.data)

    return training_contender(problem, [*trained, *rest.values()], loss)
