"""One round over very many inputs of one shape, with parties in this process."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from nacl.public import PrivateKey

from veilgrid.errors import RunAborted
from veilgrid.machine import Machine, NodeId
from veilgrid.mpc._round import Steps
from veilgrid.mpc.bulk import BulkBatch, BulkMailbox, bulk_intake
from veilgrid.mpc.client import Enrolled, submit_with_pad
from veilgrid.mpc.engine import Engine
from veilgrid.mpc.layout import Integers, Layout
from veilgrid.mpc.message import Finished, Message
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
    told
        The result by party, as each of them says it.
    pads
        By client, what hides what opens to it alone: :func:`~veilgrid.mpc.padded.read_padded`.
    """

    result: Any
    flags: dict[str, str]
    seconds: float
    octets: int
    intake_seconds: float
    told: list[Any]
    pads: list[Secret[int]]
    degree: int = DEGREE


def bulk_round(
    purpose: bytes,
    layout: Layout,
    names: list[str],
    inputs: Integers,
    program: Callable[[Engine, BulkBatch], Steps[Any]],
    *,
    seed: int | None = None,
    count_min: int = 1,
) -> BulkResult:
    """Let every client send its input in shares; check all and run one program on them.

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
    enrolled = {
        name: Enrolled(signer.verify_key) for name, signer in zip(names, senders, strict=True)
    }
    mailboxes = [
        BulkMailbox(
            place, PARTY_COUNT, DEGREE, session, enrolled, Secret(bytes(boxes[place - 1])), layout
        )
        for place in range(1, PARTY_COUNT + 1)
    ]
    public = [bytes(box.public_key) for box in boxes]
    began = time.perf_counter()
    pads = []
    for row, name in enumerate(names):
        said, pad = submit_with_pad(
            session,
            name,
            np.asarray(inputs[row]).tolist(),
            degree=DEGREE,
            box_keys=public,
            signer=senders[row],
            randomness=randomness,
        )
        pads.append(pad)
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
        )
        for name, mailbox in zip(parties, mailboxes, strict=True)
    }
    began = time.perf_counter()
    results = run_machines(machines, codecs={name: Codec(Message) for name in machines})
    seconds = time.perf_counter() - began
    outcome = results[0].outcomes[0]
    if not isinstance(outcome, Finished):
        raise RunAborted(outcome.reason, ", ".join(outcome.culprits) or None)
    told = [one.outcomes[0].result[0] for one in results if isinstance(one.outcomes[0], Finished)]
    result, flags = outcome.result
    octets = sum(one.octets_sent for one in results)
    return BulkResult(result, flags, seconds, octets, intake_seconds, told, pads)


def _program(
    mailbox: BulkMailbox, program: Callable[[Engine, BulkBatch], Steps[Any]], count_min: int
) -> Program:
    def steps(mpc: Engine) -> Steps[Any]:
        batch = yield from bulk_intake(mpc, mailbox, count_min)
        answer = yield from program(mpc, batch)
        return answer, batch.flags

    return steps
