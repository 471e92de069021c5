"""Whether the figures of a scenario can be meant: kW entered as MW, Ohm as per-unit and the like.

A figure is refused only where no distribution network could have it; what is merely unusual
becomes a remark.
"""

from typing import Any

import numpy as np

from veilgrid.grid._table import Notes, likewise
from veilgrid.grid.device import Battery, Device, HeatPump
from veilgrid.grid.lindistflow import flows
from veilgrid.grid.network import Branch, Floats, Integers, Network

POWER_PER_KV = 8.0
"""MW per kV of nominal voltage beyond which no site is connected: about 4.6 kA of current."""
OHM_PER_KV = 5.0
"""Ohm per kV beyond which a branch carries less than kV/10 MW."""
RATING_PER_KV = 40.0
CHARGING_PER_KV_SQUARED = 0.05
PRICE_MAX = 50_000.0
"""Currency/MWh; above every market's price cap in the currencies of :data:`HARD_CURRENCIES`."""
WEAK_PRICE_MAX = 50_000_000.0
HARD_CURRENCIES = ("EUR", "USD", "GBP", "CHF", "CNY", "AUD", "CAD", "DKK", "SEK", "NOK", "PLN")
VOLTAGE_SQUARED_RANGE = (0.25, 2.25)
SPIKE = 300.0
LONE_POWER_PER_KV, LONE_SHARE = 1.0, 5.0
"""MW per kV, and multiple of all other loads, beyond which one bus among small ones is a slip."""
HOURS_MAX = 500.0
"""Hours at full power that no battery lasts."""


def check_plausible(
    parts: dict[str, Any],
    branches: list[tuple[int, Branch]],
    device_lines: dict[str, int],
    notes: Notes,
) -> None:
    """Note figures that are out of range by orders of magnitude.

    ``parts`` are the fields of a Scenario that keeps all other rules, ``branches`` come with their
    rows in branches.csv, ``device_lines`` are the rows of devices in devices.csv.
    """
    network: Network = parts["network"]
    before = len(notes.findings)
    for line, branch in branches:
        _check_branch(line, branch, network, notes)
    for device in parts["devices"]:
        _check_device(device, device_lines[device.name], parts, notes)
    names = [str(bus.name) for bus in network.buses]
    for file, load in (("load_p_mw.csv", "load_p_mw"), ("load_q_mvar.csv", "load_q_mvar")):
        noted = len(notes.findings)
        _check_power(file, names, parts[load], network, notes)
        if len(notes.findings) == noted:
            _check_spikes(file, names, parts[load], notes)
        if len(notes.findings) == noted:
            _check_lone_bus(file, names, parts[load], network, notes)
    _check_prices(parts, notes)
    if len(notes.findings) == before:
        _check_voltages(parts, notes)


def _limit(kilovolt: float, per_kv: float) -> float:
    return per_kv * kilovolt


def _check_branch(line: int, branch: Branch, network: Network, notes: Notes) -> None:
    where = f"branches.csv row {line}, column"
    ohm = network.base_kv**2 / network.base_mva
    limit = _limit(network.base_kv, OHM_PER_KV)
    for column, value in (("r_pu", branch.resistance_pu), ("x_pu", branch.reactance_pu)):
        if value * ohm > limit:
            notes.fault(
                f"{where} {column}",
                f"is {value:g}, that is {value * ohm:.4g} Ohm in a network of "
                f"{network.base_kv:g} kV; at most {limit:g} Ohm is plausible",
                f"per-unit = Ohm divided by {ohm:g}; check base_kv and base_mva",
            )
    if np.isfinite(branch.rating_mva) and branch.rating_mva > RATING_PER_KV * network.base_kv:
        notes.fault(
            f"{where} rating_mva",
            f"is {branch.rating_mva:g}, too high for {network.base_kv:g} kV",
            "in MVA, not kVA; leave the cell empty for an unlimited branch",
        )
    charging = branch.charging_pu * network.base_mva
    if charging > CHARGING_PER_KV_SQUARED * network.base_kv**2:
        notes.fault(
            f"{where} b_pu",
            f"is {branch.charging_pu:g}, that is {charging:.4g} Mvar of line charging",
            f"per-unit = Siemens times {ohm:g}",
        )


