"""The paper's manipulations end as they must under each scheme, and as the money says."""

from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from roles.test_masked import yingkou
from veilgrid.admm.masked_site import site_form
from veilgrid.admm.reference import central
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits
from veilgrid.qp.mask import draw_mask
from veilgrid.report.folders import open_scenario
from veilgrid.roles.attack import ATTACKED, CASES, attack_plan, default_site
from veilgrid.roles.audit import AUDITED, audit
from veilgrid.roles.audit_masked import _link
from veilgrid.roles.audit_public import Sizes, audit_public, shape_from
from veilgrid.roles.audit_score import EXACT
from veilgrid.roles.operator import DayPlan, plan_day
from veilgrid.secret import SeededRandomness

EXPECTED = {
    "dishonest-site": dict.fromkeys(("neighbour", "exchange"), "succeeded"),
    "colluding-dispatcher": dict.fromkeys(("central", "exchange"), "succeeded"),
    "refusing-site": dict.fromkeys(("neighbour", "neighbour-ledger"), "stalled")
    | dict.fromkeys(("central", "ledger", "exchange", "masked"), "contained"),
}
"""What must come out; whatever is not named is prevented."""

_PLANS: dict[tuple[str, str], DayPlan] = {}


def honest(name: str, scheme: str) -> DayPlan:
    if (name, scheme) not in _PLANS:
        scenario = open_scenario(name) if name == "six-bus" else yingkou(name)
        _PLANS[name, scheme] = plan_day(scenario.day(), scheme)
    return _PLANS[name, scheme]


@pytest.mark.parametrize("scheme", [s for s in ATTACKED if s != "sealed"])  # in roles/sealed
@pytest.mark.parametrize("case", CASES)
def test_each_case_ends_as_it_must_under_each_scheme(case: str, scheme: str) -> None:
    """A prevented attack that paid, or a success without gain, would be a story."""
    found = attack_plan(honest("six-bus", scheme), case, SeededRandomness(1))
    assert found.outcome == EXPECTED[case].get(scheme, "prevented"), found
    if found.outcome == "succeeded":
        assert found.attacker_gain > 0.01
        assert found.culprit is None
    else:
        assert found.attacker_gain <= 0.01
    if case == "refusing-site" and found.outcome in ("stalled", "contained"):
        assert found.cost_change_percent > 0.0
    if found.outcome == "stalled":
        alone = honest("six-bus", scheme)
        base = alone.cost or 1.0
        assert found.cost_change_percent == pytest.approx(
            100.0 * (alone.cost_alone - base) / abs(base)
        )


