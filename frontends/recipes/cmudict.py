"""The recipe `cmudict`: the letters of an English word -> its phonemes.

An encoder reads the letters both ways, a decoder that attends to them says one phoneme after the
other; the likeliest pronunciation is found by beam search.  Stress is left out unless it is asked
for.  Invariant: a word and its genitive are in one part; a word is right where it is said in one of
the ways that the dictionary lists.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import retrograde as rg
import retrograde.numpy as rnp
from retrograde import nn
from retrograde.cli.recipe import Settings, Training, settings_of
from retrograde.cli.settings import Setting
from retrograde.compiler.errors import DataError
from retrograde.metrics import edit_distance
from retrograde.recipes import task
from retrograde.recipes.tagging import within
from retrograde.recipes.task import Array, Evaluation, Saved, Task, Totals
from retrograde.runtime.data.padded import Buckets
from retrograde.runtime.data.sets import cmudict as data_set
from retrograde.runtime.data.words import Words

END, UNKNOWN = "<end>", "<unknown>"
_TOGETHER = 128  # words that are said at once
Way = tuple[str, ...]


def loss(
    model: Any, source: Any, tokens: Any, targets: Any, source_lengths: Any, lengths: Any
) -> Any:
    """The mean cross-entropy of the next phoneme, in nats."""
    logits = model(source, tokens, source_lengths, lengths)
    return rg.losses.cross_entropy(logits, targets, within(lengths, targets))


def measured(
    model: Any, source: Any, tokens: Any, targets: Any, source_lengths: Any, lengths: Any
) -> Mapping[str, Any]:
    """The loss, and the share of phonemes that are right where all before them are given."""
    logits = model(source, tokens, source_lengths, lengths)
    inside = within(lengths, targets)
    right = rnp.logical_and(inside, rnp.equal(rnp.argmax(logits, axis=-1), targets))
    return {
        "loss": rg.losses.cross_entropy(logits, targets, inside),
        "accuracy": rg.Mean(rnp.sum(rnp.astype(right, "f32")), rnp.sum(rnp.astype(inside, "i32"))),
    }


@dataclass(frozen=True)
class CMUdict(Task):
    """The recipe."""

    name: str = "cmudict"
    settings: tuple[Setting, ...] = settings_of(
        (
            Setting("model", "rnn", str, "rnn, or attention: what encodes and decodes"),
            Setting("cell", "gru", str, "of the model rnn: gru, lstm or rnn"),
            Setting("width", 128, int, "of the model"),
            Setting("layers", 1, int, "of the encoder and of the decoder"),
            Setting("stress", False, bool, "whether stress is to be told"),
            Setting("longest", 16, int, "letters of a word to train on; longer ones are left out"),
            Setting("batch", 128, int, "words a step"),
            Setting("beams", 4, int, "pronunciations that are gone on with"),
            Setting("test_words", 2000, int, "words of the test part that are evaluated"),
            *task.training_settings(4e-3, warmup=100, weight_decay=0.01, dropout=0.1),
        ),
        steps=3000,
        time_limit=560.0,
        validate_every=500,
        threads=1,
    )

    def build(self, settings: Settings) -> Training:
        """Reads the dictionary, makes the model and its batches."""
        data = data_set.load()
        training = [e for e in data.training if len(e.word) <= settings["longest"]]
        letters = Words.of(
            (letter for e in training for letter in e.word), specials=(UNKNOWN,), unknown=UNKNOWN
        )
        phonemes = Words.of((p for e in training for p in ways(e, settings)[0]), specials=(END,))
        noted = {"letters": letters.to_json(), "phonemes": phonemes.to_json()}
        lengths = {"source": "source_lengths", "tokens": "lengths", "targets": "lengths"}
        batches = Buckets(
            [_example(e, settings, letters, phonemes) for e in training],
            settings["batch"],
            buckets=6,
            lengths=lengths,
            seed=settings["seed"],
        )
        some = [_example(e, settings, letters, phonemes) for e in data.validation[:1000]]
        kept = Buckets(some, 128, lengths=lengths, shuffle=False)
        longest = settings["longest"]
        at = {"B": settings["batch"], "S": longest, "T": longest + 1}
        return Training(
            model=self.make_model(settings, noted),
            loss=loss,
            optimizer=task.adamw(settings),
            specs=specs_of(),
            at=at,
            batches=batches,
            clip_norm=settings["clip_norm"],
            validate=Totals(
                measured,
                lambda: map(kept.at, range(kept.batches_per_epoch)),
                specs_of(),
                at,
                settings["backend"],
            ),
            meta={"noted": noted},
        )

    def make_model(self, settings: Settings, noted: Mapping[str, Any]) -> Any:
        letters, phonemes = _vocabularies(noted)
        common = {
            "vocab": len(phonemes),
            "source_vocab": len(letters),
            "width": settings["width"],
            "layers": settings["layers"],
            "dropout": settings["dropout"],
            "seed": settings["seed"],
        }
        if settings["model"] == "rnn":
            return rg.models.RNNSeq2Seq(cell=settings["cell"], **common)
        if settings["model"] == "attention":
            return rg.models.Seq2Seq(heads=4, **common)
        raise DataError(f"the model is {settings['model']!r}: it is rnn or attention")

    def evaluate(self, saved: Saved) -> Evaluation:
        """Errors of words and phonemes on the test part: by beams, greedy, and letter by letter."""
        data = data_set.load()
        # Spread over the dictionary, which is in the order of the alphabet.
        step = max(1, len(data.test) // saved.settings["test_words"])
        entries = data.test[::step][: saved.settings["test_words"]]
        right = [ways(e, saved.settings) for e in entries]
        words = [e.word for e in entries]
        usual = _letter_by_letter(data.training, saved.settings)
        forced = self._teacher_forced(saved, entries)
        return Evaluation(
            f"test ({len(words)} words)",
            {**_errors(said(saved, words, saved.settings["beams"]), right), **forced},
            {
                "one beam": _errors(said(saved, words, 1), right),
                "letter by letter": _errors([usual(w) for w in words], right),
            },
            text="phonemes right, taught: every phoneme before is the true one; in all errors the "
            "model goes on from its own",
        )

    def predict(self, saved: Saved, inputs: Sequence[str]) -> Iterable[str]:
        """Inputs are words."""
        for word in inputs:
            if not word.strip():
                raise DataError("there is no letter in an empty word")
        found = said(saved, [w.strip().lower() for w in inputs], saved.settings["beams"])
        for word, way in zip(inputs, found, strict=True):
            yield f"{word}: {' '.join(way)}"

    def _teacher_forced(self, saved: Saved, entries: Sequence[data_set.Entry]) -> dict[str, float]:
        letters, phonemes = _vocabularies(saved.noted)
        known = [e for e in entries if all(p in phonemes for p in ways(e, saved.settings)[0])]
        examples = [_example(e, saved.settings, letters, phonemes) for e in known]
        lengths = {"source": "source_lengths", "tokens": "lengths", "targets": "lengths"}
        kept = Buckets(examples, 128, lengths=lengths, shuffle=False)
        totals = Totals(
            measured, lambda: map(kept.at, range(kept.batches_per_epoch)), specs_of(),
            {"B": 128, "S": 12, "T": 12},
        )  # fmt: skip
        return {"phonemes right, taught": totals(saved.model)["accuracy"]}


def ways(entry: data_set.Entry, settings: Settings) -> list[Way]:
    """How a word may be said."""
    if settings["stress"]:
        return list(entry.pronunciations)
    return list(dict.fromkeys(map(data_set.unstressed, entry.pronunciations)))


def specs_of() -> dict[str, Any]:
    """What a batch is made of."""
    return {
        "source": rg.spec("i32", "B", "S"),
        "tokens": rg.spec("i32", "B", "T"),
        "targets": rg.spec("i32", "B", "T"),
        "source_lengths": rg.spec("i32", "B"),
        "lengths": rg.spec("i32", "B"),
    }


class Saying(nn.Module):
    """The model as what is generated from takes it: the tokens first."""

    model: Any

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, tokens: Any, source: Any, source_lengths: Any) -> Any:
        return self.model(source, tokens, source_lengths)


def said(saved: Saved, words: Sequence[str], beams: int) -> list[Way]:
    """The phonemes of each word."""
    letters, phonemes = _vocabularies(saved.noted)
    longest = max(map(len, words))
    found: list[Way] = []
    for start in range(0, len(words), _TOGETHER):
        some = [letters.encode(word) for word in words[start : start + _TOGETHER]]
        source = np.zeros((len(some), longest), np.int32)
        for row, word in zip(source, some, strict=True):
            row[: len(word)] = word
        rows = rg.generate(
            Saying(saved.model),
            [[0]] * len(some),  # the end of what was before
            2 * longest + 4,
            temperature=0.0,
            beams=beams,
            stop=0,
            backend=saved.settings["backend"],
            source=source,
            source_lengths=np.array([len(row) for row in some], np.int32),
        )
        found.extend(tuple(phonemes.decode(row)) for row in rows)
    return found


def _vocabularies(noted: Mapping[str, Any]) -> tuple[Words, Words]:
    return Words.from_json(noted["letters"]), Words.from_json(noted["phonemes"])


def _example(
    entry: data_set.Entry, settings: Settings, letters: Words, phonemes: Words
) -> dict[str, Array]:
    row = phonemes.encode(ways(entry, settings)[0])
    end = np.zeros(1, np.int32)
    return {
        "source": letters.encode(entry.word),
        "tokens": np.concatenate([end, row]),
        "targets": np.concatenate([row, end]),
    }


def _errors(found: Sequence[Way], right: Sequence[Sequence[Way]]) -> dict[str, float]:
    """Words that are wrong, and edits to the nearest of the listed ways, for each phoneme of it."""
    edits, phonemes = 0, 0
    for way, listed in zip(found, right, strict=True):
        distance, count = min((edit_distance(way, r), len(r)) for r in listed)
        edits, phonemes = edits + distance, phonemes + count
    wrong = [way not in listed for way, listed in zip(found, right, strict=True)]
    return {"word error": float(np.mean(wrong)), "phoneme error": edits / phonemes}


def _letter_by_letter(training: Sequence[data_set.Entry], settings: Settings) -> Any:
    """Each letter as it is mostly said in words with as many phonemes as letters."""
    counts: dict[str, Counter[str]] = {}
    for entry in training:
        way = ways(entry, settings)[0]
        if len(way) == len(entry.word):
            for letter, phoneme in zip(entry.word, way, strict=True):
                counts.setdefault(letter, Counter())[phoneme] += 1
    usual = {letter: c.most_common(1)[0][0] for letter, c in counts.items()}
    return lambda word: tuple(usual[letter] for letter in word if letter in usual)
