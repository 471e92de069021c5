"""A whole deployment on this machine: real processes over TLS, or all machines in one [node 7].

    results = run_processes([
        ProcessSpec(node=NodeId("p1"), factory="package.module:build", messages="package.module:M"),
        ...
    ])

A factory is a top-level function. It is called with those of these keyword arguments that it
declares: ``me``, ``arguments`` (decoded into its annotated type), ``records`` (what its journal
holds, oldest first), ``randomness``, ``peers`` (sorted NodeIds of all processes), ``signer`` and
``verify_keys`` (NodeId to ed25519 key). Nothing is pickled.
"""

import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from veilgrid.errors import RunAborted, Unreachable, invariant
from veilgrid.machine import (
    Machine,
    NodeId,
)
from veilgrid.node._control import (
    LENGTH,
    Address,
    Begin,
    Decided,
    Directory,
    Finished,
    Go,
    Listening,
    Post,
    Ready,
    Rotate,
    Stop,
    ToProcess,
    ToSupervisor,
    build_machine,
    encode,
    framed,
    load_name,
)
from veilgrid.node._in_process import InProcess
from veilgrid.node.wire import Codec
from veilgrid.node.wiring import Loopback, Wiring
from veilgrid.secret import Secret, SystemRandomness

if TYPE_CHECKING:
    from veilgrid.node.certificate import Authority

SUPERVISOR: Final = NodeId("supervisor")
"""Sender of what :meth:`Deployment.post` hands to a machine."""

_END_TIMEOUT_S: Final = 5.0
_THREADS: Final = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
_ALLOCATOR: Final = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
}
"""glibc keeps freed arrays up to these octets: new ones are not pages to be cleared first."""

_STDERR_LENGTH_MAX: Final = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """One process to run.

    Attributes
    ----------
    factory
        ``package.module:function``, see the module's text.
    messages
        ``package.module:name`` of the union of messages that its machine sends and receives.
    arguments
        Anything msgspec can encode.
    records
        ``package.module:name`` of the union of records; needed by a machine that persists.
    journal
        File of the journal; None makes one for as long as the deployment lives, encrypted under
        a key that only the supervisor's memory holds.
    journal_key : 32 octets
        Encrypts the journal at rest. Without it a journal that was named is readable on disk.
    outcome_count
        The process is done after that many outcomes; it goes on serving its peers.
    compute_threads
        See :class:`~veilgrid.node.driver.Driver`.
    audit
        File of the audit log; None keeps none.
    """

    node: NodeId
    factory: str
    messages: str
    arguments: Any = None
    role: str = "party"
    records: str | None = None
    journal: Path | None = None
    journal_key: Secret[bytes] | None = None
    outcome_count: int = 1
    compute_threads: int = 1
    audit: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessResult:
    """What became of one process.

    Attributes
    ----------
    outcomes
        Decoded into the type given as ``outcomes``, else into plain lists, maps and numbers.
    exit_code
        0, the code of an error, 70 for a bug, or minus the signal that ended it.
    seconds
        From the start of its machine to its last outcome.
    octets_sent, octets_received
        On its sockets: frames with headers, without TLS and TCP overhead.
    peak_memory_octets
        Largest resident size; of a process that was killed, at least the supervisor's own.
    processor_seconds
        User and system time of all its threads.
    outcome_seconds
        Of each outcome, from the start of the machine in that life; empty in process.
    """

    node: NodeId
    outcomes: list[Any]
    exit_code: int
    seconds: float = 0.0
    octets_sent: int = 0
    octets_received: int = 0
    frames_sent: int = 0
    peak_memory_octets: int = 0
    processor_seconds: float = 0.0
    stderr: str = ""
    outcome_seconds: tuple[float, ...] = ()


# -- the supervisor -----------------------------------------------------------------------------


@dataclass(slots=True)
class _Child:
    spec: ProcessSpec
    process: subprocess.Popen[bytes]
    control: socket.socket
    stderr_path: Path
    received: bytearray = field(default_factory=bytearray)
    port: int = 0
    is_ready: bool = False
    is_ended: bool = False
    outcomes: list[bytes] = field(default_factory=list)
    outcome_seconds: list[float] = field(default_factory=list)
    seconds: float = 0.0
    finished: Finished | None = None
    processor_seconds: float = 0.0
    peak_memory_octets: int = 0


