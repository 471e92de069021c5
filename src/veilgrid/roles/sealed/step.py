"""The network's half of exchange ADMM on shares: an active set, opened bit by bit [sealed 3].

For each interval the step is a small box-constrained dual problem (:mod:`admm.network_step`): the
substation's price lies between the tariffs, the strength of each network row between zero and a
ceiling. On a fixed active set its solution is a public matrix times the shared wishes. Comparisons
tell which entries leave their bounds and which rows are exceeded; only these bits open. They say
which limits bind and which way the substation's exchange goes, never a value.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Final, NamedTuple

import numpy as np

from veilgrid.errors import RunAborted, invariant
from veilgrid.grid.lindistflow import POLYGON_SIDES
from veilgrid.grid.network import Floats
from veilgrid.mpc import Engine, Mpc, Shares, Steps, concatenate
from veilgrid.mpc._prime import apply_matrix
from veilgrid.mpc._round import together
from veilgrid.mpc.field import PRIME_FIELD, Words, encode, encode_words
from veilgrid.roles.sealed.register import (
    EXCESS_TOLERANCE,
    FACTOR_BITS,
    POWER_BITS,
    Integers,
    Register,
    factors,
)

AT_LOW: Final = -1
FREE: Final = 0
AT_HIGH: Final = 1

PASSES_MAX: Final = 60
PASSES_AT_ONCE: Final = 12
"""From here on, one entry an interval changes at a time."""

COMPARED_BOUND: Final = 2**77
"""What is compared is claimed to be smaller; an input beyond its range can only spoil bits."""

DROPPED_BITS: Final = 24
"""Of numbers of scale 2**62, when their signs are asked for: far below the tolerance of rows."""

NEAR_PARTIES_MAX: Final = 4
"""With more parties than this, rounding by every key set adds up to more than the tolerance."""

LEAVERS_MAX: Final = 3
"""Rows that may make room for a new one, the most like it first."""

ENERGY: Final = -1
"""Stands for the substation's price among the numbers of rows."""

TINY_REACH: Final = 1e-12
"""Squared length of a row, over the largest inverse penalty, that counts as none."""

INDEPENDENT_MIN: Final = 1e-6
"""Share of a row's squared length, in the metric of the penalties, that others may not span."""

BOX_SHARE: Final = 0.7
"""A branch whose active and reactive flow are below this share of its rating is within it."""


_Key = tuple[int, int, tuple[tuple[int, int], ...]]


@dataclass
class ActiveSet:
    """Which bounds hold, interval by interval; public.

    Attributes
    ----------
    price
        :data:`AT_LOW` = the selling tariff, :data:`AT_HIGH` = the buying one, :data:`FREE` between.
    rows
        Row number -> AT_LOW (no strength), FREE (in force), AT_HIGH (cannot be met).
    """

    price: list[int]
    rows: list[dict[int, int]]

    @classmethod
    def start(cls, register: Register) -> "ActiveSet":
        """Begin with free prices and no rows."""
        fixed = [AT_HIGH if high <= low else FREE for low, high in _tariffs(register)]
        if not float(register.give_p.sum()) > 0.0:
            fixed = [AT_HIGH] * register.interval_count
        return cls(fixed, [{} for _ in fixed])

    def copy(self) -> "ActiveSet":
        """Return a copy to change."""
        return ActiveSet(list(self.price), [dict(rows) for rows in self.rows])

    def binding(self) -> list[tuple[int, int]]:
        """Return (row, interval) of each row in force or at its ceiling."""
        return [
            (number, interval)
            for interval, rows in enumerate(self.rows)
            for number, status in rows.items()
            if status != AT_LOW
        ]

    def unmet(self) -> list[tuple[int, int]]:
        """Return (row, interval) of each row at its ceiling."""
        return [
            (number, interval)
            for interval, rows in enumerate(self.rows)
            for number, status in rows.items()
            if status == AT_HIGH
        ]


def _tariffs(register: Register) -> Iterable[tuple[float, float]]:
    return zip(np.asarray(register.sell), np.asarray(register.buy), strict=True)


class Looks(NamedTuple):
    """Which rows are looked at although they are not in play yet."""

    voltages: bool = True
    ratings: bool = True


EVERYTHING: Final = Looks()


class _Dual(NamedTuple):
    """One interval's dual: rows in play, and the affine map from wishes to its free entries."""

    numbers: tuple[int, ...]
    active: Floats
    reactive: Floats
    bounds: Floats
    low: Floats
    high: Floats
    free: tuple[int, ...]
    fixed: Floats
    map_p: Floats
    map_q: Floats
    offset: Floats


