"""Weights of RNN, LSTM and GRU <-> arrays under the names and in the shapes of PyTorch's.

PyTorch's are `weight_ih_l0` [gates, inputs], `weight_hh_l0` [gates, width], `bias_ih_l0`,
`bias_hh_l0` [gates], with projections `weight_hr_l0` [projection, width]; `_l1` for the next layer
and `_reverse` after it for the way back.  Nothing here needs PyTorch: `module.state_dict()` gives
such names, and `torch.from_numpy` takes such arrays.  Invariant: from_torch_layout(layer,
to_torch_layout(layer)) is `layer` again; the other way two biases come back as their sum and 0.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import ShapeError, UnsupportedError
from retrograde.compiler.ir.location import skip_frames_under, where
from retrograde.nn.cells import GRUCell, LSTMCell, RNNCell
from retrograde.nn.stacked import Stack

skip_frames_under(os.path.abspath(__file__))

Array = npt.NDArray[Any]


def to_torch_layout(layer: Stack) -> dict[str, Array]:
    """The arrays of an RNN, LSTM or GRU as PyTorch has them, each a copy.

    Raises UnsupportedError for a cell that PyTorch does not have: with peepholes or layer norms,
    a GRU that resets before the product, or one of the user's."""
    out: dict[str, Array] = {}
    for cell, suffix, _ in _cells(layer):
        out[f"weight_ih_{suffix}"] = _transposed(cell.weight_input)
        out[f"weight_hh_{suffix}"] = _transposed(cell.weight_recurrent)
        if cell.bias is not None:
            bias = np.array(cell.bias)
            recurrent = np.zeros_like(bias)
            if isinstance(cell, GRUCell) and cell.recurrent_bias is not None:
                recurrent[-cell.recurrent_bias.shape[0] :] = cell.recurrent_bias
            out[f"bias_ih_{suffix}"], out[f"bias_hh_{suffix}"] = bias, recurrent
        if isinstance(cell, LSTMCell) and cell.weight_projection is not None:
            out[f"weight_hr_{suffix}"] = _transposed(cell.weight_projection)
    return out


def from_torch_layout(layer: Stack, arrays: Mapping[str, Any]) -> Any:
    """A copy of `layer` with PyTorch's arrays in it, in the dtype that they have.

    Raises ShapeError for a name that is missing or unknown, or a shape that does not fit;
    UnsupportedError as `to_torch_layout` does."""
    expected = to_torch_layout(layer)
    given = {name: np.asarray(x) for name, x in arrays.items()}
    for name in (*expected, *given):
        if name not in given or name not in expected:
            said = "is missing" if name not in given else "is not of this layer"
            raise ShapeError(f"{where()}{name} {said}; it has {', '.join(expected)}")
        if given[name].shape != expected[name].shape:
            raise ShapeError(
                f"{where()}{name} is {list(given[name].shape)}, and "
                f"{list(expected[name].shape)} in this layer"
            )
    found: dict[str, Array] = {}
    for cell, suffix, path in _cells(layer):
        found[f"{path}.weight_input"] = _transposed(given[f"weight_ih_{suffix}"])
        found[f"{path}.weight_recurrent"] = _transposed(given[f"weight_hh_{suffix}"])
        if cell.bias is not None:
            bias, recurrent = given[f"bias_ih_{suffix}"], given[f"bias_hh_{suffix}"]
            if isinstance(cell, GRUCell) and cell.recurrent_bias is not None:
                # The candidate's recurrent bias is reset with its product and stands alone.
                width = cell.recurrent_bias.shape[0]
                found[f"{path}.recurrent_bias"] = recurrent[-width:].copy()
                recurrent = np.concatenate([recurrent[:-width], np.zeros_like(bias[-width:])])
            found[f"{path}.bias"] = bias + recurrent
        if isinstance(cell, LSTMCell) and cell.weight_projection is not None:
            found[f"{path}.weight_projection"] = _transposed(given[f"weight_hr_{suffix}"])
    return layer.replace(found)


def _cells(layer: Stack) -> Iterator[tuple[Any, str, str]]:
    """Each cell with PyTorch's suffix and our path, in PyTorch's order."""
    for k, ahead in enumerate(layer.forward):
        yield _checked(ahead.cell), f"l{k}", f"forward.{k}.cell"
        if layer.backward:
            yield _checked(layer.backward[k].cell), f"l{k}_reverse", f"backward.{k}.cell"


def _checked(cell: Any) -> Any:
    known = (
        type(cell) is RNNCell
        or (type(cell) is LSTMCell and cell.peepholes is None)
        or (type(cell) is GRUCell and cell.reset == "after")
    )
    if known:
        return cell
    what = f"a {type(cell).__name__}"
    if isinstance(cell, LSTMCell):
        what = "an LSTM with peepholes"
    elif isinstance(cell, GRUCell):
        what = "a GRU that resets before the product"
    raise UnsupportedError(f"{where()}PyTorch has no {what.partition(' ')[2]}: there is no layout")


def _transposed(x: Any) -> Array:
    return np.array(np.asarray(x).T, order="C")