class Deployment:
    """Processes on loopback, started, watched and ended by this one.

    Use it as a context manager: leaving it ends every process it started, each by its own pid.

    Parameters
    ----------
    folder
        Where keys, journals and logs are; None makes a private one and deletes it at the end.
    import_paths
        Folders in which the processes also look for modules.
    wiring
        How far apart the processes are; None means not at all.
    """

    def __init__(
        self,
        specs: Sequence[ProcessSpec],
        *,
        folder: Path | None = None,
        import_paths: Iterable[Path] = (),
        frame_length_max: int = 256 << 20,
        environment: Mapping[str, str] | None = None,
        wiring: Wiring | None = None,
    ) -> None:
        names = [spec.node for spec in specs]
        invariant(len(set(names)) == len(names) > 0, "every process has its own name")
        self._specs = {spec.node: spec for spec in specs}
        self._is_temporary = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="veilgrid-"))
        self._environment = dict(os.environ if environment is None else environment)
        for name in _THREADS:  # Processes share this machine: threads that wait by spinning starve.
            self._environment.setdefault(name, "1")
        for name, octets in _ALLOCATOR.items():
            self._environment.setdefault(name, octets)
        source = Path(__file__).resolve().parents[2]
        former = self._environment.get("PYTHONPATH", "")
        paths = [str(path) for path in (*import_paths, source)] + ([former] if former else [])
        self._environment["PYTHONPATH"] = os.pathsep.join(paths)
        self._frame_length_max = frame_length_max
        self._wiring = wiring or Loopback()
        self._children: dict[NodeId, _Child] = {}
        self._verify_keys: dict[NodeId, bytes] = {}
        self._authority: Authority | None = None
        self._journal_key = Secret(os.urandom(32))
        self._selector = selectors.DefaultSelector()
        self._to_supervisor = msgspec.msgpack.Decoder(ToSupervisor)

    def __enter__(self) -> "Deployment":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, timeout_s: float = 120.0) -> None:
        """Make keys, start every process, connect them and let the machines begin.

        Raises
        ------
        RunAborted
            A process ended before it was ready; the text repeats the end of its stderr.
        Unreachable
            The processes did not connect in time.
        """
        deadline = time.monotonic() + timeout_s
        self._make_keys()
        for spec in self._specs.values():
            self._spawn(spec)
        everyone = list(self._children.values())
        self._until(lambda: all(child.port for child in everyone), deadline, "start listening")
        self._tell_addresses()
        self._until(lambda: all(child.is_ready for child in everyone), deadline, "connect")
        for child in everyone:
            self._tell(child, Go(timeout_s))

    def wait(self, timeout_s: float) -> bool:
        """Wait until every living process has its outcomes; False if time ran out."""

        def is_done() -> bool:
            return all(
                child.is_ended or len(child.outcomes) >= child.spec.outcome_count
                for child in self._children.values()
            )

        return self._pump(is_done, time.monotonic() + timeout_s)

    def wait_until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Take reports until ``condition`` holds; False if time ran out."""
        return self._pump(condition, time.monotonic() + timeout_s)

    def outcomes(self, node: NodeId, kind: Any = Any) -> list[Any]:
        """Return what ``node`` has decided so far, decoded as ``kind``."""
        decoder = msgspec.msgpack.Decoder(kind)
        return [decoder.decode(body) for body in self._children[node].outcomes]

    def seconds(self, node: NodeId) -> float:
        """Return how long after its machine's start ``node`` came to its last outcome."""
        return self._children[node].seconds

    def pid(self, node: NodeId) -> int:
        """Return the process id of ``node``."""
        return self._children[node].process.pid

    def is_alive(self, node: NodeId) -> bool:
        """Return whether the process of ``node`` runs."""
        self._pump(lambda: True, 0)
        return not self._children[node].is_ended

    def is_running(self, node: NodeId) -> bool:
        """Return whether ``node`` ran when reports were last taken; for use in conditions."""
        return not self._children[node].is_ended

    def post(self, node: NodeId, message: Any) -> None:
        """Hand ``message`` to the machine of ``node``, as if :data:`SUPERVISOR` had sent it."""
        self._tell(self._children[node], Post(encode(message)))

    def rotate(self, node: NodeId) -> None:
        """Give ``node`` a new key and certificate while it runs."""
        spec, verify_key = self._specs[node], self._verify_keys[node]
        invariant(self._authority is not None, "keys are made before they are rotated")
        self._authority.issue(  # type: ignore[union-attr]
            self.folder, node, spec.role, verify_key=verify_key
        )
        self._tell(self._children[node], Rotate())

    def kill(self, node: NodeId) -> None:
        """End the process of ``node`` at once, as a power cut would (SIGKILL)."""
        child = self._children[node]
        if not child.is_ended:
            os.kill(child.process.pid, signal.SIGKILL)
        self._pump(lambda: child.is_ended, time.monotonic() + 10)

    def restart(self, node: NodeId, timeout_s: float = 120.0) -> None:
        """Start ``node`` again after it has ended; it goes on from its journal.

        Outcomes of the earlier life are kept in front.
        """
        former = self._children[node]
        invariant(former.is_ended, "only a process that has ended is started again")
        deadline = time.monotonic() + timeout_s
        self._spawn(former.spec)
        child = self._children[node]
        child.outcomes = former.outcomes
        child.outcome_seconds = former.outcome_seconds
        self._until(lambda: bool(child.port), deadline, "start listening again")
        self._tell_addresses()
        self._until(lambda: child.is_ready, deadline, "connect again")
        self._tell(child, Go(timeout_s))

    def stop(self, outcomes: Any = Any, timeout_s: float = 10.0) -> list[ProcessResult]:
        """End every process in an orderly way and return what became of each."""
        for child in self._children.values():
            if not child.is_ended:
                self._tell(child, Stop())
        everyone = self._children.values()
        self._pump(lambda: all(child.is_ended for child in everyone), time.monotonic() + timeout_s)
        for child in everyone:
            if not child.is_ended:
                self.kill(child.spec.node)
        return [self._result(child, outcomes) for child in everyone]

    def close(self) -> None:
        """End what still runs and remove what was temporary."""
        for child in self._children.values():
            if not child.is_ended:
                self.kill(child.spec.node)
        self._selector.close()
        if self._is_temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    # -- inside ----------------------------------------------------------------------------------

    def _make_keys(self) -> None:
        from veilgrid.node.certificate import Authority
        from veilgrid.node.signing import fresh_signer, save_signer

        authority = self._authority = Authority.create()
        for spec in self._specs.values():
            signer = fresh_signer()
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            save_signer(signer, self.folder / f"{spec.node}.seed")
            self._verify_keys[spec.node] = signer.verify_key
            authority.issue(self.folder, spec.node, spec.role, verify_key=signer.verify_key)

    def _spawn(self, spec: ProcessSpec) -> None:
        ours, theirs = socket.socketpair()
        stderr_path = self.folder / f"{spec.node}.stderr"
        with stderr_path.open("ab") as stderr, self._wiring.inside(spec.node):
            process = subprocess.Popen(  # noqa: S603 - our own interpreter, our own module
                [
                    sys.executable,
                    "-c",
                    "from veilgrid.node.process import main; main()",
                    str(theirs.fileno()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                pass_fds=(theirs.fileno(),),
                env=self._environment,
            )
        theirs.close()
        former = self._children.get(spec.node)
        child = _Child(spec, process, ours, stderr_path)
        self._children[spec.node] = child
        self._selector.register(ours, selectors.EVENT_READ, child)
        key = spec.journal_key or (None if spec.journal else self._journal_key)
        journal = spec.journal or self.folder / f"{spec.node}.journal"
        self._tell(
            child,
            Begin(
                node=spec.node,
                role=spec.role,
                factory=spec.factory,
                messages=spec.messages,
                arguments=encode(spec.arguments),
                records=spec.records,
                journal=str(journal) if spec.records else "",
                folder=str(self.folder),
                host=self._wiring.host(spec.node),
                port=former.port if former else 0,
                compute_threads=spec.compute_threads,
                audit=str(spec.audit) if spec.audit else "",
                journal_key=key.reveal_to(spec.node) if key else b"",
                frame_length_max=self._frame_length_max,
            ),
        )

    def _tell_addresses(self) -> None:
        directory = Directory(
            [
                Address(
                    node,
                    child.spec.role,
                    *self._wiring.reached(node, child.port),
                    self._verify_keys[node],
                )
                for node, child in self._children.items()
            ],
            [node for node, child in self._children.items() if not child.is_ended],
        )
        for child in self._children.values():
            if not child.is_ended:
                self._tell(child, directory)

    def _tell(self, child: _Child, message: ToProcess) -> None:
        try:
            child.control.sendall(framed(message))
        except OSError:
            self._pump(lambda: child.is_ended, time.monotonic() + 5)

    def _until(self, condition: Callable[[], bool], deadline: float, what: str) -> None:
        """Pump until ``condition``; a process that ends before is a failed start."""

        def ended() -> list[_Child]:
            return [child for child in self._children.values() if child.is_ended]

        before = {id(child) for child in ended()}
        fresh: list[_Child] = []

        def is_over() -> bool:
            fresh[:] = [child for child in ended() if id(child) not in before]
            return bool(fresh) or condition()

        is_in_time = self._pump(is_over, deadline)
        if fresh:
            child = fresh[0]
            raise RunAborted(
                f"process {child.spec.node} ended with {child.process.returncode} before it "
                f"could {what}: {_tail(child.stderr_path)}"
            )
        if not is_in_time:
            raise Unreachable(f"the processes did not {what} in time")

    def _pump(self, condition: Callable[[], bool], deadline: float) -> bool:
        """Take reports until ``condition`` or ``deadline``; return whether it holds."""
        while True:
            wait = deadline - time.monotonic()
            is_met = condition()
            for key, _ in self._selector.select(0 if is_met else max(0.0, min(wait, 0.05))):
                self._take(key.data)
            if is_met or condition():
                return True
            if wait <= 0:
                return False
            if not self._selector.get_map():
                return condition()

    def _take(self, child: _Child) -> None:
        try:
            octets = child.control.recv(1 << 18)
        except OSError:
            octets = b""
        if not octets:
            self._reap(child)
            return
        child.received += octets
        while len(child.received) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(child.received)
            stop = LENGTH.size + length
            if len(child.received) < stop:
                break
            message = self._to_supervisor.decode(bytes(child.received[LENGTH.size : stop]))
            del child.received[:stop]
            match message:
                case Listening(port):
                    child.port = port
                case Ready():
                    child.is_ready = True
                case Decided(body, seconds):
                    child.outcomes.append(body)
                    child.outcome_seconds.append(seconds)
                    child.seconds = seconds
                case Finished():
                    child.finished = message

    def _reap(self, child: _Child) -> None:
        self._selector.unregister(child.control)
        child.control.close()
        pid, deadline = child.process.pid, time.monotonic() + _END_TIMEOUT_S
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        while not ended and time.monotonic() < deadline:
            time.sleep(0.002)
            ended, status, usage = os.wait4(pid, os.WNOHANG)
        if not ended:  # A kernel that runs on keeps it from ending.
            os.kill(pid, signal.SIGKILL)
            _, status, usage = os.wait4(pid, 0)
        child.peak_memory_octets = usage.ru_maxrss * 1024
        child.process.returncode = os.waitstatus_to_exitcode(status)
        child.processor_seconds = usage.ru_utime + usage.ru_stime
        child.is_ended = True

    def _result(self, child: _Child, outcomes: Any) -> ProcessResult:
        decoder = msgspec.msgpack.Decoder(outcomes)
        finished = child.finished or Finished(0, 0, 0, child.peak_memory_octets)
        return ProcessResult(
            node=child.spec.node,
            outcomes=[decoder.decode(body) for body in child.outcomes],
            exit_code=child.process.returncode,
            seconds=child.seconds,
            octets_sent=finished.octets_sent,
            octets_received=finished.octets_received,
            frames_sent=finished.frames_sent,
            peak_memory_octets=finished.peak_memory_octets,
            processor_seconds=child.processor_seconds,
            stderr=_tail(child.stderr_path),
            outcome_seconds=tuple(child.outcome_seconds),
        )


def _tail(path: Path) -> str:
    octets = path.read_bytes() if path.exists() else b""
    return octets[-_STDERR_LENGTH_MAX:].decode("utf-8", "replace").strip()


def run_processes(
    specs: Sequence[ProcessSpec],
    *,
    outcomes: Any = Any,
    timeout_s: float = 60.0,
    start_timeout_s: float = 120.0,
    import_paths: Iterable[Path] = (),
    wiring: Wiring | None = None,
) -> list[ProcessResult]:
    """Run one process for each spec over TLS on this machine until each has decided.

    Parameters
    ----------
    specs
        One for each process.
    outcomes
        Type to decode outcomes into.
    timeout_s
        For the machines, from their start.
    start_timeout_s
        For starting and connecting all processes.
    import_paths
        Folders in which the processes also look for modules.
    wiring
        How far apart the processes are; None means not at all.

    Returns
    -------
    list of ProcessResult
        In the order of ``specs``. A process that ended early has fewer outcomes and its exit code;
        one that ran out of time has fewer outcomes and code 0.
    """
    with Deployment(specs, import_paths=import_paths, wiring=wiring) as deployment:
        deployment.start(start_timeout_s)
        deployment.wait(timeout_s)
        return deployment.stop(outcomes)


# -- the in-process mode --------------------------------------------------------------------------


def run_in_process(
    specs: Sequence[ProcessSpec], *, step_max: int = 10_000_000
) -> list[ProcessResult]:
    """Run the same machines in this process: no sockets, no disk, time passes when all wait.

    Outcomes are handed over as they are, not encoded. Octets count what frames would carry.
    """
    from veilgrid.node.signing import fresh_signer

    signers = {spec.node: fresh_signer() for spec in specs}
    names = tuple(sorted(signers))
    verify_keys = {node: signer.verify_key for node, signer in signers.items()}

    def built(spec: ProcessSpec) -> Machine:
        return build_machine(
            spec.factory,
            encode(spec.arguments),
            me=lambda: spec.node,
            records=tuple,
            randomness=SystemRandomness,
            peers=lambda: names,
            signer=lambda: signers[spec.node],
            verify_keys=lambda: verify_keys,
        )

    machines = {spec.node: built(spec) for spec in specs}
    counts = {spec.node: spec.outcome_count for spec in specs}
    codecs = {spec.node: Codec(load_name(spec.messages)) for spec in specs}
    return run_machines(machines, codecs=codecs, outcome_counts=counts, step_max=step_max)


def run_machines(
    machines: Mapping[NodeId, Machine],
    *,
    codecs: Mapping[NodeId, Codec] | None = None,
    outcome_counts: Mapping[NodeId, int] | None = None,
    step_max: int = 10_000_000,
) -> list[ProcessResult]:
    """Run ``machines`` in this process until each has decided or nothing is left to do.

    Parameters
    ----------
    machines
        All participants; a message to anybody else is lost.
    outcome_counts
        How many outcomes each is asked for; one if not given. Timers run only while some are open.
    step_max
        Events in total; more is a :class:`RunAborted`.
    codecs
        If given, messages are encoded and decoded as between processes, and counted; without,
        they are handed over as they are.
    """
    queue = InProcess(machines, codecs or {}, outcome_counts or {})
    queue.run(step_max)
    return [
        ProcessResult(
            node=node,
            outcomes=queue.outcomes[node],
            exit_code=0,
            seconds=queue.seconds[node],
            octets_sent=queue.sent[node],
            octets_received=queue.received[node],
            frames_sent=queue.frames[node],
        )
        for node in machines
    ]
