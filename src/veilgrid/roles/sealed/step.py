"""The network's half of exchange ADMM on shares: an active set, opened bit by bit [sealed 3].

For each interval the step is a small box-constrained dual problem (:mod:`admm.network_step`): the
substation's price lies between the tariffs, the strength of each network row between zero and a
ceiling. On a fixed active set its solution is a public matrix times the shared wishes. Comparisons
tell which entries leave their bounds and which rows are exceeded; only these bits open. They say
which limits bind and which way the substation's exchange goes, never a value.
"""

from dataclasses import replace
from typing import Final

import numpy as np

from veilgrid.mpc import Engine, Mpc, Shares, Steps, concatenate
from veilgrid.mpc._round import together
from veilgrid.mpc.field import PRIME_FIELD, Words
from veilgrid.roles.sealed.register import (
    EXCESS_TOLERANCE,
    FACTOR_BITS,
    POWER_BITS,
    Register,
)
from veilgrid.roles.sealed.step_dual import COMPARED_BOUND, Duals, StepResult
from veilgrid.roles.sealed.step_rooms import EVERYTHING, Flagged, Looks, Rooms
from veilgrid.roles.sealed.step_set import AT_HIGH, ActiveSet, Key, changed

PASSES_MAX: Final = 60
PASSES_AT_ONCE: Final = 12
"""From here on, one entry an interval changes at a time."""

DROPPED_BITS: Final = 24
"""Of numbers of scale 2**62, when their signs are asked for: far below the tolerance of rows."""

UNMET_BITS: Final = 10
"""Binary places of amounts that open where no plan keeps the limits, per-unit."""


def network_step(
    mpc: Mpc,
    register: Register,
    wish_p: Shares,
    wish_q: Shares,
    active: ActiveSet,
    *,
    looks: Looks = EVERYTHING,
) -> Steps[StepResult]:
    """Project shared wishes onto what the network can carry.

    Parameters
    ----------
    mpc
        Where to compute.
    register
        The public model.
    wish_p, wish_q : (bus * interval,), scale 2**32 per-unit
        Bus by bus; a rigid bus's wish is its net demand.
    active
        Where to start; not changed.
    looks
        Which rows that are not in play are checked too.

    Returns
    -------
    StepResult
        After more than :data:`PASSES_MAX` passes the active set did not settle: its prices are
        possible ones, but not those of the wishes.
    """
    work = Duals(mpc, register, wish_p, wish_q)
    rooms = Rooms(work)
    current = active.copy()
    tried: set[Key] = set()
    sound: dict[int, tuple[int, dict[int, int]]] = {}
    todo = list(range(register.interval_count))
    for count in range(1, PASSES_MAX + 1):
        rough = work.rough(current)
        near = yield from work.near(current, count, rough)
        checks = rooms.checks(near, todo, looks, rough)
        exact, wrong = yield from together(
            work.exact(current, count, rough), below_zero(mpc, checks.values, DROPPED_BITS)
        )
        result: StepResult = exact
        flagged = yield from _looked_into(mpc, rooms, near, checks.chosen(wrong))
        if not flagged:
            return result
        todo = sorted({interval for _, interval, *_ in flagged})
        exceeded = _worth_adding(flagged)
        worst = yield from _worst(mpc, exceeded)
        moves = [(kind, interval, number) for kind, interval, number, _ in flagged if kind != "row"]
        moves += [("row", interval, number) for interval, number in worst]
        rows = [(kind, interval, number) for kind, interval, number, _ in flagged if kind == "row"]
        is_single = count > PASSES_AT_ONCE
        current = changed(register, current, moves, rows, tried, is_single=is_single)
        _remember(sound, result.active, todo, flagged)
    # These prices are possible ones, so bounds from them hold; the targets exceed some rows.
    for interval in todo:
        current.price[interval], current.rows[interval] = sound.get(interval, (AT_HIGH, {}))
    return (yield from work.solve(current, PASSES_MAX + 1))


def _looked_into(
    mpc: Mpc, rooms: Rooms, result: StepResult, flagged: list[Flagged]
) -> Steps[list[Flagged]]:
    """Replace branches that may be beyond their rating by the sides of it that are exceeded."""
    screened = {(interval, bus) for kind, interval, bus, _ in flagged if kind == "screen"}
    if not screened:
        return flagged
    sides = rooms.side_checks(result, sorted(screened))
    bits = yield from below_zero(mpc, sides.values, DROPPED_BITS)
    return [one for one in flagged if one[0] != "screen"] + sides.chosen(bits)


def _remember(
    sound: dict[int, tuple[int, dict[int, int]]],
    active: ActiveSet,
    todo: list[int],
    flagged: list[Flagged],
) -> None:
    """Remember the sets of intervals in which every entry keeps its bounds."""
    unsettled = {interval for kind, interval, *_ in flagged if kind not in ("row", "free")}
    for interval in todo:
        if interval not in unsettled:
            sound[interval] = (active.price[interval], dict(active.rows[interval]))


