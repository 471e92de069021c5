"""Private words that did not arrive travel through others, sealed [mpc 7.2].

What one party says to all can be told by anybody who heard it. Private words cannot: so who lacks
some signs a fresh box key, everybody carries it to the one who owes them and brings the answer
back. Who does not answer is silent to all who asked, and who seals something else is proved to
have cheated when the asker shows the key of its box.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox

from veilgrid.machine import Effect, NodeId, Send
from veilgrid.mpc.message import Ask, Relay, Reproach, Said, Sealed, private_statement
from veilgrid.secret import Secret

if TYPE_CHECKING:
    from veilgrid.mpc._state import State
    from veilgrid.mpc.party import Party

_SIGNATURE: Final = 64
_KEY: Final = 32

LATE: Final = 2
"""Counts of patience that no honest party is late, if it has all it needs: who lacks words that
others heard asks for them after one, and has them at once."""

LATE_FIRST: Final = 4
"""The same in the first round: parties may begin at different times."""

ROUNDS_LOOKED_AT: Final = 3
"""Who gave up may be one round behind or ahead, and so may be whom it waited for."""


@dataclass(slots=True)
class Errand:
    """Words of one party that another asked to be fetched.

    Attributes
    ----------
    round
        Of the words.
    since
        Own count of patience when it was first asked.
    is_done
        Whether an answer came before the next but one count.
    until
        Own count when the first answer came; -1 if none did.
    """

    round: int
    since: int
    is_done: bool = False
    until: int = -1


def _text(kind: bytes, session: bytes, told: Ask | Sealed, octets: bytes) -> bytes:
    head = b"%s %d:%s|%d|%d|%d|" % (
        kind,
        len(session),
        session,
        told.round,
        told.sender,
        told.asker,
    )
    return head + told.box + octets


def asks(party: "Party", missing: tuple[int, ...]) -> list[Effect]:
    """Ask everybody for what is missing; private words need a box."""
    state = party.state
    box = b""
    if state.current is not None and state.current.private_length:
        if state.box is None or state.box[0] != state.round:
            key = PrivateKey(party.randomness.octets(_KEY))
            state.box = (state.round, Secret(key))
        box = bytes(state.box[1].reveal_to("own box").public_key)
    out: list[Effect] = []
    for number in missing:
        ask = Ask(party.session, state.round, number, party.number, box)
        signature = party.sign(_text(b"ask", party.session, ask, b"")) if box else b""
        signed = msgspec.structs.replace(ask, signature=signature)
        out += [Send(peer, signed) for peer in party.parties if peer != party.me]
    return out


def on_ask(party: "Party", messenger: NodeId, ask: Ask) -> list[Effect]:
    """Tell again what was said, by oneself or by another; carry on what is for another."""
    state, asker = party.state, ask.asker
    if ask.session != party.session or not 0 <= ask.round <= state.round:
        return []
    if not (1 <= asker <= party.n and 1 <= ask.sender <= party.n) or asker == party.number:
        return []
    is_direct = party.parties[asker - 1] == messenger
    if ask.sender == party.number:
        own = state.outbox.get(ask.round, {}).get(asker)
        if own is None or is_direct:
            return [Send(messenger, own)] if own is not None else []
        is_owed = bool(own.private) and _is_genuine(party, ask)
        return [Send(messenger, _sealed(party, ask, own))] if is_owed else []
    said = state.rounds[ask.round].said.get(ask.sender)
    if said is None and is_direct:
        # Who waits for it has it as soon as it comes: nobody gets further by somebody's late word.
        state.rounds[ask.round].wanted.setdefault(ask.sender, set()).add(asker)
    if said is None or not is_direct:
        return []
    told: list[Effect] = [Send(messenger, relay(ask.sender, said))]
    is_late = ask.round < state.round - 1
    if is_late or not state.spoken[ask.round].private_length or not _is_genuine(party, ask):
        return told
    errand = Errand(ask.round, state.tick)
    known = state.errands.setdefault((asker, ask.sender), errand)
    if known.round != ask.round:
        state.errands[asker, ask.sender] = errand
    return [*told, Send(party.parties[ask.sender - 1], ask)]


def relay(author: int, said: Said) -> Relay:
    """Return what another said, for all to hear."""
    return Relay(author, msgspec.structs.replace(said, private=b"", private_signature=b""))


def _is_genuine(party: "Party", ask: Ask) -> bool:
    text = _text(b"ask", party.session, ask, b"")
    return len(ask.box) == _KEY and party.is_by(ask.asker, text, ask.signature)


def _sealed(party: "Party", ask: Ask, own: Said) -> Sealed:
    try:
        inside = SealedBox(PublicKey(ask.box)).encrypt(own.private + own.private_signature)
    except CryptoError:
        inside = b""  # No key belongs to such a box, so nobody can reproach it.
    plain = Sealed(party.session, ask.round, party.number, ask.asker, ask.box, inside, b"")
    signature = party.sign(_text(b"sealed", party.session, plain, inside))
    return msgspec.structs.replace(plain, signature=signature)


def on_sealed(party: "Party", messenger: int, sealed: Sealed) -> list[Effect]:
    """Bring an answer to who asked; open one's own."""
    state = party.state
    if not _is_by_sender(party, sealed):
        return []
    if sealed.asker != party.number:
        errand = state.errands.get((sealed.asker, sealed.sender))
        if messenger != sealed.sender or errand is None or errand.round != sealed.round:
            return []
        errand.is_done |= state.tick <= errand.since + 1
        errand.until = state.tick if errand.until < 0 else errand.until
        return [Send(party.parties[sealed.asker - 1], sealed)]
    if state.box is None or state.is_judging or not state.round == state.box[0] == sealed.round:
        return []
    key = state.box[1].reveal_to("own box")
    known = state.rounds[state.round].said.get(sealed.sender)
    if sealed.box != bytes(key.public_key) or known is None:
        return []
    private = _opened(party, sealed, key)
    if private is None:
        return party.reproach(Reproach(sealed, bytes(key)))
    whole = msgspec.structs.replace(known, private=private[0], private_signature=private[1])
    return party.on_said(sealed.sender, whole)


