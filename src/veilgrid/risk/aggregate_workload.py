"""Measured rounds of aggregation: any number of sources on a committee of processes [risk 7].

Readings are drawn from a public seed and arrive at the parties as shares. Agreement on them, the
check of every input and the figure are those of a real round; receiving the sources' messages,
which happens before the deadline, is not part of it.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np

from veilgrid.machine import NodeId
from veilgrid.mpc import Party, Program, Steps
from veilgrid.mpc.bulk import BulkMailbox, bulk_intake, plain_batch
from veilgrid.mpc.client import Enrolled
from veilgrid.mpc.engine import Engine
from veilgrid.mpc.layout import Integers
from veilgrid.mpc.plain import Plain
from veilgrid.mpc.prss import derive_keys, keyring_of
from veilgrid.mpc.workload import lockstep, shares_of, warm_up
from veilgrid.risk.aggregate import Question, Source, answer_steps
from veilgrid.risk.rounds import Round, program_of
from veilgrid.secret import Randomness, Secret
from veilgrid.signature import Signs

UPPER_KW = 20.0
_TOGETHER: Final = 2048
"""Sources whose shares are made at once, so that making them takes no memory to speak of."""


class Workload(msgspec.Struct, frozen=True):
    """What to run.

    Attributes
    ----------
    function
        Of the aggregation, on a histogram.
    count
        Sources; a twentieth of them lies.
    degree
        Of the sharings.
    until
        ``keys``, ``check`` or ``figure``: after which part the round ends.
    """

    function: str
    count: int
    degree: int = 1
    until: str = "figure"


def round_of(work: Workload) -> Round:
    """Return the round: households of all reliabilities, so that weights differ."""
    trusted = np.random.Generator(np.random.PCG64(5)).uniform(0.5, 1.0, work.count).round(3)
    sources = tuple(
        Source(str(row), "household", 0.0, UPPER_KW, None, float(trusted[row]))
        for row in range(work.count)
    )
    return Round(question=Question(function=work.function, method="histogram"), sources=sources)


def inputs_of(work: Workload, round_: Round) -> Integers:
    """Return the encoded readings: loads of a few kilowatts, a twentieth at the upper bound."""
    generator = np.random.Generator(np.random.PCG64(20261122))
    values = generator.gamma(4.0, 0.5, work.count).clip(0, UPPER_KW)
    values[::20] = UPPER_KW
    return round_.plan().encode(values.tolist())


def expected(work: Workload) -> list[str]:
    """Return what the plain computation opens."""
    if work.until != "figure":
        return []
    round_ = round_of(work)
    plan, mpc = round_.plan(), Plain()
    batch = plain_batch(mpc, plan.layout, inputs_of(work, round_), plan.names)
    result: Any = mpc.run(answer_steps(mpc, batch, plan))
    found: list[str] = result["numbers"]
    return found


def measured_program(work: Workload, round_: Round, mailbox: BulkMailbox) -> Program:
    """Return one party's computation, up to the part after which the round ends."""
    if work.until == "figure":
        return program_of(round_, mailbox)

    def program(mpc: Engine) -> Steps[dict[str, Any]]:
        if work.until == "check":
            yield from bulk_intake(mpc, mailbox)
        yield from mpc.agree()
        return {"numbers": []}

    return program


def mailbox_of(work: Workload, round_: Round, party: int, n: int) -> BulkMailbox:
    """Return a mailbox in which the shares of all inputs lie, as if they had arrived."""
    layout, inputs = round_.plan().layout, inputs_of(work, round_)
    clients = {one.name: Enrolled(bytes(32)) for one in round_.sources}
    mailbox = BulkMailbox(party, n, work.degree, b"workload", clients, Secret(bytes(32)), layout)
    for first in range(0, len(inputs), _TOGETHER):
        some = inputs[first : first + _TOGETHER]
        shares = shares_of(some.reshape(-1), party, work.degree)
        mailbox.received.shares[first : first + _TOGETHER] = shares.reshape(*some.shape, 2)
    mailbox.fill(mailbox.received.shares)
    return mailbox


def build_party(
    me: NodeId,
    arguments: Workload,
    randomness: Randomness,
    peers: list[NodeId],
    signer: Signs,
    verify_keys: Mapping[NodeId, bytes],
) -> Party:
    """Make a party for a workload; a factory for :mod:`veilgrid.node.local`."""
    _warm(Workload(arguments.function, 60, 1))
    names = tuple(sorted(peers))
    round_ = round_of(arguments)
    mailbox = mailbox_of(arguments, round_, names.index(me) + 1, len(names))
    return Party(
        me,
        names,
        arguments.degree,
        measured_program(arguments, round_, mailbox),
        signer=signer,
        verify_keys=verify_keys,
        randomness=randomness,
        session=b"workload",
        patience_ns=120_000_000_000,
    )


def _warm(work: Workload) -> None:
    """Load every compiled kernel with a small round of three parties in this process."""
    warm_up()
    keys, round_ = derive_keys(3, 1, b"warm"), round_of(work)
    programs = [program_of(round_, mailbox_of(work, round_, i, 3)) for i in (1, 2, 3)]
    engines = [Engine(keyring_of(i, 3, 1, keys, b""), lambda: bytes(32)) for i in (1, 2, 3)]
    lockstep([program(engine) for program, engine in zip(programs, engines, strict=True)])
