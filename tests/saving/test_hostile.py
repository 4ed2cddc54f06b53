"""Files that are damaged, swapped or made to do harm: loading ends with one of our errors, soon.

What is damaged at random ends at a checksum; so the parts are also changed behind the checksums,
as somebody would who means it."""

from __future__ import annotations

import copy
import json
import os
import random
import re
import struct
import threading
import time
import warnings
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import retrograde as rg
from retrograde.errors import CheckpointError, DataError, RetrogradeError
from retrograde.runtime import archive
from retrograde.runtime.native.toolchain import find_toolchain
from retrograde.saving import ARRAYS, DATA, FORMAT, GRAPH, PLAN, PROGRAM, VERSION
from tests.saving.programs import PROGRAMS, compiled

SECONDS = 5.0  # that a small file may take; some hundred times what it does
Parts = dict[str, bytes]


@cache
def file_of(name: str) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        compiled(name).save(Path(folder) / "p")
        return (Path(folder) / "p").read_bytes()


@cache
def _parts_of(name: str) -> tuple[tuple[str, bytes], ...]:
    import io

    with zipfile.ZipFile(io.BytesIO(file_of(name))) as opened:
        return tuple((n, opened.read(n)) for n in opened.namelist() if n != archive.INDEX)


def parts_of(name: str) -> Parts:
    return dict(_parts_of(name))


def load(path: Path, parts: Parts | bytes) -> Any:
    """What `rg.load` makes of the parts, or of the bytes of a file."""
    if isinstance(parts, bytes):
        path.write_bytes(parts)
    else:
        archive.write(path, FORMAT, VERSION, DATA, parts)
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return rg.load(path)
    finally:
        assert time.perf_counter() - start < SECONDS


def harmless(path: Path, parts: Parts | bytes) -> bool:
    """Whether the parts are refused as they should be, or make a function."""
    try:
        load(path, parts)
        return False
    except RetrogradeError as error:
        assert str(path) in str(error), error
        return True


