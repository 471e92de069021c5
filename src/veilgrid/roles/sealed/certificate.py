"""The day's certificate on shares: every site's committed problem, the network, the gap [sealed 6].

For any prices and multipliers, ``cost - bound`` is the sum of each site's complementarity and of
the network's own gap (:mod:`veilgrid.admm.certify`). Each summand is a shared number; signs and
sums are checked by comparisons, and only verdicts, the cost and the gap open.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from veilgrid.errors import invariant
from veilgrid.mpc import Engine, Mpc, Shares, Steps, concatenate
from veilgrid.mpc._prime import sums_by_index
from veilgrid.mpc.bounded import GROUP_MAX, Part, out_of_range
from veilgrid.mpc.field import PRIME_FIELD, Words, encode_words
from veilgrid.roles.sealed.bid import Shape
from veilgrid.roles.sealed.register import FACTOR_BITS, POWER_BITS, Integers, Register
from veilgrid.roles.sealed.step import below_zero, limit_checks
from veilgrid.roles.sealed.step_dual import COMPARED_BOUND, StepResult, rounded_steps

PRIMAL_MAX: Final = 2.0**-23
"""Per-unit; by so much a constraint may be exceeded, 1.2e-7."""

DUAL_MAX: Final = 2.0**-30
"""Price units; by so much a reduced cost may differ from its proof."""

COST_BITS: Final = 2 * POWER_BITS
"""Binary places of amounts in price units."""

TINY_AMOUNT: Final = 1e-4
"""Price units; who pays by so little more than alone is not counted as worse off."""

NARROW: Final = 2**57
"""Bound of what is compared in steps of ``2**-32``: what passes the range check may exceed
:data:`PRICE_MAX` by 2**11 [mpc 7.8]."""

SUM_MAX: Final = 2**125
"""Bound of sums over all sites; what is in range stays below it."""

ERROR_MAX: Final = 2**32
"""Bound of an honest reduced cost less its proof, scale 2**62: :data:`DUAL_MAX`."""

PRODUCT_MAX: Final = 2**69
"""Bound of honest products, scale 2**62: 128 per-unit or price units."""

PRODUCT_GROUP: Final = 64
"""Products that are looked at together: what passes stays below what may be rounded, 2**76."""


@dataclass(frozen=True)
class Stack:
    """All sites' vectors, one after the other: where each part lies; public."""

    shapes: tuple[Shape, ...]
    proofs: dict[str, Shares]
    bids: dict[str, Shares]
    owner_of_variable: Integers
    owner_of_row: Integers

    @classmethod
    def of(
        cls, shapes: Sequence[Shape], bids: Sequence[Shares], proofs: Sequence[Shares | None]
    ) -> "Stack":
        """Cut bids and proofs into parts and join each part over all sites.

        A site without a proof takes its fallback.
        """
        own = [
            shape if proof is not None else shape.still()
            for shape, proof in zip(shapes, proofs, strict=True)
        ]
        kept = [
            bid if proof is not None else _idle(shape, bid)
            for shape, bid, proof in zip(shapes, bids, proofs, strict=True)
        ]
        given = [proof if proof is not None else bids[0][:0] for proof in proofs]
        return cls(
            shapes=tuple(own),
            bids=_joined([shape.bid_parts for shape in own], kept),
            proofs=_joined([shape.proof_parts for shape in own], given),
            owner_of_variable=_owners([shape.variable_count for shape in own]),
            owner_of_row=_owners([shape.row_count for shape in own]),
        )

    def columns(self, attribute: str) -> Integers:
        """Return indices into the joined variables."""
        return self._shifted(attribute, [shape.variable_count for shape in self.shapes])

    def rows(self, attribute: str) -> Integers:
        """Return indices into the joined rows."""
        return self._shifted(attribute, [shape.row_count for shape in self.shapes])

    def times(self, attribute: str) -> Integers:
        """Return indices into the joined intervals."""
        return self._shifted(attribute, [shape.interval_count for shape in self.shapes])

    def _shifted(self, attribute: str, counts: Sequence[int]) -> Integers:
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
        parts = [
            np.asarray(getattr(shape, attribute), dtype=np.int64) + start
            for shape, start in zip(self.shapes, starts, strict=True)
        ]
        return np.concatenate(parts)


