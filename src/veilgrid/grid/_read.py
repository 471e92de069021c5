"""The files of a scenario folder, read into domain objects; every fault is noted at once."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from veilgrid.grid import _topology
from veilgrid.grid._check import check_plausible
from veilgrid.grid._settings import FILE as SETTINGS_FILE
from veilgrid.grid._settings import read_settings
from veilgrid.grid._table import (
    Notes,
    Row,
    Table,
    check_strangers,
    likewise,
    meant,
    number,
    read_series,
    read_table,
    shown,
)
from veilgrid.grid.device import DEVICE_KINDS, Device
from veilgrid.grid.horizon import Horizon
from veilgrid.grid.network import BUS_KINDS, Branch, Bus, BusId, Floats, Network

BRANCH_COLUMNS = ("from_bus", "to_bus", "r_pu", "x_pu", "rating_mva", "b_pu")
DEVICE_COLUMNS = (
    "device",
    "bus",
    "kind",
    "p_min_mw",
    "p_max_mw",
    "q_per_p",
    "cost_linear",
    "cost_quadratic",
    "charge_max_mw",
    "discharge_max_mw",
    "energy_max_mwh",
    "energy_initial_mwh",
    "energy_final_min_mwh",
    "charge_efficiency",
    "discharge_efficiency",
)
FURTHER_DEVICE_COLUMNS = (
    "s_max_mva",
    "window_start",
    "window_end",
    "energy_required_mwh",
    "cop",
    "loss_per_hour",
)
SERIES_OF_KIND = {"pv": "available_mw", "wind": "available_mw", "heat_pump": "heat_mw"}
REQUIRED_FILES = {
    "scenario.toml": "names the horizon, the currency and the substation",
    "buses.csv": "lists the buses",
    "branches.csv": "lists the branches",
    "devices.csv": "lists the devices; a header alone is enough if there are none",
    "load_p_mw.csv": "holds the active load of each bus",
    "load_q_mvar.csv": "holds the reactive load of each bus",
    "tariff.csv": "holds the prices at the substation",
}
OPTIONAL_FILES = ("available_mw.csv", "heat_mw.csv")
FILES = (*REQUIRED_FILES, *OPTIONAL_FILES)


@dataclass
class _Reading:
    """What has been read so far; ``None`` where a part is not usable."""

    files: Mapping[str, bytes]
    notes: Notes = field(default_factory=Notes)
    settings: dict[str, Any] = field(default_factory=dict)
    horizon: Horizon | None = None
    buses: list[Bus] | None = None
    bus_lines: dict[str, int] = field(default_factory=dict)
    branches: list[tuple[int, Branch]] | None = None
    devices: list[tuple[Row, dict[str, Any]]] = field(default_factory=list)
    devices_table: Table | None = None
    series: dict[str, dict[str, Floats]] = field(default_factory=dict)

    def table(
        self, file: str, required: tuple[str, ...], optional: tuple[str, ...] = ()
    ) -> Table | None:
        if file not in self.files:
            return None
        return read_table(file, self.files[file], required, self.notes, optional)


def read_files(files: Mapping[str, bytes]) -> tuple[dict[str, Any] | None, Notes]:
    """Read a scenario from the contents of its files.

    Returns
    -------
    The fields of a Scenario, ``None`` if anything was found; and all notes.
    """
    reading = _Reading(files)
    notes = reading.notes
    for file, role in REQUIRED_FILES.items():
        if file not in files:
            notes.fault(file, "is missing", f"it {role}")
    if SETTINGS_FILE in files:
        reading.settings = read_settings(files[SETTINGS_FILE], notes)
    _read_horizon(reading)
    _read_buses(reading)
    _read_branches(reading)
    _read_device_rows(reading)
    loads = [_read_loads(reading, file) for file in ("load_p_mw.csv", "load_q_mvar.csv")]
    for kind_file in OPTIONAL_FILES:
        _read_device_series(reading, kind_file)
    devices = _built_devices(reading)
    tariff = _read_tariff(reading)
    if notes.findings or reading.horizon is None or tariff is None:
        return None, notes
    if loads[0] is None or loads[1] is None or reading.buses is None or reading.branches is None:
        return None, notes
    parts = {
        "name": reading.settings["name"],
        "description": reading.settings.get("description", ""),
        "horizon": reading.horizon,
        "currency": reading.settings["currency"],
        "network": _network(reading, reading.buses, reading.branches),
        "devices": tuple(devices),
        "load_p_mw": loads[0],
        "load_q_mvar": loads[1],
        "buy": tariff[0],
        "sell": tariff[1],
    }
    check_plausible(
        parts,
        reading.branches,
        {row.cells["device"]: row.line for row, _ in reading.devices},
        notes,
    )
    return (None if notes.findings else parts), notes


def _network(reading: _Reading, buses: list[Bus], branches: list[tuple[int, Branch]]) -> Network:
    names = ("base_mva", "base_kv", "slack_bus", "slack_voltage_pu")
    optional = ("voltage_min_pu", "voltage_max_pu", "voltage_margin_pu")
    chosen = {key: reading.settings[key] for key in names}
    chosen |= {key: reading.settings[key] for key in optional if key in reading.settings}
    return Network(buses=tuple(buses), branches=tuple(b for _, b in branches), **chosen)


def _read_horizon(reading: _Reading) -> None:
    names = ("start", "interval_minutes", "interval_count")
    if all(name in reading.settings for name in names):
        reading.horizon = Horizon(**{name: reading.settings[name] for name in names})


def _read_buses(reading: _Reading) -> None:
    table, notes = reading.table("buses.csv", ("bus", "kind")), reading.notes
    if table is None:
        return
    check_strangers(table, ("bus", "kind"), notes)
    buses: list[Bus] = []
    first: dict[str, int] = {}
    for row in table.rows:
        name, kind = row.cells["bus"], row.cells["kind"]
        if not name:
            notes.fault(table.at(row.line, "bus"), "is empty")
        elif name in ("interval", "key"):
            notes.fault(table.at(row.line, "bus"), f"'{name}' is reserved for the index column")
        elif name in first:
            notes.fault(table.at(row.line, "bus"), f"bus {name} is already in row {first[name]}")
        else:
            first[name] = row.line
            buses.append(Bus(name=BusId(name), kind=kind))
        if kind not in BUS_KINDS:
            advice = meant(kind, BUS_KINDS) or f"one of {', '.join(BUS_KINDS)}"
            notes.fault(table.at(row.line, "kind"), f"is {shown(kind)}, not a kind of bus", advice)
    if not table.rows:
        notes.fault(table.file, "lists no bus")
    _check_slack(reading, table, first)
    reading.buses, reading.bus_lines = buses, first


def _check_slack(reading: _Reading, table: Table, first: dict[str, int]) -> None:
    notes, slack = reading.notes, reading.settings.get("slack_bus")
    marked = [row for row in table.rows if row.cells["kind"] == "slack"]
    if slack is not None and table.rows and slack not in first:
        here = f"{SETTINGS_FILE} key slack_bus"
        notes.fault(here, f"bus {slack} is not in buses.csv", meant(slack, first))
    if len(marked) > 1:
        lines = " and ".join(str(row.line) for row in marked)
        notes.fault(table.file, f"rows {lines} are of kind slack, one substation is needed")
    elif not marked and table.rows:
        notes.fault(table.file, "no bus is of kind slack", "mark the substation")
    elif marked and slack is not None and slack in first and marked[0].cells["bus"] != slack:
        here = table.at(marked[0].line, "kind")
        advice = "correct one of the two"
        notes.fault(here, f"is slack, but slack_bus in {SETTINGS_FILE} is {slack}", advice)


def _read_branches(reading: _Reading) -> None:
    notes = reading.notes
    table = reading.table("branches.csv", BRANCH_COLUMNS[:5], BRANCH_COLUMNS[5:])
    if table is None:
        return
    check_strangers(table, BRANCH_COLUMNS, notes)
    known = None if reading.buses is None else {str(bus.name) for bus in reading.buses}
    branches: list[tuple[int, Branch]] = []
    for row in table.rows:
        ends = [row.cells["from_bus"], row.cells["to_bus"]]
        is_sound = True
        for column, end in zip(("from_bus", "to_bus"), ends, strict=True):
            if known is not None and end not in known:
                advice = meant(end, known) if end else ""
                problem = f"bus {end} is not in buses.csv" if end else "is empty"
                notes.fault(table.at(row.line, column), problem, advice)
                is_sound = False
        values = {
            column: _branch_number(table, row, column, notes) for column in BRANCH_COLUMNS[2:]
        }
        if is_sound:
            branch = Branch(
                parent=BusId(ends[0]),
                child=BusId(ends[1]),
                resistance_pu=values["r_pu"],
                reactance_pu=values["x_pu"],
                rating_mva=values["rating_mva"],
                charging_pu=values["b_pu"],
            )
            branches.append((row.line, branch))
    slack, marked = reading.settings.get("slack_bus"), _marked(reading)
    if slack in reading.bus_lines and (slack in marked or not marked):
        is_complete = len(branches) == len(table.rows)
        _topology.check_radial(reading.bus_lines, slack, branches, is_complete, notes)
    reading.branches = branches


def _marked(reading: _Reading) -> list[str]:
    """Buses of kind slack."""
    return [str(bus.name) for bus in reading.buses or [] if bus.kind == "slack"]


def _branch_number(table: Table, row: Row, column: str, notes: Notes) -> float:
    """Read one figure of a branch; an empty rating is unlimited, an absent charging is none."""
    text = row.cells.get(column, "")
    if not text and column in ("rating_mva", "b_pu"):
        return math.inf if column == "rating_mva" else 0.0
    value, problem = number(text)
    if problem:
        advice = "leave the cell empty for an unlimited branch" if column == "rating_mva" else ""
        notes.fault(table.at(row.line, column), problem, advice)
        return 0.0
    if column == "rating_mva" and value <= 0.0:
        advice = "leave the cell empty for an unlimited branch"
        notes.fault(table.at(row.line, column), f"is {value:g}, must be > 0", advice)
    elif value < 0.0:
        notes.fault(table.at(row.line, column), f"is {value:g}, must be >= 0")
    return value


def _fields(kind: str) -> dict[str, "dataclasses.Field[Any]"]:
    """Columns that a kind of device reads."""
    apart = ("name", "bus", *SERIES_OF_KIND.values())
    return {f.name: f for f in dataclasses.fields(DEVICE_KINDS[kind]) if f.name not in apart}


def _read_device_rows(reading: _Reading) -> None:
    notes, known_columns = reading.notes, (*DEVICE_COLUMNS, *FURTHER_DEVICE_COLUMNS)
    table = reading.table("devices.csv", known_columns[:3], known_columns[3:])
    if table is None:
        return
    reading.devices_table = table
    check_strangers(table, known_columns, notes)
    known = None if reading.buses is None else {str(bus.name) for bus in reading.buses}
    first: dict[str, int] = {}
    needed: dict[str, str] = {}
    for row in table.rows:
        name, bus, kind = (row.cells[column] for column in ("device", "bus", "kind"))
        if not name:
            notes.fault(table.at(row.line, "device"), "is empty")
        elif name == "interval":
            notes.fault(table.at(row.line, "device"), "'interval' is reserved")
        elif name in first:
            problem = f"device {name} is already in row {first[name]}"
            notes.fault(table.at(row.line, "device"), problem)
        if known is not None and bus not in known:
            problem = f"bus {bus} is not in buses.csv" if bus else "is empty"
            notes.fault(table.at(row.line, "bus"), problem, meant(bus, known) if bus else "")
        if kind not in DEVICE_KINDS:
            advice = meant(kind, DEVICE_KINDS) or f"one of {', '.join(DEVICE_KINDS)}"
            problem = f"is {shown(kind)}, not a kind of device"
            notes.fault(table.at(row.line, "kind"), problem, advice)
            continue
        values = _device_values(table, row, kind, needed, notes)
        if name and name not in first:
            reading.devices.append((row, values))
        first.setdefault(name, row.line)
    for column, kind in needed.items():
        notes.fault(f"{table.file} row 1, column {column}", f"is missing, a {kind} needs it")


def _device_values(
    table: Table, row: Row, kind: str, needed: dict[str, str], notes: Notes
) -> dict[str, Any]:
    """Read a device's own columns; columns that are absent altogether go to ``needed``."""
    fields, values = _fields(kind), dict[str, Any]()
    for column, rule in fields.items():
        has_default = rule.default is not dataclasses.MISSING
        if column not in row.cells:
            if column in DEVICE_COLUMNS or not has_default:
                needed.setdefault(column, kind)
            continue
        text, here = row.cells[column], table.at(row.line, column)
        if not text:
            if not has_default:
                notes.fault(here, f"is empty, a {kind} needs it")
            continue
        value, problem = number(text)
        if problem:
            notes.fault(here, problem)
        elif rule.type is int and value != int(value):
            notes.fault(here, f"is {value:g}, the number of an interval is needed")
        else:
            values[column] = int(value) if rule.type is int else value
    for column in (*DEVICE_COLUMNS[3:], *FURTHER_DEVICE_COLUMNS):
        text = row.cells.get(column, "")
        value, problem = number(text) if text else (0.0, "")
        if column not in fields and (problem or value != 0.0):
            here = table.at(row.line, column)
            if problem:
                notes.fault(here, problem)
            else:
                notes.remark(here, f"is {text}, a {kind} does not use it")
    return values


