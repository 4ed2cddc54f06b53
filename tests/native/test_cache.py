"""The folder of compiled code: what is handed out, what is refused, who waits for whom."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import stat
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from retrograde.compiler.errors import DeviceError, Notice
from retrograde.runtime.native import cache, locks

NOBODY = 65534
STEM = "step-0123456789abcdef0123456789abcdef"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of compiled code that is not there yet."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("RETROGRADE_CACHE_DIR", str(folder))
    monkeypatch.delenv("RETROGRADE_CACHE_MB", raising=False)
    monkeypatch.setattr(cache, "_told", set())
    cache._private.cache_clear()
    return folder


class Maker:
    """Makes contents, and counts how often."""

    def __init__(self, content: bytes = b"compiled " * 50, stem: str = STEM) -> None:
        self.content, self.stem, self.runs = content, stem, 0

    def __call__(self, scratch: Path) -> None:
        self.runs += 1
        (scratch / f"{self.stem}.so").write_bytes(self.content)
        (scratch / f"{self.stem}.c").write_text("int source;")
        (scratch / "other").write_text("not kept")

    def fetch(self) -> Path:
        return cache.fetch(self.stem, ".so", self)

    def fetched(self) -> bytes:
        path = self.fetch()
        content = path.read_bytes()
        cache.release(path)
        return content


def stem_of(number: int) -> str:
    return f"step-{number:032x}"


# --- making and finding


def test_an_entry_is_made_once_and_for_this_user_alone(place: Path) -> None:
    before = os.umask(0)  # as open as can be
    try:
        maker = Maker()
        assert maker.fetched() == maker.content == maker.fetched()
    finally:
        os.umask(before)
    assert maker.runs == 1
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert {p.name: stat.S_IMODE(p.stat().st_mode) for p in place.iterdir()} == {
        f"{STEM}.{kind}": 0o600 for kind in ("so", "c", "json", "lock", "use")
    }


def _corrupt(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _link(path: Path) -> None:
    real = path.with_name("elsewhere")
    path.rename(real)
    path.symlink_to(real)


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _give_away(path: Path) -> None:
    os.chown(path, NOBODY, NOBODY)


DAMAGE: list[Any] = [
    pytest.param(".so", _corrupt, id="content corrupt"),
    pytest.param(".so", _truncate, id="content truncated"),
    pytest.param(".so", lambda path: os.truncate(path, 0), id="content empty"),
    pytest.param(".so", Path.unlink, id="content missing"),
    pytest.param(".so", lambda path: path.chmod(0o620), id="content writable by group"),
    pytest.param(".so", lambda path: path.chmod(0o602), id="content writable by others"),
    pytest.param(".so", _give_away, id="content foreign", marks=needs_root),
    pytest.param(".so", _link, id="content a link"),
    pytest.param(".so", _fifo, id="content a pipe"),
    pytest.param(".json", Path.unlink, id="record missing"),
    pytest.param(".json", _truncate, id="record truncated"),
    pytest.param(".json", lambda path: path.write_text("[]"), id="record of no use"),
    pytest.param(".json", lambda path: path.write_text("[" * 100_000), id="record deep"),
    pytest.param(".json", lambda path: path.chmod(0o660), id="record writable by group"),
    pytest.param(".json", _give_away, id="record foreign", marks=needs_root),
    pytest.param(".json", _link, id="record a link"),
]


@pytest.mark.parametrize("released", [True, False], ids=["released", "about to be loaded"])
@pytest.mark.parametrize(("suffix", "damage"), DAMAGE)
def test_what_cannot_be_trusted_is_made_anew(
    place: Path, suffix: str, damage: Callable[[Path], None], released: bool
) -> None:
    maker = Maker()
    path = maker.fetch()
    if released:
        cache.release(path)
    damage(place / f"{STEM}{suffix}")
    assert maker.fetched() == maker.content
    assert maker.runs == 2
    for kind in (".so", ".json"):
        found = (place / f"{STEM}{kind}").lstat()
        assert stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()
        assert stat.S_IMODE(found.st_mode) == 0o600
    assert maker.fetched() == maker.content and maker.runs == 2
    cache.release(path)


def test_a_failure_keeps_its_texts_and_no_content(place: Path) -> None:
    def fail(scratch: Path) -> None:
        (scratch / f"{STEM}.c").write_text("int x")
        raise DeviceError("refused")

    with pytest.raises(DeviceError, match=r"^refused$"):
        cache.fetch(STEM, ".so", fail)
    assert (place / f"{STEM}.c").read_text() == "int x"
    assert not (place / f"{STEM}.so").exists() and not list(place.glob("*.tmp"))
    maker = Maker()
    assert maker.fetched() == maker.content


# --- the folder


def _a_link(place: Path) -> None:
    real = place.with_name("real")
    real.mkdir(mode=0o700)
    place.symlink_to(real)


def _foreign(place: Path) -> None:
    place.mkdir(mode=0o700)
    os.chown(place, NOBODY, NOBODY)


def _with_mode(mode: int) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        place.mkdir()
        place.chmod(mode)

    return make


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        pytest.param(_with_mode(0o770), r"others can write .*\(mode 0770\).*chmod 700", id="group"),
        pytest.param(_with_mode(0o1777), r"others can write .*\(mode 1777\)", id="all"),
        pytest.param(_foreign, f"belongs to user {NOBODY}", id="foreign", marks=needs_root),
        pytest.param(_a_link, r"symbolic link.*set RETROGRADE_CACHE_DIR to \S*real$", id="link"),
        pytest.param(lambda place: place.write_text(""), "is no folder", id="file"),
    ],
)
def test_a_folder_that_is_not_ours_alone_is_refused(
    place: Path, prepare: Callable[[Path], None], message: str
) -> None:
    prepare(place)
    maker = Maker()
    for act in (maker.fetch, cache.clear):
        with pytest.raises(DeviceError, match=message) as error:
            act()
        assert str(place) in str(error.value) and "RETROGRADE_CACHE_DIR" in str(error.value)
    assert maker.runs == 0


@contextlib.contextmanager
def nobody_special() -> Iterator[None]:
    """Without the rights of root, who can write everywhere."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_read_only_folder_gives_way_to_a_private_one(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = Path(tempfile.mkdtemp())
    monkeypatch.setenv("RETROGRADE_CACHE_DIR", str(place := parent / "cache"))
    parent.chmod(0o777)
    made_before, new = Maker(), Maker(b"new", stem_of(2))
    try:
        with nobody_special():
            assert made_before.fetched() == made_before.content
            place.chmod(0o500)
            with pytest.warns(Notice, match="cannot be kept here") as told:
                path = new.fetch()
            assert len(told) == 1 and str(place) in str(told[0].message)
            assert path.read_bytes() == b"new" and path.parent != place
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert new.fetched() == b"new" and new.runs == 1
                assert made_before.fetched() == made_before.content and made_before.runs == 1
            shutil.rmtree(path.parent)
    finally:
        shutil.rmtree(parent)


