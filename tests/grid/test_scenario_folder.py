"""Writing and reading a scenario is the identity, whatever the way."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import scenarios
from veilgrid.errors import ScenarioError, SetupError
from veilgrid.grid.acflow import electrical_check
from veilgrid.grid.scenario import Scenario
from veilgrid.report.folders import bundled_scenarios, open_scenario, save_scenario

SHARED = Path(__file__).parents[3] / "shared" / "scenarios"


def _same(one: Scenario, other: Scenario) -> None:
    """Compare two scenarios field by field, arrays exactly."""
    for name in ("name", "description", "horizon", "currency", "network"):
        assert getattr(one, name) == getattr(other, name)
    for name in ("load_p_mw", "load_q_mvar", "buy", "sell"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert len(one.devices) == len(other.devices)
    for device, twin in zip(one.devices, other.devices, strict=True):
        assert type(device) is type(twin)
        for each in dataclasses.fields(device):
            np.testing.assert_array_equal(getattr(device, each.name), getattr(twin, each.name))


@settings(max_examples=50)
@given(scenario=scenarios(has_limits=True))
def test_reading_what_was_written_gives_the_same_scenario(scenario: Scenario) -> None:
    read = Scenario.from_files(scenario.files())
    _same(scenario, read)
    assert read.files() == scenario.files()


@settings(max_examples=15)
@given(scenario=scenarios())
def test_pandas_tables_and_back_give_the_same_scenario(scenario: Scenario) -> None:
    _same(scenario, Scenario.from_tables(scenario.tables()))


@settings(max_examples=25)
@given(scenario=scenarios(), data=st.data())
def test_the_order_of_columns_and_of_keys_does_not_matter(scenario, data) -> None:
    tables = scenario.tables()
    for name, table in tables.items():
        if name != "scenario":
            order = data.draw(st.permutations(list(table.columns)))
            tables[name] = table[order]
    keys = data.draw(st.permutations(list(tables["scenario"].index)))
    tables["scenario"] = tables["scenario"].loc[keys]
    read = Scenario.from_tables(tables)
    _same(scenario, read)


@settings(max_examples=25)
@given(scenario=scenarios())
def test_a_day_balances_and_costs_the_same_on_any_base(scenario: Scenario) -> None:
    day = scenario.day()
    demand_p, demand_q = day.demands(day.uncontrolled)
    state = day.flows(day.uncontrolled)
    np.testing.assert_allclose(state.active[day.network.tree.root], demand_p.sum(axis=0), atol=1e-9)
    assert demand_p.shape == demand_q.shape == scenario.load_p_mw.shape
    network = scenario.network
    scale = 3.0
    other = dataclasses.replace(
        scenario, network=dataclasses.replace(network, base_mva=scale * network.base_mva)
    ).day()
    assert other.cost(other.uncontrolled) == pytest.approx(day.cost(day.uncontrolled), abs=1e-7)


def test_tables_can_be_built_by_hand() -> None:
    tables = open_scenario("six-bus").tables()
    assert set(tables) == {
        *("scenario", "buses", "branches", "devices", "load_p_mw", "load_q_mvar", "tariff"),
        *("available_mw", "heat_mw"),
    }
    assert tables["load_p_mw"].loc[7, "mill"] == 0.45
    tables["load_p_mw"].loc[7, "mill"] = 0.6
    assert Scenario.from_tables(tables).load_p_mw[1, 7] == 0.6


def test_tables_are_judged_like_files() -> None:
    tables = open_scenario("six-bus").tables()
    tables["tariff"].loc[3, "sell"] = 500.0
    tables["devices"].loc["pv-farm", "bus"] = "nowhere"
    tables["tarif"] = pd.DataFrame()
    with pytest.raises(ScenarioError) as caught:
        Scenario.from_tables(tables)
    assert [finding.advice for finding in caught.value.findings] == ["did you mean tariff?"]
    del tables["tarif"]
    with pytest.raises(ScenarioError) as caught:
        Scenario.from_tables(tables)
    wheres = [finding.where for finding in caught.value.findings]
    assert wheres == ["devices.csv row 2, column bus", "tariff.csv row 5, column sell"]


def test_a_saved_folder_is_whole_or_absent(tmp_path: Path, monkeypatch) -> None:
    scenario = open_scenario("six-bus")
    target = tmp_path / "below" / "mine"
    assert save_scenario(scenario, target) == target
    _same(scenario, Scenario.read(target))
    with pytest.raises(SetupError, match="exists already"):
        save_scenario(scenario, target)

    def break_off(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", break_off)
    with pytest.raises(SetupError, match="No space left"):
        save_scenario(scenario, tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["below"]


def test_a_folder_that_is_not_there_names_the_bundled_ones(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="six-bus"):
        open_scenario(tmp_path / "nothing")
    file = tmp_path / "scenario.toml"
    file.write_text("")
    with pytest.raises(ScenarioError, match="is a file"):
        open_scenario(file)


def test_a_folder_without_any_of_the_files_is_one_finding(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="1 problem") as caught:
        open_scenario(tmp_path)
    assert "none of the files" in caught.value.findings[0].problem


def test_the_least_scenario_is_one_bus_without_devices() -> None:
    files = {
        "scenario.toml": b"""name = "least"
