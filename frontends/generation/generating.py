"""`generate` and `stream`: a model and prompts -> the tokens that follow.

Invariant: the tokens depend on the model, the prompts and the options alone; those of a prompt not
on the other prompts, up to rounding of the logits.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde import tree
from retrograde.compiler.errors import DataError
from retrograde.compiler.ir.location import where
from retrograde.generation import known as beside
from retrograde.generation.beam import searched
from retrograde.generation.choosing import Sampling
from retrograde.generation.decoder import Decoder
from retrograde.generation.prompts import numbers, rows_of
from retrograde.generation.sampled import followed
from retrograde.generation.window import Window

Array = npt.NDArray[Any]

KEPT = 8  # decoders that are kept for the next call
_kept: OrderedDict[Any, Decoder] = OrderedDict()
_lock = threading.Lock()


def generate(
    model: Any, prompts: Any, steps: int, *, lengths: Any = None, temperature: float = 1.0,
    top_k: int | None = None, top_p: float | None = None, beams: int = 1,
    length_penalty: float = 0.6, stop: Any = (), never: Sequence[int] = (), seed: int = 0,
    keep: int | None = None, longest: int | None = None, cached: bool = True,
    call: Callable[..., Any] | None = None, backend: str = "auto", threads: int | None = None,
    precision: str | None = None, known: Mapping[str, Any] | None = None, **context: Any,
) -> Any:  # fmt: skip
    """The tokens that follow each prompt: at most `steps`, up to a `stop` token, which is left out.

    `prompts`: tokens [P]; or a list of such, of any lengths; or an array [B, P], of which `lengths`
    [B] says how many count.  Returns an array of tokens for one prompt, else a list of them.
    `model(tokens, **context)` gives logits [B, T, V]; `call(model, tokens, **context)` says it
    otherwise.  `context` has what does not grow with the text, rows first.  `known` has by name
    what does and is known beforehand, such as a calendar: arrays [B, P + steps, ...] over the
    longest prompt and the new tokens (of the last new one nothing is needed), whose place t goes
    with the token at place t of each row.

    `temperature` divides the logits, 0 takes the likeliest token; `top_k`, `top_p`: see `Sampling`.
    A row draws from a stream of its own, made of `seed` and its number.  With `beams` above 1 the
    likeliest text is searched for instead (`length_penalty`: see `generation.beam`).  `never`:
    tokens that are not chosen.

    A text longer than the model's `context` (or `longest`) is seen through a window; `keep`: how
    many tokens stay in it when it is full, by default all that can.  `cached=False` computes the
    whole text at each step, which is slow, and serves every model.  Raises UnsupportedError, naming
    the line, for a model that cannot be computed step by step: one whose logits depend on later
    tokens; DataError for empty prompts, for options out of range, and for what is known of too few
    steps."""
    rows, single = rows_of(prompts, lengths)
    steps = _count(steps, "steps")
    beams = _count(beams, "beams", 1)
    sampling = Sampling(temperature, top_k, top_p, seed)
    known = beside.named(known)
    beside.check(known, len(rows), max(map(len, rows)) + max(steps - 1, 0))
    if beams > 1:
        context = {name: tree.map(_repeated(len(rows), beams), x) for name, x in context.items()}
        known = beside.repeated(known, beams)
    decoder = decoder_for(
        model, context, known, rows=len(rows) * beams, call=call, longest=longest,
        backend=backend, threads=threads, beams=beams > 1, cached=cached, precision=precision,
    )  # fmt: skip
    found: list[list[int]]
    with decoder.begin(model, len(rows) * beams, context) as session:
        window = Window(session, keep, known)
        if beams > 1:
            found = searched(window, rows, steps, beams, numbers(stop), never, length_penalty)
        else:
            found = [[] for _ in rows]
            for told in followed(window, rows, steps, sampling, numbers(stop), never):
                for text, token in zip(found, told, strict=True):
                    if token is not None:
                        text.append(token)
    out = [np.array(text, np.int64) for text in found]
    return out[0] if single else out


def stream(
    model: Any, prompts: Any, steps: int | None = None, *, lengths: Any = None,
    temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None,
    stop: Any = (), never: Sequence[int] = (), seed: int = 0, keep: int | None = None,
    longest: int | None = None, cached: bool = True, call: Callable[..., Any] | None = None,
    backend: str = "auto", threads: int | None = None, precision: str | None = None,
    known: Mapping[str, Any] | None = None, **context: Any,
) -> Iterator[Any]:  # fmt: skip
    """The tokens of `generate`, each as soon as it is chosen; without `steps` there is no end, or
    where something must be `known` of every step, it ends with that.

    For one prompt an iterator over tokens; for several over lists with the token of each row, None
    where a row is still within its prompt or has ended."""
    rows, single = rows_of(prompts, lengths)
    count = None if steps is None else _count(steps, "steps")
    sampling = Sampling(temperature, top_k, top_p, seed)
    known = beside.named(known)
    longest_prompt = max(map(len, rows))
    beside.check(known, len(rows), longest_prompt + max((count or 0) - 1, 0))
    reach = beside.reach(known)
    if count is None and reach is not None:
        count = reach - longest_prompt + 1
    decoder = decoder_for(
        model, context, known, rows=len(rows), call=call, longest=longest, backend=backend,
        threads=threads, cached=cached, precision=precision,
    )  # fmt: skip

    def run() -> Iterator[Any]:
        with decoder.begin(model, len(rows), context) as session:
            window = Window(session, keep, known)
            for told in followed(window, rows, count, sampling, numbers(stop), never):
                if not single:
                    yield told
                elif told[0] is not None:
                    yield told[0]

    return run()


def decoder_for(
    model: Any, context: Mapping[str, Any], known: Mapping[str, Any], **options: Any
) -> Decoder:
    """A decoder of the model, made for it now or for one like it before."""
    if not context:
        options["rows"] = None  # one program for all
    key = _key(model, context, {**options, "known": beside.like(known)})
    if key is not None:
        with _lock:
            found = _kept.get(key)
            if found is not None:
                _kept.move_to_end(key)
                return found
    made = Decoder(model, context, known=known, **options)
    if key is not None and not made.captured:
        with _lock:
            _kept[key] = made
            while len(_kept) > KEPT:
                _kept.popitem(last=False)
    return made


def _key(model: Any, context: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """What makes models alike; None where that cannot be told."""
    if options.get("call") is not None:
        return None
    leaves, structure = tree.flatten((model, dict(context)))
    described = tuple(
        (x.dtype.str, x.shape) if isinstance(x, np.ndarray) else (type(x), x) for x in leaves
    )
    key = (type(model), structure, described, tuple(sorted(options.items())))
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _repeated(rows: int, beams: int) -> Callable[[Any], Any]:
    def repeated(x: Any) -> Any:
        if isinstance(x, np.ndarray) and x.ndim and x.shape[0] == rows:
            return np.repeat(x, beams, axis=0)
        return x

    return repeated


def _count(x: Any, name: str, least: int = 0) -> int:
    if isinstance(x, bool) or not isinstance(x, (int, np.integer)) or x < least:
        raise DataError(f"{where()}{name} is {x!r}: it is a whole number, at least {least}")
    return int(x)
