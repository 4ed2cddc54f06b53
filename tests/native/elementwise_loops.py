"""Elementwise ops as C loops: op x dtypes -> a function on NumPy arrays, compiled for the test.

Every case is one loop over the op's C expression, in one shared library.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.codegen.csource import part
from retrograde.compiler.errors import DTypeError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.graph import TensorType
from retrograde.compiler.ir.op import Op
from retrograde.compiler.ir.registry import Kind, all_ops

Array = npt.NDArray[Any]

CC = shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
FLAGS = [
    "-O2", "-ftree-vectorize", "-march=native", "-mprefer-vector-width=512", "-fno-math-errno",
    "-fno-trapping-math", "-ffp-contract=off", "-fwrapv",
    "-std=gnu11", "-fPIC", "-shared", "-Wall", "-Wno-unused-function", "-Werror",
]  # fmt: skip
# One remark for each loop, also where two functions are the same.
GCC_FLAGS = ["-fopt-info-vec", "-fno-ipa-icf"]


def elementwise() -> list[Op]:
    return [op for op in all_ops() if op.kind is Kind.ELEMENTWISE]


def is_half(dtype: DType) -> bool:
    return dtype.is_float and dtype.bytes == 2


def _stored(dtype: DType) -> str:
    """The C type of an element in memory."""
    return "u16" if is_half(dtype) else "u8" if dtype is dtypes.bool_ else dtype.name


def _carried(dtype: DType) -> str:
    return "f32" if is_half(dtype) else _stored(dtype)


@dataclass(frozen=True)
class Case:
    """An op on operands of given dtypes."""

    op: Op
    operands: tuple[DType, ...]
    result: DType

    @property
    def name(self) -> str:
        names = [t.name for t in self.operands]
        to = [self.result.name] if self.op.name == "cast" else []
        return "_".join([self.op.name, *dict.fromkeys(names), *to])

    @property
    def of(self) -> DType:
        """The dtype that the C expression is chosen by."""
        return self.operands[1] if self.op.name == "select" else self.operands[0]

    @property
    def attrs(self) -> dict[str, Any]:
        return {"dtype": self.result} if self.op.name == "cast" else {}

    def loop(self) -> str:
        """The C function, its loop on line 2."""
        parameters, loads, names = [], [], []
        for i, dtype in enumerate(self.operands):
            read = f"a{i}[i]" if not is_half(dtype) else f"rg_load_{dtype}(a{i}[i])"
            parameters.append(f"const {_stored(dtype)} *restrict a{i}")
            loads.append(f"        {_carried(dtype)} x{i} = {read};")
            names.append(f"x{i}")
        y = "y" if not is_half(self.result) else f"rg_store_{self.result}(y)"
        parameters.append(f"{_stored(self.result)} *restrict out")
        value = self.op.c_expression(names, self.of, self.result)
        lines = [
            f"void {self.name}({', '.join(parameters)}, i64 n) {{",
            "    for (i64 i = 0; i < n; i++) {",
            *loads,
            f"        {_carried(self.result)} y = {value};",
            f"        out[i] = {y};",
            "    }",
            "}",
        ]
        return "\n".join(lines) + "\n"

    def reference(self, *operands: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(self.op.evaluate(self.attrs, *operands))


def _arity(op: Op, of: DType) -> int:
    text = op.c_expression(["@0", "@1", "@2"], of, of)
    return 1 + max(int(i) for i in re.findall(r"@(\d)", text))


def cases() -> Iterator[Case]:
    """Every elementwise op with each dtype that it takes."""
    for op in elementwise():
        for dtype in dtypes.ALL:
            if op.name == "cast":
                yield from (Case(op, (dtype,), result) for result in dtypes.ALL)
                continue
            operands = (dtype,) * _arity(op, dtype)
            if op.name == "select":
                operands = (dtypes.bool_, dtype, dtype)
            try:
                (result,) = op.infer(tuple(TensorType(t, (3,)) for t in operands), {})
            except DTypeError:
                continue
            yield Case(op, operands, result.dtype)


@dataclass(frozen=True)
class Library:
    """The compiled cases, and what the compiler said about its loops."""

    path: Path
    cases: dict[str, Case]
    lines: dict[str, int]  # of the loop of each case
    remarks: str

    @cached_property
    def _functions(self) -> ctypes.CDLL:
        return ctypes.CDLL(str(self.path))

    def run(self, name: str, operands: tuple[Array, ...], n: int | None = None) -> Array:
        """The results for the first `n` elements; what lies behind them is left at 0x55 bytes."""
        out = np.full(operands[0].size * 8, 0x55, np.uint8).view(self.cases[name].result.numpy)
        out = out[: operands[0].size]
        pointers = [ctypes.c_void_p(x.ctypes.data) for x in (*operands, out)]
        count = operands[0].size if n is None else n
        getattr(self._functions, name)(*pointers, ctypes.c_int64(count))
        return out

    def vectorised(self, name: str) -> bool:
        return f":{self.lines[name]}:" in self.remarks


def build(folder: Path) -> Library:
    """Compiles every case."""
    assert CC is not None
    text, lines, all_cases = part("base") + part("math"), {}, {}
    for case in cases():
        lines[case.name] = text.count("\n") + 2
        text += case.loop()
        all_cases[case.name] = case
    source, library = folder / "loops.c", folder / "loops.so"
    source.write_text(text, encoding="utf-8")
    flags = [*FLAGS, *(GCC_FLAGS if is_gcc() else [])]
    command = [CC, *flags, str(source), "-o", str(library), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return Library(library, all_cases, lines, done.stderr)


def is_gcc() -> bool:
    assert CC is not None
    said = subprocess.run([CC, "--version"], capture_output=True, text=True, check=True).stdout
    return "Free Software Foundation" in said