def _read_loads(reading: _Reading, file: str) -> Floats | None:
    table, notes = reading.table(file, ("interval",)), reading.notes
    if table is None or reading.buses is None:
        return None
    names = [str(bus.name) for bus in reading.buses]
    _check_columns(table, names, "bus", "buses.csv", notes)
    present = [name for name in names if name in table.header]
    count = reading.settings.get("interval_count")
    rule = _not_negative_load if file == "load_p_mw.csv" else lambda value: ""  # noqa: ARG005
    values = read_series(table, count, present, notes, rule)
    return values if len(present) == len(names) else None


def _not_negative_load(value: float) -> str:
    return "" if value >= 0.0 else f"is {value:g}, a load is >= 0 and feed-in is a device"


def _not_negative(value: float) -> str:
    return "" if value >= 0.0 else f"is {value:g}, must be >= 0"


def _check_columns(table: Table, names: list[str], what: str, listed: str, notes: Notes) -> None:
    """Note columns for unknown buses or devices, and buses or devices without a column."""
    known, absent = set(names), [name for name in names if name not in table.header]
    for column in table.header:
        if column != "interval" and column not in known:
            here = f"{table.file} row 1, column {column}"
            notes.fault(here, f"{what} {column} is not in {listed}", meant(column, absent))
    for name in absent:
        notes.fault(f"{table.file} row 1, column {name}", f"is missing for {what} {name}")