def test_a_full_disk_gives_way_to_a_private_folder(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def full(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(place)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    monkeypatch.setattr(os, "fsync", full)
    maker = Maker()
    with pytest.warns(Notice, match="No space left on device"):
        path = maker.fetch()
    assert path.parent != place and path.read_bytes() == maker.content
    assert not list(place.glob("*.so")) and not list(place.glob("*.tmp"))
    monkeypatch.undo()
    shutil.rmtree(path.parent)


def test_nowhere_to_write_is_an_error(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(scratch: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.warns(Notice), pytest.raises(DeviceError, match=r"neither in .*RETROGRADE_CACHE"):
        cache.fetch(STEM, ".so", full)


# --- several at once


def test_threads_make_an_entry_once_and_different_entries_side_by_side() -> None:
    together = threading.Barrier(3, timeout=20)
    makers = [Maker(f"content {n}".encode(), stem_of(n)) for n in range(3)]

    def make(maker: Maker) -> Callable[[Path], None]:
        def run(scratch: Path) -> None:
            together.wait()
            maker(scratch)

        return run

    runs = [make(m) for m in makers]
    with ThreadPoolExecutor(9) as pool:
        jobs = [pool.submit(cache.fetch, stem_of(n % 3), ".so", runs[n % 3]) for n in range(9)]
        paths = [job.result(timeout=30) for job in jobs]
    assert [m.runs for m in makers] == [1, 1, 1]
    for n, path in enumerate(paths):
        assert path.read_bytes() == makers[n % 3].content
        cache.release(path)


def in_child(act: Callable[[], None]) -> int:
    """Runs `act` in a forked process; its id."""
    with warnings.catch_warnings():  # of forking beside threads: the child does nothing with them
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        return child
    try:
        act()
    finally:
        os._exit(0)


def test_who_is_killed_while_making_leaves_nothing_behind(place: Path) -> None:
    def die(scratch: Path) -> None:
        (scratch / f"{STEM}.so").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    child = in_child(lambda: cache.fetch(STEM, ".so", die) and None)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and list(place.glob("*.tmp"))
    maker = Maker()
    assert maker.fetched() == maker.content
    assert not list(place.glob("*.tmp"))


def test_a_lock_does_not_live_on_in_a_child_of_its_holder(tmp_path: Path) -> None:
    lock = tmp_path / "lock"

    def hold_fork_and_die() -> None:
        locks.acquire(lock, shared=False)
        sleeper = in_child(lambda: time.sleep(20))
        (tmp_path / "sleeper").write_text(str(sleeper))
        os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(in_child(hold_fork_and_die), 0)
    sleeper = int((tmp_path / "sleeper").read_text())
    os.kill(sleeper, 0)  # it is alive
    try:
        for _ in range(100):  # until it has run its first lines
            with contextlib.suppress(locks.Busy):
                held = locks.acquire(lock, shared=False, wait=False)
                break
            time.sleep(0.01)
        else:
            pytest.fail("the lock is still held")
        locks.release(held)
    finally:
        os.kill(sleeper, signal.SIGKILL)


def test_a_lock_that_was_removed_is_no_lock(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    first = locks.acquire(lock, shared=False)
    got: list[int | None] = []
    waiting = threading.Thread(target=lambda: got.append(locks.acquire(lock, shared=False)))
    waiting.start()
    time.sleep(0.05)
    assert not got
    lock.unlink()
    locks.release(first)
    waiting.join(20)
    assert lock.exists()  # the waiting one has made another
    with pytest.raises(locks.Busy):
        locks.acquire(lock, shared=True, wait=False)
    locks.release(got[0])


# --- room


def test_the_least_recently_used_go_first(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETROGRADE_CACHE_MB", "1")
    makers = [Maker(bytes([n]) * 300_000, stem_of(n)) for n in range(5)]
    for n, maker in enumerate(makers[:3]):
        maker.fetched()
        for path in place.glob(f"{maker.stem}.*"):
            os.utime(path, (1000 + n, 1000 + n))
    makers[0].fetched()  # now used later than the others
    makers[3].fetched()
    there = {e.stem for e in cache.entries(place)}
    assert there == {makers[n].stem for n in (0, 2, 3)}
    assert not list(place.glob(f"{makers[1].stem}*"))
    assert makers[0].fetched() == makers[0].content and makers[0].runs == 1
    assert makers[1].fetched() == makers[1].content and makers[1].runs == 2


def test_what_is_about_to_be_loaded_stays(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETROGRADE_CACHE_MB", "0")
    first, second, third = (Maker(stem=stem_of(n)) for n in range(3))
    path = first.fetch()
    assert first.fetch() == path  # two are about to load it
    assert second.fetched() == second.content
    cache.release(path)
    assert third.fetched() == third.content
    assert path.exists() and not list(place.glob(f"{second.stem}*"))
    removed, kept = cache.clear()
    assert ([e.stem for e in removed], [e.stem for e in kept]) == ([third.stem], [first.stem])
    cache.release(path)
    second.fetched()
    assert not path.exists()


def test_another_process_protects_what_it_loads(place: Path) -> None:
    maker = Maker()
    ready, go = os.pipe()

    def hold() -> None:
        maker.fetch()
        os.write(go, b"x")
        time.sleep(20)

    child = in_child(hold)
    os.read(ready, 1)
    assert [e.stem for e in cache.clear()[1]] == [STEM]
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert [e.stem for e in cache.clear()[0]] == [STEM]
    assert not list(place.iterdir())
    os.close(ready)
    os.close(go)


def test_clearing_leaves_alone_what_is_not_of_the_cache(place: Path) -> None:
    maker = Maker()
    maker.fetched()
    for name in ("notes.txt", "step-1.so", "Step-0123456789abcdef0123456789abcdef.so"):
        (place / name).write_text("mine")
    (left := place / f"{stem_of(7)}.00ff.tmp").mkdir()
    (left / "half").write_text("")
    removed, kept = cache.clear()
    assert sorted(e.stem for e in removed) == [stem_of(7), STEM] and not kept
    assert len(list(place.iterdir())) == 3
    assert cache.clear() == ([], [])


@pytest.mark.parametrize("text", ["many", "-1", "1.5", "²"])
def test_a_limit_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("RETROGRADE_CACHE_MB", text)
    with pytest.raises(DeviceError, match=r"RETROGRADE_CACHE_MB is .*whole number of MiB"):
        Maker().fetch()
