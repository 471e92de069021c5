"""Attacks on what every role held of a sealed day, scored beside a guess without any view.

The day runs with every message kept (:mod:`veilgrid.roles.sealed.view`); the attackers are those
of the masked audit: reading numbers off, least squares, the slack identity, correlation,
recognising a site, and whatever else a role's view suggests [sealed 8.2].
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Final, NamedTuple

import numpy as np

from veilgrid.errors import invariant
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits
from veilgrid.grid.network import Floats
from veilgrid.mpc.client import submit
from veilgrid.mpc.field import PRIME_FIELD, Words, decode, words_of
from veilgrid.mpc.shamir import open_shares
from veilgrid.roles.audit_limits import attack_limits
from veilgrid.roles.audit_opened import attack_opened
from veilgrid.roles.audit_padded import attack_padded, padded_elements
from veilgrid.roles.audit_score import (
    EXACT,
    Recovered,
    Target,
    beside,
    best,
    fitted,
    is_told_by_half,
    powers_of,
)
from veilgrid.roles.audit_truth import is_unmet, last_task, relieved, stand_of
from veilgrid.roles.sealed.bid import Shape, bid_of, parts_of
from veilgrid.roles.sealed.day import costs_alone
from veilgrid.roles.sealed.heard import BID, client_of
from veilgrid.roles.sealed.keys import Keys
from veilgrid.roles.sealed.kinds import ANSWER, CERTIFICATE, SURPLUS
from veilgrid.roles.sealed.register import POWER_BITS
from veilgrid.roles.sealed.view import (
    Verdict,
    Views,
    record,
    tell_padded_apart,
    tell_shares_apart,
    tell_words_apart,
)
from veilgrid.secret import Randomness

OTHER_LOAD: Final = 0.5
LOAD_UNMET: Final = 0.9
"""Load of the second secret day, as a share of the first; of one that no plan can keep, which the
second one is to be as well."""

FULL: Final = 2.0**127


class SealedAudit(NamedTuple):
    """Rows as of any audit, tests on views, and what reads on: to show that attacks work.

    Attributes
    ----------
    controls
        Views beyond what is promised: one party more than the bound, all other sites together.
    """

    recovered: list[Recovered]
    tests: list[Verdict]
    controls: list[Recovered]


def audit_sealed(
    day: Day, limits: Limits, site: int, draw: Randomness, other: Day | None = None
) -> SealedAudit:
    """Run a day and another one with other secrets, and attack every role's view of one site.

    Parameters
    ----------
    day, limits, site
        As of any audit.
    draw
        Of all keys and shares.
    other
        The day with other secrets; ``None`` = the same with less load.
    """
    views = record(day, limits, draw)
    if is_unmet(views):
        views = relieved(day, views)
    if other is None:
        other = _other_secrets(day, LOAD_UNMET if is_unmet(views) else OTHER_LOAD)
    second = record(other, limits, draw)
    targets = _targets(day, views, site)
    found: list[Recovered] = []
    count, degree = len(views.parties), views.degree
    for size in range(1, degree + 1):
        for coalition in combinations(range(count), size):
            found += _attack_shares(views, coalition, targets)
    found.append(_recognise(day, views, site, draw))
    found.append(_attack_sites(day, views, site))
    found += _attack_public(day, views, site)
    for size in range(1, degree + 1):
        for coalition in combinations(range(count), size):
            found += attack_padded(day, views, site, coalition)
    opened, beyond = attack_opened(day, views, site)
    limited, controls = attack_limits(day, views, site)
    found += [*opened, *limited]
    beyond += controls
    beyond += attack_padded(day, views, site, range(degree + 1))
    controls = [*_beyond_the_bound(views, targets), *_all_others(day, views, site), *beyond]
    return SealedAudit(found, _tests(views, second), controls)


def _other_secrets(day: Day, share: float) -> Day:
    sites = [
        replace(one, load_p=share * one.load_p, load_q=share * one.load_q) for one in day.sites
    ]
    return replace(day, sites=tuple(sites))


def _targets(day: Day, views: Views, site: int) -> list[Target]:
    """Return the site's secrets and where they lie in what it sent."""
    own, base, unit = day.sites[site], day.network.base_mva, views.public.register.unit
    shape = Shape.of(own)
    bid = parts_of(np.arange(sum(shape.bid_parts.values())), shape.bid_parts)
    truth = bid_of(own, unit, costs_alone(day)[site])
    name = client_of(site, BID)
    megawatts = base / 2.0**POWER_BITS

    def committed(what: str, part: str, factor: float, measure: str) -> Target:
        places = bid[part]
        return Target(
            what,
            0,
            name,
            places,
            np.asarray(truth[places] * factor, dtype=np.float64),
            measure,
            factor,
        )

    found = [
        committed("load", "load_p", megawatts, "MW"),
        committed("forecasts and ratings", "upper", megawatts, "MW"),
        committed("cost coefficients", "linear", unit / 2.0**POWER_BITS, day.currency),
    ]
    found = [one for one in found if len(one.places)]
    if site in day.flexible:
        x = views.coordination.setpoints[site]
        kind = SURPLUS if is_unmet(views) else CERTIFICATE
        number = last_task(views, kind)
        places = powers_of(own.spans, day.interval_count)
        proof = client_of(site, f"{kind} {number}")
        found.append(Target("schedule", number, proof, places, x[places] * base, "MW", megawatts))
        last = last_task(views, ANSWER)
        demand = stand_of(day, views).demand_p[site] * base
        places = np.arange(day.interval_count)
        answer = client_of(site, f"{ANSWER} {last}")
        found.append(Target("net demand", last, answer, places, demand, "MW", megawatts))
    return found


