"""A registry of made-up packages on this machine, which can fail in every way a real one does."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from retrograde.runtime.data.packages import Package


def package(content: bytes, registry: Any = "pypi", file: str = "made_up-1.0.tar.gz") -> Package:
    """What pins `content`."""
    digest = hashlib.sha256(content).hexdigest()
    return Package(registry, "made-up", "1.0", file, len(content), digest)


@dataclass
class Registry:
    """Serves `files` by name.  `requests` are (path, Range) of all that was asked."""

    address: str
    files: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    html: bool = False  # the index as PEP 503 has it, not as PEP 691
    ranges: bool = True
    cut: int | None = None  # a download ends after so many bytes
    failures: list[int] = field(default_factory=list)  # status codes of the next requests

    def downloads(self) -> list[str | None]:
        """The ranges of all requests for a file."""
        return [asked for path, asked in self.requests if not path.startswith("/simple")]


@contextmanager
def serving() -> Iterator[Registry]:
    """A registry while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            registry.requests.append((self.path, asked))
            if registry.failures:
                self.send_error(registry.failures.pop(0))
            elif self.path == "/simple/made-up/":
                self.index()
            elif (content := registry.files.get(self.path.rpartition("/")[2])) is not None:
                self.file(content, asked)
            else:
                self.send_error(404)

        def index(self) -> None:
            names = sorted(registry.files)
            if registry.html:
                links = "".join(
                    f'<a data-x="1" href="../../files/{name}#sha256=0">{name}</a>' for name in names
                )
                content, kind = f"<html>{links}</html>".encode(), "text/html"
            else:
                entries = [{"filename": n, "url": f"{registry.address}/files/{n}"} for n in names]
                content = json.dumps({"files": entries}).encode()
                kind = "application/vnd.pypi.simple.v1+json"
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def file(self, content: bytes, asked: str | None) -> None:
            start = 0
            if asked is not None and registry.ranges:
                start = int(asked.removeprefix("bytes=").rstrip("-"))
                self.send_response(206)
                self.send_header(
                    "Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}"
                )
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            end = len(content) if registry.cut is None else start + registry.cut
            self.wfile.write(content[start:end])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    registry = Registry(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
