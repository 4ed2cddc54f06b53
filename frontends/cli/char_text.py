"""What the recipes for text have in common: a text, token by token -> batches, a model.

The text is a file, or the source of Python's standard library.  A token is a character, or a pair
of bytes and more where a recipe says so.  Invariant: training, validation and test share no token,
the tokens are those of the training text, and the same settings and text give the same run.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

import retrograde as rg
from retrograde.cli import sampling
from retrograde.cli.recipe import Batch, Settings, Training, Validation, settings_of
from retrograde.cli.sampling import Tokens
from retrograde.cli.settings import Setting
from retrograde.compiler.errors import CheckpointError, DataError
from retrograde.recipes.task import Evaluation, Saved, outputs, run_settings, with_tensors
from retrograde.runtime.data import batches, text
from retrograde.runtime.data.text import Vocabulary

SAMPLE_TOKENS = 300
_PROMPT = "def "
# Of a model that goes on from its own tokens: how many windows, what is seen of each, and steps.
_WINDOWS, _LOOK_BACK, _STEPS = 64, 128, 16

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
    """A recipe whose model learns a text token by token, characters if nothing else is said."""

    name: str
    settings: tuple[Setting, ...]

    @abstractmethod
    def make_model(self, settings: Settings, vocab: int) -> Any:
        """The model of these settings."""

    def longest(self, settings: Settings) -> int | None:
        """The most tokens that the model can look back on; None where there is no bound."""
        return None

    def evaluation_length(self, settings: Settings) -> int:
        """The tokens of a window of the evaluation."""
        length: int = settings["length"]
        return length

    def tokens_of(self, training: str, settings: Settings) -> Tokens:
        """The tokens that a text becomes."""
        return Vocabulary.of(training, limit=max(1, settings["vocabulary"] - 1))

    def tokens_from(self, data: Any) -> Tokens:
        """The tokens that a checkpoint tells of; raises `DataError` for anything else."""
        return Vocabulary.from_json(data)

    def build(self, settings: Settings) -> Training:
        """Reads the text, makes the model and its batches."""
        parts = parts_of(settings)
        vocabulary = self.tokens_of(parts.training, settings)
        windows = batches.Windows(
            vocabulary.encode(parts.training),
            settings["batch"],
            settings["length"],
            settings["seed"],
        )
        # Made now, so that a text too short for one window is known before the training.
        kept = list(
            batches.evaluation_batches(
                vocabulary.encode(parts.validation),
                settings["batch"],
                settings["length"],
                settings["validation_batches"],
            )
        )
        specs, sizes = self._declared(settings, settings["length"])
        steps = max(1, settings["steps"])
        schedule = rg.optim.warmup_cosine(
            settings["learning_rate"],
            min(settings["warmup"], steps - 1),
            steps,
            settings["learning_rate"] / 10,
        )
        return Training(
            model=self.make_model(settings, len(vocabulary)),
            loss=loss,
            optimizer=rg.optim.AdamW(
                schedule, betas=(0.9, 0.99), weight_decay=settings["weight_decay"]
            ),
            specs=specs,
            at=sizes,
            batches=windows,
            clip_norm=settings["clip_norm"],
            validate=Validation(loss, lambda: kept, specs, sizes, settings["backend"]),
            sample=lambda model: sample(model, vocabulary, settings["seed"]),
            meta={"vocabulary": vocabulary.to_json()},
        )

    def _declared(self, settings: Settings, length: int) -> tuple[dict[str, Any], dict[str, int]]:
        """(the specs of a batch, the sizes to plan for)."""
        longest = self.longest(settings)
        ids = rg.spec("i32", "B", rg.dim("T", max=longest))
        sizes = {"B": settings["batch"]}
        if longest != 1:  # else T is the number 1
            sizes["T"] = length
        return {"tokens": ids, "targets": ids}, sizes

    def restore(self, tensors: Mapping[str, npt.NDArray[Any]], run: Mapping[str, Any]) -> Saved:
        """What a run of this recipe saved, for `evaluate`."""
        model, vocabulary = self.from_checkpoint(tensors, run)
        return Saved(model, run_settings(self.settings, run), vocabulary.to_json())

    def evaluate(self, saved: Saved) -> Evaluation:
        """The likelihood of the whole test text beside that of its tokens by frequency alone.

        It is told for each character and byte that the tokens stand for, so that models of other
        tokens compare.  A character that is not known is one token of its own, and its bytes count
        as all others."""
        settings, vocabulary = saved.settings, self.tokens_from(saved.noted)
        parts = parts_of(settings)
        tokens = vocabulary.encode(parts.test)
        length = max(1, min(self.evaluation_length(settings), tokens.size - 1))
        kept: list[Batch] = list(batches.evaluation_batches(tokens, settings["batch"], length))
        specs, sizes = self._declared(settings, length)
        nats = Validation(loss, lambda: kept, specs, sizes)(saved.model)["loss"]
        counts = np.bincount(vocabulary.encode(parts.training), minlength=len(vocabulary)) + 1.0
        chances = np.log(counts / counts.sum())
        targets = np.concatenate([batch["targets"].ravel() for batch in kept])
        usual = float(-chances[targets].mean())
        content = sampling.content(vocabulary, parts.test, targets)
        characters = _characters(content)
        per = (characters / targets.size, len(content) / targets.size)
        found = self._going_on(saved.model, settings, kept)
        return Evaluation(
            "test",
            {**_likelihood(nats, *per), **found},
            {"by frequency": _likelihood(usual, *per)},
            text=f"{targets.size} tokens, of {per[0]:.4f} characters and {per[1]:.4f} bytes each, "
            f"in windows of {length}; right: of the likeliest tokens at the end of some windows, "
            "taught where every token before is the true one, on its own where it is the model's",
        )

    def _going_on(self, model: Any, settings: Settings, kept: Sequence[Batch]) -> dict[str, float]:
        """The share of the last tokens of windows that the model finds, both ways."""
        rows = [(batch, row) for batch in kept for row in range(len(batch["tokens"]))]
        rows = rows[:: -(-len(rows) // _WINDOWS)]  # of all parts of the text
        tokens, targets = (
            np.stack([batch[name][row, -_LOOK_BACK:] for batch, row in rows])
            for name in ("tokens", "targets")
        )
        length = tokens.shape[1]
        steps = min(_STEPS, length // 2)
        if not steps:
            return {}
        specs, sizes = self._declared(settings, length)
        called = outputs(
            lambda model, tokens: model(tokens), model, [{"tokens": tokens}],
            {"tokens": specs["tokens"]}, {**sizes, "B": len(tokens)},
        )  # fmt: skip
        ((_, logits),) = called
        taught = np.argmax(np.asarray(logits)[:, -steps:], -1)
        prompts = tokens[:, : length - steps + 1]
        own = np.stack(rg.generate(model.eval(), prompts, steps, temperature=0.0))
        return {
            "tokens right, taught": float(np.mean(taught == targets[:, -steps:])),
            "tokens right, on its own": float(np.mean(own == targets[:, -steps:])),
        }

    def from_checkpoint(
        self, tensors: Mapping[str, npt.NDArray[Any]], run: Mapping[str, Any]
    ) -> tuple[Any, Tokens]:
        """The model and the tokens that a run of this recipe saved."""
        values = run_settings(self.settings, run)
        try:
            vocabulary = self.tokens_from(run.get("vocabulary"))
        except DataError as error:
            raise CheckpointError(f"the checkpoint does not describe its run: {error}") from error
        return with_tensors(self.make_model(values, len(vocabulary)), tensors), vocabulary


def parts_of(settings: Settings) -> text.Parts:
    """The text of a run: the standard library by files, or a file in stripes."""
    source = settings["data"]
    return text.stdlib_parts() if source is None else text.text_parts(text.read_text(source))


def _characters(content: bytes) -> int:
    """How many characters begin in some UTF-8."""
    return int(np.count_nonzero((np.frombuffer(content, np.uint8) & 0xC0) != 0x80))


def _likelihood(nats: float, characters: float, size: float) -> dict[str, float]:
    """Figures of a text whose tokens have so many nats, characters and bytes each."""
    return {
        "nats a character": nats / characters,
        "bits a byte": nats / math.log(2.0) / size,
        "perplexity": math.exp(nats),
    }


def loss(model: Any, tokens: Any, targets: Any) -> Any:
    """The mean cross-entropy of the next token, in nats."""
    return rg.losses.cross_entropy(model(tokens), targets)


def sample(model: Any, vocabulary: Tokens, seed: int) -> str:
    """Some text in the model's own words."""
    options = sampling.Sampling(temperature=0.8, top_p=0.95, seed=seed)
    # A byte pair begins with the blank before a word, so there the prompt ends without one.
    prompt = _PROMPT if isinstance(vocabulary, Vocabulary) else _PROMPT.rstrip()
    return prompt + "".join(sampling.text(model, vocabulary, prompt, SAMPLE_TOKENS, options))
