"""What looks like manipulation in a round, for the weights of the next one [market 5].

A flag never changes the round in which it is raised, and never a price: it lowers the weight with
which the participant's quantities count next time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from veilgrid.grid.network import Floats
from veilgrid.risk.auction import Mask

INFLUENCE: Final = 0.02
"""Largest share of a side that one participant may have without proof; more in small markets."""

USUAL_MULTIPLE: Final = 2.0
CAPS_FROM: Final = 30
"""With fewer bidders on a side nobody is usual; only proved capabilities bind."""

OUTLIER_SCORE: Final = 3.5
PRICE_SCORE: Final = 6.0
WITHHELD_SHARE: Final = 0.5
IMPACT_SHARE: Final = 0.05
WEIGHT_FLOOR: Final = 0.02
_SIGMA: Final = 1.4826
_LOG_SPREAD_MIN: Final = 0.25

SERIOUS: Final = frozenset({"spoof", "wash", "withholding", "out-of-capability", "payment-cycle"})


@dataclass(frozen=True, slots=True)
class Flag:
    """Who is flagged, as what, and why in words."""

    participant: str
    kind: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Book:
    """All orders of a round, as only a local run or the participants together can see them.

    Attributes
    ----------
    participants : (order,)
    is_buy : (order,)
    prices, quantities : (order,)
    capabilities : (order,)
        What the participant was proved able to trade; NaN where nothing is known.
    """

    participants: Sequence[str]
    is_buy: Mask
    prices: Floats
    quantities: Floats
    capabilities: Floats


def influence_max(bidder_count: int) -> float:
    """Return the largest share of a side that one of so many bidders may have."""
    return max(INFLUENCE, 3.0 / max(bidder_count, 1))


@dataclass(frozen=True, slots=True, eq=False)
class _Side:
    """Participants of one side with their total quantities."""

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


def _stand_out(side: _Side) -> Mask:
    """Return who has more than its share of a side and far more than others have."""
    if len(side.names) < 4:
        return np.zeros(len(side.names), bool)
    logs = np.log(side.totals)
    middle = np.median(logs)
    spread = max(_SIGMA * float(np.median(np.abs(logs - middle))), _LOG_SPREAD_MIN)
    share = side.totals / side.totals.sum()
    found: Mask = ((logs - middle) / spread > OUTLIER_SCORE) & (
        share > influence_max(len(side.names))
    )
    return found


def capped(book: Book) -> Floats:
    """Return the quantities that count: none above its proof, no outlier above its influence.

    A participant with a proved capability counts up to it. One without, who stands out, counts
    up to twice the middle participant of its side, or the share that one bidder may have if that
    is less. The bounds are public before orders are
    sent; parties check them on shares.
    """
    out = np.array(book.quantities, np.float64)
    for is_buy in (True, False):
        side = _side(book, is_buy)
        if not side.names:
            continue
        stands_out = _stand_out(side) & np.isnan(side.capabilities)
        if len(side.names) < CAPS_FROM:
            stands_out[:] = False
        others = side.totals[~stands_out]
        share = influence_max(len(side.names))
        most_usual = USUAL_MULTIPLE * float(np.median(others)) if others.size else 0.0
        room = min(share * float(others.sum()), most_usual)
        for index, rows in enumerate(side.rows):
            most = room if stands_out[index] else side.capabilities[index]
            if not np.isnan(most) and side.totals[index] > most:
                out[rows] *= most / side.totals[index]
    return out


def flags_of(
    book: Book, price: float | None, volume: float, price_without: Mapping[str, float | None]
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
    """
    buyers, sellers = _side(book, True), _side(book, False)
    found: list[Flag] = []
    for side in (buyers, sellers):
        found += _beyond(side)
        found += _price_outliers(book, side)
    found += _wash(book)
    found += _withheld(book, sellers, price)
    for name, other in price_without.items():
        if price is not None and other is not None and price - other > IMPACT_SHARE * abs(price):
            found.append(Flag(name, "conduct-impact", f"price {price:g} instead of {other:g}"))
    found += _pivotal(sellers, volume)
    unique = {(one.participant, one.kind): one for one in found}
    return [unique[key] for key in sorted(unique)]


def _beyond(side: _Side) -> list[Flag]:
    found = []
    for index in np.flatnonzero(_stand_out(side)):
        if np.isnan(side.capabilities[index]) or side.totals[index] > side.capabilities[index]:
            share = side.totals[index] / side.totals.sum()
            reason = f"{100 * share:.0f} % of its side, far above the others"
            found.append(Flag(side.names[index], "spoof", reason))
    for index in np.flatnonzero(side.totals > side.capabilities * (1 + 1e-9)):
        reason = f"{side.totals[index]:g}, able to {side.capabilities[index]:g}"
        found.append(Flag(side.names[index], "out-of-capability", reason))
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
        if book.quantities[row] > 0:
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


def _withheld(book: Book, sellers: _Side, price: float | None) -> list[Flag]:
    found = []
    for index, rows in enumerate(sellers.rows):
        able = sellers.capabilities[index]
        gains = price is not None and float(book.prices[rows].min()) <= price
        if able > 0 and gains and sellers.totals[index] < WITHHELD_SHARE * able:
            reason = f"offers {sellers.totals[index]:g} of {able:g} although it would gain"
            found.append(Flag(sellers.names[index], "withholding", reason))
    return found


def _pivotal(sellers: _Side, volume: float) -> list[Flag]:
    total = float(sellers.totals.sum())
    share = influence_max(len(sellers.names))
    return [
        Flag(name, "pivotal", "without it demand could not be met")
        for name, own in zip(sellers.names, sellers.totals, strict=True)
        if volume > 0 and own > share * total and total - own < volume * (1 - 1e-9)
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
