"""A feeder of four buses and four intervals: small enough to be simulated again and again."""

import numpy as np

from veilgrid.grid.day import Day
from veilgrid.grid.device import Battery, Generator
from veilgrid.grid.horizon import Horizon
from veilgrid.grid.network import Branch, Bus, BusId, Network
from veilgrid.grid.scenario import Scenario

INTERVALS = 4


def small_day() -> Day:
    """The day of the small scenario."""
    return small_scenario().day()


def small_scenario() -> Scenario:
    """A battery and a dear generator behind a substation with a changing tariff."""
    names = [BusId(name) for name in ("s", "a", "b", "c")]
    network = Network(
        buses=tuple(Bus(name=n, kind="customer" if k else "slack") for k, n in enumerate(names)),
        branches=tuple(
            Branch(
                parent=names[k - 1],
                child=names[k],
                resistance_pu=0.01,
                reactance_pu=0.01,
                rating_mva=np.inf,
            )
            for k in range(1, 4)
        ),
        base_mva=1.0,
        base_kv=10.0,
        slack_bus=names[0],
        slack_voltage_pu=1.0,
        voltage_min_pu=0.9,
        voltage_max_pu=1.1,
        voltage_margin_pu=0.0,
    )
    times = np.arange(INTERVALS)
    load = 0.2 + 0.1 * np.abs(np.cos(times + np.arange(4)[:, np.newaxis]))
    load[0] = 0.0
    devices = (
        Battery(
            name="store",
            bus=names[1],
            charge_max_mw=0.2,
            discharge_max_mw=0.2,
            energy_max_mwh=0.3,
            energy_initial_mwh=0.1,
            energy_final_min_mwh=0.1,
            charge_efficiency=0.95,
            discharge_efficiency=0.95,
            cost_linear=1.0,
        ),
        Generator(
            name="gas",
            bus=names[2],
            p_min_mw=0.0,
            p_max_mw=0.4,
            q_per_p=0.1,
            cost_linear=50.0,
            cost_quadratic=60.0,
        ),
    )
    return Scenario(
        name="small",
        description="",
        currency="EUR",
        horizon=Horizon(
            start="2024-05-01T00:00:00+02:00", interval_count=INTERVALS, interval_minutes=60
        ),
        network=network,
        devices=devices,
        load_p_mw=load,
        load_q_mvar=0.2 * load,
        buy=60.0 + 20.0 * np.sin(times),
        sell=30.0 + 10.0 * np.sin(times),
    )
