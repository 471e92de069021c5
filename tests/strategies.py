"""Random radial networks and days with all kinds of devices, feasible by construction."""

import numpy as np
from hypothesis import strategies as st

from veilgrid.grid.device import (
    Battery,
    Device,
    ElectricVehicleCharger,
    FlexibleLoad,
    Generator,
    HeatPump,
    Inverter,
    Photovoltaic,
    Wind,
)
from veilgrid.grid.horizon import Horizon
from veilgrid.grid.network import Branch, Bus, BusId, Floats, Network
from veilgrid.grid.scenario import Scenario


def figures(low: float, high: float, digits: int = 4) -> st.SearchStrategy[float]:
    """Numbers with few digits, as people write them."""
    scale = 10**digits
    whole = st.integers(round(low * scale), round(high * scale))
    return whole.map(lambda number: number / scale)


def series(count: int, low: float, high: float, digits: int = 4) -> st.SearchStrategy[Floats]:
    """One figure an interval, (interval,)."""
    values = st.lists(figures(low, high, digits), min_size=count, max_size=count)
    return values.map(lambda listed: np.array(listed, dtype=np.float64))


@st.composite
def networks(
    draw: st.DrawFn,
    bus_count_min: int = 2,
    bus_count_max: int = 8,
    *,
    has_limits: bool = False,
    has_charging: bool = True,
) -> Network:
    """Draw a radial network; buses and branches are listed in any order."""
    count = draw(st.integers(bus_count_min, bus_count_max))
    names = [BusId(f"b{k}") for k in range(count)]
    branches = [
        Branch(
            parent=names[draw(st.integers(0, child - 1))],
            child=names[child],
            resistance_pu=draw(figures(0.0, 0.02)),
            reactance_pu=draw(figures(0.0, 0.02)),
            rating_mva=draw(figures(0.5, 3.0)) if has_limits and draw(st.booleans()) else np.inf,
            charging_pu=draw(figures(0.0, 0.002)) if has_charging else 0.0,
        )
        for child in range(1, count)
    ]
    buses = [Bus(name=name, kind="customer" if k else "slack") for k, name in enumerate(names)]
    return Network(
        buses=tuple(draw(st.permutations(buses))),
        branches=tuple(draw(st.permutations(branches))),
        base_mva=draw(st.sampled_from([1.0, 0.5, 10.0])),
        base_kv=draw(st.sampled_from([10.0, 20.0])),
        slack_bus=names[0],
        slack_voltage_pu=draw(figures(0.98, 1.04, 3)),
        voltage_min_pu=draw(figures(0.90, 0.94, 3)) if has_limits else None,
        voltage_max_pu=draw(figures(1.06, 1.10, 3)) if has_limits else None,
        voltage_margin_pu=0.002 if has_limits else 0.0,
    )


def _photovoltaic(draw: st.DrawFn, name: str, bus: BusId, horizon: Horizon) -> Device:
    return Photovoltaic(
        name=name,
        bus=bus,
        available_mw=draw(series(horizon.interval_count, 0.0, 0.5)),
        p_max_mw=0.5,
        cost_linear=draw(figures(0.0, 20.0, 1)),
        cost_quadratic=draw(figures(0.0, 20.0, 1)),
        s_max_mva=draw(st.none() | figures(0.2, 0.6)),
    )


def _wind(draw: st.DrawFn, name: str, bus: BusId, horizon: Horizon) -> Device:
    available = draw(series(horizon.interval_count, 0.0, 0.8))
    per_p = draw(figures(-0.3, 0.3, 2))
    return Wind(name=name, bus=bus, available_mw=available, p_max_mw=0.8, q_per_p=per_p)


def _generator(draw: st.DrawFn, name: str, bus: BusId, horizon: Horizon) -> Device:
    low = draw(figures(0.0, 0.2))
    return Generator(
        name=name,
        bus=bus,
        p_min_mw=low,
        p_max_mw=low + draw(st.sampled_from([0.0, 0.25, 0.5])),
        q_per_p=draw(figures(0.0, 0.5, 2)),
        cost_linear=draw(figures(20.0, 120.0, 1)),
        cost_quadratic=draw(figures(1.0, 100.0, 1)),
    )


def _battery(draw: st.DrawFn, name: str, bus: BusId, horizon: Horizon) -> Device:
    energy, power = draw(figures(0.1, 1.0)), draw(figures(0.05, 0.5))
    initial = round(energy * draw(figures(0.0, 1.0, 2)), 4)
    efficiency = draw(figures(0.85, 1.0, 2))
    reach = initial + 0.9 * power * efficiency * horizon.hours * horizon.interval_count
    final = np.floor(1e4 * min(reach, energy) * draw(figures(0.0, 1.0, 2))) / 1e4
    return Battery(
        name=name,
        bus=bus,
        charge_max_mw=power,
        discharge_max_mw=draw(figures(0.05, 0.5)),
        energy_max_mwh=energy,
        energy_initial_mwh=min(initial, energy),
        energy_final_min_mwh=float(final),
        charge_efficiency=efficiency,
        discharge_efficiency=draw(figures(0.85, 1.0, 2)),
        cost_linear=draw(figures(0.0, 20.0, 1)),
        cost_quadratic=draw(figures(0.0, 5.0, 1)),
        s_max_mva=draw(st.none() | figures(0.5, 0.6)),
    )