def _is_by_sender(party: "Party", sealed: Sealed) -> bool:
    numbers = range(1, party.n + 1)
    if sealed.session != party.session or not {sealed.sender, sealed.asker} <= set(numbers):
        return False
    text = _text(b"sealed", party.session, sealed, sealed.inside)
    return party.is_by(sealed.sender, text, sealed.signature)


def _opened(party: "Party", sealed: Sealed, key: PrivateKey) -> tuple[bytes, bytes] | None:
    """Return private words and their signature, or None if the sender did not sign them."""
    try:
        octets = SealedBox(key).decrypt(sealed.inside)
    except (CryptoError, ValueError):
        return None
    private, signature = octets[:-_SIGNATURE], octets[-_SIGNATURE:]
    text = private_statement(
        party.session, sealed.round, sealed.sender, sealed.asker, hashlib.sha256(private).digest()
    )
    is_signed = bool(private) and party.is_by(sealed.sender, text, signature)
    return (private, signature) if is_signed else None


def proves(party: "Party", reproach: Reproach) -> bool:
    """Return whether somebody sealed what it did not sign."""
    if len(reproach.key) != _KEY or not _is_by_sender(party, reproach.sealed):
        return False
    key = PrivateKey(reproach.key)
    is_for_it = bytes(key.public_key) == reproach.sealed.box
    return is_for_it and _opened(party, reproach.sealed, key) is None


def silent(
    errands: Mapping[tuple[int, int], Errand],
    missing: tuple[int, ...],
    said: Mapping[int, frozenset[int]],
    tick: int,
) -> tuple[int, ...]:
    """Return who is silent: those whose words are missing, or who owes them words.

    Who lacks words of another in the round before cannot go on. It is excused if the other has
    spoken in that round, was asked for them by this party too, and did not answer in time.

    Parameters
    ----------
    errands
        By asker and sender.
    missing
        Whose words are not there.
    said
        Who has spoken in which round.
    tick
        Own count of patience.
    """
    out = set()
    for number in missing:
        owing = {
            sender
            for (asker, sender), errand in errands.items()
            if asker == number
            and not errand.is_done
            and tick > errand.since
            and sender in said.get(errand.round, frozenset())
        }
        out |= owing or {number}
    return tuple(sorted(out))


def to_blame(state: "State", accuser: int, accused: Iterable[int]) -> set[int]:
    """Return who is at fault where a party gave up because others were silent to it [mpc 7.2].

    Whom it accuses, if they kept this party waiting as well or did not answer what it carried to
    them; the accuser, if they did neither; nobody, if that cannot be told.
    """
    rounds = range(max(0, state.round - ROUNDS_LOOKED_AT + 1), state.round + 1)
    recent = {key: one for key, one in state.errands.items() if one.round in rounds}
    guilty, is_unclear = set[int](), state.is_judging
    for number in accused:
        debt = recent.get((accuser, number))
        is_owing = debt is not None and not debt.is_done and state.tick > debt.since + 1
        late = {at: state.rounds[at].late[number] for at in rounds}
        # Who had to wait for words that were carried to it may be late for that.
        is_excused = any(
            asker == number and (one.until < 0 or one.until > one.since)
            for (asker, _), one in recent.items()
        )
        is_late = any(count >= (LATE if at else LATE_FIRST) for at, count in late.items())
        if is_owing or (is_late and not is_excused):
            guilty.add(number)
        is_unclear |= is_excused or late.get(0, 0) > 0
    return guilty or (set() if is_unclear else {accuser})
