"""Inside one process of a local deployment: obey the supervisor, drive the machine [node 7].

The supervisor talks over one end of a socket pair. When that closes, this process ends: nothing is
left behind when the supervisor dies.
"""

import asyncio
import contextlib
import gc
import logging
import resource
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from veilgrid.errors import VeilgridError
from veilgrid.machine import Machine, NodeId, Received
from veilgrid.node._control import (
    CONNECT_TIMEOUT_S,
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
    build_machine,
    framed,
    load_name,
)
from veilgrid.node.certificate import Credentials
from veilgrid.node.driver import run_guarded
from veilgrid.node.journal import Journal
from veilgrid.node.local import SUPERVISOR
from veilgrid.node.member import Member, alarm, until_fatal
from veilgrid.node.signing import AuditLog, load_signer
from veilgrid.node.transport import Limits, Peer
from veilgrid.node.wire import Codec
from veilgrid.secret import Secret, SystemRandomness

Hear = Callable[[], Awaitable[ToProcess]]


def main() -> None:
    """Run until the supervisor says stop; the exit code says how it went."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor, who ends us.
    control = socket.socket(fileno=int(sys.argv[1]))
    sys.exit(run_guarded(_serve(control)))


async def _serve(control: socket.socket) -> int:
    reader, writer = await asyncio.open_connection(sock=control)
    decoder = msgspec.msgpack.Decoder(ToProcess)

    async def hear() -> ToProcess:
        try:
            (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
            body = await reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            return Stop()  # The supervisor is gone.
        message: ToProcess = decoder.decode(body)
        return message

    def tell(message: Any) -> None:
        writer.write(framed(message))

    begin = await hear()
    if not isinstance(begin, Begin):
        return 0
    process = _Process(begin, tell)
    try:
        tell(Listening(process.member.listen(begin.host, begin.port)))
        return await until_fatal(process.run(hear))
    finally:
        await process.member.close()
        tell(process.finished())
        with contextlib.suppress(ConnectionError):  # The supervisor may be gone.
            await writer.drain()
        writer.close()


class _Process:
    """What the supervisor's messages mean for the member."""

    def __init__(self, begin: Begin, tell: Callable[[Any], None]) -> None:
        self._begin = begin
        self._tell = tell
        self._began = 0.0
        self._codec = Codec(load_name(begin.messages))
        self._addresses: list[Address] = []
        self._encode = msgspec.msgpack.Encoder().encode
        load_name(begin.factory)  # Import now, while the others do the same.
        journal = None
        if begin.records is not None:
            records = Codec(load_name(begin.records))
            key = Secret(begin.journal_key) if begin.journal_key else None
            journal = Journal.open(Path(begin.journal), records, key)
        folder = Path(begin.folder)
        self.member = Member(
            NodeId(begin.node),
            codec=self._codec,
            credentials=Credentials(
                folder / f"{begin.node}.pem",
                folder / f"{begin.node}.key",
                folder / f"{begin.node}.ca.pem",
            ),
            build=self._build,
            on_decide=self._decided,
            journal=journal,
            audit=AuditLog(Path(begin.audit), alarm) if begin.audit else None,
            limits=Limits(frame_length_max=begin.frame_length_max),
            compute_threads=begin.compute_threads,
        )

    async def run(self, hear: Hear) -> int:
        member = self.member
        while True:
            match await hear():
                case Directory() as directory:
                    self._take(directory)
                    if not member.is_built:
                        awaited = [NodeId(node) for node in directory.awaited]
                        await member.connected(CONNECT_TIMEOUT_S, awaited)
                        member.build()
                        gc.freeze()  # Modules and kernels stay: looking at them is in vain.
                        self._tell(Ready())
                case Go() if member.is_built:
                    break
                case Stop():
                    return 0
        self._began = time.perf_counter()
        obeying = asyncio.get_running_loop().create_task(self._obey(hear))
        try:
            await member.run()
        finally:
            obeying.cancel()
        return 0

    def _take(self, directory: Directory) -> None:
        self._addresses = directory.addresses
        self.member.update_peers(
            Peer(
                node=NodeId(address.node),
                role=address.role,
                host=address.host,
                port=address.port,
                verify_key=address.verify_key,
            )
            for address in directory.addresses
        )

    async def _obey(self, hear: Hear) -> None:
        try:
            while True:
                match await hear():
                    case Directory() as directory:
                        self._take(directory)
                    case Rotate():
                        self.member.rotate()
                    case Post(body):
                        self.member.post(Received(SUPERVISOR, self._codec.decode(body)))
                    case Stop():
                        await self.member.stop()
                        return
        except VeilgridError as error:
            self.member.fail(error)

    def _build(self, records: Sequence[Any]) -> Machine:
        begin = self._begin
        keys = {NodeId(address.node): address.verify_key for address in self._addresses}
        return build_machine(
            begin.factory,
            begin.arguments,
            me=lambda: NodeId(begin.node),
            records=lambda: records,
            randomness=SystemRandomness,
            peers=lambda: tuple(sorted(keys)),
            signer=lambda: load_signer(Path(begin.folder) / f"{begin.node}.seed"),
            verify_keys=lambda: keys,
        )

    def _decided(self, outcome: Any) -> None:
        self._tell(Decided(self._encode(outcome), time.perf_counter() - self._began))

    def finished(self) -> Finished:
        metrics = self.member.metrics
        return Finished(
            metrics.octets_sent,
            metrics.octets_received,
            metrics.frames_sent,
            _peak_memory(),
        )


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
