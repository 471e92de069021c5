"""Cut the bundled scenarios out of SimBench: ``python tools/cut_simbench.py scenarios``.

Writes one folder for each day of a summer and a winter week, the same bytes on every run.
docs/data.md says what is cut and why; scenarios/NOTICE.md names the licences.
"""

import dataclasses
import shutil
import sys
from datetime import date, timedelta
from pathlib import Path

import numpy as np

from veilgrid.grid.device import Battery, Device, Generator, Wind
from veilgrid.grid.import_pandapower import ImportChoices
from veilgrid.grid.import_simbench import SimbenchGrid, from_simbench, open_simbench
from veilgrid.grid.network import Branch
from veilgrid.grid.scenario import Scenario
from veilgrid.report.folders import save_scenario

CODE = "1-MV-rural--2-sw"
FEEDERS_LEFT_OUT = ("MV1.101_Feeder3", "MV1.101_Feeder6", "MV1.101_Feeder7")
WEEKS = (date(2016, 7, 18), date(2016, 1, 18))
DAY_COUNT = 7
INTERVAL_COUNT = 96

OFF_PEAK, MID_PEAK, ON_PEAK = 0, 1, 2
SUMMER_PRICES = (87.0, 132.0, 180.0)
WINTER_PRICES = (83.0, 128.0, 175.0)
"""CAD/MWh: Ontario Energy Board, time-of-use prices from 1 May 2016 and from 1 November 2015."""
SELL = 50.0
"""CAD/MWh, an assumption of this case."""

VOLTAGE_MARGIN_PU = 0.002
STATE_OF_CHARGE = 0.5
BATTERY_WEAR, WIND_COST, HYDRO_COST = 20.0, 5.0, 5.0
BIOMASS_COST, BIOMASS_COST_QUADRATIC = 90.0, 40.0
"""Currency/MWh (and currency/MWh/MW): assumptions of this case."""


def days() -> list[date]:
    """Return the days of both weeks."""
    return [start + timedelta(days=k) for start in WEEKS for k in range(DAY_COUNT)]


def tariff(day: date) -> tuple[np.ndarray, np.ndarray]:
    """Return buy and sell prices (interval,), CAD/MWh."""
    hour = np.arange(INTERVAL_COUNT) * 24 // INTERVAL_COUNT
    is_summer = 5 <= day.month <= 10
    is_noon = (hour >= 11) & (hour < 17)
    is_shoulder = ((hour >= 7) & (hour < 11)) | ((hour >= 17) & (hour < 19))
    period = np.full(INTERVAL_COUNT, OFF_PEAK)
    if day.weekday() < 5:
        period[is_noon] = ON_PEAK if is_summer else MID_PEAK
        period[is_shoulder] = MID_PEAK if is_summer else ON_PEAK
    prices = np.array(SUMMER_PRICES if is_summer else WINTER_PRICES)
    return prices[period], np.full(INTERVAL_COUNT, SELL)


def open_cut() -> SimbenchGrid:
    """Read the grid and take three feeders and the open lines between feeders out of service."""
    grid = open_simbench(CODE)
    line = grid.net.line
    left_out = line.subnet.isin([*FEEDERS_LEFT_OUT, "MV1.101_Loop_Line"])
    line.loc[left_out, "in_service"] = False
    grid.net.bus["name"] = None  # Buses are named by their SimBench index.
    return grid


def cut(grid: SimbenchGrid, day: date) -> Scenario:
    """Build the scenario of one day, rounded to what the data are worth."""
    buy, sell = tariff(day)
    season = "summer" if day.month == 7 else "winter"
    choices = ImportChoices(
        name=f"simbench-rural-{day}",
        description=f"Rural 20 kV grid, {season} day, cut from SimBench {CODE}; ODbL 1.0",
        currency="CAD",
        buy=buy,
        sell=sell,
        state_of_charge=STATE_OF_CHARGE,
    )
    imported = from_simbench(grid, day.isoformat(), choices=choices)
    network = dataclasses.replace(
        imported.network,
        branches=tuple(_rounded_branch(branch) for branch in imported.network.branches),
        voltage_margin_pu=VOLTAGE_MARGIN_PU,
    )
    return dataclasses.replace(
        imported,
        network=network,
        devices=tuple(_rounded_device(device, grid) for device in imported.devices),
        load_p_mw=_rounded(imported.load_p_mw),
        load_q_mvar=_rounded(imported.load_q_mvar),
    )


def _rounded(power: np.ndarray) -> np.ndarray:
    """Round to 100 W; adding zero turns -0 into 0."""
    return np.round(power, 4) + 0.0


def _rounded_branch(branch: Branch) -> Branch:
    figures = ("resistance_pu", "reactance_pu", "rating_mva", "charging_pu")
    return dataclasses.replace(
        branch, **{name: float(f"{getattr(branch, name):.6g}") for name in figures}
    )


def _rounded_device(device: Device, grid: SimbenchGrid) -> Device:
    if isinstance(device, Battery):
        energy = round(device.energy_max_mwh, 4)
        share = round(STATE_OF_CHARGE * energy, 5)
        return dataclasses.replace(
            device,
            charge_max_mw=round(device.charge_max_mw, 4),
            discharge_max_mw=round(device.discharge_max_mw, 4),
            energy_max_mwh=energy,
            energy_initial_mwh=share,
            energy_final_min_mwh=share,
            cost_linear=BATTERY_WEAR,
        )
    if isinstance(device, Generator):
        kind = grid.net.sgen.type[int(device.name.removeprefix("generator"))]
        is_hydro = "Hydro" in kind
        return dataclasses.replace(
            device,
            p_max_mw=round(device.p_max_mw, 4),
            cost_linear=HYDRO_COST if is_hydro else BIOMASS_COST,
            cost_quadratic=0.0 if is_hydro else BIOMASS_COST_QUADRATIC,
        )
    return dataclasses.replace(
        device,
        available_mw=_rounded(device.available_mw),
        p_max_mw=round(device.p_max_mw, 4),
        cost_linear=WIND_COST if isinstance(device, Wind) else 0.0,
    )


def main(out: Path) -> None:
    """Write all days into folders below ``out``; folders of the same names are replaced."""
    grid = open_cut()
    for day in days():
        scenario = cut(grid, day)
        old = out / scenario.name
        if (old / "scenario.toml").is_file():
            shutil.rmtree(old)
        print(save_scenario(scenario, old))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "scenarios"))
