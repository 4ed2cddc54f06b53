"""Cells against loops in NumPy, loops against unrolled ones, lengths against noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde import nn, tree
from retrograde.nn.context import dropout_keys

Array = npt.NDArray[Any]
B, D, W = 4, 3, 5
LENGTHS = np.array([6, 0, 2, 5])
T = 6


def normal(*shape: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


def wide(module: Any, seed: int = 8) -> Any:
    """In float64, away from first values that would hide a wrong gate (biases of 0, gains of 1)."""
    rng = np.random.default_rng(seed)
    return tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape), module)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def norm(x: Array, layer: Any) -> Array:
    out = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + layer.eps)
    return out * layer.weight + (0 if layer.bias is None else layer.bias)


# --- the cells, each as its paper has it, gate by gate


def rnn_step(cell: nn.RNNCell, h: Array, x: Array) -> Array:
    s = x @ cell.weight_input + h @ cell.weight_recurrent
    s = s if cell.bias is None else s + cell.bias
    return np.tanh(s) if cell.nonlinearity == "tanh" else np.maximum(s, 0)


def gate(array: Array, k: int, count: int) -> Array:
    size = array.shape[-1] // count
    return array[..., k * size : (k + 1) * size]


def lstm_step(cell: nn.LSTMCell, carry: tuple[Array, Array], x: Array) -> tuple[Array, Array]:
    h, c = carry
    sums = []
    for k in range(4):
        s = x @ gate(cell.weight_input, k, 4) + h @ gate(cell.weight_recurrent, k, 4)
        sums.append(s if cell.bias is None else s + gate(cell.bias, k, 4))
    p = np.zeros((3, W)) if cell.peepholes is None else cell.peepholes
    new = sigmoid(sums[1] + p[1] * c) * c + sigmoid(sums[0] + p[0] * c) * np.tanh(sums[2])
    out = sigmoid(sums[3] + p[2] * new) * np.tanh(new)
    return (out if cell.weight_projection is None else out @ cell.weight_projection), new


def gru_step(cell: nn.GRUCell, h: Array, x: Array) -> Array:
    w, u = cell.weight_input, cell.weight_recurrent
    b = np.zeros(3 * W) if cell.bias is None else cell.bias
    r, z = (sigmoid(x @ gate(w, k, 3) + h @ gate(u, k, 3) + gate(b, k, 3)) for k in (0, 1))
    if cell.reset == "after":
        own = 0 if cell.recurrent_bias is None else cell.recurrent_bias
        back = r * (h @ gate(u, 2, 3) + own)
    else:
        back = (r * h) @ gate(u, 2, 3)
    n = np.tanh(x @ gate(w, 2, 3) + gate(b, 2, 3) + back)
    return (1 - z) * n + z * h


def norm_lstm_step(cell: Any, carry: tuple[Array, Array], x: Array) -> tuple[Array, Array]:
    h, c = carry
    s = norm(x @ cell.weight_input, cell.norm_input)
    s = s + norm(h @ cell.weight_recurrent, cell.norm_recurrent) + cell.bias
    i, f, g, o = (gate(s, k, 4) for k in range(4))
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(norm(c, cell.norm_memory)), c


def norm_gru_step(cell: Any, h: Array, x: Array) -> Array:
    of_x, of_h = x @ cell.weight_input, h @ cell.weight_recurrent
    s = norm(of_x[:, : 2 * W], cell.norm_input) + norm(of_h[:, : 2 * W], cell.norm_recurrent)
    r, z = (sigmoid(gate(s + cell.bias[: 2 * W], k, 2)) for k in (0, 1))
    own = norm(of_x[:, 2 * W :], cell.norm_candidate_input) + cell.bias[2 * W :]
    n = np.tanh(own + r * norm(of_h[:, 2 * W :], cell.norm_candidate))
    return (1 - z) * n + z * h


CELLS: dict[str, tuple[Callable[[], Any], Callable[..., Any]]] = {
    "tanh": (lambda: nn.RNNCell(D, W, seed=0), rnn_step),
    "relu": (lambda: nn.RNNCell(D, W, nonlinearity="relu", seed=0), rnn_step),
    "rnn bare": (lambda: nn.RNNCell(D, W, bias=False, seed=0), rnn_step),
    "lstm": (lambda: nn.LSTMCell(D, W, seed=0), lstm_step),
    "lstm bare": (lambda: nn.LSTMCell(D, W, bias=False, seed=0), lstm_step),
    "peephole": (lambda: nn.LSTMCell(D, W, peephole=True, seed=0), lstm_step),
    "projection": (lambda: nn.LSTMCell(D, W, projection=2, seed=0), lstm_step),
    "both": (lambda: nn.LSTMCell(D, W, peephole=True, projection=7, seed=0), lstm_step),
    "gru after": (lambda: nn.GRUCell(D, W, seed=0), gru_step),
    "gru before": (lambda: nn.GRUCell(D, W, reset="before", seed=0), gru_step),
    "gru bare": (lambda: nn.GRUCell(D, W, bias=False, seed=0), gru_step),
    "norm lstm": (lambda: nn.LayerNormLSTMCell(D, W, seed=0), norm_lstm_step),
    "norm gru": (lambda: nn.LayerNormGRUCell(D, W, seed=0), norm_gru_step),
}


def first(carry: Any) -> Array:
    """What a cell shows of its carry: h."""
    out: Array = carry[0] if isinstance(carry, tuple) else carry
    return out


def started(cell: Any) -> Any:
    """A carry that is not zero."""
    return tree.map(lambda c: 0.5 * normal(*c.shape, seed=c.shape[-1]), cell.initial(B))


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_over_time_is_the_loop_of_its_formula(name: str) -> None:
    make, formula = CELLS[name]
    cell = wide(make())
    x, carry = normal(B, T, D), started(cell)
    y, last = rg.jit(nn.Recurrent(cell))(x, carry)
    back, last_back = nn.Recurrent(cell)(x, carry, reverse=True)
    for found, end, order in ((y, last, range(T)), (back, last_back, range(T - 1, -1, -1))):
        state = carry
        for t in order:
            state = formula(cell, state, x[:, t])
            np.testing.assert_allclose(found[:, t], first(state), rtol=1e-12, atol=1e-13)
        for a, b in zip(tree.leaves(end), tree.leaves(state), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_is_a_function_of_one_step(name: str) -> None:
    make, formula = CELLS[name]
    cell = wide(make())
    x, carry = normal(B, D), started(cell)
    after, y = cell(carry, x)
    np.testing.assert_allclose(y, first(formula(cell, carry, x)), rtol=1e-12)
    assert first(after) is y or np.array_equal(first(after), y)
    one, _ = cell(tree.map(lambda c: c[0], carry), x[0])  # no batch at all
    np.testing.assert_allclose(first(one), y[0], rtol=1e-12)


def test_the_first_carry_is_zero_and_holds_cell_and_data() -> None:
    h, c = nn.LSTMCell(D, W, projection=2).initial(B, 7)
    assert (h.shape, c.shape) == ((B, 7, 2), (B, 7, W)) and not h.any() and not c.any()
    assert nn.GRUCell(D, W).initial().shape == (W,)
    layer = nn.Recurrent(nn.RNNCell(D, W))
    x = normal(B, T, D)
    assert layer(x)[0].dtype == np.float64 and layer(x.astype(np.float32))[0].dtype == np.float32
    assert wide(layer)(x.astype(np.float32))[0].dtype == np.float64
    np.testing.assert_array_equal(layer(x)[0], layer(x, np.zeros((B, W)))[0])


def test_first_values_are_as_stated() -> None:
    cell = nn.LSTMCell(300, 100, peephole=True, projection=50, seed=3)
    for name, shape in {
        "weight_input": (300, 400), "weight_recurrent": (50, 400), "peepholes": (3, 100),
        "weight_projection": (100, 50),
    }.items():  # fmt: skip
        x = cell.parameters()[name]
        assert x.shape == shape and x.dtype == np.float32
        assert np.abs(x).max() <= 0.1
        assert x.std() == pytest.approx(0.1 / np.sqrt(3), rel=0.15 if x.size < 1000 else 0.02)
    assert np.array_equal(np.flatnonzero(cell.bias), np.arange(100, 200))
    assert np.all(cell.bias[100:200] == 1)
    assert nn.LSTMCell(D, W, forget_bias=2.5).bias.sum() == 2.5 * W
    assert not nn.GRUCell(D, W).bias.any()
    a, b = (nn.LSTM(D, W, 2, bidirectional=True, seed=1) for _ in range(2))
    arrays = a.parameters()
    assert all(np.array_equal(x, b.parameters()[name]) for name, x in arrays.items())
    weights = [x.tobytes() for x in arrays.values() if x.ndim == 2]
    assert len(set(weights)) == len(weights) == 8


# --- the loop, and the same steps one by one


class Decaying(nn.Module):
    """A user's cell: two carries, one of integers, a tree of outputs, a gather."""

    rates: Any
    table: Any

    def initial(self, batch: Any) -> Any:
        return {"sum": rnp.zeros((batch, W), self.rates.dtype), "count": rnp.zeros(batch, "i32")}

    def __call__(self, carry: Any, x: Any) -> Any:
        rate = rnp.sigmoid(self.rates * rnp.sum(x["x"], -1, keepdims=True))
        total = rate * carry["sum"] + self.table[x["id"]]
        count = carry["count"] + (x["id"] > 1)
        return {"sum": total, "count": count}, {"total": rnp.tanh(total), "count": count}


