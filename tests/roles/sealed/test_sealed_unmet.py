"""What opens about limits, attacked: amounts that no plan can meet, extremes of the power flow."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from veilgrid.cli import main
from veilgrid.grid.acflow import electrical_check as checked
from veilgrid.grid.lindistflow import Limits
from veilgrid.mpc import Shares, Steps
from veilgrid.mpc.plain import Plain
from veilgrid.report.folders import save_scenario
from veilgrid.roles.audit_limits import (
    AMOUNTS,
    attack_limits,
    extreme_equations,
    unmet_equations,
)
from veilgrid.roles.audit_opened import OTHERS, attack_equations
from veilgrid.roles.audit_padded import attack_padded
from veilgrid.roles.audit_truth import is_unmet, relieved, stand_of
from veilgrid.roles.sealed.day import PublicDay
from veilgrid.roles.sealed.electrical import electrical_check
from veilgrid.roles.sealed.register import power_steps
from veilgrid.roles.sealed.step import UNMET_BITS, excess_of
from veilgrid.roles.sealed.view import Views, record
from veilgrid.secret import SeededRandomness

from .sealed_days import small

GAS, STEP = 3, 2.0**-UNMET_BITS
PLAIN = small(2, low=0.98)
UNMET = replace(PLAIN, load_p_mw=3.0 * PLAIN.load_p_mw)
"""Nobody can lift the far end by that much."""


@pytest.fixture(scope="module")
def unmet() -> Views:
    day = UNMET.day()
    views = record(day, Limits.of(day.network), SeededRandomness(1))
    assert is_unmet(views)
    return relieved(day, views)


def test_a_day_that_no_plan_can_keep_is_audited_by_the_command(
    capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    """Before, it was refused: nobody could tell what such a day gives away."""
    folder = save_scenario(UNMET, tmp_path / "unmet")
    with pytest.raises(SystemExit) as ended:
        main(f"audit {folder} --scheme sealed --site c --seed 1 --json".split())
    found = json.loads(capsys.readouterr().out)
    assert ended.value.code == 0
    assert found["scheme"] == "sealed"
    assert found["verdict"].startswith("Nobody got a number")
    rows = {(row["role"], row["quantity"]): row for row in found["recovered"]}
    assert {role for role, _ in rows} >= {
        *("party 1", "party 2", "party 3", "any one other site", "ledger and public", "operator")
    }
    assert ("party 1", "the part of its prices that comes from rows") in rows
    assert ("party 1", "schedule") in rows
    assert not any(row["share_recovered"] for row in found["recovered"] if not row.get("in_table"))
    assert all(one["passed"] for one in found["tests"])
    beyond = [row for row in found["controls"] if "beyond" in row["role"]]
    assert len(beyond) >= 8
    assert all(row["share_recovered"] == 1.0 for row in beyond)


def test_coarse_amounts_hide_what_exact_ones_would_tell_all_others(unmet: Views) -> None:
    """The reason for rounding: one row exceeded is one equation about the last site."""
    found, controls = attack_limits(UNMET.day(), unmet, GAS)
    assert found
    assert all(row.share_recovered == 0.0 for row in found)
    mixed = {row.role: row for row in controls if "its branch adds" in row.quantity}
    assert mixed[f"{OTHERS}, {AMOUNTS}"].share_recovered == 1.0
    assert mixed[OTHERS].share_recovered == 0.0
    assert mixed[OTHERS].max_error > 1e-3


def test_amounts_are_those_of_the_proved_demands_rounded_up(unmet: Views) -> None:
    """Else the operator is told wrong ones, or the attack is scored against another day."""
    day = UNMET.day()
    rows = next(one["unmet"] for one in unmet.opened if one.get("is_unmet"))
    assert rows
    excess = Limits.of(day.network).excess(day.flows(unmet.coordination.setpoints))
    for number, interval, amount in rows:
        assert (amount / STEP).is_integer()
        assert amount - STEP < excess[int(number), int(interval)] <= amount
    rough, exact = unmet_equations(unmet, day.demands(unmet.coordination.setpoints))
    for one, other in zip(rough, exact, strict=True):
        np.testing.assert_allclose(one.value, other.value, atol=0.51 * STEP)


def test_pulls_open_behind_pads_and_two_parties_take_these_off(unmet: Views) -> None:
    quantity = "the part of its prices that comes from rows"
    for coalition, share in (([1], 0.0), ([0, 1], 1.0)):
        rows = {row.quantity: row for row in attack_padded(UNMET.day(), unmet, GAS, coalition)}
        assert rows[quantity].share_recovered == share
        assert rows[quantity].baseline_error


def test_where_no_plan_is_the_truth_is_what_sites_answered_last(unmet: Views) -> None:
    """What opened of all together must be the sum of what attacks are scored against."""
    day, stand = UNMET.day(), stand_of(UNMET.day(), unmet)
    paid = day.exchange_cost(stand.demand_p.sum(axis=0))
    assert stand.cost.sum() + paid == pytest.approx(stand.total)
    assert stand.exchange_cost is None, "it opens with a plan only"


class Watched(Plain):
    """Keeps every number that opens."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[int] = []

    def open(self, x: Shares) -> Steps[list[int]]:
        """Open, and keep."""
        found = yield from super().open(x)
        self.opened += found
        return found


def shared(mpc: Plain, demands: tuple[np.ndarray, ...]) -> list[Shares]:
    return [mpc.constant(power_steps(part).ravel().tolist()) for part in demands]


def test_only_coarse_numbers_open() -> None:
    """Rounding what has opened already would hide it from readers, not from parties."""
    for scenario, most in ((small(2, low=0.9, rating=2.0), 2 * 2**13), (UNMET, 2**UNMET_BITS)):
        day, limits, mpc = scenario.day(), Limits.of(scenario.network), Watched()
        demands = day.demands(day.load_only)
        register = PublicDay.of(day, limits).register
        if scenario is UNMET:
            places = [(GAS, 0), (GAS + 1, 1)]
            mpc.run(excess_of(mpc, register, *shared(mpc, demands), places))  # type: ignore[arg-type]
        else:
            mpc.run(electrical_check(mpc, register, *shared(mpc, demands)))
        assert mpc.opened
        assert max(abs(value) for value in mpc.opened) < most


@pytest.mark.parametrize("is_coarse", [True, False])
def test_extremes_open_for_people_and_not_as_equations(is_coarse: bool) -> None:
    scenario = small(2, low=0.9, rating=2.0)
    day, limits = scenario.day(), Limits.of(scenario.network)
    demands = day.demands(day.load_only)
    register, mpc = PublicDay.of(day, limits).register, Plain()
    opened: dict[str, Any] = mpc.run(electrical_check(mpc, register, *shared(mpc, demands)))  # type: ignore[assignment]
    exact = checked(scenario.network, *demands)
    for name in ("vm_min_pu", "vm_max_pu"):
        assert opened[name] == round(opened[name], 4)
        assert opened[name] == pytest.approx(getattr(exact, name), abs=1e-4)
    assert opened["loading_max"] == round(opened["loading_max"], 3)
    assert opened["loading_max"] == pytest.approx(exact.loading_max, abs=1e-3)
    equations = extreme_equations(day, opened, demands)[0 if is_coarse else 1]
    views: Any = SimpleNamespace(public=SimpleNamespace(register=register))
    _, others = attack_equations(day, views, GAS, equations, demands, "test")
    mixed = next(row for row in others if "its branch adds" in row.quantity)
    assert mixed.share_recovered == (0.0 if is_coarse else 1.0), mixed
