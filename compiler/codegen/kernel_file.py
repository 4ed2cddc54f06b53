"""The C files of a program: the texts of kernels -> functions, with what they are for above them.

Invariant: kernels of one text are one function, and a user's text stands in comments alone, which
it cannot end.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from retrograde.compiler.codegen.c_matmul import product_texts
from retrograde.compiler.codegen.csource import part
from retrograde.compiler.codegen.numpy import place_of
from retrograde.compiler.codegen.spelling import comment
from retrograde.compiler.ir.graph import Graph
from retrograde.compiler.plan.recipe import KernelFile
from retrograde.compiler.plan.steps import CopyStep, FusedStep, PackStep, Step

FILE = 24  # kernels of one C file
SHARED = "#define RG_GEMM_TILE RG_GEMM_SHARED\n"
MARK = "/* --- the kernels of this program */"
END = "/* --- their table */\n"
ATTENTION = ("base", "attention", "attention_masks")
WIDTH, PLACES = 96, 4
PARTS = ("base", "math", "random")
# What others have, by what their kernels call, those first that take the C compiler longest.
SPECIAL = {
    "rg_gemm_f32": ("base", "gemm"), "rg_gemm_f64": ("base", "gemm"),
    "rg_gemm_f16": ("base", "math", "gemm", "gemm_half"),
    "rg_gemm_bf16": ("base", "math", "gemm", "gemm_half"),
    "rg_attention_backward": (*ATTENTION, "attention_backward"),
    "rg_attention_forward": (*ATTENTION, "attention_forward"),
    "rg_blas_": ("base", "math", "gemm", "blas"),
    "rg_ce_": ("base", "math", "gemm", "cross_entropy"),
}  # fmt: skip
# Kinds of which each kernel is one call, the same in many programs.
PLAIN = tuple(kind for kind in SPECIAL if kind != "rg_blas_")
PRODUCTS = ("f32", "f64", "f16", "bf16")  # dtypes that kernels multiply
_NAME = re.compile(r"^static i64 k\d+\(", re.MULTILINE)
_NEXT = re.compile(r"\n\n(?=(?:/\*(?:(?!\*/).)*\*/\n)?static i64 k\d+\()", re.DOTALL)


@dataclass(frozen=True)
class Note:
    """What a kernel is for: the place of its step, and what it does, by line of the model."""

    place: str
    does: tuple[str, ...]


def note_of(step: Step) -> Note:
    """The note on the kernels of a step: its ops in order, by the lines that they come from."""
    place = place_of(step.node)
    if isinstance(step, FusedStep):
        body: Graph = step.node.attrs["body"]
        found: dict[str, list[str]] = {}
        for node in body.nodes:
            found.setdefault(place_of(node) or place, []).append(node.op.name)
        return Note(place, tuple(_line(at, ", ".join(ops)) for at, ops in found.items()))
    if isinstance(step, CopyStep):
        return Note(place, (_line(place, "copy"),))
    pack = "pack for " if isinstance(step, PackStep) else ""
    return Note(place, (_line(place, pack + step.node.op.name),))


def _line(place: str, does: str) -> str:
    return f"{place}: {does}" if place else does


COPY = Note("", ("copy",))


@dataclass
class Kernels:
    """The functions of a program, by their text."""

    numbers: dict[str, int] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)  # of the first step that has each
    places: list[dict[str, None]] = field(default_factory=list)  # of all steps that have each
    cuts: list[int] = field(default_factory=list)  # numbers that begin files of their own

    def number(self, text: str, note: Note) -> int:
        """The number of the function of this text (@ for its name), which a step needs."""
        assert text.startswith("static i64 @(")
        if text not in self.numbers:
            for one in file_mates(text):
                self.numbers[one] = len(self.notes)
                self.notes.append(Note("", ()))
                self.places.append({})
        found = self.numbers[text]
        if not self.places[found]:
            self.notes[found] = note
        self.also(found, note.place)
        return found

    def also(self, number: int, place: str) -> None:
        """Notes one more place that needs a function."""
        self.places[number][place] = None

    def cut(self) -> None:
        """What comes from now on does not change the files of what there is."""
        self.cuts.append(len(self.numbers))

    def files(self) -> tuple[KernelFile, ...]:
        """The C files, which compile side by side: products, attention and heads with their losses
        each by themselves, and the others by the dozen."""
        ends = [*self.cuts, len(self.numbers)]
        return tuple(
            file for first, end in zip([0, *self.cuts], ends, strict=True)
            for file in self._files(range(first, end))
        )  # fmt: skip

    def _files(self, within: range) -> tuple[KernelFile, ...]:
        kinds: dict[str, list[int]] = {kind: [] for kind in (*SPECIAL, "")}
        for text, number in self.numbers.items():
            if number in within:
                kinds[_kind_of(text)].append(number)
        rows = kinds.pop("")
        files = [(kind, numbers) for kind, numbers in kinds.items() if numbers]
        files += [("", rows[i : i + FILE]) for i in range(0, len(rows), FILE)]
        texts = {number: text for text, number in self.numbers.items()}
        return tuple(self._file(kind, numbers, texts) for kind, numbers in files)

    def _file(self, kind: str, numbers: Sequence[int], texts: Mapping[int, str]) -> KernelFile:
        """A file; those of single calls tell no places, so that models share them."""
        parts = SPECIAL.get(kind, PARTS)
        pieces = [SHARED if "gemm" in parts else "", *map(part, parts), MARK]
        for place, number in enumerate(numbers):
            heading = self._heading(number) + "\n" if kind not in PLAIN else ""
            pieces.append(heading + texts[number].replace("@", f"k{place}", 1))
        widths = "RG_NR_f32, RG_NR_f64" if "gemm" in parts else "0"
        names = ", ".join(f"k{place}" for place in range(len(numbers)))
        pieces.append(
            f"{END}const i64 rg_kernel_count = {len(numbers)};\n"
            "typedef i64 (*rg_kernel)(const i64 *a, i64 lo, i64 hi, i64 part);\n"
            f"const rg_kernel rg_kernels[] = {{{names}}};\n"
            f"const i64 rg_panels[2] = {{{widths}}};"
        )
        return KernelFile("\n\n".join(pieces).lstrip() + "\n", tuple(numbers))

    def _heading(self, number: int) -> str:
        note = self.notes[number]
        others = [place for place in self.places[number] if place and place != note.place]
        lines = list(note.does)
        if others:
            more = len(others) - PLACES
            also = ", ".join(others[:PLACES]) + (f" and {more} more places" if more > 0 else "")
            lines.append(f"also {also}")
        return c_comment(lines)


def _kind_of(text: str) -> str:
    """The kind of file that a function of this text is in."""
    text = text.replace("rg_pack_", "rg_gemm_")
    return next((kind for kind in SPECIAL if kind in text), "")


def file_mates(text: str) -> tuple[str, ...]:
    """All functions of the file that one of this text is always in, whatever else a program has."""
    for kind in PRODUCTS:
        if text in (mates := product_texts(kind)):
            return mates
    return (text,)


def c_comment(lines: Sequence[str]) -> str:
    """Lines as one comment, whatever they hold."""
    wrapped: list[str] = []
    for line in lines:
        # a backslash would join two lines, and so perhaps two characters
        safe = comment(line).replace("\\", " ").replace("*/", "* /").replace("/*", "/ *")
        wrapped += textwrap.wrap(safe, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    return "/* " + "\n   ".join(wrapped) + " */"


def shown(files: Sequence[KernelFile]) -> str:
    """The kernels of a program under the numbers that its lists have for them, without what all
    files have."""
    found: dict[int, str] = {}
    for file in files:
        own = file.text.split(MARK, 1)[1].rsplit(END, 1)[0].strip()
        for number, text in zip(file.numbers, _NEXT.split(own), strict=True):
            found[number] = _NAME.sub(f"static i64 k{number}(", text, count=1)
    return "\n\n".join(found[number] for number in sorted(found)) + "\n"
