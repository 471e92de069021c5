"""Rounds of the market over time: who takes part, with what weight, and after a restart."""

from typing import Any

from veilgrid.machine import (
    START,
    Compute,
    Computed,
    Decide,
    Effect,
    NodeId,
    Persist,
    Received,
    Send,
    SetTimer,
    TimerFired,
)
from veilgrid.risk.market_rounds import Flagged, Join, Leave, MarketRounds, Opened, Saved


def cleared(number: int, rows: list[str], weights: list[int]) -> Flagged:
    return Flagged([number, rows, weights], {"mallory": ["spoof"]})


def opened(effects: list[Effect]) -> dict[str, Opened]:
    return {str(one.to): one.message for one in effects if isinstance(one, Send)}


def kinds_of(effects: list[Effect], kind: type) -> list[Any]:
    return [one for one in effects if isinstance(one, kind)]


def started(*names: str) -> tuple[MarketRounds, list[Effect]]:
    machine = MarketRounds(cleared)
    for name in names:
        assert machine.handle(Received(NodeId(name), Join())) == []
    return machine, machine.handle(TimerFired(START))


def next_round(machine: MarketRounds) -> tuple[list[Effect], list[Effect]]:
    """Close the round, clear it, and return the effects of closing and of clearing."""
    closing = machine.handle(TimerFired("close"))
    settled: list[Effect] = []
    for job in kinds_of(closing, Compute):
        settled += machine.handle(Computed(job.job, job.kernel(*job.arguments)))
    return closing, settled


def test_who_joins_takes_part_from_the_next_round_and_who_leaves_no_longer() -> None:
    machine, first = started("ann", "bob")
    assert set(opened(first)) == {"ann", "bob"}
    machine.handle(Received(NodeId("eve"), Join(capability_steps=5)))
    machine.handle(Received(NodeId("ann"), Leave()))
    closing, settled = next_round(machine)
    assert sorted(kinds_of(closing, Compute)[0].arguments[1]) == ["ann", "bob"]
    assert set(opened(closing)) == {"bob", "eve"}
    assert opened(closing)["eve"].cap_steps == 5
    assert kinds_of(settled, Decide)[0].outcome[0] == 1
    assert kinds_of(closing, SetTimer)


def test_a_change_of_mind_before_the_round_counts() -> None:
    machine, _ = started("ann")
    machine.handle(Received(NodeId("ann"), Leave()))
    machine.handle(Received(NodeId("ann"), Join()))
    assert set(opened(next_round(machine)[0])) == {"ann"}


def test_a_flag_lowers_the_weight_of_later_rounds_only() -> None:
    """The round under way keeps the weight that was announced before its orders."""
    machine, first = started("ann", "mallory")
    assert opened(first)["mallory"].weight == 1000
    second = opened(next_round(machine)[0])
    assert second["mallory"].weight == 1000
    third = opened(next_round(machine)[0])
    assert third["mallory"].weight == 100
    assert third["ann"].weight == 1000


def test_the_order_of_rows_moves_on_each_round() -> None:
    machine, first = started("ann", "bob", "eve")
    firsts = [min(opened(first).items(), key=lambda one: one[1].row)[0]]
    for _ in range(2):
        told = opened(next_round(machine)[0])
        firsts.append(min(told.items(), key=lambda one: one[1].row)[0])
    assert sorted(firsts) == ["ann", "bob", "eve"]


def test_a_restart_uses_no_round_number_twice_and_forgets_no_weight() -> None:
    machine, _ = started("ann", "mallory")
    next_round(machine)
    closing, _ = next_round(machine)
    assert isinstance(closing[1], Persist), "durable before anybody is told"
    saved: Saved = closing[1].record
    again = MarketRounds(cleared, saved=saved)
    told = opened(again.handle(TimerFired(START)))
    assert told["mallory"].number == saved.number + 1
    assert told["mallory"].weight == 100


def test_strangers_messages_and_results_of_no_round_change_nothing() -> None:
    machine, _ = started("ann")
    assert machine.handle(Received(NodeId("eve"), "nonsense")) == []
    assert machine.handle(Computed(99, cleared(99, [], []))) == []
    assert machine.rows() == ["ann"]
    empty = MarketRounds(cleared)
    empty.handle(TimerFired(START))
    assert not kinds_of(empty.handle(TimerFired("close")), Compute)