def _check_device(device: Device, line: int, parts: dict[str, Any], notes: Notes) -> None:
    network: Network = parts["network"]
    where = f"devices.csv row {line}, column"
    limit = _limit(network.base_kv, POWER_PER_KV)
    for column in ("p_min_mw", "p_max_mw", "charge_max_mw", "discharge_max_mw", "s_max_mva"):
        value = getattr(device, column, None)
        if value is not None and np.isfinite(value) and value > limit:
            notes.fault(
                f"{where} {column}",
                f"is {value:g}, no site at {network.base_kv:g} kV has more than {limit:g}",
                "in MW, not kW",
            )
    for column, high in (("q_per_p", 10.0), ("cop", 30.0)):
        if abs(getattr(device, column, 0.0)) > high:
            notes.fault(f"{where} {column}", f"is {getattr(device, column):g}, above {high:g}")
    _check_costs(device, where, parts["currency"], notes)
    if isinstance(device, Battery):
        _check_duration(device, where, notes)
    if not isinstance(device, HeatPump) and hasattr(device, "available_mw"):
        _check_forecast(device.name, device.available_mw, device.p_max_mw, limit, notes)  # type: ignore[attr-defined]


def _check_costs(device: Device, where: str, currency: str, notes: Notes) -> None:
    """Note marginal costs at full power that no price reaches."""
    limit = _price_limit(currency)
    powers = ("p_max_mw", "discharge_max_mw", "charge_max_mw")
    sizes = [getattr(device, name, 0.0) for name in powers]
    size = max([size for size in sizes if np.isfinite(size)], default=0.0)
    linear = float(getattr(device, "cost_linear", 0.0))
    quadratic = float(getattr(device, "cost_quadratic", 0.0))
    for column, value, cost in (
        ("cost_linear", linear, abs(linear)),
        ("cost_quadratic", quadratic, quadratic * size),
    ):
        if cost > limit:
            problem = f"is {value:g}, so power costs {cost:g} {currency}/MWh, above {limit:g}"
            notes.fault(f"{where} {column}", problem, "per MWh and MW, not per kWh or kW")


def _check_duration(battery: Battery, where: str, notes: Notes) -> None:
    power = max(battery.charge_max_mw, battery.discharge_max_mw)
    energy = battery.energy_max_mwh
    if power > 0.0 and energy / power > HOURS_MAX:
        notes.fault(
            f"{where} energy_max_mwh",
            f"is {energy:g}, {energy / power:.4g} hours at full power {power:g} MW",
            "in MWh, not kWh",
        )
    elif energy > 0.0 and power / energy > HOURS_MAX:
        notes.fault(
            f"{where} charge_max_mw",
            f"power {power:g} MW empties {energy:g} MWh in {3600.0 * energy / power:.2g} s",
            "in MW, not kW",
        )


def _check_forecast(name: str, available: Floats, high: float, limit: float, notes: Notes) -> None:
    peak, position = float(available.max(initial=0.0)), int(available.argmax())
    here = f"available_mw.csv row {position + 2}, column {name}"
    if peak > limit or peak > 50.0 * high:
        notes.fault(here, f"is {peak:g}, far above p_max_mw {high:g}", "in MW, not kW")
    elif peak > 1.01 * high:
        problem = f"peaks at {peak:g}, above p_max_mw {high:g}"
        notes.remark(here, problem, "the forecast counts, p_max_mw does not cut it")


def _check_power(
    file: str, names: list[str], values: Floats, network: Network, notes: Notes
) -> None:
    """Note loads beyond what a site at this voltage can draw, (bus, interval)."""
    limit = _limit(network.base_kv, POWER_PER_KV)
    for index in np.flatnonzero(np.abs(values).max(axis=1) > limit):
        above = np.flatnonzero(np.abs(values[index]) > limit)
        more = likewise(len(above) - 1)
        notes.fault(
            f"{file} row {above[0] + 2}, column {names[index]}",
            f"is {values[index, above[0]]:g}, no site at {network.base_kv:g} kV has more than "
            f"{limit:g}{more}",
            "in MW and Mvar, not kW and kvar",
        )


