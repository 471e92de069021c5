"""What each order trades, worked out on shares and opened to its owner only."""

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from veilgrid.cli._bulk_round import bulk_round
from veilgrid.cli._market import clear_orders, market
from veilgrid.cli._market_orders import grid_of, read_orders
from veilgrid.errors import InputError
from veilgrid.mpc.bulk import plain_batch
from veilgrid.mpc.engine import Engine
from veilgrid.mpc.padded import open_padded, read_padded
from veilgrid.mpc.plain import Plain
from veilgrid.risk.auction import (
    RADIX,
    REDUCTION,
    UNIFORM,
    allocate,
    clear,
    encode,
    layout_of,
    payments,
    rations_of,
)
from veilgrid.risk.award import UNIT, award, steps_of
from veilgrid.secret import Secret

Order = tuple[int, int, bool, int]
ORDERS = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 3), st.integers(0, RADIX**2 - 1)),
        st.integers(0, 40),
        st.booleans(),
        st.sampled_from([0, 1, 7, 1000]),
    ),
    min_size=1,
    max_size=16,
)


def columns(orders: list[Order]) -> tuple[Any, Any, Any, Any]:
    ticks, sizes, weights = (np.array([one[k] for one in orders], np.int64) for k in (0, 1, 3))
    return ticks, sizes, np.array([one[2] for one in orders], bool), weights


@settings(max_examples=150, deadline=None)
@given(orders=ORDERS, rule=st.sampled_from([UNIFORM, REDUCTION]), digits=st.integers(2, 3))
def test_awards_are_what_a_holder_of_all_orders_would_allocate(
    orders: list[Order], rule: str, digits: int
) -> None:
    """Nobody gets more than that by a step, and no side more than the volume."""
    ticks, sizes, is_buy, weights = columns(orders)
    layout, mpc = layout_of(np.maximum(sizes, 1), digits), Plain()
    batch = plain_batch(mpc, layout, encode(layout, ticks, sizes))
    cleared: Any = mpc.run(clear(mpc, batch, is_buy, weights, rule))
    price, awards = mpc.run(award(mpc, batch, is_buy, weights, rule))  # type: ignore[misc]
    assert rations_of(price, ticks, sizes * weights, is_buy) == cleared
    parts: Any = mpc.run(mpc.open(awards))
    right = allocate(cleared, ticks, sizes * weights, is_buy)
    for found, wanted, size in zip(parts, right, sizes * weights, strict=True):
        assert 0 <= found <= size * UNIT
        assert abs(found / UNIT - wanted) <= 1 + size / UNIT
    for side in (is_buy, ~is_buy):
        total = sum(part for part, mine in zip(parts, side, strict=True) if mine)
        assert total <= price.volume * UNIT
        assert price.volume * UNIT - total <= (sizes * weights).sum()


@pytest.mark.parametrize("rule", [UNIFORM, REDUCTION])
def test_a_committee_opens_price_and_volume_and_each_owner_its_award(rule: str) -> None:
    """Quantities above and at the price would tell what stands there; they stay shared."""
    orders = [
        (200, 4, True, 1),
        (90, 2, True, 1),
        (90, 6, True, 1),
        (5, 8, False, 1),
        (7, 1, False, 1),
    ]
    ticks, sizes, is_buy, weights = columns(orders)
    layout = layout_of(np.full(5, 50), 2)
    names = [f"h{k}" for k in range(5)]
    said: list[int] = []

    def program(mpc: Engine, batch: Any) -> Any:
        plainly = mpc.open

        def listened(x: Any) -> Any:
            values = yield from plainly(x)
            said.extend(values)
            return values

        mpc.open = listened  # type: ignore[method-assign]
        price, awards = yield from award(mpc, batch, is_buy, weights, rule)
        nothing = mpc.constant([0])
        _, padded = yield from open_padded(mpc, batch, awards, nothing)
        return price, padded

    inputs = encode(layout, ticks, sizes)
    done = bulk_round(b"t", layout, names, inputs, program, seed=3)
    price = done.result[0]
    digits, volume = said[: 4 * 3], said[4 * 3 :]
    assert all(0 <= digit <= RADIX for digit in digits)
    assert volume == [price.volume] * 3
    cleared = rations_of(price, ticks, sizes, is_buy)
    right = allocate(cleared, ticks, sizes, is_buy)
    padded = [one[1] for one in done.told]
    own = np.array([steps_of(read_padded(padded, k, pad, 1)) for k, pad in enumerate(done.pads)])
    assert (np.abs(own - right) <= 1).all()
    assert own.sum() > 0


