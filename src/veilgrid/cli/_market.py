"""``veilgrid market``: one round of the peer-to-peer market."""

import json
import sys
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from veilgrid.cli._bulk_round import bulk_round
from veilgrid.cli._table_file import at_least_zero, cell, read, refuse
from veilgrid.errors import Finding, InputError, VeilgridError, invariant
from veilgrid.grid._table import Notes, Row, Table, check_strangers
from veilgrid.mpc._round import Steps
from veilgrid.mpc.bulk import BulkBatch, plain_batch
from veilgrid.mpc.engine import Engine
from veilgrid.mpc.layout import Integers
from veilgrid.mpc.plain import Plain
from veilgrid.risk.auction import (
    Cleared,
    Mask,
    allocate,
    clear,
    digit_count,
    encode,
    layout_of,
    payments,
    rations_of,
    rule_for,
)
from veilgrid.risk.award import UNIT, award, steps_of
from veilgrid.risk.flags import Book, Flag, capped, flags_of, payment_cycles, suspects_of

COLUMNS: Final = ("participant", "side", "price", "quantity")
RULES: Final = ("auto", "uniform-price", "trade-reduction")
TICKS_MAX: Final = 2**50
STEPS_MAX: Final = 2**50
ORDERS_USUAL: Final = 256
"""With more orders the largest quantity is fewer steps, so that sums can be compared."""
WEIGHT_STEPS: Final = 1000
DECIMALS_MAX: Final = 9
STEP_DECIMALS: Final = 6


@dataclass(frozen=True, slots=True, eq=False)
class Orders:
    """The file, and where each order's participant stands in the network if it says so."""

    book: Book
    weights: Integers
    exact_prices: list[Fraction]
    buses: list[str]


def read_orders(path: Path, *, with_bus: bool = False) -> tuple[Orders, list[Finding]]:
    """Read BIDS.csv; the second result are remarks.

    Raises
    ------
    InputError
        Every broken rule, with row and column.
    """
    notes = Notes()
    table = read(path, (*COLUMNS, "bus") if with_bus else COLUMNS, notes)
    if table is None:
        refuse(notes)
        raise InputError([Finding(path.name, "holds no table")])
    check_strangers(table, (*COLUMNS, "weight", "capability", "bus"), notes)
    names, sides, prices, amounts, weights, able, buses = [], [], [], [], [], [], []
    for row in table.rows:
        name = row.cells["participant"]
        if not name:
            notes.fault(table.at(row.line, "participant"), "is empty", "every order needs one")
        side = row.cells["side"].lower()
        if side not in ("buy", "sell"):
            found = row.cells["side"]
            notes.fault(table.at(row.line, "side"), f"is {found!r}, expected buy or sell")
        names.append(name)
        sides.append(side == "buy")
        prices.append(_exact(table, row, notes))
        amounts.append(cell(table, row, "quantity", at_least_zero, notes))
        weights.append(_optional(table, row, "weight", _weight, notes))
        able.append(_optional(table, row, "capability", at_least_zero, notes))
        buses.append(row.cells.get("bus", ""))
    refuse(notes)
    book = Book(
        names,
        np.array(sides, bool),
        np.array([float(price or 0) for price in prices], np.float64),
        np.array(amounts, np.float64),
        np.array([np.nan if one is None else one for one in able], np.float64),
    )
    steps = np.array(
        [WEIGHT_STEPS if one is None else int(one * WEIGHT_STEPS + 1e-9) for one in weights],
        np.int64,
    )
    return Orders(book, steps, [price or Fraction(0) for price in prices], buses), notes.remarks


def _exact(table: Table, row: Row, notes: Notes) -> Fraction | None:
    if cell(table, row, "price", lambda value: "", notes) is None:  # noqa: ARG005 - no rule
        return None
    try:
        return Fraction(Decimal(row.cells["price"]))
    except InvalidOperation:
        return Fraction(float(row.cells["price"]))


