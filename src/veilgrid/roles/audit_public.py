"""Attacks of somebody outside: what the ledger's records and sizes on the wire tell [masking 8].

Nobody but the participants holds masked data. The public reads the ledger (names, digests, steps,
payments at settlement), knows tariff and network, meters the substation, and sees how long messages
under transport encryption are. All attacks here use only that.
"""

from typing import NamedTuple

import numpy as np

from veilgrid.admm.outcome import Coordination
from veilgrid.errors import invariant
from veilgrid.grid.day import Day
from veilgrid.grid.network import Floats
from veilgrid.qp.mask import MaskedProblem
from veilgrid.roles.audit_score import Recovered, powers_of, scored

NUMBER_OCTETS = 8


class Sizes(NamedTuple):
    """Octets that are sent for one site: problem near a target, H' without penalty, one c'."""

    near: int
    cheapest: int
    linear: int

    @classmethod
    def of(cls, problem: MaskedProblem) -> "Sizes":
        """Measure what a site sends; encryption in transit does not change lengths."""
        linear = NUMBER_OCTETS * len(problem.linear)
        return cls(len(problem.octets), NUMBER_OCTETS * problem.quadratic.size, linear)


class Shape(NamedTuple):
    """What sizes tell of a site: set-points, and of these stored energies, an interval."""

    groups: int
    storages: int


def shape_from(sizes: Sizes, intervals: int) -> Shape:
    """Solve sizes for the numbers of variables and rows, and these for the devices.

    c' has one number for each masked variable, G' and h' have a row for each bound of each
    set-point and a few for other rules, and each storage takes one equation an interval out of
    the variables.
    """
    width = sizes.linear // NUMBER_OCTETS
    invariant(width > 0, "a masked problem has variables")
    rows = (sizes.near - sizes.cheapest) / NUMBER_OCTETS / (width + 1)
    groups = int(rows / 2.0) // intervals
    return Shape(groups, round(groups - width / intervals))


def audit_public(
    day: Day, plan: Coordination, site: int, problem: MaskedProblem
) -> list[Recovered]:
    """Attack what the public has of a site, and score it.

    Parameters
    ----------
    day, plan
        What was done: the truth, the substation's exchange and the payments.
    site : index
        Which one.
    problem
        Of which only the size is used.
    """
    own, base = day.sites[site], day.network.base_mva
    x = plan.setpoints[site]
    demand_p, demand_q = day.demands(plan.setpoints)
    payments = (plan.price_p * demand_p + plan.price_q * demand_q).sum(axis=1)
    profile = demand_p.sum(axis=0)
    guess = _shared(payments[site], profile, plan.price_p[day.network.tree.root])
    found = _devices(day, site, problem)
    truth = demand_p[site]
    hours = day.horizon.hours
    energy, due = float(guess.sum()), float(truth.sum())
    off = abs(energy - due) / abs(due) if due else np.inf
    found.append(
        scored(
            "energy of the day",
            "public",
            np.array([energy]) * base * hours,
            np.array([due]) * base * hours,
            "MWh",
            f"its payment at the tariff, spread as the substation's exchange: {off:.0%} off",
        )
    )
    how = f"the same, explains {_explained(guess, truth):.0%} of its square"
    found.append(scored("net demand", "public", guess * base, truth * base, "MW", how))
    powers = powers_of(own.spans, day.interval_count)
    if len(powers):
        parts = len(powers) // day.interval_count
        output = np.tile(np.maximum(-guess, 0.0) / parts, parts)
        told = _explained(output, x[powers])
        how = f"exports of that net demand, shared evenly, explain {told:.0%} of its square"
        row = scored("schedule", "public", output * base, x[powers] * base, "MW", how)
        is_told = bool((output > 0.0).all())  # A zero guessed for want of better is no find.
        found.append(row if is_told else row._replace(share_recovered=0.0))
    return found


def _devices(day: Day, site: int, problem: MaskedProblem) -> list[Recovered]:
    """Count set-points and storages from sizes alone."""
    own = day.sites[site]
    count = day.interval_count
    shape = shape_from(Sizes.of(problem), count)
    storages = sum(span.group == "energy" for span in own.spans)
    return [
        scored(
            "number of set-points and of storages",
            "public",
            np.array(shape, dtype=np.float64),
            np.array([len(own.linear) / count, storages]),
            "an interval",
            "lengths of what it sends",
        )
    ]


def _shared(payment: float, profile: Floats, price: Floats) -> Floats:
    """Return the net demand that has a payment and the shape of the substation's exchange."""
    worth = float(price @ profile)
    if abs(worth) < 1e-12:
        return np.full_like(profile, payment / float(price.sum()))
    return np.asarray(payment / worth * profile)


def _explained(guess: Floats, truth: Floats) -> float:
    """Return the part of a quantity's square that a guess explains; 0 = no better than zero."""
    size = float(truth @ truth)
    left = float((guess - truth) @ (guess - truth))
    return max(0.0, 1.0 - left / size) if size > 0.0 else float(left == 0.0)