def decaying() -> tuple[Any, Any]:
    cell = Decaying(normal(W, seed=2), normal(4, W, seed=3))
    ids = np.random.default_rng(5).integers(0, 4, (B, T)).astype(np.int32)
    return cell, {"x": normal(B, T, D), "id": ids}


def unrolled(layer: nn.Recurrent, x: Any, carry: Any) -> tuple[Any, Any]:
    rows = []
    for t in range(tree.leaves(x)[0].shape[1]):
        carry, y = layer.cell(carry, tree.map(lambda x, t=t: x[:, t], x))
        rows.append(y)
    return tree.map(lambda *ys: rnp.stack(ys, axis=1), rows[0], *rows[1:]), carry


def total(tree_of: Any) -> Any:
    """A number that depends on every float, on each in its own way."""
    out: Any = 0.0
    for k, x in enumerate(tree.leaves(tree_of)):
        if x.dtype == np.float64 or str(x.dtype) == "f64":
            size = int(np.prod(x.shape))
            weights = np.random.default_rng(k).normal(size=size).reshape(x.shape)
            out = out + rnp.sum(x * x * weights + x * weights[::-1])
    return out


@pytest.mark.parametrize("steps", [1, 2, T])
@pytest.mark.parametrize("name", [*CELLS, "user"])
def test_the_loop_is_its_unrolled_twin(name: str, steps: int) -> None:
    if name == "user":
        cell, x = decaying()
        x = tree.map(lambda x: x[:, :steps], x)
        carry = {"sum": normal(B, W), "count": np.arange(B, dtype=np.int32)}
    else:
        cell = wide(CELLS[name][0]())
        x, carry = normal(B, steps, D), started(cell)
    layer = nn.Recurrent(cell)
    floats = (lambda x: x["x"]) if name == "user" else (lambda x: x)

    def looped(layer: Any, values: Any, carry: Any, run: Any) -> Any:
        given = {**x, "x": values} if name == "user" else values
        start = {**carry, "count": np.arange(B, dtype=np.int32)} if name == "user" else carry
        return total(run(layer, given, start))

    start = {"sum": carry["sum"]} if name == "user" else carry
    results = []
    for run in (lambda m, x, c: m(x, c), unrolled):
        compute = rg.value_and_grad(
            lambda m, v, c, run=run: looped(m, v, c, run), argnums=(0, 1, 2)
        )
        results.append(compute(layer, floats(x), start))
    a, b = (tree.leaves(r) for r in results)
    assert len(a) == len(b) > 3
    for ours, theirs in zip(a, b, strict=True):
        scale = max(1.0, float(np.abs(theirs).max()))
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12 * scale)
    assert all(np.any(g) for g in tree.leaves(results[0][1]))


