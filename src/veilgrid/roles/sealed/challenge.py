"""Is a wish what its site's bid makes of the prices? Asked at random of a stalled day [sealed 6.4].

A wish follows from the one before it: the site answers the prices near its target, and the wish
moves by a share of the difference. The answer is the site's cheapest plan at prices moved by the
penalty, so the same proof as in the certificate shows that it is one. Which wishes are asked for
is drawn after they were sent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from veilgrid.mpc import Engine, Mailbox, Shares, Steps, concatenate
from veilgrid.mpc._prime import sums_by_index
from veilgrid.mpc._round import together
from veilgrid.mpc.bounded import not_negative
from veilgrid.mpc.field import PRIME_FIELD, Words, encode_words
from veilgrid.roles.sealed.bid import PRICE_MAX, Shape
from veilgrid.roles.sealed.heard import BID, client_of, ranged, take_in, vector
from veilgrid.roles.sealed.judge import COST_BITS, NARROW, beyond, demands, judge_sites, rounded
from veilgrid.roles.sealed.program import Priced
from veilgrid.roles.sealed.register import (
    FACTOR_BITS,
    POWER_BITS,
    WISH_MAX,
    Integers,
    Register,
    factors,
    power_steps,
)
from veilgrid.roles.sealed.stack import Stack
from veilgrid.roles.sealed.step_dual import COMPARED_BOUND, rounded_steps

STEP_MAX: Final = 2.0**-19
"""Per-unit; by so much a wish may differ from the one that follows from prices and bid."""


def moved_price_steps(
    register: Register, bus: int, price: Integers, wish: Integers, demand: Integers
) -> Integers:
    """Return the prices at which an answer is the cheapest, in steps of ``2**-32`` units.

    An answer costs ``price d + penalty (d - target)^2 / 2`` besides the site's own cost, with
    ``target = wish - price / penalty``: at the margin ``2 price - penalty (wish - d)``.

    Parameters
    ----------
    register
        The public model.
    bus
        Whose answer.
    price, wish, demand : (active then reactive, interval), steps
        What was answered, and the answer.
    """
    half, out = 2 ** (FACTOR_BITS - 1), []
    for part, factor in enumerate(_penalties(register, [bus])[:, 0].tolist()):
        off = [int(value) for value in wish[part] - demand[part]]
        pairs = zip(off, factor, strict=True)
        moved = [(value * own + half) >> FACTOR_BITS for value, own in pairs]
        own = 2 * price[part] if any(factor) else price[part]
        out.append(own - np.array(moved, dtype=np.int64))
    return np.array(out)


def _penalties(register: Register, buses: Sequence[int]) -> Integers:
    """Return penalties, price units per per-unit, scale 2**30.

    (active then reactive, bus, interval)
    """
    give = np.stack([register.give_p[list(buses)], register.give_q[list(buses)]])
    own = np.divide(1.0, give, out=np.zeros_like(give), where=give > 0.0) / register.unit
    return factors(own[:, :, np.newaxis] / register.softness)


def _demand_steps(load: Integers, inject: Any, x: Integers, *, is_rounded: bool) -> Integers:
    """Return what the committee makes of load and plan, all in steps.

    ``inject`` holds ones, or coefficients in steps of ``2**-30`` where ``is_rounded``.
    """
    entries, moved = inject.tocoo(), [0] * len(load)
    for row, column, value in zip(entries.row, entries.col, entries.data, strict=True):
        moved[row] += int(value) * int(x[column])
    if is_rounded:
        half = 2 ** (FACTOR_BITS - 1)
        moved = [(value + half) >> FACTOR_BITS for value in moved]
    return np.asarray(load - np.array(moved, dtype=np.int64), dtype=np.int64)


@dataclass(frozen=True)
class Challenged:
    """What is asked about.

    Attributes
    ----------
    former
        The network step whose prices were answered.
    wishes
        What came of it.
    relaxation
        Share of the difference by which wishes move.
    allowed : price units
        The gap that ends the coordination.
    """

    former: Priced
    wishes: Mailbox
    relaxation: float
    allowed: float


def challenge_program(
    mpc: Engine,
    shapes: Sequence[Shape],
    bids: Mailbox,
    proofs: Mailbox,
    asked: Challenged,
    still: Mapping[int, Shares],
) -> Steps[dict[str, Any]]:
    """Open which sites' last wishes do not follow from their bids."""
    proved = yield from take_in(mpc, proofs, PRICE_MAX)
    register, times = asked.former.register, asked.former.register.interval_count
    old = {bus: one[: 2 * times] for bus, one in asked.former.heard(mpc).items()}
    new = {
        bus: vector(mpc, asked.wishes, name, WISH_MAX)[: 2 * times]
        for name in sorted(asked.wishes.received)
        if (bus := int(name.split(" ", 1)[0])) in proved.vectors
    }
    runs = {bus: shapes[bus].proof_runs for bus in proved.vectors}
    told = {"old": (old, [(2 * times, WISH_MAX)]), "new": (new, [(2 * times, WISH_MAX)])}
    checks = asked.former.doubted(mpc, still), ranged(mpc, proved, runs, told)
    doubt, proved = yield from together(*checks)
    if doubt or proved.flags:
        return doubt or proved.refusal  # type: ignore[no-any-return]
    buses = sorted(proved.vectors)
    stack = Stack.of(
        [shapes[bus] for bus in buses],
        [vector(mpc, bids, client_of(bus, BID), PRICE_MAX) for bus in buses],
        [proved.vectors[bus] for bus in buses],
    )
    demand = yield from demands(mpc, stack)
    wish = [concatenate([old[bus][part] for bus in buses]) for part in _halves(times)]
    offered = yield from asked.former.duals(mpc, still)
    paid = yield from _offered(mpc, offered, buses)
    price = yield from _moved_prices(mpc, register, buses, paid, (wish, demand))
    judged = yield from judge_sites(mpc, stack, *price)
    outside = yield from beyond(mpc, judged.windows)
    after = [concatenate([new[bus][part] for bus in buses]) for part in _halves(times)]
    rooms, owners = _step_rooms(mpc, asked, buses, (wish, after, list(demand), paid))
    counts = yield from _counted(mpc, asked, (rooms, owners), judged.gaps, len(buses))
    wrong = [
        bus
        for place, bus in enumerate(buses)
        if judged.failed[place] or counts[place] or place in outside
    ]
    return {"strange": wrong}