class _Ready(NamedTuple):
    """One interval's dual with its numbers as elements of the field.

    Attributes
    ----------
    factors : (free entry, bus and kind, word), or (1, word) where only the price is in play
    offset : (free entry, word), scale 2**62 price units, with half a step of truncation
    fixed : (entry, word), scale 2**32 price units
    """

    dual: _Dual
    factors: Words
    offset: Words
    fixed: Words


@dataclass(frozen=True)
class Flow:
    """What wishes or demands (bus, interval, word) cause before any correction, on shares.

    Attributes
    ----------
    active, reactive : scale 2**32
        Through the branch that feeds a bus.
    drop : scale 2**62
        ``path 2 (r P + x Q)``: how far the squared voltage lies below the substation's.
    """

    active: Words
    reactive: Words
    drop: Words


def flow(register: Register, demand_p: Words, demand_q: Words) -> Flow:
    """Add up flows and drops along the tree, without a message."""
    tree = register.limits.tree
    active, reactive = demand_p.copy(), demand_q.copy()
    for bus in reversed(tree.order[1:].tolist()):
        parent = int(tree.parent[bus])
        active[parent] = PRIME_FIELD.add(active[parent], active[bus])
        reactive[parent] = PRIME_FIELD.add(reactive[parent], reactive[bus])
    resistance = encode_words(factors(2.0 * tree.resistance_pu))
    reactance = encode_words(factors(2.0 * tree.reactance_pu))
    drop = np.zeros_like(active)
    for bus in tree.order[1:].tolist():
        own = PRIME_FIELD.add(
            PRIME_FIELD.scale(resistance[[bus]], active[bus]),
            PRIME_FIELD.scale(reactance[[bus]], reactive[bus]),
        )
        drop[bus] = PRIME_FIELD.add(drop[int(tree.parent[bus])], own)
    return Flow(active, reactive, drop)


Flagged = tuple[str, int, int, Words]
"""What is wrong, in which interval, with which row or branch, and by how much (shared)."""


@dataclass
class _Checks:
    """Comparisons to be made in one batch: who asks, and what is below zero if it is wrong."""

    asked: list[tuple[str, int, int]] = field(default_factory=list)
    values: list[Words] = field(default_factory=list)

    def add(self, kind: str, interval: int, number: int, value: Words) -> None:
        self.asked.append((kind, interval, number))
        self.values.append(value.reshape(1, 2))

    def add_all(self, kind: str, places: Iterable[tuple[int, int]], values: Words) -> None:
        self.asked += [(kind, interval, number) for interval, number in places]
        self.values.append(values)

    def chosen(self, bits: list[int]) -> "list[Flagged]":
        """Return those that came out below zero, with their shared values."""
        if not any(bits):
            return []
        whole = np.concatenate(self.values)
        return [
            (*asked, whole[[place]])
            for place, (asked, bit) in enumerate(zip(self.asked, bits, strict=True))
            if bit
        ]