def test_no_steps_at_all() -> None:
    layer = nn.LSTM(D, W, 2, bidirectional=True, seed=0)
    x = np.zeros((B, 0, D), np.float32)
    carry = tree.map(lambda c: normal(*c.shape).astype(np.float32), layer.initial(B))
    for lengths in (None, np.zeros(B, np.int32)):
        y, after = layer(x, carry, lengths)
        assert y.shape == (B, 0, 2 * W)
        for a, b in zip(tree.leaves(after), tree.leaves(carry), strict=True):
            assert np.array_equal(a, b)
    compiled = rg.compile(
        lambda m, x: m(x)[0], layer, rg.spec("f32", "B", rg.dim("T", min=0), D), at={"B": B, "T": T}
    )
    assert compiled(layer, x).shape == (B, 0, 2 * W)
    x = normal(B, 1, D).astype(np.float32)
    np.testing.assert_allclose(compiled(layer, x), layer(x)[0], rtol=1e-6)
    grads = rg.grad(lambda m, x: rnp.sum(m(x)[0]))(layer, np.zeros((B, 0, D), np.float32))
    assert not any(np.any(g) for g in tree.leaves(grads))


def test_one_program_serves_every_size_and_is_one_loop() -> None:
    layer = wide(nn.GRU(D, W, 2, seed=0))
    compiled = rg.compile(
        lambda m, x, n: m(x, lengths=n)[0],
        layer, rg.spec("f64", "B", "T", D), rg.spec("i32", "B"),
        at={"B": B, "T": T},
    )  # fmt: skip
    assert [n.op.name for n in compiled.ir("trace").nodes].count("scan") == 2
    for b, t in ((B, T), (2, 9), (1, 1)):
        x, lengths = normal(b, t, D), np.arange(t, t - b, -1).clip(0).astype(np.int32)
        np.testing.assert_allclose(
            compiled(layer, x, lengths), layer(x, lengths=lengths)[0], rtol=1e-12
        )


