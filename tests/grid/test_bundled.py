"""The bundled scenarios: what docs/data.md claims of them, and that they can be made again."""

import importlib.util
import json
import sys
from datetime import date
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner

from veilgrid.cli import _import
from veilgrid.errors import ScenarioError
from veilgrid.grid.acflow import ac_flow, electrical_check
from veilgrid.grid.device import DEVICE_KINDS
from veilgrid.grid.import_simbench import SimbenchGrid, from_simbench, open_simbench
from veilgrid.grid.lindistflow import flows
from veilgrid.grid.scenario import BUNDLED_DAY, Scenario
from veilgrid.report.folders import bundled_scenarios, open_scenario

BUNDLED = bundled_scenarios()
DAYS = sorted(name for name in BUNDLED if name.startswith("simbench-rural-"))
TOOL = Path(__file__).parents[2] / "tools" / "cut_simbench.py"


def _uncontrolled(scenario: Scenario):
    day = scenario.day()
    return day.demands(day.uncontrolled)


def test_a_summer_and_a_winter_week_are_bundled_within_three_megabytes() -> None:
    assert len(DAYS) == 14
    assert BUNDLED_DAY in DAYS
    home = BUNDLED["six-bus"].parent
    assert sum(file.stat().st_size for file in home.rglob("*") if file.is_file()) <= 3e6
    notice = (home / "NOTICE.md").read_text()
    assert "ODbL" in notice
    assert "University of Kassel" in notice


def test_uncontrolled_operation_of_the_default_day_breaks_the_upper_voltage_limit() -> None:
    scenario = open_scenario()
    assert scenario.name == BUNDLED_DAY
    check = electrical_check(scenario.network, *_uncontrolled(scenario))
    assert not check.passed
    assert all("voltage_max_pu" in finding.problem for finding in check.findings)
    assert check.loading_max is not None
    assert check.loading_max < 1.0


def test_the_upper_voltage_limit_is_broken_uncontrolled_on_about_half_of_the_days() -> None:
    scenarios = [open_scenario(name) for name in DAYS]
    checks = [electrical_check(each.network, *_uncontrolled(each)) for each in scenarios]
    assert 5 <= sum(not check.passed for check in checks) <= 9


@pytest.mark.parametrize("name", DAYS)
def test_lindistflow_stays_within_the_voltage_margin(name: str) -> None:
    scenario = open_scenario(name)
    network = scenario.network
    demand_p, demand_q = _uncontrolled(scenario)
    exact = ac_flow(network.tree, demand_p, demand_q).magnitude
    linear = np.sqrt(flows(network.tree, demand_p, demand_q).voltage_squared)
    assert np.abs(exact - linear).max() <= 1.4e-3 <= network.voltage_margin_pu


def test_the_six_bus_case_has_every_kind_of_device() -> None:
    scenario = open_scenario("six-bus")
    assert {device.kind for device in scenario.devices} == set(DEVICE_KINDS)
    assert len(scenario.network.buses) == 6
    assert not electrical_check(scenario.network, *_uncontrolled(scenario)).passed


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """The program that cuts the bundled days."""
    spec = importlib.util.spec_from_file_location("cut_simbench", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def grid(tool: ModuleType) -> SimbenchGrid:
    """Read once: it takes seconds."""
    return tool.open_cut()


@pytest.mark.slow
def test_the_bundled_days_are_what_the_tool_cuts_today(tool: ModuleType, grid) -> None:
    assert [f"simbench-rural-{day}" for day in sorted(tool.days())] == DAYS
    for name in (BUNDLED_DAY, DAYS[-1]):
        day = date.fromisoformat(name.removeprefix("simbench-rural-"))
        for file, contents in tool.cut(grid, day).files().items():
            assert (BUNDLED[name] / file).read_bytes() == contents, file


@pytest.mark.slow
def test_a_simbench_grid_is_imported_for_any_days_of_its_year(grid: SimbenchGrid) -> None:
    two = from_simbench(grid, "2016-12-30", day_count=2)
    assert two.horizon.interval_count == 192
    one = from_simbench(grid, "2016-12-31")
    np.testing.assert_array_equal(two.load_p_mw[:, 96:], one.load_p_mw)
    assert one.horizon.start == "2016-12-31T00:00:00+01:00"
    assert len(one.network.buses) == 61
    assert one.network.voltage_max_pu == 1.055
    for wrong, count in (("2015-01-01", 1), ("2016-12-31", 2)):
        with pytest.raises(ScenarioError, match=wrong):
            from_simbench(grid, wrong, day_count=count)


@pytest.mark.slow
def test_the_verb_imports_a_simbench_day(grid: SimbenchGrid, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(_import, "open_simbench", lambda _code: grid)  # Already read once.
    out = tmp_path / "day"
    arguments = ["simbench", grid.code, "--day", "2016-06-15", "--out", str(out), "--json"]
    result = CliRunner().invoke(_import.import_, arguments)
    assert result.exit_code == 0, result.output
    assert set(json.loads(result.stdout)) == {"scenario", "findings"}
    assert Scenario.read(out).name == "1-MV-rural--2-sw-2016-06-15"
    late = CliRunner().invoke(_import.import_, ["simbench", grid.code, "--day", "15.06.2016"])
    assert late.exit_code == 2
    assert "2016-01-01 … 2016-12-31" in late.stderr
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.slow
def test_a_mistyped_simbench_code_is_answered_with_the_one_that_was_meant() -> None:
    with pytest.raises(ScenarioError, match="did you mean 1-MV-rural--2-sw"):
        open_simbench("1-MV-rurl--2-sw")
