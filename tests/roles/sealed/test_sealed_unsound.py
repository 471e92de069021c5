"""Bids and proofs that fit each other but prove nothing: multipliers that no bound pays for."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.optimize import nnls

from veilgrid.grid.day import Day
from veilgrid.grid.device import ElectricVehicleCharger
from veilgrid.grid.lindistflow import Limits
from veilgrid.grid.network import BusId
from veilgrid.grid.site import Site
from veilgrid.mpc.field import decode
from veilgrid.roles.sealed import course, program
from veilgrid.roles.sealed.bid import Shape, bid_of, parts_of, proof_of
from veilgrid.roles.sealed.certificate import SealedCertificate
from veilgrid.roles.sealed.day import SETTINGS
from veilgrid.roles.sealed.judge import COST_BITS
from veilgrid.roles.sealed.sites_solve import cheapest

from .sealed_days import Change, run_day, small
from .test_sealed_certificate import Prepared, prepared_of, with_inverter
from .test_sealed_step import prices_of

SUN, STORE, GAS, OIL = 1, 2, 3, 4
"""The buses with the sun, the battery and two generators."""


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepared_of(with_inverter(small(4, low=0.975)))


def edited(own: Any, parts: dict[str, int], **changes: Any) -> np.ndarray:
    """Change some parts of a vector."""
    cut = parts_of(np.array(own, dtype=np.int64), parts)
    return np.concatenate(
        [changes.get(name, lambda part: part)(part) for name, part in cut.items()]
    )


def raised(site: Site, part: str, row: int, amount: int) -> dict[str, Any]:
    """Raise a row's multiplier, and those of bounds so that reduced costs stay right."""
    entries, sign = site.matrix.tocsr()[row].tocoo(), -1 if part == "row_above" else 1
    change = np.zeros(site.linear.size, dtype=np.int64)
    change[entries.col] = [sign * round(value * 2**30) * (amount >> 30) for value in entries.data]
    return {
        part: lambda own: own + amount * (np.arange(len(own)) == row),
        "above": lambda own: own + np.maximum(change, 0),
        "below": lambda own: own + np.maximum(-change, 0),
    }


def gap_of(found: Any, bus: int) -> float:
    """Return a site's part of the gap, price units."""
    return float(decode(found.gaps.data)[bus]) / 2.0 ** (COST_BITS + 1)


def prices_at(prepared: Prepared, bus: int) -> tuple[np.ndarray, np.ndarray]:
    prices, count = prices_of(prepared.step), len(prepared.day.sites)
    return prices[bus], prices[count + bus]


def regret_of(prepared: Prepared, bus: int, x: np.ndarray) -> float:
    """Return what a plan costs above the cheapest one at the agreed prices, price units."""
    site, (price_p, price_q) = prepared.day.sites[bus], prices_at(prepared, bus)
    best = cheapest([site], price_p[np.newaxis], price_q[np.newaxis]).setpoints[0]

    def bill(plan: np.ndarray) -> float:
        paid = price_p @ site.demand_p(plan) + price_q @ site.demand_q(plan)
        return float(site.cost(plan) + paid)

    return (bill(x) - bill(best)) / prepared.public.register.unit


def test_an_equality_that_was_bid_with_two_sides_counts_as_one(prepared: Prepared) -> None:
    """Its multipliers have no sign: the room between two sides would pay for any other gap."""
    shape: Shape = prepared.public.shapes[STORE]
    assert shape.is_equality.any()
    bid = edited(prepared.bids[STORE], shape.bid_parts, row_upper=lambda part: part + 2**32)
    lower = {name: lambda part: part - 2**36 for name in ("row_above", "row_below")}
    proof = edited(prepared.proofs[STORE], shape.proof_parts, **lower)
    found = prepared.certified(bids={STORE: bid}, proofs={STORE: proof})
    honest = prepared.certified()
    assert gap_of(found, STORE) > gap_of(honest, STORE) - 1e-6


