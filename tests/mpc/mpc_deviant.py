"""Parties that deviate, in whatever way a seed draws: what mpc_naming.py plays.

A deviant holds a real party and its key. It changes what that party computes, says to all, to some
or to each alike or differently, testifies, finds when it computes again, or alarms; it may deny,
fall silent, answer late, replay, forge and pass on forgeries.
"""

import hashlib
import random
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from nacl.public import PublicKey, SealedBox

from veilgrid.machine import Effect, Event, NodeId, Send
from veilgrid.mpc import _courier
from veilgrid.mpc._blame import Claims, Disclosures
from veilgrid.mpc._replay import ReplayEngine
from veilgrid.mpc.field import PRIME_FIELD, encode
from veilgrid.mpc.message import (
    Alarm,
    Ask,
    Finding,
    Passed,
    Relay,
    Reproach,
    Said,
    Sealed,
    Testimony,
    private_statement,
    statement,
)
from veilgrid.mpc.party import Party
from veilgrid.mpc.prss import Stream

Change = Callable[[Send], list[Effect]]


class Deviant:
    """A corrupt party: what it does beside or instead of its honest self.

    Attributes
    ----------
    done
        What it did, in words, in order.
    """

    def __init__(self, party: Party, rng: random.Random, round_max: int) -> None:
        self.party, self.rng, self.round_max = party, rng, round_max
        self.done: list[str] = []
        self._lies: dict[Any, Any] = {}
        self._seen: set[Any] = set()
        self.former: dict[int, Said] = {}
        self.heard: dict[int, Said] = {}
        self._is_broken = False
        self._injections: list[tuple[int, Callable[[], list[Effect]]]] = []
        self._changes = _drawn(self)

    def handle(self, event: Event) -> list[Effect]:
        message = getattr(event, "message", None)
        if isinstance(message, Said) and message.shared:
            self.heard[message.round] = message
        effects: list[Effect] = []
        if not self._is_broken:
            try:
                effects = self.party.handle(event)
            except Exception as error:  # noqa: BLE001 - what it tampered with broke: it falls silent
                self._is_broken = True
                self.note(f"broke itself ({type(error).__name__})")
        for effect in effects:
            if isinstance(effect, Send) and isinstance(effect.message, Said):
                self.former.setdefault(effect.message.round, effect.message)
        for change in self._changes:
            effects = [
                one
                for effect in effects
                for one in (change(effect) if isinstance(effect, Send) else [effect])
            ]
        for injection in list(self._injections):
            if self.party.state.round >= injection[0]:
                self._injections.remove(injection)
                effects = [*effects, *injection[1]()]
        return effects

    # -- what deviations are made of --------------------------------------------

    def note(self, what: str) -> None:
        if what not in self._seen:
            self._seen.add(what)
            self.done.append(what)

    def at(self, number: int, injection: Callable[[], list[Effect]]) -> None:
        self._injections.append((number, injection))

    def others(self) -> list[NodeId]:
        return [name for name in self.party.parties if name != self.party.me]

    def some(self) -> set[NodeId]:
        """Return to whom: everybody, or some."""
        others = self.others()
        return set(others if self.rng.random() < 0.5 else self.rng.sample(others, 1))

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return the same lie again where it was told before."""
        if key not in self._lies:
            self._lies[key] = make()
        return self._lies[key]

    def signed(self, said: Said, to: NodeId) -> Said:
        """Sign a lie."""
        party = self.party
        digest = hashlib.sha256(said.shared).digest()
        text = statement(said.session, said.round, party.number, digest)
        private = b""
        if said.private:
            digest = hashlib.sha256(said.private).digest()
            receiver = party.parties.index(to) + 1
            private = party.sign(
                private_statement(said.session, said.round, party.number, receiver, digest)
            )
        return msgspec.structs.replace(said, signature=party.sign(text), private_signature=private)

    def found(self, finding: Finding, body: bytes) -> Finding:
        party = self.party
        digest = hashlib.sha256(body).digest()
        text = statement(party.session, -finding.step, party.number, digest)
        return msgspec.structs.replace(finding, body=body, signature=party.sign(text))


# -- octets that lie ------------------------------------------------------------


def _flipped(octets: bytes, rng: random.Random, *, low: bool = False) -> bytes:
    if not octets:
        return octets
    out = bytearray(octets)
    place = rng.randrange(len(out))
    out[place // 8 * 8 if low else place] ^= 1 << rng.randrange(6 if low else 8)
    return bytes(out)


def _plus_one(octets: bytes) -> bytes:
    if not octets or len(octets) % 16:
        return octets[:-1] + bytes([octets[-1] ^ 1]) if octets else octets
    vector = PRIME_FIELD.from_words(np.frombuffer(octets, "<u8").astype(np.uint64))
    one = np.repeat(encode([1]), vector.shape[0], axis=0)
    return PRIME_FIELD.flat(PRIME_FIELD.add(vector, one)).tobytes()


OCTETS: dict[str, Callable[[bytes, random.Random, bytes], bytes]] = {
    "a flipped bit": lambda octets, rng, _: _flipped(octets, rng),
    "a flipped low bit": lambda octets, rng, _: _flipped(octets, rng, low=True),
    "random words": lambda octets, rng, _: rng.randbytes(len(octets)),
    "zeros": lambda octets, _rng, _: bytes(len(octets)),
    "one more": lambda octets, _rng, _: _plus_one(octets),
    "ones": lambda octets, _rng, _: b"\xff" * len(octets),
    "too few words": lambda octets, _rng, _: octets[:-8],
    "too many words": lambda octets, _rng, _: octets + bytes(8),
    "half a word": lambda octets, _rng, _: octets[:-3],
    "nothing": lambda _octets, _rng, _: b"",
    "what it said before": lambda octets, _rng, former: former or octets,
}


# -- deviations -----------------------------------------------------------------


def _drawn(deviant: Deviant) -> list[Change]:
    """Draw one to three deviations, the first of them one that others should notice."""
    rng = deviant.rng
    makers = [rng.choices([one for one, _ in FIRST], [weight for _, weight in FIRST])[0]]
    for maker, probability in MORE:
        if rng.random() < probability:
            makers.append(maker)
    return [maker(deviant) for maker in makers]


def _a_round(deviant: Deviant) -> int:
    return deviant.rng.randrange(deviant.round_max)


def lie(deviant: Deviant) -> Change:
    """Say something else in a round: to all, to some, or to each something else."""
    rng, number = deviant.rng, _a_round(deviant)
    how, spared = rng.choice(list(OCTETS)), set(deviant.others()) - deviant.some()
    has_faces, is_for_good = rng.random() < 0.2, rng.random() < 0.1
    part = rng.choice(["shared", "private", "both"])

    def change(effect: Send) -> list[Effect]:
        said = effect.message
        is_due = isinstance(said, Said) and (
            said.round == number or (is_for_good and said.round > number)
        )
        if not is_due or effect.to in spared:
            return [effect]
        former = deviant.former.get(said.round - 1)
        make = OCTETS[how]
        lies = {}
        if part != "private" or not said.private:
            key = ("shared", said.round, effect.to if has_faces else "")
            before = former.shared if former else b""
            lies["shared"] = deviant.once(key, lambda: make(said.shared, rng, before))
        if said.private and part != "shared":
            key = ("private", said.round, effect.to)
            lies["private"] = deviant.once(key, lambda: make(said.private, rng, b""))
        changed = msgspec.structs.replace(said, **lies)
        if changed == said:
            return [effect]
        whom = "each something else" if has_faces else f"all but {sorted(spared)}"
        deviant.note(f"lie: {how} in {part} words of round {said.round} to {whom}")
        return [Send(effect.to, deviant.signed(changed, effect.to))]

    return change


def silence(deviant: Deviant) -> Change:
    """Say nothing from a round on or in it, or leave out private words, or answer late."""
    rng, number, whom = deviant.rng, _a_round(deviant), deviant.some()
    how = rng.choice(["for good", "once", "private", "private", "late", "whole"])
    courier = rng.choice(["answers", "silent", "nonsense", "empty"])

    def change(effect: Send) -> list[Effect]:
        said = effect.message
        if how == "private" and isinstance(said, Sealed):
            return _not_carried(deviant, effect, courier)
        if how == "whole" and deviant.party.state.round >= number and effect.to in whom:
            deviant.note(f"silence: nothing at all to {sorted(whom)} from round {number}")
            return []
        if not isinstance(said, Said) or effect.to not in whom:
            return [effect]
        if said.round != number and not (how == "for good" and said.round > number):
            return [effect]
        if how == "private":
            if not said.private:
                return [effect]
            deviant.note(f"silence: no private words to {sorted(whom)} in round {number}")
            bare = msgspec.structs.replace(said, private=b"", private_signature=b"")
            return [Send(effect.to, bare)]
        key = ("late", effect.to)
        if how == "late" and key in deviant._lies:
            return [effect]
        deviant._lies[key] = True
        deviant.note(f"silence: {how} to {sorted(whom)} in round {number}")
        return []

    return change


def _not_carried(deviant: Deviant, effect: Send, how: str) -> list[Effect]:
    """Answer who fetches private words for another: as is right, not at all, or with nonsense."""
    if how == "answers":
        return [effect]
    deviant.note(f"silence: {how} where words are fetched for another")
    if how == "silent":
        return []
    party, sealed = deviant.party, effect.message
    inside = b"" if how == "empty" else deviant.rng.randbytes(len(sealed.inside))
    if how == "nonsense" and deviant.rng.random() < 0.5:
        octets = deviant.rng.randbytes(100)
        inside = SealedBox(PublicKey(sealed.box)).encrypt(octets)
    text = _courier._text(b"sealed", party.session, sealed, inside)
    return [
        Send(
            effect.to,
            msgspec.structs.replace(sealed, inside=inside, signature=party.sign(text)),
        )
    ]


def false_ask(deviant: Deviant) -> Change:
    """Ask for words that are there, of any round, with any box; fall silent then or not."""
    rng, party = deviant.rng, deviant.party
    number, whom = _a_round(deviant), deviant.some()
    goes_silent, shift = rng.random() < 0.6, rng.choice([0, 0, 1, -1, -3, 10**6])

    def inject() -> list[Effect]:
        deviant.note(f"false ask: in round {number}{', then silent' if goes_silent else ''}")
        out: list[Effect] = []
        for sender in range(party.n + 2):
            box = rng.choice([bytes(32), rng.randbytes(32), b"", b"short"])
            plain = Ask(party.session, number + shift, sender, party.number, box)
            text = _courier._text(b"ask", party.session, plain, b"")
            ask = msgspec.structs.replace(plain, signature=party.sign(text))
            out += [Send(name, ask) for name in sorted(whom)]
        return out

    deviant.at(number, inject)

    def change(effect: Send) -> list[Effect]:
        is_told = isinstance(effect.message, Said) and effect.message.round > number
        return [] if goes_silent and is_told else [effect]

    return change


def replay(deviant: Deviant) -> Change:
    """Say again what was said, by itself or by others, as it was or for another round."""
    rng, number = deviant.rng, _a_round(deviant)
    how = rng.choice(["repeats", "renumbered", "copies a peer"])

    def change(effect: Send) -> list[Effect]:
        said = effect.message
        if not isinstance(said, Said):
            return [effect]
        if how == "repeats":
            old = deviant.former.get(said.round - 1)
            if said.round >= number and old is not None:
                deviant.note(f"replay: what it said from round {number} on, twice")
                return [Send(effect.to, old), effect, effect]
            return [effect]
        if said.round != number:
            return [effect]
        source = deviant.former if how == "renumbered" else deviant.heard
        old = source.get(number - 1)
        if old is None:
            return [effect]
        deviant.note(f"replay: {how} in round {number}")
        forged = msgspec.structs.replace(said, shared=old.shared)
        if how == "renumbered" and rng.random() < 0.5:
            return [Send(effect.to, msgspec.structs.replace(old, round=number))]  # old signature
        return [Send(effect.to, deviant.signed(forged, effect.to))]

    return change


def forgery(deviant: Deviant) -> Change:
    """Send what nobody signed, or pass on what another did not say."""
    rng, number, whom = deviant.rng, _a_round(deviant), deviant.some()
    how = rng.choice(["unsigned", "other session", "false relay", "own second face"])

    def change(effect: Send) -> list[Effect]:
        said = effect.message
        if not isinstance(said, Said) or said.round != number or effect.to not in whom:
            return [effect]
        deviant.note(f"forgery: {how} in round {number} to {sorted(whom)}")
        if how == "unsigned":
            return [Send(effect.to, msgspec.structs.replace(said, signature=bytes(64)))]
        if how == "other session":
            return [Send(effect.to, msgspec.structs.replace(said, session=b"another"))]
        bare = msgspec.structs.replace(
            said, private=b"", private_signature=b"", shared=_flipped(said.shared, rng)
        )
        if how == "own second face":
            face = deviant.signed(bare, effect.to)
            return [Send(effect.to, Relay(deviant.party.number, face)), effect]
        author = rng.randrange(-1, deviant.party.n + 2)
        return [Send(effect.to, Relay(author, bare)), effect]

    return change


def alarm(deviant: Deviant) -> Change:
    """Raise an alarm without a cause, of some round or in another's name."""
    rng, number, whom = deviant.rng, _a_round(deviant), deviant.some()
    shift = rng.choice([0, 0, 0, -1, -2, 1, 3, 10**9, -(10**9)])
    is_own = rng.random() < 0.8

    def inject() -> list[Effect]:
        party = deviant.party
        at = party.state.round + shift
        raiser = party.number if is_own else rng.randrange(-1, party.n + 2)
        text = statement(party.session, at, raiser, b"alarm")
        made = Alarm(party.session, at, raiser, party.sign(text))
        deviant.note(f"alarm: of round {at} as {raiser}, in round {number}, to {sorted(whom)}")
        return [Send(name, made) for name in sorted(whom)]

    deviant.at(number, inject)
    return lambda effect: [effect]


