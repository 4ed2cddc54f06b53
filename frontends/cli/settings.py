"""Settings by name: command line, environment, file, checkpoint, defaults -> values and where from.

The first of these that says something wins: the command line, a variable RETROGRADE_<NAME>, the
TOML file, the checkpoint that is resumed, the default.  In the TOML file `[train]` holds for every
recipe and `[train.char-gpt]` for one.  Invariant: a value has the type of its setting, and a name
that no setting has is an error, not a silence (variables apart: others may be meant).
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrograde.compiler.errors import DataError

FILE = "retrograde.toml"
SECTION = "train"


@dataclass(frozen=True)
class Setting:
    """One setting: `kind` is int, float, bool or str; with `optional`, also None."""

    name: str
    default: Any
    kind: type
    about: str
    optional: bool = False

    def parse(self, text: str, source: str) -> Any:
        """The value that a text stands for."""
        if self.optional and text.strip().lower() in ("none", ""):
            return None
        try:
            if self.kind is bool:
                return _TRUTH[text.strip().lower()]
            return self.kind(text)
        except (ValueError, KeyError):
            raise self._misfit(repr(text), source) from None

    def check(self, value: Any, source: str) -> Any:
        """A value that comes with a type of its own, of this setting's."""
        if value is None and self.optional:
            return None
        if self.kind is float and type(value) is int:
            return float(value)
        if type(value) is not self.kind:
            raise self._misfit(repr(value), source)
        return value

    def _misfit(self, got: str, source: str) -> DataError:
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
        expected = names[self.kind] + (" or none" if self.optional else "")
        return DataError(f"the setting {self.name} is {got} ({source}): it is {expected}")


_TRUTH = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


@dataclass(frozen=True)
class Resolved(Mapping[str, Any]):
    """Values by name, each with its source."""

    chosen: Mapping[str, Any]
    sources: Mapping[str, str]

    def __getitem__(self, name: str) -> Any:
        return self.chosen[name]

    def __iter__(self) -> Any:
        return iter(self.chosen)

    def __len__(self) -> int:
        return len(self.chosen)

    def __str__(self) -> str:
        """One setting a line, with where it comes from."""
        shown = {name: "none" if v is None else str(v) for name, v in self.chosen.items()}
        wide = max(map(len, shown), default=0)
        wide_value = max((len(v) for v in shown.values()), default=0)
        return "\n".join(
            f"  {name:<{wide}}  {value:<{wide_value}}  {self.sources[name]}"
            for name, value in shown.items()
        )


def resolve(
    settings: Sequence[Setting],
    recipe: str,
    given: Mapping[str, Any],
    pairs: Sequence[str] = (),
    *,
    file: str | None = None,
    environment: Mapping[str, str] | None = None,
    stored: Mapping[str, Any] | None = None,
) -> Resolved:
    """The value of every setting of `recipe`.

    `given` are options (None where not given), `pairs` the texts of `--set key=value`; `file` is
    the TOML file, by default `retrograde.toml` where there is one; `stored` come from a checkpoint.
    """
    known = {s.name: s for s in settings}
    environment = os.environ if environment is None else environment
    values: dict[str, Any] = {s.name: s.default for s in settings}
    sources = dict.fromkeys(values, "default")

    def put(name: str, value: Any, source: str) -> None:
        values[name], sources[name] = value, source

    for name, value in (stored or {}).items():
        if name in known:  # an older checkpoint may know others
            put(name, known[name].check(value, "checkpoint"), "checkpoint")
    path = file or environment.get("RETROGRADE_CONFIG") or (FILE if Path(FILE).is_file() else None)
    if path is not None:
        for name, (value, where) in _from_file(Path(path), recipe, known).items():
            put(name, known[name].check(value, where), where)
    for name, setting in known.items():
        variable = f"RETROGRADE_{name.upper()}"
        if environment.get(variable, ""):
            put(name, setting.parse(environment[variable], variable), variable)
    for pair in pairs:
        name, separator, text = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not separator:
            raise DataError(f"--set {pair}: write --set name=value")
        _require(name, known, f"--set {pair}")
        put(name, known[name].parse(text, f"--set {pair}"), "--set")
    for name, value in given.items():
        if value is not None:
            put(name, known[name].check(value, f"--{name}"), f"--{name.replace('_', '-')}")
    return Resolved(values, sources)


def _require(name: str, known: Mapping[str, Setting], source: str) -> None:
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
    raise DataError(f"{source}: there is no setting {name!r}; {hint}")


def _from_file(
    path: Path, recipe: str, known: Mapping[str, Setting]
) -> dict[str, tuple[Any, str]]:
    """The settings of a TOML file for `recipe`, each with the table it stands in."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not TOML: {error}") from error
    unknown = [name for name in data if name != SECTION]
    if unknown:
        raise DataError(f"{path}: [{unknown[0]}] means nothing here; settings stand in [{SECTION}]")
    section = data.get(SECTION, {})
    if not isinstance(section, dict):
        raise DataError(f"{path}: {SECTION} is no table: write [{SECTION}]")
    found: dict[str, tuple[Any, str]] = {}
    own = section.get(recipe, {})
    for table, name_of_table in ((section, SECTION), (own, f"{SECTION}.{recipe}")):
        for key, value in table.items():
            if isinstance(value, dict):  # the table of a recipe
                continue
            name = key.replace("-", "_")
            if table is own:
                _require(name, known, f"{path} [{name_of_table}]")
            if name in known:  # [train] may hold what only other recipes have
                found[name] = (value, f"{path} [{name_of_table}]")
    return found
