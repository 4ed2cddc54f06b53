"""The ladder of compilers, what they are asked for, and what comes out of them."""

from __future__ import annotations

import ctypes
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retrograde.compiler.codegen import csource
from retrograde.compiler.errors import DeviceError, Notice
from retrograde.runtime.native import cache, toolchain
from retrograde.runtime.native.toolchain import (
    Toolchain,
    find_toolchain,
    load,
    search,
    shared_library,
)

CC = shutil.which("cc")
needs_cc = pytest.mark.skipif(CC is None, reason="there is no C compiler on this machine")
SOURCE = "int answer(void) { return 42; }\n"


def forget() -> None:
    """As a new process would begin."""
    toolchain._search.cache_clear()
    toolchain._told.clear()


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of compiled code; nothing is known of compilers."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("RETROGRADE_CACHE_DIR", str(folder))
    for name in ("RETROGRADE_CC", "RETROGRADE_CACHE_MB"):
        monkeypatch.delenv(name, raising=False)
    forget()
    return folder


Wrapper = Callable[..., Path]


@pytest.fixture
def wrapper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wrapper:
    """`wrapper(line)`: RETROGRADE_CC is a script that runs this line, then the compiler."""

    def make(line: str = "", more: str = "", name: str = "wrapped-cc") -> Path:
        script = tmp_path / name
        script.write_text(f'#!/bin/sh\n{line}\nexec "{CC}" "$@" {more}\n')
        script.chmod(0o755)
        monkeypatch.setenv("RETROGRADE_CC", str(script))
        forget()
        return script

    return make


def found() -> Toolchain:
    compiler = find_toolchain()
    assert compiler is not None
    return compiler


def compiled(source: str, name: str = "test", **changes: Any) -> tuple[Path, ctypes.CDLL]:
    path = shared_library(source, replace(found(), **changes), name=name)
    return path, load(path)


