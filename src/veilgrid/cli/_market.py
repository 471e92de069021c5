"""``veilgrid market``: one round of the peer-to-peer market."""

import json
import sys
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from veilgrid.cli._bulk_round import bulk_round
from veilgrid.cli._market_orders import WEIGHT_STEPS, Grid, Orders, grid_of, read_orders
from veilgrid.cli._table_file import at_least_zero, cell, read, refuse
from veilgrid.errors import Finding, InputError, VeilgridError, invariant
from veilgrid.grid._table import Notes, check_strangers
from veilgrid.mpc._round import Steps
from veilgrid.mpc.bulk import BulkBatch, plain_batch
from veilgrid.mpc.engine import Engine
from veilgrid.mpc.layout import Integers
from veilgrid.mpc.padded import read_padded
from veilgrid.mpc.plain import Plain
from veilgrid.risk.auction import (
    REDUCTION,
    Cleared,
    Mask,
    allocate,
    best_welfare,
    clear,
    digit_count,
    encode,
    layout_of,
    payments,
    rations_of,
    rule_for,
)
from veilgrid.risk.award import UNIT, steps_of
from veilgrid.risk.flags import (
    ON_SHARES,
    Book,
    Flag,
    capped,
    capped_steps,
    flags_of,
    payment_cycles,
    suspects_of,
)
from veilgrid.risk.trading import Traded, trade

RULES: Final = ("auto", "uniform-price", "trade-reduction")


# -- one round -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Round:
    """A cleared set of orders.

    Attributes
    ----------
    traded : (order,), weighted steps
        Exact: both sides add up to the same.
    effective : (order,), weighted steps
        What counted.
    rejected
        By row, why it did not count.
    kinds
        By number of the participant, what the committee flagged it as; None if it was not asked.
    draw
        Of the sample from which follows what is usual.
    opened : (order,), weighted steps
        What each order's owner, and nobody else, opened; None if there was no committee.
    """

    cleared: Cleared
    traded: Integers
    effective: Integers
    rejected: dict[str, str]
    seconds: float = 0.0
    octets: int = 0
    kinds: dict[int, tuple[str, ...]] | None = None
    draw: int = 0
    opened: Integers | None = None


