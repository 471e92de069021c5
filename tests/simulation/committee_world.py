"""Committees under one seed: members, a convener with clients, weather, and who deviates."""

import hashlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from nacl.public import PrivateKey

from veilgrid.machine import Effect, Event, Machine, NodeId, Send
from veilgrid.mpc._round import Steps
from veilgrid.mpc._shares import concatenate
from veilgrid.mpc.client import Enrolled, Mailbox, submit
from veilgrid.mpc.engine import Engine
from veilgrid.mpc.form import number, number_bits
from veilgrid.mpc.intake import intake
from veilgrid.mpc.message import Said, private_statement, statement
from veilgrid.mpc.party import Program
from veilgrid.roles.committee import Member
from veilgrid.roles.convener import Convener, Gateway, RoundReport
from veilgrid.roles.rounds import Call, Entered, Message, Outcome, Terms
from veilgrid.secret import Secret, SeededRandomness
from veilgrid.signature import Signer
from veilgrid.sim import CALM, Checker, NoSecretOnWire, Violation, Weather, World

CONVENER = NodeId("convener")
SECRETS = {"ada": 771_234_567, "bob": 772_345_678, "eve": 773_456_789}
SECOND_NS = 1_000_000_000

Wrap = Callable[[Machine, Member, random.Random], Machine]


def program_of(mailbox: Mailbox) -> Program:
    """The sum of all inputs, and the product of the first with itself modulo nothing."""

    def program(mpc: Engine) -> Steps[dict[str, Any]]:
        batch = yield from intake(mpc, mailbox, 1)
        values = concatenate(batch.values.values())
        square = yield from mpc.inner(values, values)
        opened = yield from mpc.open(concatenate([values.sum(), square]))
        return {
            "opened": [str(value) for value in opened],
            "clients": batch.clients,
            "flags": batch.flags,
        }

    return program


def right(clients: Iterable[str]) -> list[str]:
    values = [SECRETS[client] for client in clients]
    return [str(sum(values)), str(sum(value * value for value in values))]


class Committees:
    """Everything that is fixed before a run."""

    def __init__(self, n: int, degree: int, seed: int, *, degree_min: int = 1) -> None:
        names = tuple(NodeId(f"p{seat}") for seat in range(1, n + 1))
        self.terms = Terms(b"sim %d" % seed, names, degree, degree_min)
        self.seed = seed
        self.signers = {
            name: Signer(Secret(hashlib.sha256(name.encode()).digest()))
            for name in (*names, CONVENER, *map(NodeId, SECRETS))
        }
        self.keys = {name: signer.verify_key for name, signer in self.signers.items()}
        self.boxes = {
            name: PrivateKey(hashlib.sha256(b"box" + name.encode()).digest()) for name in names
        }
        form = number(0, 2**30)
        self.forms = dict.fromkeys(SECRETS, form)

    def member(self, name: NodeId, records: Sequence[Any]) -> Member:
        clients = {
            client: Enrolled(self.keys[NodeId(client)], form) for client, form in self.forms.items()
        }
        return Member(
            name,
            self.terms,
            CONVENER,
            program_of,
            clients=clients,
            box_key=Secret(bytes(self.boxes[name])),
            signer=self.signers[name],
            verify_keys=self.keys,
            # The same stream in every life: nothing may depend on a fresh one.
            randomness=SeededRandomness(1000 * self.seed + self.terms.seats.index(name)),
            records=records,
            intake_ns=SECOND_NS,
            patience_ns=SECOND_NS // 2,
            patience_count=6,
        )

    def convener(self, records: Sequence[Any], task_count: int) -> Convener:
        randomness = SeededRandomness(self.seed + 77)

        def made(call: Call, session: bytes) -> list[Any]:
            return [
                submit(
                    session,
                    client,
                    number_bits(self.forms[client], value),
                    degree=call.degree,
                    box_keys=[
                        bytes(self.boxes[name].public_key)
                        for name in self.terms.names(call.members)
                    ],
                    signer=self.signers[NodeId(client)],
                    randomness=randomness,
                )
                for client, value in SECRETS.items()
            ]

        return Convener(
            CONVENER,
            self.terms,
            task_count,
            signer=self.signers[CONVENER],
            verify_keys=self.keys,
            gateway=Gateway(self.terms, CONVENER, made, self.keys),
            records=records,
            resend_ns=SECOND_NS,
            patience_ns=25 * SECOND_NS,
        )

    def world(
        self,
        weather: Weather = CALM,
        corrupt: Mapping[NodeId, Wrap] | None = None,
        *,
        task_count: int = 1,
        checkers: Iterable[Checker] = (),
        **more: Any,
    ) -> World:
        liars = corrupt or {}

        def build_member(name: NodeId) -> Callable[[Sequence[Any]], Machine]:
            def build(records: Sequence[Any]) -> Machine:
                member = self.member(name, records)
                wrap = liars.get(name)
                rng = random.Random(self.seed)
                return member if wrap is None else wrap(member, member, rng)

            return build

        builds: dict[NodeId, Any] = {name: build_member(name) for name in self.terms.seats}
        builds[CONVENER] = lambda records: self.convener(records, task_count)
        honest = [name for name in self.terms.seats if name not in liars]
        watching = [
            Right(honest),
            OneAnswer(honest),
            NoSecretOnWire(SECRETS),
            *checkers,
        ]
        return World(builds, self.seed, weather, messages=Message, checkers=watching, **more)