# -- parties --------------------------------------------------------------------------------------


def _numbers(elements: Words) -> Floats:
    return np.array([float(value) for value in decode(np.ascontiguousarray(elements))])


def _named(coalition: Sequence[int]) -> str:
    return " and ".join(f"party {place + 1}" for place in coalition)


def _attack_shares(
    views: Views, coalition: Sequence[int], targets: Sequence[Target]
) -> list[Recovered]:
    """Read, subtract what is known, fit: each quantity keeps its most successful attack."""
    found = []
    for target in targets:
        shares = [views.parties[p].shares(target.task, target.name) for p in coalition]
        known = views.known_part(coalition, target.task, target.name)
        own = [_numbers(one[target.places]) * target.factor for one in (*shares, known)]
        guesses = {"a share read as the number": own[0], "all that known seeds leave": own[-1]}
        if not is_told_by_half(target.truth):
            how = "least squares on shares, fitted to half of the truth"
            guesses[how] = fitted(own, target.truth)
        rows = [beside(target, _named(coalition), guess, how) for how, guess in guesses.items()]
        found.append(best(rows))
    return [*found, *_slacks(views, coalition, targets)]


def _slacks(views: Views, coalition: Sequence[int], targets: Sequence[Target]) -> list[Recovered]:
    """Try the identity that breaks masking: a plan less its committed bound is its slack."""
    plan = next((one for one in targets if one.quantity == "schedule"), None)
    bound = next((one for one in targets if one.quantity == "forecasts and ratings"), None)
    if plan is None or bound is None:
        return []
    party = views.parties[coalition[0]]
    shown = PRIME_FIELD.subtract(
        np.ascontiguousarray(party.shares(bound.task, bound.name)[bound.places][plan.places]),
        np.ascontiguousarray(party.shares(plan.task, plan.name)[plan.places]),
    )
    truth = bound.truth[plan.places] - plan.truth
    target = plan._replace(quantity="slack identity", truth=truth)
    how = "share of the upper bound less share of the plan"
    return [beside(target, _named(coalition), _numbers(shown) * plan.factor, how)]


def _beyond_the_bound(views: Views, targets: Sequence[Target]) -> list[Recovered]:
    """Open with one party more than the bound: shows that the attack reads what it is given."""
    count = views.degree + 1
    found = []
    for target in targets:
        shares = [party.shares(target.task, target.name)[target.places] for party in views.parties]
        values = open_shares(PRIME_FIELD, shares, views.degree).values
        invariant(values is not None, "honest parties' shares agree")
        guess = _numbers(values) * target.factor  # type: ignore[arg-type]
        found.append(
            beside(
                target,
                f"any {count} parties, beyond the bound",
                guess,
                "interpolated: what the bound is for",
            )
        )
    return found


