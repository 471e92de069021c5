"""Machines and a baseline that ``python -m veilgrid.node`` measures with [node 9]."""

import asyncio
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from veilgrid.errors import invariant
from veilgrid.machine import Decide, Effect, Event, NodeId, Received, Send, TimerFired
from veilgrid.node.certificate import Authority, Credentials

ANSWERER: Final = NodeId("answerer")


class Part(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """What one process tells another in one round."""

    round: int
    payload: memoryview


class Task(msgspec.Struct, frozen=True):
    """How many rounds of how many octets to each peer."""

    rounds: int
    length: int
    is_answered: bool = True


MESSAGES = Part


class Exchange:
    """Each round everybody sends ``length`` octets to everybody else and waits for all."""

    def __init__(self, me: NodeId, peers: Sequence[NodeId], task: Task) -> None:
        self._others = [peer for peer in peers if peer != me]
        self._task = task
        self._payload = memoryview(bytes(task.length))
        self._round = 0
        self._heard: dict[int, int] = {}

    def handle(self, event: Event) -> list[Effect]:
        """Send the next round when everybody's part of this one is here."""
        match event:
            case TimerFired("start"):
                return self._say()
            case Received(_, Part(number)):
                self._heard[number] = self._heard.get(number, 0) + 1
        effects: list[Effect] = []
        while self._heard.get(self._round, 0) == len(self._others):
            del self._heard[self._round]
            self._round += 1
            if self._round == self._task.rounds:
                return [*effects, Decide(self._round)]
            effects += self._say()
        return effects

    def _say(self) -> list[Effect]:
        part = Part(self._round, self._payload)
        return [Send(peer, part) for peer in self._others]


class Stream:
    """Send all rounds at once to the answerer; done when it says that it has the last."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._payload = memoryview(bytes(task.length))

    def handle(self, event: Event) -> list[Effect]:
        """Send everything, then wait for one answer."""
        if event == TimerFired("start"):
            rounds = range(1, self._task.rounds + 1)
            return [Send(ANSWERER, Part(number, self._payload)) for number in rounds]
        return [Decide(self._task.rounds)]


class Answerer:
    """Answer every part, or only the last one."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def handle(self, event: Event) -> list[Effect]:
        """Send a part back."""
        match event:
            case TimerFired("start"):
                return [Decide(0)]
            case Received(sender, Part(number) as part):
                if self._task.is_answered:
                    return [Send(sender, part)]
                if number == self._task.rounds:
                    return [Send(sender, Part(number, memoryview(b"")))]
        return []


class Asker:
    """Send one part after the other to the answerer, each when the last was answered."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._payload = memoryview(bytes(task.length))

    def handle(self, event: Event) -> list[Effect]:
        """Send the next part, or decide."""
        number = event.message.round if isinstance(event, Received) else 0
        if number == self._task.rounds:
            return [Decide(number)]
        return [Send(ANSWERER, Part(number + 1, self._payload))]


def exchange(me: NodeId, peers: tuple[NodeId, ...], arguments: Task) -> Exchange:
    """Make an :class:`Exchange`."""
    return Exchange(me, peers, arguments)


def stream(arguments: Task) -> Stream:
    """Make a :class:`Stream`."""
    return Stream(arguments)


def answerer(arguments: Task) -> Answerer:
    """Make an :class:`Answerer`."""
    return Answerer(arguments)


def asker(arguments: Task) -> Asker:
    """Make an :class:`Asker`."""
    return Asker(arguments)


class Cost(NamedTuple):
    """What moving octets between two processes took.

    Attributes
    ----------
    seconds
        By the clock; other work on the machine counts.
    processor_seconds
        Of both processes together; other work hardly counts.
    """

    seconds: float
    processor_seconds: float


def asyncio_cost(octets: int, chunk: int) -> Cost:
    """Return what moving ``octets`` costs with asyncio's own TLS streams."""
    with tempfile.TemporaryDirectory() as folder:
        credentials = Authority.create().issue(Path(folder), ANSWERER, "peer")
        command = [
            sys.executable,
            "-c",
            "from veilgrid.node._measure import asyncio_sink; asyncio_sink()",
            folder,
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as sink:  # noqa: S603
            invariant(sink.stdout is not None, "the sink's output is a pipe")
            port = int(sink.stdout.readline())  # type: ignore[union-attr]
            mine = asyncio.run(_pour(credentials.client_context(), port, octets, chunk))
            theirs = float(sink.stdout.readline())  # type: ignore[union-attr]
    return Cost(mine.seconds, mine.processor_seconds + theirs)


async def _pour(context: ssl.SSLContext, port: int, octets: int, chunk: int) -> Cost:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname=""
    )
    payload = bytes(chunk)
    began, used = time.perf_counter(), time.process_time()
    writer.write(octets.to_bytes(8, "big"))
    for _ in range(octets // chunk):
        writer.write(payload)
        await writer.drain()
    await reader.readexactly(1)
    cost = Cost(time.perf_counter() - began, time.process_time() - used)
    writer.close()
    return cost


def asyncio_sink() -> None:
    """Be the receiving process of :func:`asyncio_cost`; print its port, then its cost."""
    folder = Path(sys.argv[1])
    credentials = Credentials(
        folder / f"{ANSWERER}.pem", folder / f"{ANSWERER}.key", folder / f"{ANSWERER}.ca.pem"
    )
    asyncio.run(_sink(credentials.server_context()))


async def _sink(context: ssl.SSLContext) -> None:
    done = asyncio.Event()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = int.from_bytes(await reader.readexactly(8), "big")
        used = time.process_time()
        while left > 0:
            left -= len(await reader.read(1 << 20))
        writer.write(b"k")
        await writer.drain()
        print(time.process_time() - used, flush=True)
        writer.close()
        done.set()

    server = await asyncio.start_server(take, "127.0.0.1", 0, ssl=context, limit=1 << 20)
    print(server.sockets[0].getsockname()[1], flush=True)
    await done.wait()
    server.close()
