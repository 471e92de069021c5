"""One process of a deployment: links, machine, journal and audit log put together [node 7].

    member = Member(me, codec=..., credentials=..., build=..., on_decide=print, journal=journal)
    member.listen(host, port)
    member.update_peers(peers)
    await member.connected(60)
    member.build()
    await member.run()

``run_guarded(main())`` around it turns errors into exit codes.
"""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Final

from veilgrid.errors import InvariantError, invariant
from veilgrid.machine import Event, Machine, NodeId
from veilgrid.node.certificate import Credentials
from veilgrid.node.driver import Driver
from veilgrid.node.journal import Journal
from veilgrid.node.signing import AuditLog, AuditUnwritable
from veilgrid.node.transport import Endpoint, Limits, Metrics, Peer
from veilgrid.node.wire import Codec

_EARLY_MAX: Final = 10_000
_DRAIN_S: Final = 2.0

_log = logging.getLogger("veilgrid.node.audit")

Build = Callable[[Sequence[Any]], Machine]
"""Make the machine from what its journal holds, oldest record first."""


class Member:
    """A process of a deployment.

    Parameters
    ----------
    me
        Its name, as in its certificate.
    codec
        The messages of its protocol.
    credentials
        Its key and certificate.
    build
        Makes its machine; called once the peers are connected.
    on_decide
        Called with each outcome.
    journal
        Its journal, open; closed by :meth:`close`.
    audit
        Its audit log; closed by :meth:`close`. If a line cannot be written the process ends.
    limits, guest_roles
        See :class:`~veilgrid.node.transport.Endpoint`.
    compute_threads
        See :class:`~veilgrid.node.driver.Driver`.
    """

    def __init__(
        self,
        me: NodeId,
        *,
        codec: Codec,
        credentials: Credentials,
        build: Build,
        on_decide: Callable[[Any], None],
        journal: Journal | None = None,
        audit: AuditLog | None = None,
        limits: Limits | None = None,
        guest_roles: frozenset[str] = frozenset(),
        compute_threads: int = 1,
    ) -> None:
        self.me = me
        self._build = build
        self._on_decide = on_decide
        self._journal = journal
        self._record_count = len(journal.records) if journal is not None else 0
        self._audit = audit
        self._credentials = credentials
        self._compute_threads = compute_threads
        self._driver: Driver | None = None
        self._is_started = False
        self._early: list[tuple[NodeId, Any, tuple[bytes, int]]] = []
        self._endpoint = Endpoint(
            me,
            credentials,
            codec,
            self._deliver,
            limits=limits,
            guest_roles=guest_roles,
            audit=self._write_audit,
        )

    # -- before the start ------------------------------------------------------------------------

    def listen(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Accept connections and return the port."""
        return self._endpoint.listen(host, port)

    def update_peers(self, peers: Iterable[Peer]) -> None:
        """Take a new directory."""
        self._endpoint.update_peers(peers)

    async def connected(self, timeout_s: float, among: Iterable[NodeId] | None = None) -> None:
        """Wait for the peers, or for those in ``among``; see :meth:`Endpoint.connected`."""
        await self._endpoint.connected(timeout_s, among)

    @property
    def missing(self) -> list[NodeId]:
        """Peers that are not connected now."""
        return self._endpoint.missing()

    @property
    def record_count(self) -> int:
        """How many records an earlier life has left."""
        return self._record_count

    def build(self) -> None:
        """Make the machine. This may compile or read much, so it comes before the start."""
        invariant(self._driver is None, "a machine is built once")
        records = self._journal.records if self._journal is not None else ()
        self._driver = Driver(
            self.me,
            self._build(records),
            self._endpoint,
            on_decide=self._decided,
            journal=self._journal,
            compute_threads=self._compute_threads,
        )
        self._journal = None  # The driver closes it.

    @property
    def is_built(self) -> bool:
        """The machine is there and can start."""
        return self._driver is not None

    # -- while it runs ---------------------------------------------------------------------------

    async def run(self, stop_signals: Iterable[signal.Signals] = (signal.SIGTERM,)) -> None:
        """Start the machine and drive it until :meth:`stop`, a stop signal, or an error.

        SIGHUP takes up new keys.
        """
        driver = self._built()
        self._is_started = True
        self._watch_signals(stop_signals)
        self._write_audit("started", records=self._record_count)
        driver.start()
        early, self._early = self._early, []
        for delivery in early:
            driver.on_message(*delivery)
        self._endpoint.after_reading()
        self._endpoint.resume()
        await driver.run()

    def post(self, event: Event) -> None:
        """Hand the machine an event from this process."""
        self._built().post(event)

    def fail(self, error: BaseException) -> None:
        """End :meth:`run` with ``error``."""
        self._built().fail(error)

    async def stop(self) -> None:
        """End :meth:`run` once connected peers have acknowledged what was sent, or after 2 s."""
        await self._endpoint.drained(_DRAIN_S)
        self._built().stop()

    def rotate(self) -> None:
        """Take up the keys and certificates that the files now hold."""
        self._endpoint.rotate(self._credentials)

    async def close(self) -> None:
        """Close links, journal and audit log."""
        await self._endpoint.close()
        if self._driver is not None and not self._is_started:
            self._driver.stop()
            await self._driver.run()
        if self._journal is not None:
            self._journal.close()
        if self._audit is not None:
            self._audit.close()
            self._audit = None

    @property
    def metrics(self) -> Metrics:
        """Counters of the links."""
        return self._endpoint.metrics

    # -- inside ----------------------------------------------------------------------------------

    def _built(self) -> Driver:
        invariant(self._driver is not None, "the machine is built before it is used")
        return self._driver  # type: ignore[return-value]

    def _deliver(self, peer: NodeId, message: Any, receipt: tuple[bytes, int]) -> None:
        if self._is_started:
            self._built().on_message(peer, message, receipt)
            return
        self._early.append((peer, message, receipt))
        if len(self._early) >= _EARLY_MAX:
            self._endpoint.pause()

    def _decided(self, outcome: Any) -> None:
        self._write_audit("decided")
        self._on_decide(outcome)

    def _write_audit(self, kind: str, /, **fields: str | int | float | bool) -> None:
        """Write a line; if that fails the process ends, for nobody would know what it did."""
        if self._audit is None:
            return
        try:
            self._audit.write(kind, **fields)
        except AuditUnwritable as error:
            if self._driver is None:
                raise
            self._driver.fail(error)

    def _watch_signals(self, stop_signals: Iterable[signal.Signals]) -> None:
        loop = asyncio.get_running_loop()
        stopping: set[asyncio.Task[None]] = set()
        # Outside the main thread nobody sends us signals.
        with contextlib.suppress(RuntimeError, ValueError):
            for number in stop_signals:
                loop.add_signal_handler(number, lambda: stopping.add(loop.create_task(self.stop())))
            loop.add_signal_handler(signal.SIGHUP, self.rotate)


def alarm(text: str) -> None:
    """Say that the audit log cannot be written."""
    _log.critical("ALARM: %s", text)


async def until_fatal(main: Coroutine[Any, Any, int]) -> int:
    """Run ``main``; an error in any callback of the loop ends it, too."""
    loop = asyncio.get_running_loop()
    fatal: asyncio.Future[int] = loop.create_future()

    def give_up(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not fatal.done():
            claim = "violated: callbacks of the event loop do not fail"
            fatal.set_exception(context.get("exception") or InvariantError(claim))

    loop.set_exception_handler(give_up)
    task = loop.create_task(main)
    try:
        await asyncio.wait({task, fatal}, return_when=asyncio.FIRST_COMPLETED)
        return fatal.result() if fatal.done() else task.result()
    finally:
        task.cancel()
        fatal.cancel()
        await asyncio.gather(task, return_exceptions=True)