def test_a_row_without_a_lower_bound_has_no_multiplier_for_one(prepared: Prepared) -> None:
    """Such a multiplier costs nothing, so any plan could be shown to be the cheapest."""
    site, shape = prepared.day.sites[SUN], prepared.public.shapes[SUN]
    one_sided = shape.has_upper & ~shape.has_lower
    assert one_sided.any()
    x = prepared.setpoints[SUN] * 0.5
    price_p, price_q = prices_at(prepared, SUN)
    unit = prepared.public.register.unit
    reduced = site.linear - site.inject_p.T @ price_p - site.inject_q.T @ price_q
    rows = nnls(site.matrix.T.toarray(), reduced)[0]
    wide = replace(site, row_lower=np.full_like(site.row_lower, -50.0))
    proof = proof_of(wide, x, x, rows, price_p, price_q, unit)
    found = prepared.certified(proofs={SUN: proof})
    assert regret_of(prepared, SUN, x) > 1e-3
    assert found.failed[SUN] or gap_of(found, SUN) > 0.9 * regret_of(prepared, SUN, x)
    assert not any(count for bus, count in enumerate(found.failed) if bus != SUN)


@pytest.mark.parametrize("part", ["row_above", "row_below"])
def test_a_multiplier_of_a_row_below_zero_is_seen_though_all_else_fits(part: str) -> None:
    """Room to the bound would count as saved: any plan could be shown to be cheaper than it is."""
    scenario = with_inverter(small(4))
    car = ElectricVehicleCharger(
        name="car",
        bus=BusId("a"),
        charge_max_mw=0.1,
        energy_required_mwh=0.05,
        window_start=0,
        window_end=3,
    )
    prepared = prepared_of(replace(scenario, devices=(*scenario.devices, car)))
    site, shape = prepared.day.sites[SUN], prepared.public.shapes[SUN]
    has = shape.has_lower if part == "row_above" else shape.has_upper
    row, large = int(np.flatnonzero(has & ~shape.is_equality)[0]), 2**36
    lie = raised(site, part, row, -large)
    proof = edited(prepared.proofs[SUN], shape.proof_parts, **lie)
    failed = prepared.certified(proofs={SUN: proof}).failed
    assert failed[SUN] == 1
    assert not any(count for bus, count in enumerate(failed) if bus != SUN)


def test_a_cost_that_falls_with_its_square_is_refused(prepared: Prepared) -> None:
    """A line through any point of it lies above it: no multipliers prove a least cost."""
    site, x = prepared.day.sites[GAS], prepared.setpoints[GAS]
    bent = replace(site, quadratic=-site.quadratic, lower=x, upper=x)
    unit, rows = prepared.public.register.unit, np.zeros(site.matrix.shape[0])
    proof = proof_of(bent, x, x + 1.0, rows, *prices_at(prepared, GAS), unit)
    found = prepared.certified(bids={GAS: bid_of(bent, unit, 0.0)}, proofs={GAS: proof})
    assert found.failed[GAS]
    assert not any(count for bus, count in enumerate(found.failed) if bus != GAS)


def test_bounds_that_exclude_each_other_are_refused_however_near_they_are(
    prepared: Prepared,
) -> None:
    """Multipliers of both at once prove any gap, in proportion to what no plan can keep."""
    shape: Shape = prepared.public.shapes[GAS]
    x = parts_of(prepared.proofs[GAS], shape.proof_parts)["x"]
    bid = edited(
        prepared.bids[GAS], shape.bid_parts, lower=lambda _: x + 64, upper=lambda _: x - 64
    )
    both = {name: lambda part: part + 2**50 for name in ("above", "below")}
    proof = edited(prepared.proofs[GAS], shape.proof_parts, **both)
    found = prepared.certified(bids={GAS: bid}, proofs={GAS: proof})
    assert found.failed[GAS]
    assert not any(count for bus, count in enumerate(found.failed) if bus != GAS)


