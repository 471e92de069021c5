"""What each role could recover of a site's data, by really attacking what it holds [masking 8].

Who should see what is in [docs/threat-model.md 2].

A masked audit attacks masked problems (:mod:`veilgrid.roles.audit_masked`); for the other schemes
it scores what their messages show.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits
from veilgrid.grid.network import Floats
from veilgrid.roles.audit_masked import audit_masked
from veilgrid.roles.audit_score import Recovered, energy_of, nothing, powers_of, scored
from veilgrid.roles.audit_sealed import audit_sealed
from veilgrid.roles.operator import DayPlan
from veilgrid.roles.sealed.view import Verdict
from veilgrid.secret import Randomness


class Audit(NamedTuple):
    """An audit of one site under one scheme.

    Attributes
    ----------
    tests
        On whether views tell secrets apart; under `sealed`.
    controls
        Attacks with more than a role has, which succeed; under `sealed`.
    """

    scheme: str
    site: str
    recovered: tuple[Recovered, ...]
    tests: tuple[Verdict, ...] = ()
    controls: tuple[Recovered, ...] = ()


def audit(
    plan: DayPlan,
    site: int,
    randomness: Randomness,
    scheme: str | None = None,
    other: Day | None = None,
) -> Audit:
    """Audit one site of a planned day.

    Parameters
    ----------
    plan
        The day under the scheme to audit.
    site : index
        Which one.
    randomness
        For masks.
    scheme
        ``None`` = the plan's. ``masked`` is run anew within the plan's limits, ``sealed`` from
        gate closure on.
    other
        Another day on the same network, to look for the site in; ``None`` = the same one.
    """
    chosen = plan.scheme if scheme is None else scheme
    day, name = plan.day, str(plan.day.sites[site].name)
    if chosen == "sealed":
        # Plans that the AC power flow refuses are part of the day, so limits are as they begin.
        ours = audit_sealed(day, Limits.of(day.network), site, randomness, other)
        return Audit(chosen, name, tuple(ours.recovered), tuple(ours.tests), tuple(ours.controls))
    if chosen == "masked":
        found = audit_masked(day, plan.limits, site, randomness, other)
    else:
        found = _AUDITS[chosen](plan, site)
    return Audit(chosen, name, tuple(found))


# Schemes without masks: what their messages show.


def _truths(plan: DayPlan, site: int) -> dict[str, tuple[Floats, str]]:
    """Return the true quantities of a site, with their units."""
    day, own = plan.day, plan.day.sites[site]
    x, base = plan.outcome.setpoints[site], plan.day.network.base_mva
    found = {
        "net demand": (own.demand_p(x) * base, "MW"),
        "load": (own.load_p * base, "MW"),
    }
    if len(own.linear):
        found["schedule"] = (x[powers_of(own.spans, day.interval_count)] * base, "MW")
        found["cost coefficients"] = (own.linear / energy_of(day), f"{day.currency}/MWh")
    return found


def _audit_open(role: str, how: str) -> Callable[[DayPlan, int], list[Recovered]]:
    """Everything is handed to a role in plain text."""

    def read(plan: DayPlan, site: int) -> list[Recovered]:
        return [
            scored(name, role, truth.copy(), truth, unit, how)
            for name, (truth, unit) in _truths(plan, site).items()
        ]

    return read


def _audit_alone(plan: DayPlan, site: int) -> list[Recovered]:
    return [
        nothing(name, "public", truth, unit, "no message is sent")
        for name, (truth, unit) in _truths(plan, site).items()
    ]


def _audit_exchange(plan: DayPlan, site: int) -> list[Recovered]:
    """Read what answers tell the coordinator, and guess the rest from net demand."""
    own, truths = plan.day.sites[site], _truths(plan, site)
    demand, unit = truths["net demand"]
    found = [scored("net demand", "coordinator", demand.copy(), demand, unit, "read from answers")]
    load, _ = truths["load"]
    # The best guess without the load: production is what shows as negative net demand.
    found.append(
        scored("load", "coordinator", np.maximum(demand, 0.0), load, unit, "net demand for load")
    )
    if "schedule" in truths:
        schedule, _ = truths["schedule"]
        count = plan.day.interval_count
        groups = len(schedule) // count
        shape = np.maximum(-demand, 0.0)
        guess = np.tile(shape / max(groups, 1), groups)
        found.append(
            scored("schedule", "coordinator", guess, schedule, unit, "exports, shared evenly")
        )
        cost = own.cost(plan.outcome.setpoints[site])
        found.append(
            scored(
                "cost of its devices",
                "coordinator",
                np.array([cost]),
                np.array([cost]),
                plan.day.currency,
                "read from answers",
            )
        )
    found += [
        nothing(name, "neighbour", truth, unit, "gets no message about it")
        for name, (truth, unit) in truths.items()
    ]
    return found


def _audit_neighbour(plan: DayPlan, site: int) -> list[Recovered]:
    """Read the parent's branch flow, and the balance that all neighbours see together."""
    day, truths = plan.day, _truths(plan, site)
    tree = day.network.tree
    demand, unit = truths["net demand"]
    base = day.network.base_mva
    flow = day.flows(plan.outcome.setpoints).active * base
    children = np.flatnonzero(np.asarray(tree.parent) == site)
    children = children[children != site]
    together = flow[site] - flow[children].sum(axis=0)
    if site == tree.root:
        together = demand.copy()
    found = [
        scored("net demand", "parent", flow[site], demand, unit, "the shared branch's flow"),
        scored(
            "net demand", "all neighbours together", together, demand, unit, "balance of the bus"
        ),
        scored(
            "load",
            "all neighbours together",
            np.maximum(together, 0.0),
            truths["load"][0],
            unit,
            "net demand for load",
        ),
    ]
    found += [
        nothing(name, "neighbour", truth, unit, "stays with the site")
        for name, (truth, unit) in truths.items()
        if name in ("schedule", "cost coefficients")
    ]
    return found


_AUDITS: dict[str, Callable[[DayPlan, int], list[Recovered]]] = {
    "alone": _audit_alone,
    "central": _audit_open("operator", "it is handed everything"),
    "ledger": _audit_open("public", "read from the ledger"),
    "neighbour": _audit_neighbour,
    "neighbour-ledger": _audit_open("public", "bids and iterates are recorded in plain text"),
    "exchange": _audit_exchange,
}


AUDITED = (*_AUDITS, "masked", "sealed")
"""Schemes that an audit knows how to attack."""
