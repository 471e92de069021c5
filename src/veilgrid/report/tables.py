"""A finished run as tables: algorithm arrays in per-unit become MW, MWh, pu and currency."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from veilgrid.admm.outcome import Coordination
from veilgrid.errors import invariant
from veilgrid.grid.day import Day
from veilgrid.grid.network import Floats
from veilgrid.grid.scenario import Scenario

COLUMNS: dict[str, tuple[str, ...]] = {
    "buses": (
        "bus",
        "interval",
        "start",
        "net_demand_mw",
        "net_demand_mvar",
        "load_mw",
        "voltage_pu",
        "voltage_uncontrolled_pu",
        "price",
        "price_reactive",
    ),
    "branches": ("from_bus", "to_bus", "interval", "p_mw", "q_mvar", "loading"),
    "devices": (
        "device",
        "kind",
        "bus",
        "interval",
        "p_mw",
        "q_mvar",
        "energy_mwh",
        "available_mw",
    ),
    "substation": (
        "interval",
        "start",
        "exchange_mw",
        "exchange_uncontrolled_mw",
        "buy",
        "sell",
    ),
    "iterations": ("iteration", "primal_residual", "dual_residual", "cost"),
    "settlement": ("site", "payment", "cost", "cost_alone", "saving"),
}
"""Columns of each table, in order."""

NULLABLE = (
    "voltage_pu",
    "voltage_uncontrolled_pu",
    "exchange_uncontrolled_mw",
    "price",
    "price_reactive",
    "loading",
    "energy_mwh",
    "available_mw",
    "primal_residual",
    "dual_residual",
)
"""Columns of type Float64: empty (``pd.NA``) where nothing is known, never NaN."""


TEXTS = ("bus", "from_bus", "to_bus", "device", "kind", "site")
"""Columns of names."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tables:
    """The six tables of a run; an empty table means that there is nothing to say.

    Attributes
    ----------
    buses : one row a bus and interval
        ``start`` is local time. ``net_demand_mw`` = load minus injections; ``voltage_pu`` is AC,
        of the plan, ``voltage_uncontrolled_pu`` AC without coordination; ``price`` is
        currency/MWh, ``price_reactive`` currency/Mvarh.
    branches : one row a branch and interval
        Planned flows, positive away from the substation; ``loading`` is apparent power as a share
        of the rating, by AC power flow where there is one, empty without a rating.
    devices : one row a device and interval
        ``p_mw`` and ``q_mvar`` are injections; ``energy_mwh`` is stored at the end of the
        interval; ``available_mw`` is the forecast of pv and wind.
    substation : one row an interval
        ``exchange_mw`` is planned import, negative for export; ``buy`` and ``sell`` are the
        tariff, currency/MWh.
    iterations : one row an iteration
    settlement : one row a site
        ``cost`` is all that the site bears, payment included; ``saving`` = ``cost_alone - cost``.
    """

    buses: pd.DataFrame = field(repr=False)
    branches: pd.DataFrame = field(repr=False)
    devices: pd.DataFrame = field(repr=False)
    substation: pd.DataFrame = field(repr=False)
    iterations: pd.DataFrame = field(repr=False)
    settlement: pd.DataFrame = field(repr=False)

    def named(self) -> dict[str, pd.DataFrame]:
        """All tables by name."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}


def tables_of(
    scenario: Scenario,
    day: Day,
    outcome: Coordination,
    *,
    voltage_pu: Floats | None = None,
    setpoints_uncontrolled: list[Floats] | None = None,
    voltage_uncontrolled_pu: Floats | None = None,
    loading: Floats | None = None,
    settlement: Iterable[Mapping[str, Any]] = (),
) -> Tables:
    """Build the tables of a run from the algorithms' arrays.

    Parameters
    ----------
    scenario, day
        What was planned; ``day`` is ``scenario.day()``.
    outcome
        Set-points, prices and history. Without set-points (an infeasible or aborted run) only
        ``iterations`` and ``settlement`` have rows.
    voltage_pu, voltage_uncontrolled_pu : (bus, interval), per-unit
        Magnitudes of the AC power flow of the plan and of uncontrolled operation; ``None`` or
        NaN where there is none.
    loading : (bus, interval), share of the rating
        AC loading of the branch that feeds each bus; ``None`` takes the planned flows.
    setpoints_uncontrolled : one (variable,) array a site, per-unit
        What the devices would do without coordination.
    settlement
        ``summary["settlement"]["sites"]``.

    Returns
    -------
    Tables
    """
    count, intervals = len(scenario.network.buses), scenario.horizon.interval_count
    for values in (voltage_pu, voltage_uncontrolled_pu, loading):
        invariant(values is None or values.shape == (count, intervals), "a value a bus")
    is_planned = len(outcome.setpoints) > 0
    invariant(not is_planned or len(outcome.setpoints) == count, "set-points for every site")
    return Tables(
        buses=_buses(scenario, day, outcome, voltage_pu, voltage_uncontrolled_pu)
        if is_planned
        else _empty("buses"),
        branches=_branches(scenario, day, outcome, loading) if is_planned else _empty("branches"),
        devices=_devices(scenario, day, outcome.setpoints) if is_planned else _empty("devices"),
        substation=_substation(scenario, day, outcome, setpoints_uncontrolled)
        if is_planned
        else _empty("substation"),
        iterations=_iterations(outcome),
        settlement=_settlement(settlement),
    )


def pays_more(settlement: pd.DataFrame) -> "pd.Series[bool]":
    """Tell which sites are worse off than alone, to 1e-4 of their cost alone or 0.01."""
    tolerance = (settlement["cost_alone"].abs() * 1e-4).clip(lower=0.01)
    return settlement["saving"] < -tolerance


def starts_of(scenario: Scenario) -> list[datetime]:
    """When each interval starts, local time with its offset."""
    first = datetime.fromisoformat(scenario.horizon.start)
    step = timedelta(minutes=scenario.horizon.interval_minutes)
    return [first + step * interval for interval in range(scenario.horizon.interval_count)]


def _frame(name: str, columns: Mapping[str, Any]) -> pd.DataFrame:
    """Make a table of the declared columns and types."""
    invariant(tuple(columns) == COLUMNS[name], f"{name} has its declared columns")
    frame = pd.DataFrame(dict(columns))
    for column in frame.columns:
        if column in NULLABLE:
            frame[column] = pd.array(frame[column].to_numpy(np.float64), dtype="Float64")
    return frame


def _empty(name: str) -> pd.DataFrame:
    """Make a table without rows, with its columns and types."""
    kinds = {"interval": "int64", "iteration": "int64", "start": "datetime64[ns]"}
    kinds |= dict.fromkeys(TEXTS, "object")
    columns = {column: np.empty(0, dtype=kinds.get(column, "float64")) for column in COLUMNS[name]}
    return _frame(name, columns)


def _long(values: Floats | None, length: int) -> Floats:
    """Flatten an array; unknown values become NaN, which ``_frame`` turns into NA."""
    return np.full(length, np.nan) if values is None else np.asarray(values, np.float64).ravel()


def _start_column(scenario: Scenario) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(starts_of(scenario)).as_unit("ns")


def _buses(
    scenario: Scenario,
    day: Day,
    outcome: Coordination,
    voltage_pu: Floats | None,
    voltage_uncontrolled_pu: Floats | None,
) -> pd.DataFrame:
    base, hours = scenario.network.base_mva, scenario.horizon.hours
    count, intervals = scenario.load_p_mw.shape
    active, reactive = day.demands(outcome.setpoints)
    names = np.array([bus.name for bus in scenario.network.buses], dtype=object)
    start = _start_column(scenario)
    return _frame(
        "buses",
        {
            "bus": np.repeat(names, intervals),
            "interval": np.tile(np.arange(intervals), count),
            "start": start.take(np.tile(np.arange(intervals), count)),
            "net_demand_mw": (active * base).ravel(),
            "net_demand_mvar": (reactive * base).ravel(),
            "load_mw": scenario.load_p_mw.ravel(),
            "voltage_pu": _long(voltage_pu, count * intervals),
            "voltage_uncontrolled_pu": _long(voltage_uncontrolled_pu, count * intervals),
            "price": (outcome.price_p / (hours * base)).ravel(),
            "price_reactive": (outcome.price_q / (hours * base)).ravel(),
        },
    )


def _branches(
    scenario: Scenario, day: Day, outcome: Coordination, loading: Floats | None
) -> pd.DataFrame:
    network, intervals = scenario.network, scenario.horizon.interval_count
    if not network.branches:
        return _empty("branches")
    index = {bus.name: position for position, bus in enumerate(network.buses)}
    children = [index[branch.child] for branch in network.branches]
    state = day.flows(outcome.setpoints)
    active, reactive = state.active[children], state.reactive[children]
    rating = network.tree.rating_pu[children][:, np.newaxis]
    planned = np.hypot(active, reactive) / np.where(rating > 0.0, rating, 1.0)
    used = planned if loading is None else loading[children]
    shown = np.where(np.isfinite(rating) & (rating > 0.0), used, np.nan)
    parents = np.array([branch.parent for branch in network.branches], dtype=object)
    ends = np.array([branch.child for branch in network.branches], dtype=object)
    return _frame(
        "branches",
        {
            "from_bus": np.repeat(parents, intervals),
            "to_bus": np.repeat(ends, intervals),
            "interval": np.tile(np.arange(intervals), len(children)),
            "p_mw": (active * network.base_mva).ravel(),
            "q_mvar": (reactive * network.base_mva).ravel(),
            "loading": shown.ravel(),
        },
    )


def _devices(scenario: Scenario, day: Day, setpoints: list[Floats]) -> pd.DataFrame:
    base, intervals = scenario.network.base_mva, scenario.horizon.interval_count
    available = {device.name: getattr(device, "available_mw", None) for device in scenario.devices}
    parts: dict[str, list[Any]] = {column: [] for column in COLUMNS["devices"]}
    for site, x in zip(day.sites, setpoints, strict=True):
        spans: dict[str, list[Any]] = {}
        for span in site.spans:
            spans.setdefault(span.device, []).append(span)
        for name, own in spans.items():
            columns = slice(own[0].start, own[-1].start + intervals)
            stored = [span.start for span in own if span.group == "energy"]
            energy = x[stored[0] : stored[0] + intervals] * base if stored else None
            parts["device"].append(np.full(intervals, name, dtype=object))
            parts["kind"].append(np.full(intervals, own[0].kind, dtype=object))
            parts["bus"].append(np.full(intervals, site.name, dtype=object))
            parts["interval"].append(np.arange(intervals))
            parts["p_mw"].append(np.asarray(site.inject_p[:, columns] @ x[columns]) * base)
            parts["q_mvar"].append(np.asarray(site.inject_q[:, columns] @ x[columns]) * base)
            parts["energy_mwh"].append(_long(energy, intervals))
            parts["available_mw"].append(_long(available[name], intervals))
    if not parts["device"]:
        return _empty("devices")
    return _frame("devices", {name: np.concatenate(part) for name, part in parts.items()})


def _substation(
    scenario: Scenario, day: Day, outcome: Coordination, uncontrolled: list[Floats] | None
) -> pd.DataFrame:
    base, intervals = scenario.network.base_mva, scenario.horizon.interval_count
    before = None if uncontrolled is None else day.demands(uncontrolled)[0].sum(axis=0) * base
    return _frame(
        "substation",
        {
            "interval": np.arange(intervals),
            "start": _start_column(scenario),
            "exchange_mw": day.demands(outcome.setpoints)[0].sum(axis=0) * base,
            "exchange_uncontrolled_mw": _long(before, intervals),
            "buy": np.asarray(scenario.buy, np.float64),
            "sell": np.asarray(scenario.sell, np.float64),
        },
    )


def _iterations(outcome: Coordination) -> pd.DataFrame:
    if not outcome.history:
        return _empty("iterations")
    return _frame(
        "iterations",
        {
            "iteration": np.array([step.iteration for step in outcome.history]),
            "primal_residual": np.array([step.primal for step in outcome.history], np.float64),
            "dual_residual": np.array([step.dual for step in outcome.history], np.float64),
            "cost": np.array([step.cost for step in outcome.history], np.float64),
        },
    )


def _settlement(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    entries = list(rows)
    if not entries:
        return _empty("settlement")
    cost = np.array([float(entry["cost"]) for entry in entries])
    alone = np.array([float(entry["cost_alone"]) for entry in entries])
    return _frame(
        "settlement",
        {
            "site": np.array([str(entry["site"]) for entry in entries], dtype=object),
            "payment": np.array([float(entry["payment"]) for entry in entries]),
            "cost": cost,
            "cost_alone": alone,
            "saving": alone - cost,
        },
    )
