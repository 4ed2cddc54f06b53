"""Products and the row kernels around them, run on one block of rows after the other: the numbers
beside the NumPy device, the same bits in all modes, no memory that two links share by chance."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import retrograde as rg
import retrograde.numpy as rnp
from retrograde import nn
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.graph import TensorType
from retrograde.compiler.plan.build import Planned, plan_program
from retrograde.compiler.plan.chain import pitch
from retrograde.compiler.plan.steps import ChainStep, FusedStep, MatmulStep, reads, writes
from retrograde.compiler.plan.views import new_view
from retrograde.runtime.native.toolchain import find_toolchain
from tests.native.sequence_models import Model
from tests.native.test_sequence_models import Compared

pytestmark = pytest.mark.skipif(find_toolchain() is None, reason="there is no C compiler")

Array = npt.NDArray[Any]
Golden = Callable[[str, str], None]
ROWS = (0, 1, 2, 127, 128, 129, 200, 331)  # beside what a thread needs, and the blocks


class Block(nn.Module):
    """x + MLP(norm(x)), the widths beside those of vectors and panels."""

    def __init__(self, width: int = 33, hidden: int = 70) -> None:
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden, seed=1)
        self.down = nn.Linear(hidden, width, seed=2)
        self.last = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5, seed=3)

    def __call__(self, x: Any, keep: Any) -> Any:
        hidden = rnp.tanh(self.up(self.norm(x)))
        return self.head(self.last(x + rnp.where(keep, self.down(hidden), 0.0)))


def error(model: Any, x: Any, keep: Any, y: Any) -> Any:
    return rnp.mean((model(x, keep) - y) ** 2)


def block_case(dtype: str, *lead: Any) -> tuple[Any, ...]:
    model = rg.tree.map(lambda w: np.asarray(w).astype(dtypes.dtype(dtype).numpy), Block())
    return (
        model, rg.spec(dtype, *lead, 33), rg.spec("bool", *lead, 33), rg.spec(dtype, *lead, 5)
    )  # fmt: skip


def filled(specs: Any, rows: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)

    def one(x: Any) -> Any:
        if not isinstance(x, rg.Spec):
            return x
        shape = [d if isinstance(d, int) else rows for d in x.shape]
        if x.dtype.name == "bool":
            return rng.random(shape) < 0.7
        return rng.normal(size=shape).astype(x.dtype.numpy)

    return rg.tree.map(one, specs)


def planned(compiled: Any, **sizes: int) -> Planned:
    return plan_program(compiled.ir("order"), sizes, threads=2, native=True)


def chains(made: Planned) -> list[ChainStep]:
    return [step for step in made.schedule.steps if isinstance(step, ChainStep)]


def kinds(chain: ChainStep) -> str:
    return "".join("P" if isinstance(link, MatmulStep) else "r" for link in chain.links)


@pytest.fixture(autouse=True)
def _of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small chains run as large ones do."""
    monkeypatch.setattr("retrograde.compiler.codegen.native_support.LARGE", 0)
    monkeypatch.setattr("retrograde.compiler.plan.chain.LARGE", 0)
    monkeypatch.setattr("retrograde.compiler.codegen.native_support.CHAINED", 32)


# --- what is chained


def test_golden_of_the_schedule(golden: Golden) -> None:
    specs = block_case("f32", rg.dim("B", min=0))
    compiled = rg.compile(rg.value_and_grad(error), *specs, backend="native", threads=2)
    source = compiled.source()
    golden("native/chain.txt", source[source.index("    run0 = ") : source.index("\n    def run")])


def test_a_block_forward_is_one_chain_and_one_back_has_no_product_left_alone() -> None:
    specs = block_case("f32", "B")
    forward = rg.compile(lambda *a: a[0](*a[1:3]), *specs, backend="native", threads=2)
    assert [kinds(c) for c in chains(planned(forward, B=300))] == ["rPrPrPr"]
    both = rg.compile(rg.value_and_grad(error), *specs, backend="native", threads=2)
    made = planned(both, B=300)
    assert sum(kinds(c).count("P") for c in chains(made)) == 6


def test_a_product_across_rows_is_told() -> None:
    def gram(x: Any, w: Any, u: Any) -> Any:
        return (x @ w).T @ (x @ u)

    specs = rg.spec("f32", "B", 40), rg.spec("f32", 40, 24), rg.spec("f32", 40, 17)
    compiled = rg.compile(gram, *specs, backend="native", threads=2)
    made = planned(compiled, B=300)
    assert chains(made) == []
    reasons = sorted(x.reason for x in made.schedule.unchained)
    assert reasons == ["packed for another product, all rows at once", "read over other rows"]
    assert compiled.report(B=300).count("packed for another product, all rows at once") == 1