def too_large(found: SealedCertificate) -> set[int]:
    """Return whose numbers are beyond what the windows let pass."""
    return {
        int(owner)
        for values, owners, bound, group in found.windows
        for value, owner in zip(decode(values), owners, strict=True)
        if abs(value) > 2 * bound * group
    }


def _spread(like: np.ndarray, places: np.ndarray, values: np.ndarray) -> np.ndarray:
    out = np.zeros_like(like)
    out[places] = values
    return out


def test_a_bound_of_a_row_that_comparisons_cannot_see_is_looked_at(prepared: Prepared) -> None:
    """It is in range, but its multiple of 2**79 vanishes where it is compared with the row."""
    shape: Shape = prepared.public.shapes[SUN]
    place = int(np.flatnonzero(shape.has_upper & ~shape.is_equality)[0])

    def far(part: np.ndarray) -> np.ndarray:
        return part - 2**49 * (np.arange(len(part)) == place)

    bid = edited(prepared.bids[SUN], shape.bid_parts, row_upper=far)
    assert too_large(prepared.certified(bids={SUN: bid})) == {SUN}


@pytest.mark.parametrize(
    ("bus", "part"), [(STORE, "x"), (OIL, "x"), (GAS, "inject_q"), (GAS, "point")]
)
def test_each_product_of_two_secrets_that_is_compared_or_rounded_is_looked_at(
    bus: int, part: str
) -> None:
    """What comparisons make of its low bits would be anything."""
    plain = prepared_of(small(4))
    shape: Shape = plain.public.shapes[bus]
    what = "bids" if part == "inject_q" else "proofs"
    parts = shape.bid_parts if part == "inject_q" else shape.proof_parts
    changes: dict[str, Any] = {part: lambda own: own + 2**50}
    if part == "point":
        # So that reduced costs stay right, and only the product itself tells.
        bend = parts_of(plain.bids[bus], shape.bid_parts)["quadratic"]
        changes["above"] = lambda own: own + _spread(own, shape.curved, bend << 20)
    lie = edited(getattr(plain, what)[bus], parts, **changes)
    assert too_large(plain.certified(**{what: {bus: lie}})) == {bus}


def test_a_multiplier_of_a_row_pays_for_the_room_to_its_bound(prepared: Prepared) -> None:
    """One that does not would prove any plan to be the cheapest."""
    shape: Shape = prepared.public.shapes[SUN]
    site, x = prepared.day.sites[SUN], prepared.setpoints[SUN]
    row = int(np.flatnonzero(shape.has_upper & ~shape.is_equality)[0])
    lie = raised(site, "row_below", row, 2**36)
    proof = edited(prepared.proofs[SUN], shape.proof_parts, **lie)
    found, honest = prepared.certified(proofs={SUN: proof}), prepared.certified()
    room = float(site.row_upper[row] - (site.matrix @ x)[row])
    change = np.zeros(site.linear.size)
    change[site.matrix.tocsr()[row].indices] = site.matrix.tocsr()[row].data
    rise = np.maximum(-change, 0.0) @ (site.upper - x) + np.maximum(change, 0.0) @ (x - site.lower)
    assert not any(found.failed)
    assert room > 0.01
    expected = gap_of(honest, SUN) + 2.0**4 * (room + rise)
    assert gap_of(found, SUN) == pytest.approx(expected, rel=1e-6)


TIGHT = replace(small(2, low=0.98), load_p_mw=1.5 * small(2).load_p_mw)
TIMES = 2 * TIGHT.horizon.interval_count
SHORT = replace(SETTINGS, iteration_count_max=20)


def liar_of(shape: Shape, bid: Any, proof: Any, kinds: tuple[str, ...]) -> Change:
    """Bid and prove falsely; where relief is proved, claim payments that look hopeless."""

    def lie(kind: str, _: int, own: list[int]) -> list[int]:
        if kind == "bids":
            return [int(value) for value in edited(own, shape.bid_parts, **bid)]
        if kind in kinds:
            return [int(value) for value in edited(own, shape.proof_parts, **proof)]
        if kind == "answer" and "surplus" in kinds:
            own[TIMES + 1] += 2**46
        if kind == "regret" and "surplus" not in kinds:
            own[0] -= round(HIDDEN * 2**40)
        return own

    return lie


