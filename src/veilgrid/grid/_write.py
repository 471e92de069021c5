"""A scenario as the contents of its files; reading them back gives the same scenario."""

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from veilgrid.grid._read import (
    BRANCH_COLUMNS,
    DEVICE_COLUMNS,
    FURTHER_DEVICE_COLUMNS,
    SERIES_OF_KIND,
)
from veilgrid.grid.network import Floats

if TYPE_CHECKING:
    from veilgrid.grid.scenario import Scenario


def written(scenario: "Scenario") -> dict[str, str]:
    """Return name and text of each file of the scenario's folder."""
    network = scenario.network
    names = [str(bus.name) for bus in network.buses]
    files = {
        "scenario.toml": _settings(scenario),
        "buses.csv": _csv(("bus", "kind"), ((bus.name, bus.kind) for bus in network.buses)),
        "branches.csv": _branches(scenario),
        "devices.csv": _devices(scenario),
        "load_p_mw.csv": _series(names, scenario.load_p_mw),
        "load_q_mvar.csv": _series(names, scenario.load_q_mvar),
        "tariff.csv": _series(("buy", "sell"), (scenario.buy, scenario.sell)),
    }
    for what in sorted(set(SERIES_OF_KIND.values())):
        own = [device for device in scenario.devices if SERIES_OF_KIND.get(device.kind) == what]
        if own:
            values = [getattr(device, what) for device in own]
            files[f"{what}.csv"] = _series([device.name for device in own], values)
    return files


def figure(value: float | None) -> str:
    """Write a number so that it reads back the same; absent and unlimited are empty."""
    if value is None or math.isinf(value):
        return ""
    text = repr(float(value))
    return text.removesuffix(".0")


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return stream.getvalue()


def _series(names: Sequence[str], values: Floats | Sequence[Floats]) -> str:
    """Write (column, interval) values with an interval column in front."""
    columns = [list(map(figure, column.tolist())) for column in values]
    count = len(columns[0]) if columns else 0
    rows = ([str(t), *(column[t] for column in columns)] for t in range(count))
    return _csv(("interval", *names), rows)


def _branches(scenario: "Scenario") -> str:
    branches = scenario.network.branches
    width = 6 if any(branch.charging_pu for branch in branches) else 5
    rows = (
        (
            branch.parent,
            branch.child,
            figure(branch.resistance_pu),
            figure(branch.reactance_pu),
            figure(branch.rating_mva),
            figure(branch.charging_pu),
        )[:width]
        for branch in branches
    )
    return _csv(BRANCH_COLUMNS[:width], rows)


def _devices(scenario: "Scenario") -> str:
    devices = scenario.devices
    further = [
        column
        for column in FURTHER_DEVICE_COLUMNS
        if any(getattr(device, column, None) is not None for device in devices)
    ]
    columns = (*DEVICE_COLUMNS, *further)
    rows = (
        (
            device.name,
            device.bus,
            device.kind,
            *(figure(getattr(device, column, None)) for column in columns[3:]),
        )
        for device in devices
    )
    return _csv(columns, rows)


def _settings(scenario: "Scenario") -> str:
    network, horizon = scenario.network, scenario.horizon
    values: dict[str, str | int | float | None] = {
        "name": scenario.name,
        "description": scenario.description,
        "start": horizon.start,
        "interval_minutes": horizon.interval_minutes,
        "interval_count": horizon.interval_count,
        "currency": scenario.currency,
        "base_kv": float(network.base_kv),
        "base_mva": float(network.base_mva),
        "slack_bus": network.slack_bus,
        "slack_voltage_pu": float(network.slack_voltage_pu),
        "voltage_min_pu": network.voltage_min_pu,
        "voltage_max_pu": network.voltage_max_pu,
        "voltage_margin_pu": network.voltage_margin_pu or None,
    }
    lines = (toml_line(key, value) for key, value in values.items() if value is not None)
    return "\n".join(lines) + "\n"


def toml_line(key: str, value: object) -> str:
    """Write a setting; what is neither number nor text is written as text, for reading to judge."""
    plain = value.item() if isinstance(value, np.generic) else value
    if isinstance(plain, int | float) and not isinstance(plain, bool):
        return f"{_quoted(key)} = {plain!r}"
    return f"{_quoted(key)} = {_quoted(str(plain), always=True)}"


def _quoted(text: str, *, always: bool = False) -> str:
    """Write a TOML string; a plain key stands without quotes."""
    if not always and text.isascii() and text.replace("_", "").isalnum():
        return text
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
