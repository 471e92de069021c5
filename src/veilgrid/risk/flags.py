"""What looks like manipulation in a round, for the weights of the next one [market 5].

A flag never changes the round in which it is raised, and never a price: it lowers the weight with
which the participant's quantities count next time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from veilgrid.grid.network import Floats
from veilgrid.mpc.layout import Integers
from veilgrid.risk.auction import Mask
from veilgrid.risk.conduct import CAPS_FROM, Groups
from veilgrid.risk.usual import SIDE_MIN, Usual, influence_of, usual_of

PRICE_SCORE: Final = 6.0
IMPACT_SHARE: Final = 0.05
WEIGHT_FLOOR: Final = 0.02
STEP: Final = 1e-6
_SIGMA: Final = 1.4826

SERIOUS: Final = frozenset({"spoof", "wash", "withholding", "out-of-capability", "payment-cycle"})
ON_SHARES: Final = frozenset({"spoof", "wash", "withholding", "out-of-capability", "pivotal"})
"""Kinds that a committee finds without opening an order: :mod:`veilgrid.risk.conduct`."""


@dataclass(frozen=True, slots=True)
class Flag:
    """Who is flagged, as what, and why in words."""

    participant: str
    kind: str
    reason: str


@dataclass(frozen=True, eq=False)
class Book:
    """All orders of a round, as only a local run or the participants together can see them.

    Attributes
    ----------
    participants : (order,)
    is_buy : (order,)
    prices, quantities : (order,)
    capabilities : (order,)
        What the participant was proved able to trade; NaN where nothing is known.
    steps : (order,) or None
        Quantities in whole steps; None: of :data:`STEP` each.
    step
        Size of a step.
    """

    participants: Sequence[str]
    is_buy: Mask
    prices: Floats
    quantities: Floats
    capabilities: Floats
    steps: Integers | None = None
    step: float = STEP

    @cached_property
    def names(self) -> list[str]:
        """Participants, in the order of their first rows."""
        return list(dict.fromkeys(self.participants))

    @cached_property
    def sizes(self) -> Integers:
        """Quantities in steps: (order,)."""
        if self.steps is not None:
            return self.steps
        return np.rint(self.quantities / self.step).astype(np.int64)

    @cached_property
    def groups(self) -> Groups:
        """Who owns which order; public."""
        numbers = {name: number for number, name in enumerate(self.names)}
        owners = np.array([numbers[name] for name in self.participants], np.int64)
        known = ~np.isnan(self.capabilities)
        able = np.full(len(owners), -1, np.int64)
        able[known] = np.floor(self.capabilities[known] / self.step * (1 + 1e-12) + 1e-9)
        return Groups(owners, self.is_buy, able)

    @cached_property
    def totals(self) -> list[int]:
        """What each group has, in steps."""
        out = [0] * len(self.groups.owner)
        for group, size in zip(self.groups.of_order.tolist(), self.sizes.tolist(), strict=True):
            out[group] += size
        return out


@dataclass(frozen=True, slots=True, eq=False)
class _Side:
    """Participants of one side that offer something, with their total quantities."""

    names: list[str]
    rows: list[npt.NDArray[np.intp]]
    totals: Floats
    capabilities: Floats


def _side(book: Book, is_buy: bool) -> _Side:
    grouped: dict[str, list[int]] = {}
    for row in np.flatnonzero((book.is_buy == is_buy) & (book.quantities > 0)):
        grouped.setdefault(book.participants[int(row)], []).append(int(row))
    rows = [np.array(each, np.intp) for each in grouped.values()]
    totals = np.array([book.quantities[each].sum() for each in rows])
    capabilities = np.array([book.capabilities[each].max() for each in rows])
    return _Side(list(grouped), rows, totals, capabilities)


def usual(book: Book, is_buy: bool, draw: int = 0) -> Usual | None:
    """Return what is usual on a side; None where too few are on it."""
    groups = book.groups.side(is_buy)
    if len(groups) < SIDE_MIN:
        return None
    return usual_of([book.totals[int(group)] for group in groups], draw, int(is_buy))


def capped_steps(book: Book, draw: int = 0) -> Integers:
    """Return the steps that count: none above its proof, no outlier above what is usual.

    A participant with a proved capability counts up to it. One without, who stands out, counts up
    to twice the middle participant of its side, or the share that one bidder may have if that is
    less. Rows count in their order. The committee does the same on shares.
    """
    groups, out = book.groups, np.array(book.sizes, np.int64)
    for is_buy in (True, False):
        found = usual(book, is_buy, draw)
        for group in groups.side(is_buy).tolist():
            total, room = book.totals[group], int(groups.able[group])
            if room < 0:
                if found is None or found.count < CAPS_FROM or not found.stands_out(total):
                    continue
                room = found.room
            if total > room:
                rows = np.flatnonzero(groups.of_order == group)
                before = np.cumsum(out[rows]) - out[rows]
                out[rows] = np.clip(room - before, 0, out[rows])
    return out


def capped(book: Book, draw: int = 0) -> Floats:
    """Return the quantities that count."""
    counted = capped_steps(book, draw)
    out = np.array(book.quantities, np.float64)
    less = counted < book.sizes
    out[less] = counted[less] * book.step
    return out


def flags_of(
    book: Book,
    price: float | None,
    volume: float,
    price_without: Mapping[str, float | None],
    *,
    draw: int = 0,
    is_strict: bool = False,
) -> list[Flag]:
    """Return all flags of a cleared round, by participant and kind.

    Parameters
    ----------
    book
        Quantities as sent, before caps.
    price, volume
        What was cleared; no price where nothing was traded.
    price_without
        For participants of :func:`suspects_of`: the price if they had asked the reference.
    draw
        What the sample of the round was drawn from.
    is_strict
        Whether orders at the price do not trade: under trade reduction.
    """
    found: list[Flag] = []
    for is_buy in (True, False):
        found += _beyond(book, is_buy, draw)
        found += _price_outliers(book, _side(book, is_buy))
    found += _wash(book)
    found += _withheld(book, price, is_strict)
    for name, other in price_without.items():
        if price is not None and other is not None and price - other > IMPACT_SHARE * abs(price):
            found.append(Flag(name, "conduct-impact", f"price {price:g} instead of {other:g}"))
    found += _pivotal(book, volume)
    unique = {(one.participant, one.kind): one for one in found}
    return [unique[key] for key in sorted(unique)]


def _beyond(book: Book, is_buy: bool, draw: int) -> list[Flag]:
    found, groups, common = [], book.groups, usual(book, is_buy, draw)
    chosen = groups.side(is_buy).tolist()
    sent = np.bincount(groups.of_order, book.quantities, len(groups.owner))
    whole = float(sent[chosen].sum())
    for group in chosen:
        name, total = book.names[groups.owner[group]], book.totals[group]
        able = int(groups.able[group])
        is_over = 0 <= able < total
        if common is not None and (able < 0 or is_over) and common.stands_out(total):
            reason = f"{100 * sent[group] / whole:.0f} % of its side, far above the others"
            found.append(Flag(name, "spoof", reason))
        if is_over:
            reason = f"{sent[group]:g}, able to {able * book.step:g}"
            found.append(Flag(name, "out-of-capability", reason))
    return found


def _price_outliers(book: Book, side: _Side) -> list[Flag]:
    if len(side.names) < 4:
        return []
    means = np.array([np.median(book.prices[rows]) for rows in side.rows])
    middle = float(np.median(means))
    spread = max(_SIGMA * float(np.median(np.abs(means - middle))), 0.02 * abs(middle), 1e-12)
    return [
        Flag(side.names[k], "outlier", f"price {means[k]:g}, the middle one is {middle:g}")
        for k in np.flatnonzero(np.abs(means - middle) / spread > PRICE_SCORE)
    ]


def _wash(book: Book) -> list[Flag]:
    best: dict[str, list[float]] = {}
    for row, name in enumerate(book.participants):
        if book.sizes[row] > 0:
            bounds = best.setdefault(name, [-np.inf, np.inf])
            if book.is_buy[row]:
                bounds[0] = max(bounds[0], float(book.prices[row]))
            else:
                bounds[1] = min(bounds[1], float(book.prices[row]))
    return [
        Flag(name, "wash", f"buys up to {buys:g} and sells from {sells:g}")
        for name, (buys, sells) in best.items()
        if buys >= sells
    ]


def _withheld(book: Book, price: float | None, is_strict: bool) -> list[Flag]:
    if price is None:
        return []
    found, groups = [], book.groups
    for group in groups.side(False).tolist():
        able, total = int(groups.able[group]), book.totals[group]
        if able <= 0 or not 0 < 2 * total < able:
            continue
        rows = (groups.of_order == group) & (book.sizes > 0)
        least = float(book.prices[rows].min())
        if least < price or (least == price and not is_strict):
            reason = f"offers {total * book.step:g} of {able * book.step:g} although it would gain"
            found.append(Flag(book.names[groups.owner[group]], "withholding", reason))
    return found


def _pivotal(book: Book, volume: float) -> list[Flag]:
    """Return sellers without whom what was traded could not be met."""
    groups = book.groups
    sellers = groups.side(False).tolist()
    whole = sum(book.totals[group] for group in sellers)
    above, below = influence_of(len(sellers))
    return [
        Flag(book.names[groups.owner[group]], "pivotal", "without it demand could not be met")
        for group in sellers
        if book.totals[group] * below > whole * above
        and (whole - book.totals[group]) * book.step < volume * (1 - 1e-12)
    ]


def suspects_of(book: Book) -> dict[str, float]:
    """Return sellers that ask far more than others do, and the reference to compare with."""
    sellers = _side(book, False)
    if len(sellers.names) < 4:
        return {}
    means = np.array([np.median(book.prices[rows]) for rows in sellers.rows])
    middle = float(np.median(means))
    spread = _SIGMA * float(np.median(np.abs(means - middle)))
    limit = middle + max(3 * spread, 0.5 * abs(middle))
    return {sellers.names[k]: middle for k in np.flatnonzero(means > limit)}


def payment_cycles(
    transfers: Sequence[tuple[str, str, float]], *, gross_min: float = 0.0
) -> list[Flag]:
    """Flag pairs whose payments to each other cancel out over several rounds.

    Parameters
    ----------
    transfers
        Who paid whom how much, for bilateral contracts beside the pool.
    gross_min
        Pairs that paid each other less in total are left alone.
    """
    sums: dict[tuple[str, str], list[float]] = {}
    for payer, payee, amount in transfers:
        first, second = sorted((payer, payee))
        entry = sums.setdefault((first, second), [0.0, 0.0])
        entry[0 if payer == first else 1] += amount
    found = []
    for (first, second), (there, back) in sums.items():
        gross = there + back
        if min(there, back) > 0 and gross >= gross_min and abs(there - back) < 0.1 * gross:
            reason = f"{first} and {second} paid each other {gross:g}, {abs(there - back):g} net"
            found += [Flag(name, "payment-cycle", reason) for name in (first, second)]
    return found


def next_weight(weight: float, kinds: frozenset[str]) -> float:
    """Return a participant's weight for the next round, from this round's flags only.

    Serious flags take it to a tenth, others halve it, none lets it recover by a fifth.
    """
    if kinds & SERIOUS:
        return max(0.1 * weight, WEIGHT_FLOOR)
    if kinds - {"pivotal"}:
        return max(0.5 * weight, WEIGHT_FLOOR)
    return min(1.0, weight * 1.2 + 0.02)
