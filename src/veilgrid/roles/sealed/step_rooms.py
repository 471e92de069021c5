"""What has to hold on shares for an active set to be right [sealed 3.2, 3.3].

Entries of the dual keep their bounds, the substation's price follows the direction of the
exchange, and no network row is exceeded. Everything is linear in shares: no message here.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from veilgrid.grid.lindistflow import POLYGON_SIDES
from veilgrid.grid.network import Floats
from veilgrid.mpc._prime import apply_matrix
from veilgrid.mpc.field import PRIME_FIELD, Words, encode, encode_words
from veilgrid.roles.sealed.register import EXCESS_TOLERANCE, FACTOR_BITS, POWER_BITS, factors
from veilgrid.roles.sealed.step_dual import Dual, Duals, StepResult, public_words
from veilgrid.roles.sealed.step_set import AT_HIGH, AT_LOW, FREE

BOX_SHARE: Final = 0.7
"""A branch whose active and reactive flow are below this share of its rating is within it."""


class Looks(NamedTuple):
    """Which rows are looked at although they are not in play yet."""

    voltages: bool = True
    ratings: bool = True


EVERYTHING: Final = Looks()

Flagged = tuple[str, int, int, Words]
"""What is wrong, in which interval, with which row or branch, and by how much (shared)."""


@dataclass
class Checks:
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


class Rooms:
    """What is left to each bound and row, on the active set that some duals took up last."""

    def __init__(self, duals: Duals) -> None:
        self.register, self.flow, self.total = duals.register, duals.flow, duals.total
        self._from = duals
        self._known: dict[float, Words] = {}

    @property
    def _duals(self) -> list[Dual]:
        return [ready.dual for ready in self._from.ready]

    def checks(
        self, result: StepResult, todo: list[int], looks: Looks, rough: Words | None = None
    ) -> Checks:
        """Collect what is below zero where an entry leaves its bounds or a row is exceeded.

        Only the intervals in ``todo`` are looked at; the others have not changed since they held.
        Without the ``rough`` free entries of the dual, only rows are.
        """
        checks = Checks()
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
        self, checks: Checks, result: StepResult, interval: int, free: dict[int, Words]
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
            gram = gram * register.softness[interval]
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
        units = self.register.unit * self.register.softness
        out = base.copy()
        to_price = factors(np.outer(response_p.sum(axis=1), units))
        price = np.concatenate([dual[:1] for dual in result.duals])
        for bus, own in enumerate(to_price):
            moved = PRIME_FIELD.multiply(encode_words(own), price)
            out[bus] = PRIME_FIELD.subtract(out[bus], moved)
        for interval, dual in enumerate(self._duals):
            if not dual.numbers:
                continue
            matrix = response_p @ dual.active[1:].T + response_q @ dual.reactive[1:].T
            steps = factors(matrix * units[interval])
            words = encode_words(steps.ravel()).reshape(*matrix.shape, 2)
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
        self, checks: Checks, result: StepResult, drop: Words, todo: list[int]
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

    def _screens(self, checks: Checks, result: StepResult, todo: list[int]) -> None:
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
        checks: Checks,
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

    def side_checks(self, result: StepResult, places: list[tuple[int, int]]) -> Checks:
        """Compare all sides of some branches' polygons in some intervals."""
        checks, count = Checks(), self.register.bus_count
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
        weights = encode_words(factors(moved * register.unit * register.softness[interval]))
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