def _optional(table: Table, row: Row, column: str, rule: Any, notes: Notes) -> float | None:
    return cell(table, row, column, rule, notes) if row.cells.get(column) else None


def _weight(value: float) -> str:
    return "" if 0 <= value <= 1 else f"is {value:g}, must lie in 0..1"


# -- ticks and steps -------------------------------------------------------------------------------


def decimals_of(values: list[Fraction], room: int) -> int:
    """Return how many decimals tell all values apart, as far as they fit the room."""
    wanted = 0
    while wanted < DECIMALS_MAX and any((v * 10**wanted).denominator != 1 for v in values):
        wanted += 1
    while values and (max(values) - min(values)) * Fraction(10) ** wanted >= room - 1:
        wanted -= 1
    return wanted


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Public ticks of price and steps of quantity.

    Attributes
    ----------
    lowest
        Price of tick 0.
    tick, step
        Of price and of quantity, in the file's units.
    """

    lowest: Fraction
    tick: Fraction
    step: Fraction
    ticks: Integers
    quantities: Integers

    def price(self, tick: Fraction) -> Fraction:
        """Return the price of a tick."""
        return self.lowest + tick * self.tick


def grid_of(orders: Orders) -> Grid:
    """Return ticks and steps; buyers' limits are rounded down, sellers' up."""
    prices = orders.exact_prices
    tick = 1 / Fraction(10) ** decimals_of(prices, TICKS_MAX)
    floors = [price // tick for price in prices]
    lowest = min(floors, default=0) * tick
    ticks = []
    for price, buys in zip(prices, orders.book.is_buy, strict=True):
        place = (price - lowest) / tick
        ticks.append(place.__floor__() if buys else place.__ceil__())
    amounts = [Fraction(str(float(value))) for value in capped(orders.book)]
    decimals = STEP_DECIMALS
    crowd = Fraction(max(len(amounts), ORDERS_USUAL), ORDERS_USUAL)
    most = max(amounts, default=Fraction(0)) * crowd
    while most * Fraction(10) ** decimals >= STEPS_MAX:
        decimals -= 1
    step = 1 / Fraction(10) ** decimals
    steps = [int(amount // step) for amount in amounts]
    return Grid(lowest, tick, step, np.array(ticks, np.int64), np.array(steps, np.int64))


# -- one round -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Round:
    """A cleared set of orders.

    Attributes
    ----------
    traded : (order,), weighted steps
        Exact: both sides add up to the same.
    opened : (order,), weighted steps
        What each order's owner, and nobody else, opened; None if nothing was sealed.
    """

    cleared: Cleared
    traded: Integers
    flags: dict[str, str]
    seconds: float
    octets: int
    opened: Integers | None = None


def clear_orders(
    grid: Grid, is_buy: Mask, weights: Integers, rule: str, seed: int | None, *, plain: bool = False
) -> Round:
    """Clear orders in the committee, or in the clear to see what would have been."""
    digits = digit_count(int(grid.ticks.max(initial=0)) + 1)
    layout = layout_of(np.maximum(grid.quantities, 1), digits)
    inputs = encode(layout, grid.ticks, grid.quantities)
    scaled = weights if (weights != WEIGHT_STEPS).any() else np.ones_like(weights)
    effective = grid.quantities * scaled
    if plain:
        mpc = Plain()
        batch = plain_batch(mpc, layout, inputs)
        found: Any = mpc.run(clear(mpc, batch, is_buy, scaled, rule))
        return Round(found, allocate(found, grid.ticks, effective, is_buy), {}, 0.0, 0)

    names = [str(row) for row in range(len(is_buy))]

    def program(mpc: Engine, batch: BulkBatch) -> Steps[Any]:
        price, awards = yield from award(mpc, batch, is_buy, scaled, rule)
        yield from mpc.deliver_each(names, "award", awards)
        return price

    done = bulk_round(b"market", layout, names, inputs, program, seed=seed, delivers=True)
    for name in done.flags:
        effective[int(name)] = 0
    opened = np.array([steps_of(done.opened[name]) for name in names], np.int64)
    cleared = rations_of(done.result, grid.ticks, effective, is_buy)
    traded = allocate(cleared, grid.ticks, effective, is_buy)
    invariant(
        bool((np.abs(traded - opened) <= 1 + effective // UNIT).all()),
        "each owner opened what the file says it trades, to a step",
    )
    return Round(cleared, traded, done.flags, done.seconds, done.octets, opened)


def chosen_rule(book: Book, rule: str) -> str:
    """Return the rule, from the number of bidders with a quantity where it is ``auto``."""
    if rule != "auto":
        return rule
    active = [
        {
            book.participants[int(k)]
            for k in np.flatnonzero((book.is_buy == side) & (book.quantities > 0))
        }
        for side in (True, False)
    ]
    return rule_for(len(active[0]), len(active[1]))


def _nothing(rule: str) -> Cleared:
    return Cleared(rule, 0, 0, 0, 0, 0, 0, 0)


def read_transfers(path: Path) -> list[tuple[str, str, float]]:
    """Read who paid whom how much beside the pool.

    Raises
    ------
    InputError
        Every broken rule, with row and column.
    """
    notes = Notes()
    columns = ("payer", "payee", "amount")
    table = read(path, columns, notes)
    if table is None:
        refuse(notes)
        raise InputError([Finding(path.name, "holds no table")])
    check_strangers(table, columns, notes)
    found = []
    for row in table.rows:
        amount = cell(table, row, "amount", at_least_zero, notes)
        for column in columns[:2]:
            if not row.cells[column]:
                notes.fault(table.at(row.line, column), "is empty", "name who paid and who got it")
        found.append((row.cells["payer"], row.cells["payee"], amount or 0.0))
    refuse(notes)
    return found


def play(orders: Orders, rule: str = "auto", seed: int | None = None) -> dict[str, Any]:
    """Return the JSON object of ``veilgrid market``."""
    book, grid = orders.book, grid_of(orders)
    named = chosen_rule(book, rule)
    if grid.quantities.sum() == 0:
        empty = np.zeros(len(grid.ticks), np.int64)
        done = Round(_nothing(named), empty, {}, 0.0, 0)
    else:
        done = clear_orders(grid, book.is_buy, orders.weights, named, seed)
    return report_of(orders, grid, done, named)


def report_of(orders: Orders, grid: Grid, done: Round, rule: str) -> dict[str, Any]:
    """Return what is printed about a round; the caller holds all orders."""
    book = orders.book
    part = 1 if (orders.weights == WEIGHT_STEPS).all() else WEIGHT_STEPS
    step = grid.step / part
    volume = float(done.cleared.volume * step)
    exact = grid.price(done.cleared.price) if done.cleared.volume else None
    price = None if exact is None else float(exact)
    money = payments(done.traded, book.is_buy, (exact or Fraction(0)) * step * 10**6)
    signs = np.where(book.is_buy, 1, -1)
    welfare = sum(
        int(sign) * limit * int(traded) * step
        for sign, limit, traded in zip(signs, orders.exact_prices, done.traded, strict=True)
        if traded
    )
    return {
        "price": price,
        "volume": volume,
        "welfare": float(welfare),
        "rule": rule,
        "trades": _trades(book, done.traded, money, step),
        "flags": _told(flags_of(book, price, volume, _references(orders, rule))),
        "rejected": [
            {"participant": book.participants[int(row)], "reason": why}
            for row, why in done.flags.items()
        ],
        "price_low": float(grid.price(Fraction(done.cleared.low))) if volume else None,
        "price_high": float(grid.price(Fraction(done.cleared.high))) if volume else None,
        "surplus": sum(money) / 1e6,
        "tick": float(grid.tick),
        "bidders": len(set(book.participants)),
        "seconds": done.seconds,
        "bytes": done.octets,
    }


def _told(flags: list[Flag]) -> list[dict[str, str]]:
    return [
        {"participant": one.participant, "kind": one.kind, "reason": one.reason} for one in flags
    ]


def _trades(book: Book, traded: Integers, money: list[int], step: Fraction) -> list[dict[str, Any]]:
    """Return one entry a participant and side that trades."""
    sums: dict[tuple[str, bool], list[int]] = {}
    for row in np.flatnonzero(traded):
        entry = sums.setdefault((book.participants[int(row)], bool(book.is_buy[row])), [0, 0])
        entry[0] += int(traded[row])
        entry[1] += money[row]
    return [
        {
            "participant": name,
            "side": "buy" if buys else "sell",
            "quantity": float(quantity * step),
            "payment": payment / 1e6,
        }
        for (name, buys), (quantity, payment) in sums.items()
    ]


def _references(orders: Orders, rule: str) -> dict[str, float | None]:
    """Return the price if each suspect had asked what others ask."""
    out: dict[str, float | None] = {}
    for name, reference in suspects_of(orders.book).items():
        own = np.array([one == name for one in orders.book.participants]) & ~orders.book.is_buy
        asked = Fraction(str(reference))
        changed = replace(
            orders,
            book=replace(orders.book, prices=np.where(own, reference, orders.book.prices)),
            exact_prices=[
                asked if mine else price
                for mine, price in zip(own, orders.exact_prices, strict=True)
            ],
        )
        grid = grid_of(changed)
        done = clear_orders(grid, changed.book.is_buy, changed.weights, rule, None, plain=True)
        out[name] = float(grid.price(done.cleared.price)) if done.cleared.volume else None
    return out


@click.command()
@click.argument("bids", type=click.Path(path_type=Path))
@click.option("--rule", type=click.Choice(RULES), default="auto", show_default=True)
@click.option("--scenario", type=click.Path(path_type=Path), help="Network to check trades on.")
@click.option("--interval", type=int, default=0, show_default=True, help="Of the scenario.")
@click.option("--transfers", type=click.Path(path_type=Path), help="Payments beside the pool.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for result and report.")
@click.option("--seed", type=int, help="Replay this run exactly. Default: fresh randomness.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def market(
    bids: Path,
    rule: str,
    scenario: Path | None,
    interval: int,
    transfers: Path | None,
    out: Path | None,
    seed: int | None,
    as_json: bool,
) -> None:
    """Clear one round of a market among neighbours without showing any bid.

    BIDS is a CSV file with the columns participant, side (buy or sell), price, quantity and, if
    you like, weight and capability. Payments above zero are paid, below zero received.
    """
    try:
        orders, remarks = read_orders(bids, with_bus=scenario is not None)
        for remark in remarks:
            click.echo(f"note: {remark}", err=True)
        if scenario is None:
            report = play(orders, rule, seed)
        else:
            from veilgrid.cli._market_network import play_on_network

            report = play_on_network(orders, str(scenario), interval, rule, seed)
        if transfers is not None:
            report["flags"] += _told(payment_cycles(read_transfers(transfers)))
        written = _write(orders, report, bids.stem, out) if out else None
    except VeilgridError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    if as_json:
        click.echo(json.dumps(report))
        return
    shown = "none: nobody trades" if report["price"] is None else f"{report['price']:g}"
    click.echo(f"{'price':12} {shown} ({report['rule']})")
    click.echo(f"{'volume':12} {report['volume']:g}, welfare {report['welfare']:.6g}")
    click.echo(f"{'trades':12} {len(report['trades'])} of {report['bidders']} participants")
    for one in report["flags"]:
        click.echo(f"{'flag':12} {one['participant']}: {one['kind']} ({one['reason']})")
    click.echo(f"{'committee':12} {report['seconds']:.2f} s, {report['bytes'] / 1e6:.2f} MB")
    if written:
        click.echo(f"written to {written}")


def _write(orders: Orders, report: dict[str, Any], name: str, out: Path) -> Path:
    from veilgrid.report.round_page import render_market, write_page

    book = orders.book
    return write_page(
        out,
        "market",
        report,
        render_market(name, report, book.is_buy, book.prices, capped(book) * orders.weights / 1000),
    )
