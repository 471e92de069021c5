"""Tables carry the algorithms' numbers in the units people read."""

import numpy as np
import pandas as pd
import pytest

from veilgrid.admm.outcome import Coordination, RunStatus
from veilgrid.report.tables import COLUMNS, NULLABLE, tables_of


def test_what_sites_draw_is_what_the_substation_imports(record) -> None:
    drawn = record.tables.buses.groupby("interval")["net_demand_mw"].sum()
    assert drawn.to_numpy() == pytest.approx(record.tables.substation["exchange_mw"].to_numpy())


def test_net_demand_is_load_minus_injections(record) -> None:
    buses, devices = record.tables.buses, record.tables.devices
    injected = devices.groupby(["bus", "interval"])["p_mw"].sum()
    keys = pd.MultiIndex.from_frame(buses[["bus", "interval"]])
    expected = buses["load_mw"].to_numpy() - injected.reindex(keys, fill_value=0.0).to_numpy()
    assert buses["net_demand_mw"].to_numpy() == pytest.approx(expected, abs=1e-12)


def test_prices_are_per_mwh(record) -> None:
    """The base of 2 MVA and intervals of an hour must be taken out again."""
    of_bus = record.tables.buses.query("bus == 'c'")["price"].to_numpy(np.float64)
    assert of_bus == pytest.approx(record.scenario.buy)


def test_flows_into_the_feeder_are_the_exchange(record) -> None:
    branches = record.tables.branches
    out = branches[branches["from_bus"] == "station"].groupby("interval")["p_mw"].sum()
    assert out.to_numpy() == pytest.approx(record.tables.substation["exchange_mw"].to_numpy())


def test_time_is_local_and_passes_midnight(record) -> None:
    start = record.tables.substation["start"]
    assert start.iloc[0].isoformat() == "2016-07-18T21:00:00+02:00"
    assert start.iloc[4].isoformat() == "2016-07-19T01:00:00+02:00"


def test_what_is_unknown_is_empty_and_never_nan(record) -> None:
    for name, table in record.tables.named().items():
        assert tuple(table.columns) == COLUMNS[name]
        for column in table.columns.intersection(NULLABLE):
            assert str(table[column].dtype) == "Float64"
            assert not np.isnan(table[column].dropna().to_numpy(np.float64)).any()
    energy = record.tables.devices.set_index("device")["energy_mwh"]
    assert energy["roof"].isna().all()
    assert energy["cellar"].notna().all()


def test_loading_exists_where_a_rating_does_and_may_come_from_ac(record) -> None:
    branches = record.tables.branches
    rated = branches[branches["loading"].notna()]
    assert set(rated["to_bus"]) == {"a"}
    apparent = np.hypot(rated["p_mw"].to_numpy(), rated["q_mvar"].to_numpy())
    assert rated["loading"].to_numpy(np.float64) == pytest.approx(apparent / 3.0)


def test_every_table_exists_without_a_plan(build) -> None:
    tables = build(["station", "a"], has_plan=False).tables
    for name in ("buses", "branches", "devices", "substation"):
        assert len(tables.named()[name]) == 0
        assert tuple(tables.named()[name].columns) == COLUMNS[name]
    assert len(tables.iterations) == 3


def test_a_voltage_that_is_not_known_is_empty(scenario) -> None:
    """An interval without a power flow must not show as a voltage."""
    day = scenario.day()
    shape = scenario.load_p_mw.shape
    voltage = np.ones(shape)
    voltage[:, 2] = np.nan
    outcome = Coordination(
        status=RunStatus.CONVERGED,
        setpoints=day.uncontrolled,
        price_p=np.zeros(shape),
        price_q=np.zeros(shape),
    )
    tables = tables_of(scenario, day, outcome, voltage_pu=voltage)
    unknown = tables.buses[tables.buses["voltage_pu"].isna()]
    assert set(unknown["interval"]) == {2}
    assert tables.buses["voltage_uncontrolled_pu"].isna().all()
