"""What the recipes for text have in common: a text, character by character -> batches, a model.

The text is a file, or the source of Python's standard library.  Invariant: validation text shares
no token with training text, and the same settings and text give the same run.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

import retrograde as rg
from retrograde.cli import sampling
from retrograde.cli.recipe import Settings, Training, Validation, settings_of
from retrograde.cli.settings import Setting
from retrograde.compiler.errors import CheckpointError, DataError
from retrograde.recipes.task import Evaluation, Saved, run_settings, with_tensors
from retrograde.runtime.data import batches, text
from retrograde.runtime.data.text import Vocabulary

SAMPLE_CHARACTERS = 300
_PROMPT = "def "

_SHAPE = (
    Setting("data", None, str, "a text file; Python's standard library", optional=True),
    Setting("batch", 12, int, "windows a step"),
    Setting("length", 64, int, "characters a window"),
    Setting("width", 128, int, "of the model"),
    Setting("layers", 4, int, "of the model"),
)
_TRAINING = (
    Setting("dropout", 0.0, float, "chance of a number to be dropped"),
    Setting("tied", False, bool, "one table for embedding and head"),
    Setting("vocabulary", 100, int, "most characters known; the rarest are left out"),
    Setting("learning_rate", 2e-3, float, "at its highest"),
    Setting("warmup", 100, int, "steps on which the learning rate rises"),
    Setting("weight_decay", 0.1, float, "of AdamW"),
    Setting("clip_norm", 1.0, float, "longest gradient", optional=True),
    Setting("validation_batches", 64, int, "batches of held-out text in a validation"),
)


def text_settings(*own: Setting, **defaults: Any) -> tuple[Setting, ...]:
    """The settings of a recipe for text: its own (also in place of common ones), other defaults."""
    mine = {s.name: s for s in own}
    common = {s.name for s in (*_SHAPE, *_TRAINING)}
    whole = (*_SHAPE, *(s for s in own if s.name not in common), *_TRAINING)
    chosen = (mine.get(s.name, s) for s in whole)
    return settings_of(
        tuple(replace(s, default=defaults.get(s.name, s.default)) for s in chosen), **defaults
    )


class CharText(ABC):
    """A recipe whose model learns a text character by character."""

    name: str
    settings: tuple[Setting, ...]

    @abstractmethod
    def make_model(self, settings: Settings, vocab: int) -> Any:
        """The model of these settings."""

    def longest(self, settings: Settings) -> int | None:
        """The most characters that the model can look back on; None where there is no bound."""
        return None

    def build(self, settings: Settings) -> Training:
        """Reads the text, makes the model and its batches."""
        source = settings["data"]
        whole = text.stdlib_text() if source is None else text.read_text(source)
        vocabulary = Vocabulary.of(whole, limit=max(1, settings["vocabulary"] - 1))
        training, held_out = text.split(vocabulary.encode(whole))
        windows = batches.Windows(
            training, settings["batch"], settings["length"], settings["seed"]
        )
        # Made now, so that a text too short for one window is known before the training.
        kept = list(
            batches.evaluation_batches(
                held_out,
                settings["batch"],
                settings["length"],
                settings["validation_batches"],
            )
        )
        longest = self.longest(settings)
        ids = rg.spec("i32", "B", rg.dim("T", max=longest))
        sizes = {"B": settings["batch"]}
        if longest != 1:  # else T is the number 1
            sizes["T"] = settings["length"]
        model = self.make_model(settings, len(vocabulary))
        steps = max(1, settings["steps"])
        schedule = rg.optim.warmup_cosine(
            settings["learning_rate"],
            min(settings["warmup"], steps - 1),
            steps,
            settings["learning_rate"] / 10,
        )
        return Training(
            model=model,
            loss=loss,
            optimizer=rg.optim.AdamW(
                schedule, betas=(0.9, 0.99), weight_decay=settings["weight_decay"]
            ),
            specs={"tokens": ids, "targets": ids},
            at=sizes,
            batches=windows,
            clip_norm=settings["clip_norm"],
            validate=Validation(loss, lambda: kept, {"tokens": ids, "targets": ids}, sizes),
            sample=lambda model: sample(model, vocabulary, settings["seed"]),
            meta={"vocabulary": vocabulary.to_json()},
        )

    def restore(self, tensors: Mapping[str, npt.NDArray[Any]], run: Mapping[str, Any]) -> Saved:
        """What a run of this recipe saved, for `evaluate`."""
        model, vocabulary = self.from_checkpoint(tensors, run)
        return Saved(model, run_settings(self.settings, run), vocabulary.to_json())

    def evaluate(self, saved: Saved) -> Evaluation:
        """The likelihood of held-out text beside that of its characters by frequency alone.

        A character that is not known is one token of its own, and its bytes count as all others."""
        settings, vocabulary = saved.settings, Vocabulary.from_json(saved.noted)
        training, held_out, size = held_out_text(settings, vocabulary)
        kept = list(
            batches.evaluation_batches(
                held_out, settings["batch"], settings["length"], settings["validation_batches"]
            )
        )
        longest = self.longest(settings)
        ids = rg.spec("i32", "B", rg.dim("T", max=longest))
        sizes = {"B": settings["batch"], **({"T": settings["length"]} if longest != 1 else {})}
        specs = {"tokens": ids, "targets": ids}
        nats = Validation(loss, lambda: kept, specs, sizes)(saved.model)["loss"]
        counts = np.bincount(training, minlength=len(vocabulary)) + 1.0
        chances = np.log(counts / counts.sum())
        targets = np.concatenate([batch["targets"].ravel() for batch in kept])
        usual = float(-chances[targets].mean())
        bytes_each = size / max(1, held_out.size)
        return Evaluation(
            "held-out",
            _likelihood(nats, bytes_each),
            {"by frequency": _likelihood(usual, bytes_each)},
            text=f"{targets.size} characters, of {bytes_each:.4f} bytes each",
        )

    def from_checkpoint(
        self, tensors: Mapping[str, npt.NDArray[Any]], run: Mapping[str, Any]
    ) -> tuple[Any, Vocabulary]:
        """The model and vocabulary that a run of this recipe saved."""
        values = run_settings(self.settings, run)
        try:
            vocabulary = Vocabulary.from_json(run.get("vocabulary"))
        except DataError as error:
            raise CheckpointError(f"the checkpoint does not describe its run: {error}") from error
        return with_tensors(self.make_model(values, len(vocabulary)), tensors), vocabulary


def held_out_text(
    settings: Settings, vocabulary: Vocabulary
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], int]:
    """The tokens of training and of held-out text, and how many bytes the latter has."""
    source = settings["data"]
    whole = text.stdlib_text() if source is None else text.read_text(source)
    training, held_out = text.split(vocabulary.encode(whole))
    points = np.frombuffer(whole.encode("utf-32-le", "surrogatepass"), np.uint32)
    # The bytes of a character in UTF-8, split in the same way.
    _, sizes = text.split(np.searchsorted([0x80, 0x800, 0x10000], points, side="right") + 1)
    return training, held_out, int(sizes.sum())


def _likelihood(nats: float, bytes_each: float) -> dict[str, float]:
    return {
        "nats a character": nats,
        "bits a byte": nats / math.log(2.0) / bytes_each,
        "perplexity": math.exp(nats),
    }


def loss(model: Any, tokens: Any, targets: Any) -> Any:
    """The mean cross-entropy of the next character, in nats."""
    return rg.losses.cross_entropy(model(tokens), targets)


def sample(model: Any, vocabulary: Vocabulary, seed: int) -> str:
    """Some text in the model's own words."""
    options = sampling.Sampling(temperature=0.8, top_p=0.95, seed=seed)
    return _PROMPT + "".join(
        sampling.text(model, vocabulary, _PROMPT, SAMPLE_CHARACTERS, options)
    )
