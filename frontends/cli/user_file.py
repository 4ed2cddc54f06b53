"""A recipe from a Python file: the names it defines -> a model with its loss and batches.

    model        a module, or a function that makes one
    loss         loss(model, **batch) -> a number or rg.Mean
    batch        batch(k) -> the arrays of batch k by name; or instead
    batches      an iterable of such, or a function that makes one; it is begun anew when it ends

and, if wanted:

    specs        {"tokens": rg.spec("i32", "B", "T"), …}; without it, the sizes of the first batch
    at           {"B": 12, "T": 64}: the sizes that the plan is made for
    optimizer    an optimizer of rg.optim, or a function that makes one; AdamW(1e-3)
    validation   batches to validate on, or a function that makes them
    sample       sample(model) -> a text to show at the end
    steps, clip_norm, validate_every, save_every, time_limit      numbers

Parameters of these functions that have a default (`def model(width=64)`) are settings: `--set
width=128`.  A parameter `seed` gets the seed of the run.  Invariant: batches are named by position,
so a resumed run sees those that the uninterrupted one would have: an iterable is run through again
up to there, and must give the same batches each time.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import retrograde as rg
from retrograde.cli.recipe import LOOP, Batch, Settings, Training, Validation, settings_of
from retrograde.cli.settings import Setting
from retrograde.compiler.errors import CheckpointError, DataError

_FUNCTIONS = ("model", "batch", "batches", "optimizer", "validation")
_GIVEN = frozenset({"seed"})


@dataclass(frozen=True)
class UserFile:
    """The recipe that a file defines."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem

    @cached_property
    def _module(self) -> ModuleType:
        module = _load(self.path)
        for name in ("model", "loss"):
            if not hasattr(module, name):
                raise DataError(
                    f"{self.path}: defines no `{name}`. A file to train has `model`, "
                    "`loss(model, **batch)`, and `batch(k)` or `batches`."
                )
        if not hasattr(module, "batch") and not hasattr(module, "batches"):
            raise DataError(
                f"{self.path}: defines neither `batch(k)`, which returns the arrays of batch k by "
                "name, nor `batches`, an iterable of these."
            )
        return module

    @cached_property
    def settings(self) -> tuple[Setting, ...]:
        module = self._module
        own: dict[str, Setting] = {}
        for function in _FUNCTIONS:
            for name, default in _parameters(getattr(module, function, None)).items():
                if name in _GIVEN or name in {s.name for s in LOOP}:
                    continue
                setting = _setting(name, default, f"of {function}()")
                if own.setdefault(name, setting).default != default:
                    raise DataError(
                        f"{self.path}: the setting {name!r} has two defaults, "
                        f"{own[name].default!r} and {default!r}; one name is one setting"
                    )
        clip = getattr(module, "clip_norm", None)
        own.setdefault(
            "clip_norm", Setting("clip_norm", clip, float, "longest gradient", optional=True)
        )
        names = {s.name for s in LOOP}
        return settings_of(
            tuple(own.values()), **{n: getattr(module, n) for n in names if hasattr(module, n)}
        )

    def build(self, settings: Settings) -> Training:
        """Runs the functions of the file."""
        module = self._module
        if hasattr(module, "batch"):
            batches: Numbered | Again = Numbered(_with_settings(module.batch, settings))
        else:
            batches = Again(_maker(module.batches, settings))
        specs = getattr(module, "specs", None)
        if specs is None:
            specs = {name: np.asarray(x) for name, x in batches.first().items()}
        _check_loss(module.loss, specs)
        at = getattr(module, "at", None) or {}
        optimizer = _made(getattr(module, "optimizer", None), settings)
        validation = getattr(module, "validation", None)
        validate = None
        if validation is not None:
            made = _maker(validation, settings)
            validate = Validation(module.loss, made, specs, at, settings["backend"])
        return Training(
            model=_made(module.model, settings),
            loss=module.loss,
            optimizer=rg.optim.AdamW(1e-3) if optimizer is None else optimizer,
            specs=specs,
            at=at,
            batches=batches,
            clip_norm=settings["clip_norm"],
            validate=validate,
            sample=getattr(module, "sample", None),
            meta={"file": str(self.path)},
        )


