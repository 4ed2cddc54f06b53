"""Every workload, in the order in which they run."""

from __future__ import annotations

import pkgutil

from benchmarks.kernels import AttentionProblem, GemmProblem, HeadProblem, KernelProblem, RowProblem
from benchmarks.peers import recipes
from benchmarks.problem import GPTProblem, GRUProblem, LSTMProblem, RaggedProblem
from benchmarks.recipe_problem import RecipeProblem
from benchmarks.workload import OWN, Peer, Target, Workload, faster

TABLES = f"{OWN}-tables"  # with the rewrite of products with the rows of an embedding table
REWRITTEN = "retrograde leaves products with embedding rows as written; retrograde-tables does not"

PASSES = "a step is one pass over the batches; what is compared is a pass without dropout"


def _gpt(name: str, problem: GPTProblem, *targets: Target) -> Workload:
    torch = "benchmarks.peers.torch_gpt:contender"
    contenders = {
        OWN: Peer("retrograde", "benchmarks.retrograde_gpt:contender"),
        "torch": Peer("torch", torch),
        "jax": Peer("jax", "benchmarks.peers.jax_gpt:contender"),
        "torch.compile": Peer("torch", torch, {"compiled": True}, compiles=True),
    }
    return Workload(name, problem, contenders, targets)


def _lstm(name: str, problem: LSTMProblem, *targets: Target) -> Workload:
    own, torch = "benchmarks.retrograde_lstm:contender", "benchmarks.peers.torch_lstm:contender"
    contenders = {
        OWN: Peer("retrograde", own, {"tables": False}),
        TABLES: Peer("retrograde", own),
        "nn.LSTM": Peer("torch", torch, {"cell": "library"}),
        "torch-cell": Peer("torch", torch, {"cell": "loop"}),
        "jax": Peer("jax", "benchmarks.peers.jax_lstm:contender"),
        "torch.compile": Peer("torch", torch, {"cell": "loop", "compiled": True}, compiles=True),
    }
    return Workload(name, problem, contenders, targets, reference="torch-cell", note=REWRITTEN)


def _gru(name: str, problem: GRUProblem, *targets: Target) -> Workload:
    own = "benchmarks.retrograde_gru:contender"
    contenders = {
        OWN: Peer("retrograde", own, {"tables": False}),
        TABLES: Peer("retrograde", own),
        "nn.GRU": Peer("torch", "benchmarks.peers.torch_gru:contender"),
        "jax": Peer("jax", "benchmarks.peers.jax_gru:contender"),
    }
    return Workload(name, problem, contenders, targets, reference="nn.GRU", note=REWRITTEN)


def _ragged(name: str, problem: RaggedProblem, *targets: Target) -> Workload:
    contenders = {
        OWN: Peer("retrograde", "benchmarks.retrograde_ragged:contender", {"tables": False}),
        "nn.LSTM packed": Peer("torch", "benchmarks.peers.torch_ragged:contender"),
        "jax": Peer("jax", "benchmarks.peers.jax_ragged:contender"),
    }
    return Workload(name, problem, contenders, targets, reference="nn.LSTM packed")


def _kernel(name: str, problem: KernelProblem, *targets: Target, jax: bool = True) -> Workload:
    torch = "benchmarks.peers.torch_kernels:contender"
    contenders = {
        OWN: Peer("retrograde", "benchmarks.retrograde_kernels:contender"),
        "torch": Peer("torch", torch),
        "torch.compile": Peer("torch", torch, {"compiled": True}, compiles=True),
    }
    if jax:
        contenders["jax"] = Peer("jax", "benchmarks.peers.jax_kernels:contender")
    return Workload(name, problem, contenders, targets, tolerance=1e-4)


def _attention(length: int, *targets: Target) -> Workload:
    # The score matrix of JAX has 1 GiB at 8192 steps, several times over.
    return _kernel(f"attention-{length}", AttentionProblem(length), *targets, jax=length <= 4096)


def _recipes() -> tuple[Workload, ...]:
    """The recipes that have a peer."""
    files = pkgutil.iter_modules(recipes.__path__)
    found = sorted(file.name.replace("_", "-") for file in files)
    contenders = {
        OWN: Peer("retrograde", "benchmarks.retrograde_recipe:contender"),
        "torch": Peer("torch", "benchmarks.peers.torch_recipe:contender"),
    }
    return tuple(
        Workload(f"recipe-{name}", RecipeProblem(name), contenders, note=PASSES) for name in found
    )


ROWS = (Target("of its bandwidth", OWN, "copy", 0.75, 0.9),)

# Rows, inner, columns of the products of the two GPTs and the LSTM, forward and weight gradient.
SHAPES = (
    GemmProblem(768, 128, 512),
    GemmProblem(768, 512, 128),
    GemmProblem(128, 768, 512, transposed=True),
    GemmProblem(2048, 384, 1536),
    GemmProblem(2048, 1536, 384),
    GemmProblem(384, 2048, 1536, transposed=True),
    GemmProblem(4096, 256, 1024),
    GemmProblem(1024, 1024, 1024),
)

LENGTHS = (512, 1024, 2048, 4096, 8192)

WORKLOADS: tuple[Workload, ...] = (
    _gpt("gpt-small", GPTProblem(), faster("torch", 1.45, 1.9), faster("jax", 3.2, 4)),
    _gpt(
        "gpt-large",
        GPTProblem(length=256, batch=8, width=384, heads=6, layers=6),
        faster("torch", 1.3, 1.45),
        faster("jax", 2.4, 2.8),
    ),
    _lstm(
        "lstm-256",
        LSTMProblem(128, 32, 256),
        faster("nn.LSTM", 1.25, 1.4),
        faster("jax", 2, 2.2),
        faster("nn.LSTM", 2, 2.5, of=TABLES),
    ),
    _lstm(
        "lstm-128",
        LSTMProblem(128, 32, 128),
        faster("nn.LSTM", 1.2, 1.4),
        faster("jax", 2.4, 3),
        faster("nn.LSTM", 1.9, 2.3, of=TABLES),
    ),
    _lstm(
        "lstm-long",
        LSTMProblem(512, 8, 64),
        faster("nn.LSTM", 2.2, 2.6),
        faster("jax", 3.5, 4.5),
        faster("nn.LSTM", 3.2, 3.8, of=TABLES),
    ),
    _gru("gru-256", GRUProblem(), faster("nn.GRU", 1.2, 1.5)),
    _ragged("lstm-ragged", RaggedProblem(), faster("nn.LSTM packed", 1.2, 1.5)),
    *(
        _attention(length, *([faster("torch", 1.5, 1.75)] if length == 4096 else []))
        for length in LENGTHS
    ),
    _kernel(
        "head",
        HeadProblem(),
        faster("torch", 1.9, 2.2),
        Target("of its memory", OWN, "torch", 0.12, 0.12),
    ),
    *(_kernel(kind, RowProblem(kind), *ROWS) for kind in ("softmax", "layer_norm", "gelu")),
    *(
        _kernel(f"{p.kind}-{p.rows}x{p.inner}x{p.columns}".replace("_transposed", "-t"), p)
        for p in SHAPES
    ),
    *_recipes(),
)  # fmt: skip
