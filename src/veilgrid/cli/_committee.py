"""One secure round with its parties and clients, run from the command line."""

import hashlib
import time
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from veilgrid.errors import Finding, InputError, RunAborted, invariant
from veilgrid.machine import Machine, NodeId
from veilgrid.mpc.client import Enrolled, Mailbox, submit
from veilgrid.mpc.form import Form
from veilgrid.mpc.message import Submission
from veilgrid.mpc.party import Program
from veilgrid.node.local import Deployment, ProcessResult, ProcessSpec, run_machines
from veilgrid.node.wire import Codec
from veilgrid.roles.committee import Member
from veilgrid.roles.convener import Called, Concluded, Convener, Gateway, Report, RoundReport
from veilgrid.roles.rounds import MEMBERS_MIN, Call, Message, Outcome, Record, Terms
from veilgrid.secret import Randomness, Secret, SeededRandomness, SystemRandomness
from veilgrid.signature import Signer, Signs

CONVENER: Final = NodeId("convener")
IN_PROCESS: Final = "one process"
PROCESSES: Final = "processes with mutual TLS on this machine"

ConvenerRecord = Called | Concluded


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
class Task:
    """A program that processes can be told: a top-level function and its question.

    Attributes
    ----------
    function
        Called with the question and a party's mailbox; its first parameter is annotated.
    question
        Anything msgspec can encode.
    mailbox_of
        Called with the question, returns what makes mailboxes; None: one form a client.
    """

    function: Callable[[Any, Mailbox], Program]
    question: Any
    mailbox_of: Callable[[Any], Callable[..., Mailbox]] | None = None

    def __call__(self, mailbox: Mailbox) -> Program:
        """Return the program of one party."""
        return self.function(self.question, mailbox)

    def mailboxes(self) -> Callable[..., Mailbox]:
        """Return what makes a party's mailbox."""
        return Mailbox if self.mailbox_of is None else self.mailbox_of(self.question)


@dataclass(frozen=True, slots=True)
class SecureResult:
    """What a round gave, and what it cost: wall seconds, octets sent by all together.

    Attributes
    ----------
    mode
        Where the parties ran, in words.
    rounds
        Every round that was called; more than one if a party failed and was left out.
    """

    result: dict[str, Any]
    seconds: float
    octets: int
    mode: str = IN_PROCESS
    rounds: Sequence[RoundReport] = field(default=())

    @property
    def degree(self) -> int | None:
        """Return the degree of the round that gave the result: lower if parties were left out."""
        return self.rounds[-1].degree if self.rounds else None

    @property
    def excluded(self) -> list[str]:
        """Return who was proved faulty in a round before the one that gave the result."""
        return sorted({name for one in self.rounds for name in one.culprits})


class Timing(msgspec.Struct, frozen=True):
    """How long members wait, and how long the convener does."""

    intake_ns: int = 5_000_000_000
    patience_ns: int = 10_000_000_000
    patience_count: int = 3

    @property
    def verdicts_ns(self) -> int:
        """Longer than any member takes to end a round in which somebody is silent."""
        return self.intake_ns + (self.patience_count + 4) * self.patience_ns


def secure_round(
    committee: Committee,
    forms: Mapping[str, Form],
    inputs: Mapping[str, Sequence[int] | None],
    program_of: Callable[[Mailbox], Program],
    *,
    processes: bool = False,
    timing: Timing | None = None,
    timeout_s: float = 600.0,
) -> SecureResult:
    """Let every client send its input in shares and the parties run one program.

    A party that fails is named, and another round runs without it if enough are left
    [mpc 11.4].

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
        For processes it must be a :class:`Task`.
    processes
        Run every party as a process of its own, connected with mutual TLS.
    timing
        How long parties wait for each other.
    timeout_s
        For all rounds together, with processes.

    Raises
    ------
    RunAborted
        The parties ended without a result; names the culprit where one is known.
    InputError
        A seeded run was asked for with processes: they draw from the system only.
    """
    waits = timing or Timing()
    if processes:
        invariant(isinstance(program_of, Task), "processes are told a task, not a closure")
        return _by_processes(committee, forms, inputs, program_of, waits, timeout_s)  # type: ignore[arg-type]
    machines = _machines(committee, forms, inputs, program_of, waits)
    codecs = {name: Codec(Message) for name in machines}
    started = time.perf_counter()
    results = run_machines(machines, codecs=codecs)
    seconds = time.perf_counter() - started
    return _result(results, seconds, IN_PROCESS)