def _halves(times: int) -> tuple[slice, slice]:
    return slice(0, times), slice(times, 2 * times)


def _moved_prices(
    mpc: Engine,
    register: Register,
    buses: Sequence[int],
    paid: Sequence[Shares],
    wished: tuple[Sequence[Shares], Sequence[Shares]],
) -> Steps[list[Shares]]:
    """Return the prices at which the answers are the cheapest; see :func:`moved_price_steps`."""
    out, (wish, demand) = [], wished
    for part, penalties in enumerate(_penalties(register, buses)):
        if not penalties.any():
            out.append(paid[part])
            continue
        weights = encode_words(penalties.ravel())
        off = PRIME_FIELD.subtract(wish[part].data, demand[part].data)
        wide = mpc.wrap(PRIME_FIELD.multiply(off, weights), COMPARED_BOUND // 2)
        moved = yield from rounded(mpc, wide)
        twice = encode_words(np.where(penalties != 0, 2, 1).ravel())
        own = PRIME_FIELD.multiply(paid[part].data, twice)
        out.append(mpc.wrap(PRIME_FIELD.subtract(own, moved.data), NARROW))
    return out


def _offered(mpc: Engine, step: Any, buses: Sequence[int]) -> Steps[list[Shares]]:
    """Return the prices that the sites were given, active then reactive, scale 2**32."""
    zero, own = mpc.constant([0]), np.array(buses, dtype=np.int64)
    active = yield from rounded(mpc, step.prices(zero, own))
    if step.register.limits.are_absent:
        return [active, mpc.constant([0] * len(active))]
    return [active, (yield from rounded(mpc, step.prices(zero, own, is_reactive=True)))]


def _step_rooms(
    mpc: Engine, asked: Challenged, buses: Sequence[int], parts: Any
) -> tuple[Words, Integers]:
    """Return what is left between each wish's move and the one that follows, scale 2**62."""
    register, times = asked.former.register, asked.former.register.interval_count
    add, subtract, multiply = PRIME_FIELD.add, PRIME_FIELD.subtract, PRIME_FIELD.multiply
    wish, after, demand, paid = parts
    near = mpc.constant([rounded_steps(STEP_MAX, POWER_BITS + FACTOR_BITS)]).data
    share = encode_words(np.full(len(buses) * times, factors(np.array([asked.relaxation]))[0]))
    one = encode_words(np.full(len(buses) * times, 2**FACTOR_BITS))
    rooms, owners = [], []
    for part, give in enumerate((register.give_p, register.give_q)):
        own = give[list(buses)]
        if not own.any():
            continue
        weights = factors(np.outer(asked.relaxation * own * register.unit, register.softness))
        target = multiply(share, subtract(demand[part].data, wish[part].data))
        target = add(target, multiply(encode_words(weights.ravel()), paid[part].data))
        moved = multiply(one, subtract(after[part].data, wish[part].data))
        off = subtract(moved, target)
        allowed = np.repeat(near, len(off), axis=0)
        rooms += [add(allowed, off), subtract(allowed, off)]
        owners += [np.repeat(np.arange(len(buses)), times)] * 2
    return np.concatenate(rooms), np.concatenate(owners)


def _counted(
    mpc: Engine,
    asked: Challenged,
    rooms: tuple[Words, Integers],
    gaps: Shares,
    count: int,
) -> Steps[list[int]]:
    """Open how many checks each site fails: its moves, and its answer's part of the gap."""
    words, owners = rooms
    spare = mpc.constant([rounded_steps(asked.allowed / count, COST_BITS + 1)] * count).data
    # Below zero no honest one lies: a bid that contradicts itself would hide any answer behind it.
    both = np.concatenate(
        [PRIME_FIELD.subtract(spare, gaps.data), PRIME_FIELD.add(spare, gaps.data)]
    )
    kept = yield from not_negative(mpc, mpc.wrap(both, COMPARED_BOUND), COMPARED_BOUND)
    fine = [high and low for high, low in zip(kept[:count], kept[count:], strict=True)]
    bits = yield from mpc.is_negative(mpc.wrap(words, COMPARED_BOUND))
    index = np.ascontiguousarray(owners.astype(np.int64))
    counts = sums_by_index(np.ascontiguousarray(bits.data), index, count)
    opened = yield from mpc.open(mpc.wrap(counts, len(bits)))
    return [count + (not is_fine) for count, is_fine in zip(opened, fine, strict=True)]


def plan_steps(site: Any, x: Any) -> tuple[Integers, Integers]:
    """Return a site's demands (active then reactive) as the committee computes them, in steps."""
    steps = power_steps(x)
    reactive = site.inject_q.copy()
    reactive.data = np.rint(reactive.data * 2.0**FACTOR_BITS)
    return (
        _demand_steps(power_steps(site.load_p), site.inject_p, steps, is_rounded=False),
        _demand_steps(power_steps(site.load_q), reactive, steps, is_rounded=True),
    )
