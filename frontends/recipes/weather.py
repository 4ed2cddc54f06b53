"""The recipe `weather`: a week of hourly weather at an airport -> quantiles of the hours to come.

A recurrent network reads the past; each hour ahead is then judged from its state, from the place
of that hour in the day, which is known in advance, from the airport, and from the same hour of the
last day.  The network says how far the temperature moves from the last one measured.  Invariant:
scales and the errors that the baselines know are those of the training part, and quantiles never
cross.
"""

from __future__ import annotations

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
from retrograde.runtime.data.padded import Padded
from retrograde.runtime.data.sets import weather as data_set

QUANTILES = (0.1, 0.5, 0.9)
DAY = 24
_DAYS = 3  # so many days ahead the naive forecast knows how wrong it is
_LEADS = (1, 3, 6, 12, 24, 48, 72)
_KNOWN = 2  # of the calendar: the time of day. Of the year, training has seen no autumn.


class Forecaster(nn.Module):
    """What is known [B, …] -> quantiles [B, horizon, 3] in deviations from the last value."""

    rnn: nn.GRU
    airport: nn.Embedding
    lead: nn.Embedding
    dropout: nn.Dropout
    of_state: nn.Linear
    of_hour: nn.Linear
    hidden: nn.Linear
    head: nn.Linear

    def __init__(
        self, inputs: int, airports: int, horizon: int, width: int, dropout: float, seed: int
    ) -> None:
        numbers = nn.initial.source(seed)
        self.rnn = nn.GRU(inputs, width, seed=numbers)
        self.airport = nn.Embedding(airports, width, seed=numbers)
        self.lead = nn.Embedding(horizon, width, seed=numbers, std=0.1)
        self.dropout = nn.Dropout(dropout)
        self.of_state = nn.Linear(width, width, seed=numbers)
        self.of_hour = nn.Linear(_KNOWN + 1, width, bias=False, seed=numbers)
        self.hidden = nn.Linear(width, width, seed=numbers)
        self.head = nn.Linear(width, len(QUANTILES), seed=numbers, std=0.01)

    def __call__(self, past: Any, known: Any, naive: Any, airport: Any) -> Any:
        states, _ = self.rnn(past)
        state = self.dropout(states[:, -1])
        static = self.of_state(state) + self.airport(airport)
        hour = rnp.concatenate([known, naive[:, :, None]], axis=-1)
        ahead = rnp.arange(naive.shape[1])
        told = static[:, None, :] + self.of_hour(hour) + self.lead(ahead)
        told = rnp.gelu(self.hidden(self.dropout(rnp.gelu(told))))
        out = self.head(told)
        # The outer quantiles lie beside the middle one, at distances that are positive.
        middle = out[:, :, 1:2]
        below = middle - rnp.softplus(out[:, :, 0:1])
        above = middle + rnp.softplus(out[:, :, 2:3])
        return rnp.concatenate([below, middle, above], axis=-1)


def loss(
    model: Any, past: Any, known: Any, naive: Any, airport: Any, targets: Any, mask: Any
) -> Any:
    """The mean pinball loss of an hour and quantile, in deviations (Koenker and Bassett 1978)."""
    return _pinball(model(past, known, naive, airport), targets, mask)


def _pinball(said: Any, targets: Any, mask: Any) -> Any:
    error = rnp.where(mask[:, :, None], targets[:, :, None] - said, 0.0)
    quantiles = np.array(QUANTILES, np.float32)
    lost = rnp.maximum(error * quantiles, error * (quantiles - np.float32(1.0)))
    return rg.Mean(rnp.sum(lost), rnp.sum(rnp.astype(mask, "i32")) * len(QUANTILES))


def measured(
    model: Any, past: Any, known: Any, naive: Any, airport: Any, targets: Any, mask: Any
) -> Mapping[str, Any]:
    """The loss, and the mean error of the median, in deviations."""
    said = model(past, known, naive, airport)
    error = rnp.where(mask, rnp.abs(said[:, :, 1] - targets), 0.0)
    return {
        "loss": _pinball(said, targets, mask),
        "mae": rg.Mean(rnp.sum(error), rnp.sum(rnp.astype(mask, "i32"))),
    }


class Windows(Sequence[dict[str, Array]]):
    """The windows of a part as the model takes them: scaled, targets relative to the last."""

    def __init__(self, windows: data_set.WeatherWindows, noted: Mapping[str, Any]) -> None:
        self._windows = windows
        self._mean = np.array(noted["mean"], np.float32)
        self._deviation = np.array(noted["deviation"], np.float32)
        self._target = data_set.VARIABLES.index(noted["target"])

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        window = self._windows[index]
        past = (window["past"] - self._mean) / self._deviation
        hours, horizon = past.shape[0], window["targets"].size
        values = past[:, self._target]
        last = values[-1]
        target = (window["targets"] - self._mean[self._target]) / self._deviation[self._target]
        return {
            "past": np.concatenate([past, window["known"][:hours, :_KNOWN]], axis=1),
            "known": np.ascontiguousarray(window["known"][hours:, :_KNOWN]),
            "naive": day_before(values, horizon) - last,
            "airport": window["airport"],
            "targets": target - last,
            "mask": window["mask"],
        }


