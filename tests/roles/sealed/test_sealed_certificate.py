"""The certificate on integers equals the one in floating point, and every falsehood is seen."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from veilgrid.admm.exchange import plan_exchange
from veilgrid.admm.outcome import RunStatus
from veilgrid.grid.day import Day
from veilgrid.grid.device import Photovoltaic
from veilgrid.grid.lindistflow import Limits, flows
from veilgrid.grid.scenario import Scenario
from veilgrid.mpc.field import decode
from veilgrid.mpc.plain import Plain
from veilgrid.roles.sealed.bid import Shape, bid_of, parts_of, proof_of
from veilgrid.roles.sealed.certificate import SealedCertificate, certify
from veilgrid.roles.sealed.day import SETTINGS, PublicDay, costs_alone
from veilgrid.roles.sealed.judge import COST_BITS
from veilgrid.roles.sealed.register import power_steps
from veilgrid.roles.sealed.sites_solve import cheapest
from veilgrid.roles.sealed.stack import Stack
from veilgrid.roles.sealed.step import network_step
from veilgrid.roles.sealed.step_dual import StepResult
from veilgrid.roles.sealed.step_set import ActiveSet

from .sealed_days import small
from .test_sealed_step import prices_of


@dataclass
class Prepared:
    """A planned day with everybody's vectors, in the clear."""

    day: Day
    public: PublicDay
    step: StepResult
    bids: dict[int, np.ndarray]
    proofs: dict[int, np.ndarray]
    setpoints: list[np.ndarray]

    def certified(self, **more: dict[int, np.ndarray]) -> SealedCertificate:
        """Certify, with some vectors replaced."""
        mpc = Plain()
        bids, proofs = self.bids | more.get("bids", {}), self.proofs | more.get("proofs", {})
        count = len(self.day.sites)
        own = [mpc.constant(bids[bus].tolist()) for bus in range(count)]
        proved = [
            mpc.constant(proofs[bus].tolist()) if bus in proofs else None for bus in range(count)
        ]
        stack = Stack.of(self.public.shapes, own, proved)
        register = self.public.register
        steps = certify(mpc, register, stack, np.arange(count), self.step)
        return mpc.run(steps)  # type: ignore[return-value]


@pytest.mark.parametrize(("excess", "is_exceeded"), [(8.8e-7, False), (2e-6, True)])
def test_what_ends_the_coordination_is_not_refused_at_its_end(
    excess: float, is_exceeded: bool
) -> None:
    """Else an honest day ends without convergence where a row is exceeded by almost nothing."""
    prepared = prepared_of(small(4, low=0.975))
    register = prepared.public.register
    state = flows(register.limits.tree, *prepared.day.demands(prepared.setpoints))
    lowest = float(state.voltage_squared.min())
    limits = replace(register.limits, squared_min=lowest + excess)
    public = replace(prepared.public, register=replace(register, limits=limits))
    found = replace(prepared, public=public).certified()
    assert bool(found.exceeded) == is_exceeded
    assert excess < SETTINGS.excess_max or is_exceeded


@pytest.fixture(scope="module", params=[{}, {"low": 0.975}, {"rating": 0.55, "low": 0.97}])
def prepared(request: pytest.FixtureRequest) -> Prepared:
    scenario = small(4, **request.param)
    return prepared_of(with_inverter(scenario) if "rating" in request.param else scenario)


def with_inverter(scenario: Scenario) -> Scenario:
    """Give the sun an inverter: rows that are bounded above alone."""
    devices = [
        replace(one, s_max_mva=0.45) if isinstance(one, Photovoltaic) else one
        for one in scenario.devices
    ]
    return replace(scenario, devices=tuple(devices))


