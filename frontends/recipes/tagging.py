"""What the recipes of tagging have in common: words -> a label for each.

A word is known by itself where it is frequent, and always by what it is made of: its first and last
letters, its case and other characters.  Invariant: vocabularies are made of the training part
alone, and each word of a sentence is judged once.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import retrograde as rg
import retrograde.numpy as rnp
from retrograde import metrics, nn
from retrograde.cli.recipe import Settings, Training, settings_of
from retrograde.cli.settings import Setting
from retrograde.recipes import pictures, task
from retrograde.recipes.task import Array, Evaluation, Saved, Task, Totals
from retrograde.runtime.data.padded import Buckets
from retrograde.runtime.data.words import Words

PARTS = ("training", "validation", "test")
UNKNOWN = "<unknown>"
# What a word is made of: (the name of the feature, how it is read off the word).
_CLASSES = ((r"[a-z]", "a"), (r"[A-Z]", "A"), (r"[0-9]", "0"))


def parts(word: str) -> tuple[str, ...]:
    """The features of a word: in small letters, its shape, its first 3 and last 1, 2, 3 letters."""
    small = word.lower()
    shape = word
    for pattern, letter in _CLASSES:
        shape = re.sub(pattern, letter, shape)
    shape = re.sub(r"(.)\1+", r"\1+", shape)  # how many there are does not matter
    return (small, shape[:12], small[:3], small[-1:], small[-2:], small[-3:])


FEATURES = len(parts("word"))


@dataclass(frozen=True)
class Tagged:
    """A sentence: as many tags as words."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Known:
    """The vocabularies: one of each feature, and the tags."""

    features: tuple[Words, ...]
    tags: Words

    @classmethod
    def of(cls, sentences: Sequence[Tagged], limit: int, minimum: int) -> Known:
        """What occurs in these sentences, of each feature at most the `limit` most frequent."""
        counts = Counter(word for s in sentences for word in s.words)
        tables: list[Counter[str]] = [Counter() for _ in range(FEATURES)]
        for word, count in counts.items():
            for table, part in zip(tables, parts(word), strict=True):
                table[part] += count
        features = tuple(_listed(table, limit, minimum) for table in tables)
        return cls(features, Words.of(t for s in sentences for t in s.tags))

    def encoded(self, words: Sequence[str]) -> Array:
        """int32[words, features]."""
        rows = [parts(word) for word in words]
        return np.array(
            [[f.token(p) for f, p in zip(self.features, row, strict=True)] for row in rows],
            np.int32,
        ).reshape(len(rows), FEATURES)

    def example(self, sentence: Tagged) -> dict[str, Array]:
        """`{"words": int32[T, features], "tags": int32[T]}`; a tag never seen is -1."""
        tags = [self.tags.token(t) if t in self.tags else -1 for t in sentence.tags]
        return {"words": self.encoded(sentence.words), "tags": np.array(tags, np.int32)}

    def to_json(self) -> dict[str, Any]:
        return {"features": [f.to_json() for f in self.features], "tags": self.tags.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Known:
        features = tuple(map(Words.from_json, data["features"]))
        return cls(features, Words.from_json(data["tags"]))


class Tagger(nn.Module):
    """Features [B, T, features] and lengths [B] -> logits [B, T, tags]."""

    tables: tuple[nn.Embedding, ...]
    input_dropout: nn.Dropout
    rnn: nn.LSTM
    dropout: nn.Dropout
    head: nn.Linear

    def __init__(
        self, sizes: Sequence[int], tags: int, width: int, layers: int, dropout: float, seed: int
    ) -> None:
        numbers = nn.initial.source(seed)
        # The word itself is told in `width` numbers, each other feature in a quarter of them.
        wide = [width, *(max(1, width // 4) for _ in sizes[1:])]
        self.tables = tuple(
            nn.Embedding(size, w, seed=numbers, std=0.1)
            for size, w in zip(sizes, wide, strict=True)
        )
        self.input_dropout = nn.Dropout(dropout)
        self.rnn = nn.LSTM(
            sum(wide), width, layers, bidirectional=True, dropout=dropout, seed=numbers
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * width, tags, seed=numbers)

    def __call__(self, words: Any, lengths: Any) -> Any:
        told = [table(words[:, :, k]) for k, table in enumerate(self.tables)]
        states, _ = self.rnn(self.input_dropout(rnp.concatenate(told, axis=-1)), None, lengths)
        return self.head(self.dropout(states))


def within(lengths: Any, like: Any) -> Any:
    """[B, T]: which places are within the length of their row."""
    return rnp.less(rnp.arange(like.shape[1]), rnp.reshape(lengths, (like.shape[0], 1)))


def loss(model: Any, words: Any, tags: Any, lengths: Any) -> Any:
    """The mean cross-entropy of a tag, in nats a word."""
    logits = model(words, lengths)
    return rg.losses.cross_entropy(logits, tags, within(lengths, tags), ignore_index=-1)


def measured(model: Any, words: Any, tags: Any, lengths: Any) -> Mapping[str, Any]:
    """The loss and the share of right tags; one that was never seen is wrong."""
    logits = model(words, lengths)
    inside = within(lengths, tags)
    right = rnp.logical_and(inside, rnp.equal(rnp.argmax(logits, axis=-1), tags))
    return {
        "loss": rg.losses.cross_entropy(logits, tags, inside, ignore_index=-1),
        "accuracy": rg.Mean(rnp.sum(rnp.astype(right, "f32")), rnp.sum(rnp.astype(inside, "i32"))),
    }


def tagging_settings(*own: Setting, **defaults: Any) -> tuple[Setting, ...]:
    """The settings of a recipe of tagging."""
    return settings_of(
        (
            *own,
            Setting("batch", 128, int, "sentences a step"),
            Setting("longest", 64, int, "words of a sentence to train on; more are cut off"),
            Setting("width", 96, int, "of the states, each way"),
            Setting("layers", 1, int, "of cells, each way"),
            Setting("vocabulary", 3000, int, "most words known, and most of each feature"),
            Setting("minimum", 3, int, "times that a word occurs to be known"),
            *task.training_settings(6e-3, warmup=50, weight_decay=0.01, dropout=0.2),
        ),
        **defaults,
    )


class Tagging(Task):
    """A recipe whose model tags words."""

    @abstractmethod
    def sentences(self, settings: Settings) -> Mapping[str, list[Tagged]]:
        """The sentences of the parts training, validation and test."""

    @abstractmethod
    def split(self, text: str) -> list[str]:
        """The words of a text that is to be tagged."""

    def build(self, settings: Settings) -> Training:
        """Reads the sentences, makes the model and its batches."""
        longest = settings["longest"]
        data = self.sentences(settings)
        training = [Tagged(s.words[:longest], s.tags[:longest]) for s in data["training"]]
        known = Known.of(training, settings["vocabulary"], settings["minimum"])
        batches = Buckets(
            [known.example(s) for s in training], settings["batch"], seed=settings["seed"]
        )
        # Each tenth sentence is enough to see how the training goes.
        kept = [known.example(s) for s in data["validation"][::10]]
        held_out = Buckets(kept, 64, shuffle=False)
        specs, at = _specs(), {"B": settings["batch"], "T": max(batches.edges)}
        noted = known.to_json()
        return Training(
            model=self.make_model(settings, noted),
            loss=loss,
            optimizer=task.adamw(settings),
            specs=specs,
            at=at,
            batches=batches,
            clip_norm=settings["clip_norm"],
            validate=Totals(
                measured,
                lambda: map(held_out.at, range(held_out.batches_per_epoch)),
                specs,
                at,
                settings["backend"],
            ),
            meta={"noted": noted},
            watch="accuracy",
            highest=True,
        )

    def make_model(self, settings: Settings, noted: Mapping[str, Any]) -> Any:
        known = Known.from_json(noted)
        return Tagger(
            [len(f) for f in known.features],
            len(known.tags),
            settings["width"],
            settings["layers"],
            settings["dropout"],
            settings["seed"],
        )

    def evaluate(self, saved: Saved) -> Evaluation:
        """Accuracy and macro F1 on the test part, and the same of each word's commonest tag."""
        known = Known.from_json(saved.noted)
        data = self.sentences(saved.settings)
        training, test = data["training"], data["test"]
        names = [*known.tags.words]
        names += sorted({t for s in test for t in s.tags} - set(names))
        number = {name: k for k, name in enumerate(names)}
        truth = np.array([number[t] for s in test for t in s.tags])
        said = np.array(
            [number[t] for tags in self.tags(saved, [s.words for s in test]) for t in tags]
        )
        commonest = _commonest(training)
        usual = np.array([number[commonest(w)] for s in test for w in s.words])
        seen = {w for s in training for w in s.words}
        new = np.array([w not in seen for s in test for w in s.words])
        counts = pictures.counted(truth, said, len(names))
        return Evaluation(
            "test",
            _figures(truth, said, new),
            {"commonest tag": _figures(truth, usual, new)},
            {
                "confusion.svg": pictures.confusion(
                    *_largest(counts, names), "tags of the test part"
                )
            },
            f"{truth.size} words, {len(names)} tags; "
            f"{1 - np.mean(said != truth) / np.mean(usual != truth):.1%} fewer errors than the "
            "commonest tag of each word",
        )

    def tags(self, saved: Saved, sentences: Sequence[Sequence[str]]) -> list[list[str]]:
        """The tags of each sentence."""
        known = Known.from_json(saved.noted)
        examples = [
            {"words": known.encoded(words), "number": np.int32(k)}
            for k, words in enumerate(sentences)
        ]
        batches = Buckets(examples, 64, buckets=12, shuffle=False)
        specs = _specs()
        del specs["tags"]
        found: list[list[str]] = [[] for _ in sentences]
        made = task.outputs(
            lambda model, words, lengths: rnp.argmax(model(words, lengths), axis=-1),
            saved.model,
            map(batches.at, range(batches.batches_per_epoch)),
            specs,
            {"B": 64, "T": 32},
        )
        for batch, said in made:
            for row, number, length in zip(said, batch["number"], batch["lengths"], strict=True):
                found[int(number)] = known.tags.decode(row[: int(length)])
        return found

    def predict(self, saved: Saved, inputs: Sequence[str]) -> Iterable[str]:
        """Inputs are sentences; each word comes back with its tag."""
        sentences = [self.split(text) for text in inputs]
        for words, tags in zip(sentences, self.tags(saved, sentences), strict=True):
            yield " ".join(f"{word}/{tag}" for word, tag in zip(words, tags, strict=True))


def _listed(table: Counter[str], limit: int, minimum: int) -> Words:
    kept = sorted((p for p, n in table.items() if n >= minimum), key=lambda p: (-table[p], p))
    return Words(tuple(p for p in kept[:limit] if p != UNKNOWN), (UNKNOWN,), UNKNOWN)


def _specs() -> dict[str, Any]:
    return {
        "words": rg.spec("i32", "B", "T", FEATURES),
        "tags": rg.spec("i32", "B", "T"),
        "lengths": rg.spec("i32", "B"),
    }


def _figures(truth: Array, said: Array, new: Array) -> dict[str, float]:
    right = truth == said
    found = {"accuracy": metrics.accuracy(said, truth), "macro F1": task.macro_f1(said, truth)}
    if new.any():
        found["accuracy of unseen words"] = float(right[new].mean())
    return found


def _commonest(training: Iterable[Tagged]) -> Any:
    """What tag a word most often has in training; an unseen one has the commonest of all."""
    of_word: dict[str, Counter[str]] = {}
    all_of_them: Counter[str] = Counter()
    for s in training:
        all_of_them.update(s.tags)
        for word, tag in zip(s.words, s.tags, strict=True):
            of_word.setdefault(word, Counter())[tag] += 1
    usual = {word: tags.most_common(1)[0][0] for word, tags in of_word.items()}
    otherwise = all_of_them.most_common(1)[0][0]
    return lambda word: usual.get(word, otherwise)


def _largest(counts: Array, names: Sequence[str], most: int = 20) -> tuple[Array, list[str]]:
    """The part of a confusion matrix that is about the most frequent tags."""
    chosen = np.sort(np.argsort(-counts.sum(axis=1), kind="stable")[:most])
    return counts[np.ix_(chosen, chosen)], [names[k] for k in chosen]