def test_rows_of_another_number_are_no_link() -> None:
    """The gradient of w has the rows of w: its product is in no chain of the rows of x."""
    specs = block_case("f32", "B")
    both = rg.compile(rg.value_and_grad(error), *specs, backend="native", threads=2)
    made = planned(both, B=300)
    for chain in chains(made):
        assert str(chain.rows) == "B"
        products = [link for link in chain.links if isinstance(link, MatmulStep)]
        assert all(str(p.results[0].shape[0]) == "B" for p in products)
    alone = [s for s in made.schedule.steps if isinstance(s, MatmulStep)]
    assert [p.results[0].shape[0] for p in alone] == [33, 70, 33]


def test_what_needs_all_rows_ends_a_chain() -> None:
    def centred(x: Any, w: Any, u: Any) -> Any:
        h = x @ w
        return rnp.tanh(h - rnp.mean(h, axis=0)) @ u

    specs = rg.spec("f32", "B", 40), rg.spec("f32", 40, 24), rg.spec("f32", 24, 17)
    compiled = rg.compile(centred, *specs, backend="native", threads=2)
    made = planned(compiled, B=300)
    assert [x.reason for x in made.schedule.unchained] == [
        "a step between the two needs all rows, or they are new state"
    ]
    x, w, u = filled(specs, 300)
    h = x.astype("f8") @ w
    wanted = np.tanh(h - h.mean(0)) @ u
    np.testing.assert_allclose(compiled(x, w, u), wanted, rtol=2e-4, atol=2e-5)


def test_a_stretched_operand_is_not_by_rows() -> None:
    """(3, 2, N) over (2, 3, 2, N) has six rows before N, but none of the six of axes 0 and 1."""
    view = new_view(TensorType(dtypes.f32, (3, 2, 7)), "value")
    assert pitch(view, 6, (2, 3, 2, 7)) is None
    whole = new_view(TensorType(dtypes.f32, (2, 3, 2, 7)), "value")
    assert pitch(whole, 6, (2, 3, 2, 7)) == 2 * 7 * 4
    part = whole.sliced((0, 0, 1, 2), (1, 1, 1, 1), (2, 3, 1, 5))
    assert pitch(part, 6) == 2 * 7 * 4
    assert pitch(whole.flipped((0,)), 6) is None
    assert pitch(whole.transposed((1, 0, 2, 3)), 6) is None


def test_places_in_a_chain_are_shared_by_taking_over_alone() -> None:
    for name in ("f32", "f64"):
        specs = block_case(name, "B", "T")
        compiled = rg.compile(rg.value_and_grad(error), *specs, backend="native", threads=2)
        for sizes in ({"B": 3, "T": 50}, {"B": 40, "T": 7}):
            made = planned(compiled, **sizes)
            assert len(chains(made)) >= 3
            check_apart(made, sizes)


def check_apart(made: Planned, sizes: dict[str, int]) -> None:
    """Storages that the links of one chain touch lie in one place only where one took it over."""
    at = dict(zip(made.places, addresses(made), strict=True))
    for chain in chains(made):
        homes = {
            made.liveness.home(v.storage) for link in chain.links
            for v in (*reads(link), *writes(link))
        }  # fmt: skip
        spans = sorted(
            (at[s], at[s] + dims.evaluate(s.bytes, sizes)) for s in homes if s.kind != "state"
        )
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))


def addresses(made: Planned) -> list[int]:
    """Where each buffer lies; state below all."""
    state = sum(b.kind == "state" for b in made.buffers)
    return [*range(-state, 0), *made.placement.offsets]


# --- the numbers


@pytest.mark.parametrize("dtype, near", [("f32", 2e-5), ("f64", 1e-11)])
def test_numbers_are_those_of_numpy_at_any_number_of_rows(dtype: str, near: float) -> None:
    specs = block_case(dtype, rg.dim("B", min=0))
    f = rg.value_and_grad(lambda *a: error(*a) + rnp.sum(a[0](a[1], a[2])))
    native = rg.compile(f, *specs, backend="native", threads=2)
    numpy = rg.compile(f, *specs, backend="numpy")
    for rows in ROWS[1:]:
        arguments = filled(specs, rows, rows)
        wanted = rg.tree.leaves(numpy(*arguments))
        for a, b in zip(rg.tree.leaves(native(*arguments)), wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=near, atol=near * max(1, np.abs(b).max()))


def test_no_rows_give_no_rows() -> None:
    specs = block_case("f32", rg.dim("B", min=0))
    compiled = rg.compile(lambda *a: a[0](*a[1:3]), *specs, backend="native", threads=2)
    assert compiled(*filled(specs, 0)).shape == (0, 5)