def _idle(shape: Shape, bid: Shares) -> Shares:
    """Return the bid of a site that takes its fallback as its load."""
    times = shape.interval_count
    fallback = bid[2 * times : 4 * times]
    return concatenate([fallback, fallback, bid[4 * times : 4 * times + 2]])


def _owners(counts: Sequence[int]) -> Integers:
    return np.repeat(np.arange(len(counts), dtype=np.int64), counts)


def _joined(layouts: Sequence[dict[str, int]], vectors: Sequence[Shares]) -> dict[str, Shares]:
    pieces: dict[str, list[Shares]] = {name: [] for name in layouts[0]}
    for layout, vector in zip(layouts, vectors, strict=True):
        start = 0
        for name, length in layout.items():
            pieces[name].append(vector[start : start + length])
            start += length
        invariant(start == len(vector), "a vector has the length of its parts")
    return {name: concatenate(parts) for name, parts in pieces.items()}


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


class Window(NamedTuple):
    """Numbers that the checks of sites take for small, whose they are, and how small."""

    values: Words
    owners: Integers
    bound: int
    group: int


@dataclass(frozen=True)
class _Products:
    """Products of two secrets that the checks need, summed to where they belong."""

    activity: Words
    pull: Words
    moved_q: Words
    pull_q: Words
    bent: Shares
    bent_point: Shares


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
    exceeded = yield from limit_checks(mpc, register, by_bus_p, by_bus_q, PRIMAL_MAX)
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


class Judged(NamedTuple):
    """What :func:`judge_sites` finds out about each site.

    Attributes
    ----------
    demand_p, demand_q : (site * interval,), on shares, scale 2**32
        That follow from bid and plan.
    failed : (site,)
        How many checks a site fails.
    gaps : (site,), on shares, scale 2**65
        What the cheapest plan would save each site at these prices.
    windows
        What :func:`beyond` has to look at before any of this counts.
    """

    demand_p: Shares
    demand_q: Shares
    failed: list[int]
    gaps: Shares
    products: _Products
    windows: list[Window]


def judge_sites(mpc: Mpc, stack: Stack, price_p: Shares, price_q: Shares) -> Steps[Judged]:
    """Check every site's plan and multipliers at prices of scale 2**32 against its bid."""
    products = yield from _multiplied(mpc, stack, price_q)
    demand_p = _demand_p(stack)
    demand_q = yield from _demand_q(mpc, stack, products)
    rows = yield from _row_values(mpc, products)
    failed = yield from _site_checks(mpc, stack, products, price_p)
    gaps = yield from _complementarity(mpc, stack, rows, products)
    windows = _windows(stack, products, price_p)
    return Judged(demand_p, demand_q, failed, gaps, products, windows)


def _windows(stack: Stack, products: _Products, price_p: Shares) -> list[Window]:
    """Return the products of two secrets that are compared or rounded, by owner."""
    variables, rows = stack.owner_of_variable, stack.owner_of_row
    times = _owners([shape.interval_count for shape in stack.shapes])
    moving = np.unique(stack.times("reactive_rows"))
    curved = stack.columns("curved")
    error = PRIME_FIELD.subtract(
        _reduced(stack, products, price_p),
        _wide((stack.proofs["above"] - stack.proofs["below"]).data),
    )
    wide = [
        (products.activity, rows),
        (np.ascontiguousarray(products.moved_q[moving]), times[moving]),
        (products.bent.data, variables[curved]),
        (products.bent_point.data, variables[curved]),
    ]
    parts = [Window(*one, PRODUCT_MAX, PRODUCT_GROUP) for one in wide if len(one[1])]
    return [*parts, Window(error, variables, ERROR_MAX, GROUP_MAX)] if len(error) else parts