def prepared_of(scenario: Scenario) -> Prepared:
    """Plan a day in the clear and make all vectors."""
    day, limits = scenario.day(), Limits.of(scenario.network)
    public = PublicDay.of(day, limits, SETTINGS)
    plan = plan_exchange(day, limits, settings=public.settings)
    assert plan.status is RunStatus.CONVERGED
    mpc, register = Plain(), public.register
    demand = np.array(day.demands(plan.setpoints))
    give = np.stack([register.give_p, register.give_q])[:, :, np.newaxis]
    wish = demand + give * np.stack([plan.price_p, plan.price_q])
    shared = [mpc.constant(power_steps(part).ravel().tolist()) for part in wish]
    start = ActiveSet.start(register)
    step: StepResult = mpc.run(network_step(mpc, register, *shared, start))  # type: ignore[assignment]
    prices = prices_of(step)
    price_p, price_q = prices[: len(day.sites)], prices[len(day.sites) :]
    members = list(public.flexible)
    found = cheapest([day.sites[bus] for bus in members], price_p[members], price_q[members])
    unit, alone = register.unit, costs_alone(day)
    bids = {bus: bid_of(site, unit, alone[bus]) for bus, site in enumerate(day.sites)}
    proofs = {
        bus: proof_of(
            day.sites[bus],
            plan.setpoints[bus],
            found.setpoints[place],
            found.row_multipliers[place],
            price_p[bus],
            price_q[bus],
            unit,
        )
        for place, bus in enumerate(members)
    }
    return Prepared(day, public, step, bids, proofs, plan.setpoints)


def test_cost_gap_payments_and_costs_equal_those_in_floating_point(prepared: Prepared) -> None:
    """The committee's figures are what everybody pays."""
    found, day, unit = prepared.certified(), prepared.day, prepared.public.register.unit
    assert not any(found.failed)
    assert found.exceeded == ()
    assert found.cost * unit == pytest.approx(day.cost(prepared.setpoints), rel=1e-7)
    prices = prices_of(prepared.step)
    price_p, price_q = prices[: len(day.sites)], prices[len(day.sites) :]
    demand_p, demand_q = day.demands(prepared.setpoints)
    paid = (price_p * demand_p + price_q * demand_q).sum(axis=1)
    mine = np.array([float(v) for v in decode(found.payments.data)]) / 2.0 ** (COST_BITS + 1)
    np.testing.assert_allclose(mine * unit, paid, atol=1e-5)
    own = [site.cost(x) for site, x in zip(day.sites, prepared.setpoints, strict=True)]
    mine = np.array([float(v) for v in decode(found.own_costs.data)]) / 2.0 ** (COST_BITS + 1)
    np.testing.assert_allclose(mine * unit, own, atol=1e-5)
    least = []
    for bus, site in enumerate(day.sites):
        if bus not in prepared.proofs:
            least.append(own[bus] + paid[bus])
            continue
        best = cheapest([site], price_p[[bus]], price_q[[bus]]).setpoints[0]
        bill = price_p[bus] @ site.demand_p(best) + price_q[bus] @ site.demand_q(best)
        least.append(site.cost(best) + float(bill))
    exchange = day.exchange_cost(demand_p.sum(axis=0))
    bound = sum(least) - found.rent * unit
    gap = sum(own) + exchange - bound
    assert found.gap * unit == pytest.approx(gap, abs=2e-4)
    regrets = np.array(own) + paid - np.array(least)
    gaps = np.array([float(v) for v in decode(found.gaps.data)]) / 2.0 ** (COST_BITS + 1)
    np.testing.assert_allclose(gaps * unit, regrets, atol=2e-4)


PROOF_LIES = [
    ("x", 2.0**-3),
    ("x", -(2.0**-3)),
    ("above", 2.0**-4),
    ("above", -1.0),
    ("below", -1.0),
    ("row_above", 2.0**-2),
    ("row_below", -1.0),
]


