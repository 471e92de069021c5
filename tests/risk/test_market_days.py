"""A market over rounds that a committee clears: joining, leaving, a spoof and its weight."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from veilgrid.cli._market import clear_orders, report_of
from veilgrid.cli._market_orders import Orders, grid_of
from veilgrid.machine import (
    START,
    Compute,
    Computed,
    Decide,
    Effect,
    NodeId,
    Received,
    Send,
    TimerFired,
)
from veilgrid.risk.auction import UNIFORM
from veilgrid.risk.flags import Book
from veilgrid.risk.market_rounds import Flagged, Join, Leave, MarketRounds, Opened

USUAL = {f"b{k}": ("buy", 20.0 + k % 9, 2.0 + k % 3) for k in range(14)} | {
    f"s{k}": ("sell", 16.0 + k % 9, 2.0 + k % 3) for k in range(14)
}


def orders_of(rows: list[str], weights: list[int], number: int) -> Orders:
    """Mallory asks for forty times what others do in its first round, and behaves after it."""
    told = USUAL | {
        "mallory": ("buy", 24.0, 100.0 if number == 2 else 3.0),
        "late": ("sell", 17.0, 4.0),
    }
    sides, prices, sizes = zip(*(told[name] for name in rows), strict=True)
    book = Book(
        rows,
        np.array([side == "buy" for side in sides]),
        np.array(prices),
        np.array(sizes),
        np.full(len(rows), np.nan),
    )
    return Orders(
        book, np.array(weights, np.int64), [Fraction(p) for p in prices], [""] * len(rows)
    )


def cleared(number: int, rows: list[str], weights: list[int]) -> Flagged:
    """Run the committee on the round's orders, as an operator's worker would."""
    orders = orders_of(rows, weights, number)
    grid = grid_of(orders)
    done = clear_orders(grid, orders.book.is_buy, orders.weights, UNIFORM, number)
    report = report_of(orders, grid, done, UNIFORM)
    kinds: dict[str, list[str]] = {}
    for flag in report["flags"]:
        kinds.setdefault(flag["participant"], []).append(flag["kind"])
    opened = dict(zip(rows, (done.opened if done.opened is not None else []), strict=True))
    return Flagged({"report": report, "opened": opened, "step": float(grid.step)}, kinds)


class Market:
    """Drives the operator's machine round by round."""

    def __init__(self) -> None:
        self.machine = MarketRounds(cleared)
        self.results: list[dict[str, Any]] = []

    def take(self, effects: list[Effect]) -> dict[str, Opened]:
        told = {}
        for one in effects:
            match one:
                case Send(to, Opened() as opened):
                    told[str(to)] = opened
                case Compute(job, kernel, arguments):
                    more = self.machine.handle(Computed(job, kernel(*arguments)))
                    self.results += [e.outcome[1] for e in more if isinstance(e, Decide)]
                case _:
                    pass
        return told

    def said(self, name: str, message: Join | Leave) -> None:
        self.take(self.machine.handle(Received(NodeId(name), message)))

    def close(self) -> dict[str, Opened]:
        return self.take(self.machine.handle(TimerFired("close")))


def test_rounds_go_on_while_bidders_come_and_go_and_a_spoof_weighs_less() -> None:
    market = Market()
    for name in USUAL:
        market.said(name, Join())
    told = market.take(market.machine.handle(TimerFired(START)))
    assert set(told) == set(USUAL)
    market.said("mallory", Join())
    weights = []
    for number in range(1, 6):
        if number == 3:
            market.said("s0", Leave())
            market.said("late", Join())
        told = market.close()
        weights.append(told["mallory"].weight)
    # Told when rounds 2 to 6 open; it spoofs in round 2, which is cleared while 3 is open.
    assert weights == pytest.approx([1000, 1000, 100, 140, 188], abs=1)
    assert "s0" not in told
    assert "late" in told
    reports = [one["report"] for one in market.results]
    assert len(reports) == 5
    spoofs = [{f["participant"] for f in one["flags"] if f["kind"] == "spoof"} for one in reports]
    assert spoofs == [set(), {"mallory"}, set(), set(), set()]
    sellers = [{t["participant"] for t in one["trades"] if t["side"] == "sell"} for one in reports]
    assert "late" not in sellers[2]
    assert "late" in sellers[3]
    for result in market.results:
        money = [round(1e6 * trade["payment"]) for trade in result["report"]["trades"]]
        assert sum(money) == 0
        assert result["report"]["volume"] > 0


def test_what_mallory_trades_after_its_spoof_is_a_tenth_of_its_order() -> None:
    """In the round whose announced weight is a tenth, it opened no more than that."""
    names = [*USUAL, "mallory"]
    full = cleared(4, names, [1000] * len(names)).result
    less = cleared(4, names, [100 if name == "mallory" else 1000 for name in names]).result
    assert full["opened"]["mallory"] * full["step"] == pytest.approx(3.0, rel=1e-3)
    assert less["opened"]["mallory"] * less["step"] / 1000 == pytest.approx(0.3, rel=1e-3)