description = ""
start = 2026-01-01T00:00:00Z
interval_minutes = 60
interval_count = 1
currency = "EUR"
base_kv = 10
base_mva = 1
slack_bus = 7
slack_voltage_pu = 1
""",
        "buses.csv": b"kind,bus\nslack,7\n",
        "branches.csv": b"from_bus,to_bus,r_pu,x_pu,rating_mva\n",
        "devices.csv": b"device,bus,kind\n",
        "load_p_mw.csv": b"7,interval\n0.5,0\n",
        "load_q_mvar.csv": b"interval,7\n0,0.1\n",
        "tariff.csv": b"sell,buy,interval\n10,20,0\n",
    }
    scenario = Scenario.from_files(files)
    day = scenario.day()
    assert day.cost(day.uncontrolled) == 10.0
    assert electrical_check(scenario.network, *day.demands(day.uncontrolled)).passed
    _same(scenario, Scenario.from_files(scenario.files()))
    _same(scenario, Scenario.from_tables(scenario.tables()))


def test_a_file_that_cannot_be_read_is_a_finding(tmp_path: Path) -> None:
    class Closed:
        def is_file(self) -> bool:
            return True

        def read_bytes(self) -> bytes:
            raise PermissionError(13, "Permission denied")

    class Folder:
        def joinpath(self, _name: str) -> Closed:
            return Closed()

    with pytest.raises(ScenarioError, match=r"tariff\.csv: cannot be read: Permission denied"):
        Scenario.read(Folder())


def test_a_byte_order_mark_and_windows_line_ends_are_read() -> None:
    files = open_scenario("six-bus").files()
    windows = {name: b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n") for name, data in files.items()}
    assert Scenario.from_files(windows).files() == files


def test_integer_names_of_buses_are_text() -> None:
    files = open_scenario("six-bus").files()
    numbers = {b"grid": b"0", b"mill": b"1", b"farm": b"2", b"village": b"3"}
    for old, new in numbers.items():
        for name in files:
            files[name] = files[name].replace(b"-" + old, b"-x").replace(old, new)
    files["scenario.toml"] = files["scenario.toml"].replace(b'slack_bus = "0"', b"slack_bus = 0")
    read = Scenario.from_files(files)
    assert [bus.name for bus in read.network.buses][:4] == ["0", "1", "2", "3"]


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")
@pytest.mark.parametrize("day", ["06", "07", "08", "09"])
def test_the_real_days_are_read(day: str) -> None:
    scenario = Scenario.read(SHARED / f"yingkou-2023-11-{day}")
    assert len(scenario.network.buses) == 60
    assert int(scenario.network.tree.depth.max()) == 23
    assert scenario.horizon.interval_count == 96
    assert {device.kind for device in scenario.devices} == {"pv", "wind", "battery", "generator"}
    assert scenario.remarks == ()
    assert Scenario.from_files(scenario.files()).files() == scenario.files()


def test_every_bundled_folder_is_written_as_we_write() -> None:
    for folder in bundled_scenarios().values():
        read = Scenario.read(folder)
        assert read.remarks == ()
        assert {name: (folder / name).read_bytes() for name in read.files()} == read.files()