def _read_device_series(reading: _Reading, file: str) -> None:
    """Read forecasts or heat demands; the file may be absent if no device needs it."""
    what = file.removesuffix(".csv")
    kinds = {row.cells["device"]: row.cells["kind"] for row, _ in reading.devices}
    names = [name for name, kind in kinds.items() if SERIES_OF_KIND.get(kind) == what]
    notes = reading.notes
    if file not in reading.files:
        if names:
            notes.fault(file, "is missing", f"{names[0]} and others of its kind need it")
        return
    table = reading.table(file, ("interval",))
    if table is None or reading.devices_table is None:
        return
    for column in [column for column in table.header if column in kinds and column not in names]:
        here = f"{file} row 1, column {column}"
        notes.fault(here, f"device {column} is a {kinds[column]}, which has no {what}")
    listed = {row.cells["device"] for row in reading.devices_table.rows}
    unread = tuple(column for column in table.header if column in listed and column not in names)
    kept = Table(file, tuple(c for c in table.header if c not in unread), table.rows)
    _check_columns(kept, names, "device", "devices.csv", notes)
    present = [name for name in names if name in table.header]
    count = reading.settings.get("interval_count")
    values = read_series(table, count, present, notes, _not_negative)
    if values is not None:
        reading.series[what] = dict(zip(present, values, strict=True))


