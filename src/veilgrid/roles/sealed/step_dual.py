"""The dual of a network step on shares: strengths that an active set gives, and their prices.

On a fixed active set the free entries of one interval's dual are a public matrix times the shared
wishes plus a constant, so they cost no message but that of the truncation [sealed 3.1].
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from veilgrid.errors import invariant
from veilgrid.grid.network import Floats
from veilgrid.mpc import Mpc, Shares, Steps
from veilgrid.mpc._prime import apply_matrix
from veilgrid.mpc.field import PRIME_FIELD, Words, encode, encode_words
from veilgrid.roles.sealed.register import FACTOR_BITS, POWER_BITS, Integers, Register, factors
from veilgrid.roles.sealed.step_set import AT_HIGH, FREE, ActiveSet

COMPARED_BOUND: Final = 2**77
"""What is compared is claimed to be smaller; an input beyond its range can only spoil bits."""

NEAR_PARTIES_MAX: Final = 4
"""With more parties than this, rounding by every key set adds up to more than the tolerance."""


ENTRY_MAX: Final = 2.0**30
"""Largest public number of a dual, price units; far above any price."""


class Dual(NamedTuple):
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


class Ready(NamedTuple):
    """One interval's dual with its numbers as elements of the field.

    Attributes
    ----------
    factors : (free entry, bus and kind, word), or (1, word) where only the price is in play
    offset : (free entry, word), scale 2**62 price units, with half a step of truncation
    fixed : (entry, word), scale 2**32 price units
    """

    dual: Dual
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
                part = PRIME_FIELD.inner(dual[1:], public_words(bounds, FACTOR_BITS))
                total = PRIME_FIELD.add(total, part)
        return Shares(total, COMPARED_BOUND, constant.constant)

    def strength(self, constant: "Shares") -> Shares:
        """Return the sum of all rows' strengths in their own units, scale 2**62 price units."""
        total = PRIME_FIELD.zeros(1)
        for dual, numbers in zip(self.duals, self.numbers, strict=True):
            if numbers:
                weights = np.array([1.0 / self.register.row(number)[3] for number in numbers])
                part = PRIME_FIELD.inner(dual[1:], public_words(weights, FACTOR_BITS))
                total = PRIME_FIELD.add(total, part)
        return Shares(total, COMPARED_BOUND, constant.constant)