def computes(deviant: Deviant) -> Change:
    """Compute something else and say what follows from it; admit that later, or deny it."""
    rng, party = deviant.rng, deviant.party
    how = rng.choice(list(TAMPERED))
    call, is_open = rng.randrange(6), rng.random() < 0.5
    usual = party.program

    def program(mpc: Any) -> Any:
        if is_open or not isinstance(mpc, ReplayEngine):
            deviant.note(f"computes: {how}, call {call}{', admits it' if is_open else ''}")
            TAMPERED[how](mpc, call, random.Random(call))
        return usual(mpc)

    party.program = program
    return lambda effect: [effect]


def _at_call(usual: Callable[..., Any], call: int, change: Callable[[Any], Any]) -> Any:
    """Return ``usual`` with the result of one of its calls changed."""
    count = iter(range(10**9))

    def changed(*arguments: Any) -> Any:
        result = usual(*arguments)
        return change(result) if next(count) == call else result

    return changed


def _more(field_vector: Any) -> Any:
    if field_vector.dtype == np.uint64 and field_vector.ndim == 2 and field_vector.shape[1] == 2:
        return PRIME_FIELD.add(field_vector, np.repeat(encode([1]), len(field_vector), axis=0))
    return field_vector ^ np.uint64(1)


def _wrong_operand(mpc: Any, call: int, _: random.Random) -> None:
    usual = mpc.summed
    count = iter(range(10**9))

    def summed(field: Any, local: Any) -> Any:
        return usual(field, _more(local) if next(count) == call else local)

    mpc.summed = summed