def _recognise(day: Day, views: Views, site: int, draw: Randomness) -> Recovered:
    """Look for the site among those whose bids have its shape, by one party's shares of two days.

    On the other day everybody bids the same again: nothing could be more alike.
    """
    own = day.sites[site]
    length = sum(Shape.of(own).bid_parts.values())
    register, alone = views.public.register, costs_alone(day)
    keys = Keys.drawn(len(views.parties), len(day.sites), draw)
    name = client_of(site, BID)
    sent = views.parties[0].mailbox(0).received[name].submission.correction
    mine = [
        _numbers(views.parties[0].shares(0, name)),
        _numbers(views.known_part([0], 0, name)),
        _numbers(PRIME_FIELD.from_words(words_of(sent))),
    ]
    likeness = {}
    for bus, one in enumerate(day.sites):
        if sum(Shape.of(one).bid_parts.values()) != length:
            continue
        again = submit(
            b"another day",
            client_of(bus, BID),
            [int(value) for value in bid_of(one, register.unit, alone[bus])],
            degree=views.degree,
            box_keys=[bytes(box.public_key) for box in keys.boxes],
            signer=keys.sites[bus].signer,
            randomness=draw,
        )
        seen = _numbers(PRIME_FIELD.from_words(words_of(again.correction)))
        likeness[bus] = max(abs(_correlation(one, seen)) for one in mine)
    best = max(likeness, key=lambda bus: likeness[bus])
    is_found = best == site and len(likeness) > 1 and likeness[site] > 0.5
    return Recovered(
        "linkability between days",
        "party 1",
        1.0 - likeness[site],
        1.0 if is_found else 0.0,
        "1 - correlation",
        f"correlation with the same bids shared anew, {len(likeness)} sites of its shape",
    )


def _correlation(one: Floats, other: Floats) -> float:
    return float(np.corrcoef(one / FULL, other / FULL)[0, 1])


# -- sites, ledger, operator ----------------------------------------------------------------------


def _demand(day: Day, views: Views, site: int) -> Target:
    truth = stand_of(day, views).demand_p[site] * day.network.base_mva
    return Target("net demand", 0, "", np.arange(len(truth)), truth, "MW", 1.0)


def _attack_sites(day: Day, views: Views, site: int) -> Recovered:
    """Guess from what another site has: its own data, its prices, what opened to all.

    Sites may be alike. What its own demand tells it about the other's, without any price, counts
    as a guess without a view.
    """
    base, target = day.network.base_mva, _demand(day, views, site)
    stand = stand_of(day, views)
    others = [bus for bus in day.flexible if bus != site] or [
        bus for bus in range(len(day.sites)) if bus != site
    ]
    rows, role = [], "any one other site"
    for bus in others:
        mine = stand.demand_p[bus] * base
        price = views.coordination.price_p[bus]
        blind = [
            beside(target, role, guess, "its own demand")
            for guess in (mine, fitted([mine], target.truth))
        ]
        how = "least squares on own prices and demand, fitted to half of the truth"
        row = beside(target, role, fitted([price, mine], target.truth), how)
        if row.share_recovered <= max(one.share_recovered for one in blind):
            row = row._replace(share_recovered=0.0)
        least = min(one.max_error for one in blind)
        rows.append(row._replace(baseline_error=min(least, row.baseline_error or 0.0)))
    return best(rows)


def _all_others(day: Day, views: Views, site: int) -> list[Recovered]:
    """Subtract what all other sites together know from the sums that opened."""
    stand, tariff = stand_of(day, views), _tariff(day, views)
    known = float((tariff * np.delete(stand.demand_p, site, axis=0)).sum())
    others = float(np.delete(stand.cost, site).sum())
    if stand.exchange_cost is None:
        left = shown = stand.total - others - known
        basis = "the total cost, as if the rest were nothing"
    else:
        left, shown = stand.exchange_cost - known, stand.total - stand.exchange_cost - others
        basis = "total cost less their own: in the policy's table"
    guess = tariff * (left / float(tariff @ tariff)) * day.network.base_mva
    own = np.array([float(stand.cost[site])])
    role, target = "all other sites together", _demand(day, views, site)
    cost = Target("cost of its devices", 0, "", np.arange(1), own, day.currency, 1.0)
    return [
        beside(target, role, guess, "least demand that fits the cost of the exchange"),
        beside(cost, role, np.array([shown]), basis),
    ]