def clear_orders(
    grid: Grid,
    is_buy: Mask,
    weights: Integers,
    rule: str,
    seed: int | None,
    *,
    plain: bool = False,
    screens: bool = True,
) -> Round:
    """Clear orders in the committee, or in the clear to see what would have been.

    ``screens`` is whether flags and caps are worked out; without, quantities count as they are.
    """
    scaled = weights if (weights != WEIGHT_STEPS).any() else np.ones_like(weights)
    if plain:
        return _plainly(grid, is_buy, scaled, rule)
    digits = digit_count(int(grid.ticks.max(initial=0)) + 1)
    bits = max(int(grid.quantities.max(initial=0)).bit_length(), 1)
    layout = layout_of(2**bits - 1, digits)
    names = [str(row) for row in range(len(is_buy))]
    groups, unit = grid.book.groups, 1 if scaled is not weights else WEIGHT_STEPS

    def program(mpc: Engine, batch: BulkBatch) -> Steps[Traded]:
        return (yield from trade(mpc, batch, groups, scaled, rule, unit, screens=screens))

    inputs = encode(layout, grid.ticks, grid.quantities)
    done = bulk_round(b"market", layout, names, inputs, program, seed=seed)
    told: Traded = done.told[0]
    counted = capped_steps(grid.book, told.draw) if screens else grid.quantities.copy()
    for name in done.flags:
        counted[int(name)] = 0
    effective = counted * scaled
    padded = [one.padded for one in done.told]
    owned = [read_padded(padded, row, pad, done.degree) for row, pad in enumerate(done.pads)]
    opened = np.array([steps_of(one) for one in owned], np.int64)
    cleared = rations_of(told.price, grid.ticks, effective, is_buy)
    traded = allocate(cleared, grid.ticks, effective, is_buy)
    invariant(
        bool((np.abs(traded - opened) <= 1 + effective // UNIT).all()),
        "each owner opened what the file says it trades, to a step",
    )
    return Round(
        cleared,
        traded,
        effective,
        done.flags,
        done.seconds,
        done.octets,
        told.kinds if screens else None,
        told.draw,
        opened,
    )


def _plainly(grid: Grid, is_buy: Mask, scaled: Integers, rule: str) -> Round:
    counted = capped_steps(grid.book)
    digits = digit_count(int(grid.ticks.max(initial=0)) + 1)
    layout = layout_of(2 ** max(int(counted.max(initial=0)).bit_length(), 1) - 1, digits)
    mpc = Plain()
    batch = plain_batch(mpc, layout, encode(layout, grid.ticks, counted))
    found: Any = mpc.run(clear(mpc, batch, is_buy, scaled, rule))
    effective = counted * scaled
    return Round(found, allocate(found, grid.ticks, effective, is_buy), effective, {})


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
        done = Round(_nothing(named), empty, empty, {})
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
        "welfare_optimum": float(_optimum(orders, grid, done) * step),
        "rule": rule,
        "trades": _trades(book, done.traded, money, step),
        "flags": _told(_flags(orders, grid, done, rule, price, volume)),
        "rejected": [
            {"participant": book.participants[int(row)], "reason": why}
            for row, why in done.rejected.items()
        ]
        + [{"participant": name, "reason": why, "row": "left out"} for name, why in orders.skipped],
        "price_low": float(grid.price(Fraction(done.cleared.low))) if volume else None,
        "price_high": float(grid.price(Fraction(done.cleared.high))) if volume else None,
        "surplus": sum(money) / 1e6,
        "tick": float(grid.tick),
        "bidders": len(set(book.participants)),
        "seconds": done.seconds,
        "bytes": done.octets,
    }


def _optimum(orders: Orders, grid: Grid, done: Round) -> Fraction:
    """Return the welfare that the quantities that count would allow, whatever the rule."""
    best = best_welfare(grid.ticks, done.effective, orders.book.is_buy)
    return best * grid.tick


def _flags(
    orders: Orders, grid: Grid, done: Round, rule: str, price: float | None, volume: float
) -> list[Flag]:
    """Return who is flagged: as the committee said, and what only who holds the file can see."""
    book = grid.book
    clear = flags_of(
        book,
        price,
        volume,
        _references(orders, rule),
        draw=done.draw,
        is_strict=rule == REDUCTION,
    )
    if done.kinds is None:
        return clear
    why = {(one.participant, one.kind): one.reason for one in clear}
    told = [(book.names[owner], kind) for owner, kinds in done.kinds.items() for kind in kinds]
    found = [Flag(*one, why.get(one, "found by the committee")) for one in set(told)]
    found += [one for one in clear if one.kind not in ON_SHARES]
    return sorted(found, key=lambda one: (one.participant, one.kind))


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
@click.argument("bids", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--rule", type=click.Choice(RULES), default="auto", show_default=True)
@click.option("--history", type=click.Path(path_type=Path), help="File that remembers weights.")
@click.option("--skip-bad-rows", is_flag=True, help="Leave out broken rows instead of refusing.")
@click.option("--scenario", type=click.Path(path_type=Path), help="Network to check trades on.")
@click.option("--interval", type=int, default=0, show_default=True, help="Of the scenario.")
@click.option("--transfers", type=click.Path(path_type=Path), help="Payments beside the pool.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for result and report.")
@click.option(
    "--seed", type=click.IntRange(min=0), help="Replay this run exactly. Default: fresh randomness."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def market(bids: tuple[Path, ...], out: Path | None, as_json: bool, **options: Any) -> None:
    """Clear rounds of a market among neighbours without showing any bid.

    BIDS is a CSV file with the columns participant, side (buy or sell), price, quantity and, if
    you like, weight and capability. Several files are rounds, one after the other: who is flagged
    in one weighs less in the next. Payments above zero are paid, below zero received.
    """
    try:
        files = _read_all(bids, options)
        report = _reported(files, options)
        written = _write(files[-1][1], report, bids[-1].stem, out) if out else None
    except VeilgridError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    if as_json:
        click.echo(json.dumps(report))
        return
    for one in report.get("rounds", [report]):
        _show(one)
    if written:
        click.echo(f"written to {written}")


def _read_all(bids: tuple[Path, ...], options: dict[str, Any]) -> list[tuple[str, Orders]]:
    """Read all files before anything runs; findings of all of them are told at once."""
    files: list[tuple[str, Orders]] = []
    findings: list[Finding] = []
    for path in bids:
        try:
            orders, remarks = read_orders(
                path,
                with_bus=options["scenario"] is not None,
                skips_bad_rows=options["skip_bad_rows"],
            )
        except InputError as error:
            findings += error.findings
            continue
        files.append((path.name, orders))
        for remark in [*remarks, *(why for _, why in orders.skipped)]:
            click.echo(f"note: {remark}", err=True)
    if findings:
        raise InputError(findings)
    return files


def _reported(files: list[tuple[str, Orders]], options: dict[str, Any]) -> dict[str, Any]:
    path = options["transfers"]
    beside = _told(payment_cycles(read_transfers(path))) if path is not None else []

    def played(orders: Orders, place: int) -> dict[str, Any]:
        seed = None if options["seed"] is None else options["seed"] + place
        if options["scenario"] is None:
            report = play(orders, options["rule"], seed)
        else:
            from veilgrid.cli._market_network import play_on_network

            at = options["interval"] + place
            report = play_on_network(orders, str(options["scenario"]), at, options["rule"], seed)
        if place == len(files) - 1:
            report["flags"] += beside
        return report

    if len(files) == 1 and options["history"] is None:
        return played(files[0][1], 0)
    from veilgrid.cli._market_rounds import play_rounds
    from veilgrid.node.market_history import MarketHistory

    with MarketHistory(options["history"] or ":memory:") as history:
        return play_rounds(files, history, played)


def _show(report: dict[str, Any]) -> None:
    shown = "none: nobody trades" if report["price"] is None else f"{report['price']:g}"
    if "number" in report:
        came = f"{len(report['joined'])} joined, {len(report['left'])} left"
        click.echo(f"{'round':12} {report['number']}: {report['bids']}, {came}")
        for one in report["weights"]:
            click.echo(f"{'weight':12} {one['participant']}: {one['weight']:.3g}")
    click.echo(f"{'price':12} {shown} ({report['rule']})")
    most = f"{report['welfare_optimum']:.6g} possible"
    click.echo(f"{'volume':12} {report['volume']:g}, welfare {report['welfare']:.6g} of {most}")
    click.echo(f"{'trades':12} {len(report['trades'])} of {report['bidders']} participants")
    for one in report["flags"]:
        click.echo(f"{'flag':12} {one['participant']}: {one['kind']} ({one['reason']})")
    for one in report["rejected"]:
        click.echo(f"{'rejected':12} {one['participant']}: {one['reason']}")
    click.echo(f"{'committee':12} {report['seconds']:.2f} s, {report['bytes'] / 1e6:.2f} MB")


def _write(orders: Orders, report: dict[str, Any], name: str, out: Path) -> Path:
    from veilgrid.report.round_page import render_market, write_page

    book = grid_of(orders).book
    last = report["rounds"][-1] if "rounds" in report else report
    kept = {one["participant"]: one["weight"] for one in last.get("weights", ())}
    parts = np.array([kept.get(one, 1.0) for one in book.participants]) * orders.weights
    counted = capped(book) * parts / WEIGHT_STEPS
    return write_page(
        out, "market", report, render_market(name, report, book.is_buy, book.prices, counted)
    )
