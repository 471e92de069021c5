"""What everybody is told before gate closure has nothing of a site's plans in it."""

from dataclasses import replace

import numpy as np
import pytest

from veilgrid.grid.device import Device, ElectricVehicleCharger, FlexibleLoad
from veilgrid.grid.lindistflow import Limits
from veilgrid.grid.network import BusId
from veilgrid.grid.scenario import Scenario
from veilgrid.roles.sealed.bid import Shape, bid_of
from veilgrid.roles.sealed.day import PublicDay

from .sealed_days import run_day, small


def car(start: int, end: int) -> Device:
    return ElectricVehicleCharger(
        name="car",
        bus=BusId("b"),
        charge_max_mw=0.1,
        energy_required_mwh=0.05,
        window_start=start,
        window_end=end,
        charge_efficiency=0.9,
    )


def washing(start: int, end: int) -> Device:
    return FlexibleLoad(
        name="washing",
        bus=BusId("b"),
        p_max_mw=0.1,
        energy_required_mwh=0.05,
        window_start=start,
        window_end=end,
    )


def with_device(device: Device) -> Scenario:
    scenario = small(4)
    return replace(scenario, devices=(*scenario.devices, device))


@pytest.mark.parametrize("device", [car, washing])
def test_nobody_is_told_when_a_car_comes_and_goes(device: object) -> None:
    """The places of a site's coefficients are public; its absence must not be read from them."""
    days = [with_device(device(*window)).day() for window in ((0, 2), (1, 4))]  # type: ignore[operator]
    shapes = [Shape.of(day.sites[2]) for day in days]
    for name in ("rows", "columns", "is_equality", "has_lower", "has_upper", "curved"):
        np.testing.assert_array_equal(getattr(shapes[0], name), getattr(shapes[1], name))
    sizes = {len(bid_of(day.sites[2], 128.0, 0.0)) for day in days}
    assert sizes == {sum(shapes[0].bid_parts.values())}


def test_a_day_with_a_car_is_certified_on_the_whole_pattern() -> None:
    """Zero coefficients are committed to and multiplied like others."""
    scenario = with_device(car(1, 3))
    ended = run_day(scenario.day(), Limits.of(scenario.network))
    assert ended.public["status"] == "converged"
    assert ended.excluded == {}


def test_the_least_turnover_tells_loads_only_coarsely() -> None:
    """It is a sum over all loads; exactly, it would be one equation about them."""
    scenario = small(4)
    found = set()
    for factor in (1.0, 1.01, 1.02, 1.03):
        day = replace(scenario, load_p_mw=factor * scenario.load_p_mw).day()
        found.add(PublicDay.of(day, Limits.of(scenario.network)).turnover_min)
    assert len(found) <= 2
    assert all(np.log2(one) == round(np.log2(one)) for one in found)
