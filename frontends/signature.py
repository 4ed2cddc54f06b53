"""What a saved function takes and returns, as data: arguments -> arrays, outputs -> results.

Invariant: it refers to no code of the user's; arguments are compared with descriptions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from retrograde.building import builder
from retrograde.compiler.errors import ShapeError
from retrograde.compiler.ir.binding import bind_sizes
from retrograde.compiler.ir.graph import TensorType
from retrograde.compiler.ir.location import where
from retrograde.structures import Described, describe
from retrograde.taking import take
from retrograde.traces import Array, Declared, as_array
from retrograde.tracing import Traced, name_of


@dataclass(frozen=True)
class Signature:
    """The arguments and results of a function: `arguments` describes the tuple of all of them,
    `outputs` what is returned; `names` and `types` are those of the arrays among the arguments."""

    function: str
    arguments: Described
    outputs: Described
    names: tuple[str, ...]
    types: tuple[TensorType, ...]

    @classmethod
    def of(cls, declared: Declared, traced: Traced) -> Signature:
        """Raises UnsupportedError for what a file cannot describe."""
        arrays = set(declared.places)
        settings = {i: x for i, x in enumerate(declared.leaves) if i not in arrays}
        name = name_of(declared.fn)
        return cls(
            name,
            describe(declared.structure, settings, f"arguments of {name}: "),
            describe(traced.structure, {}, f"result of {name}: "),
            tuple(declared.input_names),
            declared.types,
        )

    @property
    def input_names(self) -> list[str]:
        return list(self.names)

    def arrays(self, args: Sequence[Any]) -> list[Array]:
        """The arrays of a call, checked."""
        expected = len(self.arguments[1])
        if len(args) != expected:
            raise ShapeError(
                f"{where()}{self.function} takes {expected} arguments, got {len(args)}"
            )
        leaves = take(self.arguments, tuple(args), len(self.names), "argument")
        return [
            as_array(x, type, name)
            for x, type, name in zip(leaves, self.types, self.names, strict=True)
        ]

    def sizes(self, arrays: Sequence[Array]) -> dict[str, int]:
        """The value of every symbol; ShapeError where the shapes do not fit."""
        return bind_sizes(self.types, self.names, [x.shape for x in arrays])

    def builder(self) -> Callable[[Sequence[Array]], Any]:
        """What makes the result of a call of its outputs."""
        return builder(self.outputs)