def _span(draw: st.DrawFn, horizon: Horizon) -> tuple[int, int]:
    start = draw(st.integers(0, horizon.interval_count - 1))
    return start, draw(st.integers(start + 1, horizon.interval_count))


def _flexible_load(draw: st.DrawFn, name: str, bus: BusId, horizon: Horizon) -> Device:
    start, end = _span(draw, horizon)
    low, wide = draw(figures(0.0, 0.1)), draw(figures(0.0, 0.3))
    hours = (end - start) * horizon.hours
    return FlexibleLoad(
        name=name,
        bus=bus,
        p_min_mw=low,
        p_max_mw=low + wide,
        energy_required_mwh=(low + wide * draw(figures(0.0, 1.0, 2))) * hours,
        window_start=start,
        window_end=end,
        q_per_p=draw(figures(0.0, 0.4, 2)),
    )


def _ev_charger(draw: st.DrawFn, name: str, bus: BusId, horizon: Horizon) -> Device:
    start, end = _span(draw, horizon)
    power, efficiency = draw(figures(0.01, 0.2)), draw(figures(0.85, 1.0, 2))
    reach = power * efficiency * (end - start) * horizon.hours
    required = reach * draw(figures(0.0, 1.0, 2))
    return ElectricVehicleCharger(
        name=name,
        bus=bus,
        charge_max_mw=power,
        energy_required_mwh=required,
        energy_max_mwh=draw(st.sampled_from([required, reach + 1.0, np.inf])),
        window_start=start,
        window_end=end,
        charge_efficiency=efficiency,
    )


def _heat_pump(draw: st.DrawFn, name: str, bus: BusId, horizon: Horizon) -> Device:
    power, cop = draw(figures(0.01, 0.2)), draw(figures(2.0, 4.0, 1))
    store = round(power * cop * draw(figures(0.0, 4.0, 1)), 4)
    initial = round(store * draw(figures(0.0, 1.0, 2)), 4)
    share = draw(series(horizon.interval_count, 0.0, 0.9))
    return HeatPump(
        name=name,
        bus=bus,
        p_max_mw=power,
        heat_mw=np.round(share * power * cop, 6),
        cop=cop,
        energy_max_mwh=store,
        energy_initial_mwh=min(initial, store),
        energy_final_min_mwh=min(initial, store) / 2.0,
        loss_per_hour=draw(st.sampled_from([0.0, 0.01])),
        cost_linear=draw(figures(0.0, 5.0, 1)),
    )


def _inverter(draw: st.DrawFn, name: str, bus: BusId, horizon: Horizon) -> Device:
    return Inverter(name=name, bus=bus, s_max_mva=draw(figures(0.0, 0.3)))


DRAWERS = {
    "pv": _photovoltaic,
    "wind": _wind,
    "generator": _generator,
    "battery": _battery,
    "flexible_load": _flexible_load,
    "ev_charger": _ev_charger,
    "heat_pump": _heat_pump,
    "inverter": _inverter,
}


@st.composite
def horizons(draw: st.DrawFn, interval_count_max: int = 6) -> Horizon:
    """Draw a short horizon."""
    return Horizon(
        start="2026-03-01T00:00:00+01:00",
        interval_minutes=draw(st.sampled_from([15, 30, 60])),
        interval_count=draw(st.integers(1, interval_count_max)),
    )


@st.composite
def devices(draw: st.DrawFn, kind: str, horizon: Horizon, bus: str = "b1") -> Device:
    """Draw one device of a kind."""
    return DRAWERS[kind](draw, f"{kind}-{bus}", BusId(bus), horizon)


@st.composite
def scenarios(
    draw: st.DrawFn,
    bus_count_max: int = 6,
    interval_count_max: int = 6,
    device_count_max: int = 5,
    *,
    has_limits: bool = False,
) -> Scenario:
    """Draw a scenario whose devices can all keep their rules; limits, if any, are wide."""
    horizon = draw(horizons(interval_count_max))
    network = draw(networks(bus_count_max=bus_count_max, has_limits=has_limits))
    customers = [bus.name for bus in network.buses if bus.kind == "customer"]
    chosen = draw(
        st.lists(
            st.tuples(st.sampled_from(sorted(DRAWERS)), st.sampled_from(sorted(customers))),
            max_size=device_count_max,
        )
    )
    built = [
        DRAWERS[kind](draw, f"{kind}{k}", bus, horizon) for k, (kind, bus) in enumerate(chosen)
    ]
    count, buses = horizon.interval_count, len(network.buses)
    load = np.array([draw(series(count, 0.0, 0.4)) for _ in range(buses)])
    # To the cent and not free: where a day is worth less than that, even the oracle fails.
    sell = draw(series(count, 0.0, 100.0, 2))
    spread = draw(series(count, 0.0, 100.0, 2))
    return Scenario(
        name=draw(st.sampled_from(["drawn", 'with "quotes"', "ünïcode, comma"])),
        description="drawn by hypothesis",
        horizon=horizon,
        currency="EUR",
        network=network,
        devices=tuple(built),
        load_p_mw=load,
        load_q_mvar=np.round(load * draw(figures(-0.2, 0.5, 2)), 6) + 0.0,
        buy=np.round(np.maximum(sell + spread, 1.0), 2),
        sell=sell,
    )