def test_no_bid_makes_a_day_infeasible_that_is_not() -> None:
    """What a proof lacks is subtracted from what is left; below zero it would be added."""
    day, limits = TIGHT.day(), Limits.of(TIGHT.network)
    shape = Shape.of(day.sites[STORE])
    sides = {"row_upper": lambda part: part + 2**32}
    shift = {name: lambda part: part - 2**40 for name in ("row_above", "row_below")}
    lie = liar_of(shape, sides, shift, ("surplus", "certificate"))
    ended = run_day(day, limits, {STORE: lie}, settings=SHORT)
    assert ended.public["status"] == "converged"
    assert set(ended.excluded) == {STORE}


HIDDEN = 2.0**-9
"""What the contradiction below hides, price units; ten times the gap that is allowed."""


def contradiction(day: Day) -> tuple[Day, dict[str, Any], dict[str, Any]]:
    """Return a day on which one row of the store misses its bound by less than the tolerance.

    All that moves in this row is fixed, so its multiplier may be as large as one likes.
    """
    site = day.sites[STORE]
    row, large = site.matrix.tocsr()[0].tocoo(), 2**47
    lower, upper = site.lower.copy(), site.upper.copy()
    lower[row.col] = upper[row.col] = site.uncontrolled[row.col]
    sites = list(day.sites)
    sites[STORE] = replace(site, lower=lower, upper=upper)
    change = np.zeros(len(lower), dtype=np.int64)
    change[row.col] = [round(value * 2**30) * (large >> 30) for value in row.data]

    def first(amount: int) -> Any:
        return lambda part: part + amount * (np.arange(len(part)) == 0)

    proof = {
        "row_above": first(-large),
        "above": lambda part: part + np.maximum(change, 0),
        "below": lambda part: part + np.maximum(-change, 0),
    }
    return replace(day, sites=tuple(sites)), {"row_lower": first(-(2**8))}, proof


def test_a_bid_that_contradicts_itself_hides_no_gap_behind_it() -> None:
    """Its part of the gap would be below zero and pay for what all others could save."""
    scenario = small(2, low=0.975)
    day, bid, proof = contradiction(scenario.day())
    lie = liar_of(Shape.of(day.sites[STORE]), bid, proof, ("certificate",))
    ended = run_day(day, Limits.of(scenario.network), {STORE: lie}, settings=SHORT)
    assert set(ended.excluded) == {STORE}
    assert "claimed" in ended.excluded[STORE]
    assert ended.public["status"] == "converged"


def test_a_bid_that_contradicts_itself_relieves_no_less_than_others() -> None:
    """Else what it hides would count as what all of them cannot relieve."""
    day, bid, proof = contradiction(TIGHT.day())
    lie = liar_of(Shape.of(day.sites[STORE]), bid, proof, ("surplus",))
    ended = run_day(day, Limits.of(TIGHT.network), {STORE: lie}, settings=SHORT)
    assert set(ended.excluded) == {STORE}
    assert "relieves" in ended.excluded[STORE]
    assert ended.public["status"] == "converged"


def test_a_bid_that_contradicts_itself_proves_no_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it could wish for anything and keep the day from ending without being named."""
    monkeypatch.setattr(course, "STALLED_FROM", 3)
    monkeypatch.setattr(program, "CHALLENGED_OF", 1)
    scenario = small(2, low=0.975)
    day, bid, proof = contradiction(scenario.day())
    lie = liar_of(Shape.of(day.sites[STORE]), bid, proof, ("challenge",))
    ended = run_day(day, Limits.of(scenario.network), {STORE: lie}, settings=SHORT)
    assert set(ended.excluded) == {STORE}
    assert "its wish is not" in ended.excluded[STORE]
