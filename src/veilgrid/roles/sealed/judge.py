"""Whether each site's proof fits its committed bid, on shares and at given prices [sealed 5, 6].

Each check is a shared number whose sign is compared; of a site only opens how many it fails.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from veilgrid.mpc import Engine, Mpc, Shares, Steps, concatenate
from veilgrid.mpc._prime import sums_by_index
from veilgrid.mpc.bounded import GROUP_MAX, Part, out_of_range
from veilgrid.mpc.field import PRIME_FIELD, Words, encode_words
from veilgrid.roles.sealed.register import FACTOR_BITS, POWER_BITS, POWER_MAX, Integers
from veilgrid.roles.sealed.stack import Stack, owners_of
from veilgrid.roles.sealed.step_dual import COMPARED_BOUND, rounded_steps

PRIMAL_MAX: Final = 2.0**-23
"""Per-unit; by so much a row may be exceeded, 1.2e-7."""

DUAL_MAX: Final = 2.0**-30
"""Price units; by so much a reduced cost may differ from its proof."""

COST_BITS: Final = 2 * POWER_BITS
"""Binary places of amounts in price units."""

NARROW: Final = 2**57
"""Bound of what is compared in steps of ``2**-32``: what passes the range check may exceed
:data:`PRICE_MAX` by 2**11 [mpc 7.8]."""

ERROR_MAX: Final = 2**32
"""Bound of an honest reduced cost less its proof, scale 2**62: :data:`DUAL_MAX`."""

PRODUCT_MAX: Final = 2**69
"""Bound of honest products, scale 2**62: 128 per-unit or price units."""

PRODUCT_GROUP: Final = 64
"""Products that are looked at together: what passes stays below what may be rounded, 2**76."""


class Window(NamedTuple):
    """Numbers that the checks of sites take for small, whose they are, and how small."""

    values: Words
    owners: Integers
    bound: int
    group: int


@dataclass(frozen=True)
class Products:
    """Products of two secrets that the checks need, summed to where they belong."""

    activity: Words
    pull: Words
    moved_q: Words
    pull_q: Words
    bent: Shares
    bent_point: Shares


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
    products: Products
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


def _windows(stack: Stack, products: Products, price_p: Shares) -> list[Window]:
    """Return the products of two secrets that are compared or rounded, by owner."""
    variables, rows = stack.owner_of_variable, stack.owner_of_row
    times = owners_of([shape.interval_count for shape in stack.shapes])
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
    # What rows are compared with is in range [mpc 7.8], but not once it is brought to scale 2**62.
    limits = [(stack.bids[name].data, rows) for name in ("row_lower", "row_upper")]
    parts = [Window(*one, PRODUCT_MAX, PRODUCT_GROUP) for one in wide if len(one[1])]
    parts += [Window(*one, POWER_MAX, PRODUCT_GROUP) for one in limits if len(one[1])]
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


def _multiplied(mpc: Mpc, stack: Stack, price_q: Shares) -> Steps[Products]:
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
    return Products(
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


def _demand_q(mpc: Mpc, stack: Stack, products: Products) -> Steps[Shares]:
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


def _row_values(mpc: Mpc, products: Products) -> Steps[Shares]:
    """Return the activity of the sites' own rows, scale 2**32."""
    if not len(products.activity):
        return mpc.wrap(products.activity, NARROW)
    return (yield from rounded(mpc, mpc.wrap(products.activity, COMPARED_BOUND // 2)))


def _site_checks(mpc: Mpc, stack: Stack, products: Products, price_p: Shares) -> Steps[list[int]]:
    """Count, for each site, bounds that are broken and multipliers that do not fit."""
    bids, proofs = stack.bids, stack.proofs
    x = proofs["x"]
    # Without any tolerance: bounds that exclude each other would prove whatever one likes. The
    # same holds for costs that fall with their squares.
    narrow = [
        x - bids["lower"],
        bids["upper"] - x,
        proofs["above"],
        proofs["below"],
        bids["quadratic"],
    ]
    curved = stack.columns("curved")
    narrow_owners = [*[stack.owner_of_variable] * 4, stack.owner_of_variable[curved]]
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
    mpc: Mpc, stack: Stack, products: Products, price_p: Shares
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


def _reduced(stack: Stack, products: Products, price_p: Shares) -> Words:
    """Return the reduced costs of all variables at the proofs' points, scale 2**62."""
    add, subtract = PRIME_FIELD.add, PRIME_FIELD.subtract
    own = _wide(stack.bids["linear"].data)
    curved = stack.columns("curved")
    if len(curved):
        own[curved] = add(np.ascontiguousarray(own[curved]), products.bent_point.data)
    gained, time = [], 0
    for shape in stack.shapes:
        entries = shape.inject_p.tocoo()
        price = price_p.data[time : time + shape.interval_count]
        signs = encode_words(np.asarray(entries.data, dtype=np.int64))
        values = PRIME_FIELD.multiply(np.ascontiguousarray(price[entries.row]), signs)
        gained.append(_gathered(values, np.asarray(entries.col, np.int64), shape.variable_count))
        time += shape.interval_count
    own = subtract(own, _wide(np.concatenate(gained)))
    return np.asarray(subtract(subtract(own, products.pull_q), products.pull))


def _complementarity(mpc: Mpc, stack: Stack, rows: Shares, products: Products) -> Steps[Shares]:
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
    return (yield from summed(mpc, scaled, right, owners, len(stack.shapes)))


def summed(
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
