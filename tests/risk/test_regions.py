"""Regions first, then one committee: the same sum, and less to do for the big one."""

import numpy as np
import pytest

from veilgrid.cli._aggregate import Setting, aggregate_readings
from veilgrid.cli._readings import Readings
from veilgrid.cli._regions import sum_by_region
from veilgrid.errors import InputError
from veilgrid.risk.aggregate import Question, Source

COUNT = 24
VALUES = np.random.default_rng(2).uniform(-3, 9, COUNT).round(4)
REGIONS = [f"feeder {row % 4}" for row in range(COUNT)]
SETTING = Setting(seed=3)


def readings() -> Readings:
    sources = tuple(Source(f"s{row}", "household", -5.0, 10.0) for row in range(COUNT))
    values: list[float | None] = VALUES.tolist()
    values[3], values[8] = 1e6, None
    return Readings(sources, tuple(values))


@pytest.mark.parametrize("way", ["clear", "committee"])
def test_sum_by_region_is_the_flat_sum_and_costs_the_big_committee_less(way: str) -> None:
    """Bad and missing readings are left out where they arise; regions see their own sums only."""
    kept = [row for row in range(COUNT) if row not in (3, 8)]
    flat = aggregate_readings(readings(), Question(function="sum"), SETTING).report
    found = sum_by_region(readings(), REGIONS, way, SETTING)  # type: ignore[arg-type]
    assert flat["value"] == pytest.approx(VALUES[kept].sum(), abs=1e-5)
    assert found.report["value"] == pytest.approx(flat["value"], abs=1e-5)
    assert found.report["accepted"] == 4
    assert found.report["bytes"] < flat["bytes"]
    for region, total in found.sums.items():
        rows = [row for row in kept if REGIONS[row] == region]
        assert total == pytest.approx(VALUES[rows].sum(), abs=1e-5)
    assert len(found.regional_seconds) == (4 if way == "committee" else 0)


def test_one_region_is_no_hierarchy() -> None:
    with pytest.raises(InputError, match="two at least"):
        sum_by_region(readings(), ["a"] * COUNT, "clear", SETTING)
    with pytest.raises(InputError, match="one for each"):
        sum_by_region(readings(), ["a", "b"], "clear", SETTING)
