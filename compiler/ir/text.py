"""Reading a graph's text: str -> `Graph`.  Invariant: `parse(graph.text()).text() == graph.text()`.

A recursive-descent parser of what `printer` writes.  White space and comments are free, but for a
comment behind a node, which holds its line, scope and origin.  The ops must be registered (import
`retrograde.compiler.ops`).  What computes is restored in full; ids are fresh.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from retrograde.compiler.errors import DataError, ShapeError, UnsupportedError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.builder import new_value, next_id
from retrograde.compiler.ir.dims import Dim, Symbol
from retrograde.compiler.ir.graph import PRIMAL, Graph, Node, Origin, TensorType, Value
from retrograde.compiler.ir.location import Loc
from retrograde.compiler.ir.printer import PLAIN_FILE, PLAIN_NAME, RETURN_WORDS, USUAL_MAKER
from retrograde.compiler.ir.registry import lookup

T = TypeVar("T")

# The repeats that give nothing back (*+) keep reading linear in the text, whatever it holds.
_STRING = r'"(?:[^"\\\n]++|\\.)*+"'
_NAME = rf"{_STRING}|{PLAIN_NAME.pattern}"
_DEFINITION = re.compile(rf"%\d++\s*+(?:{_NAME})?+\s*+:")
_SKIP = re.compile(r"(?:\s++|#[^\n]*+)*+")
_WORD = re.compile(r"[^\W\d]\w*")
_INT = re.compile(r"-?\d+")
_NUMBER = re.compile(r"(-?(?:inf|nan|\d+(?:\.\d*)?(?:e[+-]?\d+)?))(?=\s*[,)}])")
_ORIGIN = re.compile(
    r"(?P<role>\w+)(?: of (?P<of>%\d+(?:,%\d+)*))?"
    rf"(?: group=(?P<group>\d+))?(?: by=(?P<by>{_NAME}))?"
)
_COMMENT = re.compile(
    rf"[ \t]*+#[ \t]*+(?:(?P<file>{_STRING}|{PLAIN_FILE.pattern}):(?P<line>\d+))?+[ \t]*+"
    rf"(?:@ (?P<scope>{_NAME}))?+[ \t]*+(?:<(?P<origin>{_ORIGIN.pattern})>)?+[ \t]*+(?=\n|$)"
)
# Of one size: the proofs about quotients and extremes take time that grows with their number.
MAX_LENGTH, MAX_FUNCTIONS = 1 << 13, 32
_FUNCTIONS = re.compile(r"//|[%,]")
_BRACKETS = re.compile(r'["()\[\]]')
_TUPLE_END = re.compile(r"\s*+[,)}]")
_WORD_VALUES: dict[str, Any] = {
    "True": True,
    "False": False,
    "None": None,
    **{t.name: t for t in dtypes.ALL},
}


def parse(text: str) -> Graph:
    """The graph that `text` describes.  Raises DataError naming line and column."""
    parser = _Parser(text)
    try:
        return parser.whole()
    except RecursionError:
        parser.fail("graphs or parentheses are nested too deeply here")
    except (ValueError, OverflowError) as error:  # a number of thousands of digits
        parser.fail(str(error))


def _unquoted(name: str) -> str:
    return json.loads(name) if name.startswith('"') else name


class _Parser:
    """One reading of one text; `at` is the position of the next character."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.symbols: dict[str, Symbol] = {}
        self.sizes: dict[str, Dim] = {}
        self.groups: dict[int, int] = {}  # of recomputations, as written: the ids they have here
        self.tuples: dict[int, bool] = {}  # whether the parenthesis at a place opens a tuple

    # --- characters

    def fail(self, message: str, at: int | None = None) -> NoReturn:
        at = self.at if at is None else at
        line = self.text.count("\n", 0, at) + 1
        column = at - (self.text.rfind("\n", 0, at) + 1) + 1
        raise DataError(f"graph text, line {line}, column {column}: {message}")

    def skip(self) -> None:
        found = _SKIP.match(self.text, self.at)
        assert found is not None
        self.at = found.end()

    def accept(self, token: str) -> bool:
        before = self.at
        self.skip()
        if not self.text.startswith(token, self.at):
            self.at = before  # a comment that was skipped may still be read
            return False
        self.at += len(token)
        return True

    def expect(self, token: str) -> None:
        if not self.accept(token):
            self.fail(f"expected {token!r}, found {self.found()}")

    def found(self) -> str:
        self.skip()
        word = re.compile(r"\S{1,24}").match(self.text, self.at)
        return repr(word.group()) if word else "the end"

    def match(self, pattern: re.Pattern[str], what: str) -> str:
        self.skip()
        found = pattern.match(self.text, self.at)
        if found is None:
            self.fail(f"expected {what}, found {self.found()}")
        self.at = found.end()
        return found.group()

    def keyword(self, word: str) -> bool:
        self.skip()
        found = _WORD.match(self.text, self.at)
        if found is None or found.group() != word:
            return False
        self.at = found.end()
        return True

    def list_of(self, item: Callable[[], T], end: str) -> list[T]:
        """Items between commas up to `end`, a comma before it being free."""
        items: list[T] = []
        while not self.accept(end):
            items.append(item())
            if not self.accept(","):
                self.expect(end)
                break
        return items

    def name(self) -> str:
        """A plain or quoted name, "" where there is none."""
        self.skip()
        found = re.compile(_NAME).match(self.text, self.at)
        if found is None or found.group() in RETURN_WORDS:
            return ""
        self.at = found.end()
        return self.string(found.group(), found.start())

    def string(self, token: str, at: int) -> str:
        try:
            return _unquoted(token)
        except json.JSONDecodeError as error:
            self.fail(f"malformed string {token}: {error.msg}", at)

    # --- header

    def whole(self) -> Graph:
        if self.keyword("dims"):
            self.declare()
            while self.accept(","):
                self.declare()
        if not self.keyword("graph"):
            self.fail(f"expected 'graph', found {self.found()}")
        graph = self.graph()
        self.skip()
        if self.at < len(self.text):
            self.fail(f"expected the end, found {self.found()}")
        return graph

    def declare(self) -> None:
        self.skip()
        start = self.at
        name = self.match(_WORD, "the name of a size")
        high: int | None = None
        if self.accept(">="):
            low = int(self.match(_INT, "a bound"))
        elif self.keyword("in"):
            low = int(self.match(_INT, "a bound"))
            self.expect("..")
            high = int(self.match(_INT, "a bound"))
        else:
            self.fail(f"expected '>=' or 'in' after {name}, found {self.found()}")
        if name in self.symbols:
            self.fail(f"the size {name} is declared twice", start)
        try:
            self.symbols[name] = Symbol(name, low, high)
        except ShapeError as error:
            self.fail(str(error), start)

    # --- graphs

    def graph(self) -> Graph:
        scope: dict[str, Value] = {}
        name = self.name()
        self.expect("(")
        declared = self.list_of(lambda: self.typed(scope), ")")
        inputs, input_names = [v for v, _ in declared], [n for _, n in declared]
        self.expect("{")
        nodes: list[Node] = []
        ancestors: dict[int, list[str]] = {}
        while not self.keyword("return"):
            node, stems_from = self.node(scope)
            nodes.append(node)
            if stems_from:
                ancestors[node.id] = stems_from
        outputs: list[Value] = []
        output_names: list[str] = []
        aliases: list[tuple[int, int]] = []
        while not self.accept("}"):
            outputs.append(self.use(scope))
            output_names.append(self.name())
            while self.keyword("into"):
                start = self.at
                target = self.use(scope)
                if target not in inputs:
                    self.fail("an output goes into an input of the graph", start)
                aliases.append((len(outputs) - 1, inputs.index(target)))
            if not self.accept(","):
                self.expect("}")
                break
        return Graph(
            name,
            tuple(inputs),
            tuple(self.with_ancestors(nodes, ancestors, scope)),
            tuple(outputs),
            tuple(input_names) if any(input_names) else (),
            tuple(output_names) if any(output_names) else (),
            tuple(aliases),
        )

    def typed(self, scope: dict[str, Value]) -> tuple[Value, str]:
        """`%3 name: f32[B,T]`, which defines the value."""
        self.skip()
        start = self.at
        number = self.number()
        if number in scope:
            self.fail(f"{number} is defined twice", start)
        name = self.name()
        self.expect(":")
        scope[number] = value = new_value(self.type())
        return value, name

    def number(self) -> str:
        return self.match(re.compile(r"%\d+"), "a value such as %0")

    def use(self, scope: dict[str, Value]) -> Value:
        self.skip()
        start = self.at
        number = self.number()
        if number not in scope:
            self.fail(f"{number} is not defined before it is used", start)
        return scope[number]

    def type(self) -> TensorType:
        self.skip()
        start = self.at
        word = self.match(_WORD, "a dtype such as f32")
        dtype = dtypes.named(word)
        if dtype is None:
            self.fail(f"unknown dtype {word!r}", start)
        self.expect("[")
        return TensorType(dtype, tuple(self.list_of(self.size, "]")))

    def node(self, scope: dict[str, Value]) -> tuple[Node, list[str]]:
        results: list[Value] = []
        while not self.accept("="):
            results.append(self.typed(scope)[0])
            if not self.accept(","):
                self.expect("=")
                break
        self.skip()
        start = self.at
        word = self.match(re.compile(r"[\w.]+"), "the name of an op")
        try:
            op = lookup(word)
        except UnsupportedError as error:
            self.fail(str(error), start)
        inputs: list[Value] = []
        here = self.at
        self.skip()
        if self.text.startswith("%", self.at) and not _DEFINITION.match(self.text, self.at):
            inputs.append(self.use(scope))
            while self.accept(","):
                inputs.append(self.use(scope))
            here = self.at
        attrs: dict[str, Any] = {}
        if self.accept("{"):
            attrs = dict(self.list_of(self.attribute, "}"))
            here = self.at
        self.at = here  # a comment in the rest of the line is the node's
        loc, where, origin, ancestors = self.comment()
        return (
            Node(next_id(), op, tuple(inputs), attrs, tuple(results), loc, where, origin),
            ancestors,
        )

    def comment(self) -> tuple[Loc | None, str, Origin, list[str]]:
        found = _COMMENT.match(self.text, self.at)
        if found is None:
            return None, "", PRIMAL, []
        loc = None
        if found["file"]:
            loc = Loc(self.string(found["file"], found.start("file")), int(found["line"]))
        scope = self.string(found["scope"], found.start("scope")) if found["scope"] else ""
        if not found["origin"]:
            return loc, scope, PRIMAL, []
        maker = USUAL_MAKER.get(found["role"], "trace")
        if found["by"]:
            maker = self.string(found["by"], found.start("by"))
        group = int(found["group"] or 0)
        if group:  # an id like any other, or a pass could give another recomputation the same
            group = self.groups.setdefault(group, 0) or self.new_group(group)
        origin = Origin(found["role"], maker, (), group)
        return loc, scope, origin, found["of"].split(",") if found["of"] else []

    def new_group(self, written: int) -> int:
        self.groups[written] = made = next_id()
        return made

    def with_ancestors(
        self, nodes: list[Node], ancestors: dict[int, list[str]], scope: dict[str, Value]
    ) -> list[Node]:
        made_by = {v: node.id for node in nodes for v in node.outputs}
        complete = []
        for node in nodes:
            if stems_from := ancestors.get(node.id):
                ids = tuple(made_by[scope[n]] for n in stems_from if scope.get(n) in made_by)
                origin = dataclasses.replace(node.origin, ancestors=ids)
                node = dataclasses.replace(node, origin=origin)
            complete.append(node)
        return complete

    # --- attributes

    def attribute(self) -> tuple[str, Any]:
        key = self.match(_WORD, "the name of an attribute")
        self.expect("=")
        if self.keyword("graph"):
            return key, self.graph()
        return key, self.value()

    def value(self) -> Any:
        self.skip()
        start = self.at
        if self.text.startswith('"', start):
            return self.string(self.match(re.compile(_STRING), "a string"), start)
        number = _NUMBER.match(self.text, start)
        if number is not None:
            self.at = number.end()
            return int(number[1]) if _INT.fullmatch(number[1]) else float(number[1])
        if self.text.startswith("(", start) and self.is_tuple():
            self.expect("(")
            return tuple(self.list_of(self.value, ")"))
        if self.text.startswith("dim(", start):
            self.expect("dim(")
            size = self.size()
            self.expect(")")
            return size
        word = re.compile(r"(\w+)(?=\s*[,)}])").match(self.text, start)
        if word is not None and word[1] in _WORD_VALUES:
            self.at = word.end()
            return _WORD_VALUES[word[1]]
        return self.size()

    def is_tuple(self) -> bool:
        """Whether the parenthesis here closes the whole value, which sizes never have.

        Those inside are found out on the way, so that all of a value is looked at once."""
        open_ones: list[int] = []
        for found in _BRACKETS.finditer(self.text, self.at):
            if self.at in self.tuples:
                break
            c, at = found.group(), found.start()
            if c == '"':
                self.tuples.update(dict.fromkeys(open_ones, True))
            elif c in "([":
                open_ones.append(at)
            else:
                closes = _TUPLE_END.match(self.text, at + 1) is not None
                self.tuples[open_ones.pop()] = closes
        if self.at not in self.tuples:
            self.fail("this parenthesis is never closed")
        return self.tuples[self.at]

    def size(self) -> Dim:
        """A size expression: everything up to a comma or bracket that it does not open."""
        self.skip()
        start = at = self.at
        depth = 0
        while at < len(self.text):
            c = self.text[at]
            if c in "#{}\n\"=" or (depth == 0 and c in ",])"):
                break
            depth += (c in "([") - (c in ")]")
            at += 1
        written = self.text[start:at].strip()
        if not written:
            self.fail(f"expected a size or a value, found {self.found()}")
        if written not in self.sizes:
            self.sizes[written] = self.read_size(written)
        self.at = at
        return self.sizes[written]

    def read_size(self, written: str) -> Dim:
        functions = len(_FUNCTIONS.findall(written))
        if len(written) > MAX_LENGTH or functions > MAX_FUNCTIONS:
            self.fail(f"a size of {len(written)} characters and {functions} functions is too long")
        try:
            size = dims.parse(written, self.symbols)
        except ShapeError as error:
            self.fail(str(error))
        for s in dims.symbols(size):
            if s.name not in self.symbols:
                self.fail(f"the size {s.name} is not declared: write `dims {s.name}>=1` on top")
        return size
