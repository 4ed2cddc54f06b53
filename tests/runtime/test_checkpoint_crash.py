"""A crash at any moment of a save leaves the old checkpoint or the new one.

Three ways to crash: the process ends at each line of the save in turn; the machine loses power
between any two calls to the file system; a process that saves in a loop is killed at random.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrograde.compiler.errors import CheckpointError
from retrograde.runtime.training import checkpoint

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs fork and kill")


def tensors_of(number: int) -> dict[str, Any]:
    return {"x": np.full((3, 5), number, np.float32), "y": np.arange(7) * number}


def number_in(path: Path) -> int | None:
    """The number of the whole checkpoint in `path`; None if there is none; else an error."""
    if not checkpoint.exists(path):
        return None
    tensors, meta = checkpoint.load(path)
    number = meta["number"]
    for name, array in tensors_of(number).items():
        np.testing.assert_array_equal(tensors[name], array)
    return int(number)


# --- the process ends at each line


def run_until(path: Path, line: int) -> bool:
    """Save number 2 in a process that ends, as by SIGKILL, before its `line`-th line of
    checkpoint.py; whether the save was over before.
    """
    child = os.fork()
    if child == 0:
        left = line

        def trace(frame: Any, event: str, _: Any) -> Any:
            nonlocal left
            if frame.f_code.co_filename != checkpoint.__file__:
                return None
            if event == "line":
                left -= 1
                if left < 0:
                    os._exit(9)
            return trace

        sys.settrace(trace)
        try:
            checkpoint.save(path, tensors_of(2), {"number": 2})
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 0


@pytest.mark.parametrize("start", ["nothing", "old", "old and leftovers"])
def test_ending_at_each_line(tmp_path: Path, start: str) -> None:
    template = tmp_path / "template"
    if start != "nothing":
        checkpoint.save(template, tensors_of(1), {"number": 1})
    else:
        # The libraries that `save` imports, once for all children.
        checkpoint.save(tmp_path / "warm", tensors_of(1), {"number": 1})
    if "leftovers" in start:
        (template / ".tmp-state-00000002.safetensors").write_bytes(b"cut")
        (template / "state-00000002.safetensors").write_bytes(b"never named")

    found: list[int | None] = []
    for line in itertools.count():
        path = tmp_path / f"at-{line}"
        if template.exists():
            shutil.copytree(template, path)
        over = run_until(path, line)
        found.append(number_in(path))
        # Whatever was left does not stop the next save, which cleans it up.
        if line % 5 == 0:
            checkpoint.save(path, tensors_of(3), {"number": 3})
            assert number_in(path) == 3
            assert len([f for f in path.iterdir() if f.name != ".lock"]) == 2
        shutil.rmtree(path, ignore_errors=True)
        if over:
            break
    old = None if start == "nothing" else 1
    commit = found.index(2)
    assert found == [old] * commit + [2] * (len(found) - commit)
    assert commit > 20
    assert len(found) - commit > 2  # lines after the commit point were tried as well


# --- the machine loses power


class Disk:
    """What a directory may look like after a power cut: a file's data is safe once it is synced,
    a name once the directory is; whatever is not may have reached the disk or not.
    """

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.synced: set[int] = set()
        self.durable: dict[str, bytes] = {}
        self.events = 0
        self.check: Any = None
        self._real = {name: getattr(os, name) for name in ("fsync", "replace", "unlink")}
        for name in self._real:
            monkeypatch.setattr(os, name, self._watched(name))
        self._sync_directory()

    def worlds(self) -> Iterator[dict[str, bytes]]:
        now = {
            file.name: file.read_bytes() if file.stat().st_ino in self.synced else b""
            for file in self.directory.iterdir()
        }
        names = sorted(now.keys() | self.durable.keys())
        choices = [{now.get(name), self.durable.get(name)} for name in names]
        for world in itertools.product(*choices):
            yield {
                name: content
                for name, content in zip(names, world, strict=True)
                if content is not None
            }

    def _watched(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.check()
            if name == "unlink":
                self.synced.discard(os.stat(args[0]).st_ino)
            if name == "replace" and os.path.exists(args[1]):
                self.synced.discard(os.stat(args[1]).st_ino)
            result = self._real[name](*args, **kwargs)
            if name == "fsync":
                inode = os.fstat(args[0]).st_ino
                self.synced.add(inode)
                if inode == os.stat(self.directory).st_ino:
                    self._sync_directory()
            self.events += 1
            self.check()
            return result

        return call

    def _sync_directory(self) -> None:
        self.durable = {
            file.name: file.read_bytes() if file.stat().st_ino in self.synced else b""
            for file in self.directory.iterdir()
        }


@pytest.mark.parametrize("old", [None, 1])
def test_power_cut_between_any_two_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: int | None
) -> None:
    path, replay = tmp_path / "run", tmp_path / "replay"
    path.mkdir()
    if old is not None:
        checkpoint.save(path, tensors_of(old), {"number": old})
    seen: set[int | None] = set()
    with monkeypatch.context() as patch:
        disk = Disk(path, patch)
        disk.synced = {file.stat().st_ino for file in path.iterdir()}
        disk._sync_directory()

        def check() -> None:
            for world in disk.worlds():
                shutil.rmtree(replay, ignore_errors=True)
                replay.mkdir()
                for name, content in world.items():
                    (replay / name).write_bytes(content)
                number = number_in(replay)
                assert number in (old, 2)
                seen.add(number)

        # `rmtree` unlinks too, so the checks run on the real calls.
        def unwatched() -> None:
            with monkeypatch.context() as inner:
                for name, real in disk._real.items():
                    inner.setattr(os, name, real)
                check()

        disk.check = unwatched
        checkpoint.save(path, tensors_of(2), {"number": 2})
    assert disk.events >= 6
    assert seen == {old, 2}
    # What `save` has returned from is there in every world.
    seen.clear()
    check()
    assert seen == {2}


def test_the_power_cut_test_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the syncs of the files, the simulated disk shows the hole."""
    path = tmp_path / "run"
    checkpoint.save(path, tensors_of(1), {"number": 1})
    disk = Disk(path, monkeypatch)
    disk.check = lambda: None
    watched = os.fsync

    def only_directories(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            watched(descriptor)

    monkeypatch.setattr(os, "fsync", only_directories)
    checkpoint.save(path, tensors_of(2), {"number": 2})
    assert all(world["checkpoint.json"] == b"" for world in disk.worlds())


# --- the process is killed at random

SAVER = """
import sys
import numpy as np
from retrograde.runtime.training import checkpoint

path, number = sys.argv[1], int(sys.argv[2])
while True:
    number += 1
    checkpoint.save(path, {"x": np.full(300_000, number, np.float32)}, {"number": number})
    print(number, flush=True)
"""


def test_kill_at_random_moments(tmp_path: Path) -> None:
    path = tmp_path / "run"
    moments = random.Random(7)
    number = 0
    leftovers = 0
    for _ in range(12):
        with subprocess.Popen(
            [sys.executable, "-c", SAVER, str(path), str(number)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            reported = int(process.stdout.readline())
            time.sleep(moments.uniform(0, 0.08))
            process.send_signal(signal.SIGKILL)
            reported = max([reported, *map(int, process.stdout.read().split())])
        tensors, meta = checkpoint.load(path)
        # At most one save can have ended without being reported.
        assert meta["number"] in (reported, reported + 1)
        np.testing.assert_array_equal(tensors["x"], np.full(300_000, meta["number"], np.float32))
        number = meta["number"]
        leftovers += len([f for f in path.iterdir() if f.name != ".lock"]) > 2
    assert leftovers > 0, "no kill fell into a save: the moments test nothing"
    checkpoint.save(path, {"x": np.ones(2)}, {"number": 0})
    assert len([f for f in path.iterdir() if f.name != ".lock"]) == 2


def test_a_first_save_cut_short_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "state-00000001.safetensors").write_bytes(b"cut")
    (tmp_path / ".tmp-checkpoint.json").write_bytes(b"{")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        checkpoint.load(tmp_path)
    checkpoint.save(tmp_path, tensors_of(1), {"number": 1})
    assert number_in(tmp_path) == 1
