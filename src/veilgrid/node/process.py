"""Inside one process of a local deployment: obey the supervisor, drive the machine [node 7].

The supervisor talks over one end of a socket pair. When that closes, this process ends: nothing is
left behind when the supervisor dies.
"""

import asyncio
import contextlib
import logging
import resource
import socket
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec

from veilgrid.errors import InvariantError
from veilgrid.machine import NodeId, Received
from veilgrid.node._control import (
    CONNECT_TIMEOUT_S,
    LENGTH,
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
    build_machine,
    framed,
    load_name,
)
from veilgrid.node.certificate import Credentials
from veilgrid.node.driver import Driver, run_guarded
from veilgrid.node.journal import Journal
from veilgrid.node.local import SUPERVISOR
from veilgrid.node.signing import AuditLog, AuditUnwritable, Signer
from veilgrid.node.transport import Endpoint, Limits, Peer
from veilgrid.node.wire import Codec
from veilgrid.secret import Secret, SystemRandomness


def main() -> None:
    """Run until the supervisor says stop; the exit code says how it went."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    control = socket.socket(fileno=int(sys.argv[1]))
    sys.exit(run_guarded(_serve(control)))


async def _serve(control: socket.socket) -> int:
    reader, writer = await asyncio.open_connection(sock=control)
    decoder = msgspec.msgpack.Decoder(ToProcess)

    async def hear() -> Any:
        try:
            (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
            return decoder.decode(await reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return Stop()  # The supervisor is gone.

    def tell(message: Any) -> None:
        writer.write(framed(message))

    begin = await hear()
    if not isinstance(begin, Begin):
        return 0
    process = _Process(begin, tell)
    try:
        tell(Listening(process.listen()))
        return await _until_fatal(process.run(hear))
    finally:
        await process.close()
        tell(process.finished())
        with contextlib.suppress(ConnectionError):  # The supervisor may be gone.
            await writer.drain()
        writer.close()


async def _until_fatal(main: Coroutine[Any, Any, int]) -> int:
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


class _Process:
    def __init__(self, begin: Begin, tell: Any) -> None:
        self._begin = begin
        self._tell = tell
        self._me = NodeId(begin.node)
        self._began = 0.0
        self._is_started = False
        self._driver: Driver | None = None
        self._codec = Codec(load_name(begin.messages))
        self._journal: Journal | None = None
        self._records: tuple[Any, ...] = ()
        if begin.records is not None:
            records = Codec(load_name(begin.records))
            key = Secret(begin.journal_key) if begin.journal_key else None
            self._journal = Journal.open(Path(begin.journal), records, key)
            self._records = self._journal.records
        load_name(begin.factory)  # Import now, while the others do the same.
        folder = Path(begin.folder)
        self._audit = AuditLog(Path(begin.audit), _alarm) if begin.audit else None
        self._credentials = Credentials(
            folder / f"{begin.node}.pem",
            folder / f"{begin.node}.key",
            folder / f"{begin.node}.ca.pem",
        )
        self._endpoint = Endpoint(
            self._me,
            self._credentials,
            self._codec,
            self._deliver,
            limits=Limits(frame_length_max=begin.frame_length_max),
            audit=self._write_audit,
        )
        self._early: list[tuple[NodeId, Any, tuple[bytes, int]]] = []
        self._addresses = Directory([], [])
        self._encode = msgspec.msgpack.Encoder().encode

    def listen(self) -> int:
        return self._endpoint.listen(port=self._begin.port)

    def _deliver(self, peer: NodeId, message: Any, receipt: tuple[bytes, int]) -> None:
        if self._driver is None or not self._is_started:
            self._early.append((peer, message, receipt))
        else:
            self._driver.on_message(peer, message, receipt)

    async def run(self, hear: Any) -> int:
        while True:
            match await hear():
                case Directory() as directory:
                    self._take(directory)
                    if self._driver is None:
                        awaited = [NodeId(node) for node in directory.awaited]
                        await self._endpoint.connected(CONNECT_TIMEOUT_S, awaited)
                        self._driver = self._build()
                        self._tell(Ready())
                case Go() if self._driver is not None:
                    break
                case Stop():
                    return 0
        driver = self._driver
        self._start(driver)
        listener = asyncio.get_running_loop().create_task(self._obey(hear, driver))
        try:
            await driver.run()
        finally:
            listener.cancel()
        return 0

    def _take(self, directory: Directory) -> None:
        self._addresses = directory
        self._endpoint.update_peers(
            Peer(
                node=NodeId(address.node),
                role=address.role,
                port=address.port,
                verify_key=address.verify_key,
            )
            for address in directory.addresses
        )

    async def _obey(self, hear: Any, driver: Driver) -> None:
        while True:
            match await hear():
                case Directory() as directory:
                    self._take(directory)
                case Rotate():
                    self._endpoint.rotate(self._credentials)
                case Post(body):
                    driver.post(Received(SUPERVISOR, self._codec.decode(body)))
                case Stop():
                    await self._endpoint.drained(2.0)
                    driver.stop()
                    return

    def _build(self) -> Driver:
        """Make the machine: it may compile or read much, so this comes before the start."""
        begin, addresses = self._begin, self._addresses.addresses
        machine = build_machine(
            begin.factory,
            begin.arguments,
            me=lambda: self._me,
            records=lambda: self._records,
            randomness=SystemRandomness,
            peers=lambda: tuple(sorted(NodeId(address.node) for address in addresses)),
            signer=lambda: Signer.load(Path(begin.folder) / f"{begin.node}.seed"),
            verify_keys=lambda: {NodeId(address.node): address.verify_key for address in addresses},
        )
        driver = Driver(
            self._me,
            machine,
            self._endpoint,
            on_decide=self._decided,
            journal=self._journal,
            compute_threads=begin.compute_threads,
        )
        self._journal = None  # The driver closes it.
        return driver

    def _start(self, driver: Driver) -> None:
        self._is_started = True
        self._began = time.perf_counter()
        self._write_audit("started", records=len(self._records))
        driver.start()
        for early in self._early:
            driver.on_message(*early)
        self._early.clear()
        self._endpoint.after_reading()

    def _decided(self, outcome: Any) -> None:
        self._write_audit("decided")
        self._tell(Decided(self._encode(outcome), time.perf_counter() - self._began))

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

    async def close(self) -> None:
        await self._endpoint.close()
        if self._driver is not None and not self._is_started:
            self._driver.stop()
            await self._driver.run()
        if self._audit is not None:
            self._audit.close()
        if self._journal is not None:
            self._journal.close()

    def finished(self) -> Finished:
        metrics = self._endpoint.metrics
        return Finished(
            metrics.octets_sent,
            metrics.octets_received,
            metrics.frames_sent,
            _peak_memory(),
        )


def _alarm(text: str) -> None:
    logging.getLogger("veilgrid.node.audit").critical("ALARM: %s", text)


def _peak_memory() -> int:
    """Return the largest resident size of this process, in octets.

    ``getrusage`` alone would report the parent's size if that was larger before exec.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
