"""A scenario from a pandapower net, with time series where they are given.

Needs the extra ``pandapower`` only to parse a net from JSON; a net that is there already is read
as tables.
"""

import dataclasses
import importlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from veilgrid.errors import Finding, ScenarioError, SetupError
from veilgrid.grid._pandapower_network import (
    ImportedNetwork,
    active,
    import_network,
    label,
    value,
)
from veilgrid.grid._table import Notes, several
from veilgrid.grid.device import Battery, Device, Generator, Photovoltaic, Wind
from veilgrid.grid.horizon import Horizon
from veilgrid.grid.network import BusId, Floats
from veilgrid.grid.scenario import Scenario

WIND_HINTS = ("wind", "wp", "wec")
GENERATOR_HINTS = ("biomass", "chp", "bhkw", "hydro", "diesel", "gas", "bm")
FLAT_BUY, FLAT_SELL = 100.0, 50.0

NET_FAULTS = (
    *(ValueError, LookupError, TypeError, AttributeError, ImportError, RecursionError),
    *(NotImplementedError, UserWarning),
)
"""What pandapower raises on texts that are no net of its own."""

Profiles = Mapping[tuple[str, str], Mapping[int, Floats]]


@dataclass(frozen=True, kw_only=True)
class ImportChoices:
    """What a net does not say.

    Attributes
    ----------
    profiles : (table, column) -> element index -> (interval,), MW or Mvar
        Time series of ``load``, ``sgen`` and ``gen``; elements without one stay constant.
    buy, sell : (interval,), currency/MWh, None = flat
    generator_cost : currency/MWh
        Of generators without an entry in the net's ``poly_cost``.
    state_of_charge : in [0, 1], None = the net's ``soc_percent``
    """

    name: str
    description: str = ""
    horizon: Horizon = field(
        default_factory=lambda: Horizon(
            start="2016-01-01T00:00:00+01:00", interval_minutes=60, interval_count=24
        )
    )
    currency: str = "EUR"
    profiles: Profiles = field(default_factory=dict)
    buy: Floats | None = None
    sell: Floats | None = None
    generator_cost: float = 0.0
    state_of_charge: float | None = None


