"""Scenarios from SimBench grids and their quarter-hourly year 2016. Needs the extra ``simbench``.

SimBench data are under the Open Database License 1.0: what is passed on needs its notice.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from veilgrid.errors import Finding, ScenarioError
from veilgrid.grid._table import meant
from veilgrid.grid.horizon import Horizon
from veilgrid.grid.import_pandapower import (
    ImportChoices,
    Profiles,
    from_pandapower,
    optional_package,
)
from veilgrid.grid.scenario import Scenario

INTERVALS_A_DAY = 96
OFFSET = "+01:00"
"""The profiles have 96 quarter hours on every day, so they are taken as standard time."""


@dataclass(frozen=True, kw_only=True)
class SimbenchGrid:
    """A SimBench grid and its profiles.

    Attributes
    ----------
    net
        The pandapower net.
    profiles
        (table, column) -> DataFrame (interval of the year, element), MW or Mvar.
    days
        First interval of each day, by date ``yyyy-mm-dd``.
    """

    code: str
    net: Any
    profiles: dict[tuple[str, str], Any]
    days: dict[str, int]


def open_simbench(code: str) -> SimbenchGrid:
    """Read a grid by its code, e.g. ``1-MV-rural--2-sw``; takes 5 to 20 seconds.

    Raises
    ------
    SetupError
        If simbench is not installed.
    ScenarioError
        If there is no such grid.
    """
    simbench = optional_package("simbench")
    codes = simbench.collect_all_simbench_codes()
    if code not in codes:
        advice = meant(code, codes) or "a code looks like 1-MV-rural--2-sw"
        raise ScenarioError([Finding(f"SimBench code {code}", "is unknown", advice)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # simbench and pandapower warn about each other.
        net = simbench.get_simbench_net(code)
        profiles = simbench.get_absolute_values(net, profiles_instead_of_study_cases=True)
    times = net.profiles["load"]["time"].tolist()
    days = {
        f"{time[6:10]}-{time[3:5]}-{time[:2]}": position
        for position, time in enumerate(times)
        if time.endswith("00:00")
    }
    return SimbenchGrid(code=code, net=net, profiles=profiles, days=days)


def from_simbench(
    grid: SimbenchGrid, day: str, *, day_count: int = 1, choices: ImportChoices | None = None
) -> Scenario:
    """Build the scenario of one day (``yyyy-mm-dd``) or several days of a grid.

    ``choices`` gives prices and the like; its horizon and profiles are replaced by the day's.

    Raises
    ------
    ScenarioError
        If the year of the profiles has no such day, or as :func:`from_pandapower`.
    """
    if day not in grid.days:
        first, last = min(grid.days), max(grid.days)
        raise ScenarioError([Finding(f"day {day}", f"is not in {first} … {last}")])
    start, count = grid.days[day], day_count * INTERVALS_A_DAY
    profiles: Profiles = {
        key: {
            int(element): np.asarray(frame[element].to_numpy()[start : start + count], dtype=float)
            for element in frame.columns
        }
        for key, frame in grid.profiles.items()
        if key[0] != "storage"  # Batteries are planned, their profiles are not followed.
    }
    length = min(start + count, max(len(frame) for frame in grid.profiles.values())) - start
    if length < count:
        raise ScenarioError([Finding(f"day {day}", f"{day_count} days reach beyond the year")])
    horizon = Horizon(start=f"{day}T00:00:00{OFFSET}", interval_minutes=15, interval_count=count)
    given = choices or ImportChoices(name=f"{grid.code}-{day}")
    return from_pandapower(
        grid.net,
        ImportChoices(
            name=given.name,
            description=given.description or f"SimBench {grid.code}, {day}; ODbL 1.0",
            horizon=horizon,
            currency=given.currency,
            profiles=profiles,
            buy=given.buy,
            sell=given.sell,
            generator_cost=given.generator_cost,
            state_of_charge=given.state_of_charge,
        ),
    )