def _of_source(name: str) -> Callable[[Any, int, random.Random], None]:
    def tamper(mpc: Any, call: int, _: random.Random) -> None:
        setattr(mpc.source, name, _at_call(getattr(mpc.source, name), call, _more))

    return tamper


def _wrong_stream(name: str) -> Callable[[Any, int, random.Random], None]:
    def tamper(mpc: Any, _: int, rng: random.Random) -> None:
        streams = getattr(mpc.source, name, None)
        if streams:
            streams[rng.choice(sorted(streams))] = Stream(b"another", b"key")

    return tamper


def _wrong_digest(mpc: Any, _: int, rng: random.Random) -> None:
    digest = rng.randbytes(32)
    mpc.digest = lambda: digest


TAMPERED: dict[str, Callable[[Any, int, random.Random], None]] = {
    "a wrong operand": _wrong_operand,
    "a wrong mask": _of_source("random"),
    "a wrong zero": _of_source("zero"),
    "a wrong mask of bits": _of_source("octal_random"),
    "a wrong zero of bits": _of_source("octal_zero"),
    "a wrong constant": _of_source("constant"),
    "a wrong known number": _of_source("known"),
    "another set key": _wrong_stream("_sets"),
    "another pair key": _wrong_stream("_pairs"),
    "another transcript": _wrong_digest,
}


