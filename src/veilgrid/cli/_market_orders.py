"""Orders of a market: read from a file, and put on public ticks of price and steps of quantity."""

from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np

from veilgrid.cli._table_file import at_least_zero, cell, read, refuse
from veilgrid.errors import Finding, InputError
from veilgrid.grid._table import Notes, Row, Table, check_strangers
from veilgrid.mpc.layout import Integers
from veilgrid.risk.flags import STEP, Book, capped

COLUMNS: Final = ("participant", "side", "price", "quantity")
TICKS_MAX: Final = 2**50
STEPS_MAX: Final = 2**40
"""Sums of so many, times what tells sizes of participants apart, can be compared."""

ROOM: Final = 16
"""An order may be so many times what counts at most."""

ORDERS_USUAL: Final = 256
"""With more orders the largest quantity is fewer steps, so that sums can be compared."""
WEIGHT_STEPS: Final = 1000
DECIMALS_MAX: Final = 9
STEP_DECIMALS: Final = 6


@dataclass(frozen=True, slots=True, eq=False)
class Orders:
    """The file, and where each order's participant stands in the network if it says so.

    Attributes
    ----------
    skipped
        Participant (or row) and reason of rows that were left out.
    """

    book: Book
    weights: Integers
    exact_prices: list[Fraction]
    buses: list[str]
    skipped: tuple[tuple[str, str], ...] = ()


def read_orders(
    path: Path, *, with_bus: bool = False, skips_bad_rows: bool = False
) -> tuple[Orders, list[Finding]]:
    """Read BIDS.csv; the second result are remarks.

    Raises
    ------
    InputError
        Every broken rule, with row and column; of rows only unless they are to be left out.
    """
    notes = Notes()
    table = read(path, (*COLUMNS, "bus") if with_bus else COLUMNS, notes)
    if table is None:
        refuse(notes)
        raise InputError([Finding(path.name, "holds no table")])
    check_strangers(table, (*COLUMNS, "weight", "capability", "bus"), notes)
    skipped = [(one.where.rpartition(" row ")[2], str(one)) for one in notes.findings]
    rows = []
    for row in table.rows:
        own = Notes()
        order = _order(table, row, own)
        if own.findings:
            why = "; ".join(str(one) for one in own.findings)
            skipped.append((row.cells["participant"] or f"{row.line}", why))
            notes.findings.extend(own.findings)
        else:
            rows.append((row, order))
    if not skips_bad_rows:
        refuse(notes)
    book = Book(
        [row.cells["participant"] for row, _ in rows],
        np.array([row.cells["side"].lower() == "buy" for row, _ in rows], bool),
        np.array([float(order.price or 0) for _, order in rows], np.float64),
        np.array([order.quantity for _, order in rows], np.float64),
        np.array([np.nan if one.able is None else one.able for _, one in rows], np.float64),
    )
    parts = [1.0 if order.weight is None else order.weight for _, order in rows]
    return Orders(
        book,
        np.array([int(one * WEIGHT_STEPS + 1e-9) for one in parts], np.int64),
        [order.price or Fraction(0) for _, order in rows],
        [row.cells.get("bus", "") for row, _ in rows],
        tuple(skipped),
    ), notes.remarks


@dataclass(frozen=True, slots=True)
class _Order:
    price: Fraction | None
    quantity: float | None
    weight: float | None
    able: float | None


def _order(table: Table, row: Row, notes: Notes) -> _Order:
    if not row.cells["participant"]:
        notes.fault(table.at(row.line, "participant"), "is empty", "every order needs one")
    side = row.cells["side"].lower()
    if side not in ("buy", "sell"):
        found = row.cells["side"]
        notes.fault(table.at(row.line, "side"), f"is {found!r}, expected buy or sell")
    return _Order(
        _exact(table, row, notes),
        cell(table, row, "quantity", at_least_zero, notes),
        _optional(table, row, "weight", _weight, notes),
        _optional(table, row, "capability", at_least_zero, notes),
    )


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
    quantities : (order,), steps
        As sent, before caps.
    book
        The orders in those steps.
    """

    lowest: Fraction
    tick: Fraction
    step: Fraction
    ticks: Integers
    quantities: Integers
    book: Book

    def price(self, tick: Fraction) -> Fraction:
        """Return the price of a tick."""
        return self.lowest + tick * self.tick


def grid_of(orders: Orders) -> Grid:
    """Return ticks and steps; buyers' limits are rounded down, sellers' up."""
    prices, book = orders.exact_prices, orders.book
    tick = 1 / Fraction(10) ** decimals_of(prices, TICKS_MAX)
    floors = [price // tick for price in prices]
    lowest = min(floors, default=0) * tick
    ticks = []
    for price, buys in zip(prices, book.is_buy, strict=True):
        place = (price - lowest) / tick
        ticks.append(place.__floor__() if buys else place.__ceil__())
    step, bound = _step_and_bound(book)
    steps = [min(int(Fraction(str(float(size))) // step), bound) for size in book.quantities]
    quantities = np.array(steps, np.int64)
    placed = replace(book, steps=quantities, step=float(step))
    return Grid(lowest, tick, step, np.array(ticks, np.int64), quantities, placed)


def _step_and_bound(book: Book) -> tuple[Fraction, int]:
    """Return the size of a step, and how many an order may have at most: public, as fuses are.

    The bound is far above what counts at most, so that a spoof makes nothing coarser and does not
    stretch what is usual.
    """
    largest, most = float(book.quantities.max(initial=0.0)), np.inf
    while largest < most:
        most = largest
        sizes = np.minimum(book.quantities, most)
        tried = replace(book, quantities=sizes, step=max(STEP, most / 2**50))
        largest = ROOM * float(capped(tried).max(initial=0.0))
    crowd = Fraction(max(len(book.quantities), ORDERS_USUAL), ORDERS_USUAL)
    decimals = STEP_DECIMALS
    while Fraction(str(most)) * crowd * Fraction(10) ** decimals >= STEPS_MAX:
        decimals -= 1
    bits = max(int(Fraction(str(most)) * Fraction(10) ** decimals).bit_length(), 1)
    return 1 / Fraction(10) ** decimals, 2**bits - 1
