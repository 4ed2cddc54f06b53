"""The recipe `japanese-vowels`: frames of speech -> who of nine men speaks.

A recurrent network reads the recording both ways, and the mean of its states over the recording's
own frames decides.  Invariant: frames are scaled by the mean and deviation of training alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
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
from retrograde.runtime.data.padded import Buckets, Padded
from retrograde.runtime.data.sets import japanese_vowels

_KEPT = 10  # of so many training examples one is for validation


class Speakers(nn.Module):
    """Frames [B, T, channels] and lengths [B] -> logits [B, speakers]."""

    input_dropout: nn.Dropout
    rnn: nn.GRU
    dropout: nn.Dropout
    head: nn.Linear

    def __init__(
        self, channels: int, width: int, layers: int, speakers: int, dropout: float, seed: int
    ) -> None:
        numbers = nn.initial.source(seed)
        self.input_dropout = nn.Dropout(dropout / 2)
        self.rnn = nn.GRU(
            channels, width, layers, bidirectional=True, dropout=dropout, seed=numbers
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * width, speakers, seed=numbers)

    def __call__(self, frames: Any, lengths: Any) -> Any:
        states, _ = self.rnn(self.input_dropout(frames), None, lengths)
        # States beyond the end are zeros: the sum over all frames is that over a row's own.
        mean = rnp.sum(states, axis=1) / rnp.astype(lengths, states.dtype)[:, None]
        return self.head(self.dropout(mean))


def loss(model: Any, frames: Any, lengths: Any, label: Any) -> Any:
    """The mean cross-entropy of the speaker, in nats a recording."""
    return rg.losses.cross_entropy(model(frames, lengths), label)


def measured(model: Any, frames: Any, lengths: Any, label: Any) -> Mapping[str, Any]:
    """The loss and the share of recordings whose speaker is found."""
    logits = model(frames, lengths)
    right = rnp.equal(rnp.argmax(logits, axis=-1), label)
    return {
        "loss": rg.losses.cross_entropy(logits, label),
        "accuracy": rg.Mean(rnp.sum(rnp.astype(right, "f32")), label.shape[0]),
    }


@dataclass(frozen=True)
class JapaneseVowels(Task):
    """The recipe."""

    name: str = "japanese-vowels"
    settings: tuple[Setting, ...] = settings_of(
        (
            Setting("batch", 32, int, "recordings a step"),
            Setting("width", 64, int, "of the states, each way"),
            Setting("layers", 1, int, "of cells, each way"),
            *task.training_settings(5e-3, warmup=20, weight_decay=0.05, dropout=0.4),
        ),
        steps=400,
        validate_every=100,
        threads=1,
    )

    def build(self, settings: Settings) -> Training:
        """Reads the recordings, makes the model and its batches."""
        data = japanese_vowels.load()
        kept = data.training[::_KEPT]
        training = [e for k, e in enumerate(data.training) if k % _KEPT]
        frames = np.concatenate([e["frames"] for e in training])
        noted = {"mean": frames.mean(axis=0).tolist(), "deviation": frames.std(axis=0).tolist()}
        batches = Buckets(
            [scaled(e, noted) for e in training],
            settings["batch"],
            buckets=3,
            seed=settings["seed"],
        )
        held_out = Padded([scaled(e, noted) for e in kept], len(kept), shuffle=False)
        specs, at = _specs(frames.shape[1]), {"B": settings["batch"], "T": max(batches.edges)}
        return Training(
            model=self.make_model(settings, noted),
            loss=loss,
            optimizer=task.adamw(settings),
            specs=specs,
            at=at,
            batches=batches,
            clip_norm=settings["clip_norm"],
            validate=Totals(measured, lambda: [held_out.at(0)], specs, at),
            meta={"noted": noted},
        )

    def make_model(self, settings: Settings, noted: Mapping[str, Any]) -> Any:
        return Speakers(
            len(noted["mean"]),
            settings["width"],
            settings["layers"],
            japanese_vowels.SPEAKERS,
            settings["dropout"],
            settings["seed"],
        )

    def evaluate(self, saved: Saved) -> Evaluation:
        """Accuracy on the 370 recordings to test; the baselines are of what is no sequence."""
        data = japanese_vowels.load()
        said = _said(saved, data.test)
        truth = np.array([int(e["label"]) for e in data.test])
        counts = pictures.counted(truth, said, japanese_vowels.SPEAKERS)
        names = [str(k) for k in range(japanese_vowels.SPEAKERS)]
        commonest = np.bincount([int(e["label"]) for e in data.training]).argmax()
        nearest = _by_mean_frame(data)
        return Evaluation(
            "test",
            {"accuracy": metrics.accuracy(said, truth), "macro F1": task.macro_f1(said, truth)},
            {
                "commonest": {"accuracy": float(np.mean(truth == commonest))},
                "mean frame": {"accuracy": float(np.mean(truth == nearest))},
            },
            {"confusion.svg": pictures.confusion(counts, names, "speakers of the test part")},
        )

    def predict(self, saved: Saved, inputs: Sequence[str]) -> Iterable[str]:
        """Inputs are files of frames (.npy, [T, 12]), or `test:N` for one of the test part."""
        examples = [_example(text, len(saved.noted["mean"])) for text in inputs]
        for text, said in zip(inputs, _said(saved, examples), strict=True):
            yield f"{text}: speaker {said}"


def scaled(example: Mapping[str, Any], noted: Mapping[str, Any]) -> dict[str, Any]:
    """The example with frames of mean 0 and deviation 1 over the training part."""
    mean, deviation = (np.array(noted[key], np.float32) for key in ("mean", "deviation"))
    frames = (np.asarray(example["frames"], np.float32) - mean) / deviation
    return {"frames": frames, "label": np.int32(example["label"])}


def _specs(channels: int) -> dict[str, Any]:
    return {
        "frames": rg.spec("f32", "B", "T", channels),
        "lengths": rg.spec("i32", "B"),
        "label": rg.spec("i32", "B"),
    }


def _said(saved: Saved, examples: Sequence[Mapping[str, Any]]) -> Array:
    held = Padded([scaled(e, saved.noted) for e in examples], len(examples), shuffle=False)
    specs = _specs(len(saved.noted["mean"]))
    del specs["label"]
    found = task.outputs(
        lambda model, frames, lengths: model(frames, lengths),
        saved.model,
        [held.at(0)],
        specs,
        {"B": len(examples), "T": 32},
    )
    return np.concatenate([np.argmax(logits, axis=-1) for _, logits in found])


def _by_mean_frame(data: japanese_vowels.JapaneseVowels) -> Array:
    """The speaker whose recordings' mean frames have the nearest mean: time counts for nothing."""
    means = np.stack([e["frames"].mean(axis=0) for e in data.training])
    labels = np.array([int(e["label"]) for e in data.training])
    speakers = np.unique(labels)
    centres = np.stack([means[labels == k].mean(axis=0) for k in speakers])
    test = np.stack([e["frames"].mean(axis=0) for e in data.test])
    return np.asarray(speakers[((test[:, None] - centres) ** 2).sum(axis=-1).argmin(axis=1)])


def _example(text: str, channels: int) -> dict[str, Any]:
    part, separator, number = text.partition(":")
    if separator and part == "test" and number.isdigit():
        test = japanese_vowels.load().test
        if int(number) >= len(test):
            raise DataError(f"{text}: there are {len(test)} recordings, counted from 0")
        return dict(test[int(number)])
    if not Path(text).is_file():
        raise DataError(f"{text}: neither a file of frames (.npy) nor test:N")
    try:
        frames = np.load(text, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{text}: no array of NumPy's can be read there: {error}") from error
    if frames.ndim != 2 or frames.shape[1] != channels or len(frames) < 1:
        raise DataError(f"{text}: frames are [T, {channels}], not {list(frames.shape)}")
    return {"frames": frames, "label": 0}