def beyond(mpc: Engine, windows: Sequence[Window]) -> Steps[list[int]]:
    """Open which sites' products are too large for the checks to mean anything [sealed 6].

    A comparison looks at the low bits of a number, so one that is far too large can pass it.
    """
    parts: dict[str, Part] = {}
    for kind, (values, owners, bound, group) in enumerate(windows):
        for owner in np.unique(owners).tolist():
            own = np.ascontiguousarray(values[owners == owner])
            for first in range(0, len(own), group):
                piece = np.ascontiguousarray(own[first : first + group])
                parts[f"{owner} {kind} {first}"] = Part(piece, [(len(piece), bound)])
    found = yield from out_of_range(mpc, parts)
    return sorted({int(name.split(" ", 1)[0]) for name in found})


def demands(mpc: Mpc, stack: Stack) -> Steps[tuple[Shares, Shares]]:
    """Return the net demands that follow from bids and plans, scale 2**32."""
    nothing = mpc.constant([0] * len(stack.bids["load_p"]))
    products = yield from _multiplied(mpc, stack, nothing)
    return _demand_p(stack), (yield from _demand_q(mpc, stack, products))


def rounded(mpc: Mpc, wide: Shares) -> Steps[Shares]:
    """Bring numbers from scale 2**62 to 2**32, to the nearest step."""
    half = wide + 2 ** (FACTOR_BITS - 1)
    fine = yield from mpc.truncate(half.claim(COMPARED_BOUND), FACTOR_BITS)
    return fine.claim(NARROW)


def _multiplied(mpc: Mpc, stack: Stack, price_q: Shares) -> Steps[_Products]:
    """Multiply secret coefficients with secret variables and multipliers, in one round."""
    bids, proofs = stack.bids, stack.proofs
    x, point = proofs["x"], proofs["point"]
    entry_columns, entry_rows = stack.columns("columns"), stack.rows("rows")
    reactive_columns = stack.columns("reactive_columns")
    reactive_times = stack.times("reactive_rows")
    curved = stack.columns("curved")
    y = proofs["row_above"] - proofs["row_below"]
    left = [bids["matrix"]] * 2 + [bids["inject_q"]] * 2 + [bids["quadratic"]] * 2
    right = [
        x[entry_columns],
        y[entry_rows],
        x[reactive_columns],
        price_q[reactive_times],
        x[curved],
        point,
    ]
    sizes = [len(part) for part in left]
    product = yield from _product(mpc, concatenate(left), concatenate(right))
    parts = np.split(product.data, np.cumsum(sizes)[:-1])
    variables, rows = len(x), len(proofs["row_above"])
    times = len(bids["load_p"])
    bound = product.bound
    return _Products(
        activity=_gathered(parts[0], entry_rows, rows),
        pull=_gathered(parts[1], entry_columns, variables),
        moved_q=_gathered(parts[2], reactive_times, times),
        pull_q=_gathered(parts[3], reactive_columns, variables),
        bent=mpc.wrap(parts[4], bound),
        bent_point=mpc.wrap(parts[5], bound),
    )


def _product(mpc: Mpc, left: Shares, right: Shares) -> Steps[Shares]:
    """Multiply; on a day without any choice there is nothing to multiply."""
    if not len(left):
        return left
    return (yield from mpc.multiply(left, right))


def _signs(mpc: Mpc, values: Shares) -> Steps[Shares]:
    """Return 1 where an element is below zero, if there is any."""
    if not len(values):
        return values
    return (yield from mpc.is_negative(values))


def _gathered(values: Words, index: Integers, count: int) -> Words:
    """Add values up by index."""
    return sums_by_index(np.ascontiguousarray(values), np.ascontiguousarray(index), count)


def _demand_p(stack: Stack) -> Shares:
    """Return the sites' net active demands, scale 2**32; no message."""
    out, start, time = [], 0, 0
    for shape in stack.shapes:
        load = stack.bids["load_p"][time : time + shape.interval_count]
        own = stack.proofs["x"][start : start + shape.variable_count]
        entries = shape.inject_p.tocoo()
        if entries.nnz:
            signs = encode_words(np.asarray(entries.data, dtype=np.int64))
            moved = PRIME_FIELD.multiply(np.ascontiguousarray(own.data[entries.col]), signs)
            total = _gathered(moved, np.asarray(entries.row, np.int64), shape.interval_count)
            load = Shares(PRIME_FIELD.subtract(load.data, total), load.bound, load.constant)
        out.append(load)
        start += shape.variable_count
        time += shape.interval_count
    return concatenate(out).claim(NARROW)