class Right(Checker):
    """No wrong result is accepted, and nobody honest is found to have cheated."""

    def __init__(self, honest: Iterable[NodeId]) -> None:
        self._honest = {str(name) for name in honest}

    def decided(self, node: NodeId, outcome: Any) -> None:
        if node in self._honest and isinstance(outcome, Outcome):
            if outcome.kind == "finished" and outcome.result["opened"] != right(
                outcome.result["clients"]
            ):
                raise Violation(f"{node} accepted a wrong result")
            if outcome.kind == "cheated" and set(outcome.culprits) & self._honest:
                raise Violation(f"{node} named somebody honest")

    def persisted(self, node: NodeId, record: Any) -> None:
        if node != CONVENER or not hasattr(record, "report"):
            return
        report: RoundReport = record.report
        if report.kind == "cheated" and not set(report.culprits) - self._honest:
            raise Violation("the convener names nobody but honest members as cheaters")


class OneAnswer(Checker):
    """An honest member says one thing in each round of each session, over all its lives."""

    def __init__(self, honest: Iterable[NodeId]) -> None:
        self._honest = frozenset(honest)
        self._said: dict[tuple[Any, ...], bytes] = {}
        self._entered: dict[tuple[NodeId, int], bytes] = {}

    def sent(self, sender: NodeId, to: NodeId, message: Any, _: bytes) -> None:
        if sender not in self._honest or not isinstance(message, Said):
            return
        shared = (sender, message.session, message.round)
        for key, text in ((shared, message.shared), ((*shared, to), message.private)):
            if self._said.setdefault(key, text) != text:
                raise Violation(f"{sender} said two things in round {message.round}")

    def persisted(self, node: NodeId, record: Any) -> None:
        if node not in self._honest or not isinstance(record, Entered):
            return
        if (node, record.number) in self._entered:
            raise Violation(f"{node} entered round {record.number} twice")
        self._entered[node, record.number] = record.session


class Liar:
    """A member that changes what it says in one step of its first rounds, and signs the lie."""

    def __init__(
        self, machine: Machine, member: Member, rng: random.Random, at: int, *, two_faced: bool
    ) -> None:
        self._machine, self._member, self._rng = machine, member, rng
        self._at, self._two_faced = at, two_faced
        self._lies: dict[bytes, bytes] = {}

    def handle(self, event: Event) -> list[Effect]:
        told, out = 0, []
        for effect in self._machine.handle(event):
            is_said = isinstance(effect, Send) and isinstance(effect.message, Said)
            if not is_said or effect.message.round != self._at:
                out.append(effect)
                continue
            told += 1
            is_spared = self._two_faced and told == 1
            out.append(effect if is_spared else Send(effect.to, self._changed(effect)))
        return out

    def _changed(self, effect: Send) -> Said:
        said = effect.message
        party = self._member.parties[said.session]
        if said.shared:
            lie = self._lies.setdefault(said.session, self._flipped(said.shared))
            digest = hashlib.sha256(lie).digest()
            text = statement(party.session, said.round, party.number, digest)
            return msgspec.structs.replace(said, shared=lie, signature=party.sign(text))
        private = self._flipped(said.private)
        digest = hashlib.sha256(private).digest()
        receiver = party.parties.index(effect.to) + 1
        text = private_statement(party.session, said.round, party.number, receiver, digest)
        return msgspec.structs.replace(said, private=private, private_signature=party.sign(text))

    def _flipped(self, octets: bytes) -> bytes:
        if not octets:
            return octets
        out = bytearray(octets)
        out[self._rng.randrange(len(out))] ^= 1 << self._rng.randrange(8)
        return bytes(out)
