"""What opens to one site: to it alone, and who bends it is named or told apart [sealed 3.4]."""

from collections import Counter
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.roles.sealed.sealed_days import Ended, cast_for, run_day, setpoints_of, small

from veilgrid.grid.lindistflow import Limits
from veilgrid.machine import START, NodeId, Received, TimerFired
from veilgrid.mpc.field import PRIME, PRIME_FIELD, words_of
from veilgrid.mpc.message import Reproach, Said, Sealed
from veilgrid.roles.sealed import day as sealed_day
from veilgrid.roles.sealed.attack import DeviantParty
from veilgrid.roles.sealed.day import SITES, step_in_memory
from veilgrid.roles.sealed.message import Notice
from veilgrid.roles.sealed.party import SealedParty

LIAR = NodeId("party-2")
SCENARIO = small(2)
DAY, LIMITS = SCENARIO.day(), Limits.of(SCENARIO.network)


@pytest.fixture(scope="module")
def honest() -> Ended:
    return run_day(DAY, LIMITS)


def said_in(ended: Ended) -> list[list[Said]]:
    """Return what one party said to all, by task."""
    out: dict[bytes, list[Said]] = {}
    for sender, _, message in ended.sent:
        if sender == LIAR and isinstance(message, Said):
            out.setdefault(message.session, []).append(message)
    return list(out.values())


def notices(ended: Ended, sender: NodeId = LIAR) -> list[Notice]:
    return [one for name, _, one in ended.sent if name == sender and isinstance(one, Notice)]


def with_deviant(monkeypatch: pytest.MonkeyPatch, task: int, place: int) -> Ended:
    """Run the day with one party that lies in one round of one task."""

    def made(name: NodeId, *rest: Any, **more: Any) -> SealedParty:
        if name != LIAR:
            return SealedParty(name, *rest, **more)
        party = DeviantParty(name, *rest, **more)
        party.task_number, party.round_number = task, place
        return party

    monkeypatch.setattr(sealed_day, "SealedParty", made)
    return run_day(DAY, LIMITS)


@pytest.mark.parametrize("kind", ["wish", "certificate"])
def test_a_party_that_bends_a_price_or_a_payment_is_named(
    monkeypatch: pytest.MonkeyPatch, honest: Ended, kind: str
) -> None:
    """Three shares of degree one contradict each other without saying which; parties find out."""
    paid = [one.task for one in notices(honest) if one.own]
    task = paid[0] if kind == "wish" else paid[-1]
    last = max(one.round for one in said_in(honest)[task])
    ended = with_deviant(monkeypatch, task, last)
    assert ended.sites is None
    assert ended.stopped[SITES].culprits == [LIAR]


def test_seeds_that_settle_a_dispute_are_those_that_sites_committed_to() -> None:
    """Who shows others, of one site too many or too few, proves nothing against anybody."""
    cast = cast_for(DAY, LIMITS)
    with cast.pool:
        step_in_memory(cast.machines, until=SITES)
    party = cast.machines[NodeId("party-1")]
    assert isinstance(party, SealedParty)
    last = party._inner
    assert last is not None
    for members in last.keyring.sets:
        true = {client: seeds[members] for client, seeds in last.keyring.seeds.items()}
        assert len(true) > len(DAY.flexible), "bids, proofs and wishes are read in the last task"
        assert last.are_committed(members, true)
        for client, seed in true.items():
            assert not last.are_committed(members, {**true, client: bytes(16)})
            assert not last.are_committed(members, {k: v for k, v in true.items() if k != client})
            assert not last.are_committed(members, {**true, "stranger": seed})


def test_what_one_party_tells_sites_alone_changes_nothing(honest: Ended) -> None:
    def meddle(sender: NodeId, to: NodeId, message: Any) -> Any:
        if sender != LIAR or not isinstance(message, Notice):
            return message
        bent = {bus: bytes([octets[0] ^ 1, *octets[1:]]) for bus, octets in message.own.items()}
        return msgspec.structs.replace(message, own=bent)

    ended = run_day(DAY, LIMITS, meddle=meddle)
    assert ended.sites is not None
    assert honest.sites is not None
    assert ended.sites.payments == honest.sites.payments
    for mine, other in zip(setpoints_of(DAY, ended), setpoints_of(DAY, honest), strict=True):
        np.testing.assert_array_equal(mine, other)


def elements(octets: bytes) -> list[int]:
    return PRIME_FIELD.numbers(PRIME_FIELD.from_words(words_of(octets)))


def test_what_opens_behind_pads_is_uniform_and_no_pad_is_used_twice(honest: Ended) -> None:
    """Prices differ by little from task to task: differences of two openings must not."""
    told = [one.own for one in notices(honest) if one.own]
    numbers = [elements(own[bus]) for own in told for bus in sorted(own)]
    spread = [value for one in numbers for value in one]
    assert len(set(spread)) == len(spread)
    wide = min(abs(value - other) % PRIME for value in spread for other in spread if value < other)
    assert wide > PRIME // len(spread) ** 3
    first = [own for own in told if len(own) == len(told[0])]
    apart = [
        (value - other) % PRIME
        for before, after in pairwise(first)
        for bus in before
        for value, other in zip(elements(before[bus]), elements(after[bus]), strict=True)
    ]
    tops = Counter(value >> 124 for value in apart)
    expected = len(apart) / 8
    assert sum((tops[k] - expected) ** 2 / expected for k in range(8)) < 24.3, "p > 0.001"


def test_a_message_that_belongs_to_no_task_is_ignored() -> None:
    """Proof of a false box is part of a testimony; alone it must not stop an honest party."""
    cast = cast_for(DAY, LIMITS)
    proof = Reproach(Sealed(b"", 0, 1, 2, b"", b"", b""), b"")
    with cast.pool:
        party = cast.machines[NodeId("party-1")]
        party.handle(TimerFired(START))
        assert party.handle(Received(LIAR, proof)) == []