def _built_devices(reading: _Reading) -> list[Device]:
    """Build all devices whose cells could be read, and note the rules that they break."""
    table, horizon, devices = reading.devices_table, reading.horizon, []
    if table is None or horizon is None:
        return []
    for row, values in reading.devices:
        name, kind = row.cells["device"], row.cells["kind"]
        fields = _fields(kind)
        if any(f.default is dataclasses.MISSING and c not in values for c, f in fields.items()):
            continue
        own = dict(values)
        series = SERIES_OF_KIND.get(kind)
        if series is not None:
            blank = np.zeros(horizon.interval_count)
            own[series] = reading.series.get(series, {}).get(name, blank)
        device = DEVICE_KINDS[kind](name=name, bus=BusId(row.cells["bus"]), **own)
        for finding in device.findings(horizon):
            here = table.at(row.line, finding.where)
            if finding.where == series:
                here = f"{series}.csv column {name}"
            reading.notes.fault(here, finding.problem, finding.advice)
        devices.append(device)
    return devices


def _read_tariff(reading: _Reading) -> tuple[Floats, Floats] | None:
    table, notes = reading.table("tariff.csv", ("interval", "buy", "sell")), reading.notes
    if table is None:
        return None
    check_strangers(table, ("interval", "buy", "sell"), notes)
    values = read_series(table, reading.settings.get("interval_count"), ("buy", "sell"), notes)
    if values is None:
        return None
    above = np.flatnonzero(values[1] > values[0])
    if len(above):
        buy, sell = values[:, above[0]]
        more = likewise(len(above) - 1)
        notes.fault(
            table.at(table.rows[above[0]].line, "sell"),
            f"is {sell:g}, above buy {buy:g}{more}",
            "a day in which buying is cheaper than selling has no least cost",
        )
    return values[0], values[1]
