"""Each device's block: by hand, by property, and what it does uncontrolled."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies import DRAWERS, devices, horizons
from veilgrid.grid.device import (
    DEVICE_KINDS,
    Battery,
    ElectricVehicleCharger,
    FlexibleLoad,
    Generator,
    HeatPump,
    Inverter,
    Photovoltaic,
)
from veilgrid.grid.horizon import Horizon
from veilgrid.grid.network import BusId

BUS = BusId("b1")
HOURLY = Horizon(start="2026-03-01T00:00:00+01:00", interval_minutes=60, interval_count=4)


def _excess(block, x) -> float:
    """By how much x breaks the block's constraints."""
    rows = block.matrix @ x
    gaps = (block.lower - x, x - block.upper, block.row_lower - rows, rows - block.row_upper)
    return max(float(gap.max(initial=0.0)) for gap in gaps)


def test_every_kind_has_a_strategy() -> None:
    assert set(DRAWERS) == set(DEVICE_KINDS)


@pytest.mark.parametrize("kind", sorted(DEVICE_KINDS))
@given(data=st.data(), base_mva=st.sampled_from([1.0, 0.1, 25.0]))
def test_uncontrolled_keeps_the_devices_own_rules(kind, data, base_mva) -> None:
    horizon = data.draw(horizons())
    device = data.draw(devices(kind, horizon))
    assert not list(device.findings(horizon))
    block, x = device.block(horizon, base_mva), device.uncontrolled(horizon, base_mva)
    assert x.shape == block.lower.shape
    assert _excess(block, x) * base_mva < 1e-9


@pytest.mark.parametrize("kind", sorted(DEVICE_KINDS))
@given(data=st.data())
def test_the_base_changes_no_cost_and_no_power(kind, data) -> None:
    horizon = data.draw(horizons())
    device = data.draw(devices(kind, horizon))
    one, other = device.block(horizon, 1.0), device.block(horizon, 4.0)
    x = device.uncontrolled(horizon, 1.0)
    y = device.uncontrolled(horizon, 4.0)
    np.testing.assert_allclose(one.inject_p @ x, 4.0 * (other.inject_p @ y), atol=1e-12)
    np.testing.assert_allclose(one.inject_q @ x, 4.0 * (other.inject_q @ y), atol=1e-12)

    def cost(block, z):
        return (0.5 * block.quadratic * z) @ z + block.linear @ z

    assert cost(one, x) == pytest.approx(cost(other, y), abs=1e-9)


@given(data=st.data())
def test_a_battery_cannot_create_energy(data) -> None:
    horizon = data.draw(horizons())
    battery = data.draw(devices("battery", horizon))
    assert isinstance(battery, Battery)
    battery = dataclasses.replace(battery, s_max_mva=None, energy_final_min_mwh=0.0)
    block, count, h = battery.block(horizon, 1.0), horizon.interval_count, horizon.hours
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    charge = rng.uniform(0, battery.charge_max_mw, count)
    discharge = rng.uniform(0, battery.discharge_max_mw, count)
    energy, stored = [], battery.energy_initial_mwh
    for t in range(count):
        stored += battery.charge_efficiency * charge[t] * h
        stored -= discharge[t] * h / battery.discharge_efficiency
        energy.append(stored)
    x = np.concatenate([charge, discharge, energy])
    rows = block.matrix @ x
    np.testing.assert_allclose(rows, block.row_lower, atol=1e-12)
    is_within = min(energy) >= 0.0 and max(energy) <= battery.energy_max_mwh
    assert (_excess(block, x) < 1e-12) == is_within
    np.testing.assert_allclose(block.inject_p @ x, discharge - charge, atol=1e-15)


def test_a_generators_cost_by_hand() -> None:
    generator = Generator(
        name="g", bus=BUS, p_max_mw=2.0, q_per_p=0.5, cost_linear=80.0, cost_quadratic=10.0
    )
    horizon = Horizon(start="2026-03-01T00:00:00+01:00", interval_minutes=15, interval_count=1)
    block = generator.block(horizon, 10.0)
    x = np.array([0.15])  # 1.5 MW for a quarter of an hour.
    assert 0.5 * block.quadratic @ x**2 + block.linear @ x == pytest.approx(
        0.25 * (80.0 * 1.5 + 0.5 * 10.0 * 1.5**2)
    )
    assert (block.inject_q @ x)[0] == pytest.approx(0.075)


