"""Is a day infeasible? Proved on shares from the committed bids, not from claims [sealed 7].

Strengths of network rows and the least that all sites can leave of them prove that no plan keeps
the limits [Farkas]. The least is a linear problem of each site over its own committed
constraints: its plan and multipliers are checked like those of the certificate, at the part of
its prices that comes from rows and with devices that cost nothing. What a proof lacks to the least
counts against the claim that the day is infeasible, so a site that relieves less than it could
cannot have a day called so; it is named.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from veilgrid.mpc import Engine, Mailbox, Shares, Steps
from veilgrid.mpc._round import together
from veilgrid.mpc.bounded import not_negative
from veilgrid.mpc.field import PRIME_FIELD, encode
from veilgrid.roles.sealed.bid import PRICE_MAX, Shape
from veilgrid.roles.sealed.certificate import placed
from veilgrid.roles.sealed.heard import committed, ranged, take_in
from veilgrid.roles.sealed.judge import COST_BITS, beyond, judge_sites, payments, rounded
from veilgrid.roles.sealed.program import Priced
from veilgrid.roles.sealed.register import FACTOR_BITS, POWER_BITS
from veilgrid.roles.sealed.stack import Stack
from veilgrid.roles.sealed.step import excess_of
from veilgrid.roles.sealed.step_dual import StepResult, rounded_steps

SURPLUS_MIN: Final = 2.0**-14
"""Price units; by so much, and by what proofs may lack, the least that is left must exceed the
bounds: far above rounding."""

HONEST_MAX: Final = 2**77
"""Bound of honest surpluses and of what proofs lack, scale 2**65: 4,096 price units."""


@dataclass(frozen=True)
class Doubted:
    """A day that looks infeasible.

    Attributes
    ----------
    priced
        The network step whose rows cannot be met, as it seems.
    absent
        Buses without a bid that counts.
    allowed : price units
        What all proofs together may lack.
    """

    priced: Priced
    absent: frozenset[int]
    allowed: float


def relief_program(
    mpc: Engine,
    shapes: Sequence[Shape],
    bids: Mailbox,
    proofs: Mailbox,
    doubted: Doubted,
    still: Mapping[int, Shares],
) -> Steps[dict[str, Any]]:
    """Open whether the rows in force are exceeded whatever the sites do, and by whom it is hidden.

    If they are, it opens by how much, in coarse steps, the demands that relieve them most exceed
    which.
    """
    proved = yield from take_in(mpc, proofs, PRICE_MAX)
    priced, register = doubted.priced, doubted.priced.register
    runs = {bus: shapes[bus].proof_runs for bus in proved.vectors}
    checks = priced.doubted(mpc, still), ranged(mpc, proved, runs)
    doubt, proved = yield from together(*checks)
    if doubt or proved.flags:
        return doubt or proved.refusal  # type: ignore[no-any-return]
    step = yield from priced.duals(mpc, still)
    own = committed(mpc, shapes, bids, doubted.absent)
    stack = _free_of_cost(
        mpc, Stack.of(shapes, own, [proved.vectors.get(bus) for bus in range(len(shapes))])
    )
    buses = np.arange(len(shapes), dtype=np.int64)
    zero = mpc.constant([0])
    pull_p = yield from rounded(mpc, step.prices(zero, buses, is_pull=True))
    pull_q = yield from rounded(mpc, step.prices(zero, buses, is_reactive=True))
    judged = yield from judge_sites(mpc, stack, pull_p, pull_q)
    outside = yield from beyond(mpc, judged.windows)
    left = yield from payments(mpc, stack, pull_p, pull_q, judged.demand_p, judged.demand_q)
    lacking, is_exceeded = yield from _compared(
        mpc, step, judged.gaps, left, doubted, sorted(proved.vectors)
    )
    wrong = {bus for bus, count in enumerate(judged.failed) if count} | set(outside) | set(lacking)
    if wrong or not is_exceeded:
        return {"unproved": sorted(wrong), "is_unmet": False}
    places = priced.binding.active().binding()
    demand_p, demand_q = (
        placed(mpc, register, buses, part) for part in (judged.demand_p, judged.demand_q)
    )
    worst = yield from excess_of(mpc, register, demand_p, demand_q, places)
    return {"unproved": [], "is_unmet": True, "unmet": worst}


def _free_of_cost(mpc: Engine, stack: Stack) -> Stack:
    """Return the same sites with devices that cost nothing."""
    nothing = {name: mpc.constant([0] * len(stack.bids[name])) for name in ("quadratic", "linear")}
    return replace(stack, bids={**stack.bids, **nothing})


def _compared(
    mpc: Engine,
    step: StepResult,
    gaps: Shares,
    left: Shares,
    doubted: Doubted,
    members: Sequence[int],
) -> Steps[tuple[list[int], bool]]:
    """Open who lacks too much to its least, and whether the least of all exceeds the bounds."""
    subtract = PRIME_FIELD.subtract
    spare = rounded_steps(doubted.allowed / max(len(members), 1), COST_BITS + 1)
    own = np.ascontiguousarray(gaps.data[list(members)])
    near = mpc.constant([spare] * len(members)).data
    # Below zero no honest one lies; what is subtracted would then be added.
    rooms = np.concatenate([subtract(near, own), PRIME_FIELD.add(near, own)])
    up = encode([2 ** (COST_BITS + 1 - POWER_BITS - FACTOR_BITS)])
    bound = PRIME_FIELD.scale(up, step.rent(mpc.constant([0])).data)
    least = subtract(left.sum().data, gaps.sum().data)
    beyond_bounds = subtract(least, bound)
    margin = rounded_steps(SURPLUS_MIN + doubted.allowed, COST_BITS + 1)
    over = subtract(beyond_bounds, mpc.constant([margin]).data)
    values = mpc.wrap(np.concatenate([rooms, over]), HONEST_MAX)
    *fine, is_exceeded = yield from not_negative(mpc, values, HONEST_MAX)
    pairs = zip([*members, *members], fine, strict=True)
    return sorted({bus for bus, is_fine in pairs if not is_fine}), is_exceeded