def test_a_plain_function_is_a_cell_and_its_arrays_are_read_anew() -> None:
    weight = normal(W)

    def leaky(h: Any, x: Any) -> Any:
        h = rnp.sigmoid(weight) * h + x
        return h, rnp.max(h, axis=-1)

    layer = nn.Recurrent(leaky)
    x = normal(B, T, W)
    for _ in range(2):
        y, last = layer(x, np.zeros((B, W)))
        h = np.zeros((B, W))
        for t in range(T):
            h = sigmoid(weight) * h + x[:, t]
            np.testing.assert_allclose(y[:, t], h.max(-1), rtol=1e-12)
        np.testing.assert_allclose(last, h, rtol=1e-12)
        weight = normal(W, seed=9)


def test_cells_in_a_stack_may_be_the_users() -> None:
    class Mixing(nn.Module):
        weight: Any

        def initial(self, batch: Any) -> Any:
            return rnp.zeros((batch, W))

        def __call__(self, h: Any, x: Any) -> Any:
            h = rnp.tanh(h + x @ self.weight)
            return h, h

    weights = [normal(*s, seed=k) for k, s in enumerate([(D, W), (D, W), (2 * W, W), (2 * W, W)])]
    cells = [Mixing(w) for w in weights]
    stack = nn.Stack(cells[::2], cells[1::2])
    x = normal(B, T, D)
    y, carries = stack(x)
    expected = x
    for k in range(2):
        ways = []
        for way in range(2):
            h, rows = np.zeros((B, W)), {}
            for t in range(T) if way == 0 else range(T - 1, -1, -1):
                h = rows[t] = np.tanh(h + expected[:, t] @ weights[2 * k + way])
            ways.append(np.stack([rows[t] for t in range(T)], 1))
            np.testing.assert_allclose(carries[k][way], h, rtol=1e-12)
        expected = np.concatenate(ways, -1)
    np.testing.assert_allclose(y, expected, rtol=1e-12)


