"""Several rounds of a market: bidders come and go, flags of one round weigh in the next."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from veilgrid.cli._market_orders import WEIGHT_STEPS, Orders
from veilgrid.node.market_history import MarketHistory
from veilgrid.risk.flags import next_weight
from veilgrid.risk.market_rounds import rows_of

Play = Callable[[Orders, int], dict[str, Any]]


def play_rounds(
    files: Sequence[tuple[str, Orders]], history: MarketHistory, play: Play
) -> dict[str, Any]:
    """Clear files one after the other; return totals and ``rounds``.

    Parameters
    ----------
    files
        Name and orders of each round.
    history
        Weights of participants from rounds before; gets those after these.
    play
        Clears orders; the second argument counts from 0.
    """
    rounds = []
    for place, (name, orders) in enumerate(files):
        number = history.reserve(name)
        try:
            rounds.append(_played(number, place, name, orders, history, play))
        except BaseException:
            history.fail(number)
            raise
    return {**_totals(rounds), "rounds": rounds}


def _played(
    number: int, place: int, name: str, orders: Orders, history: MarketHistory, play: Play
) -> dict[str, Any]:
    weights, before = history.weights(), history.members()
    members = set(orders.book.participants)
    report = play(weighed(orders, weights, number), place)
    flags = [(one["participant"], one["kind"]) for one in report["flags"]]
    # What a committee refuses was not made by honest software; a broken row of a file may be.
    flags += [(one["participant"], "rejected") for one in report["rejected"] if "row" not in one]
    after = {
        one: next_weight(
            weights.get(one, 1.0), frozenset(kind for who, kind in flags if who == one)
        )
        for one in sorted(members)
        if one in weights or any(who == one for who, _ in flags)
    }
    told = {
        "number": number,
        "bids": name,
        **report,
        "joined": sorted(members - before),
        "left": sorted(before - members),
        "weights": [
            {"participant": one, "weight": weights[one]}
            for one in sorted(members & set(weights))
            if weights[one] < 1
        ],
    }
    history.complete(number, told, members, flags, after)
    return told


def weighed(orders: Orders, weights: dict[str, float], number: int) -> Orders:
    """Return orders with the weights of their participants, in the order of the round's rows."""
    book = orders.book
    place = {name: at for at, name in enumerate(rows_of(set(book.participants), number))}
    order = np.array(
        sorted(range(len(book.participants)), key=lambda row: (place[book.participants[row]], row)),
        np.int64,
    )
    names = [book.participants[int(row)] for row in order]
    parts = np.array([weights.get(name, 1.0) for name in names])
    steps = np.floor(orders.weights[order] * parts + 1e-9).astype(np.int64)
    return Orders(
        replace(
            book,
            participants=names,
            is_buy=book.is_buy[order],
            prices=book.prices[order],
            quantities=book.quantities[order],
            capabilities=book.capabilities[order],
        ),
        np.minimum(steps, WEIGHT_STEPS),
        [orders.exact_prices[int(row)] for row in order],
        [orders.buses[int(row)] for row in order],
        orders.skipped,
    )


def _totals(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    volume = sum(one["volume"] for one in rounds)
    worth = sum(one["price"] * one["volume"] for one in rounds if one["volume"])
    sums: dict[tuple[str, str], list[float]] = {}
    for one in rounds:
        for trade in one["trades"]:
            entry = sums.setdefault((trade["participant"], trade["side"]), [0.0, 0.0])
            entry[0] += trade["quantity"]
            entry[1] += trade["payment"]
    rules = list(dict.fromkeys(one["rule"] for one in rounds))
    return {
        "price": worth / volume if volume else None,
        "volume": volume,
        "welfare": sum(one["welfare"] for one in rounds),
        "welfare_optimum": sum(one["welfare_optimum"] for one in rounds),
        "rule": rules[0] if len(rules) == 1 else "mixed",
        "trades": [
            {
                "participant": name,
                "side": side,
                "quantity": quantity,
                "payment": round(payment, 6),
            }
            for (name, side), (quantity, payment) in sums.items()
        ],
        "flags": [{**flag, "round": one["number"]} for one in rounds for flag in one["flags"]],
        "rejected": [{**who, "round": one["number"]} for one in rounds for who in one["rejected"]],
        "surplus": round(sum(one["surplus"] for one in rounds), 6),
        "bidders": max(one["bidders"] for one in rounds),
        "seconds": sum(one["seconds"] for one in rounds),
        "bytes": sum(one["bytes"] for one in rounds),
    }