class Duals:
    """Shared wishes, and the dual of each interval on the active set taken up last.

    Attributes
    ----------
    flow, total
        What the wishes cause, and what they draw together at the substation.
    ready
        By interval.
    """

    def __init__(self, mpc: Mpc, register: Register, wish_p: Shares, wish_q: Shares) -> None:
        self._mpc, self.register = mpc, register
        shape = (register.bus_count, register.interval_count, 2)
        invariant(len(wish_p) == len(wish_q) == shape[0] * shape[1], "one wish a bus and interval")
        self._wish_p, self._wish_q = wish_p.data.reshape(shape), wish_q.data.reshape(shape)
        self.flow = flow(register, self._wish_p, self._wish_q)
        self.total = self.flow.active[register.limits.tree.root]
        self.ready: list[Ready] = []

    def solve(self, active: ActiveSet, count: int) -> Steps[StepResult]:
        """Return the dual on a fixed active set."""
        return (yield from self.exact(active, count, self.rough(active)))

    def rough(self, active: ActiveSet) -> Words:
        """Return the free entries of all intervals, scale 2**62, without a message."""
        self.take_up(active)
        alone = [
            interval
            for interval, ready in enumerate(self.ready)
            if ready.dual.free and not ready.dual.numbers  # the price alone: one sum
        ]
        parts = dict.fromkeys(alone, PRIME_FIELD.zeros(0))
        if alone:
            slopes = np.concatenate([self.ready[interval].factors for interval in alone])
            sums = PRIME_FIELD.multiply(slopes, np.ascontiguousarray(self.total[alone]))
            parts = {interval: sums[[place]] for place, interval in enumerate(alone)}
        for interval, ready in enumerate(self.ready):
            if ready.dual.free and ready.dual.numbers:
                vector = np.concatenate([self._wish_p[:, interval], self._wish_q[:, interval]])
                parts[interval] = apply_matrix(ready.factors, np.ascontiguousarray(vector))
        if not parts:
            return PRIME_FIELD.zeros(0)
        order = sorted(parts)
        offsets = np.concatenate([self.ready[interval].offset for interval in order])
        return PRIME_FIELD.add(np.concatenate([parts[interval] for interval in order]), offsets)

    def take_up(self, active: ActiveSet) -> None:
        """Prepare the duals of an active set."""
        register = self.register
        self.ready = [_ready_of(register, active, t) for t in range(register.interval_count)]

    def exact(self, active: ActiveSet, count: int, rough: Words) -> Steps[StepResult]:
        """Return the dual that rough free entries make, rounded down."""
        found = rough
        if len(rough):
            shared = self._mpc.wrap(rough, COMPARED_BOUND)
            found = (yield from self._mpc.truncate(shared, FACTOR_BITS)).data
        return self._result(active, count, found)

    def near(self, active: ActiveSet, count: int, rough: Words) -> Steps[StepResult]:
        """Return the dual but for a few steps of ``2**-32``: good enough to ask what changes."""
        if self._mpc.n > NEAR_PARTIES_MAX:
            return (yield from self.exact(active, count, rough))
        found = rough
        if len(rough):
            shared = self._mpc.wrap(rough, COMPARED_BOUND)
            found = (yield from self._mpc.truncate_nearly(shared, FACTOR_BITS)).data
        return self._result(active, count, found)

    def _result(self, active: ActiveSet, count: int, found: Words) -> StepResult:
        duals, at = [], 0
        for dual, _, _, fixed in self.ready:
            whole = fixed.copy()
            whole[list(dual.free)] = found[at : at + len(dual.free)]
            at += len(dual.free)
            duals.append(whole)
        numbers = [ready.dual.numbers for ready in self.ready]
        return StepResult(self.register, active, duals, numbers, count)

    def still(self, active: ActiveSet) -> StepResult:
        """Return a step in which every price is zero: wishes are their own targets."""
        register = self.register
        self.take_up(active)
        duals = [PRIME_FIELD.zeros(1) for _ in self.ready]
        return StepResult(register, active, duals, [() for _ in duals], 0)


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


def _ready_of(register: Register, active: ActiveSet, interval: int) -> Ready:
    """Return one interval's dual on a fixed active set, prepared once for a register."""
    rows = tuple(sorted(active.rows[interval].items()))
    key = (interval, active.price[interval], rows)
    if key not in register.prepared:
        register.prepared[key] = _ready(register, active, interval)
    found: Ready = register.prepared[key]
    return found


def _ready(register: Register, active: ActiveSet, interval: int) -> Ready:
    dual, unit = _dual_of(register, active, interval), register.unit
    matrix, offset = np.hstack([dual.map_p, dual.map_q]) / unit, dual.offset / unit
    # Of rows that are nearly dependent an entry may be too large to write down. Only its sign can
    # matter then, which a smaller one has as well.
    largest = np.maximum(np.abs(offset), np.abs(matrix).max(axis=1, initial=0.0))
    excess = np.ceil(np.log2(np.maximum(largest, ENTRY_MAX) / ENTRY_MAX))
    matrix, offset = matrix * 2.0 ** -excess[:, np.newaxis], offset * 2.0**-excess
    words = public_words(matrix, FACTOR_BITS).reshape(*matrix.shape, 2)
    if not dual.numbers:
        words = words[:, 0]
    # Half a step of the truncation that follows: it then rounds to the nearest.
    half = 2.0 ** -(POWER_BITS + 1)
    constant = public_words(offset + half, POWER_BITS + FACTOR_BITS)
    return Ready(dual, words, constant, public_words(dual.fixed / unit, POWER_BITS))


def _dual_of(register: Register, active: ActiveSet, interval: int) -> Dual:
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
    gram = gram * register.softness[interval]
    empty = np.zeros((0, register.bus_count))
    if not free:
        return Dual(
            numbers, own_p, own_q, bounds, low, high, free, fixed, empty, empty, np.zeros(0)
        )
    inside = list(free)
    outside = [place for place in range(len(statuses)) if place not in free]
    reduced = gram[np.ix_(inside, inside)]
    reduced = reduced + 1e-13 * float(np.diag(gram).max()) * np.eye(len(inside))
    inverse = np.linalg.inv(reduced)
    constant = bounds[inside] + gram[np.ix_(inside, outside)] @ fixed[outside]
    return Dual(
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