def test_what_opens_to_an_owner_is_hidden_from_all_others_and_cannot_be_forged() -> None:
    """The published number is the award plus the owner's pad; one lying party is outvoted."""
    orders = [(9, 7, True, 1), (3, 7, False, 1), (2, 5, True, 1)]
    ticks, sizes, is_buy, weights = columns(orders)
    layout, names = layout_of(7, 1), ["a", "b", "c"]

    def program(mpc: Engine, batch: Any) -> Any:
        price, awards = yield from award(mpc, batch, is_buy, weights, UNIFORM)
        _, padded = yield from open_padded(mpc, batch, awards, mpc.constant([0]))
        return price, padded

    inputs = encode(layout, ticks, sizes)
    runs = [bulk_round(b"t", layout, names, inputs, program, seed=seed) for seed in (1, 2)]
    published = [run.result[1] for run in runs]
    assert len(set(published)) == 2, "other pads, other numbers, the same awards"
    for run in runs:
        told = [one[1] for one in run.told]
        own = [steps_of(read_padded(told, row, pad, 1)) for row, pad in enumerate(run.pads)]
        assert own == [7, 7, 0]
        wrong = bytes(16) + told[2][16:]
        assert steps_of(read_padded([told[0], told[1], wrong], 0, run.pads[0], 1)) == 7
        assert steps_of(read_padded(told, 0, run.pads[1], 1)) != 7, "another one's pad"
        with pytest.raises(InputError, match="different things"):
            read_padded([told[0], wrong, b""], 0, run.pads[0], 1)


def test_who_sent_nothing_readable_has_no_pad_and_nothing_is_told_of_it() -> None:
    """Without a pad a number would open to everybody; zero is told in its place."""
    ticks, sizes, _, _ = columns([(1, 3, True, 1), (1, 3, True, 1)])
    layout, mpc = layout_of(7, 1), Plain()
    batch = plain_batch(mpc, layout, encode(layout, ticks, sizes))
    secret = mpc.constant([41, 42])
    for why, seen in (("missing", 0), ("unreadable", 0), ("invalid", 42)):
        flagged = replace(batch, flags={"1": why})
        found: Any = mpc.run(open_padded(mpc, flagged, secret, mpc.constant([5])))
        public, padded = found
        assert public == [5]
        assert [read_padded([padded] * 2, k, Secret(0), 1) for k in (0, 1)] == [41, seen]


def test_the_verb_gives_every_bidder_what_it_opened_itself(tmp_path: Any) -> None:
    """Money is computed for exact quantities; both differ by less than a step an order."""
    rng = np.random.default_rng(4)
    rows = ["participant,side,price,quantity"]
    for k in range(80):
        side = "buy" if k % 2 else "sell"
        rows.append(
            f"p{k},{side},{round(rng.normal(24 if k % 2 else 20, 2))},{rng.uniform(1, 4):.2f}"
        )
    path = tmp_path / "bids.csv"
    path.write_text("\n".join(rows) + "\n")
    orders, _ = read_orders(path)
    grid = grid_of(orders)
    done = clear_orders(grid, orders.book.is_buy, orders.weights, UNIFORM, 1)
    assert done.opened is not None
    assert done.cleared.low == done.cleared.high, "somebody is rationed"
    assert (np.abs(done.opened - done.traded) <= 1).all()
    assert sum(payments(done.traded, orders.book.is_buy, done.cleared.price)) == 0
    assert re.fullmatch("uniform-price", done.cleared.rule)


def test_payments_that_go_in_circles_are_flagged_and_bad_rows_named(tmp_path: Any) -> None:
    bids, paid = tmp_path / "bids.csv", tmp_path / "paid.csv"
    bids.write_text("participant,side,price,quantity\na,buy,9,1\nb,sell,3,1\n")
    paid.write_text("payer,payee,amount\na,b,50\nb,a,49\nc,a,5\n")
    done = CliRunner().invoke(market, [str(bids), "--transfers", str(paid), "--json"])
    assert done.exit_code == 0, done.output
    flags = json.loads(done.stdout)["flags"]
    circles = [one["participant"] for one in flags if one["kind"] == "payment-cycle"]
    assert circles == ["a", "b"]
    paid.write_text("payer,payee,amount\n,b,-1\n")
    done = CliRunner().invoke(market, [str(bids), "--transfers", str(paid), "--json"])
    assert done.exit_code == 2
    assert "payer" in done.stderr
    assert "amount" in done.stderr