def test_bits_and_ends_that_are_lost(tmp_path: Path) -> None:
    whole = file_of("trees")
    rng = random.Random(3)
    refused = 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 8))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        refused += harmless(tmp_path / "p", bytes(data))
    assert refused > 100  # a few bits mean nothing, those of the time for one
    for length in (*range(0, len(whole), 97), len(whole) - 1):
        assert harmless(tmp_path / "p", whole[:length])
    assert harmless(tmp_path / "p", b"")
    assert harmless(tmp_path / "p", whole[: len(whole) // 2] * 2)


def test_parts_of_other_files(tmp_path: Path) -> None:
    names = ("trees", "lstm", "gpt", "mean")
    for a in names:
        for b in names:
            for part in (PROGRAM, GRAPH, ARRAYS):
                mixed = parts_of(a)
                if a == b or part not in parts_of(b):
                    continue
                mixed[part] = parts_of(b)[part]
                assert harmless(tmp_path / "p", mixed), (a, b, part)
    for part in (PROGRAM, GRAPH, PLAN, ARRAYS):
        missing = parts_of("trees")
        del missing[part]
        assert harmless(tmp_path / "p", missing)
    more = {**parts_of("mean"), ARRAYS: parts_of("trees")[ARRAYS]}
    assert harmless(tmp_path / "p", more)  # the graph takes none


def test_a_plan_for_another_program_is_made_anew(tmp_path: Path) -> None:
    mixed = {**parts_of("lstm"), PLAN: parts_of("mean")[PLAN]}
    assert not load(tmp_path / "p", mixed)._run.recipes[0].as_decided


WORDS = (
    "-1", "0", "1", "2", "99999999999999999999", "1" * 5000, "nan", "inf", "None", "True", "()",
    "(1,)", '"x"', '"*/ int main(){"', "f32", "bool", "i64", "B", "B*B", "T // 0", "B**32",
    "%0", "%1", "%99", "scan", "sum", "add", "call", "debug_print", "gather", "concatenate",
    "graph", "}", "{", ",", "return", "\n", "#", "=", ":", "f32[B]", "f32[0]", "f32[1048576,B]",
)  # fmt: skip


def changed(text: str, rng: random.Random) -> str:
    """`text` with a few of its words replaced, removed, doubled or exchanged."""
    words = re.findall(r"\w+|\s+|[^\w\s]", text)
    for _ in range(rng.choice((1, 1, 2, 5))):
        i, j = rng.randrange(len(words)), rng.randrange(len(words))
        act = rng.randrange(4)
        if act == 0:
            words[i] = rng.choice(WORDS)
        elif act == 1:
            words[i] = ""
        elif act == 2:
            words[i] *= 2
        else:
            words[i], words[j] = words[j], words[i]
    return "".join(words)


@pytest.mark.parametrize("name", PROGRAMS)
def test_graphs_of_changed_words(name: str, tmp_path: Path) -> None:
    rng = random.Random(name)
    text = parts_of(name)[GRAPH].decode()
    refused = 0
    for _ in range(25):
        parts = {**parts_of(name), GRAPH: changed(text, rng).encode()}
        refused += harmless(tmp_path / "p", parts)
    assert refused


ODD = (
    None, True, -1, 0, 1, 2**31, 2**63, 10**400, 1.5, float("nan"), "", "x", "../../etc/passwd",
    [], {}, [[]], ["leaf", -1], ["leaf", 10**9], ["is", ["object", "os:system"]], ["none"],
    ["module", "os:PathLike", []], ["named", "collections:OrderedDict", ["a"], [["leaf", 0]]],
    ["class", "retrograde.mean:Mean", 5, []], "\ud800", "\0",
)  # fmt: skip


def places(x: Any) -> Iterator[tuple[Any, Any]]:
    items = x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list) else ()
    for key, value in items:
        yield x, key
        yield from places(value)


@pytest.mark.parametrize("part", [PROGRAM, PLAN])
@pytest.mark.parametrize("name", ["trees", "lstm in a budget", "updated module"])
def test_odd_values_in_descriptions(name: str, part: str, tmp_path: Path) -> None:
    rng = random.Random(part + name)
    for _ in range(40):
        data = json.loads(parts_of(name)[part])
        for _ in range(rng.choice((1, 1, 3))):
            holder, key = rng.choice(list(places(data)))
            holder[key] = copy.deepcopy(rng.choice(ODD))  # the next may go into it
        harmless(tmp_path / "p", {**parts_of(name), part: json.dumps(data).encode()})


@pytest.mark.parametrize(
    ("part", "data"),
    [
        (PROGRAM, b"[" * 1_000_000),
        (PROGRAM, b'{"at":' * 100_000),
        (PLAN, b"[" + b"9" * 5000 + b"]"),
        (PLAN, b"\xff\xfe"),
        (GRAPH, b"graph f() {" + b"\n %0: f32[] = call {body=graph f() {" * 20_000),
        (GRAPH, b"dims " + b",".join(b"A%d>=1" % i for i in range(100_000))),
        (GRAPH, b"graph f(%0: f32[" + b"(" * 500_000),
        (GRAPH, b"graph f(%0: f32[]) {\n  %1: f32[] = neg %0  #" + b" " * 1_000_000 + b"x"),
        (GRAPH, b'graph "' + b"\\u0041" * 200_000 + b'" () { return }'),
        (ARRAYS, struct.pack("<Q", 2**62) + b"{}"),
        (ARRAYS, struct.pack("<Q", 90) + b'{"0":{"dtype":"F32","shape":[9999999999999,9],'
         b'"data_offsets":[0,359999999999964]}}'.ljust(90)),
    ],
)  # fmt: skip
def test_absurd_sizes(part: str, data: bytes, tmp_path: Path) -> None:
    assert harmless(tmp_path / "p", {**parts_of("trees"), part: data})


def graph_file(text: str, inputs: list[str], **more: Any) -> Parts:
    program = {
        "function": "f", "arguments": ["tuple", [["leaf", i] for i in range(len(inputs))]],
        "outputs": ["leaf", 0], "inputs": len(inputs), "at": {}, "budget": None,
        "backend": "numpy", "threads": None,
        "planned": {"version": "0", "device": "numpy", "threads": 1}, **more,
    }  # fmt: skip
    return {PROGRAM: json.dumps(program).encode(), GRAPH: text.encode(), PLAN: b"[]"}


@pytest.mark.parametrize(
    "text",
    [
        # Sizes that overflow, or take all memory if anything is made of them.
        "graph f(%0 x: f32[4611686018427387904,4611686018427387904]) {{\n {1} return %1\n}}",
        "dims B in 0..9223372036854775807\ngraph f(%0 x: f32[B,B,B]) {{\n {1} return %1\n}}",
        "dims B>=99999999999999999999\ngraph f(%0 x: f32[B]) {{\n {1} return %1\n}}",
    ],
)
def test_large_sizes_cost_nothing_when_loading(text: str, tmp_path: Path) -> None:
    for op in ("neg", "exp", "sort"):
        shape = re.search(r"f32\[.*?\]", text)
        assert shape is not None
        attrs = " {axis=0}" if op == "sort" else ""
        made = text.format(0, f"%1: {shape.group()} = {op} %0{attrs}\n")
        harmless(tmp_path / "p", graph_file(made, ["x"]))


def test_a_loop_of_any_length_in_a_budget(tmp_path: Path) -> None:
    data = json.loads(parts_of("lstm in a budget")[PROGRAM])
    for length in (10**9, 2**47):
        data["at"] = {"B": 1, "T": length}
        for budget in (data["budget"], 2**47):
            parts = {PROGRAM: json.dumps(data | {"budget": budget}).encode()}
            harmless(tmp_path / "p", parts_of("lstm in a budget") | parts)


CANARY = "retrograde_was_here"
NAMES = (
    f'"\\n    open(\\"{CANARY}\\",\\"w\\")\\n#"',
    f'"*/ int x = system(\\"touch {CANARY}\\"); /*"',
    f'"\\"\\"\\"; open(\\"{CANARY}\\", \\"w\\"); \\"\\"\\""',
    '"\\\\"', '"\\u0000"', '"\\u2028import os"', '"//\\\\\\n*/"', '"??/"', '"%s%n{0.__class__}"',
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", ["numpy", "native"])
def test_names_are_never_code(
    name: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    if backend == "native" and find_toolchain() is None:
        pytest.skip("there is no C compiler")
    monkeypatch.chdir(tmp_path)
    text = (
        f"dims B>=1\ngraph {name}(%0 {name}: f32[B,3]) {{\n"
        f"  %1: f32[B,3] = exp %0   # {name}:7 @ {name} <cotangent by={name}>\n"
        f"  %2: f32[3] = sum %1 {{axes=(0,), keepdims=False}}   # {name}:8 @ {name}\n"
        f"  return %2 {name}\n}}\n"
    )
    c = load(tmp_path / "p", graph_file(text, ["x"], backend=backend, function=json.loads(name)))
    x = np.arange(12, dtype=np.float32).reshape(4, 3) / 7
    np.testing.assert_allclose(c(x), np.exp(x).sum(0), rtol=1e-6)
    c.report(B=4)
    c.inspect("out.svg")
    c.inspect("out.dot")
    with pytest.raises(RetrogradeError):
        c(x[0])
    assert not os.path.exists(CANARY)


@pytest.mark.parametrize(
    "symbol",
    ["import", "None", "__import__", "min", "a b", "x;y", "\ufb01", "\uff560", "B\n", '"B"', "1B"],
)
def test_sizes_of_odd_names(symbol: str, tmp_path: Path) -> None:
    text = f"dims {symbol}>=1\ngraph f(%0 x: f32[{symbol}]) {{\n  return %0\n}}\n"
    harmless(tmp_path / "p", graph_file(text, ["x"]))


@pytest.mark.parametrize("symbol", ["int", "for_", "rt", "xp", "at", "memory", "v0", "m", "é", "s"])
def test_sizes_named_as_what_generated_code_uses(symbol: str, tmp_path: Path) -> None:
    import numpy as np

    text = (
        f"dims {symbol}>=1\ngraph f(%0 x: f32[{symbol},2]) {{\n"
        f"  %1: f32[2] = sum %0 {{axes=(0,), keepdims=False}}\n  return %1\n}}\n"
    )
    c = load(tmp_path / "p", graph_file(text, ["x"]))
    assert c(np.ones((5, 2), np.float32)).tolist() == [5, 5]


@pytest.mark.parametrize(
    "node",
    [
        f'%1: f32[] = constant {{dtype=f32, value="1; open({CANARY})"}}',
        "%1: f32[] = constant {dtype=f32, value=(1,2)}",
        "%1: f32[] = constant {dtype=f32, value=B}",
        "%1: f32[] = constant {dtype=f32}",
        '= debug_print %0 {format="{:>999999999999}"}\n%1: f32[] = neg %0',
        '= debug_print %0 {format="{0.__class__.__mro__}"}\n%1: f32[] = neg %0',
        '= debug_print %0 {format="{:{}}"}\n%1: f32[] = neg %0',
        '= debug_print %0 {format="{"}\n%1: f32[] = neg %0',
        "= debug_print %0 {format=7}\n%1: f32[] = neg %0",
        "%1: f32[] = reshape %0 {shape=(1,)}",
        "%1: f32[] = os.system %0",
        "%1: f32[] = neg",
        "%1: i32[] = neg %0",
        "%1: f32[] = call %0 {body=graph g(%0: i32[]) {\n return %0\n}}",
        "%1: f32[] = call %0 {body=7}",
    ],
)
def test_nodes_that_are_none(node: str, tmp_path: Path) -> None:
    text = f"dims B>=1\ngraph f(%0 x: f32[]) {{\n  {node}\n  return %1\n}}\n"
    assert harmless(tmp_path / "p", graph_file(text, ["x"]))


@pytest.mark.parametrize(
    "outputs",
    [
        ["module", "retrograde.nn.layers:Linear",
         [["weight", ["leaf", 0]], ["bias", ["is", ["object", "os:system"]]]]],
        ["module", "retrograde.nn.layers:Linear",
         [["weight", ["leaf", 0]], ["bias", ["is", ["object", "retrograde.saving:os.system"]]]]],
        ["module", "subprocess:Popen", [["a", ["leaf", 0]]]],
        ["module", "retrograde.mean:Mean", [["a", ["leaf", 0]]]],
        ["class", "subprocess:Popen", 1, [["leaf", 0]]],
        ["named", "subprocess:Popen", ["a"], [["leaf", 0]]],
        ["named", "this.that:It", ["a"], [["leaf", 0]]],
        ["dict", [[["object", "os:system"], ["leaf", 0]]]],
        ["list", [["is", ["object", "builtins:eval"]], ["leaf", 0]]],
    ],
)
def test_results_are_made_of_registered_classes_alone(outputs: Any, tmp_path: Path) -> None:
    import sys

    text = "graph f(%0 x: f32[]) {\n  return %0\n}\n"
    with pytest.raises(CheckpointError, match=r"import |no module|no named|not looked up"):
        load(tmp_path / "p", graph_file(text, ["x"], outputs=outputs))
    assert "this" not in sys.modules


def test_orders_and_places_that_are_wrong(tmp_path: Path) -> None:
    """Behind digests that are right: buffers above each other, nodes before their operands."""
    for change in (
        lambda r: r["offsets"].__setitem__(slice(None), [0] * len(r["offsets"])),
        lambda r: r["offsets"].pop(),
        lambda r: r["orders"][-1].reverse(),
        lambda r: r["orders"][-1].append(0),
        lambda r: r["orders"].pop(),
    ):  # type: Callable[[Any], Any]
        plan = json.loads(parts_of("lstm")[PLAN])
        change(plan[0])
        with pytest.raises(CheckpointError, match="cannot be compiled"):
            load(tmp_path / "p", {**parts_of("lstm"), PLAN: json.dumps(plan).encode()})


def test_archives_that_are_no_files_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "p"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:  # 100 MB of zeros
        made.writestr(archive.INDEX, b"0" * 100_000_000)
    with pytest.raises(CheckpointError, match="not as they are written"):
        rg.load(path)
    with zipfile.ZipFile(path, "w") as made, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.writestr("a", b"1")
        made.writestr("a", b"2")
    with pytest.raises(CheckpointError, match="not as they are written"):
        rg.load(path)
    with zipfile.ZipFile(path, "w") as made:
        made.writestr(archive.INDEX, b'{"format": "another"}')
    with pytest.raises(CheckpointError, match=f"is no {FORMAT}"):
        rg.load(path)
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        rg.load(tmp_path / "missing")
    with pytest.raises(CheckpointError, match="is a folder"):
        rg.load(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        rg.load("a\0b")
    archive.write(path, FORMAT, VERSION + 1, DATA, {})
    with pytest.raises(CheckpointError, match=f"version {VERSION + 1}, and this Retrograde reads"):
        rg.load(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    done: list[BaseException] = []

    def wait() -> None:
        with pytest.raises(CheckpointError, match="is no file") as refusal:
            rg.load(tmp_path / "pipe")
        done.append(refusal.value)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    thread.join(20)
    assert done


def test_every_message_names_the_file(tmp_path: Path) -> None:
    parts = parts_of("mean")
    parts[GRAPH] = parts[GRAPH].replace(b"f32", b"f31", 1)
    with pytest.raises(CheckpointError, match=r"/p: holds no valid program: .*unknown dtype 'f31'"):
        load(tmp_path / "p", parts)
    assert not issubclass(CheckpointError, DataError)