@pytest.mark.parametrize("rows", [129, 200, 331])
def test_the_bits_are_the_same_in_all_modes(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the same links are launched one by one."""
    specs = block_case("f32", "B")
    given = filled(specs, rows)
    found = []
    for threads, variable in (
        (1, ""), (2, ""), (3, ""), (2, "POISON"), (2, "NO_REUSE"), (2, "alone"), (2, "small")
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            if variable == "alone":
                patch.setattr("retrograde.compiler.codegen.native_support.LARGE", 1 << 60)
            elif variable == "small":
                patch.setattr("retrograde.compiler.codegen.native_support.NEAR", 1)
            elif variable:
                patch.setenv(f"RETROGRADE_{variable}", "1")
            compiled = rg.compile(
                rg.value_and_grad(error), *specs, backend="native", threads=threads
            )
            assert "chained" in compiled.source()
            results = [compiled(*given) for _ in range(3)]
        found += [[np.asarray(x).tobytes() for x in rg.tree.leaves(r)] for r in results]
    assert all(other == found[0] for other in found[1:])


@settings(max_examples=5)
@given(
    rows=st.integers(1, 400), widths=st.lists(st.integers(1, 90), min_size=3, max_size=5),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_layers_of_any_width(rows: int, widths: list[int], seed: int) -> None:
    """A residual wherever two widths are equal; a mean of a row between."""

    def layers(x: Any, *weights: Any) -> Any:
        for w in weights:
            y = x @ w
            y = rnp.tanh(y - rnp.mean(y, axis=-1, keepdims=True))
            x = x + y if x.shape[-1] == y.shape[-1] else y
        return x

    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, widths[0])).astype(np.float32)
    weights = [
        (rng.normal(size=s) / np.sqrt(s[0])).astype(np.float32)
        for s in itertools.pairwise(widths)
    ]
    specs = [rg.spec("f32", *a.shape) for a in (x, *weights)]
    compiled = rg.compile(layers, *specs, backend="native", threads=3)
    h = x.astype("f8")
    for w in weights:
        y = h @ w
        y = np.tanh(y - y.mean(-1, keepdims=True))
        h = h + y if h.shape[-1] == y.shape[-1] else y
    np.testing.assert_allclose(compiled(x, *weights), h, rtol=1e-4, atol=1e-5)


def test_a_training_step_leaves_the_state_that_numpy_leaves() -> None:
    """Without clipping an update may follow its product at once; new state stays out of chains."""
    specs = {"x": rg.spec("f32", "B", 33), "keep": rg.spec("bool", "B", 33)}
    specs["y"] = rg.spec("f32", "B", 5)
    given = [filled(specs, 190, seed) for seed in range(3)]
    states = []
    for backend in ("numpy", "native"):
        step = rg.compile_training(
            error, Block(), rg.optim.SGD(0.1), specs, backend=backend, threads=2
        )
        for batch in given:
            step(**batch)
        states.append(rg.tree.leaves(step.model))
    for a, b in zip(*states, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_bad_index_in_a_chain_is_refused() -> None:
    def looked_up(table: Any, ids: Any, w: Any) -> Any:
        return rnp.tanh(rnp.tanh(rnp.take(table, ids, axis=0) * 2.0) @ w)

    specs = rg.spec("f32", 11, 40), rg.spec("i32", "B"), rg.spec("f32", 40, 24)
    compiled = rg.compile(looked_up, *specs, backend="native", threads=2)
    made = planned(compiled, B=300)
    assert any(isinstance(link, FusedStep) for c in chains(made) for link in c.links)
    rng = np.random.default_rng(0)
    table, w = rng.normal(size=(11, 40)).astype("f4"), rng.normal(size=(40, 24)).astype("f4")
    ids = rng.integers(0, 11, 300).astype(np.int32)
    wanted = np.tanh(np.tanh(table[ids] * 2) @ w)
    np.testing.assert_allclose(compiled(table, ids, w), wanted, rtol=1e-4, atol=1e-5)
    ids[257] = 11
    with pytest.raises(rg.errors.DataError, match="index 11"):
        compiled(table, ids, w)


def test_a_kernel_of_several_rows_an_item_is_launched_alone() -> None:
    """Time goes with the features where the batch lies across: an item is a sequence."""

    def turned(x: Any, y: Any, w: Any) -> Any:
        return rnp.tanh((x.transpose((1, 0, 2)) * y) @ w)

    specs = rg.spec("f32", "T", "B", 3), rg.spec("f32", "B", 1, 1), rg.spec("f32", 3, 130)
    compiled = rg.compile(turned, *specs, backend="native", threads=2)
    rng = np.random.default_rng(0)
    for length, rows in ((17, 7), (70, 40)):
        x, y = rng.normal(size=(length, rows, 3)), rng.normal(size=(rows, 1, 1))
        given = [a.astype(np.float32) for a in (x, y, rng.normal(size=(3, 130)))]
        wanted = np.tanh((given[0].transpose((1, 0, 2)) * given[1]) @ given[2])
        np.testing.assert_allclose(compiled(*given), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", [1059022248, 4])
def test_random_models_in_chains(seed: int) -> None:
    compared = Compared(Model(seed, 2), "f32")
    for i, (rows, steps) in enumerate(((7, 17), (16, 33))):
        compared.check(rows, steps, i)