def _demand_q(mpc: Mpc, stack: Stack, products: _Products) -> Steps[Shares]:
    """Return the sites' net reactive demands, scale 2**32."""
    load = stack.bids["load_q"]
    moving = np.unique(stack.times("reactive_rows"))
    if not len(moving):
        return load.claim(NARROW)
    moved = mpc.wrap(np.ascontiguousarray(products.moved_q[moving]), COMPARED_BOUND // 2)
    fine = yield from rounded(mpc, moved)
    data = load.data.copy()
    data[moving] = PRIME_FIELD.subtract(np.ascontiguousarray(data[moving]), fine.data)
    return mpc.wrap(data, NARROW)


def _row_values(mpc: Mpc, products: _Products) -> Steps[Shares]:
    """Return the activity of the sites' own rows, scale 2**32."""
    if not len(products.activity):
        return mpc.wrap(products.activity, NARROW)
    return (yield from rounded(mpc, mpc.wrap(products.activity, COMPARED_BOUND // 2)))


def _site_checks(mpc: Mpc, stack: Stack, products: _Products, price_p: Shares) -> Steps[list[int]]:
    """Count, for each site, bounds that are broken and multipliers that do not fit."""
    bids, proofs = stack.bids, stack.proofs
    x = proofs["x"]
    slack = rounded_steps(PRIMAL_MAX, POWER_BITS)
    narrow = [
        x - bids["lower"] + slack,
        bids["upper"] - x + slack,
        proofs["above"],
        proofs["below"],
    ]
    narrow_owners = [stack.owner_of_variable] * 4
    is_equality = np.concatenate([shape.is_equality for shape in stack.shapes])
    ranged = np.flatnonzero(~is_equality)
    if len(ranged):
        narrow += [proofs["row_above"][ranged], proofs["row_below"][ranged]]
        narrow_owners += [stack.owner_of_row[ranged]] * 2
    wide, wide_owners = _wide_checks(mpc, stack, products, price_p)
    small = concatenate(narrow).claim(NARROW)
    owners = np.concatenate([*narrow_owners, *wide_owners])
    first = yield from _signs(mpc, small)
    second = yield from _signs(mpc, wide)
    bits = concatenate([first, second])
    counts = _gathered(bits.data, owners, len(stack.shapes))
    return (yield from mpc.open(mpc.wrap(counts, len(bits))))


def _wide_checks(
    mpc: Mpc, stack: Stack, products: _Products, price_p: Shares
) -> tuple[Shares, list[Integers]]:
    """Collect own rows and reduced costs at scale 2**62."""
    bids, proofs = stack.bids, stack.proofs
    add, subtract = PRIME_FIELD.add, PRIME_FIELD.subtract
    allowed = mpc.constant([rounded_steps(PRIMAL_MAX, POWER_BITS + FACTOR_BITS)]).data
    parts: list[Words] = []
    owners: list[Integers] = []
    for has, bound, sign in (("has_lower", "row_lower", 1), ("has_upper", "row_upper", -1)):
        present = np.flatnonzero(np.concatenate([getattr(s, has) for s in stack.shapes]))
        if not len(present):
            continue
        value = np.ascontiguousarray(products.activity[present])
        limit = _wide(bids[bound][present].data)
        room = subtract(value, limit) if sign > 0 else subtract(limit, value)
        parts.append(add(room, np.repeat(allowed, len(present), axis=0)))
        owners.append(stack.owner_of_row[present])
    error = subtract(
        _reduced(stack, products, price_p), _wide((proofs["above"] - proofs["below"]).data)
    )
    tolerance = mpc.constant([rounded_steps(DUAL_MAX, POWER_BITS + FACTOR_BITS)]).data
    tolerance = np.repeat(tolerance, len(error), axis=0)
    parts += [add(tolerance, error), subtract(tolerance, error)]
    owners += [stack.owner_of_variable] * 2
    return mpc.wrap(np.concatenate(parts), COMPARED_BOUND), owners


def _wide(data: Words) -> Words:
    return np.asarray(PRIME_FIELD.scale(encode_words(np.array([2**FACTOR_BITS])), data))


def _reduced(stack: Stack, products: _Products, price_p: Shares) -> Words:
    """Return the reduced costs of all variables at the proofs' points, scale 2**62."""
    add, subtract = PRIME_FIELD.add, PRIME_FIELD.subtract
    own = _wide(stack.bids["linear"].data)
    curved = stack.columns("curved")
    if len(curved):
        own[curved] = add(np.ascontiguousarray(own[curved]), products.bent_point.data)
    gained, start, time = [], 0, 0
    for shape in stack.shapes:
        entries = shape.inject_p.tocoo()
        price = price_p.data[time : time + shape.interval_count]
        signs = encode_words(np.asarray(entries.data, dtype=np.int64))
        values = PRIME_FIELD.multiply(np.ascontiguousarray(price[entries.row]), signs)
        gained.append(_gathered(values, np.asarray(entries.col, np.int64), shape.variable_count))
        start += shape.variable_count
        time += shape.interval_count
    own = subtract(own, _wide(np.concatenate(gained)))
    return np.asarray(subtract(subtract(own, products.pull_q), products.pull))


def _complementarity(mpc: Mpc, stack: Stack, rows: Shares, products: _Products) -> Steps[Shares]:
    """Return each site's part of the gap, scale 2**65."""
    bids, proofs = stack.bids, stack.proofs
    x = proofs["x"]
    left = [proofs["above"], proofs["below"]]
    right = [x - bids["lower"], bids["upper"] - x]
    owners = [stack.owner_of_variable] * 2
    has_lower = np.flatnonzero(np.concatenate([shape.has_lower for shape in stack.shapes]))
    has_upper = np.flatnonzero(np.concatenate([shape.has_upper for shape in stack.shapes]))
    for present, multiplier, room in (
        (has_lower, proofs["row_above"], rows - bids["row_lower"]),
        (has_upper, proofs["row_below"], bids["row_upper"] - rows),
    ):
        if len(present):
            left.append(multiplier[present])
            right.append(room[present])
            owners.append(stack.owner_of_row[present])
    curved = stack.columns("curved")
    if len(curved):
        off = x[curved] - proofs["point"]
        bend = yield from rounded(
            mpc, (products.bent - products.bent_point).claim(COMPARED_BOUND // 2)
        )
        left.append(bend)
        right.append(off)
        owners.append(stack.owner_of_variable[curved])
    double = [2] * (len(left) - bool(len(curved))) + [1] * bool(len(curved))
    scaled = [part * factor for part, factor in zip(left, double, strict=True)]
    return (yield from _summed(mpc, scaled, right, owners, len(stack.shapes)))


def _summed(
    mpc: Mpc,
    left: Sequence[Shares],
    right: Sequence[Shares],
    owners: Sequence[Integers],
    count: int,
) -> Steps[Shares]:
    """Return sums of products by owner; every product is one multiplication."""
    product = yield from _product(
        mpc, concatenate(left).claim(NARROW), concatenate(right).claim(NARROW)
    )
    return mpc.wrap(_gathered(product.data, np.concatenate(owners), count), COMPARED_BOUND)


def payments(
    mpc: Mpc, stack: Stack, price_p: Shares, price_q: Shares, demand_p: Shares, demand_q: Shares
) -> Steps[Shares]:
    """Return what each site pays, scale 2**65."""
    width = stack.shapes[0].interval_count
    parts = yield from mpc.inner(
        concatenate([price_p, price_q]).claim(NARROW),
        concatenate([demand_p, demand_q]).claim(NARROW),
        width,
    )
    count = len(stack.shapes)
    return ((parts[:count] + parts[count:]) * 2).claim(COMPARED_BOUND)


def _own_costs(mpc: Mpc, stack: Stack, products: _Products) -> Steps[Shares]:
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
    moved = yield from _summed(mpc, left, right, owners, len(stack.shapes))
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