@pytest.mark.parametrize(("part", "amount"), PROOF_LIES)
def test_each_falsehood_in_a_proof_is_counted_for_its_site_alone(
    prepared: Prepared, part: str, amount: float
) -> None:
    """A wrong name would exclude a neighbour that kept its word."""
    for bus in prepared.proofs:
        shape: Shape = prepared.public.shapes[bus]
        whole = prepared.proofs[bus].copy()
        cut = parts_of(whole, shape.proof_parts)
        if not len(cut[part]):
            continue
        changed = cut[part].copy()
        if part == "x":
            # Beyond the site's own bounds, wherever these lie.
            site = prepared.day.sites[bus]
            edge = site.upper if amount > 0 else site.lower
            place = int(np.argmax(np.isfinite(edge)))
            changed[place] = round((edge[place] + amount) * 2.0**32)
        else:
            # A row that is not bounded there has no multiplier, an equality one of any sign.
            counts = {"row_above": shape.has_lower, "row_below": shape.has_upper}
            if part in counts and not (counts[part] & ~(shape.is_equality & (amount < 0))).any():
                continue
            place = int(np.argmax(counts[part])) if part in counts else 0
            changed[place] += round(amount * 2.0**32)
        lie = np.concatenate([changed if name == part else own for name, own in cut.items()])
        failed = prepared.certified(proofs={bus: lie}).failed
        assert failed[bus] > 0, (bus, part)
        assert not any(count for other, count in enumerate(failed) if other != bus)


@pytest.mark.parametrize("part", ["lower", "upper", "row_lower", "row_upper", "linear"])
def test_a_proof_for_another_bid_than_the_committed_one_fails(
    prepared: Prepared, part: str
) -> None:
    """What was committed at gate closure counts, not what would suit the plan."""
    for bus in prepared.proofs:
        shape: Shape = prepared.public.shapes[bus]
        cut = parts_of(prepared.bids[bus], shape.bid_parts)
        if not len(cut[part]):
            continue
        changed = cut[part].copy()
        x = prepared.setpoints[bus]
        if part in ("lower", "upper"):
            sign = 1 if part == "lower" else -1
            changed[0] = round((x[0] + sign * 0.05) * 2.0**32)
        elif part == "linear":
            changed[0] += 2**29
        else:
            # An equality has one bound, the lower one.
            is_upper = shape.has_upper & ~shape.is_equality
            is_bounded = shape.has_lower if part == "row_lower" else is_upper
            if not is_bounded.any():
                continue
            place = int(np.argmax(is_bounded))
            activity = float((prepared.day.sites[bus].matrix @ x)[place])
            sign = 1 if part == "row_lower" else -1
            changed[place] = round((activity + sign * 0.05) * 2.0**32)
        lie = np.concatenate([changed if name == part else own for name, own in cut.items()])
        failed = prepared.certified(bids={bus: lie}).failed
        assert failed[bus] > 0, (bus, part)
        assert not any(count for other, count in enumerate(failed) if other != bus)


def test_a_site_without_a_proof_takes_its_fallback(prepared: Prepared) -> None:
    """Its committed fallback is then what it pays for; nothing is left to check."""
    bus = next(iter(prepared.proofs))
    proofs = {other: own for other, own in prepared.proofs.items() if other != bus}
    found = replace(prepared, proofs=proofs).certified()
    assert not any(found.failed)
    times = prepared.day.interval_count
    demand = decode(found.demand_p.data[bus * times : (bus + 1) * times])
    fallback = prepared.day.sites[bus].demand_p(prepared.day.uncontrolled[bus])
    np.testing.assert_allclose(np.array(demand, float) / 2.0**32, fallback, atol=1e-9)


def test_multipliers_below_zero_are_seen_though_their_difference_is_right(
    prepared: Prepared,
) -> None:
    """With both below zero a dear plan could be shown as cheap as one likes."""
    for bus in prepared.proofs:
        shape: Shape = prepared.public.shapes[bus]
        cut = parts_of(prepared.proofs[bus], shape.proof_parts)
        for name in ("above", "below"):
            cut[name] = cut[name] - 2**36
        failed = prepared.certified(proofs={bus: np.concatenate(list(cut.values()))}).failed
        assert failed[bus] > 0
        assert not any(count for other, count in enumerate(failed) if other != bus)
