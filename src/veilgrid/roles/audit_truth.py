"""What was so on a recorded day: what attacks are scored against [sealed 8.2].

All of it is read with the shares and seeds of all parties together, or off the plan: for the
truth, never for an attack.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from veilgrid.admm.outcome import RunStatus
from veilgrid.errors import invariant
from veilgrid.grid.day import Day
from veilgrid.grid.network import Floats, Integers
from veilgrid.mpc.field import PRIME_FIELD, decode
from veilgrid.mpc.shamir import open_shares
from veilgrid.roles.audit_padded import read_prices
from veilgrid.roles.sealed.bid import Shape, parts_of
from veilgrid.roles.sealed.heard import client_of
from veilgrid.roles.sealed.kinds import ANSWER, CERTIFICATE, SURPLUS
from veilgrid.roles.sealed.program import AMOUNT_BITS
from veilgrid.roles.sealed.register import POWER_BITS
from veilgrid.roles.sealed.view import Views


class Stand(NamedTuple):
    """What sites did when what opened last was opened.

    Attributes
    ----------
    demand_p, demand_q : (bus, interval), per-unit
        Of the plan; of the last answers where no plan keeps the limits.
    cost : (bus,), currency
        Of each site's devices.
    total : currency
        What opened of all together.
    exchange_cost : currency or None
        The exchange's part of it, where that opened: with a plan.
    """

    demand_p: Floats
    demand_q: Floats
    cost: Floats
    total: float
    exchange_cost: float | None


def is_unmet(views: Views) -> bool:
    """Whether the day ended because no plan keeps its limits."""
    return getattr(views.coordination, "status", None) is RunStatus.INFEASIBLE


def last_task(views: Views, kind: str) -> int:
    """Return the number of the last task of a kind."""
    return next(number for number, one, _ in reversed(views.tasks) if one == kind)


def stand_of(day: Day, views: Views) -> Stand:
    """Return what sites did at the end of a recorded day."""
    if is_unmet(views):
        return _answered(day, views)
    setpoints, opened = views.coordination.setpoints, getattr(views.coordination, "opened", {})
    cost = [site.cost(x) for site, x in zip(day.sites, setpoints, strict=True)]
    amounts = (float(opened.get(name, 0.0)) for name in ("cost", "exchange_cost"))
    return Stand(*day.demands(setpoints), np.array(cost), *amounts)


def _answered(day: Day, views: Views) -> Stand:
    number, times, unit = last_task(views, ANSWER), day.interval_count, views.public.register.unit
    active, reactive = day.demands(_at_first(day, views))
    cost = np.zeros(len(day.sites))
    for bus in day.flexible:
        if client_of(bus, f"{ANSWER} {number}") not in views.names(number):
            continue
        own = whole(views, number, client_of(bus, f"{ANSWER} {number}"))
        active[bus], reactive[bus] = own[: 2 * times].reshape(2, times) / 2.0**POWER_BITS
        cost[bus] = own[2 * times] / 2.0**AMOUNT_BITS * unit
    shown = next(one for one in views.opened if one["task"] == number)
    return Stand(active, reactive, cost, float(shown["cost"]) * unit, None)


def _at_first(day: Day, views: Views) -> list[Floats]:
    """Return set-points of who proves nothing: its load, or its fallback if it was left out."""
    out = list(day.load_only)
    for bus in views.coordination.opened.get("excluded", {}):
        out[int(bus)] = day.uncontrolled[int(bus)]
    return out


def relieved(day: Day, views: Views) -> Views:
    """Return the views of a day that no plan can keep, with what its sites proved in the end.

    That are the plans that relieve the limits most; prices are those of the last wishes.
    """
    setpoints = proved(day, views, last_task(views, SURPLUS), SURPLUS)
    price_p = np.zeros((len(day.sites), day.interval_count))
    for bus in day.flexible:
        found = read_prices(views, bus)
        if found is not None:
            price_p[bus] = found
    plan = replace(views.coordination, setpoints=setpoints, price_p=price_p)
    return replace(views, coordination=plan)


def proved(day: Day, views: Views, number: int, kind: str = CERTIFICATE) -> list[Floats]:
    """Return the plans that were proved in a task."""
    setpoints, sent = _at_first(day, views), views.names(number)
    for bus in day.flexible:
        name = client_of(bus, f"{kind} {number}")
        if name in sent:
            parts = Shape.of(day.sites[bus]).proof_parts
            setpoints[bus] = parts_of(whole(views, number, name), parts)["x"] / 2.0**POWER_BITS
    return setpoints


def demands_of(day: Day, views: Views, number: int) -> tuple[Floats, Floats]:
    """Return the demands of a plan that was proved, (bus, interval), per-unit."""
    return day.demands(proved(day, views, number))


def whole(views: Views, number: int, name: str) -> Integers:
    """Open a vector with the shares of all parties."""
    shares = [party.shares(number, name) for party in views.parties]
    values = open_shares(PRIME_FIELD, shares, views.degree).values
    invariant(values is not None, "honest parties' shares agree")
    return np.array([float(value) for value in decode(np.ascontiguousarray(values))])


__all__ = [
    "Stand",
    "demands_of",
    "is_unmet",
    "last_task",
    "proved",
    "relieved",
    "stand_of",
    "whole",
]