def test_pieces_of_a_sequence_are_the_whole() -> None:
    layer = wide(nn.LSTM(D, W, 2, seed=0))
    x = normal(B, T, D)
    whole, end = layer(x)
    head, carry = layer(x[:, :2])
    tail, last = layer(x[:, 2:], carry)
    np.testing.assert_allclose(np.concatenate([head, tail], 1), whole, rtol=1e-12)
    for a, b in zip(tree.leaves(last), tree.leaves(end), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


# --- lengths

LAYERS: dict[str, Callable[[], Any]] = {
    "rnn": lambda: nn.RNN(D, W, nonlinearity="relu", seed=0),
    "lstm": lambda: nn.LSTM(D, W, 2, peephole=True, projection=2, bidirectional=True, seed=0),
    "gru": lambda: nn.GRU(D, W, 2, bidirectional=True, seed=0),
    "gru before": lambda: nn.GRU(D, W, reset="before", seed=0),
    "norm lstm": lambda: nn.LSTM(D, W, layer_norm=True, bidirectional=True, seed=0),
    "norm gru": lambda: nn.GRU(D, W, layer_norm=True, seed=0),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_row_with_a_length_is_the_row_alone(name: str) -> None:
    layer = wide(LAYERS[name]())
    x = normal(B, T, D)
    carry = tree.map(lambda c: 0.5 * normal(*c.shape, seed=c.shape[-1]), layer.initial(B))
    y, after = layer(x, carry, LENGTHS)
    for row, n in enumerate(LENGTHS):
        alone = tree.map(lambda c, row=row: c[row : row + 1], carry)
        expected, end = layer(x[row : row + 1, :n], alone)
        np.testing.assert_allclose(y[row, :n], expected[0], rtol=1e-12, atol=1e-14)
        assert not y[row, n:].any()
        for a, b in zip(tree.leaves(after), tree.leaves(end), strict=True):
            np.testing.assert_allclose(a[row], b[0], rtol=1e-12, atol=1e-14)
    # Rows that have no step keep their carry to the bit; lengths beyond T are T, below 0 are 0.
    for a, b in zip(tree.leaves(after), tree.leaves(carry), strict=True):
        assert a[1].tobytes() == b[1].tobytes()
    again, _ = layer(x, carry, [60, -1, 2, 5])
    assert again.tobytes() == y.tobytes()


def bits(result: Any) -> list[bytes]:
    return [np.asarray(x).tobytes() for x in tree.leaves(result)]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", LAYERS)
def test_what_stands_beyond_the_ends_changes_no_bit(name: str, dtype: Any) -> None:
    layer = tree.map(lambda x: x.astype(dtype), wide(LAYERS[name]()))
    x = normal(B, T, D).astype(dtype)
    past = np.arange(T) >= LENGTHS[:, None]

    def loss(layer: Any, x: Any, carry: Any) -> Any:
        y, after = layer(x, carry, LENGTHS)
        value = rnp.sum(y * y) + sum(rnp.sum(c * c * c) for c in tree.leaves(after))
        return value, (y, after)

    compute = rg.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    carry = tree.map(lambda c: normal(*c.shape).astype(dtype), layer.initial(B))
    expected = compute(layer, x, carry)
    assert all(np.isfinite(leaf).all() for leaf in tree.leaves(expected))
    assert not expected[1][1][past].any()
    assert all(np.any(g) for g in tree.leaves(expected[1]))
    for noise in (np.nan, np.inf, -np.inf, 1e30, 7.0):
        noisy = np.where(past[..., None], dtype(noise), x)
        assert bits(compute(layer, noisy, carry)) == bits(expected), noise


def test_noise_in_trees_and_integers_of_a_users_cell() -> None:
    cell, x = decaying()
    layer = nn.Recurrent(cell)
    past = np.arange(T) >= LENGTHS[:, None]
    expected = layer(x, lengths=LENGTHS)
    noisy = {"x": np.where(past[..., None], np.nan, x["x"]), "id": np.where(past, 99, x["id"])}
    noisy["id"] = noisy["id"].astype(np.int32)
    assert bits(layer(noisy, lengths=LENGTHS)) == bits(expected)
    assert expected[1]["count"].tolist() == [
        int((x["id"][row, :n] > 1).sum()) for row, n in enumerate(LENGTHS)
    ]


# --- dropout


def with_keys(fn: Callable[..., Any], seed: int = 0) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        with dropout_keys(rg.random.key(seed)):
            return fn(*args)

    return run


def test_sequence_dropout_has_one_mask_for_all_steps() -> None:
    layer = nn.SequenceDropout(0.4)
    x = np.abs(normal(30, 7, 20)) + 1
    out = rg.jit(with_keys(layer))(x)
    kept = out != 0
    assert np.array_equal(kept, np.broadcast_to(kept[:, :1], kept.shape))
    assert kept[:, 0].mean() == pytest.approx(0.6, abs=0.05)
    assert len({row.tobytes() for row in kept[:, 0]}) == 30
    np.testing.assert_allclose(out[kept], x[kept] / 0.6, rtol=1e-12)
    assert np.array_equal(rg.jit(with_keys(layer.eval()))(x), x)


@pytest.mark.parametrize("variational", [True, False])
def test_dropout_acts_between_the_layers_alone(variational: bool) -> None:
    class Passing(nn.Module):
        def initial(self, batch: Any) -> Any:
            return rnp.zeros((batch, 20))

        def __call__(self, h: Any, x: Any) -> Any:
            return h, x

    x = np.ones((3, 7, 20))

    def run(count: int, seed: int = 0) -> Any:
        stack = nn.Stack([Passing()] * count, dropout=0.5, variational=variational)
        return rg.jit(with_keys(lambda s, x: s(x)[0], seed))(stack, x)

    assert np.array_equal(run(1), x)
    two, three = run(2), run(3)
    assert set(np.unique(two)) == {0.0, 2.0} and set(np.unique(three)) == {0.0, 4.0}
    assert two.mean() == pytest.approx(1, abs=0.2)
    assert three.astype(bool).mean() == pytest.approx(0.25, abs=0.15)  # another mask each time
    same = all(np.array_equal(two[:, t], two[:, 0]) for t in range(7))
    assert same == variational
    assert np.array_equal(two, run(2)) and not np.array_equal(two, run(2, seed=1))


@pytest.mark.parametrize("make", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_dropout_is_the_same_at_every_step(make: Any) -> None:
    layer = wide(make(D, W, recurrent_dropout=0.5, seed=0))
    x = normal(B, T, D)
    run = with_keys(lambda layer, x: layer(x)[0])
    compiled = rg.jit(run)(layer, x)
    assert not np.allclose(compiled, layer(x)[0])
    assert np.array_equal(rg.jit(run)(layer.eval(), x), layer(x)[0])
    with rg.eager():
        by_step = run(layer, x).numpy()
    np.testing.assert_allclose(by_step, compiled, rtol=1e-12)
    # The first step starts from zeros, of which nothing can be dropped.
    np.testing.assert_allclose(compiled[:, 0], layer(x)[0][:, 0], rtol=1e-12)

    def twice(layer: Any, x: Any) -> Any:
        return layer(x)[0], layer(x)[0]

    first_use, second = rg.jit(with_keys(twice))(layer, x)
    assert not np.allclose(first_use, second)  # two loops have two masks


def test_the_mask_of_recurrent_dropout_can_be_seen() -> None:
    cell = nn.RNNCell(1, 40, nonlinearity="relu", bias=False, dropout=0.5, seed=0)
    cell = cell.replace(weight_input=np.ones((1, 40)), weight_recurrent=np.eye(40))
    y, _ = rg.jit(with_keys(nn.Recurrent(cell)))(np.ones((3, 5, 1)))
    # h' = 1 + 2 h where h is kept, and 1 where it is dropped, at every step.
    kept = y[:, 1] == 3
    assert 0.2 < kept.mean() < 0.8
    assert np.array_equal(y, np.stack([np.where(kept, 2.0**t - 1, 1) for t in range(1, 6)], 1))


# --- PyTorch's layout, without PyTorch


@pytest.mark.parametrize("make", [
    lambda: nn.RNN(D, W, 2, seed=0),
    lambda: nn.LSTM(D, W, 2, projection=2, bidirectional=True, seed=0),
    lambda: nn.GRU(D, W, bidirectional=True, seed=0),
    lambda: nn.GRU(D, W, 2, bias=False, seed=0),
])  # fmt: skip
def test_the_layout_of_pytorch_and_back(make: Any) -> None:
    layer = wide(make())
    arrays = nn.to_torch_layout(layer)
    again = nn.from_torch_layout(tree.map(np.zeros_like, layer), arrays)
    assert bits(again) == bits(layer) and tree.structure(again) == tree.structure(layer)
    assert all(x.flags["C_CONTIGUOUS"] and x.dtype == np.float64 for x in arrays.values())
    for x in arrays.values():
        x += 1
    assert bits(layer) == bits(again)


def test_names_and_shapes_are_those_of_pytorch() -> None:
    arrays = nn.to_torch_layout(nn.LSTM(D, W, 2, projection=2, bidirectional=True, seed=0))
    found = {name: x.shape for name, x in arrays.items()}
    expected: dict[str, tuple[int, ...]] = {}
    for layer, inputs in ((0, D), (1, 4)):
        for way in ("", "_reverse"):
            expected[f"weight_ih_l{layer}{way}"] = (4 * W, inputs)
            expected[f"weight_hh_l{layer}{way}"] = (4 * W, 2)
            expected[f"bias_ih_l{layer}{way}"] = (4 * W,)
            expected[f"bias_hh_l{layer}{way}"] = (4 * W,)
            expected[f"weight_hr_l{layer}{way}"] = (2, W)
    assert list(found) == list(expected) and found == expected


# --- errors


def wrong_calls() -> dict[str, Any]:
    x = np.ones((B, T, D), np.float32)
    lstm = nn.LSTM(D, W, 2)
    cell = nn.RNNCell(D, W)
    pair = np.ones((B, 2), np.float32)
    errors = rg.errors

    def ragged(body: Any, carry: Any = pair) -> Callable[[], Any]:
        return lambda: nn.Recurrent(body)(x, carry, LENGTHS)

    return {
        "rank": (lambda: lstm(x[0]), errors.ShapeError, r"takes \[\.\.\., 3\], got f32\[6\]"),
        "flat": (lambda: lstm(x[0, 0]), errors.ShapeError, r"\[batch, time, ...\], got f32\[3\]"),
        "width": (lambda: lstm(x[..., :2]), errors.ShapeError, r"LSTMCell takes \[\.\.\., 3\]"),
        "integers": (lambda: lstm(x.astype(int)), errors.DTypeError, "Embedding first"),
        "no rows": (lambda: lstm(x, lengths=np.ones(3, int)), errors.ShapeError, "the lengths"),
        "no counts": (lambda: lstm(x, lengths=np.ones(B)), errors.DTypeError, "integers"),
        "carries": (lambda: lstm(x, lstm.initial(B)[:1]), errors.ShapeError, "2 layers"),
        "one way": (
            lambda: nn.GRU(D, W, bidirectional=True)(x, (np.zeros((B, W), np.float32),)),
            errors.ShapeError,
            "a pair",
        ),
        "narrow": (
            lambda: nn.Recurrent(cell)(x, np.zeros((B, 2), np.float32)),
            errors.ShapeError,
            r"f32\[4,2\] and f32\[5,5\] do not fit",
        ),
        "a scalar": (
            ragged(lambda c, x: (c + 1, x), np.float32(0.5)),
            errors.ShapeError,
            "first axis: carry has",
        ),
        "drift": (
            ragged(lambda c, x: (c[:, :1], x)),
            errors.ShapeError,
            "carry enters the body",
        ),
        "drift of type": (
            ragged(lambda c, x: (c.astype("f64"), x)),
            errors.DTypeError,
            "carry enters the body",
        ),
        "drift of a tree": (
            ragged(lambda c, x: ((c, c), x)),
            errors.ShapeError,
            "another structure",
        ),
        "no pair": (
            ragged(lambda c, x: c),
            errors.TraceError,
            "must return",
        ),
        "no batch": (
            lambda: nn.Recurrent(lambda c, x: (c, rnp.sum(x)))(x, pair),
            errors.ShapeError,
            "no batch axis",
        ),
        "no start": (lambda: nn.Recurrent(lambda c, x: (c, x))(x), errors.TraceError, "carry="),
        "no cell": (lambda: nn.Recurrent(3), errors.TraceError, "got a int"),
        "layers": (lambda: nn.RNN(D, W, 0), errors.ShapeError, "at least 1"),
        "cells": (lambda: nn.Stack([cell], [cell, cell]), errors.ShapeError, "1 cells forward"),
        "function": (
            lambda: nn.RNN(D, W, nonlinearity="sine"), errors.UnsupportedError, "tanh or relu"
        ),
        "reset": (lambda: nn.GRU(D, W, reset="never"), errors.UnsupportedError, "after or before"),
        "norms": (
            lambda: nn.LSTM(D, W, layer_norm=True, peephole=True),
            errors.UnsupportedError,
            "peephole",
        ),
        "norms too": (
            lambda: nn.GRU(D, W, layer_norm=True, reset="before"), errors.UnsupportedError, "reset"
        ),
        "layout": (
            lambda: nn.to_torch_layout(nn.LSTM(D, W, peephole=True)),
            errors.UnsupportedError,
            "no LSTM with peepholes",
        ),
        "layout of before": (
            lambda: nn.to_torch_layout(nn.GRU(D, W, reset="before")),
            errors.UnsupportedError,
            "resets before",
        ),
        "layout of norms": (
            lambda: nn.to_torch_layout(nn.GRU(D, W, layer_norm=True)),
            errors.UnsupportedError,
            "LayerNormGRUCell",
        ),
        "missing": (
            lambda: nn.from_torch_layout(nn.RNN(D, W), {}),
            errors.ShapeError,
            "weight_ih_l0 is missing",
        ),
        "unknown": (
            lambda: nn.from_torch_layout(
                nn.RNN(D, W), {**nn.to_torch_layout(nn.RNN(D, W)), "weight_ih_l1": x}
            ),
            errors.ShapeError,
            "weight_ih_l1 is not of this layer",
        ),
        "misshapen": (
            lambda: nn.from_torch_layout(nn.RNN(D, W), nn.to_torch_layout(nn.RNN(D, W + 1))),
            errors.ShapeError,
            r"weight_ih_l0 is \[6, 3\], and \[5, 3\]",
        ),
    }


@pytest.mark.parametrize("case", wrong_calls())
def test_errors_name_the_line_and_the_shapes(case: str) -> None:
    call, error, message = wrong_calls()[case]
    with pytest.raises(error, match=message) as caught:
        call()
    assert f"{__file__}:" in str(caught.value)