def testifies(deviant: Deviant) -> Change:
    """Testify to what was not heard, or not at all."""
    rng, whom = deviant.rng, deviant.some()
    how = rng.choice(list(TESTIMONIES))
    has_faces = rng.random() < 0.2

    def change(effect: Send) -> list[Effect]:
        told = effect.message
        if not isinstance(told, Testimony) or effect.to not in whom:
            return [effect]
        deviant.note(f"testifies: {how} to {sorted(whom)}")
        if how == "withheld":
            return []
        key = ("testimony", effect.to if has_faces else "")
        return [Send(effect.to, deviant.once(key, lambda: TESTIMONIES[how](told, deviant)))]

    return change


def _digests_changed(told: Testimony, deviant: Deviant) -> Testimony:
    return msgspec.structs.replace(told, digests=_flipped(told.digests, deviant.rng))


def _hears_nothing(told: Testimony, deviant: Deviant) -> Testimony:
    place = deviant.rng.randrange(max(len(told.digests) // 32, 1))
    digests = told.digests[: 32 * place] + bytes(32) + told.digests[32 * place + 32 :]
    return msgspec.structs.replace(told, digests=digests[: len(told.digests)])


def _short(told: Testimony, _: Deviant) -> Testimony:
    return msgspec.structs.replace(told, digests=told.digests[:-7])


def _fewer_rounds(told: Testimony, deviant: Deviant) -> Testimony:
    count = deviant.rng.randrange(max(told.round_count, 1))
    n = deviant.party.n
    return msgspec.structs.replace(
        told,
        round_count=count,
        digests=told.digests[: 32 * n * count],
        signatures=told.signatures[: 64 * n * count],
    )


def _more_rounds(told: Testimony, deviant: Deviant) -> Testimony:
    n = deviant.party.n
    return msgspec.structs.replace(
        told,
        round_count=told.round_count + 2,
        digests=told.digests + deviant.rng.randbytes(64 * n),
        signatures=told.signatures + bytes(128 * n),
    )


def _negative(told: Testimony, _: Deviant) -> Testimony:
    return msgspec.structs.replace(told, round_count=-1)


def _no_private(told: Testimony, _: Deviant) -> Testimony:
    return msgspec.structs.replace(told, private=[])


def _private_changed(told: Testimony, deviant: Deviant) -> Testimony:
    private = [
        (number, sender, _flipped(words, deviant.rng), signature)
        for number, sender, words, signature in told.private
    ]
    return msgspec.structs.replace(told, private=private)


def _strange_alarms(told: Testimony, deviant: Deviant) -> Testimony:
    party, rng = deviant.party, deviant.rng
    raiser, number = rng.randrange(-1, party.n + 2), rng.choice([-5, 0, 2, 7, 10**6])
    text = statement(party.session, number, party.number, b"alarm")
    strange = (raiser, number, party.sign(text))
    kept = told.alarms if rng.random() < 0.5 else []
    return msgspec.structs.replace(told, alarms=[*kept, strange])


def _no_alarms(told: Testimony, _: Deviant) -> Testimony:
    return msgspec.structs.replace(told, alarms=[])


def _false_reproach(told: Testimony, deviant: Deviant) -> Testimony:
    party, rng = deviant.party, deviant.rng
    sealed = Sealed(party.session, 1, rng.randrange(-1, party.n + 2), party.number, b"", b"", b"")
    return msgspec.structs.replace(told, reproaches=[Reproach(sealed, rng.randbytes(32))])


def _strange_private(told: Testimony, deviant: Deviant) -> Testimony:
    party = deviant.party
    strange = []
    for number in (-1, 0, 1, 5, 10**6):
        for sender in (-3, 0, party.number, party.n + 4):
            words = deviant.rng.randbytes(deviant.rng.choice([3, 8, 16]))
            digest = hashlib.sha256(words).digest()
            text = private_statement(party.session, number, sender, party.number, digest)
            strange.append((number, sender, words, party.sign(text)))
    return msgspec.structs.replace(told, private=[*told.private, *strange])


def _as_it_was(told: Testimony, _: Deviant) -> Testimony:
    return told


TESTIMONIES: dict[str, Callable[[Testimony, Deviant], Testimony]] = {
    "withheld": _as_it_was,
    "a digest nobody signed": _digests_changed,
    "heard nothing of somebody": _hears_nothing,
    "too short": _short,
    "fewer rounds": _fewer_rounds,
    "more rounds": _more_rounds,
    "rounds below zero": _negative,
    "no words to kings": _no_private,
    "other words to kings": _private_changed,
    "strange words to kings": _strange_private,
    "other alarms": _strange_alarms,
    "no alarms": _no_alarms,
    "a false reproach": _false_reproach,
}


def finds(deviant: Deviant) -> Change:
    """Find something else when everybody computes again, or disclose other keys."""
    rng, whom = deviant.rng, deviant.some()
    how = rng.choice(list(FINDINGS))
    has_faces, steps = rng.random() < 0.2, rng.choice([(1,), (2,), (1, 2)])

    def change(effect: Send) -> list[Effect]:
        told = effect.message
        if not isinstance(told, Finding) or effect.to not in whom or told.step not in steps:
            return [effect]
        deviant.note(f"finds: {how} in step {told.step}, to {sorted(whom)}")
        if how == "withheld":
            return []
        key = ("finding", told.step, effect.to if has_faces else "")
        body = deviant.once(key, lambda: FINDINGS[how](told, deviant))
        return [Send(effect.to, deviant.found(told, body))]

    return change


def _changed_values(
    told: Finding, rng: random.Random, change: Callable[[bytes], bytes | None]
) -> bytes:
    """Change a claim, or one contribution to each key and one seed."""
    if told.step == 1:
        claims = msgspec.msgpack.decode(told.body, type=Claims)
        at = claims.round if rng.random() < 0.8 else rng.randrange(-2, 20)
        kept = {group: change(words) for group, words in claims.summands.items()}
        told_again = {group: words for group, words in kept.items() if words is not None}
        return msgspec.msgpack.encode(Claims(at, told_again))
    shown = msgspec.msgpack.decode(told.body, type=Disclosures)
    contributions = {
        group: [one for one in map(change, parts) if one is not None]
        for group, parts in shown.contributions.items()
    }
    seeds = {
        group: {name: one for name, seed in each.items() if (one := change(seed)) is not None}
        for group, each in shown.seeds.items()
    }
    return msgspec.msgpack.encode(Disclosures(contributions, seeds))


def _finding_flipped(told: Finding, deviant: Deviant) -> bytes:
    return _changed_values(
        told,
        deviant.rng,
        lambda one: _flipped(one, deviant.rng) if deviant.rng.random() < 0.5 else one,
    )


def _finding_missing(told: Finding, deviant: Deviant) -> bytes:
    return _changed_values(
        told, deviant.rng, lambda one: None if deviant.rng.random() < 0.5 else one
    )


def _finding_odd(told: Finding, deviant: Deviant) -> bytes:
    return _changed_values(
        told, deviant.rng, lambda one: one[: deviant.rng.randrange(len(one) + 1)]
    )


FINDINGS: dict[str, Callable[[Finding, Deviant], bytes]] = {
    "withheld": lambda told, _: told.body,
    "other words": _finding_flipped,
    "not all": _finding_missing,
    "words of odd length": _finding_odd,
    "no message at all": lambda told, deviant: deviant.rng.randbytes(len(told.body)),
    "another type": lambda _told, _: msgspec.msgpack.encode([1, "two", None]),
}


def early_finding(deviant: Deviant) -> Change:
    """Send findings before anybody asks, also others' words passed off as their findings."""
    number = _a_round(deviant)

    def inject() -> list[Effect]:
        party = deviant.party
        deviant.note(f"early finding: in round {number}")
        body = msgspec.msgpack.encode(Claims(number, {0: b"", 1: bytes(16), 99: bytes(5)}))
        made = [
            deviant.found(Finding(party.session, step, b"", b""), body) for step in (1, 2, 3, -1)
        ]
        confused = [
            Passed(party.session, author, Finding(party.session, step, said.shared, said.signature))
            for said in deviant.heard.values()
            for author in range(1, party.n + 1)
            for step in (0, 1, 99)
        ]
        return [Send(name, one) for name in deviant.others() for one in [*made, *confused]]

    deviant.at(number, inject)
    return lambda effect: [effect]


FIRST: tuple[tuple[Callable[[Deviant], Change], int], ...] = (
    (lie, 50),
    (computes, 20),
    (silence, 10),
    (replay, 7),
    (forgery, 6),
    (alarm, 7),
    (false_ask, 4),
)
MORE: tuple[tuple[Callable[[Deviant], Change], float], ...] = (
    (testifies, 0.15),
    (finds, 0.2),
    (lie, 0.1),
    (computes, 0.05),
    (silence, 0.05),
    (alarm, 0.05),
    (early_finding, 0.03),
)