def _load(path: Path) -> ModuleType:
    if not path.is_file():
        raise DataError(f"{path}: there is no such file. Name a recipe or a Python file.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    if folder not in sys.path:  # the file may import its neighbours
        sys.path.insert(0, folder)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _check_loss(loss: Callable[..., Any], specs: Mapping[str, Any]) -> None:
    """A TypeError of Python's own would name a line of ours."""
    if not inspect.isfunction(loss):
        return
    try:
        inspect.signature(loss).bind(None, **dict.fromkeys(specs))
    except TypeError as error:
        raise DataError(
            f"loss{inspect.signature(loss)} does not take the model and the arrays of a batch, "
            f"{', '.join(specs)}: {error}"
        ) from None


# --- functions and their settings


def _parameters(fn: Any) -> dict[str, Any]:
    """The parameters with a default."""
    if not inspect.isfunction(fn):
        return {}
    found = inspect.signature(fn).parameters.values()
    return {p.name: p.default for p in found if p.default is not p.empty}


def _setting(name: str, default: Any, about: str) -> Setting:
    if default is None:
        return Setting(name, None, str, about, optional=True)
    if type(default) not in (int, float, bool, str):
        raise DataError(
            f"the default of {name} {about} is a {type(default).__name__}; a setting is a number, "
            "a text, true or false. Give it a default of None, or make it a global."
        )
    return Setting(name, default, type(default), about)


def _with_settings(fn: Callable[..., Any], settings: Settings) -> Callable[..., Any]:
    """`fn` with its parameters that are settings filled in."""
    if not inspect.isfunction(fn):
        return fn
    names = inspect.signature(fn).parameters
    given = {name: settings[name] for name in names if name in settings}
    return lambda *args: fn(*args, **given)


def _made(thing: Any, settings: Settings) -> Any:
    """The thing itself, or what the function makes."""
    return _with_settings(thing, settings)() if inspect.isfunction(thing) else thing


def _maker(thing: Any, settings: Settings) -> Callable[[], Iterable[Batch]]:
    """A function that begins the batches anew."""
    if inspect.isfunction(thing):
        return _with_settings(thing, settings)
    if isinstance(thing, Iterator):
        raise DataError(
            "`batches` is an iterator, which cannot be begun again: define a function that makes "
            "one, `def batches(): …`, or a list"
        )
    return lambda: iter(thing)


# --- batches that know where they are


class _Placed:
    """An iterator over batches by position."""

    def __init__(self) -> None:
        self.position = 0

    def __iter__(self) -> Any:
        return self

    def state(self) -> dict[str, Any]:
        """The position."""
        return {"position": self.position}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from a position."""
        position = state.get("position")
        if not isinstance(position, int) or position < 0:
            raise CheckpointError(f"the checkpoint has no position in the data, but {position!r}")
        self.position = position


class Numbered(_Placed):
    """The batches that a function makes of their numbers."""

    def __init__(self, make: Callable[[int], Batch]) -> None:
        super().__init__()
        self._make = make

    def first(self) -> Batch:
        """Batch 0; the iterator stays where it is."""
        return _checked(self._make(0))

    def __next__(self) -> Batch:
        batch = _checked(self._make(self.position))
        self.position += 1
        return batch


class Again(_Placed):
    """The batches of an iterable, over and over."""

    def __init__(self, begin: Callable[[], Iterable[Batch]]) -> None:
        super().__init__()
        self._begin = begin
        self._at = 0  # the position of what `_source` gives next
        self._source: Iterator[Batch] = iter(())

    def first(self) -> Batch:
        """The first batch; the iterator stays where it is."""
        for batch in self._begin():
            return _checked(batch)
        raise DataError("`batches` is empty: there is nothing to train on")

    def __next__(self) -> Batch:
        if self._at > self.position:
            self._source, self._at = iter(()), 0
        while True:
            batch = next(self._source, None)
            if batch is None:
                self._source = iter(self._begin())
                batch = next(self._source, None)
                if batch is None:
                    raise DataError("`batches` is empty: there is nothing to train on")
            self._at += 1
            if self._at > self.position:
                self.position += 1
                return _checked(batch)


def _checked(batch: Any) -> Batch:
    if not isinstance(batch, Mapping):
        raise DataError(
            f"a batch is a dict of arrays by name, {{'tokens': …}}, not a {type(batch).__name__}"
        )
    return batch