def _check_spikes(file: str, names: list[str], values: Floats, notes: Notes) -> None:
    """Note single values that are hundreds of times what the bus has otherwise."""
    size = np.abs(values)
    total = float(np.median(size.sum(axis=0)))
    for index, own in enumerate(size):
        usual = float(np.median(own[own > 0.0])) if np.any(own > 0.0) else 0.0
        high: Integers = np.flatnonzero((own > SPIKE * usual) & (own > 0.5 * total))
        if usual and 0 < len(high) <= 0.1 * len(own):
            notes.fault(
                f"{file} row {high[0] + 2}, column {names[index]}",
                f"is {values[index, high[0]]:g}, {own[high[0]] / usual:.0f} times what the bus "
                "has usually",
                "a slip of the decimal point, or kW among MW?",
            )


def _check_lone_bus(
    file: str, names: list[str], values: Floats, network: Network, notes: Notes
) -> None:
    """Note one bus that dwarfs all others: its column may be in kW, the others in MW."""
    peaks = np.abs(values).max(axis=1)
    if np.count_nonzero(peaks) < 5:
        return
    index = int(peaks.argmax())
    peak, others = float(peaks[index]), float(peaks.sum() - peaks[index])
    is_large = peak > LONE_POWER_PER_KV * network.base_kv and peak > LONE_SHARE * others
    if is_large and peak > SPIKE * float(np.median(peaks[peaks > 0.0])):
        row = int(np.abs(values[index]).argmax()) + 2
        notes.fault(
            f"{file} row {row}, column {names[index]}",
            f"is {values[index, row - 2]:g}, all other buses together peak at {others:.3g}",
            "is this column in kW, the others in MW?",
        )


def _price_limit(currency: str) -> float:
    return PRICE_MAX if currency.upper() in HARD_CURRENCIES else WEAK_PRICE_MAX


def _check_prices(parts: dict[str, Any], notes: Notes) -> None:
    currency = parts["currency"]
    limit = _price_limit(currency)
    for column in ("buy", "sell"):
        prices: Floats = parts[column]
        above = np.flatnonzero(np.abs(prices) > limit)
        usual = float(np.median(np.abs(prices)))
        spikes = np.flatnonzero(np.abs(prices) > SPIKE * usual) if usual > 0.0 else above
        if len(above):
            more = likewise(len(above) - 1)
            problem = f"is {prices[above[0]]:g}, beyond {limit:g} {currency}/MWh{more}"
            here = f"tariff.csv row {above[0] + 2}, column {column}"
            notes.fault(here, problem, f"in {currency}/MWh, not a thousandth of it per kWh")
        elif 0 < len(spikes) <= 0.1 * len(prices) and np.abs(prices[spikes]).max() > 1000.0:
            here = f"tariff.csv row {spikes[0] + 2}, column {column}"
            ratio = abs(prices[spikes[0]]) / usual
            notes.fault(
                here,
                f"is {prices[spikes[0]]:g}, {ratio:.0f} times the usual price {usual:g}",
                "a slip of the decimal point?",
            )
    highest = float(np.abs(parts["buy"]).max())
    if currency.upper() in HARD_CURRENCIES and 0.0 < highest < 2.0:
        problem = f"no price exceeds {highest:g} {currency}/MWh"
        notes.remark("tariff.csv column buy", problem, "prices are per MWh, not per kWh")


def _check_voltages(parts: dict[str, Any], notes: Notes) -> None:
    """Note loads that no network with these impedances can carry."""
    network: Network = parts["network"]
    tree, base = network.tree, network.base_mva
    active, reactive = parts["load_p_mw"] / base, parts["load_q_mvar"] / base
    squared = flows(tree, active, reactive).voltage_squared
    low, high = VOLTAGE_SQUARED_RANGE
    bus, interval = np.unravel_index(np.abs(squared - 1.0).argmax(), squared.shape)
    if low <= squared[bus, interval] <= high:
        return
    shared = np.asarray(tree.path[[int(bus)]].multiply(tree.path) @ tree.resistance_pu).ravel()
    culprit = int(np.abs(shared * active[:, interval]).argmax())
    names = [str(each.name) for each in network.buses]
    voltage = float(np.sqrt(max(squared[bus, interval], 0.0)))
    notes.fault(
        f"load_p_mw.csv row {int(interval) + 2}, column {names[culprit]}",
        f"the loads of this interval put bus {names[int(bus)]} at {voltage:.2f} pu: no network "
        "can be run like this",
        "kW entered as MW, or Ohm as per-unit in branches.csv?",
    )
