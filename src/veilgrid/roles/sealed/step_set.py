"""Which limits bind in a network step, and what changes when they do not hold [sealed 3.2].

Everything here is public: statuses of the substation's price and of network rows, by interval.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np

from veilgrid.grid.network import Floats
from veilgrid.roles.sealed.register import Register

AT_LOW: Final = -1
FREE: Final = 0
AT_HIGH: Final = 1

LEAVERS_MAX: Final = 3
"""Rows that may make room for a new one, the most like it first."""

ENERGY: Final = -1
"""Stands for the substation's price among the numbers of rows."""

TINY_REACH: Final = 1e-12
"""Squared length of a row, over the largest inverse penalty, that counts as none."""

INDEPENDENT_MIN: Final = 1e-6
"""Share of a row's squared length, in the metric of the penalties, that others may not span."""

Move = tuple[str, int, int]
"""What is wrong, in which interval, with which row or branch."""

Key = tuple[int, int, tuple[tuple[int, int], ...]]
"""An interval and its active set."""


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


def changed(
    register: Register,
    active: ActiveSet,
    moves: list[Move],
    rows: list[Move],
    tried: set[Key],
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


def _key(active: ActiveSet, interval: int) -> Key:
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