@dataclass(frozen=True)
class StepResult:
    """Prices of one network step, on shares.

    Attributes
    ----------
    register
        Under which it was made.
    active
        The active set that holds.
    duals : one (entry, word) array an interval, scale 2**32 price units
        The substation's price, then strengths of scaled rows in the order of ``numbers``.
    numbers
        Rows in play, by interval.
    passes
        Active sets tried.
    """

    register: Register
    active: ActiveSet
    duals: list[Words]
    numbers: list[tuple[int, ...]]
    passes: int

    def prices(
        self,
        constant: "Shares",
        buses: Integers,
        *,
        is_reactive: bool = False,
        is_pull: bool = False,
    ) -> Shares:
        """Return prices of some buses, (bus * interval,), scale 2**62 price units.

        ``is_pull`` leaves out the substation's price: what remains comes from network rows.
        """
        energy = PRIME_FIELD.scale(
            encode([2**FACTOR_BITS]), np.concatenate([dual[:1] for dual in self.duals])
        )
        if is_reactive or is_pull:
            energy = np.zeros_like(energy)
        out = np.tile(energy, (len(buses), 1)).reshape(len(buses), -1, 2)
        for interval, (dual, numbers) in enumerate(zip(self.duals, self.numbers, strict=True)):
            if numbers:
                rows = [self.register.row(number)[is_reactive] for number in numbers]
                weights = factors(np.array(rows).T[buses])
                words = encode_words(weights.ravel()).reshape(*weights.shape, 2)
                part = apply_matrix(words, np.ascontiguousarray(dual[1:]))
                own = np.ascontiguousarray(out[:, interval])
                out[:, interval] = PRIME_FIELD.add(own, part)
        return Shares(out.reshape(-1, 2), COMPARED_BOUND, constant.constant)

    def rent(self, constant: "Shares") -> Shares:
        """Return what all binding rows collect, one element, scale 2**62 price units."""
        total = PRIME_FIELD.zeros(1)
        for interval, (dual, numbers) in enumerate(zip(self.duals, self.numbers, strict=True)):
            if numbers:
                bounds = np.array([self.register.bound(number, interval) for number in numbers])
                part = PRIME_FIELD.inner(dual[1:], encode_words(factors(bounds)))
                total = PRIME_FIELD.add(total, part)
        return Shares(total, COMPARED_BOUND, constant.constant)

    def strength(self, constant: "Shares") -> Shares:
        """Return the sum of all rows' strengths in their own units, scale 2**62 price units."""
        total = PRIME_FIELD.zeros(1)
        for dual, numbers in zip(self.duals, self.numbers, strict=True):
            if numbers:
                weights = np.array([1.0 / self.register.row(number)[3] for number in numbers])
                part = PRIME_FIELD.inner(dual[1:], encode_words(factors(weights)))
                total = PRIME_FIELD.add(total, part)
        return Shares(total, COMPARED_BOUND, constant.constant)


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

    Raises
    ------
    RunAborted
        The active set did not settle, and no set on the way had possible prices.
    """
    work = _Step(mpc, register, wish_p, wish_q)
    current = active.copy()
    tried: set[_Key] = set()
    sound: dict[int, tuple[int, dict[int, int]]] = {}
    todo = list(range(register.interval_count))
    for count in range(1, PASSES_MAX + 1):
        rough = work.rough(current)
        near = yield from work.near(current, count, rough)
        checks = work.checks(near, todo, looks, rough)
        exact, wrong = yield from together(
            work.exact(current, count, rough), below_zero(mpc, checks.values, DROPPED_BITS)
        )
        result: StepResult = exact
        flagged = checks.chosen(wrong)
        screened = {(interval, bus) for kind, interval, bus, _ in flagged if kind == "screen"}
        if screened:
            sides = work.side_checks(near, sorted(screened))
            bits = yield from below_zero(mpc, sides.values, DROPPED_BITS)
            flagged = [one for one in flagged if one[0] != "screen"] + sides.chosen(bits)
        if not flagged:
            return result
        todo = sorted({interval for _, interval, *_ in flagged})
        exceeded = _worth_adding(flagged)
        worst = yield from _worst(mpc, exceeded)
        moves = [(kind, interval, number) for kind, interval, number, _ in flagged if kind != "row"]
        moves += [("row", interval, number) for interval, number in worst]
        rows = [(kind, interval, number) for kind, interval, number, _ in flagged if kind == "row"]
        is_single = count > PASSES_AT_ONCE
        current = _changed(register, current, moves, rows, tried, is_single=is_single)
        _remember(sound, result.active, todo, flagged)
    if all(interval in sound for interval in todo):
        # Its prices are possible ones, so bounds from them hold; its targets exceed some rows.
        for interval in todo:
            current.price[interval], current.rows[interval] = sound[interval]
        return (yield from work.solve(current, PASSES_MAX + 1))
    raise RunAborted(f"the active set of the network step did not settle in {PASSES_MAX} passes")


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


def excess_of(
    mpc: Engine,
    register: Register,
    demand_p: Shares,
    demand_q: Shares,
    places: list[tuple[int, int]],
) -> Steps[list[float]]:
    """Open by how much net demands exceed some rows (row, interval), per-unit."""
    plain = replace(register, inner=EXCESS_TOLERANCE)
    nothing = ActiveSet([AT_HIGH] * register.interval_count, [{} for _ in register.buy])
    work = _Step(mpc, plain, demand_p, demand_q)
    rooms = work.rooms(work.still(nothing), places)
    opened = yield from mpc.open_elements(np.concatenate(rooms))
    return [-value / 2.0 ** (POWER_BITS + FACTOR_BITS) for value in opened]


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
    work = _Step(mpc, register, wish_p, wish_q)
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
    work = _Step(mpc, plain, demand_p, demand_q)
    result = work.still(nothing)
    everywhere = list(range(register.interval_count))
    checks = work.checks(result, everywhere, EVERYTHING)
    flagged = checks.chosen((yield from below_zero(mpc, checks.values, DROPPED_BITS)))
    screened = {(interval, bus) for kind, interval, bus, _ in flagged if kind == "screen"}
    if screened:
        sides = work.side_checks(result, sorted(screened))
        bits = yield from below_zero(mpc, sides.values, DROPPED_BITS)
        flagged = [one for one in flagged if one[0] != "screen"] + sides.chosen(bits)
    return [(number, interval) for _, interval, number, _ in flagged]


class _Step:
    """One network step's shared quantities."""

    def __init__(self, mpc: Mpc, register: Register, wish_p: Shares, wish_q: Shares) -> None:
        self.mpc, self.register = mpc, register
        shape = (register.bus_count, register.interval_count, 2)
        invariant(len(wish_p) == len(wish_q) == shape[0] * shape[1], "one wish a bus and interval")
        self.wish_p, self.wish_q = wish_p.data.reshape(shape), wish_q.data.reshape(shape)
        self.flow = flow(register, self.wish_p, self.wish_q)
        self.total = self.flow.active[register.limits.tree.root]
        self._give = np.concatenate([register.give_p, register.give_q])
        self._duals: list[_Dual] = []
        self._ready: list[_Ready] = []
        self._known: dict[float, Words] = {}

    # -- the dual on a fixed active set ---------------------------------------------------------

    def solve(self, active: ActiveSet, count: int) -> Steps[StepResult]:
        """Return the dual on a fixed active set."""
        return (yield from self.exact(active, count, self.rough(active)))

    def rough(self, active: ActiveSet) -> Words:
        """Return the free entries of all intervals, scale 2**62, without a message."""
        self._take_up(active)
        alone = [
            interval
            for interval, dual in enumerate(self._duals)
            if dual.free and not dual.numbers  # the price alone: one sum
        ]
        parts = dict.fromkeys(alone, PRIME_FIELD.zeros(0))
        if alone:
            slopes = np.concatenate([self._ready[interval].factors for interval in alone])
            sums = PRIME_FIELD.multiply(slopes, np.ascontiguousarray(self.total[alone]))
            parts = {interval: sums[[place]] for place, interval in enumerate(alone)}
        for interval, ready in enumerate(self._ready):
            if ready.dual.free and ready.dual.numbers:
                vector = np.concatenate([self.wish_p[:, interval], self.wish_q[:, interval]])
                parts[interval] = apply_matrix(ready.factors, np.ascontiguousarray(vector))
        if not parts:
            return PRIME_FIELD.zeros(0)
        order = sorted(parts)
        offsets = np.concatenate([self._ready[interval].offset for interval in order])
        return PRIME_FIELD.add(np.concatenate([parts[interval] for interval in order]), offsets)

    def _take_up(self, active: ActiveSet) -> None:
        """Prepare the duals of an active set."""
        register = self.register
        self._ready = [_ready_of(register, active, t) for t in range(register.interval_count)]
        self._duals = [ready.dual for ready in self._ready]

    def exact(self, active: ActiveSet, count: int, rough: Words) -> Steps[StepResult]:
        """Return the dual that rough free entries make, rounded down."""
        found = rough
        if len(rough):
            shared = self.mpc.wrap(rough, COMPARED_BOUND)
            found = (yield from self.mpc.truncate(shared, FACTOR_BITS)).data
        return self._result(active, count, found)

    def near(self, active: ActiveSet, count: int, rough: Words) -> Steps[StepResult]:
        """Return the dual but for a few steps of ``2**-32``: good enough to ask what changes."""
        if self.mpc.n > NEAR_PARTIES_MAX:
            return (yield from self.exact(active, count, rough))
        found = rough
        if len(rough):
            shared = self.mpc.wrap(rough, COMPARED_BOUND)
            found = (yield from self.mpc.truncate_nearly(shared, FACTOR_BITS)).data
        return self._result(active, count, found)

    def _result(self, active: ActiveSet, count: int, found: Words) -> StepResult:
        duals, at = [], 0
        for dual, _, _, fixed in self._ready:
            whole = fixed.copy()
            whole[list(dual.free)] = found[at : at + len(dual.free)]
            at += len(dual.free)
            duals.append(whole)
        numbers = [dual.numbers for dual in self._duals]
        return StepResult(self.register, active, duals, numbers, count)

    # -- what has to hold -----------------------------------------------------------------------

    def still(self, active: ActiveSet) -> StepResult:
        """Return a step in which every price is zero: wishes are their own targets."""
        register = self.register
        self._take_up(active)
        duals = [PRIME_FIELD.zeros(1) for _ in self._duals]
        return StepResult(register, active, duals, [() for _ in duals], 0)

    def checks(
        self, result: StepResult, todo: list[int], looks: Looks, rough: Words | None = None
    ) -> _Checks:
        """Collect what is below zero where an entry leaves its bounds or a row is exceeded.

        Only the intervals in ``todo`` are looked at; the others have not changed since they held.
        Without the ``rough`` free entries of the dual, only rows are.
        """
        checks = _Checks()
        drop = self._corrected_drop(result)
        starts = np.cumsum([0] + [len(dual.free) for dual in self._duals]).tolist()
        for interval in todo if rough is not None else ():
            dual = self._duals[interval]
            free = {
                place: rough[[starts[interval] + k]]  # type: ignore[index]
                for k, place in enumerate(dual.free)
            }
            self._price_checks(checks, result, interval, free)
            for place, number in enumerate(dual.numbers, 1):
                status = result.active.rows[interval][number]
                if status == FREE:
                    checks.add("weak", interval, number, free[place])
                    ceiling = self._wide(dual.high[place] / self.register.unit)
                    over = PRIME_FIELD.subtract(ceiling, free[place])
                    checks.add("strong", interval, number, over)
                else:
                    room = self._room(result, drop, number, interval)
                    if status == AT_HIGH:
                        room = PRIME_FIELD.subtract(PRIME_FIELD.zeros(1), room)
                    checks.add("row", interval, number, room)
        if looks.voltages:
            self._voltage_checks(checks, result, drop, todo)
        if looks.ratings:
            self._screens(checks, result, todo)
        return checks

    def _price_checks(
        self, checks: _Checks, result: StepResult, interval: int, free: dict[int, Words]
    ) -> None:
        register = self.register
        low, high = register.sell[interval] / register.unit, register.buy[interval] / register.unit
        status = result.active.price[interval]
        if status == FREE:
            checks.add("high", interval, 0, PRIME_FIELD.subtract(self._wide(high), free[0]))
            checks.add("low", interval, 0, PRIME_FIELD.subtract(free[0], self._wide(low)))
        elif high > low:
            dual, entries = self._duals[interval], result.duals[interval]
            push = self._scaled(self.total[[interval]])
            gram = (dual.active * register.give_p) @ dual.active[0]
            pull = PRIME_FIELD.inner(entries, encode_words(factors(gram * register.unit)))
            slope = PRIME_FIELD.subtract(push, pull)
            if status == AT_LOW:
                slope = PRIME_FIELD.subtract(PRIME_FIELD.zeros(1), slope)
            checks.add("free", interval, 0, PRIME_FIELD.add(slope, self._wide(EXCESS_TOLERANCE)))

    def rooms(self, result: StepResult, places: list[tuple[int, int]]) -> list[Words]:
        """Return what is left to some rows (row, interval)."""
        drop = self._corrected_drop(result)
        return [self._room(result, drop, number, interval) for number, interval in places]

    def _corrected_drop(self, result: StepResult) -> Words:
        """Return the drops (bus, interval) that the targets cause, scale 2**62."""
        limits, register = self.register.limits, self.register
        if limits.are_absent:
            return self.flow.drop
        response_p = limits.shared_resistance * register.give_p
        response_q = limits.shared_reactance * register.give_q
        return self._corrected(result, self.flow.drop, response_p, response_q)

    def _corrected(
        self, result: StepResult, base: Words, response_p: Floats, response_q: Floats
    ) -> Words:
        """Subtract what prices move: ``base - response (rows' dual)``, each (bus, interval)."""
        unit, buses = self.register.unit, base.shape[0]
        out = base.copy()
        to_price = encode_words(factors(response_p.sum(axis=1) * unit))
        price = np.concatenate([dual[:1] for dual in result.duals])
        for bus in range(buses):
            out[bus] = PRIME_FIELD.subtract(out[bus], PRIME_FIELD.scale(to_price[[bus]], price))
        for interval, dual in enumerate(self._duals):
            if not dual.numbers:
                continue
            matrix = response_p @ dual.active[1:].T + response_q @ dual.reactive[1:].T
            words = encode_words(factors(matrix * unit).ravel()).reshape(*matrix.shape, 2)
            moved = apply_matrix(words, np.ascontiguousarray(result.duals[interval][1:]))
            out[:, interval] = PRIME_FIELD.subtract(np.ascontiguousarray(out[:, interval]), moved)
        return out

    def _room(self, result: StepResult, drop: Words, number: int, interval: int) -> Words:
        """Return how much of a row is left, plus the tolerance, scale 2**62."""
        count = self.register.bus_count
        kind, bus = divmod(number, count)
        if kind >= 2:
            return self._side_room(result, kind - 2, bus, interval)
        activity = drop[[bus], interval]
        if kind == 1:
            activity = PRIME_FIELD.subtract(PRIME_FIELD.zeros(1), activity)
        return PRIME_FIELD.subtract(self._bounds([number], [interval]), activity)

    def _bounds(self, numbers: list[int], intervals: list[int]) -> Words:
        """Return shares of rows' own bounds less the inner distance, plus the tolerance."""
        register = self.register
        values = [
            register.bound(number, interval) * register.row(number)[3]
            - register.inner
            + EXCESS_TOLERANCE
            for number, interval in zip(numbers, intervals, strict=True)
        ]
        return public_words(np.array(values), POWER_BITS + FACTOR_BITS)

    def _voltage_checks(
        self, checks: _Checks, result: StepResult, drop: Words, todo: list[int]
    ) -> None:
        """Check every voltage row that is not in play."""
        register = self.register
        limits, count = register.limits, register.bus_count
        for kind, limit in enumerate((limits.squared_min, limits.squared_max)):
            if limit is None:
                continue
            is_asked = np.zeros((count, register.interval_count), bool)
            is_asked[:, todo] = True
            is_asked[limits.tree.root] = False
            for interval in todo:
                for number in result.active.rows[interval]:
                    if number // count == kind:
                        is_asked[number % count, interval] = False
            buses, times = np.nonzero(is_asked)
            activity = np.ascontiguousarray(drop[buses, times])
            if kind == 1:
                activity = PRIME_FIELD.subtract(PRIME_FIELD.zeros(len(buses)), activity)
            bounds = register.voltage_bounds(kind)[buses, times] - register.inner
            ceiling = public_words(bounds + EXCESS_TOLERANCE, POWER_BITS + FACTOR_BITS)
            places = list(zip(times.tolist(), (kind * count + buses).tolist(), strict=True))
            checks.add_all("row", places, PRIME_FIELD.subtract(ceiling, activity))

    # -- ratings --------------------------------------------------------------------------------

    def _screens(self, checks: _Checks, result: StepResult, todo: list[int]) -> None:
        """Ask whether flows leave a box inside the rating; only then the sides are compared."""
        limits, register = self.register.limits, self.register
        rated = limits.rated.tolist()
        if not rated:
            return
        subtree = limits.tree.subtree[limits.rated].toarray()
        scaled = encode([2**FACTOR_BITS])
        for base, give, is_reactive in (
            (self.flow.active, register.give_p, False),
            (self.flow.reactive, register.give_q, True),
        ):
            wide = PRIME_FIELD.scale(scaled, np.ascontiguousarray(base[rated]).reshape(-1, 2))
            wide = wide.reshape(len(rated), -1, 2)
            nothing = np.zeros_like(subtree)
            response = subtree * give
            pair = (nothing, response) if is_reactive else (response, nothing)
            flows = self._corrected(result, wide, *pair)
            charge = register.charging_flow[limits.rated] if is_reactive else np.zeros(len(rated))
            inside = BOX_SHARE * self._ratings(todo) - register.inner
            for sign in (1.0, -1.0):
                self._screen(
                    checks, rated, flows, inside + sign * charge[:, np.newaxis], sign, todo
                )

    def _ratings(self, todo: list[int]) -> Floats:
        """Return what the correction leaves of the ratings, (rated branch, interval)."""
        limits = self.register.limits
        own = np.repeat(limits.tree.rating_pu[limits.rated][:, np.newaxis], len(todo), axis=1)
        if limits.correction is not None:
            own = own - limits.correction[2][limits.rated][:, todo]
        return np.asarray(own, dtype=np.float64)

    def _screen(
        self,
        checks: _Checks,
        rated: list[int],
        flows: Words,
        reach: Floats,
        sign: float,
        todo: list[int],
    ) -> None:
        constant = public_words(reach, POWER_BITS + FACTOR_BITS)
        flat = np.ascontiguousarray(flows[:, todo]).reshape(-1, 2)
        subtract, add = PRIME_FIELD.subtract, PRIME_FIELD.add
        room = subtract(constant, flat) if sign > 0 else add(constant, flat)
        checks.add_all("screen", [(t, bus) for bus in rated for t in todo], room)

    def side_checks(self, result: StepResult, places: list[tuple[int, int]]) -> _Checks:
        """Compare all sides of some branches' polygons in some intervals."""
        checks, count = _Checks(), self.register.bus_count
        for interval, bus in places:
            for side in range(POLYGON_SIDES):
                number = (2 + side) * count + bus
                if number not in result.active.rows[interval]:
                    room = self._side_room(result, side, bus, interval)
                    checks.add("row", interval, number, room)
        return checks

    def _side_room(self, result: StepResult, side: int, bus: int, interval: int) -> Words:
        """Return what is left to one side of a rating's polygon, plus the tolerance."""
        register, limits = self.register, self.register.limits
        number = (2 + side) * register.bus_count + bus
        angle = limits.angles[side]
        cosine, sine = factors(np.array([np.cos(angle), np.sin(angle)])).tolist()
        activity = PRIME_FIELD.add(
            PRIME_FIELD.scale(encode([cosine]), self.flow.active[[bus], interval]),
            PRIME_FIELD.scale(encode([sine]), self.flow.reactive[[bus], interval]),
        )
        dual, (row_p, row_q, _, scale) = self._duals[interval], register.row(number)
        moved = dual.active @ (row_p * scale * register.give_p) + dual.reactive @ (
            row_q * scale * register.give_q
        )
        weights = encode_words(factors(moved * register.unit))
        correction = PRIME_FIELD.inner(result.duals[interval], weights)
        bound = self._bounds([number], [interval])
        return np.asarray(PRIME_FIELD.add(PRIME_FIELD.subtract(bound, activity), correction))

    def _scaled(self, data: Words) -> Words:
        return np.asarray(PRIME_FIELD.scale(encode([2**FACTOR_BITS]), data))

    def _wide(self, value: float) -> Words:
        """Return a public number, scale 2**62."""
        if value not in self._known:
            self._known[value] = public_words(np.array([value]), POWER_BITS + FACTOR_BITS)
        return self._known[value]


