"""The compiled training step: what it computes, what it keeps, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde import tree
from retrograde.errors import (
    CheckpointError,
    DataError,
    DTypeError,
    ShapeError,
    TraceError,
    UnsupportedError,
)

RNG = np.random.default_rng(4)


class Net(rg.nn.Module):
    """A table, two layers, dropout, and a head that shares the table."""

    table: rg.nn.Embedding
    layer: rg.nn.Linear
    drop: rg.nn.Dropout
    head: rg.nn.Linear
    positions: Any = None

    def __call__(self, ids: Any) -> Any:
        x = self.table(ids)
        if self.positions is not None:
            x = x + self.positions
        return self.head(self.drop(rnp.tanh(self.layer(x))))


def net(dropout: float = 0.0, tied: bool = False, positions: Any = None) -> Net:
    m = Net(
        rg.nn.Embedding(11, 6, seed=0),
        rg.nn.Linear(6, 6, seed=1),
        rg.nn.Dropout(dropout),
        rg.nn.Linear(6, 11, seed=2, bias=False),
        positions,
    )
    if tied:
        m.head.weight = np.ascontiguousarray(m.table.weight.T)
        m.head = Tied(m.table.weight)  # type: ignore[assignment]
    return m


class Tied(rg.nn.Module):
    weight: Any

    def __call__(self, x: Any) -> Any:
        return x @ self.weight.T


def loss(model: Any, ids: Any, targets: Any) -> Any:
    return rg.losses.cross_entropy(model(ids), targets)


IDS = rg.spec("i32", "B", "T")
BATCH = {"ids": IDS, "targets": IDS}


def batch(b: int = 3, t: int = 5) -> dict[str, Any]:
    return {name: RNG.integers(0, 11, (b, t), dtype=np.int32) for name in ("ids", "targets")}


def make(model: Any = None, optimizer: Any = None, **options: Any) -> rg.TrainStep:
    model = net() if model is None else model
    return rg.compile_training(
        loss, model, optimizer or rg.optim.AdamW(0.05), batch=BATCH, **options
    )


def assert_same(a: Any, b: Any) -> None:
    tree.map(np.testing.assert_array_equal, a, b)


# --- what it computes


@pytest.mark.parametrize("tied", [False, True])
def test_steps_are_those_of_the_written_out_loop(tied: bool) -> None:
    m = net(tied=tied)
    step = make(m, rg.optim.SGD(0.3, momentum=0.9), clip_norm=0.5)
    velocity = tree.map(np.zeros_like, m)
    for b, t in ((3, 5), (2, 7), (1, 1), (3, 5)):
        data = batch(b, t)
        value, grads = rg.value_and_grad(loss)(m, **data)
        norm = np.sqrt(sum(np.sum(g.astype(float) ** 2) for g in tree.leaves(grads)))
        scale = min(1.0, 0.5 / (norm + 1e-6))
        velocity = tree.map(lambda v, g, s=scale: 0.9 * v + s * g, velocity, grads)
        m = tree.map(lambda p, v: (p - 0.3 * v).astype(np.float32), m, velocity)
        metrics = step(**data)
        assert metrics["loss"] == pytest.approx(float(value), rel=1e-5)
        assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)
        assert metrics["lr"] == pytest.approx(0.3)
        tree.map(lambda p, q: np.testing.assert_allclose(p, q, rtol=2e-4, atol=2e-6), m, step.model)
    assert len(tree.leaves(step.model)) == (3 if tied else 4) and isinstance(step.model, Net)


def test_it_learns() -> None:
    step = make()
    ids = batch(4, 6)["ids"]
    losses = [step(ids=ids, targets=(ids + 1) % 11)["loss"] for _ in range(60)]
    assert losses[-1] < losses[0] / 10


def test_one_program_serves_all_sizes() -> None:
    step = make(at={"B": 3, "T": 5})
    program = step._runnable()
    for _ in range(10):
        b, t = (int(n) for n in RNG.integers(1, 12, 2))
        step(**batch(b, t))
        assert step.peak_bytes == step.plan(B=b, T=t).peak_bytes == step.peak()(B=b, T=t)
    assert step._runnable() is program


def test_a_token_that_appears_often_adds_up() -> None:
    step = make(optimizer=rg.optim.SGD(1.0))
    ids = np.full((2, 4), 3, np.int32)
    before = step.model
    g = rg.grad(loss)(before, ids, ids)
    step(ids=ids, targets=ids)
    moved = before.table.weight - step.model.table.weight
    np.testing.assert_allclose(moved, g.table.weight, atol=1e-6)
    assert moved[3].any() and not np.delete(moved, 3, 0).any()


def test_means_of_several_terms() -> None:
    def two(m: Any, x: Any) -> Any:
        return rg.Mean(rnp.sum(m["w"] * x), x.size) + 0.5 * rg.Mean(rnp.sum(m["w"] ** 2), 1)

    w = RNG.standard_normal(3)
    step = rg.compile_training(
        two, {"w": w.copy()}, rg.optim.SGD(0.1), {"x": rg.spec("f64", "B", 3)}
    )
    x = RNG.standard_normal((4, 3))
    step(x=x)
    np.testing.assert_allclose(step.model["w"], w - 0.1 * (x.sum(0) / 12 + w), rtol=1e-12)


def test_what_is_no_float_is_kept_and_not_trained() -> None:
    m = net(positions=np.ones((1, 6), np.int32))
    step = make(m)
    step(**batch())
    np.testing.assert_array_equal(step.model.positions, np.ones((1, 6)))
    assert "model.positions" in step.state()[0]
    zeros = step.model.replace(positions=np.zeros((1, 6), np.int32))
    data = batch()
    step.model = zeros
    assert step(**data)["loss"] == pytest.approx(float(rg.jit(loss)(zeros, **data).value), rel=1e-5)


def test_unused_parameters_stay() -> None:
    class More(rg.nn.Module):
        used: Any
        unused: Any

        def __call__(self, ids: Any) -> Any:
            return self.used(ids)

    m = More(net(), np.ones(3, np.float32))
    step = make(m, rg.optim.SGD(0.1, momentum=0.5))
    step(**batch())
    step(**batch())
    np.testing.assert_array_equal(step.model.unused, np.ones(3))
    assert (step.model.used.layer.weight != m.used.layer.weight).any()


def test_the_callers_arrays_are_left_alone() -> None:
    m = net()
    kept = tree.map(np.copy, m)
    step = make(m)
    data = batch()
    copies = {k: v.copy() for k, v in data.items()}
    step(**data)
    assert_same(m, kept)
    for name in data:
        np.testing.assert_array_equal(data[name], copies[name])
    snapshot = step.model
    step(**data)
    assert (snapshot.layer.weight != step.model.layer.weight).any()


# --- dropout


def test_dropout_follows_seed_step_and_place() -> None:
    data = batch()

    def losses(seed: int, count: int = 3) -> list[float]:
        step = make(net(0.5), rg.optim.SGD(0.0), seed=seed)
        return [step(**data)["loss"] for _ in range(count)]

    first = losses(0)
    assert first == losses(0)
    assert len(set(first)) == 3  # each step draws anew, though the parameters stay
    assert first != losses(1)
    plain = make(net(0.0), rg.optim.SGD(0.0))(**data)["loss"]
    quiet = make(net(0.5).eval(), rg.optim.SGD(0.0))(**data)["loss"]
    assert quiet == plain and plain not in first


def test_two_layers_draw_apart_and_rows_do_not_depend_on_the_batch() -> None:
    class Masks(rg.nn.Module):
        a: rg.nn.Dropout
        b: rg.nn.Dropout
        w: Any

        def __call__(self, x: Any) -> Any:
            return self.a(x), self.b(x), self.a(x)

    def kept(m: Any, x: Any) -> Any:
        one, two, again = m(x)
        rg.debug.print("{}", (one > 0) * 1 + (two > 0) * 2 + (again > 0) * 4)
        return rnp.sum(m.w)

    import contextlib
    import io

    def draw(n: int, remat: bool) -> str:
        m = Masks(rg.nn.Dropout(0.5), rg.nn.Dropout(0.5), np.ones(1, np.float32))
        fn = rg.remat(kept) if remat else kept
        step = rg.compile_training(
            lambda m, x: fn(m, x), m, rg.optim.SGD(0.1), {"x": rg.spec("f32", "B", 40)}
        )
        with contextlib.redirect_stdout(io.StringIO()) as out:
            step(x=np.ones((n, 40), np.float32))
        return out.getvalue()

    four, six = draw(4, False), draw(6, False)
    numbers = np.array(four.replace("[", " ").replace("]", " ").split(), int)
    bits = [(numbers >> i & 1) for i in range(3)]
    for i in range(3):
        assert 0.3 < bits[i].mean() < 0.7
        assert 0.3 < (bits[i] == bits[(i + 1) % 3]).mean() < 0.7
    assert six.startswith(four.rstrip().rstrip("]"))
    assert draw(4, True) == four


# --- state


def test_state_and_checkpoints_continue_bit_for_bit(tmp_path: Path) -> None:
    data = [batch(3, t) for t in (5, 2, 7, 4, 6)]
    whole = make(net(0.3), clip_norm=1.0, seed=7)
    for d in data:
        whole(**d)
    first = make(net(0.3), clip_norm=1.0, seed=7)
    for d in data[:2]:
        first(**d)
    first.save(tmp_path / "run")
    second = make(net(0.3), clip_norm=1.0, seed=99)  # the checkpoint's seed counts
    second.restore(tmp_path / "run")
    for d in data[2:]:
        second(**d)
    a, b = whole.state(), second.state()
    assert a[1] == b[1] == {"steps": 5}
    assert a[0].keys() == b[0].keys()
    for name in a[0]:
        np.testing.assert_array_equal(a[0][name], b[0][name])
    assert {"model.table.weight", "optimizer.m.table.weight", "step", "key"} <= a[0].keys()


def test_tied_weights_are_saved_once(tmp_path: Path) -> None:
    step = make(net(tied=True))
    step(**batch())
    step.save(tmp_path / "c")
    other = make(net(tied=True))
    other.restore(tmp_path / "c")
    assert_same(other.model, step.model)
    m = other.model
    assert m.head.weight is m.table.weight
    with pytest.raises(CheckpointError, match=r"it has no 'model\.head\.weight'"):
        make(net()).restore(tmp_path / "c")


def test_another_models_checkpoint_changes_nothing(tmp_path: Path) -> None:
    step = make()
    step(**batch())
    step.save(tmp_path / "c")
    wide = net()
    wide.layer = rg.nn.Linear(6, 6, seed=1, bias=False)
    others = [
        make(wide),
        make(optimizer=rg.optim.SGD(0.1)),
        make(tree.map(lambda x: x.astype(np.float64), net())),
        make(net().replace({"table.weight": np.ones((13, 6), np.float32)})),
    ]
    for other in others:
        before = other.state()
        with pytest.raises(CheckpointError):
            other.restore(tmp_path / "c")
        for name, x in other.state()[0].items():
            np.testing.assert_array_equal(x, before[0][name])
    with pytest.raises(CheckpointError):
        step.restore(tmp_path / "nowhere")


def test_the_model_is_assignable() -> None:
    step, other = make(), make(net())
    step(**batch())
    state = step.state()[0]
    step.model = other.model
    assert_same(step.model, other.model)
    np.testing.assert_array_equal(
        step.state()[0]["optimizer.m.layer.weight"], state["optimizer.m.layer.weight"]
    )
    assert int(step.state()[0]["step"]) == 1
    m = step.model
    with pytest.raises(ShapeError, match=r"test_training\.py.*layer\.weight.*\[6,6\].*\[2, 6\]"):
        step.model = m.replace({"layer.weight": np.ones((2, 6), np.float32)})
    with pytest.raises(DTypeError, match=r"table\.weight"):
        step.model = m.replace({"table.weight": m.table.weight.astype(float)})
    with pytest.raises(ShapeError, match="another structure"):
        step.model = m.eval()
    assert_same(step.model, m)


def test_clones_part_ways() -> None:
    step = make()
    step(**batch())
    other = step.clone()
    assert_same(step.model, other.model)
    data = batch()
    assert step(**data) == other(**data)
    other(**data)
    assert (step.model.layer.weight != other.model.layer.weight).any()


# --- what it refuses


def test_bad_batches_are_named_and_change_nothing() -> None:
    step = make()
    step(**batch())
    before = step.state()[0]
    good = batch()
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"ids": good["ids"]}, DataError, r"test_training\.py.*'targets' is missing"),
        ({**good, "mask": good["ids"]}, DataError, r"'mask' is not expected.*ids, targets"),
        ({**good, "ids": good["ids"][0]}, ShapeError, r"ids: expected i32\[B,T\] \(2 axes\)"),
        ({**good, "ids": good["ids"][:, :2]}, ShapeError, r"targets|ids"),
        ({**good, "ids": good["ids"].astype(float)}, DTypeError, r"ids: .*got f64\[3, 5\]"),
        ({**good, "ids": "text"}, DTypeError, "ids"),
        ({k: v[:0] for k, v in good.items()}, DataError, r"batch is empty: ids .*\[0, 5\]"),
        ({k: v[:, :0] for k, v in good.items()}, DataError, r"batch is empty"),
        ({**good, "ids": good["ids"] + 11}, DataError, r"\b\d\d\b"),
        ({**good, "ids": good["ids"] - 11}, DataError, "-"),
        ({**good, "targets": good["targets"] + 11}, DataError, r"\b\d\d\b"),
    ]
    for bad, error, text in cases:
        with pytest.raises(error, match=text):
            step(**bad)
        after = step.state()[0]
        for name in before:
            np.testing.assert_array_equal(before[name], after[name])
    step(**good)


def test_bad_models_and_losses_are_named() -> None:
    with pytest.raises(DataError, match=r"test_training\.py.*nothing to train"):
        make({"n": np.arange(3)})
    with pytest.raises(DTypeError, match=r"test_training\.py.*layer of the model is a float"):
        make({"layer": 0.5})
    with pytest.raises(ShapeError, match=r"test_training\.py:\d+.*by_row.*f32\[B\]"):

        def by_row(m: Any, x: Any) -> Any:
            return rnp.sum(x * m["w"], axis=1)

        rg.compile_training(
            by_row, {"w": np.ones(3, np.float32)}, rg.optim.SGD(0.1), {"x": rg.spec("f32", "B", 3)}
        )
    with pytest.raises(UnsupportedError, match="count"):
        rg.compile_training(
            lambda m, x: rg.Mean(rnp.sum(x * m["w"]), rnp.sum(m["w"] > 0)),
            {"w": np.ones(3)}, rg.optim.SGD(0.1), {"x": rg.spec("f64", "B", 3)},
        )  # fmt: skip
    with pytest.raises(TraceError, match=r"test_training\.py:\d+"):
        rg.compile_training(
            lambda m, x: rnp.sum(x * m["w"]) if m["w"][0] > 0 else 0.0,
            {"w": np.ones(3)}, rg.optim.SGD(0.1), {"x": rg.spec("f64", "B", 3)},
        )  # fmt: skip


def test_options_that_cannot_be_say_so() -> None:
    with pytest.raises(UnsupportedError, match=r"test_training\.py.*precision='f8'"):
        make(precision="f8")
    with pytest.raises(DataError, match="clip_norm"):
        make(clip_norm=0.0)
    with pytest.raises(ShapeError, match="no size 'N'"):
        make(at={"N": 3})


# --- what it reads and tells


def test_what_the_loss_reads_is_read_anew() -> None:
    weights, factor = np.ones(11, np.float32), 1.0

    def weighted(model: Any, ids: Any, targets: Any) -> Any:
        return rg.losses.cross_entropy(model(ids), targets, weights=weights) * factor

    step = rg.compile_training(weighted, net(), rg.optim.AdamW(0.05), batch=BATCH)
    data = batch()

    def expected() -> float:
        mean = rg.jit(
            lambda m, d: rg.losses.cross_entropy(m(d["ids"]), d["targets"], weights=weights)
        )
        return float(mean(step.model, data).value) * factor

    for change in range(4):
        if change == 1:
            weights[:5] = 3.0
        if change == 2:
            weights = np.arange(11, dtype=np.float32)
        if change == 3:
            factor = 0.5
        now = expected()
        counted = int(step.state()[0]["step"])
        assert step(**data)["loss"] == pytest.approx(now, rel=1e-5)
        assert int(step.state()[0]["step"]) == counted + 1


def test_what_it_tells() -> None:
    step = make(at={"B": 3, "T": 5})
    graph = step.ir()
    n = len(graph.aliases)
    assert graph.aliases == tuple((i, i) for i in range(n)) and n == 3 * 4 + 1
    assert graph.input_names[n:] == ("key", "ids", "targets")
    assert graph.output_names[n:] == ("grad_norm", "loss", "lr")
    roles = {node.origin.role for node in graph.nodes}
    assert {"primal", "cotangent", "update"} <= roles
    assert {"table", "layer", "head", "optimizer"} <= {node.scope for node in graph.nodes}
    assert "planned peak" in step.report() and "state" in step.report()
    assert "in place" in step.report()
    assert "used by" in step.explain("layer.weight")
    assert "replaces layer.weight" in step.explain("new layer.weight")
    assert step.peak_bytes == step.plan().peak_bytes
    assert step.largest("T", budget=4 * step.peak_bytes, B=3) > 5
    assert "def bind(" in step.source()
    state = sum(x.nbytes for x in step.state()[0].values()) - step.state()[0]["key"].nbytes
    assert state <= step.plan().state_bytes < state + 64 * n


def test_poison_and_no_reuse_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    data = [batch(3, t) for t in (5, 9)]

    def run() -> Any:
        step = make(net(0.2), clip_norm=1.0)
        metrics = [step(**d) for d in data]
        return metrics, step.state()[0]

    plain = run()
    for variable in ("POISON", "NO_REUSE"):
        monkeypatch.setenv(f"RETROGRADE_{variable}", "1")
        other = run()
        monkeypatch.delenv(f"RETROGRADE_{variable}")
        assert other[0] == plain[0]
        for name in plain[1]:
            np.testing.assert_array_equal(other[1][name], plain[1][name])