def _worth_adding(flagged: list[Flagged]) -> dict[int, list[tuple[int, Words]]]:
    """Return exceeded rows of the intervals whose own entries all keep their bounds."""
    unsettled = {interval for kind, interval, *_ in flagged if kind != "row"}
    out: dict[int, list[tuple[int, Words]]] = {}
    for kind, interval, number, value in flagged:
        if kind == "row" and interval not in unsettled:
            out.setdefault(interval, []).append((number, value))
    return out


def _worst(mpc: Mpc, exceeded: dict[int, list[tuple[int, Words]]]) -> Steps[list[tuple[int, int]]]:
    """Open the number of the most exceeded row of each interval, by a tournament on shares."""
    settled = [(t, rows[0][0]) for t, rows in exceeded.items() if len(rows) == 1]
    groups = {t: rows for t, rows in exceeded.items() if len(rows) > 1}
    if not groups:
        return settled
    size = 1 << (max(len(rows) for rows in groups.values()) - 1).bit_length()
    nothing = mpc.constant([0]).data
    values, numbers = [], []
    for rows in groups.values():
        values += [value for _, value in rows] + [nothing] * (size - len(rows))
        numbers += [number for number, _ in rows] + [rows[0][0]] * (size - len(rows))
    value = mpc.wrap(np.concatenate(values), COMPARED_BOUND)
    number = mpc.constant(numbers)
    while size > 1:
        first, second = value[0::2], value[1::2]
        gap = (second - first).claim(COMPARED_BOUND)
        is_second = yield from mpc.is_negative(gap)
        step = concatenate([gap, number[1::2] - number[0::2]])
        moved = yield from mpc.multiply(is_second.tile(2), step)
        half = len(first)
        value = (first + moved[:half]).claim(COMPARED_BOUND)
        number = (number[0::2] + moved[half:]).claim(number.bound)
        size //= 2
    opened = yield from mpc.open(number)
    return settled + list(zip(groups, opened, strict=True))


def excess_of(
    mpc: Engine,
    register: Register,
    demand_p: Shares,
    demand_q: Shares,
    places: list[tuple[int, int]],
) -> Steps[list[list[float]]]:
    """Open which of some rows (row, interval) net demands exceed, and of these alone by how much.

    Amounts are per-unit, rounded up to steps of ``2**-UNMET_BITS``: an exact one would be an
    equation between demands.
    """
    plain = replace(register, inner=EXCESS_TOLERANCE)
    nothing = ActiveSet([AT_HIGH] * register.interval_count, [{} for _ in register.buy])
    work = Duals(mpc, plain, demand_p, demand_q)
    left = np.concatenate(Rooms(work).rooms(work.still(nothing), places))
    chosen = np.flatnonzero((yield from below_zero(mpc, [left])))
    if not len(chosen):
        return []
    dropped = POWER_BITS + FACTOR_BITS - UNMET_BITS
    amounts = PRIME_FIELD.subtract(PRIME_FIELD.zeros(len(chosen)), left[chosen])
    wide = mpc.wrap(amounts, COMPARED_BOUND // 2) + (2**dropped - 1)
    steps = yield from mpc.truncate(wide.claim(COMPARED_BOUND), dropped)
    opened = yield from mpc.open(steps)
    return [
        [*places[place], amount / 2.0**UNMET_BITS]
        for place, amount in zip(chosen, opened, strict=True)
    ]


def network_duals(
    mpc: Mpc,
    register: Register,
    wish_p: Shares,
    wish_q: Shares,
    active: ActiveSet,
    *,
    is_near: bool = False,
) -> Steps[StepResult]:
    """Repeat a step on the active set that it ended with; nothing opens.

    ``is_near`` is for what is no price of a site: it takes one round.
    """
    work = Duals(mpc, register, wish_p, wish_q)
    if is_near:
        return (yield from work.near(active, 0, work.rough(active)))
    return (yield from work.solve(active, 0))


def below_zero(mpc: Mpc, values: list[Words], dropped: int = 0) -> Steps[list[int]]:
    """Open which of some shared numbers are below zero; ``dropped`` low bits do not count."""
    if not values:
        return []
    whole = mpc.wrap(np.concatenate(values), COMPARED_BOUND)
    return (yield from mpc.open_negative(whole, dropped))


def limit_checks(
    mpc: Mpc, register: Register, demand_p: Shares, demand_q: Shares, tolerance: float
) -> Steps[list[tuple[int, int]]]:
    """Open which network rows (row, interval) net demands exceed by more than ``tolerance``."""
    if register.limits.are_absent:
        return []
    plain = replace(register, inner=EXCESS_TOLERANCE - tolerance)
    nothing = ActiveSet([AT_HIGH] * register.interval_count, [{} for _ in register.buy])
    work = Duals(mpc, plain, demand_p, demand_q)
    rooms, result = Rooms(work), work.still(nothing)
    checks = rooms.checks(result, list(range(register.interval_count)), EVERYTHING)
    wrong = checks.chosen((yield from below_zero(mpc, checks.values, DROPPED_BITS)))
    flagged = yield from _looked_into(mpc, rooms, result, wrong)
    return [(number, interval) for _, interval, number, _ in flagged]
