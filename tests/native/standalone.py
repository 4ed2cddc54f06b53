"""A compiled graph as a program of its own: its kernels, the pool, and a `main` in C, so that a
sanitizer sees nothing but them.

Each buffer of the plan is a block of its own, of the bytes that views reach and no more.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.codegen.csource import part
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.graph import Graph
from retrograde.compiler.pipeline import CompiledGraph, Options, compile_graph
from retrograde.compiler.plan.steps import walk_all
from retrograde.compiler.plan.views import Literal, Turn, View
from retrograde.runtime.native import pool as pool_module
from retrograde.runtime.native.toolchain import find_toolchain, load, shared_library
from retrograde.runtime.source import bind_of

Array = npt.NDArray[Any]
WINDOW = 1 << 40  # buffer i has the addresses from (i + 1) * WINDOW, until it is allocated
# Those of pointers that AddressSanitizer checks better are left out: they cost a minute a file.
CHECKS = (
    "-fsanitize=address,undefined", "-fno-sanitize=null,object-size,pointer-overflow",
    "-fno-sanitize-recover=all",
)  # fmt: skip
# Checks as calls of functions: a tenth of the time to compile.
CALLS = {"gcc": ("--param", "asan-instrumentation-with-call-threshold=0")}


@dataclass
class Place:
    """What stands for an array of the arena."""

    offset: int
    dtype: Any
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None


class Recorder:
    """The memory that lists are bound to: keeps their tables."""

    xp = np
    address = 0

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.panels = _panels()
        self.ragged: dict[int, tuple[int, ...]] = {}
        self.lists: list[tuple[Array, Array, Array]] = []

    def view(self, offset: int, dtype: Any, shape: Any, strides: Any) -> Place:
        return Place(offset, dtype, shape, strides)

    def sequence(self, code: Array, arguments: Array, movers: Array) -> Any:
        self.lists.append((code, arguments, movers))
        return lambda: None

    def fault(self, error: Exception) -> None:
        return None


@dataclass
class Standalone:
    """The C of a graph at one size, with the data it reads."""

    kernels: list[str]  # the texts of its files
    main: str
    inputs: bytes
    outputs: dict[int, Place]  # by number, those in row-major order

    def build(self, folder: Path) -> subprocess.CompletedProcess[str]:
        """Compiles `folder`/program; the caller looks at how that went."""
        toolchain = find_toolchain()
        assert toolchain is not None
        names = [f"kernels{i}.c" for i in range(len(self.kernels))]
        for name, text in zip(names, self.kernels, strict=True):
            (folder / name).write_text(text, encoding="utf-8")
        (folder / "main.c").write_text(self.main, encoding="utf-8")
        (folder / "inputs.bin").write_bytes(self.inputs)
        source = Path(pool_module.__file__).with_name("pool.c")
        flags = [f for f in toolchain.flags if f not in ("-shared", "-O3")]
        command = [
            *toolchain.command, *flags, "-O1", *CHECKS, *CALLS.get(toolchain.kind, ()), "-o",
            "program", *names, "main.c", str(source), "-lm", "-lpthread",
        ]  # fmt: skip
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)

    def run(self, folder: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["./program"], cwd=folder, capture_output=True, text=True, timeout=120,
            env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"},
        )  # fmt: skip

    def results(self, folder: Path) -> dict[int, Array]:
        """What the program wrote, by the number of the output."""
        data, out, at = (folder / "outputs.bin").read_bytes(), {}, 0
        for i, p in self.outputs.items():
            n = int(np.prod(p.shape)) * np.dtype(p.dtype).itemsize
            out[i] = np.frombuffer(data[at : at + n], p.dtype).reshape(p.shape)
            at += n
        return out


def standalone(
    graph: Graph, arrays: Sequence[Array], sizes: Mapping[str, int], threads: int = 2
) -> Standalone:
    """The program of `graph` on `arrays` at these sizes.  All of it must be one list of launches,
    and its inputs must lie in row-major order."""
    compiled = compile_graph(graph, Options(native=True, threads=threads, reuse=False))
    recipe = compiled.recipes[0].recipe
    count = len(recipe.buffers)
    starts = [(i + 1) * WINDOW for i in range(count)]
    recorder = Recorder(threads)
    bind = bind_of(recipe.source, "<standalone>")
    symbols = [sizes[s.name] for s in recipe.symbols]
    _, inputs, outputs = bind(recorder, starts, recipe.buffer_bytes(sizes), *symbols)
    body = recipe.source[recipe.source.index("def run():") : recipe.source.index("return run")]
    assert body.split()[2:] == ["run0()"] and len(recorder.lists) == 1, body
    (tables,) = recorder.lists
    places = {
        i: x for i, x in enumerate(outputs) if isinstance(x, Place) and x.strides is None
    }
    reached = _reached(compiled, sizes, count)
    numbers = [file.numbers for file in recipe.kernels]
    main = _main(reached, *tables, inputs, list(places.values()), threads, numbers)
    data = b"".join(
        np.ascontiguousarray(x, p.dtype).tobytes() for x, p in zip(arrays, inputs, strict=True)
    )
    texts = [_renamed(_without_products(f.text), i) for i, f in enumerate(recipe.kernels)]
    return Standalone(texts, main, data, places)


def _renamed(text: str, file: int) -> str:
    """The text with names of its own for what every file has."""
    shared = ("rg_kernels", "rg_kernel_count", "rg_panels")
    return "\n".join([*(f"#define {name} {name}{file}" for name in shared), text])


def _without_products(kernels: str) -> str:
    """The text without the largest of its parts, where no kernel calls that."""
    rest = kernels.replace(part("gemm"), "")
    if "rg_pack_" in rest or "rg_gemm_" in rest:
        return kernels
    return f"enum {{ RG_NR_f32 = 1, RG_NR_f64 = 1 }};\n{rest}"


def _views(x: Any, seen: set[int]) -> Iterator[View]:
    """All views in a step."""
    if isinstance(x, Turn):
        assert x.stacked is not None
        yield x.stacked
    elif isinstance(x, View):
        yield x
    elif isinstance(x, (tuple, list)):
        for y in x:
            yield from _views(y, seen)
    elif is_dataclass(x) and not isinstance(x, Literal) and id(x) not in seen:
        seen.add(id(x))
        for f in fields(x):
            if f.name not in ("node", "sweeps", "statements", "rows"):  # parts of the others
                yield from _views(getattr(x, f.name), seen)


def _reached(compiled: CompiledGraph, sizes: Mapping[str, int], count: int) -> list[int]:
    """The bytes of each buffer, up to the last element of any view."""
    planned, found, seen = compiled.planned, [0] * count, set[int]()
    schedule = planned.schedule
    # The rows of one thread: all threads together have the whole batch.
    sizes = {**sizes, "__first__": 0, "__rows__": sizes.get("N", 0)}
    everything = (*walk_all(schedule.steps), *schedule.inputs, *schedule.outputs)
    for view in _views(everything, seen):
        shape = [dims.evaluate(d, dict(sizes)) for d in view.shape]
        if 0 in shape:
            continue
        last = dims.evaluate(view.offset, dict(sizes))
        for n, stride in zip(shape, view.strides, strict=True):
            last += max((n - 1) * dims.evaluate(stride, dict(sizes)), 0)
        home = planned.places[planned.liveness.home(view.storage)]
        found[home] = max(found[home], (last + 1) * view.dtype.bytes)
    return found


def _main(
    reached: Sequence[int], code: Array, arguments: Array, movers: Array, inputs: Sequence[Place],
    outputs: Sequence[Place], threads: int, kernels: Sequence[Sequence[int]],
) -> str:  # fmt: skip
    def table(name: str, values: Any) -> str:
        numbers = ", ".join(f"{int(v)}LL" for v in np.asarray(values).reshape(-1))
        return f"static const i64 {name}[] = {{{numbers or 0}}};"

    def moved(name: str, places: Sequence[Place]) -> list[str]:
        sizes = [int(np.prod(p.shape)) * np.dtype(p.dtype).itemsize for p in places]
        return [
            table(f"{name}_at", [p.offset for p in places]),
            table(f"{name}_bytes", sizes),
            f"enum {{ {name}_count = {len(places)} }};",
        ]

    return "\n".join([
        _HEAD,
        *(f"extern const rg_kernel rg_kernels{i}[];" for i in range(len(kernels))),
        f"static rg_kernel rg_kernels[{1 + max(map(max, kernels))}];",
        "static void find(void) {",
        *(f"  rg_kernels[{number}] = rg_kernels{i}[{k}];"
          for i, numbers in enumerate(kernels) for k, number in enumerate(numbers)),
        "}",
        table("reached", reached), f"enum {{ buffers = {len(reached)} }};",
        table("code", code), table("arguments", arguments), table("movers", movers),
        f"enum {{ codes = {len(code)}, nargs = {arguments.shape[-1]}, nmovers = {len(movers)}, "
        f"threads = {threads}, row = (nargs + 31) / 16 * 16 }};",
        f"#define TABLE(t) ({'(t) * nargs' if arguments.ndim == 2 else 0})",
        *moved("input", inputs), *moved("output", outputs), _TAIL,
    ])  # fmt: skip


_HEAD = """\
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef int64_t i64;
typedef i64 (*rg_kernel)(const i64 *, i64, i64, i64);
void *rg_pool_create(i64, i64);
i64 rg_run(void *, const void *, i64, const void *, const void *, const void *, void *, i64, i64,
           i64 *);
