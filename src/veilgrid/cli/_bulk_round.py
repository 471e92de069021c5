"""One round over very many inputs of one shape, with parties in this process."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from nacl.public import PrivateKey

from veilgrid.errors import RunAborted
from veilgrid.machine import Decide, Effect, Event, Machine, NodeId, Received
from veilgrid.mpc._round import Steps
from veilgrid.mpc.bulk import BulkBatch, BulkMailbox, bulk_intake
from veilgrid.mpc.client import Enrolled, read_output, submit
from veilgrid.mpc.engine import Engine
from veilgrid.mpc.layout import Integers, Layout
from veilgrid.mpc.message import Finished, Message, Output
from veilgrid.mpc.party import Party, Program
from veilgrid.node.local import run_machines
from veilgrid.node.wire import Codec
from veilgrid.secret import Randomness, Secret, SeededRandomness, SystemRandomness
from veilgrid.signature import Signer

PARTY_COUNT: Final = 3
DEGREE: Final = 1


@dataclass(frozen=True, slots=True)
class BulkResult:
    """What a round gave and what it cost.

    Attributes
    ----------
    result
        Of the program, the same at all parties.
    flags
        By client that did not count, why.
    seconds, octets
        Of the committee: from its start to the last opened number, sent by all parties together.
    intake_seconds
        Making and accepting the clients' messages, for all of them in this one process.
    opened
        By client, what only it could open; empty unless the program delivers something.
    """

    result: Any
    flags: dict[str, str]
    seconds: float
    octets: int
    intake_seconds: float
    opened: dict[str, int]


def bulk_round(
    purpose: bytes,
    layout: Layout,
    names: list[str],
    inputs: Integers,
    program: Callable[[Engine, BulkBatch], Steps[Any]],
    *,
    seed: int | None = None,
    count_min: int = 1,
    delivers: bool = False,
) -> BulkResult:
    """Let every client send its input in shares; check all and run one program on them.

    With ``delivers`` every client has a key of its own under which the parties seal what opens to
    it alone.

    Raises
    ------
    RunAborted
        The parties ended without a result.
    """
    randomness: Randomness = SystemRandomness() if seed is None else SeededRandomness(seed)
    draw = randomness.octets
    session = purpose + draw(16)
    parties = tuple(NodeId(f"party-{index}") for index in range(1, PARTY_COUNT + 1))
    boxes = [PrivateKey(draw(32)) for _ in parties]
    signers = {name: Signer(Secret(draw(32))) for name in parties}
    senders = [Signer(Secret(draw(32))) for _ in names]
    readers = {name: Reader(draw(32)) for name in names} if delivers else {}
    enrolled = {
        name: Enrolled(signer.verify_key, box_key=readers[name].public if delivers else b"")
        for name, signer in zip(names, senders, strict=True)
    }
    mailboxes = [
        BulkMailbox(
            place, PARTY_COUNT, DEGREE, session, enrolled, Secret(bytes(boxes[place - 1])), layout
        )
        for place in range(1, PARTY_COUNT + 1)
    ]
    public = [bytes(box.public_key) for box in boxes]
    began = time.perf_counter()
    for row, name in enumerate(names):
        said = submit(
            session,
            name,
            np.asarray(inputs[row]).tolist(),
            degree=DEGREE,
            box_keys=public,
            signer=senders[row],
            randomness=randomness,
        )
        for mailbox in mailboxes:
            mailbox.accept(said)
    intake_seconds = time.perf_counter() - began
    machines: dict[NodeId, Machine] = {
        name: Party(
            name,
            parties,
            DEGREE,
            _program(mailbox, program, count_min),
            signer=signers[name],
            verify_keys={one: signer.verify_key for one, signer in signers.items()},
            randomness=randomness,
            session=session,
            mailbox=mailbox if delivers else None,
        )
        for name, mailbox in zip(parties, mailboxes, strict=True)
    }
    machines |= {NodeId(name): reader for name, reader in readers.items()}
    began = time.perf_counter()
    results = run_machines(machines, codecs={name: Codec(Message) for name in machines})
    seconds = time.perf_counter() - began
    outcome = results[0].outcomes[0]
    if not isinstance(outcome, Finished):
        raise RunAborted(outcome.reason, ", ".join(outcome.culprits) or None)
    result, flags = outcome.result
    octets = sum(one.octets_sent for one in results)
    opened = {name: reader.read(parties) for name, reader in readers.items()}
    return BulkResult(result, flags, seconds, octets, intake_seconds, opened)


class Reader:
    """A client after it has sent its input: takes every party's share of what is its own."""

    def __init__(self, key: bytes) -> None:
        self._key = Secret(key)
        self.public = bytes(PrivateKey(key).public_key)
        self._outputs: dict[NodeId, Output] = {}

    def handle(self, event: Event) -> list[Effect]:
        """Keep a sealed share; decide when one of each party is there."""
        match event:
            case Received(sender, Output() as output) if sender not in self._outputs:
                self._outputs[sender] = output
                return [Decide("read")] if len(self._outputs) == PARTY_COUNT else []
            case _:
                return []

    def read(self, parties: tuple[NodeId, ...]) -> int:
        """Open what was sealed for this client."""
        values, _ = read_output([self._outputs[name] for name in parties], DEGREE, self._key)
        return values[0]


def _program(
    mailbox: BulkMailbox, program: Callable[[Engine, BulkBatch], Steps[Any]], count_min: int
) -> Program:
    def steps(mpc: Engine) -> Steps[Any]:
        batch = yield from bulk_intake(mpc, mailbox, count_min)
        answer = yield from program(mpc, batch)
        return answer, batch.flags

    return steps
