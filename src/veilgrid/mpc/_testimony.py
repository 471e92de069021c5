"""What parties testify to once a check has failed, and who is named by that alone [mpc 8.1].

Nothing is computed again here: signatures, lengths and digests show who said two things, told
what nobody signed, cannot show what it must have heard, or raised a false alarm.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np

from veilgrid.errors import invariant
from veilgrid.mpc._courier import proves
from veilgrid.mpc.message import Testimony, private_statement, statement

if TYPE_CHECKING:
    from veilgrid.mpc.party import Party

_NOTHING: Final = bytes(32)


def testify(party: "Party") -> Testimony:
    """Return what this party heard: digests with signatures, and what it heard as a king."""
    digests, signatures = bytearray(), bytearray()
    private: list[tuple[int, int, bytes, bytes]] = []
    for number, heading in enumerate(party.state.rounds):
        for sender in range(1, party.n + 1):
            said = heading.said.get(sender)
            digests += heading.digests.get(sender, _NOTHING)
            signatures += bytes(64) if said is None else said.signature
            # The private words of the first round are keys: those stay private.
            if said is not None and said.private and number > 0:
                private.append((number, sender, said.private, said.private_signature))
    alarms = [(raiser, *alarm) for raiser, alarm in sorted(party.state.alarms.items())]
    return Testimony(
        party.session,
        len(party.state.rounds),
        bytes(digests),
        bytes(signatures),
        private,
        alarms,
        list(party.state.reproaches),
    )


def contradictions(party: "Party", testimonies: Mapping[int, Testimony]) -> set[int]:
    """Return who signed two different things, or testified to what nobody signed."""
    named: set[int] = set()
    shaped: dict[int, Testimony] = {}
    for witness, testimony in testimonies.items():
        for reproach in testimony.reproaches[: party.n]:
            named.add(reproach.sealed.sender if proves(party, reproach) else witness)
        count = testimony.round_count * party.n
        if len(testimony.digests) != 32 * count or len(testimony.signatures) != 64 * count:
            named.add(witness)
        else:
            shaped[witness] = testimony
    longest = max((one.round_count for one in shaped.values()), default=0)
    for place in range(longest * party.n):
        told: dict[bytes, list[int]] = {}
        for witness, testimony in shaped.items():
            digest = testimony.digests[32 * place : 32 * place + 32]
            if digest and digest != _NOTHING:
                told.setdefault(digest, []).append(witness)
        if len(told) > 1:
            named |= _contradicting(party, shaped, place, told)
    return named


def _contradicting(
    party: "Party", shaped: Mapping[int, Testimony], place: int, told: Mapping[bytes, list[int]]
) -> set[int]:
    """Return whose signatures show that a sender said two things, or else who made them up."""
    round_number, sender = place // party.n, place % party.n + 1
    named: set[int] = set()
    signed = set()
    for digest, witnesses in told.items():
        text = statement(party.session, round_number, sender, digest)
        for witness in witnesses:
            signature = shaped[witness].signatures[64 * place : 64 * place + 64]
            if party.is_by(sender, text, signature):
                signed.add(digest)
            else:
                named.add(witness)
    return named | ({sender} if len(signed) > 1 else set())


def _alarms(party: "Party") -> tuple[dict[int, set[int]], set[int]]:
    """Return who raised an alarm of which round, and who testified to one that nobody signed."""
    raised: dict[int, set[int]] = {}
    liars: set[int] = set()
    for witness, testimony in party.state.testimonies.items():
        for raiser, number, signature in testimony.alarms[: party.n]:
            text = statement(party.session, number, raiser, b"alarm")
            if 1 <= raiser <= party.n and party.is_by(raiser, text, signature):
                raised.setdefault(number, set()).add(raiser)
            else:
                liars.add(witness)
    return raised, liars


def failing_round(party: "Party") -> int:
    """Return the earliest round of which all testimonies together show an alarm."""
    state = party.state
    invariant(len(state.testimonies) == party.n, "everybody testifies before anything is computed")
    if state.failing is None:
        state.failing = min(_alarms(party)[0])
    return state.failing


def at_sight(party: "Party", cheaters: tuple[int, ...]) -> set[int]:
    """Return who is seen to have deviated once everybody has testified to the same.

    Whether a check fails depends on what was said to all. So who heard the failing round and
    found nothing wrong knows that the alarm is false.
    """
    state = party.state
    raised, liars = _alarms(party)
    failing = min(raised)
    if failing < 0:
        return liars | raised[failing]
    named = liars | _misshapen(party) | _forgetful(party, failing)
    if named:
        return named
    if state.failed_at == failing:
        return set(cheaters) or _other_digests(party, failing)
    is_passed = failing < len(state.rounds) and state.rounds[failing].heard is not None
    return raised[failing] if is_passed else set()


def private_words(party: "Party") -> Iterator[tuple[int, int, int, bytes]]:
    """Yield round, sender, king and words of what was said to kings, where it is signed."""
    for king, testimony in party.state.testimonies.items():
        for number, sender, private, signature in testimony.private:
            if not (1 <= sender <= party.n and 0 < number < len(party.state.spoken)):
                continue
            digest = hashlib.sha256(private).digest()
            text = private_statement(party.session, number, sender, king, digest)
            if sender != king and party.is_by(sender, text, signature):
                yield number, sender, king, private


def _misshapen(party: "Party") -> set[int]:
    """Return who said too many or too few words to a king."""
    return {
        sender
        for number, sender, _, private in private_words(party)
        if len(private) != 8 * party.state.spoken[number].private_length
    }


def _forgetful(party: "Party", failing: int) -> set[int]:
    """Return which kings cannot show what they must have heard to come so far."""
    rounds = {
        number
        for number, spoken in enumerate(party.state.spoken[:failing])
        if number > 0 and spoken.private_length
    }
    shown = {(number, sender, king) for number, sender, king, _ in private_words(party)}
    everyone = range(1, party.n + 1)
    return {
        king
        for king in everyone
        for number in rounds
        if any(sender != king and (number, sender, king) not in shown for sender in everyone)
    }


def _other_digests(party: "Party", failing: int) -> set[int]:
    """Return who claimed in the failing round to have heard something else."""
    heard = party.state.rounds[failing].heard
    own = np.frombuffer(party.state.heads[failing], "<u8")
    starts, named = [0] * party.n, set()
    for label, sizes in party.state.spoken[failing].parts(party.n):
        for number in range(1, party.n + 1) if heard is not None and label == "agree" else ():
            start = starts[number - 1]
            told = heard[number - 1].shared[start : start + own.size]  # type: ignore[index]
            if not np.array_equal(told, own):
                named.add(number)
        starts = [start + size for start, size in zip(starts, sizes, strict=False)]
    return named
