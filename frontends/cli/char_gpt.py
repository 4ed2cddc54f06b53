"""The recipe `char-gpt`: a GPT that learns a text character by character.

The text is a file, or the source of Python's standard library.  Invariant: validation text shares
no token with training text, and the same settings and text give the same run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import retrograde as rg
from retrograde.cli import sampling
from retrograde.cli.recipe import Settings, Training, Validation, settings_of
from retrograde.cli.settings import Setting
from retrograde.compiler.errors import CheckpointError, DataError
from retrograde.runtime.data import batches, text
from retrograde.runtime.data.text import Vocabulary

NAME = "char-gpt"
SAMPLE_CHARACTERS = 300
_PROMPT = "def "


@dataclass(frozen=True)
class CharGPT:
    """The recipe."""

    name: str = NAME
    settings: tuple[Setting, ...] = settings_of(
        (
            Setting("data", None, str, "a text file; Python's standard library", optional=True),
            Setting("batch", 12, int, "windows a step"),
            Setting("length", 64, int, "characters a window; also the longest context"),
            Setting("width", 128, int, "of the model"),
            Setting("layers", 4, int, "blocks of the model"),
            Setting("heads", 4, int, "of attention"),
            Setting("dropout", 0.0, float, "chance of a number to be dropped"),
            Setting("tied", False, bool, "one table for embedding and head"),
            Setting("vocabulary", 100, int, "most characters known; the rarest are left out"),
            Setting("learning_rate", 2e-3, float, "at its highest"),
            Setting("warmup", 100, int, "steps on which the learning rate rises"),
            Setting("weight_decay", 0.1, float, "of AdamW"),
            Setting("clip_norm", 1.0, float, "longest gradient", optional=True),
            Setting("validation_batches", 64, int, "batches of held-out text in a validation"),
        ),
        steps=2500,
        time_limit=180.0,
        validate_every=500,
        save_every=500,
    )

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
        ids = rg.spec("i32", "B", rg.dim("T", max=settings["length"]))
        sizes = {"B": settings["batch"]}
        if settings["length"] > 1:  # else T is the number 1
            sizes["T"] = settings["length"]
        model = make_model(settings, len(vocabulary))
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


def loss(model: Any, tokens: Any, targets: Any) -> Any:
    """The mean cross-entropy of the next character, in nats."""
    return rg.losses.cross_entropy(model(tokens), targets)


def make_model(settings: Settings, vocab: int) -> Any:
    """The model of these settings."""
    return rg.models.GPT(
        vocab=vocab,
        width=settings["width"],
        layers=settings["layers"],
        heads=settings["heads"],
        context=settings["length"],
        seed=settings["seed"],
        dropout=settings["dropout"],
        tied=settings["tied"],
    )


def sample(model: Any, vocabulary: Vocabulary, seed: int) -> str:
    """Some text in the model's own words."""
    options = sampling.Sampling(temperature=0.8, top_p=0.95, seed=seed)
    return _PROMPT + "".join(
        sampling.text(model, vocabulary, _PROMPT, SAMPLE_CHARACTERS, options)
    )


def from_checkpoint(
    tensors: Mapping[str, npt.NDArray[Any]], run: Mapping[str, Any]
) -> tuple[Any, Vocabulary]:
    """The model and vocabulary that a run of this recipe saved."""
    settings = run.get("settings")
    known = {s.name: s for s in CharGPT().settings}
    if run.get("recipe") != NAME or not isinstance(settings, dict):
        raise CheckpointError(
            f"this checkpoint is of {run.get('recipe', 'no recipe')!r}, and text can be generated "
            f"from one of {NAME!r}"
        )
    try:
        vocabulary = Vocabulary.from_json(run.get("vocabulary"))
        values = {name: s.check(settings[name], "checkpoint") for name, s in known.items()}
    except (DataError, KeyError) as error:
        raise CheckpointError(f"the checkpoint does not describe its run: {error}") from error
    model = make_model(values, len(vocabulary))
    arrays = {}
    for name, array in model.parameters().items():
        saved = tensors.get(f"model.{name}")
        if saved is None or saved.shape != array.shape:
            got = "missing" if saved is None else f"{saved.dtype}{list(saved.shape)}"
            raise CheckpointError(
                f"the checkpoint is of another model: {name} is {got}, not "
                f"{array.dtype}{list(array.shape)}"
            )
        arrays[name] = np.asarray(saved, array.dtype)
    return model.replace(arrays), vocabulary
