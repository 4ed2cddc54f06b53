"""The recipe `bible`: a verse of the King James Version -> the same in the World English Bible.

An encoder reads the verse both ways; a decoder that attends to it says one piece of a word after
the other, from its vocabulary or copied from the verse, and the likeliest verse is found by beam
search.  Invariant: a chapter is in one part as a whole, pieces of words are made of the training
part alone, and the model and its baseline are judged by the same words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import retrograde as rg
import retrograde.numpy as rnp
from retrograde import metrics, nn
from retrograde.cli.recipe import Settings, Training, settings_of
from retrograde.cli.settings import Setting
from retrograde.compiler.errors import DataError
from retrograde.recipes import pictures, task
from retrograde.recipes.task import Array, Evaluation, Saved, Task, Totals
from retrograde.runtime.data.bpe import BytePairs
from retrograde.runtime.data.padded import Buckets
from retrograde.runtime.data.sets import bible as data_set

END = "<end>"
LENGTHS = {"source": "source_lengths", "tokens": "lengths", "targets": "lengths"}
_TOGETHER = 32  # verses that are rewritten at once
_WIDTHS = 32  # sources are padded to multiples of this, so that few programs serve all
_WORD = re.compile(r"\w+(?:['-]\w+)*|[^\w\s]")
_CLOSING, _OPENING = frozenset(".,;:!?)]'"), frozenset("([")
_LONG = (10, 20, 30, 40, 60)  # edges of the lengths in the picture, in words
Words = list[str]


def words_of(verse: str) -> Words:
    """Words and signs, one by one: what is counted."""
    return _WORD.findall(verse)


def text_of(words: Sequence[str]) -> str:
    """A verse as it is printed.  Quotation marks open and close by turns, a last one closes."""
    out, opened, glued = "", False, True
    for k, word in enumerate(words):
        marks = word == '"'
        closes = word in _CLOSING or (marks and (opened or k == len(words) - 1))
        out += word if glued or closes else f" {word}"
        glued = word in _OPENING or (marks and not closes)
        opened = opened != marks
    return out


def loss(
    model: Any, source: Any, tokens: Any, targets: Any, source_lengths: Any, lengths: Any
) -> Any:
    """The mean negative log likelihood of the next piece of a word, in nats."""
    each = model.nll(source, tokens, targets, source_lengths, lengths)
    return rg.Mean(rnp.sum(each), rnp.sum(lengths))


def measured(model: Any, **batch: Any) -> Mapping[str, Any]:
    """The loss."""
    return {"loss": loss(model, **batch)}


def likeliest(model: Any, source: Any, tokens: Any, source_lengths: Any, lengths: Any) -> Any:
    """The piece that is likeliest at each place where all before it are given."""
    return rnp.argmax(model(source, tokens, source_lengths, lengths), axis=-1)


@dataclass(frozen=True)
class Bible(Task):
    """The recipe."""

    name: str = "bible"
    settings: tuple[Setting, ...] = settings_of(
        (
            Setting("cell", "gru", str, "what encodes and decodes: gru, lstm or rnn"),
            Setting("width", 256, int, "of the model"),
            Setting("layers", 1, int, "of the encoder and of the decoder"),
            Setting("merges", 3500, int, "of bytes to pieces of words"),
            Setting("longest", 64, int, "pieces of a verse to train on; longer ones are left out"),
            Setting("batch", 64, int, "verses a step"),
            Setting("beams", 4, int, "verses that are gone on with"),
            Setting("test_verses", 700, int, "verses of the test part that are evaluated"),
            *task.training_settings(3e-3, warmup=200, weight_decay=0.01, dropout=0.2),
        ),
        steps=1600,
        time_limit=560.0,
        validate_every=400,
        threads=1,
    )

    def build(self, settings: Settings) -> Training:
        """Reads the verses, makes the model and its batches."""
        data = data_set.load()
        pieces = BytePairs.train(
            (_spaced(words_of(text)) for v in data.training for text in (v.kjv, v.web)),
            settings["merges"],
            specials=(END,),
        )
        noted = {"pieces": pieces.to_json()}
        longest = settings["longest"]
        training = [_example(v, pieces) for v in data.training]
        training = [e for e in training if max(e["source"].size, e["tokens"].size) <= longest]
        kept = [_example(v, pieces) for v in data.validation]
        at = {"B": settings["batch"], "S": longest, "T": longest}
        batches = Buckets(
            training, settings["batch"], buckets=8, lengths=LENGTHS, seed=settings["seed"]
        )
        held = Buckets(kept[:1000], 64, lengths=LENGTHS, shuffle=False)
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
                lambda: map(held.at, range(held.batches_per_epoch)),
                specs_of(),
                at,
                settings["backend"],
            ),
            meta={"noted": noted},
        )

    def make_model(self, settings: Settings, noted: Mapping[str, Any]) -> Any:
        return rg.models.CopyingSeq2Seq(
            vocab=len(BytePairs.from_json(noted["pieces"])),
            width=settings["width"],
            layers=settings["layers"],
            cell=settings["cell"],
            dropout=settings["dropout"],
            seed=settings["seed"],
        )

    def evaluate(self, saved: Saved) -> Evaluation:
        """BLEU and edits of words on the test part: by beams, greedy, and of the verse itself."""
        data = data_set.load()
        count = max(1, min(saved.settings["test_verses"], len(data.test)))
        # Spread over the books, in whose order the verses are.
        verses = [data.test[k * len(data.test) // count] for k in range(count)]
        sources = [words_of(v.kjv) for v in verses]
        right = [words_of(v.web) for v in verses]
        found = rewritten(saved, sources, saved.settings["beams"])
        curves = {"model": _by_length(found, right), "copying": _by_length(sources, right)}
        picture = pictures.lines(curves, "words", "BLEU", "BLEU by the length of the verse")
        return Evaluation(
            f"test ({len(verses)} verses)",
            {**_figures(found, right), **_taught(saved, verses)},
            {
                "one beam": _figures(rewritten(saved, sources, 1), right),
                "copying": _figures(sources, right),
            },
            {"bleu.svg": picture},
            "taught: every piece of a word before is the true one; in BLEU and word edits the "
            "model goes on from its own",
        )

    def predict(self, saved: Saved, inputs: Sequence[str]) -> Iterable[str]:
        """Inputs are verses."""
        verses = [words_of(verse) for verse in inputs]
        if not all(verses):
            raise DataError("there is no word in an empty verse")
        return map(text_of, rewritten(saved, verses, saved.settings["beams"]))


def specs_of() -> dict[str, Any]:
    """What a batch is made of."""
    return {
        "source": rg.spec("i32", "B", "S"),
        "tokens": rg.spec("i32", "B", "T"),
        "targets": rg.spec("i32", "B", "T"),
        "source_lengths": rg.spec("i32", "B"),
        "lengths": rg.spec("i32", "B"),
    }


class Rewriting(nn.Module):
    """The model as what is generated from takes it: the tokens first."""

    model: Any

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, tokens: Any, source: Any, source_lengths: Any) -> Any:
        return self.model(source, tokens, source_lengths)


def rewritten(saved: Saved, verses: Sequence[Words], beams: int) -> list[Words]:
    """What the model makes of each verse."""
    pieces = BytePairs.from_json(saved.noted["pieces"])
    end = pieces.special(END)
    sources = [_encoded(words, pieces) for words in verses]
    order = sorted(range(len(verses)), key=lambda i: (sources[i].size, i))
    rows = min(_TOGETHER, len(verses))
    found: dict[int, Words] = {}
    for start in range(0, len(order), rows):
        # The last verse is repeated until the rows are full: a program serves so many rows.
        chosen = (order[start : start + rows] + [order[-1]] * rows)[:rows]
        longest = max(sources[i].size for i in chosen)
        source = np.zeros((rows, -(-longest // _WIDTHS) * _WIDTHS), np.int32)
        for row, i in zip(source, chosen, strict=True):
            row[: sources[i].size] = sources[i]
        made = rg.generate(
            Rewriting(saved.model),
            [[end]] * rows,  # the end of what was before
            longest + longest // 2 + 8,
            temperature=0.0,
            beams=beams,
            stop=end,
            backend=saved.settings["backend"],
            source=source,
            source_lengths=np.array([sources[i].size for i in chosen], np.int32),
        )
        found.update((i, pieces.decode(row).split()) for i, row in zip(chosen, made, strict=True))
    return [found[i] for i in range(len(verses))]


def _spaced(words: Sequence[str]) -> str:
    """Words with a blank before each, so that a word has the same pieces wherever it is."""
    return "".join(f" {word}" for word in words)


def _encoded(words: Sequence[str], pieces: BytePairs) -> Array:
    """The pieces of a verse and the end, which may be copied too."""
    return np.append(pieces.encode(_spaced(words)), pieces.special(END)).astype(np.int32)


def _example(verse: data_set.Verse, pieces: BytePairs) -> dict[str, Array]:
    targets = _encoded(words_of(verse.web), pieces)
    return {
        "source": _encoded(words_of(verse.kjv), pieces),
        "tokens": np.roll(targets, 1),  # the end of what was before, then all but its own
        "targets": targets,
    }


def _figures(found: Sequence[Words], right: Sequence[Words]) -> dict[str, float]:
    """BLEU, and the edits for each word of what is right."""
    return {"BLEU": metrics.bleu(found, right), "word edits": metrics.error_rate(found, right)}


def _taught(saved: Saved, verses: Sequence[data_set.Verse]) -> dict[str, float]:
    """The same where every piece before is the true one, and the share of pieces that are right."""
    pieces = BytePairs.from_json(saved.noted["pieces"])
    kept = Buckets([_example(v, pieces) for v in verses], 32, lengths=LENGTHS, shuffle=False)
    specs = {name: spec for name, spec in specs_of().items() if name != "targets"}
    found, right, hits, count = [], [], 0, 0
    for batch, said in task.outputs(
        likeliest, saved.model, map(kept.at, range(kept.batches_per_epoch)), specs,
        {"B": 32, "S": 40, "T": 40}, saved.settings["backend"],
    ):  # fmt: skip
        for row, targets, length in zip(said, batch["targets"], batch["lengths"], strict=True):
            hits += int(np.sum(row[:length] == targets[:length]))
            count += int(length)
            found.append(pieces.decode(row[: length - 1]).split())
            right.append(pieces.decode(targets[: length - 1]).split())
    return {"BLEU, taught": metrics.bleu(found, right), "pieces right, taught": hits / count}


def _by_length(found: Sequence[Words], right: Sequence[Words]) -> tuple[Array, Array]:
    """(mean length, BLEU) of verses of similar length."""
    group = np.searchsorted(_LONG, [len(words) for words in right])
    middles, scores = [], []
    for k in np.unique(group).tolist():
        inside = np.flatnonzero(group == k).tolist()
        middles.append(np.mean([len(right[i]) for i in inside]))
        scores.append(metrics.bleu([found[i] for i in inside], [right[i] for i in inside]))
    return np.array(middles), np.array(scores)
