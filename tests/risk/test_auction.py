"""The double auction against a plain one that sorts orders, and against liars."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reduction_table import kept, row_of

from veilgrid.mpc.bulk import BulkMailbox, plain_batch
from veilgrid.mpc.engine import Engine
from veilgrid.mpc.field import PRIME_FIELD, encode_words
from veilgrid.mpc.field import encode as encode_field
from veilgrid.mpc.plain import Plain
from veilgrid.mpc.prss import derive_keys, keyring_of
from veilgrid.mpc.workload import lockstep
from veilgrid.risk.auction import (
    RADIX,
    REDUCTION,
    UNIFORM,
    Cleared,
    allocate,
    clear,
    encode,
    layout_of,
    payments,
    rule_for,
    shares_in_proportion,
)
from veilgrid.risk.auction import best_welfare as optimum
from veilgrid.risk.market_workload import (
    Workload,
    answer,
    expected,
    inputs_of,
    mailbox_of,
    orders_of,
    program_of,
)

Order = tuple[int, int, bool]


def best_welfare(orders: list[Order]) -> int:
    """Match the highest bids with the lowest asks, one after the other."""
    buys = sorted(([-tick, size] for tick, size, is_buy in orders if is_buy and size))
    sells = sorted(([tick, size] for tick, size, is_buy in orders if not is_buy and size))
    total = 0
    while buys and sells and -buys[0][0] >= sells[0][0]:
        traded = min(buys[0][1], sells[0][1])
        total += traded * (-buys[0][0] - sells[0][0])
        for side in (buys, sells):
            side[0][1] -= traded
            if not side[0][1]:
                side.pop(0)
    return total


def played(
    orders: list[Order], rule: str, weights: list[int] | None = None, digits: int = 2
) -> tuple[Cleared, np.ndarray]:
    ticks, sizes = (np.array([order[k] for order in orders], np.int64) for k in (0, 1))
    is_buy = np.array([order[2] for order in orders], bool)
    factors = np.array(weights or [1] * len(orders), np.int64)
    layout, mpc = layout_of(np.maximum(sizes, 1), digits), Plain()
    batch = plain_batch(mpc, layout, encode(layout, ticks, sizes))
    assert batch.is_counted.all()
    cleared = mpc.run(clear(mpc, batch, is_buy, factors, rule))
    return cleared, allocate(cleared, ticks, sizes * factors, is_buy)


ORDERS = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 4), st.integers(0, RADIX**2 - 1)),
        st.integers(0, 9),
        st.booleans(),
    ),
    min_size=1,
    max_size=14,
)


@given(orders=ORDERS)
@settings(max_examples=300, deadline=None)
def test_the_uniform_price_trades_the_optimum_and_harms_nobody(orders: list[Order]) -> None:
    """Any file: one bidder, no crossing, ties, zero quantities, prices far apart."""
    cleared, traded = played(orders, UNIFORM)
    is_buy = np.array([order[2] for order in orders])
    ticks = np.array([order[0] for order in orders])
    assert int((traded * np.where(is_buy, ticks, -ticks)).sum()) == best_welfare(orders)
    _check_trades(cleared, traded, orders)


@given(orders=ORDERS)
@settings(max_examples=200, deadline=None)
def test_trade_reduction_harms_nobody_and_sets_the_price_by_who_does_not_trade(
    orders: list[Order],
) -> None:
    cleared, traded = played(orders, REDUCTION)
    _check_trades(cleared, traded, orders)
    for tick, amount in zip((order[0] for order in orders), traded, strict=True):
        assert amount == 0 or tick != cleared.price


def _check_trades(cleared: Cleared, traded: np.ndarray, orders: list[Order]) -> None:
    is_buy = np.array([order[2] for order in orders])
    assert traded[is_buy].sum() == traded[~is_buy].sum() == cleared.volume
    for amount, (tick, size, buys) in zip(traded, orders, strict=True):
        assert 0 <= amount <= size
        if amount:
            assert tick >= cleared.price if buys else tick <= cleared.price
    money = payments(traded, is_buy, cleared.price * Fraction(7, 3))
    assert sum(money) == 0


@given(orders=ORDERS, place=st.integers(0, 13), tick=st.integers(0, RADIX**2 - 1))
@settings(max_examples=300, deadline=None)
def test_under_trade_reduction_no_lie_about_the_price_of_a_single_unit_pays(
    orders: list[Order], place: int, tick: int
) -> None:
    """Truth is a best answer: the reason for giving up the marginal trade."""
    units = [(price, 1, buys) for price, _, buys in orders]
    place %= len(units)
    true, _, buys = units[place]

    def gain(asked: int) -> Fraction:
        cleared, traded = played([*units[:place], (asked, 1, buys), *units[place + 1 :]], REDUCTION)
        profit = true - cleared.price if buys else cleared.price - true
        return profit * int(traded[place])

    assert gain(tick) <= gain(true)


def test_two_buyers_and_two_sellers_by_hand() -> None:
    """Merged prices 2, 4, 8, 10: between 4 and 8 all trade; at 8 only those better do."""
    orders = [(10, 1, True), (8, 1, True), (2, 1, False), (4, 1, False)]
    cleared, traded = played(orders, UNIFORM)
    assert (cleared.low, cleared.high, cleared.price) == (4, 8, 6)
    assert traded.tolist() == [1, 1, 1, 1]
    cleared, traded = played(orders, REDUCTION)
    assert cleared.price == 8
    assert traded.tolist() == [1, 0, 1, 0]


def test_only_the_marginal_tick_is_rationed_and_in_proportion() -> None:
    orders = [(9, 4, True), (5, 2, True), (5, 6, True), (1, 8, False)]
    cleared, traded = played(orders, UNIFORM)
    assert cleared.price == 5
    assert traded.tolist() == [4, 1, 3, 8]


def test_weights_scale_quantities_and_never_prices() -> None:
    orders = [(9, 4, True), (9, 4, True), (1, 10, False)]
    cleared, traded = played(orders, UNIFORM, weights=[10, 1, 10])
    assert traded.tolist() == [40, 4, 44]
    assert cleared.price <= 9


def test_small_markets_get_the_rule_for_small_markets() -> None:
    assert rule_for(29, 100) == rule_for(100, 29) == REDUCTION
    assert rule_for(30, 30) == UNIFORM


@given(sizes=st.lists(st.integers(0, 50), min_size=1, max_size=9), share=st.fractions(0, 1))
def test_a_split_is_exact_and_nobody_gets_more_than_asked(
    sizes: list[int], share: Fraction
) -> None:
    total = int(sum(sizes) * share)
    parts = shares_in_proportion(np.array(sizes), total)
    assert parts.sum() == total
    assert all(0 <= part <= size for part, size in zip(parts, sizes, strict=True))


@pytest.mark.parametrize("kind", ["market", "prices", "capacity", "refresh"])
def test_three_parties_open_what_the_plain_computation_gives(kind: str) -> None:
    """Intake, check of every input and all rounds, on shares."""
    work = Workload(kind, 200)
    assert opened(work) == [expected(work)] * 3


def test_an_order_that_is_not_valid_is_left_out_on_shares() -> None:
    """A quantity beyond its cap at the price digit would otherwise move the price of all."""
    work = Workload("market", 40)
    layout, inputs = inputs_of(work)
    best = RADIX - 1 if orders_of(work.count)[2][3] else 0
    place, extra = layout.start("digit 0") + best, 2**38
    inputs[3, place] += extra

    def spoofed(mailbox: BulkMailbox) -> None:
        share = mailbox.received.shares[3, place : place + 1]
        mailbox.received.shares[3, place] = PRIME_FIELD.add(share, encode_field([extra]))[0]

    mpc = Plain()
    without = mpc.run(answer(mpc, work, plain_batch(mpc, layout, inputs), None))
    assert opened(work, spoofed) == [without] * 3
    honest = plain_batch(mpc, layout, inputs_of(work)[1])
    unchecked = replace(honest, data=encode_words(inputs.reshape(-1)).reshape(*inputs.shape, 2))
    assert mpc.run(answer(mpc, work, unchecked, None)) != without


def opened(work: Workload, change: Callable[[BulkMailbox], None] | None = None) -> list[object]:
    keys = derive_keys(3, 1, b"test")
    mailboxes = [mailbox_of(work, party, 3) for party in (1, 2, 3)]
    for mailbox in mailboxes:
        if change is not None:
            change(mailbox)
    engines = [Engine(keyring_of(i, 3, 1, keys, b""), lambda: bytes(32)) for i in (1, 2, 3)]
    steps = [program_of(work, box)(engine) for box, engine in zip(mailboxes, engines, strict=True)]
    return lockstep(steps)


@given(orders=ORDERS)
@settings(max_examples=200, deadline=None)
def test_the_optimum_that_is_told_is_that_of_a_plain_auction(orders: list[Order]) -> None:
    ticks, sizes = (np.array([order[k] for order in orders], np.int64) for k in (0, 1))
    is_buy = np.array([order[2] for order in orders], bool)
    assert optimum(ticks, sizes, is_buy) == best_welfare(orders)


def test_trade_reduction_costs_what_the_page_says() -> None:
    """By design: an order that does not trade sets the price. The page has 200 markets a row."""
    rows = {count: row_of(count, 60) for count in (2, 10, 29)}
    assert 0.4 < rows[2][0] < 0.65
    assert 0.92 < rows[10][0] < 0.97
    assert 0.97 < rows[29][0] < 0.995
    assert all(mean < 0.999 for mean, _ in rows.values())
    assert [kept(10, seed, UNIFORM) for seed in range(5)] == [pytest.approx(1)] * 5
