"""The day's certificate on shares: every site's committed problem, the network, the gap [sealed 6].

For any prices and multipliers, ``cost - bound`` is the sum of each site's complementarity and of
the network's own gap (:mod:`veilgrid.admm.certify`). Each summand is a shared number; signs and
sums are checked by comparisons, and only verdicts, the cost and the gap open.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from veilgrid.mpc import Mpc, Shares, Steps, concatenate
from veilgrid.mpc.field import BOUND_MAX, PRIME_FIELD, encode_words
from veilgrid.roles.sealed.judge import (
    COST_BITS,
    NARROW,
    Products,
    Window,
    judge_sites,
    payments,
    rounded,
    summed,
)
from veilgrid.roles.sealed.register import FACTOR_BITS, POWER_BITS, Integers, Register
from veilgrid.roles.sealed.stack import Stack
from veilgrid.roles.sealed.step import below_zero, limit_checks
from veilgrid.roles.sealed.step_dual import COMPARED_BOUND, StepResult, rounded_steps

TINY_AMOUNT: Final = 1e-4
"""Price units; who pays by so little more than alone is not counted as worse off."""

ROWS_MAX: Final = 2.0**-20
"""Per-unit; by so much a network row may be exceeded, 9.5e-7: a little more than answers that end
the coordination may exceed it (``ExchangeSettings.excess_max``), so these are not refused here."""

SUM_MAX: Final = BOUND_MAX
"""Sums over all sites may be anything: who makes them large is named after they open."""


@dataclass(frozen=True)
class SealedCertificate:
    """What opens about a finished day, and what stays shared for the settlement.

    Attributes
    ----------
    failed : (site,)
        How many of a site's own checks failed; zero for a site that kept its word.
    exceeded
        Exceeded network rows, (row, interval).
    cost, gap : price units
        Of the plan, and above the bound that its prices prove.
    payments, own_costs, gaps : (site,), on shares, scale 2**65
        Of each site; its part of the gap is what its cheapest answer would save it.
    """

    failed: tuple[int, ...]
    exceeded: tuple[tuple[int, int], ...]
    cost: float
    gap: float
    rent: float
    exchange_cost: float
    worse_off: int
    payments: Shares
    own_costs: Shares
    gaps: Shares
    demand_p: Shares
    demand_q: Shares
    windows: "list[Window]"


def certify(
    mpc: Mpc, register: Register, stack: Stack, buses: Integers, step: StepResult
) -> Steps[SealedCertificate]:
    """Check a whole day on shares.

    Parameters
    ----------
    mpc
        Where to compute.
    register
        The public model; its inner distance is ignored.
    stack
        All sites' bids and proofs, one site a bus.
    buses : (site,)
        Where each site is connected.
    step
        The network step whose prices were agreed.
    """
    zero = mpc.constant([0])
    price_p = yield from rounded(mpc, step.prices(zero, buses))
    price_q = mpc.constant([0] * len(price_p))
    if not register.limits.are_absent:
        price_q = yield from rounded(mpc, step.prices(zero, buses, is_reactive=True))
    judged = yield from judge_sites(mpc, stack, price_p, price_q)
    demand_p, demand_q, failed, gaps = judged[:4]
    paid = yield from payments(mpc, stack, price_p, price_q, demand_p, demand_q)
    own = yield from _own_costs(mpc, stack, judged.products)
    by_bus_p, by_bus_q = (placed(mpc, register, buses, one) for one in (demand_p, demand_q))
    exceeded = yield from limit_checks(mpc, register, by_bus_p, by_bus_q, ROWS_MAX)
    totals = yield from _totals(mpc, register, step, by_bus_p, gaps, paid, own)
    worse = yield from _worse_off(mpc, stack, paid, own)
    cost, gap, exchange, rent = totals
    return SealedCertificate(
        failed=tuple(failed),
        exceeded=tuple(exceeded),
        cost=cost,
        gap=gap,
        rent=rent,
        exchange_cost=exchange,
        worse_off=worse,
        payments=paid,
        own_costs=own,
        gaps=gaps,
        demand_p=by_bus_p,
        demand_q=by_bus_q,
        windows=judged.windows,
    )


def _own_costs(mpc: Mpc, stack: Stack, products: Products) -> Steps[Shares]:
    """Return what each site's own devices cost, scale 2**65."""
    x = stack.proofs["x"]
    left, right = [stack.bids["linear"] * 2], [x]
    owners = [stack.owner_of_variable]
    curved = stack.columns("curved")
    if len(curved):
        bend = yield from rounded(mpc, products.bent.claim(COMPARED_BOUND // 2))
        left.append(bend)
        right.append(x[curved])
        owners.append(stack.owner_of_variable[curved])
    moved = yield from summed(mpc, left, right, owners, len(stack.shapes))
    return _with_fallbacks(mpc, stack, moved)


def _with_fallbacks(mpc: Mpc, stack: Stack, own: Shares) -> Shares:
    """Add what the devices of sites that take their fallback cost; no message."""
    still = np.array([shape.variable_count == 0 for shape in stack.shapes])
    up = encode_words(np.where(still, 2 ** (COST_BITS + 1 - POWER_BITS), 0).astype(np.int64))
    costs = PRIME_FIELD.multiply(np.ascontiguousarray(stack.bids["fallback_cost"].data), up)
    return mpc.wrap(PRIME_FIELD.add(own.data, costs), COMPARED_BOUND)


def placed(mpc: Mpc, register: Register, buses: Integers, demand: Shares) -> Shares:
    """Order the sites' demands by bus."""
    out = np.zeros((register.bus_count, register.interval_count, 2), np.uint64)
    out[buses] = demand.data.reshape(len(buses), -1, 2)
    return mpc.wrap(out.reshape(-1, 2), NARROW)


def _totals(
    mpc: Mpc,
    register: Register,
    step: StepResult,
    demand_p: Shares,
    gaps: Shares,
    paid: Shares,
    own: Shares,
) -> Steps[tuple[float, float, float, float]]:
    """Open cost, gap, cost of the exchange and rent, in price units."""
    wide = demand_p.data.reshape(register.bus_count, register.interval_count, 2)
    total = wide[0]
    for bus in range(1, register.bus_count):
        total = PRIME_FIELD.add(np.ascontiguousarray(total), np.ascontiguousarray(wide[bus]))
    exports = yield from below_zero(mpc, [total])
    tariff = np.where(np.array(exports) == 1, register.sell, register.buy) / register.unit
    weights = encode_words(np.rint(2.0 * tariff * 2.0**POWER_BITS).astype(np.int64))
    exchange = mpc.wrap(PRIME_FIELD.inner(np.ascontiguousarray(total), weights), COMPARED_BOUND)
    rent = (step.rent(mpc.constant([0])) * 2 ** (COST_BITS + 1 - POWER_BITS - FACTOR_BITS)).claim(
        COMPARED_BOUND
    )
    cost = own.claim(2**70).sum() + exchange
    gap = gaps.claim(2**70).sum() + exchange - paid.claim(2**70).sum() + rent
    opened = yield from mpc.open(concatenate([cost, gap, exchange, rent]).claim(SUM_MAX))
    cost_, gap_, exchange_, rent_ = (value / 2.0 ** (COST_BITS + 1) for value in opened)
    return cost_, gap_, exchange_, rent_


def _worse_off(mpc: Mpc, stack: Stack, paid: Shares, own: Shares) -> Steps[int]:
    """Open how many sites pay more than they say they would alone."""
    alone = stack.bids["alone"] * 2 ** (COST_BITS + 1 - POWER_BITS)
    spared = alone - (paid + own) + rounded_steps(TINY_AMOUNT, COST_BITS + 1)
    bits = yield from mpc.is_negative(spared.claim(COMPARED_BOUND))
    opened = yield from mpc.open(bits.sum())
    return int(opened[0])
