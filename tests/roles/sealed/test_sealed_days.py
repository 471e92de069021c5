"""Whole days on shares: planned as in plain, explained where there is no plan, told to nobody."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from veilgrid.admm.exchange import plan_exchange
from veilgrid.admm.outcome import RunStatus
from veilgrid.admm.reference import central
from veilgrid.grid.lindistflow import Limits
from veilgrid.grid.scenario import Scenario
from veilgrid.mpc.message import Said, Submission
from veilgrid.roles.sealed.bid import bid_of
from veilgrid.roles.sealed.day import PublicDay, costs_alone, plan_sealed
from veilgrid.roles.sealed.deployment import pack_public, pack_site, unpack_public, unpack_site
from veilgrid.roles.sealed.message import Notice
from veilgrid.secret import SeededRandomness
from veilgrid.sim.checker import canary_forms

from .sealed_days import run_day, setpoints_of, small

YINGKOU = Path(__file__).parents[4] / "shared" / "scenarios" / "yingkou-2023-11-09"

OPENED = {
    "bids": {"bids"},
    "wish": {
        *("binding", "passes", "square", "rent", "strength", "challenged"),
        *("stiffer", "softer"),
    },
    "challenge": {"strange"},
    "answer": {"products", "cost", "gap", "fits", "exceeded"},
    "regret": {"regret"},
    "surplus": {"unproved", "is_unmet", "unmet"},
}
"""By kind of task, what may open to all: the table of roles/sealed/program.py."""


@pytest.mark.parametrize(
    ("more", "parties", "degree"),
    [({"rating": 0.55, "low": 0.97}, 3, 1), ({"intervals": 1}, 5, 2)],
)
def test_a_sealed_day_costs_what_the_optimum_costs(
    more: dict[str, float], parties: int, degree: int
) -> None:
    scenario = small(**({"intervals": 2} | more))  # type: ignore[arg-type]
    day, limits = scenario.day(), Limits.of(scenario.network)
    plan = plan_sealed(
        day, limits, randomness=SeededRandomness(3), party_count=parties, degree=degree
    )
    assert plan.status is RunStatus.CONVERGED
    optimum = day.cost(central(day, limits).setpoints)
    assert day.cost(plan.setpoints) == pytest.approx(optimum, rel=1e-4)
    if not limits.are_absent:
        assert limits.excess(day.flows(plan.setpoints)).max() <= 1e-6


def test_the_published_day_is_planned_as_by_plain_exchange() -> None:
    if not YINGKOU.is_dir():
        pytest.skip(f"{YINGKOU} is not there: its publisher gave no licence to ship it")
    scenario = Scenario.read(YINGKOU)
    day, limits = scenario.day(), Limits.of(scenario.network)
    sealed = plan_sealed(day, limits, randomness=SeededRandomness(1))
    plain = plan_exchange(day, limits)
    assert sealed.iteration_count == plain.iteration_count <= 10
    for mine, other in zip(sealed.setpoints, plain.setpoints, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-6)
    assert day.cost(sealed.setpoints) == pytest.approx(39014.01, rel=1e-4)


def test_a_day_that_no_plan_can_keep_is_explained_by_bus_and_interval() -> None:
    """Nobody can lift the far end by that much: the operator learns where, not who draws what."""
    plain = small(2, low=0.98)
    scenario = replace(plain, load_p_mw=3.0 * plain.load_p_mw)
    day, limits = scenario.day(), Limits.of(scenario.network)
    assert central(day, limits).status is RunStatus.INFEASIBLE
    ended = run_day(day, limits)
    assert ended.public["status"] == "infeasible"
    assert ended.public["unmet"]
    for row, interval, excess in ended.public["unmet"]:
        assert limits.describe(int(row))[0] == "voltage_min"
        assert 0 <= interval < day.interval_count
        assert excess > 0.0


def test_a_tight_day_is_not_called_infeasible() -> None:
    scenario = small(2, low=0.979)
    day, limits = scenario.day(), Limits.of(scenario.network)
    assert central(day, limits).status is RunStatus.CONVERGED
    ended = run_day(day, limits)
    assert ended.public["status"] == "converged"
    assert limits.excess(day.flows(setpoints_of(day, ended))).max() <= 1e-6


def test_what_processes_are_told_survives_the_way() -> None:
    scenario = small(3, low=0.95, rating=2.0)
    day = scenario.day()
    public = PublicDay.of(day, Limits.of(scenario.network))
    again = unpack_public(pack_public(public))
    assert pack_public(again) == pack_public(public)
    np.testing.assert_array_equal(again.register.give_p, public.register.give_p)
    for mine, other in zip(again.shapes, public.shapes, strict=True):
        assert mine.bid_parts == other.bid_parts
        assert mine.proof_parts == other.proof_parts
    for site in day.sites:
        back = unpack_site(pack_site(site))
        assert pack_site(back) == pack_site(site)
        unit = public.register.unit
        np.testing.assert_array_equal(bid_of(back, unit, 1.0), bid_of(site, unit, 1.0))


def test_no_message_tells_a_sites_numbers_and_only_the_table_opens() -> None:
    """Every bid, set-point and demand is a canary; a share sent in the clear would be one."""
    scenario = small(2, low=0.975)
    day, limits = scenario.day(), Limits.of(scenario.network)
    ended = run_day(day, limits)
    unit = PublicDay.of(day, limits).register.unit
    alone = costs_alone(day)
    canaries: dict[str, Any] = {}
    for bus, site in enumerate(day.sites):
        numbers = set(bid_of(site, unit, alone[bus]).tolist())
        canaries |= {f"bid {bus} {k}": v for k, v in enumerate(numbers) if abs(v) > 2**26}
        canaries |= {
            f"plan {bus} {k}": float(v)
            for k, v in enumerate(setpoints_of(day, ended)[bus])
            if float(v * 2**20) % 1.0 and round(v, 4) != v
        }
    # Round numbers (efficiencies, ratings of one) occur in public data as well.
    canaries = {n: v for n, v in canaries.items() if not (isinstance(v, int) and v % 2**20 == 0)}
    assert len(canaries) > 10
    # Four octets occur by chance among millions of random ones; eight do not.
    forms = [(n, f) for n, v in canaries.items() for f in canary_forms(v) if len(f) >= 8]
    kinds = set()
    for _, _, message in ended.sent:
        frame = msgspec.msgpack.encode(message)
        assert not [name for name, form in forms if form in frame]
        kinds.add(type(message))
        if isinstance(message, Notice):
            result = set(msgspec.msgpack.decode(message.result))
            names = [kind for kind, keys in OPENED.items() if result <= keys]
            assert names or "failed" in result or not result, result
    assert {Submission, Said, Notice} <= kinds


def test_a_day_without_any_choice_is_certified_at_once() -> None:
    """There is nothing to prove or to multiply; the day must come out all the same."""
    scenario = replace(small(1), devices=())
    day, limits = scenario.day(), Limits.of(scenario.network)
    ended = run_day(day, limits)
    assert ended.public["status"] == "converged"
    expected = day.cost(day.load_only)
    assert ended.public["certificate"]["cost"] == pytest.approx(expected, rel=1e-7)


def test_a_day_without_any_choice_that_exceeds_a_limit_is_explained() -> None:
    """There is no movement whose length could be asked for; that stopped everybody."""
    scenario = replace(small(2, rating=0.5), devices=())
    day, limits = scenario.day(), Limits.of(scenario.network)
    ended = run_day(day, limits)
    assert ended.public["status"] == "infeasible"
    assert ended.public["unmet"]


def test_a_day_on_which_every_site_falls_silent_ends_with_all_named() -> None:
    scenario = small(1)
    day, limits = scenario.day(), Limits.of(scenario.network)

    def silent(kind: str, _: int, own: list[int]) -> list[int] | None:
        return None if kind == "answer" else own

    ended = run_day(day, limits, dict.fromkeys(day.flexible, silent))
    assert set(ended.excluded) == set(day.flexible)
    assert ended.public["status"] == "converged"
    expected = day.cost(day.uncontrolled)
    assert ended.public["certificate"]["cost"] == pytest.approx(expected, rel=1e-7)
