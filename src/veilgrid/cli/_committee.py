"""One secure round with its parties and clients, run from the command line."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from veilgrid.errors import RunAborted
from veilgrid.machine import Machine, NodeId
from veilgrid.mpc.aggregate import Sender
from veilgrid.mpc.client import Enrolled, Mailbox, submit
from veilgrid.mpc.form import Form
from veilgrid.mpc.message import Message, Submission
from veilgrid.mpc.party import Party, Program
from veilgrid.node.local import run_machines
from veilgrid.node.wire import Codec
from veilgrid.secret import Randomness, Secret, SeededRandomness, SystemRandomness
from veilgrid.signature import Signer


@dataclass(frozen=True, slots=True)
class Committee:
    """The parties of one round.

    Attributes
    ----------
    count : 3..7
    degree
        Parties that may collude without learning anything.
    session
        Fresh for every round; a message of another session is refused.
    randomness
        The system's, or seeded to replay a run.
    """

    count: int
    degree: int
    session: bytes
    randomness: Randomness

    @classmethod
    def fresh(cls, count: int, degree: int, purpose: bytes, seed: int | None) -> "Committee":
        """Return a committee with a session of its own; ``seed`` replays a run exactly."""
        randomness: Randomness = SystemRandomness() if seed is None else SeededRandomness(seed)
        return cls(count, degree, purpose + randomness.octets(16), randomness)

    @property
    def names(self) -> tuple[NodeId, ...]:
        """Return the parties' names in order."""
        return tuple(NodeId(f"party-{index}") for index in range(1, self.count + 1))


@dataclass(frozen=True, slots=True)
class SecureResult:
    """What a round gave, and what it cost: wall seconds, octets sent by all together."""

    result: dict[str, Any]
    seconds: float
    octets: int


def secure_round(
    committee: Committee,
    forms: Mapping[str, Form],
    inputs: Mapping[str, Sequence[int] | None],
    program_of: Callable[[Mailbox], Program],
) -> SecureResult:
    """Let every client send its input in shares and the parties run one program.

    Parameters
    ----------
    committee
        Who computes.
    forms
        Client name -> what its input must be; the parties check it on shares.
    inputs
        Client name -> its input encoded for its form (see :mod:`veilgrid.mpc.form`); None or
        absent: it sends nothing and is flagged ``missing``.
    program_of
        A party's mailbox -> its program; the program's result must be the same at all parties.

    Raises
    ------
    RunAborted
        The parties ended without a result; names the culprit where one is known.
    """
    machines = _machines(committee, forms, inputs, program_of)
    codecs = {name: Codec(Message) for name in machines}
    started = time.perf_counter()
    results = run_machines(machines, codecs=codecs)
    seconds = time.perf_counter() - started
    outcome = results[0].outcomes[0]
    if not hasattr(outcome, "result"):
        raise RunAborted(outcome.reason, ", ".join(outcome.culprits) or None)
    octets = sum(one.octets_sent for one in results)
    return SecureResult(outcome.result, seconds, octets)


def _machines(
    committee: Committee,
    forms: Mapping[str, Form],
    inputs: Mapping[str, Sequence[int] | None],
    program_of: Callable[[Mailbox], Program],
) -> dict[NodeId, Machine]:
    from nacl.public import PrivateKey

    draw = committee.randomness.octets
    boxes = [PrivateKey(draw(32)) for _ in committee.names]
    signers = {name: Signer(Secret(draw(32))) for name in committee.names}
    senders = {name: Signer(Secret(draw(32))) for name in forms}
    clients = {name: Enrolled(signer.verify_key, forms[name]) for name, signer in senders.items()}
    keys = {name: signer.verify_key for name, signer in signers.items()}
    machines: dict[NodeId, Machine] = {}
    for place, (name, box) in enumerate(zip(committee.names, boxes, strict=True), 1):
        mailbox = Mailbox(
            place,
            committee.count,
            committee.degree,
            committee.session,
            clients,
            Secret(bytes(box)),
        )
        machines[name] = Party(
            name,
            committee.names,
            committee.degree,
            program_of(mailbox),
            signer=signers[name],
            verify_keys=keys,
            randomness=committee.randomness,
            mailbox=mailbox,
            intake_ns=1,
            session=committee.session,
        )
    public = [bytes(box.public_key) for box in boxes]
    for client in forms:
        numbers = inputs.get(client)
        sent: Submission | None = None
        if numbers is not None:
            sent = submit(
                committee.session,
                client,
                numbers,
                degree=committee.degree,
                box_keys=public,
                signer=senders[client],
                randomness=committee.randomness,
            )
        machines[NodeId(f"source {client}")] = Sender(committee.names, sent)
    return machines
