"""A small finished run, made without any solver: every device as it would be uncontrolled."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from veilgrid.admm.outcome import Coordination, Progress, RunStatus
from veilgrid.grid.device import Battery, Generator, HeatPump, Photovoltaic
from veilgrid.grid.horizon import Horizon
from veilgrid.grid.network import Branch, Bus, BusId, Network
from veilgrid.grid.scenario import Scenario
from veilgrid.report.results import RunRecord
from veilgrid.report.tables import tables_of


def make_scenario(
    names: list[str], *, has_devices: bool = True, has_limits: bool = True, intervals: int = 8
) -> Scenario:
    """Build a feeder: each bus hangs on the one before the last, so that there are laterals."""
    buses = [
        Bus(name=BusId(name), kind="customer" if index else "slack")
        for index, name in enumerate(names)
    ]
    branches = [
        Branch(
            parent=buses[max(0, index - 2)].name,
            child=buses[index].name,
            resistance_pu=0.06 / len(buses) ** 2,
            reactance_pu=0.05 / len(buses) ** 2,
            rating_mva=3.0 if has_limits and index == 1 else np.inf,
        )
        for index in range(1, len(buses))
    ]
    time = np.arange(intervals)
    sun = np.maximum(np.sin((time - 1) / 6 * np.pi), 0.0)
    devices: list[Any] = []
    if has_devices:
        last = buses[-1].name
        devices = [
            Photovoltaic(name="roof", bus=last, available_mw=2.0 * sun, q_per_p=0.1),
            Generator(name="engine", bus=last, p_max_mw=0.4, p_min_mw=0.1, cost_linear=90.0),
            Battery(
                name="cellar",
                bus=buses[len(buses) // 2].name,
                charge_max_mw=0.5,
                discharge_max_mw=0.5,
                energy_max_mwh=1.0,
                energy_initial_mwh=0.5,
            ),
            HeatPump(name="pump", bus=last, p_max_mw=0.3, heat_mw=np.full(intervals, 0.3), cop=3.0),
        ]
    load = np.zeros((len(buses), intervals))
    load[1:] = 0.2 + 0.1 * np.cos(time / 8 * np.pi)
    return Scenario(
        name="six-bus",
        description="a feeder for tests",
        horizon=Horizon(
            start="2016-07-18T21:00:00+02:00", interval_minutes=60, interval_count=intervals
        ),
        currency="EUR",
        network=Network(
            buses=tuple(buses),
            branches=tuple(branches),
            base_mva=2.0,
            base_kv=20.0,
            slack_bus=buses[0].name,
            voltage_min_pu=0.95 if has_limits else None,
            voltage_max_pu=1.05 if has_limits else None,
        ),
        devices=tuple(devices),
        load_p_mw=load,
        load_q_mvar=0.3 * load,
        buy=np.linspace(100.0, 140.0, intervals),
        sell=np.full(intervals, 40.0),
    )


def make_record(
    scenario: Scenario, *, has_plan: bool = True, scheme: str = "exchange"
) -> RunRecord:
    """Finish a run of ``scenario`` by hand."""
    day = scenario.day()
    setpoints = day.uncontrolled
    shape = scenario.load_p_mw.shape
    outcome = Coordination(
        status=RunStatus.CONVERGED if has_plan else RunStatus.INFEASIBLE,
        setpoints=setpoints if has_plan else [],
        price_p=np.broadcast_to(day.buy, shape).copy() if has_plan else np.zeros((0, shape[1])),
        price_q=np.zeros(shape) if has_plan else np.zeros((0, shape[1])),
        history=tuple(Progress(k, 10.0**-k, 100.0 * 10.0**-k, 500.0 + 10.0**-k) for k in (1, 2, 3)),
    )
    sites = [
        {
            "site": bus.name,
            "payment": 10.0 * index,
            "cost": 10.0 * index + 1.0,
            "cost_alone": 11.5 * index + 1.0,
        }
        for index, bus in enumerate(scenario.network.buses)
    ]
    voltage = np.sqrt(day.flows(setpoints).voltage_squared)
    summary = {
        "scheme": scheme,
        "scenario": scenario.name,
        "status": str(outcome.status),
        "cost": 1234.56 if has_plan else None,
        "iterations": 3,
        "primal_residual": 1e-3,
        "dual_residual": 1e-1,
        "seconds": 0.25,
        "certificate": {"accepted": has_plan, "primal": 1e-9, "dual": 1e-9, "gap": 2e-5},
        "ac_check": {"passed": True, "vm_min_pu": 0.98, "vm_max_pu": 1.01, "loading_max": 0.4},
        "settlement": {"sum": 0.0, "individually_rational": True, "sites": sites},
        "messages": 12,
        "bytes": 3456,
    }
    tables = tables_of(
        scenario,
        day,
        outcome,
        voltage_pu=voltage,
        setpoints_uncontrolled=day.load_only,
        voltage_uncontrolled_pu=voltage - 0.001,
        settlement=sites,
    )
    return RunRecord(summary=summary, scenario=scenario, tables=tables)


@pytest.fixture
def scenario() -> Scenario:
    return make_scenario(["station", "a", "b", "c", "d", "e"])


@pytest.fixture
def record(scenario: Scenario) -> RunRecord:
    return make_record(scenario)


@pytest.fixture
def build() -> Callable[..., RunRecord]:
    """Build a run: names of the buses, then what it has or lacks."""

    def built(
        names: list[str], *, has_plan: bool = True, scheme: str = "exchange", **more: Any
    ) -> RunRecord:
        return make_record(make_scenario(names, **more), has_plan=has_plan, scheme=scheme)

    return built