def test_verification_is_what_prevents_the_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a council that waves everything through, the favoured plan must get recorded."""
    monkeypatch.setattr("veilgrid.roles.masked_ledger.plan_refusal", lambda *_: "")
    found = attack_plan(honest("six-bus", "ledger"), "colluding-dispatcher", SeededRandomness(1))
    assert found.outcome == "succeeded"
    assert found.culprit is None


@pytest.mark.parametrize("scheme", ["neighbour", "central", "ledger"])
def test_the_published_day_shows_the_published_pattern(scheme: str) -> None:
    """Sizes are set beside the published ones in docs/protocol/masking.md."""
    plan = honest("06", scheme)
    by_case = {case: attack_plan(plan, case, SeededRandomness(1)) for case in CASES}
    for case, found in by_case.items():
        assert found.outcome == EXPECTED[case].get(scheme, "prevented"), found
    if scheme == "neighbour":
        assert 50.0 < by_case["dishonest-site"].attacker_gain < 1000.0
    if scheme == "central":
        favour = by_case["colluding-dispatcher"]
        assert favour.attacker_gain > 500.0
        assert 0.0 < favour.cost_change_percent <= 0.4
        assert 0.1 < by_case["refusing-site"].cost_change_percent < 5.0


def test_the_attacker_may_be_named() -> None:
    plan = honest("six-bus", "neighbour")
    day: Day = plan.day
    other = next(i for i in range(len(day.sites)) if i != default_site(day, "dishonest-site"))
    found = attack_plan(plan, "dishonest-site", SeededRandomness(1), other)
    assert found.site == str(day.sites[other].name)


# The audit: attacks on what roles hold.


def by_name(found, *, options: bool = False):
    return {(r.quantity, r.role): r for r in found.recovered if r.options is options}


def test_an_audit_of_masking_recovers_what_security_says() -> None:
    """Were the audit weaker than the attacks known, it would promise what masking cannot keep."""
    plan = honest("six-bus", "exchange")
    day = plan.day
    site = next(i for i, s in enumerate(day.sites) if s.name == "village")
    found = audit(plan, site, SeededRandomness(3), "masked")
    plain, on = by_name(found), by_name(found, options=True)
    identity = plain["slack identity, all sites", "worker"]
    assert identity.share_recovered == 1.0
    assert identity.max_error <= 1e-9
    for role in ("worker", "validator"):
        for quantity in ("schedule", "battery size", "battery path", "battery efficiencies"):
            assert plain[quantity, role].share_recovered == 1.0, quantity
            assert plain[quantity, role].max_error <= 1e-6
        assert plain["cost coefficients, quadratic", role].share_recovered == 1.0
        assert plain["load", role].share_recovered == 0.0
    assert plain["net demand", "coordinator"].share_recovered == 1.0
    assert plain["load", "coordinator with what workers hold"].share_recovered == 1.0
    assert plain["linkability between days", "worker"].share_recovered == 1.0
    devices = plain["number of set-points and of storages", "public"]
    assert devices.share_recovered == 1.0, "lengths tell what devices a site has"
    for quantity in ("energy of the day", "net demand", "schedule"):
        assert plain[quantity, "public"].share_recovered == 0.0
        assert plain[quantity, "public"].max_error > 0.01
    assert on["schedule as share of its range", "worker"].share_recovered == 1.0
    assert on["battery equations", "worker"].share_recovered >= 0.5
    assert on["which rows are decoys", "worker"].share_recovered >= 0.75


def test_the_public_reads_energies_off_payments_where_the_tariff_is_flat() -> None:
    """The attack has to find what there is: under one price a payment is an energy."""
    scenario = open_scenario("six-bus")
    day = scenario.day()
    flat = replace(day, buy=np.full_like(day.buy, 40.0), sell=np.full_like(day.sell, 40.0))
    plan = central(flat, Limits.of(replace(scenario.network, voltage_min_pu=None)))
    price = np.full((len(day.sites), day.interval_count), 40.0)
    plan = replace(plan, price_p=price, price_q=np.zeros_like(price))
    site = flat.flexible[0]
    problem = draw_mask(site_form(flat.sites[site], 1.0).problem, SeededRandomness(1)).masked()
    rows = {row.quantity: row for row in audit_public(flat, plan, site, problem)}
    assert rows["energy of the day"].share_recovered == 1.0
    assert rows["net demand"].share_recovered < 0.5


@pytest.mark.parametrize("has_limits", [True, False])
@pytest.mark.parametrize("name", ["village", "solar-park"])
def test_lengths_tell_devices(name: str, has_limits: bool) -> None:
    """With and without reactive power among the variables, for sites with and without storage."""
    day = open_scenario("six-bus").day()
    found = next((s for s in day.sites if s.name == name), None)
    site = found or day.sites[day.flexible[-1]]
    form = site_form(site, 1.0, 1.0 if has_limits else 0.0)
    problem = draw_mask(form.problem, SeededRandomness(1)).masked()
    count = day.interval_count
    storages = sum(span.group == "energy" for span in site.spans)
    assert shape_from(Sizes.of(problem), count) == (len(site.linear) / count, storages)


@pytest.mark.parametrize("scheme", [s for s in AUDITED if s not in ("masked", "sealed")])
def test_an_audit_scores_what_each_scheme_shows(scheme: str) -> None:
    plan = honest("six-bus", scheme)
    site = next(i for i, s in enumerate(plan.day.sites) if s.name == "village")
    found = by_name(audit(plan, site, SeededRandomness(3)))
    if scheme in ("central", "ledger", "neighbour-ledger"):
        assert all(row.share_recovered == 1.0 for row in found.values())
    elif scheme == "alone":
        assert all(row.share_recovered == 0.0 for row in found.values())
    else:
        whole = "coordinator" if scheme == "exchange" else "all neighbours together"
        assert found["net demand", whole].share_recovered == 1.0
        assert found["net demand", whole].max_error <= EXACT
        assert found["cost coefficients", "neighbour"].share_recovered == 0.0


def test_a_site_is_recognised_on_another_day() -> None:
    """Forecasts and loads differ, masks are fresh; devices and their costs stay."""
    plan, other = honest("06", "exchange"), yingkou("07").day()
    day = plan.day
    site = max(day.flexible, key=lambda i: len(day.sites[i].linear))
    assert (day.sites[site].load_p != other.sites[site].load_p).any()
    draw = SeededRandomness(3)
    with threadpool_limits(1, user_api="blas"):
        link = _link(day, plan.limits, other, site, draw)
    assert link.max_error <= 1e-6
    assert link.share_recovered > 0.0
    stranger = next(
        i for i in day.flexible if len(day.sites[i].linear) != len(day.sites[site].linear)
    )
    sites = [other.sites[stranger if i == site else i] for i in range(len(other.sites))]
    with threadpool_limits(1, user_api="blas"):
        gone = _link(day, plan.limits, replace(other, sites=tuple(sites)), site, draw)
    assert gone.share_recovered == 0.0
