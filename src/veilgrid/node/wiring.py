"""How far apart the processes of a local deployment are [node 7.1].

On loopback nothing takes time. :class:`Relays` hold what passes between two processes for half a
round trip; :class:`~veilgrid.node.namespaces.Namespaces` give each process a network of its own.
"""

import asyncio
import contextlib
import selectors
import threading
from contextlib import AbstractContextManager
from typing import Protocol

from veilgrid.machine import NodeId

LOOPBACK_HOST = "127.0.0.1"
_CHUNK = 1 << 18
_START_TIMEOUT_S = 10.0


class Wiring(Protocol):
    """Where processes listen and how others reach them."""

    def host(self, node: NodeId) -> str:
        """Return the address at which a process listens."""
        ...

    def inside(self, node: NodeId) -> AbstractContextManager[None]:
        """Return the surroundings in which a process is started."""
        ...

    def reached(self, node: NodeId, port: int) -> tuple[str, int]:
        """Return host and port at which others dial a process that listens on ``port``."""
        ...


class Loopback:
    """All processes on one address, with nothing between them."""

    def host(self, node: NodeId) -> str:  # noqa: ARG002 - the same for all
        """Return the address of loopback."""
        return LOOPBACK_HOST

    def inside(self, node: NodeId) -> AbstractContextManager[None]:  # noqa: ARG002
        """Return surroundings that change nothing."""
        return contextlib.nullcontext()

    def reached(self, node: NodeId, port: int) -> tuple[str, int]:  # noqa: ARG002
        """Return where the process itself listens."""
        return LOOPBACK_HOST, port


class Relays(Loopback):
    """Loopback with a relay in front of each process, which holds octets for a while.

    Order is kept and nothing is lost, however much is on its way. A relay ends TCP on both sides,
    so what TCP itself does over a distance (it starts slowly) is not seen here. Use it as a
    context manager.

    Parameters
    ----------
    delay_s : >= 0
        One way.
    """

    what = "relays on loopback"

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        # Other selectors round waits up to a whole millisecond.
        self._loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
        self._thread = threading.Thread(target=self._loop.run_forever, name="relays")
        self._ports: dict[int, int] = {}
        self._servers: list[asyncio.Server] = []

    def __enter__(self) -> "Relays":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(_START_TIMEOUT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def reached(self, node: NodeId, port: int) -> tuple[str, int]:  # noqa: ARG002
        """Return where the relay of the process that listens on ``port`` does."""
        if port not in self._ports:
            opening = asyncio.run_coroutine_threadsafe(self._open(port), self._loop)
            self._ports[port] = opening.result(_START_TIMEOUT_S)
        return LOOPBACK_HOST, self._ports[port]

    def round_trip_s(self) -> float:
        """Return the round trip as it was asked for."""
        return 2.0 * self._delay_s

    async def _open(self, port: int) -> int:
        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                there = await asyncio.open_connection(LOOPBACK_HOST, port, limit=_CHUNK)
            except OSError:
                writer.close()  # As if the process itself had refused.
                return
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass_on(reader, there[1]))
                both.create_task(self._pass_on(there[0], writer))

        server = await asyncio.start_server(take, LOOPBACK_HOST, 0, limit=_CHUNK)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hand on what comes, each piece ``delay_s`` after it came, until it ends."""
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def hear() -> None:
            octets = b"?"
            while octets:
                try:
                    octets = await reader.read(_CHUNK)
                except ConnectionError:
                    octets = b""
                waiting.put_nowait((self._loop.time() + self._delay_s, octets))

        hearing = self._loop.create_task(hear())
        try:
            while True:
                due, octets = await waiting.get()
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                if not octets:
                    break
                writer.write(octets)
                await writer.drain()
        except ConnectionError:
            pass  # Who hung up hears nothing more; the other side learns it below.
        finally:
            hearing.cancel()
            writer.close()

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
