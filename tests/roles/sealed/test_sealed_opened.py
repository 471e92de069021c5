"""What opens to all on a sealed day tells nobody a site's numbers; what would tell is found."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from veilgrid.cli._audit import audit_summary
from veilgrid.grid.acflow import ac_flow
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits, flows
from veilgrid.roles.audit import Audit
from veilgrid.roles.audit_opened import (
    VOLTAGES,
    attack_equations,
    attack_losses,
    attack_opened,
    attack_signs,
    voltage_equations,
)
from veilgrid.roles.audit_score import Recovered, is_told_by_half
from veilgrid.roles.audit_truth import demands_of
from veilgrid.roles.sealed.day import PublicDay
from veilgrid.roles.sealed.view import Views, record
from veilgrid.secret import SeededRandomness

from .sealed_days import small
from .test_sealed_narrowing import REFUSED, STEP

GAS, OIL, LAST, PARENT = 3, 4, 4, 3


@pytest.fixture(scope="module")
def refused() -> tuple[Day, Views]:
    """A day whose first plan the AC power flow refuses."""
    day = REFUSED.day()
    return day, record(day, Limits.of(day.network), SeededRandomness(3))


def test_nobody_within_the_bound_reads_a_number_off_a_refused_day(
    refused: tuple[Day, Views],
) -> None:
    found, controls = attack_opened(*refused, OIL)
    roles = {row.role for row in found if "of a refused plan" in row.how}
    assert roles == {"ledger and public", "operator", "any one other site"}
    for row in found:
        assert row.is_in_table or row.share_recovered == 0.0, row
    read = [row for row in controls if row.role == "all other sites together"]
    assert any("voltages" in row.how and row.share_recovered == 1.0 for row in read)
    assert any("sums" in row.how and row.share_recovered == 1.0 for row in read)
    assert any(row.role == VOLTAGES for row in controls)


def test_the_truth_of_a_refused_plan_is_the_one_that_was_refused(
    refused: tuple[Day, Views],
) -> None:
    """Else attacks would be scored against another plan, and always fail."""
    day, views = refused
    result = next(one for one in views.opened if one.get("electrical", {}).get("shown"))
    demands = demands_of(day, views, result["task"])
    exact = ac_flow(day.network.tree, *demands).magnitude
    beyond = {(int(b), int(t)) for b, t in np.argwhere(exact < day.network.voltage_min_pu)}
    assert beyond == {(b, t) for b, t, _ in result["electrical"]["shown"]["low"]}


def public_of(day: Day) -> Any:
    """What an attack on equations needs of a recorded day."""
    return SimpleNamespace(public=PublicDay.of(day, Limits.of(day.network)))


@pytest.mark.parametrize("is_open", [True, False])
def test_voltages_of_a_bus_and_its_parent_would_tell_everybody_what_a_leaf_draws(
    is_open: bool,
) -> None:
    """Why neither model's voltages open; at their common limit the same places tell nothing."""
    day = REFUSED.day()
    limits, demands = Limits.of(day.network), day.demands(day.load_only)
    voltage = flows(limits.tree, *demands).voltage_squared
    stands = {
        (bus, t): float(voltage[bus, t]) if is_open else 0.98**2
        for bus in (PARENT, LAST)
        for t in range(day.interval_count)
    }
    equations = voltage_equations(limits, stands)
    rows, _ = attack_equations(day, public_of(day), LAST, equations, demands, "test")
    mixed = [
        row for row in rows if "its branch adds" in row.quantity and row.role == "ledger and public"
    ]
    assert len(mixed) == 2
    for row in mixed:
        assert row.share_recovered == (1.0 if is_open else 0.0), row


@pytest.mark.parametrize("is_coarse", [True, False])
def test_exact_differences_would_tell_what_a_branch_carries(is_coarse: bool) -> None:
    """Losses of one branch are far below a step."""
    day = REFUSED.day()
    tree, demands = day.network.tree, day.demands(day.load_only)
    exact, linear = ac_flow(tree, *demands).magnitude ** 2, flows(tree, *demands).voltage_squared
    # At the end of the feeder: the branch before adds the same to both of its ends.
    lost = linear - exact
    step = STEP if is_coarse else 2.0**-32
    shown = {
        "low": [
            [bus, t, round(float(lost[bus, t]) / step) * step]
            for bus in (PARENT, LAST)
            for t in range(day.interval_count)
        ],
        "high": [],
    }
    row, *_ = attack_losses(day, LAST, shown, demands)
    assert row.baseline_error is not None
    assert (row.max_error < 0.2 * row.baseline_error) == (not is_coarse), row


def test_signs_that_followed_one_site_are_read(refused: tuple[Day, Views]) -> None:
    """The fit must be able to succeed: bits that say when a site draws much give it away."""
    day, views = small(8).day(), refused[1]
    high = np.arange(8) // 2 % 2 == 0
    site = replace(day.sites[GAS], load_p=np.where(high, 0.4, 0.1))
    sites = tuple(site if bus == GAS else one for bus, one in enumerate(day.sites))
    plan = SimpleNamespace(setpoints=day.load_only)
    told = {"stiffer": np.flatnonzero(high).tolist(), "softer": []}
    seen = replace(views, coordination=plan, opened=[told])
    (row,) = attack_signs(replace(day, sites=sites), seen, GAS)
    assert row.share_recovered == 1.0
    (row,) = attack_signs(replace(day, sites=sites), replace(seen, opened=[]), GAS)
    assert row.share_recovered == 0.0


def test_a_verdict_says_leak_where_something_was_read_that_should_not() -> None:
    """A sentence that praises the scheme whatever was found would be worth nothing."""
    row = Recovered("load", "party 1", 0.0, 1.0, "MW", "test", baseline_error=1.0)
    assert audit_summary(Audit("sealed", "c", (row,)))["verdict"].startswith("LEAK: party 1")
    allowed = row._replace(is_in_table=True)
    assert audit_summary(Audit("sealed", "c", (allowed,)))["verdict"].startswith("Nobody")


def test_a_constant_is_not_called_recovered_because_half_of_it_is_known() -> None:
    """A rating is the same in all intervals: half of it tells the rest, views or not."""
    assert is_told_by_half(np.full(96, 0.4))
    assert not is_told_by_half(np.arange(96.0))
