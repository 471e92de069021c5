"""Flags worked out on shares: the same as in the clear, with nothing else opened."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilgrid.cli._bulk_round import bulk_round
from veilgrid.cli._market_orders import Orders, grid_of
from veilgrid.mpc.bulk import plain_batch
from veilgrid.mpc.engine import Engine
from veilgrid.mpc.plain import Plain
from veilgrid.risk.auction import (
    REDUCTION,
    UNIFORM,
    allocate,
    digit_count,
    encode,
    layout_of,
    rations_of,
)
from veilgrid.risk.award import UNIT, steps_of
from veilgrid.risk.conduct import CAPS_FROM, screened
from veilgrid.risk.flags import ON_SHARES, Book, capped_steps, flags_of
from veilgrid.risk.trading import Traded, trade
from veilgrid.risk.usual import SAMPLE, drawn, influence_max, room_of, usual_of

STEP = 1e-6


def book_of(orders: list[tuple[int, bool, int, int, int]]) -> Book:
    """Return orders (owner, side, tick, quantity, capability or -1) as a book of whole steps."""
    owners, sides, ticks, sizes, able = (
        np.array([one[k] for one in orders], np.int64) for k in range(5)
    )
    known = np.where(able < 0, np.nan, able * STEP)
    return Book(
        [f"p{owner}" for owner in owners],
        sides.astype(bool),
        ticks.astype(np.float64),
        sizes * STEP,
        known,
        sizes,
        STEP,
    )


def on_shares(mpc: Any, book: Book, rule: str, weights: Any, batch: Any) -> Any:
    return trade(mpc, batch, book.groups, weights, rule)


def clear_kinds(book: Book, price: float | None, volume: float, rule: str, draw: int = 0) -> Any:
    flags = flags_of(book, price, volume, {}, draw=draw, is_strict=rule == REDUCTION)
    return {(one.participant, one.kind) for one in flags if one.kind in ON_SHARES}


def told_kinds(book: Book, done: Traded) -> Any:
    return {(book.names[owner], kind) for owner, kinds in done.kinds.items() for kind in kinds}


ORDERS = st.lists(
    st.tuples(
        st.integers(0, 40),
        st.booleans(),
        st.integers(0, 255),
        st.one_of(st.integers(0, 4), st.integers(80, 120), st.sampled_from([5_000, 60_000])),
        st.sampled_from([-1, -1, -1, 0, 3, 100, 500]),
    ),
    min_size=1,
    max_size=90,
)


@given(orders=ORDERS, rule=st.sampled_from([UNIFORM, REDUCTION]))
@settings(max_examples=120, deadline=None)
def test_flags_and_caps_of_any_orders_equal_those_in_the_clear(
    orders: list[tuple[int, bool, int, int, int]], rule: str
) -> None:
    """Curves of several rows, nobody, ties, zero quantities, proved and unproved ones."""
    book, mpc = book_of(orders), Plain()
    ticks, weights = book.prices.astype(np.int64), np.ones(len(orders), np.int64)
    layout = layout_of(2**17 - 1, 2)
    batch = plain_batch(mpc, layout, encode(layout, ticks, book.sizes))
    before: Any = mpc.run(screened(mpc, batch, book.groups))
    counted: Any = mpc.run(mpc.open(before.batch.rows("digit 0").sum(16)))
    assert counted == capped_steps(book).tolist()
    done: Any = mpc.run(on_shares(mpc, book, rule, weights, batch))
    effective = capped_steps(book)
    cleared = rations_of(done.price, ticks, effective, book.is_buy)
    price = float(cleared.price) if cleared.volume else None
    assert told_kinds(book, done) == clear_kinds(book, price, cleared.volume * STEP, rule)
    own = [int.from_bytes(done.padded[16 * k :][:16], "little") for k in range(len(orders))]
    right = allocate(cleared, ticks, effective, book.is_buy)
    for one, wanted, size in zip(own, right, effective, strict=True):
        assert abs(steps_of(one) - wanted) <= 1 + size // UNIT


@given(
    steps=st.lists(st.integers(0, 24), min_size=4, max_size=24),
    last=st.integers(16, 64),
    proof=st.sampled_from([-1, 10**9]),
)
@settings(max_examples=100, deadline=None)
def test_who_barely_stands_out_is_the_same_on_shares(
    steps: list[int], last: int, proof: int
) -> None:
    """Sizes a quarter of an octave apart, one near the limit; who has a proof is not named."""
    sizes = [round(64 * 2 ** (step / 4)) for step in [*steps, last]]
    book = book_of(
        [(k, True, 5, size, proof if k == len(steps) else -1) for k, size in enumerate(sizes)]
    )
    layout, mpc = layout_of(2**24 - 1, 1), Plain()
    batch = plain_batch(mpc, layout, encode(layout, np.full(len(sizes), 5), book.sizes))
    before: Any = mpc.run(screened(mpc, batch, book.groups))
    common = usual_of(sizes, 0, 1)
    right = {k for k, size in enumerate(sizes) if common.stands_out(size)}
    found = {k for k, kinds in before.kinds.items() if "spoof" in kinds}
    assert found == right - ({len(steps)} if proof > 0 else set())


@pytest.mark.parametrize("rule", [UNIFORM, REDUCTION])
@pytest.mark.parametrize(("offered", "limit", "kinds"), [(20, 3, {"withholding"}), (21, 3, set())])
def test_withholding_is_less_than_half_of_what_a_seller_is_able_to(
    offered: int, limit: int, kinds: set[str], rule: str
) -> None:
    """At exactly half it is not named; nor is one whose price is too high to gain."""
    for asked, named in ((limit, kinds), (200, set())):
        orders = [(k, True, 100 + k, 50, -1) for k in range(6)]
        orders += [(10 + k, False, 10 + k, 50, -1) for k in range(6)]
        book = book_of([*orders, (99, False, asked, offered, 42)])
        ticks, weights = book.prices.astype(np.int64), np.ones(13, np.int64)
        layout, mpc = layout_of(255, 2), Plain()
        batch = plain_batch(mpc, layout, encode(layout, ticks, book.sizes))
        done: Any = mpc.run(on_shares(mpc, book, rule, weights, batch))
        assert {kind for who, kind in told_kinds(book, done) if who == "p99"} == named
        price = float(done.price.price)
        assert told_kinds(book, done) == clear_kinds(book, price, done.price.volume * STEP, rule)


def neighbours(count: int, seed: int) -> list[tuple[int, bool, int, int, int]]:
    rng = np.random.default_rng(seed)
    centre = {True: 140, False: 110}
    return [
        (k, bool(k % 2), int(rng.normal(centre[bool(k % 2)], 20)), int(rng.integers(50, 400)), -1)
        for k in range(count)
    ]


LABELLED = [
    (1000, True, 250, 60_000, -1, "spoof"),
    (1001, True, 130, 90, -1, "wash"),
    (1001, False, 90, 90, -1, "wash"),
    (1002, False, 20, 40, 600, "withholding"),
    (1003, False, 60, 300, 120, "out-of-capability"),
]


@pytest.mark.parametrize("count", [60, 240])
def test_a_committee_names_labelled_manipulations_and_opens_nothing_more(count: int) -> None:
    """More participants than are drawn, too; what opens before clearing are bits of flags."""
    book = book_of([*neighbours(count, 3), *(one[:5] for one in LABELLED)])
    ticks = book.prices.astype(np.int64)
    weights = np.ones(len(ticks), np.int64)
    layout = layout_of(2**16 - 1, digit_count(256))
    said: list[list[int]] = []

    def program(mpc: Engine, batch: Any) -> Any:
        plainly = mpc.open

        def listened(x: Any) -> Any:
            values = yield from plainly(x)
            said.append(values)
            return values

        mpc.open = listened  # type: ignore[method-assign]
        return (yield from trade(mpc, batch, book.groups, weights, UNIFORM))

    names = [str(k) for k in range(len(ticks))]
    inputs = encode(layout, ticks, book.sizes)
    done = bulk_round(b"t", layout, names, inputs, program, seed=4)
    told: Traded = done.result
    assert set(said[0]) == {0, 1}, "flags before clearing"
    assert all(0 <= digit <= 16 for opened in said[3:] for digit in opened), "digits of the price"
    found = {(name, kind) for name, kind in told_kinds(book, told) if kind != "pivotal"}
    assert found == {(f"p{one[0]}", one[5]) for one in LABELLED}
    effective = capped_steps(book, told.draw)
    assert effective[count] < book.sizes[count] / 10, "the spoof is bound in the same round"
    cleared = rations_of(told.price, ticks, effective, book.is_buy)
    price = float(cleared.price)
    right = clear_kinds(book, price, cleared.volume * STEP, UNIFORM, told.draw)
    assert told_kinds(book, told) == right


def test_who_is_drawn_does_not_depend_on_what_they_have() -> None:
    chosen = drawn(1000, 77, 1)
    assert len(set(chosen.tolist())) == SAMPLE
    assert chosen.tolist() == sorted(chosen.tolist())
    assert drawn(1000, 78, 1).tolist() != chosen.tolist()
    assert drawn(1000, 77, 0).tolist() != chosen.tolist()
    assert drawn(SAMPLE, 77, 1).tolist() == list(range(SAMPLE))


@given(sizes=st.lists(st.integers(0, 10**6), min_size=4, max_size=SAMPLE))
@settings(max_examples=200, deadline=None)
def test_what_is_usual_is_the_median_and_the_median_deviation_of_logarithms(
    sizes: list[int],
) -> None:
    """Beside floating point, where all sizes are within the classes."""
    found = usual_of(sizes, 0, 1)
    mean = sum(sizes) / len(sizes)
    if not mean or min(sizes) < mean * 2**-11.5:
        return
    logs = np.log2(np.array(sizes) / mean) * 4
    half = (len(sizes) + 1) // 2
    middle = np.sort(logs)[half - 1]
    assert middle - 0.3 <= found.middle - 48 <= middle + 1.3
    away = np.sort(np.abs(logs - middle))[half - 1]
    assert min(away, 12) - 1.6 <= found.deviation <= away + 1.6
    limit = max(3.5 * max(1.4826 * away / 4 * np.log(2), 0.25), 0)
    for size in sizes:
        distance = np.log(size / mean) - middle / 4 * np.log(2)
        is_large = size / sum(sizes) > influence_max(len(sizes))
        if found.stands_out(size):
            assert size / sum(sizes) >= influence_max(len(sizes)) * (1 - 1e-3)
            assert distance > limit - 3.5 * 1.4826 * 1.6 * np.log(2) / 4 - 0.5
        elif is_large and size > sum(sizes) * 0.02 * (1 + 1e-3):
            assert distance < limit + 3.5 * 1.4826 * 1.6 * np.log(2) / 4 + 0.5


def test_room_is_two_middle_participants_to_a_class() -> None:
    sizes = [1_000_000] * 59 + [40_000_000]
    found = usual_of(sizes, 0, 0)
    assert found.stands_out(40_000_000)
    assert not found.stands_out(1_000_000)
    assert 2e6 / 2**0.13 <= found.room <= 2e6 * 2**0.13
    assert found.room == room_of(sum(sizes), found.middle, len(sizes))
    assert len(sizes) >= CAPS_FROM


def test_a_spoof_does_not_make_steps_coarser() -> None:
    """One order of 1e9 beside neighbours of 2 kWh: they keep a step of a millionth."""
    count = 80
    names = [f"h{k}" for k in range(count)] + ["spoof"]
    sides = np.array([k % 2 == 0 for k in range(count)] + [True])
    sizes = np.array([2.0] * count + [1e9])
    book = Book(names, sides, np.full(count + 1, 20.0), sizes, np.full(count + 1, np.nan))
    orders = Orders(book, np.full(count + 1, 1000), [20] * (count + 1), [""] * (count + 1))  # type: ignore[list-item]
    grid = grid_of(orders)
    assert float(grid.step) == 1e-6
    assert grid.quantities[0] == 2_000_000