def optional_package(module: str) -> ModuleType:
    """Import an optional package.

    Raises
    ------
    SetupError
        If it is not installed, with the command that installs it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Third parties warn about each other.
            return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        message = f'{name} is not installed: run  pip install "veilgrid[{name}]"'
        raise SetupError(message) from error


def read_net(text: str) -> Any:
    """Parse a pandapower net from JSON.

    Only parse nets whose origin you trust: the format names Python classes to load.

    Raises
    ------
    ScenarioError
        If the text is not a pandapower net.
    """
    pandapower = optional_package("pandapower")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net = pandapower.from_json_string(text)
        is_net = all(table in net for table in ("bus", "line", "load", "ext_grid"))
    except NET_FAULTS as error:
        problem = f"is not a pandapower net: {error}"
        raise ScenarioError([Finding("net", problem, "save it with pandapower.to_json")]) from error
    if not is_net:
        problem = "is not a pandapower net: tables bus, line, load and ext_grid are needed"
        raise ScenarioError([Finding("net", problem, "save it with pandapower.to_json")])
    return net


def from_pandapower(net: Any, choices: ImportChoices) -> Scenario:
    """Build a scenario from a radial pandapower net.

    Raises
    ------
    ScenarioError
        If the net is meshed, has elements that a scenario cannot hold, or breaks a rule of the
        format. What was simplified stands in the scenario's ``remarks``.
    """
    notes = Notes()
    imported = import_network(net, notes)
    if imported is None:
        raise ScenarioError(notes.findings)
    importing = _Importing(net, choices, imported, notes)
    load_p, load_q = importing.loads()
    devices = importing.devices()
    if notes.findings:
        raise ScenarioError(notes.findings)
    count = choices.horizon.interval_count
    if choices.buy is None or choices.sell is None:
        problem = f"flat prices are assumed: buy {FLAT_BUY:g}, sell {FLAT_SELL:g}"
        notes.remark("tariff.csv", problem, "write your own into the file")
    scenario = Scenario(
        name=choices.name,
        description=choices.description,
        horizon=choices.horizon,
        currency=choices.currency,
        network=imported.network,
        devices=tuple(devices),
        load_p_mw=load_p,
        load_q_mvar=load_q,
        buy=np.full(count, FLAT_BUY) if choices.buy is None else choices.buy,
        sell=np.full(count, FLAT_SELL) if choices.sell is None else choices.sell,
    )
    checked = Scenario.from_files(scenario.files())
    return dataclasses.replace(checked, remarks=(*notes.remarks, *checked.remarks))


class _Importing:
    """Loads and devices of one net."""

    def __init__(
        self, net: Any, choices: ImportChoices, imported: ImportedNetwork, notes: Notes
    ) -> None:
        self.net, self.choices, self.notes = net, choices, notes
        self.bus_of = imported.bus_of
        self.row_of = {bus.name: row for row, bus in enumerate(imported.network.buses)}
        self.count = choices.horizon.interval_count
        self.clipped: list[tuple[str, float]] = []

    def series(self, table: str, column: str, index: int, row: dict[str, Any]) -> Floats:
        """Return an element's power (interval,), its profile if there is one."""
        profile = self.choices.profiles.get((table, column), {})
        known = index in profile
        power = (
            np.asarray(profile[index]) if known else np.full(self.count, value(row, column, 0.0))
        )
        return np.asarray(power * value(row, "scaling", 1.0), dtype=np.float64)

    def placed(self, table: str) -> list[tuple[int, dict[str, Any], BusId]]:
        """List the elements of a table that stand at an energised bus."""
        listed = [(i, row) for i, row in active(self.net, table)]
        return [
            (i, row, self.bus_of[int(row["bus"])])
            for i, row in listed
            if int(row["bus"]) in self.bus_of
        ]

    def loads(self) -> tuple[Floats, Floats]:
        """Sum loads and shunts by bus, two arrays (bus, interval)."""
        active_mw = np.zeros((len(self.row_of), self.count))
        reactive = np.zeros_like(active_mw)
        dependent = []
        for index, row, bus in self.placed("load"):
            power = self.series("load", "p_mw", index, row)
            active_mw[self.row_of[bus]] += np.maximum(power, 0.0)
            reactive[self.row_of[bus]] += self.series("load", "q_mvar", index, row)
            shares = (f"const_{a}_{b}_percent" for a in "zi" for b in "pq")
            if any(value(row, share, 0.0) for share in shares):
                dependent.append(label("load", index, row))
        if dependent:
            problem = f"{several(dependent)}: depends on voltage, taken as constant power"
            self.notes.remark("table load", problem)
        shunts = self.placed("shunt")
        for _, row, bus in shunts:
            step = value(row, "step", 1.0)
            active_mw[self.row_of[bus]] += max(value(row, "p_mw", 0.0) * step, 0.0)
            reactive[self.row_of[bus]] += value(row, "q_mvar", 0.0) * step
        if shunts:
            names = several(label("shunt", i, row) for i, row, _ in shunts)
            self.notes.remark("table shunt", f"{names}: taken as constant power at 1.0 pu")
        return active_mw, reactive

    def devices(self) -> list[Device]:
        """Build feed-in, generators and batteries."""
        found: list[Device] = [*self._static(), *self._feeding_loads()]
        found += [self._generator(i, row, bus) for i, row, bus in self.placed("gen")]
        found += [self._battery(i, row, bus) for i, row, bus in self.placed("storage")]
        if self.clipped:
            names = several(name for name, _ in self.clipped)
            least = min(low for _, low in self.clipped)
            problem = f"{names}: negative generation, at least {least:g} MW, is clipped to 0"
            self.notes.remark("table sgen", problem)
        return found

    def _static(self) -> list[Device]:
        devices: list[Device] = []
        for index, row, bus in self.placed("sgen"):
            power = self.series("sgen", "p_mw", index, row)
            if power.min() < 0.0:
                self.clipped.append((label("sgen", index, row), float(power.min())))
            power = np.maximum(power, 0.0)
            rated, q_static = value(row, "p_mw", 0.0), value(row, "q_mvar", 0.0)
            per_p = q_static / rated if rated > 0.0 else 0.0
            kind = row.get("type")
            hint = str(kind if isinstance(kind, str) and kind else row.get("name", "")).lower()
            if any(word in hint for word in GENERATOR_HINTS):
                cost = self._cost("sgen", index)
                high = float(power.max())
                name = f"generator{index}"
                built = Generator(
                    name=name, bus=bus, p_max_mw=high, q_per_p=per_p, cost_linear=cost
                )
                devices.append(built)
                continue
            is_wind = any(word in hint for word in WIND_HINTS)
            cls, stem = (Wind, "wind") if is_wind else (Photovoltaic, "pv")
            size = max(value(row, "sn_mva", 0.0), rated, float(power.max()))
            devices.append(
                cls(
                    name=f"{stem}{index}",
                    bus=bus,
                    available_mw=power,
                    p_max_mw=size,
                    q_per_p=per_p,
                )
            )
        return devices

    def _feeding_loads(self) -> list[Device]:
        """Turn what negative loads feed in into devices."""
        devices: list[Device] = []
        names = []
        for index, row, bus in self.placed("load"):
            fed = np.maximum(-self.series("load", "p_mw", index, row), 0.0)
            if fed.max() > 0.0:
                names.append(label("load", index, row))
                devices.append(Photovoltaic(name=f"feed{index}", bus=bus, available_mw=fed))
        if names:
            problem = f"{several(names)}: negative, its feed-in becomes a device of kind pv"
            self.notes.remark("table load", problem)
        return devices

    def _cost(self, table: str, index: int) -> float:
        for _, row in active(self.net, "poly_cost"):
            if row.get("et") == table and int(row["element"]) == index:
                return value(row, "cp1_eur_per_mw", self.choices.generator_cost)
        return self.choices.generator_cost

    def _generator(self, index: int, row: dict[str, Any], bus: BusId) -> Device:
        rated = value(row, "p_mw", 0.0) * value(row, "scaling", 1.0)
        name = label("gen", index, row)
        self.notes.remark(name, "becomes a generator; it does not hold the voltage any more")
        return Generator(
            name=f"gen{index}",
            bus=bus,
            p_min_mw=max(value(row, "min_p_mw", 0.0), 0.0),
            p_max_mw=max(value(row, "max_p_mw", rated), 0.0),
            cost_linear=self._cost("gen", index),
        )

    def _battery(self, index: int, row: dict[str, Any], bus: BusId) -> Device:
        """Build a battery that ends the horizon with the energy that it began with."""
        size = value(row, "sn_mva", 0.0) or abs(value(row, "p_mw", 0.0))
        energy = max(value(row, "max_e_mwh", 0.0) - value(row, "min_e_mwh", 0.0), 0.0)
        share = self.choices.state_of_charge
        if share is None:
            share = min(max(value(row, "soc_percent", 0.0) / 100.0, 0.0), 1.0)
        efficiency = value(row, "efficiency_percent", 100.0)
        efficiency = efficiency if efficiency <= 1.0 else efficiency / 100.0
        return Battery(
            name=f"battery{index}",
            bus=bus,
            charge_max_mw=max(value(row, "max_p_mw", 0.0), 0.0) or size,
            discharge_max_mw=max(-value(row, "min_p_mw", 0.0), 0.0) or size,
            energy_max_mwh=energy,
            energy_initial_mwh=share * energy,
            energy_final_min_mwh=share * energy,
            charge_efficiency=efficiency if 0.0 < efficiency <= 1.0 else 1.0,
            discharge_efficiency=efficiency if 0.0 < efficiency <= 1.0 else 1.0,
        )