def test_an_inverters_polygon_lies_inside_its_circle() -> None:
    device = Photovoltaic(name="p", bus=BUS, available_mw=np.full(4, 1.0), s_max_mva=1.0)
    block = device.block(HOURLY, 1.0)
    for angle in np.linspace(0.0, np.pi, 181):
        p, q = np.sin(angle), np.cos(angle)
        inside = np.concatenate([np.full(4, 0.98 * p), np.full(4, 0.98 * q)])
        outside = np.concatenate([np.full(4, 1.001 * p), np.full(4, 1.001 * q)])
        assert _excess(block, inside) < 1e-12
        assert _excess(block, outside) > 0.0


def test_a_car_charges_at_full_power_from_its_arrival() -> None:
    car = ElectricVehicleCharger(
        name="c",
        bus=BUS,
        charge_max_mw=0.2,
        energy_required_mwh=0.27,
        window_start=1,
        window_end=4,
        charge_efficiency=0.9,
    )
    np.testing.assert_allclose(car.uncontrolled(HOURLY, 2.0), [0.0, 0.1, 0.05, 0.0])


def test_a_flexible_load_runs_evenly_over_its_window() -> None:
    load = FlexibleLoad(
        name="f", bus=BUS, p_max_mw=1.0, energy_required_mwh=0.6, window_start=0, window_end=3
    )
    np.testing.assert_allclose(load.uncontrolled(HOURLY, 1.0), [0.2, 0.2, 0.2, 0.0])


def test_a_heat_pump_fills_its_store_before_a_peak_that_it_cannot_follow() -> None:
    pump = HeatPump(
        name="h", bus=BUS, p_max_mw=0.1, heat_mw=np.array([0, 0, 0.3, 0.5]), energy_max_mwh=0.3
    )
    assert not list(pump.findings(HOURLY))
    power = pump.uncontrolled(HOURLY, 1.0)[:4]
    np.testing.assert_allclose(power, [0.0, 0.2 / 3, 0.1, 0.1], atol=1e-12)


def test_a_heat_pump_that_is_too_small_is_found() -> None:
    pump = HeatPump(name="h", bus=BUS, p_max_mw=0.1, heat_mw=np.array([0, 0, 0.3, 0.5]))
    (finding,) = pump.findings(HOURLY)
    assert finding.where == "p_max_mw"
    assert "interval 3" in finding.problem


@pytest.mark.parametrize("kind", ["battery", "heat_pump"])
@given(data=st.data())
def test_a_store_is_bounded_and_ends_with_what_it_must(kind, data) -> None:
    horizon = data.draw(horizons())
    device = data.draw(devices(kind, horizon))
    block = device.block(horizon, 2.0)
    start = horizon.interval_count * block.groups.index("energy")
    energy = slice(start, start + horizon.interval_count)
    floor = np.zeros(horizon.interval_count)
    floor[-1] = device.energy_final_min_mwh / 2.0
    np.testing.assert_array_equal(block.lower[energy], floor)
    assert set(block.upper[energy].tolist()) == {device.energy_max_mwh / 2.0}


def test_a_flexible_load_and_a_car_must_get_their_energy() -> None:
    common = {"name": "d", "bus": BUS, "energy_required_mwh": 0.6, "window_start": 1}
    load = FlexibleLoad(**common, window_end=3, p_max_mw=0.5).block(HOURLY, 2.0)
    assert load.upper.tolist() == [0.0, 0.25, 0.25, 0.0]
    assert load.row_lower.tolist() == load.row_upper.tolist() == [0.3]
    assert (load.matrix @ np.array([0.0, 0.2, 0.1, 0.0])).tolist() == pytest.approx([0.3])
    car = ElectricVehicleCharger(
        **common, window_end=4, charge_max_mw=0.4, charge_efficiency=0.5, energy_max_mwh=0.7
    ).block(HOURLY, 2.0)
    assert car.upper.tolist() == [0.0, 0.2, 0.2, 0.2]
    assert (car.row_lower.tolist(), car.row_upper.tolist()) == ([0.3], [0.35])
    assert (car.matrix @ np.array([0.0, 0.2, 0.2, 0.2])).tolist() == pytest.approx([0.3])


def test_a_battery_that_must_end_fuller_charges_uncontrolled() -> None:
    battery = Battery(
        name="b",
        bus=BUS,
        charge_max_mw=0.1,
        discharge_max_mw=0.1,
        energy_max_mwh=1.0,
        energy_initial_mwh=0.2,
        energy_final_min_mwh=0.35,
    )
    np.testing.assert_allclose(battery.uncontrolled(HOURLY, 1.0)[:4], [0.1, 0.05, 0.0, 0.0])


def test_a_compensator_may_give_and_take_reactive_power() -> None:
    block = Inverter(name="i", bus=BUS, s_max_mva=0.5).block(HOURLY, 1.0)
    assert block.lower[0] == -0.5
    assert block.upper[0] == 0.5
    assert block.inject_p.nnz == 0 or not block.inject_p.toarray().any()
