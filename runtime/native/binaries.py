"""Compiled code that travels with a program: C sources -> named parts of a file, and back.

    binaries/binaries.json   the machine, Retrograde, and which library is made of which source
    binaries/0.so …          the libraries

Invariant: code is offered only to the machine and the Retrograde that it was made for, and only in
the place of the very source that it was compiled from.  Whether its maker can be trusted is for
the user to say, before.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from retrograde.compiler.errors import CheckpointError, DeviceError
from retrograde.runtime.native import toolchain
from retrograde.runtime.native.pool import source as pool_source

FOLDER = "binaries/"
LIST = f"{FOLDER}binaries.json"


def collect(sources: Sequence[str], version: str) -> dict[str, bytes]:
    """The libraries of all sources and of the pool of threads, as parts of a file."""
    named = {"pool": pool_source(), **{f"kernels{i}": text for i, text in enumerate(sources)}}
    parts: dict[str, bytes] = {}
    made: dict[str, str] = {}
    for name, text in named.items():
        key = toolchain.source_digest(text)
        if key not in made:
            made[key] = f"{FOLDER}{name}.so"
            parts[made[key]] = toolchain.library_bytes(text, name=name)
    about = {"version": version, "machine": toolchain.machine(), "libraries": made}
    return {LIST: json.dumps(about, indent=1).encode("ascii") + b"\n", **parts}


def provide(path: str | os.PathLike[str], parts: Mapping[str, bytes], version: str) -> None:
    """Lets the libraries among `parts` take the place of compiling their sources.

    Raises DeviceError where they were made for another machine or by another Retrograde."""
    about = _about(path, parts)
    here = toolchain.machine()
    if about["version"] != version:
        raise DeviceError(
            f"{path}: its code was compiled by Retrograde {about['version']}, and this is "
            f"{version}: export the function anew, or save() it as data"
        )
    if about["machine"] != here:
        there, at_hand = _difference(about["machine"], here)
        raise DeviceError(
            f"{path}: its code was compiled for another machine, {there}, and this one is "
            f"{at_hand}: export the function on this machine, or save() it as data, from which "
            "code is compiled for any machine"
        )
    for key, name in about["libraries"].items():
        toolchain.provide(key, parts[name])


def _about(path: str | os.PathLike[str], parts: Mapping[str, bytes]) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads(parts[LIST])
        libraries = about["libraries"]
        whole = (
            isinstance(about["version"], str)
            and isinstance(about["machine"], list)
            and all(isinstance(line, str) for line in about["machine"])
            and all(isinstance(name, str) and name in parts for name in libraries.values())
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise CheckpointError(f"{path}: damaged, its list of compiled code is none")
    return about


def _difference(there: Sequence[str], here: Sequence[str]) -> tuple[str, str]:
    """The first lines in which two machines differ, short enough to be read."""
    for a, b in zip(there, here, strict=False):
        if a != b:
            if len(a) > 80 or len(b) > 80:  # the features of processors
                more, less = set(a.split()), set(b.split())
                return (
                    f"with {_few(more - less)}",
                    f"with {_few(less - more)}",
                )
            return a, b
    return f"of {len(there)} facts", f"of {len(here)}"


def _few(words: set[str]) -> str:
    shown = sorted(words)[:4]
    return f"{', '.join(shown) or 'nothing'}{' …' if len(words) > 4 else ''} that the other has not"