def day_before(values: Array, horizon: int) -> Array:
    """For each of the hours ahead the same hour of the last day that is over."""
    return values[-DAY:][np.arange(horizon) % DAY]


@dataclass(frozen=True)
class Weather(Task):
    """The recipe."""

    name: str = "weather"
    settings: tuple[Setting, ...] = settings_of(
        (
            Setting("target", "temp", str, "the variable to forecast"),
            Setting("past", 72, int, "hours that are read"),
            Setting("horizon", 24, int, "hours that are forecast"),
            Setting("batch", 64, int, "windows a step"),
            Setting("width", 64, int, "of the states"),
            *task.training_settings(2e-3, warmup=50, weight_decay=0.05, dropout=0.2),
        ),
        steps=600,
        time_limit=500.0,
        validate_every=100,
        threads=1,
    )

    def build(self, settings: Settings) -> Training:
        """Reads the weather, makes the model and its batches."""
        data = data_set.load()
        noted = note(data, settings["target"])
        past, horizon, target = settings["past"], settings["horizon"], noted["target"]
        training = Windows(data.windows("training", past, horizon, 1, target), noted)
        held_out = Windows(data.windows("validation", past, horizon, 7, target), noted)
        specs, at = specs_of(settings), {"B": settings["batch"]}
        batches = Padded(
            training, settings["batch"], lengths={}, seed=settings["seed"], rest="drop"
        )
        kept = Padded(held_out, 64, lengths={}, shuffle=False)
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
                lambda: map(kept.at, range(kept.batches_per_epoch)),
                specs,
                at,
                settings["backend"],
            ),
            meta={"noted": noted},
        )

    def make_model(self, settings: Settings, noted: Mapping[str, Any]) -> Any:
        return Forecaster(
            len(noted["mean"]) + _KNOWN,
            len(data_set.AIRPORTS),
            settings["horizon"],
            settings["width"],
            settings["dropout"],
            settings["seed"],
        )

    def evaluate(self, saved: Saved) -> Evaluation:
        """Errors on the test part, a window every 3 hours, in the units of the target."""
        data = data_set.load()
        horizon, target = saved.settings["horizon"], saved.noted["target"]
        windows = data.windows("test", max(saved.settings["past"], 7 * DAY), horizon, 3, target)
        said = forecasts(saved, windows)
        column = data_set.VARIABLES.index(target)
        every = list(windows)
        truth = np.stack([w["targets"] for w in every]).astype(np.float64)
        mask = np.stack([w["mask"] for w in every])
        past = np.stack([w["past"][:, column] for w in every]).astype(np.float64)
        naive = np.stack([day_before(row, horizon) for row in past])
        days = np.minimum(np.arange(horizon) // DAY, _DAYS - 1)
        errors = np.array(saved.noted["errors"])[days]
        around = naive[:, :, None] + errors
        week = np.stack(
            [row[-7 * DAY :].reshape(7, DAY)[:, np.arange(horizon) % DAY] for row in past]
        )
        of_week = np.moveaxis(np.quantile(week, QUANTILES, axis=1), 0, -1)
        scale = saved.noted["scale"]
        found = {
            name: _figures(quantiles, truth, mask, scale)
            for name, quantiles in (
                ("model", said), ("day before", around), ("quantiles of the week", of_week)
            )
        }  # fmt: skip
        # The naive forecast itself, and not the middle of its errors.
        found["day before"] |= _errors(naive, truth, mask, scale)
        shown = int(np.argmax(mask.all(axis=1)))
        leads = np.arange(1, horizon + 1)
        by_lead = {
            name: (
                leads,
                np.array([metrics.mae(row, truth[:, k], mask[:, k]) for k, row in enumerate(m.T)]),
            )
            for name, m in (("model", said[:, :, 1]), ("the day before", naive))
        }
        ratio = found["model"]["MAE"] / found["day before"]["MAE"]
        ours = found.pop("model")
        return Evaluation(
            "test",
            ours,
            found,
            {
                "forecast.svg": pictures.fan(
                    past[shown, -2 * DAY :], truth[shown], said[shown], naive[shown],
                    unit=target, title="a forecast of the test part",
                ),
                "leads.svg": pictures.lines(
                    by_lead, "hours ahead", "mean absolute error", f"{target}, test part"
                ),
            },
            f"{len(every)} windows; mean absolute error {ratio:.3f} of that of the day before",
        )  # fmt: skip

    def predict(self, saved: Saved, inputs: Sequence[str]) -> Iterable[str]:
        """Inputs are an airport and an hour of the data in UTC, `JFK 2013-11-20T12`."""
        data = data_set.load()
        windows = [_window(data, saved, text) for text in inputs]
        for text, said in zip(inputs, forecasts(saved, windows), strict=True):
            yield f"{text}: {saved.noted['target']}, quantiles {', '.join(map(str, QUANTILES))}"
            for k, row in enumerate(said):
                yield f"  +{k + 1:>2} h  " + "  ".join(f"{value:7.1f}" for value in row)


def note(data: data_set.Weather, target: str) -> dict[str, Any]:
    """Of the training part: scales, and the quantiles of the errors of the naive forecast."""
    if target not in data_set.VARIABLES:
        raise DataError(
            f"there is no variable {target!r}; there are {', '.join(data_set.VARIABLES)}"
        )
    first, end = data.borders("training")
    values = data.values[:, first:end]
    flat = values.reshape(-1, values.shape[-1]).astype(np.float64)
    column = data_set.VARIABLES.index(target)
    series, seen = values[:, :, column].astype(np.float64), data.seen[:, first:end, column]
    lags = [DAY * days for days in range(1, _DAYS + 1)]
    moves = [(series[:, lag:] - series[:, :-lag])[seen[:, lag:]] for lag in lags]
    return {
        "target": target,
        "mean": flat.mean(axis=0).tolist(),
        "deviation": np.maximum(flat.std(axis=0), 1e-6).tolist(),
        # Of what the same hour was a day before, two days before, …
        "errors": [np.quantile(each, QUANTILES).tolist() for each in moves],
        "scale": float(np.abs(moves[0]).mean()),
    }


def specs_of(settings: Settings) -> dict[str, Any]:
    """What a batch is made of."""
    past, horizon = settings["past"], settings["horizon"]
    return {
        "past": rg.spec("f32", "B", past, len(data_set.VARIABLES) + _KNOWN),
        "known": rg.spec("f32", "B", horizon, _KNOWN),
        "naive": rg.spec("f32", "B", horizon),
        "airport": rg.spec("i32", "B"),
        "targets": rg.spec("f32", "B", horizon),
        "mask": rg.spec("bool", "B", horizon),
    }


def forecasts(saved: Saved, windows: Sequence[Mapping[str, Array]]) -> Array:
    """float64[windows, horizon, quantiles], in the units of the target."""
    hours = saved.settings["past"]
    cut = [
        {**w, "past": w["past"][-hours:], "known": w["known"][w["past"].shape[0] - hours :]}
        for w in windows
    ]
    given: Any = cut
    made = Windows(given, saved.noted)
    specs = specs_of(saved.settings)
    del specs["targets"], specs["mask"]
    batches = Padded(made, min(64, len(cut)), lengths={}, shuffle=False)
    found = task.outputs(
        lambda model, past, known, naive, airport: model(past, known, naive, airport),
        saved.model,
        map(batches.at, range(batches.batches_per_epoch)),
        specs,
        {"B": 64},
    )
    said = np.concatenate([out for _, out in found]).astype(np.float64)
    column = data_set.VARIABLES.index(saved.noted["target"])
    last = np.array([w["past"][-1, column] for w in cut], np.float64)
    out: Array = last[:, None, None] + said * saved.noted["deviation"][column]
    return out


def _figures(said: Array, truth: Array, mask: Array, scale: float) -> dict[str, float]:
    lost = metrics.pinball(said, truth, QUANTILES, mask)
    inside = (said[:, :, 0] <= truth) & (truth <= said[:, :, -1])
    return {
        **_errors(said[:, :, 1], truth, mask, scale),
        "pinball": lost,
        "within 10 % to 90 %": float(inside[mask].mean()),
    }


def _errors(said: Array, truth: Array, mask: Array, scale: float) -> dict[str, float]:
    whole = metrics.mae(said, truth, mask)
    leads = {
        f"MAE +{k} h": metrics.mae(said[:, k - 1], truth[:, k - 1], mask[:, k - 1])
        for k in _LEADS
        if k <= truth.shape[1]
    }
    # Hyndman and Koehler 2006: beside the naive forecast's error within the training part.
    return {"MAE": whole, "MASE": whole / scale, **leads}


def _window(data: data_set.Weather, saved: Saved, text: str) -> dict[str, Array]:
    """What is known at an airport before the hour that is named."""
    airport, _, moment = text.partition(" ")
    past, horizon = saved.settings["past"], saved.settings["horizon"]
    try:
        start = int(np.searchsorted(data.hours, np.datetime64(moment.strip(), "h")))
        number = data_set.AIRPORTS.index(airport)
    except ValueError:
        raise DataError(
            f"{text!r}: give an airport ({', '.join(data_set.AIRPORTS)}) and an hour in UTC, such "
            "as 'JFK 2013-11-20T12'"
        ) from None
    need = max(past, DAY)
    if start < need or start + horizon > data.hours.size:
        raise DataError(f"{text!r}: the data do not reach {need} h before or {horizon} h after it")
    column = data_set.VARIABLES.index(saved.noted["target"])
    return {
        "past": data.values[number, start - need : start],
        "known": data.calendar[start - need : start + horizon],
        "airport": np.array(number, np.int32),
        "targets": data.values[number, start : start + horizon, column],
        "mask": data.seen[number, start : start + horizon, column],
    }
