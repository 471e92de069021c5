"""A folder of results, written by the product itself."""

from pathlib import Path

import pytest
from web_client import CAPACITY

from veilgrid.cli._summary import record_of, summary_of
from veilgrid.report.folders import open_scenario
from veilgrid.report.results import RunRecord, write_run
from veilgrid.report.round_page import render_capacity, write_page
from veilgrid.roles.operator import plan_day


@pytest.fixture(scope="session")
def six_bus_records() -> dict[str, RunRecord]:
    scenario = open_scenario("six-bus")
    made = {}
    for scheme in ("central", "alone"):
        plan = plan_day(scenario.day(), scheme)
        made[scheme] = record_of(plan, scenario, summary_of(plan, scenario, 0.5))
    return made


@pytest.fixture
def folder(tmp_path: Path, six_bus_records: dict[str, RunRecord]) -> Path:
    root = tmp_path / "results"
    root.mkdir()
    for scheme, record in six_bus_records.items():
        write_run(root / "june" / scheme, record)
    write_page(root / "fleet", "capacity", CAPACITY, render_capacity("fleet", CAPACITY))
    return root