def rounded_steps(value: float, bits: int) -> int:
    """Return a real number in steps of two to the minus ``bits``."""
    return _integers(np.array([value]), bits)[0]


def _integers(values: Floats, bits: int) -> list[int]:
    """Round real numbers to ``bits`` binary places, exactly whatever their size."""
    out = []
    for value in np.asarray(values, dtype=np.float64).ravel().tolist():
        numerator, denominator = value.as_integer_ratio()
        out.append((2 * (numerator << bits) + denominator) // (2 * denominator))
    return out


def public_words(values: Floats, bits: int) -> Words:
    """Return real numbers in steps of two to the minus ``bits``, (number, word); rounded once.

    A public number is its own share.
    """
    steps = np.rint(np.ravel(np.asarray(values, dtype=np.float64)) * 2.0**bits)
    invariant(bool(np.all(np.abs(steps) < 2.0**94)), "public numbers are in range")
    high = np.floor(steps / 2.0**32)
    low = (steps - high * 2.0**32).astype(np.int64)
    words = PRIME_FIELD.scale(encode([2**32]), encode_words(high.astype(np.int64)))
    return np.asarray(PRIME_FIELD.add(words, encode_words(low)))


def _ready_of(register: Register, active: ActiveSet, interval: int) -> _Ready:
    """Return one interval's dual on a fixed active set, prepared once for a register."""
    rows = tuple(sorted(active.rows[interval].items()))
    key = (interval, active.price[interval], rows)
    if key not in register.prepared:
        register.prepared[key] = _ready(register, active, interval)
    found: _Ready = register.prepared[key]
    return found


def _ready(register: Register, active: ActiveSet, interval: int) -> _Ready:
    dual, unit = _dual_of(register, active, interval), register.unit
    if not dual.numbers:
        words = encode_words(factors(dual.map_p[:1, 0] / unit))
    else:
        matrix = factors(np.hstack([dual.map_p, dual.map_q]) / unit)
        words = encode_words(matrix.ravel()).reshape(*matrix.shape, 2)
    # Half a step of the truncation that follows: it then rounds to the nearest.
    half = 2.0 ** -(POWER_BITS + 1)
    offset = public_words(dual.offset / unit + half, POWER_BITS + FACTOR_BITS)
    return _Ready(dual, words, offset, public_words(dual.fixed / unit, POWER_BITS))


def _dual_of(register: Register, active: ActiveSet, interval: int) -> _Dual:
    """Prepare one interval's dual on a fixed active set."""
    numbers = tuple(sorted(active.rows[interval]))
    rows = [register.row(number) for number in numbers]
    own_p = np.vstack([np.ones(register.bus_count), *(row[0] for row in rows)])
    own_q = np.vstack([np.zeros(register.bus_count), *(row[1] for row in rows)])
    bounds = np.array(
        [0.0]
        + [
            register.bound(number, interval) - register.inner / row[3]
            for number, row in zip(numbers, rows, strict=True)
        ]
    )
    low = np.array([register.sell[interval]] + [0.0] * len(rows))
    high = np.array([register.buy[interval]] + [register.strength_max] * len(rows))
    statuses = [active.price[interval], *(active.rows[interval][number] for number in numbers)]
    free = tuple(place for place, status in enumerate(statuses) if status == FREE)
    fixed = np.where(np.array(statuses) == AT_HIGH, high, low)
    gram = (own_p * register.give_p) @ own_p.T + (own_q * register.give_q) @ own_q.T
    empty = np.zeros((0, register.bus_count))
    if not free:
        return _Dual(
            numbers, own_p, own_q, bounds, low, high, free, fixed, empty, empty, np.zeros(0)
        )
    inside = list(free)
    outside = [place for place in range(len(statuses)) if place not in free]
    reduced = gram[np.ix_(inside, inside)]
    reduced = reduced + 1e-13 * float(np.diag(gram).max()) * np.eye(len(inside))
    inverse = np.linalg.inv(reduced)
    constant = bounds[inside] + gram[np.ix_(inside, outside)] @ fixed[outside]
    return _Dual(
        numbers,
        own_p,
        own_q,
        bounds,
        low,
        high,
        free,
        fixed,
        np.asarray(inverse @ own_p[inside], dtype=np.float64),
        np.asarray(inverse @ own_q[inside], dtype=np.float64),
        -inverse @ constant,
    )


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


def _changed(
    register: Register,
    active: ActiveSet,
    moves: list[tuple[str, int, int]],
    rows: list[tuple[str, int, int]],
    tried: set[_Key],
    *,
    is_single: bool,
) -> ActiveSet:
    """Return the next active set: in each interval the first option that was not tried yet.

    ``rows`` are further exceeded rows; with them an interval has a way on where the usual moves
    lead back to where it was.
    """
    by_interval: dict[int, list[tuple[str, int]]] = {}
    for kind, interval, number in moves:
        by_interval.setdefault(interval, []).append((kind, number))
    out = active.copy()
    for interval, wrong in by_interval.items():
        tried.add(_key(active, interval))
        usual = sorted(wrong)
        more = [("row", number) for _, at, number in rows if at == interval]
        options = [] if is_single else [usual]
        options += [[one] for one in [*usual, *more]]
        for leaver, option in product(range(LEAVERS_MAX), options):
            step = active.copy()
            for kind, number in option:
                _apply(register, step, kind, interval, number, leaver)
            out.price[interval], out.rows[interval] = step.price[interval], step.rows[interval]
            if _key(out, interval) not in tried:
                break
    return out


def _key(active: ActiveSet, interval: int) -> _Key:
    rows = active.rows[interval].items()
    status = tuple(sorted((number, status) for number, status in rows if status != AT_LOW))
    return interval, active.price[interval], status


def _apply(
    register: Register, out: ActiveSet, kind: str, interval: int, number: int, leaver: int
) -> None:
    rows = out.rows[interval]
    match kind:
        case "high":
            out.price[interval] = AT_HIGH
        case "low":
            out.price[interval] = AT_LOW
        case "free":
            is_movable = float(register.give_p.sum()) > 0.0
            out.price[interval] = FREE if is_movable else -out.price[interval]
            if is_movable:
                _make_room(register, out, interval, ENERGY, leaver)
        case "weak":
            rows[number] = AT_LOW
        case "strong":
            rows[number] = AT_HIGH
        case _:
            _bring_in(register, out, interval, number, leaver)


def _bring_in(register: Register, out: ActiveSet, interval: int, number: int, leaver: int) -> None:
    """Put a row in force."""
    own_row, rows = register.row(number), out.rows[interval]
    reach = float(own_row[0] ** 2 @ register.give_p + own_row[1] ** 2 @ register.give_q)
    if reach <= TINY_REACH * float(max(register.give_p.max(), register.give_q.max())):
        # No flexible bus moves it: it is kept as it is, or cannot be met.
        rows[number] = AT_LOW if rows.get(number) == AT_HIGH else AT_HIGH
        return
    rows[number] = FREE
    _make_room(register, out, interval, number, leaver)


def _make_room(register: Register, out: ActiveSet, interval: int, number: int, leaver: int) -> None:
    """Where what is in force all but spans a row or the price, one of those like it leaves.

    Usually the one most like it; ``leaver`` asks for the next ones in turn.
    """
    rows = out.rows[interval]

    def coefficients(one: int) -> Floats:
        if one == ENERGY:
            return np.repeat([1.0, 0.0], register.bus_count)
        return np.concatenate(register.row(one)[:2])

    give, mine = np.concatenate([register.give_p, register.give_q]), coefficients(number)
    while True:
        others = [other for other, status in rows.items() if status == FREE and other != number]
        if out.price[interval] == FREE and number != ENERGY:
            others.append(ENERGY)
        if not others:
            return
        present = np.array([coefficients(other) for other in others])
        like, own = present @ (give * mine), float(mine @ (give * mine))
        weights = np.linalg.lstsq((present * give) @ present.T, like, rcond=None)[0]
        if own - float(weights @ like) > INDEPENDENT_MIN * own:
            return
        order = np.argsort(-np.abs(weights), kind="stable")
        leaves = others[int(order[leaver % len(others)])]
        if leaves == ENERGY:
            # A row that limits import binds while there is import, hence at the buying tariff.
            out.price[interval] = AT_HIGH if float(mine @ give) > 0.0 else AT_LOW
        else:
            rows[leaves] = AT_LOW