"""

_TAIL = """
static char *blocks[buffers];
static char *placed(i64 at) { return blocks[(at >> 40) - 1] + (at & (((i64)1 << 40) - 1)); }
static i64 given(int t, int j) {
  const i64 a = arguments[TABLE(t) + j];
  return a >> 40 > 0 ? (i64)(intptr_t)placed(a) : a;
}

int main(void) {
  static const unsigned char poison[4] = {0xff, 0xff, 0xff, 0x7f};
  for (i64 b = 0; b < buffers; b++) { /* on 64 bytes, never on 128 */
    void *block;
    if (posix_memalign(&block, 64, reached[b] ? reached[b] : 1)) return 3;
    blocks[b] = block;
    for (i64 i = 0; i < reached[b]; i++) blocks[b][i] = poison[i % 4];
  }
  FILE *file = fopen("inputs.bin", "rb");
  for (int i = 0; i < input_count; i++)
    if (input_bytes[i] &&
        fread(placed(input_at[i]), 1, input_bytes[i], file) != (size_t)input_bytes[i]) return 4;
  fclose(file);
  i64 *origin = NULL, *work = NULL, fault = 0;
  if (posix_memalign((void **)&origin, 128, threads * row * 8)) return 3;
  if (posix_memalign((void **)&work, 128, threads * row * 8)) return 3;
  memset(origin, 0, threads * row * 8);
  for (int t = 0; t < threads; t++)
    for (int j = 0; j < nargs; j++) origin[t * row + j] = given(t, j);
  memcpy(work, origin, threads * row * 8);
  find();
  void *pool = rg_pool_create(threads, 1000);
  i64 done = rg_run(pool, code, codes, rg_kernels, movers, origin, work, row, threads, &fault);
  if (done) {
    fprintf(stderr, "instruction %lld failed: %lld\\n", (long long)done - 1, (long long)fault);
    return 5;
  }
  file = fopen("outputs.bin", "wb");
  for (int i = 0; i < output_count; i++)
    if (output_bytes[i]) fwrite(placed(output_at[i]), 1, output_bytes[i], file);
  fclose(file);
  return 0;
}
"""


@cache
def _panels() -> dict[str, int]:
    """The columns of a panel on this machine, as the compiler chooses them."""
    source = "\n".join([part("base"), part("math"), part("gemm")])
    source += "\nconst i64 rg_panels[] = {RG_NR_f32, RG_NR_f64};\n"
    library = load(shared_library(source, find_toolchain(), name="panels"))
    narrow, wide = (ctypes.c_int64 * 2).in_dll(library, "rg_panels")
    return {"f32": narrow, "f64": wide}
