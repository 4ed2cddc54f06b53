"""Weather: gaps take what was seen before them, and no window reaches into another part."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrograde.compiler.errors import DataError
from retrograde.runtime.data.padded import Padded
from retrograde.runtime.data.sets import weather

COLUMNS = (
    "origin,year,month,day,hour,temp,dewp,humid,wind_dir,wind_speed,wind_gust,precip,pressure,"
    "visib,time_hour"
)


def table(*rows: tuple[str, str, str, str, str]) -> dict[str, bytes]:
    """Rows of (airport, hour, temp, wind_dir, wind_speed); the rest is the same in all."""
    lines = [
        f"{origin},2013,1,1,1,{temp},26,59.5,{direction},{speed},NA,0.5,NA,10,{hour}:00:00Z"
        for origin, hour, temp, direction, speed in rows
    ]
    return {"n/weather.csv": "\n".join([COLUMNS, *lines]).encode()}


def test_gaps_are_filled_from_the_past() -> None:
    data = weather.parse(
        table(
            ("EWR", "2013-01-01T06", "39.5", "90", "10"),
            ("EWR", "2013-01-01T07", "NA", "NA", "1048.4"),
            ("EWR", "2013-01-01T10", "41", "180", "12"),
            ("JFK", "2013-01-01T08", "50.5", "NA", "3"),
        )
    )
    names = list(weather.VARIABLES)
    temp, wind, gust = (names.index(n) for n in ("temp", "wind_speed", "wind_gust"))
    sine, cosine, pressure = (names.index(n) for n in ("wind_sin", "wind_cos", "pressure"))
    assert data.values.shape == (3, 5, 10)
    assert data.values.dtype == data.calendar.dtype == np.float32
    assert data.hours.astype(str).tolist() == [f"2013-01-01T{h:02d}" for h in range(6, 11)]
    assert data.values[0, :, temp].tolist() == [39.5, 39.5, 39.5, 39.5, 41]
    assert data.seen[0, :, temp].tolist() == [True, False, False, False, True]
    assert data.values[0, :, wind].tolist() == [10, 10, 10, 10, 12]  # 1048 mph cannot be
    assert not data.seen[0, 1, wind]
    np.testing.assert_allclose(data.values[0, [0, 1, 4], sine], [1, 1, 0], atol=1e-7)
    np.testing.assert_allclose(data.values[0, [0, 1, 4], cosine], [0, 0, -1], atol=1e-7)
    assert data.values[0, :, gust].tolist() == [0] * 5
    # Before the first measurement, and for an airport without any: the start, not what comes.
    assert data.values[1, :, temp].tolist() == [50, 50, 50.5, 50.5, 50.5]
    assert data.values[2, 0].tolist() == list(weather.START.values())
    assert (data.values[:, :, pressure] == 1015).all()
    assert not data.seen[2].any()


@given(st.integers(0, 20), st.integers(0, 2**32 - 1))
def test_no_filled_value_knows_the_future(cut: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.where(rng.random((2, 20, 3)) < 0.5, np.nan, rng.normal(size=(2, 20, 3)))
    start = np.array([1.0, 2.0, 3.0])
    whole = weather.carried_forward(values, start)
    assert np.isfinite(whole).all()
    np.testing.assert_array_equal(whole[~np.isnan(values)], values[~np.isnan(values)])
    if cut:
        np.testing.assert_array_equal(
            weather.carried_forward(values[:, :cut], start), whole[:, :cut]
        )


def year() -> weather.Weather:
    hours = np.arange(np.datetime64("2013-08-25T00"), np.datetime64("2013-11-09T00"))
    count = hours.size
    values = np.arange(3 * count * 10, dtype=np.float32).reshape(3, count, 10)
    seen = np.ones(values.shape, np.bool_)
    return weather.Weather(hours, values, seen, np.zeros((count, 4), np.float32))


def test_windows_make_batches_as_they_are() -> None:
    windows = year().windows("training", past=9, horizon=4)
    batch = next(Padded(windows, 5, lengths={}))
    assert {name: array.shape for name, array in batch.items()} == {
        "past": (5, 9, 10),
        "known": (5, 13, 4),
        "airport": (5,),
        "targets": (5, 4),
        "mask": (5, 4),
    }


def test_windows_lie_in_their_part() -> None:
    data = year()
    targets: dict[str, set[float]] = {}
    parts: tuple[Any, ...] = ("training", "validation", "test")
    for part in parts:
        windows = data.windows(part, past=30, horizon=6, target="humid")
        first, end = data.borders(part)
        assert len(windows) == 3 * (end - max(first, 30) - 5)
        targets[part] = set()
        for window in windows:
            assert window["past"].shape == (30, 10)
            assert window["known"].shape == (36, 4)
            assert window["mask"].all()
            airport = int(window["airport"])
            start = int(window["targets"][0] - 2) // 10 - airport * data.hours.size
            np.testing.assert_array_equal(window["past"], data.values[airport, start - 30 : start])
            np.testing.assert_array_equal(
                window["targets"], data.values[airport, start : start + 6, 2]
            )
            targets[part].update(window["targets"].tolist())
    assert not targets["training"] & targets["validation"]
    assert not targets["validation"] & targets["test"]
    few = data.windows("test", stride=24)
    assert len(few) == 3 * 8
    assert [e["airport"] for e in few[-2:]] == [1, 2]
    with pytest.raises(IndexError):
        few[24]
    for wrong, words in (
        ({"past": 200}, "too few"),
        ({"horizon": 0}, "at least 1"),
        ({"target": "rain"}, "no variable 'rain'"),
    ):
        with pytest.raises(DataError, match=words):
            data.windows("training", **wrong)  # type: ignore[arg-type]


def test_the_calendar_turns_with_day_and_year() -> None:
    data = weather.parse(
        table(("EWR", "2013-01-01T06", "1", "0", "1"), ("EWR", "2013-12-30T23", "1", "0", "1"))
    )
    calendar = data.calendar
    np.testing.assert_allclose((calendar[:, ::2] ** 2 + calendar[:, 1::2] ** 2), 1, atol=1e-5)
    np.testing.assert_allclose(calendar[24:, :2], calendar[:-24, :2], atol=1e-4)
    midnight = np.flatnonzero(data.hours == np.datetime64("2013-07-01T05"))  # in New York
    np.testing.assert_allclose(calendar[midnight, :2], [[0, 1]], atol=1e-4)
    assert calendar[:, 3].argmin() == pytest.approx(182 * 24, abs=48)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("EWR", "BOS", "weather.csv:2: unknown airport 'BOS'"),
        ("2013-01-01T06", "yesterday", "weather.csv:2: no time_hour"),
        (",1,26", ",warm,26", "weather.csv:2: not a number"),
        ("visib", "view", "not a number"),
        (",1,26", ",inf,26", "infinite"),
        ("2013-01-01T06", "1913-01-01T06", "it spans"),
    ],
)
def test_other_weather_is_refused(old: str, new: str, words: str) -> None:
    contents = table(
        ("EWR", "2013-01-01T06", "1", "0", "1"), ("JFK", "2013-01-02T06", "1", "0", "1")
    )
    changed = contents["n/weather.csv"].decode().replace(old, new, 1).encode()
    with pytest.raises(DataError, match=words):
        weather.parse({"n/weather.csv": changed})
    with pytest.raises(DataError, match="no row"):
        weather.parse({"n/weather.csv": COLUMNS.encode()})
