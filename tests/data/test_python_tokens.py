"""Python's tokens have the roles that its parser gives them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from retrograde.compiler.errors import DataError
from retrograde.runtime.data.sets import python_tokens

SOURCE = '''
import os.path as p, sys
from a import b as c  # a comment

@decorated
class Thing(Base, metaclass=Meta):
    """Text."""
    size: int = 3

    async def run(self, x, *rest, key=len("\u00e9"), **more) -> int:
        with open(x) as file, self.lock:
            \u00e9t\u00e9 = file.read(3)[key].real
        for i, (a, b) in enumerate(rest): print(f"{i} {a!r:>{b}}", end=sep.join(more))
        f"""{f"{x}"} and
        more {size}""", "é" f"ü{i}"
        match x:
            case [first, *others]: return lambda q: q.attr(first)
        try: ...
        except OSError as error: raise
        global state; state += 0x1F
'''


def test_roles_are_those_of_the_parser(golden: Callable[[str, str], None]) -> None:
    lines = python_tokens.lines(SOURCE, "made_up.py")
    tagged = [
        "\n".join(f"{word:30} {role}" for word, role in zip(line.words, line.roles, strict=True))
        for line in lines
    ]
    golden("data/python_roles.txt", "\n\n".join(tagged) + "\n")
    assert {role for line in lines for role in line.roles} == set(python_tokens.ROLES)


def test_files_that_are_not_python_give_no_lines() -> None:
    for source in ("def f(:\n", "x = '\n", "\0", "if x:\n\ty\n        z\n"):
        assert python_tokens.lines(source, "x") == []


def test_python_tokens_of_this_machine() -> None:
    data = python_tokens.load(12)
    lines = data.training + data.validation + data.test
    files = [{line.file for line in part} for part in (data.training, data.validation, data.test)]
    assert 6 <= sum(map(len, files)) <= 12  # a file may be empty
    assert len(files[0] | files[1] | files[2]) == sum(map(len, files))
    assert all(len(line.words) == len(line.roles) > 0 for line in lines)
    assert all(set(line.roles) <= set(python_tokens.ROLES) for line in lines)
    assert python_tokens.load(12) == data
    with pytest.raises(DataError, match="no source to read"):
        python_tokens.load(0)