def forbid_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on no program can be started."""

    def start(*arguments: Any, **options: Any) -> None:
        raise AssertionError(f"a program was started: {arguments}")

    monkeypatch.setattr(subprocess, "run", start)


# --- finding


@needs_cc
def test_the_compiler_of_this_machine(place: Path) -> None:
    compiler = found()
    assert compiler.kind in ("gcc", "clang", "zig")
    assert set(compiler.flags) >= {"-O2", "-ffp-contract=off", "-fwrapv", "-std=gnu11", "-fPIC"}
    assert not re.search("fast|associative|finite-math", " ".join(compiler.flags))
    assert compiler.version in compiler.describe() and CC in compiler.command
    macros = subprocess.run(
        [*compiler.command, *compiler.flags, "-dM", "-E", "-x", "c", os.devnull],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    wide = "__AVX512F__ 1" in macros, "__AVX2__ 1" in macros
    assert (compiler.vectors == "AVX-512", compiler.vectors in ("AVX-512", "AVX2")) == wide


@needs_cc
def test_a_warm_start_runs_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    first = found()
    path, _ = compiled(SOURCE)
    forget()
    forbid_programs(monkeypatch)
    assert found() == first
    again, library = compiled(SOURCE)
    assert again == path and library.answer() == 42
    with pytest.raises(AssertionError, match="a program was started"):
        compiled(SOURCE + "\n")


def test_without_a_compiler_there_is_one_notice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(toolchain, "_packaged_zig", lambda: None)
    with pytest.warns(Notice, match="no C compiler") as told:
        assert find_toolchain() is None
        assert find_toolchain() is None
    assert len(told) == 1
    assert all(way in str(told[0].message) for way in ("apt install gcc", "pip install ziglang"))
    with pytest.raises(DeviceError, match=r"there is no C compiler.*backend='numpy'"):
        shared_library(SOURCE, None, name="test")


@needs_cc
def test_what_does_not_work_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert CC is not None
    (tmp_path / "cc").write_text("#!/bin/sh\necho no licence >&2\nexit 3\n")
    (tmp_path / "gcc").write_text(f'#!/bin/sh\nexec {CC} "$@"\n')
    for name in ("cc", "gcc"):
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    compiler, refused = search()
    assert compiler is not None and compiler.command == (str(tmp_path / "gcc"),)
    assert len(refused) == 1 and refused[0].startswith(f"{tmp_path}/cc: ")
    assert "no licence" in refused[0]
    assert found() == compiler


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no-such-compiler -m64", "'no-such-compiler -m64': there is no such program"),
        ("'cc", "no command"),
        ("false", "'false', which cannot be used: it refuses a small program"),
        ("true", "'true', which cannot be used: it makes no program"),
        (f"{sys.executable} -ffast-math", "-ffast-math changes results"),
        (f"{sys.executable} -Ofast", "-Ofast changes results"),
    ],
)
def test_a_chosen_compiler_that_does_not_work_is_an_error(
    monkeypatch: pytest.MonkeyPatch, value: str, message: str
) -> None:
    monkeypatch.setenv("RETROGRADE_CC", value)
    with pytest.raises(DeviceError, match=f"RETROGRADE_CC is .*{message}"):
        find_toolchain()


@needs_cc
@pytest.mark.parametrize("flag", ["-ffast-math", "-ffinite-math-only", "-ffp-contract=fast"])
def test_a_compiler_that_takes_liberties_is_refused(wrapper: Wrapper, flag: str) -> None:
    if flag == "-ffp-contract=fast" and found().vectors not in ("AVX-512", "AVX2"):
        pytest.skip("needs a processor that multiplies and adds in one")
    wrapper(more=flag)
    with pytest.raises(DeviceError, match="does not compute as IEEE 754 says"):
        find_toolchain()


@needs_cc
def test_a_relative_path_stays_what_it_was(
    wrapper: Wrapper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper(name="mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RETROGRADE_CC", "./mine")
    assert found().command == (str(tmp_path / "mine"),)
    assert compiled(SOURCE)[1].answer() == 42


@needs_cc
def test_only_flags_that_are_taken_are_used(wrapper: Wrapper) -> None:
    script = wrapper('for a; do case "$a" in -march*|-mcpu*|-fno-trap*) exit 1;; esac; done')
    flags = found().flags
    assert found().command == (str(script),)
    assert not re.search("native|trapping", " ".join(flags))
    assert "-fno-math-errno" in flags and "-pthread" in flags
    assert compiled(SOURCE)[1].answer() == 42
    wrapper('for a; do case "$a" in -fwrapv) echo no -fwrapv; exit 1;; esac; done')
    with pytest.raises(DeviceError, match="no -fwrapv"):
        find_toolchain()


@needs_cc
def test_zig_is_the_last_resort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zig = tmp_path / "zig"
    zig.write_text(
        '#!/bin/sh\n[ "$1" = version ] && { echo 0.99; exit; }\n[ "$1" = cc ] || exit 1\nshift\n'
        'for a; do shift; case "$a" in -mcpu=native) ;; *) set -- "$@" "$a";; esac; done\n'
        f'PATH={os.environ["PATH"]} exec {CC} "$@"\n'
    )
    zig.chmod(0o755)
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.setattr(toolchain, "_packaged_zig", lambda: str(zig))
    compiler = found()
    assert compiler.command == (str(zig), "cc") and compiler.kind == "zig"
    assert compiler.version.startswith("zig 0.99, ") and "-mcpu=native" in compiler.flags
    assert compiled(SOURCE)[1].answer() == 42


def test_zig_of_the_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if any("ziglang" in name for name in sys.modules):
        pytest.skip("the package itself is loaded")
    package = tmp_path / "ziglang"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert toolchain._packaged_zig() is None
    (package / "zig").write_text("")
    (package / "zig").chmod(0o755)
    assert toolchain._packaged_zig() == str(package / "zig")


# --- compiling


@needs_cc
def test_generated_code_computes_as_it_is_written() -> None:
    source = csource.part("base") + (
        "f32 less(f32 x) { return x - x; }\n"
        "f32 sum3(f32 a, f32 b, f32 c) { return a * b + c; }\n"
        "int is_nan(f32 x) { return x != x; }\n"
        "i64 next(i64 x) { return x + 1; }\n"
        "f64 root(f64 x) { return tgamma(x); }\n"
    )
    _, library = compiled(source)
    single = ctypes.c_float
    library.less.restype = library.sum3.restype = single
    library.next.restype, library.root.restype = ctypes.c_int64, ctypes.c_double
    assert math.isnan(library.less(single(math.inf)))
    assert library.is_nan(single(math.nan)) == 1
    a = 1 + 2.0**-12
    assert library.sum3(single(a), single(a), single(-1 - 2.0**-11)) == 0  # the product is rounded
    assert library.next(ctypes.c_int64(2**63 - 1)) == -(2**63)
    assert library.root(ctypes.c_double(5)) == 24


@needs_cc
def test_the_source_is_kept_for_reading(place: Path) -> None:
    path, _ = compiled(SOURCE, name="../Loss & (ünder) /tmp")
    assert path.parent == place and re.fullmatch(r"loss_nder_tmp-[0-9a-f]{32}\.so", path.name)
    assert path.with_suffix(".c").read_text() == SOURCE
    assert not list(place.glob("*.tmp"))


@needs_cc
def test_what_decides_on_the_code_decides_on_the_key(
    wrapper: Wrapper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = wrapper()
    compiler = found()

    def key(source: str = SOURCE, **changes: Any) -> str:
        return toolchain._key(source, replace(compiler, **changes))

    keys = [
        key(),
        key(SOURCE + " "),
        key(flags=(*compiler.flags, "-g")),
        key(flags=(*compiler.flags[1:], compiler.flags[0])),
        key(version="another"),
        key(command=(*compiler.command, "-m64")),
        key(command=("cc",)),
    ]
    assert key() == keys[0] == key(vectors="as the flags say")
    monkeypatch.setenv("CPATH", str(tmp_path))
    keys.append(key())
    monkeypatch.delenv("CPATH")
    with monkeypatch.context() as other:
        other.setattr(toolchain, "_machine", lambda: ("another processor",))
        keys.append(key())
        other.setattr(toolchain, "FORMAT", toolchain.FORMAT + 1)
        keys.append(key())
    os.utime(script, (1000, 1000))
    keys.append(key())
    script.write_text(script.read_text() + "\n")
    os.utime(script, (1000, 1000))
    keys.append(key())
    assert len(set(keys)) == len(keys)


def test_the_processor_is_part_of_the_key() -> None:
    if not Path("/proc/cpuinfo").exists():
        pytest.skip("needs /proc")
    known = " ".join(toolchain._machine())
    assert re.search("(flags|Features|isa|cpu).*:", known) and "MHz" not in known


@needs_cc
def test_a_refused_source_is_told_and_kept(place: Path) -> None:
    lines = "\n".join(f"int x{n} = undeclared{n};" for n in range(30))
    with pytest.raises(DeviceError, match="fault of Retrograde") as error:
        shared_library(lines, found(), name="wrong")
    message = str(error.value)
    (kept,) = place.glob("wrong-*.c")
    assert str(kept) in message and kept.read_text() == lines
    assert "undeclared0" in message and "undeclared29" not in message
    assert "more lines" in message and found().describe() in message
    assert "undeclared29" in kept.with_suffix(".log").read_text()


def test_what_is_no_library_is_not_loaded(place: Path) -> None:
    place.mkdir(mode=0o700)
    (place / "text.so").write_text("no library")
    with pytest.raises(DeviceError, match=r"cannot be loaded.*RETROGRADE_CACHE_DIR"):
        load(place / "text.so")


# --- several at once


@needs_cc
def test_threads_compile_side_by_side(wrapper: Wrapper, tmp_path: Path) -> None:
    log = tmp_path / "log"
    # Every compiler waits until all four have begun.
    again = "i=$((i+1)); [ $i -lt 200 ] || exit 1; sleep 0.05"
    wait = f"until [ $(wc -l <{log}) -ge 4 ]; do {again}; done"
    wrapper(f'i=0; case "$*" in *.so*) echo >>{log}; {wait};; esac')
    compiler = found()
    sources = [f"int answer(void) {{ return {n}; }}\n" for n in range(4)]
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(shared_library, s, compiler, name="many") for s in sources * 2]
        answers = [load(job.result()).answer() for job in jobs]
    assert answers == [0, 1, 2, 3] * 2
    assert len(log.read_text().splitlines()) == 4


@needs_cc
def test_eight_processes_compile_once_though_one_is_killed(
    wrapper: Wrapper, tmp_path: Path, place: Path
) -> None:
    log = tmp_path / "log"
    # The compiler's parent is the process that asked for it.
    wrapper(f'case "$*" in *.so*) echo $PPID >>{log}; sleep 1.5;; esac')
    code = (
        "from retrograde.runtime.native.toolchain import find_toolchain, load, shared_library\n"
        f"path = shared_library({SOURCE!r}, find_toolchain(), name='shared')\n"
        "print(load(path).answer(), path)\n"
    )
    start = [sys.executable, "-c", code]
    processes = [
        subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    for _ in range(1000):
        if log.exists() and log.read_text().endswith("\n"):
            break
        time.sleep(0.02)
    (compiling,) = (p for p in processes if str(p.pid) == log.read_text().strip())
    compiling.send_signal(signal.SIGKILL)
    done = [(p, *p.communicate(timeout=60)) for p in processes]
    assert compiling.returncode == -signal.SIGKILL
    (path,) = place.glob("shared-*.so")
    for process, output, errors in done:
        if process is not compiling:
            assert (process.returncode, output, errors) == (0, f"42 {path}\n", "")
    assert len(log.read_text().splitlines()) == 2  # the one who was killed, and one more
    assert not list(place.glob("*.tmp"))
    forget()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compiled(SOURCE, name="shared")[0] == path
    assert len(log.read_text().splitlines()) == 2
    assert all(e.whole for e in cache.entries(place))