def _result(results: Sequence[ProcessResult], seconds: float, mode: str) -> SecureResult:
    """Return what more members than could be corrupt returned alike."""
    reports = [one for each in results for one in each.outcomes if isinstance(one, Report)]
    outcomes = [one for each in results for one in each.outcomes if isinstance(one, Outcome)]
    if not reports:
        texts = [one.stderr for one in results if one.stderr]
        raise RunAborted("; ".join(["the parties ended without a result", *texts]))
    report = reports[0]
    if report.stopped:
        reasons = [f"{one.reason}" for one in outcomes if one.reason]
        culprits = sorted({name for one in report.rounds for name in one.culprits})
        # A refusal is the whole story; otherwise say also why no further round is possible.
        is_refused = report.rounds[-1].kind == "refused" if report.rounds else False
        why = reasons[-1:] if is_refused else [*reasons[-1:], report.stopped]
        raise RunAborted("; ".join(why), ", ".join(culprits) or None)
    last = report.rounds[-1]
    for one in outcomes:
        octets = msgspec.msgpack.encode(one.result)
        if one.number == last.number and hashlib.sha256(octets).digest() == last.digest:
            sent = sum(each.octets_sent for each in results)
            return SecureResult(one.result, seconds, sent, mode, report.rounds)
    raise RunAborted("no party returned the result that the others agreed on")


# -- keys and machines ----------------------------------------------------------------------------


def _terms(committee: Committee) -> Terms:
    is_linear = 2 * committee.degree >= committee.count
    return Terms(committee.session, committee.names, committee.degree, 1, is_linear)


def _sender(master: bytes, client: str) -> Signer:
    return Signer(
        Secret(hashlib.sha256(b"veilgrid client key" + master + client.encode()).digest())
    )


def _enrolled(master: bytes, forms: Mapping[str, Form]) -> dict[str, Enrolled]:
    return {name: Enrolled(_sender(master, name).verify_key, form) for name, form in forms.items()}


def _submissions(
    master: bytes,
    inputs: Mapping[str, Sequence[int] | None],
    box_keys: Sequence[bytes],
    randomness: Randomness,
) -> Callable[[Call, bytes], list[Submission]]:
    """Return what makes all clients' messages for a round, afresh for each."""
    senders = {name: _sender(master, name) for name, one in inputs.items() if one is not None}

    def made(call: Call, session: bytes) -> list[Submission]:
        public = [box_keys[seat - 1] for seat in call.members]
        return [
            submit(
                session,
                client,
                numbers,
                degree=call.degree,
                box_keys=public,
                signer=senders[client],
                randomness=randomness,
            )
            for client, numbers in inputs.items()
            if numbers is not None
        ]

    return made


def _silent(clients: Iterable[str], inputs: Mapping[str, Sequence[int] | None]) -> list[str]:
    return [name for name in clients if inputs.get(name) is None]


def _machines(
    committee: Committee,
    forms: Mapping[str, Form],
    inputs: Mapping[str, Sequence[int] | None],
    program_of: Callable[[Mailbox], Program],
    waits: Timing,
) -> dict[NodeId, Machine]:
    from nacl.public import PrivateKey

    draw = committee.randomness.octets
    terms, master = _terms(committee), draw(32)
    boxes = [PrivateKey(draw(32)) for _ in committee.names]
    signers = {name: Signer(Secret(draw(32))) for name in (*committee.names, CONVENER)}
    keys = {name: signer.verify_key for name, signer in signers.items()}
    clients = _enrolled(master, forms)
    public = [bytes(box.public_key) for box in boxes]
    made = _submissions(
        master, {name: inputs.get(name) for name in forms}, public, committee.randomness
    )
    mailbox_of = Mailbox if not isinstance(program_of, Task) else program_of.mailboxes()
    machines: dict[NodeId, Machine] = {
        name: Member(
            name,
            terms,
            CONVENER,
            program_of,
            clients=clients,
            box_key=Secret(bytes(box)),
            signer=signers[name],
            verify_keys=keys,
            randomness=committee.randomness,
            intake_ns=waits.intake_ns,
            patience_ns=waits.patience_ns,
            patience_count=waits.patience_count,
            mailbox_of=mailbox_of,
        )
        for name, box in zip(committee.names, boxes, strict=True)
    }
    machines[CONVENER] = Convener(
        CONVENER,
        terms,
        signer=signers[CONVENER],
        verify_keys=keys,
        gateway=Gateway(terms, CONVENER, made, keys, _silent(forms, inputs)),
        patience_ns=waits.verdicts_ns,
    )
    return machines


# -- processes ------------------------------------------------------------------------------------


class MemberArguments(msgspec.Struct, frozen=True):
    """What a party's process is told; forms are listed once, clients name theirs by place."""

    terms: Terms
    task: str
    question: msgspec.Raw
    forms: list[Form]
    clients: dict[str, tuple[bytes, int]]
    box_key: bytes
    timing: Timing
    mailbox: str = ""


class ConvenerArguments(msgspec.Struct, frozen=True):
    """What the process of the convener and its clients is told."""

    terms: Terms
    master: bytes
    inputs: dict[str, list[int] | None]
    box_keys: list[bytes]
    timing: Timing