def _tariff(day: Day, views: Views) -> Floats:
    """Return the tariff in force in each interval, from the direction that opened."""
    last = next(one for one in reversed(views.opened) if "binding" in one)
    return np.where(np.array(last["binding"]["price"]) < 0, day.sell, day.buy)


def _attack_public(day: Day, views: Views, site: int) -> list[Recovered]:
    """Guess from what opened to all; the operator has the register of ranges as well."""
    base, own = day.network.base_mva, day.sites[site]
    target, tariff = _demand(day, views, site), _tariff(day, views)
    stand = stand_of(day, views)
    paid = stand.total if stand.exchange_cost is None else stand.exchange_cost
    share = paid / float(tariff @ tariff)
    even = tariff * share * base / max(1, len(day.sites) - 1)
    found = [beside(target, "ledger and public", even, "an even share of the exchange's cost")]
    give = views.public.register.give_p
    weight = give[site] / give.sum() if give[site] > 0.0 else 1.0 / max(1, len(day.sites) - 1)
    wide = tariff * share * base * weight
    found.append(
        beside(target, "operator", wide, "the exchange's cost shared by registered ranges")
    )
    if site in views.payments:
        found += _attack_payment(day, views, site)
    if len(own.linear):
        powers = powers_of(own.spans, day.interval_count)
        plan = views.coordination.setpoints[site][powers] * base
        schedule = Target("schedule", 0, "", powers, plan, "MW", 1.0)
        groups = len(plan) // day.interval_count
        fed = np.tile(np.abs(wide) / max(groups, 1), groups)
        how = "the same, shared evenly among its devices"
        found.append(beside(schedule, "operator", fed, how))
    return found


def _attack_payment(day: Day, views: Views, site: int) -> list[Recovered]:
    """Spread a site's payment, which opens to the payer, as the substation's meter runs."""
    demand_p, _ = day.demands(views.coordination.setpoints)
    paid = views.payments[site]
    tariff, metered = _tariff(day, views), demand_p.sum(axis=0)
    worth = float(tariff @ metered)
    profile = metered if abs(worth) > EXACT else np.ones_like(metered)
    base = day.network.base_mva
    guess = paid / float(tariff @ profile) * profile * base
    role, how = "payer", "its payment at the tariff, spread as the substation's exchange"
    energy = np.array([float(demand_p[site].sum()) * base * day.horizon.hours])
    spent = Target("energy of the day", 0, "", np.arange(1), energy, "MWh", 1.0)
    return [
        beside(_demand(day, views, site), role, guess, how),
        beside(spent, role, np.array([float(guess.sum()) * day.horizon.hours]), how),
    ]


# -- tests on views -------------------------------------------------------------------------------


def _all_shares(views: Views, place: int) -> Words:
    party = views.parties[place]
    parts = [party.shares(n, name) for n in views.numbers() for name in views.names(n)]
    return np.concatenate(parts)


def _tests(first: Views, second: Views) -> list[Verdict]:
    """Compare every coalition's views of the two days."""
    found = []
    for size in range(1, first.degree + 1):
        for coalition in combinations(range(len(first.parties)), size):
            views = [[_all_shares(one, place) for place in coalition] for one in (first, second)]
            found += tell_shares_apart(_named(coalition), views[0], views[1])
    for place, (mine, other) in enumerate(zip(first.parties, second.parties, strict=True)):
        count = len(first.parties)
        found.append(tell_words_apart(_named([place]), mine.hidden(), other.hidden(), count))
    padded = [padded_elements(one) for one in (first, second)]
    if all(padded):
        found += tell_padded_apart("all parties", *padded)
    return found


__all__ = ["SealedAudit", "audit_sealed"]