def build_member(
    me: NodeId,
    arguments: MemberArguments,
    records: Sequence[Record],
    randomness: Randomness,
    signer: Signs,
    verify_keys: Mapping[NodeId, bytes],
) -> Member:
    """Make one party; a factory for :mod:`veilgrid.node.local`."""
    from veilgrid.mpc.workload import warm_up
    from veilgrid.node._control import load_name

    warm_up()
    function = load_name(arguments.task)
    hints = [hint for name, hint in typing.get_type_hints(function).items() if name != "return"]
    question = msgspec.msgpack.decode(arguments.question, type=hints[0])
    clients = {
        name: Enrolled(key, arguments.forms[place])
        for name, (key, place) in arguments.clients.items()
    }
    mailbox_of = load_name(arguments.mailbox) if arguments.mailbox else None
    task = Task(function, question, mailbox_of)
    return Member(
        me,
        arguments.terms,
        CONVENER,
        task,
        clients=clients,
        box_key=Secret(arguments.box_key),
        signer=signer,
        verify_keys=verify_keys,
        randomness=randomness,
        records=records,
        intake_ns=arguments.timing.intake_ns,
        patience_ns=arguments.timing.patience_ns,
        patience_count=arguments.timing.patience_count,
        mailbox_of=task.mailboxes(),
    )


def build_convener(
    me: NodeId,
    arguments: ConvenerArguments,
    records: Sequence[ConvenerRecord],
    randomness: Randomness,
    signer: Signs,
    verify_keys: Mapping[NodeId, bytes],
) -> Convener:
    """Make the convener with all clients; a factory for :mod:`veilgrid.node.local`."""
    terms = arguments.terms
    made = _submissions(arguments.master, arguments.inputs, arguments.box_keys, randomness)
    return Convener(
        me,
        terms,
        signer=signer,
        verify_keys=verify_keys,
        gateway=Gateway(terms, me, made, verify_keys, _silent(arguments.inputs, arguments.inputs)),
        records=records,
        patience_ns=arguments.timing.verdicts_ns,
    )


def _path(function: Callable[..., Any]) -> str:
    return f"{function.__module__}:{function.__qualname__}"


def round_specs(
    committee: Committee,
    forms: Mapping[str, Form],
    inputs: Mapping[str, Sequence[int] | None],
    task: Task,
    waits: Timing,
) -> list[ProcessSpec]:
    """Return the processes of one secure round: the parties, and the convener with all clients."""
    from nacl.public import PrivateKey

    draw, terms = committee.randomness.octets, _terms(committee)
    master = draw(32)
    boxes = [PrivateKey(draw(32)) for _ in committee.names]
    places: dict[Form, int] = {}
    clients = {
        name: (one.verify_key, places.setdefault(one.form, len(places)))
        for name, one in _enrolled(master, forms).items()
    }
    question = msgspec.Raw(msgspec.msgpack.encode(task.question))
    name = _path(task.function)
    mailbox = "" if task.mailbox_of is None else _path(task.mailbox_of)
    specs = [
        ProcessSpec(
            node=party,
            factory="veilgrid.cli._committee:build_member",
            messages="veilgrid.roles.rounds:Message",
            records="veilgrid.roles.rounds:Record",
            arguments=MemberArguments(
                terms, name, question, list(places), clients, bytes(box), waits, mailbox
            ),
        )
        for party, box in zip(committee.names, boxes, strict=True)
    ]
    given = {client: inputs.get(client) for client in forms}
    told = {client: None if one is None else list(one) for client, one in given.items()}
    public = [bytes(box.public_key) for box in boxes]
    convener = ProcessSpec(
        node=CONVENER,
        role="convener",
        factory="veilgrid.cli._committee:build_convener",
        messages="veilgrid.roles.rounds:Message",
        records="veilgrid.cli._committee:ConvenerRecord",
        arguments=ConvenerArguments(terms, master, told, public, waits),
    )
    return [*specs, convener]


def _by_processes(
    committee: Committee,
    forms: Mapping[str, Form],
    inputs: Mapping[str, Sequence[int] | None],
    task: Task,
    waits: Timing,
    timeout_s: float,
) -> SecureResult:
    if committee.randomness.is_deterministic:
        problem = "a run with a seed replays in one process only: processes draw from the system"
        raise InputError([Finding("--seed", problem, "leave out --seed or --processes")])
    specs = round_specs(committee, forms, inputs, task, waits)
    parties = [spec.node for spec in specs if spec.node != CONVENER]
    with Deployment(specs) as deployment:
        deployment.start()

        def is_over() -> bool:
            alive = sum(deployment.is_running(node) for node in parties)
            return (
                bool(deployment.outcomes(CONVENER))
                or not deployment.is_running(CONVENER)
                or alive < MEMBERS_MIN
            )

        deployment.wait_until(is_over, timeout_s)
        results = deployment.stop(Outcome | Report | str)
    seconds = max(one.seconds for one in results)
    return _result(results, seconds, PROCESSES)
