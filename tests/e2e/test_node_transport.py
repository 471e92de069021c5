"""Links over real sockets and real TLS: nothing lost, nothing repeated, nobody unproven."""

import asyncio
import contextlib
import random
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
from node_machines import MESSAGES, Ping, Vote

from veilgrid.errors import FrameTooLarge, HandshakeFailed, SetupError, Unreachable
from veilgrid.machine import NodeId
from veilgrid.node import wire
from veilgrid.node.certificate import Authority, Credentials
from veilgrid.node.transport import Endpoint, Limits, Peer
from veilgrid.node.wire import Codec, pack_header

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")
AUTHORITY = Authority.create()
CODEC = Codec(MESSAGES)
FAST = {"backoff_min_s": 0.002, "backoff_max_s": 0.02}


class Proxy:
    """A network between two processes that can be cut, stalled or slow."""

    def __init__(self, target_port: int) -> None:
        self._target = target_port
        self._writers: set[asyncio.StreamWriter] = set()
        self._open = asyncio.Event()
        self._open.set()
        self.connections = 0
        self.port = 0

    async def __aenter__(self) -> "Proxy":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self._open.set()
        self.cut()
        await asyncio.sleep(0.05)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.add(far_writer)
            await asyncio.gather(self._pipe(reader, far_writer), self._pipe(far_reader, writer))
        for one in (writer, far_writer):
            self._writers.discard(one)
            one.close()

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while octets := await reader.read(65536):
                await self._open.wait()
                writer.write(octets)
                await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()

    def cut(self) -> None:
        """Reset every connection, as a pulled cable behind a router would."""
        for writer in self._writers:
            sock = writer.get_extra_info("socket")
            if sock is not None and sock.fileno() != -1:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    def stall(self) -> None:
        self._open.clear()

    def go_on(self) -> None:
        self._open.set()


class Node:
    """One endpoint and what it was given."""

    def __init__(self, name: NodeId, folder: Path, **settings: Any) -> None:
        self.received: list[tuple[NodeId, Any]] = []
        self.is_acknowledging = True
        role = settings.pop("role", "party")
        authority = settings.pop("authority", AUTHORITY)
        self.credentials = authority.issue(folder, name, role)
        self.endpoint = Endpoint(name, self.credentials, CODEC, self._take, **settings)
        self.endpoint.after_reading = self.endpoint.flush

    def _take(self, peer: NodeId, message: Any, receipt: tuple[bytes, int]) -> None:
        self.received.append((peer, message))
        if self.is_acknowledging:
            self.endpoint.acknowledge(peer, receipt)

    @property
    def numbers(self) -> list[int]:
        return [message.round for _, message in self.received]

    def say(self, to: NodeId, number: int) -> None:
        self.endpoint.send(to, Vote(number, 0))
        self.endpoint.flush()


@contextlib.asynccontextmanager
async def nodes(*made: Node) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for node in made:
            await node.endpoint.close()
        await asyncio.sleep(0)


def peer(name: NodeId, port: int | None = None, **more: Any) -> Peer:
    return Peer(node=name, role="party", port=port, **more)


async def pair(
    folder: Path, limits: Limits | None = None, proxied: Proxy | None = None
) -> tuple[Node, Node]:
    """Return two connected nodes; ``a`` dials."""
    one, other = Node(A, folder, limits=limits), Node(B, folder, limits=limits)
    port = other.endpoint.listen()
    one.endpoint.listen()
    other.endpoint.update_peers([peer(A, one.endpoint.port)])
    if proxied is not None:
        proxied._target, port = port, proxied.port
    one.endpoint.update_peers([peer(B, port)])
    await one.endpoint.connected(5)
    await other.endpoint.connected(5)
    return one, other


async def until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.002)


async def refusal(node: Node) -> HandshakeFailed:
    """Return why ``node`` is refused by its peers."""
    async with asyncio.timeout(10):
        while True:
            try:
                await node.endpoint.connected(0.02)
            except HandshakeFailed as error:
                return error
            except Unreachable:
                continue
            pytest.fail(f"{node.endpoint.me} was accepted")


def real(main: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await main

    asyncio.run(bounded())


def test_messages_arrive_in_order_both_ways_and_are_acknowledged(tmp_path: Path) -> None:
    async def main() -> None:
        one, other = await pair(tmp_path)
        async with nodes(one, other):
            for number in range(500):
                one.endpoint.send(B, Vote(number, 0))
                other.endpoint.send(A, Vote(-number, 0))
            assert await one.endpoint.drained(5)
            assert await other.endpoint.drained(5)
            assert other.numbers == list(range(500))
            assert one.numbers == [-number for number in range(500)]
            assert one.endpoint.metrics.octets_sent >= 500 * 22

    real(main())


@pytest.mark.parametrize("seed", range(3))
def test_cut_connections_lose_and_repeat_nothing(tmp_path: Path, seed: int) -> None:
    """A share added twice, or missing, is a wrong sum."""

    async def main() -> None:
        rng = random.Random(seed)
        async with Proxy(0) as proxy:
            one, other = await pair(tmp_path, Limits(**FAST), proxy)
            async with nodes(one, other):
                for number in range(600):
                    one.endpoint.send(B, Vote(number, 0))
                    one.endpoint.send(B, Ping(0, bytes(rng.randrange(40_000))))
                    one.endpoint.flush()
                    other.say(A, number)
                    if rng.random() < 0.05:
                        proxy.cut()
                    if rng.random() < 0.2:
                        await asyncio.sleep(rng.random() * 0.01)

                def votes(node: Node) -> list[int]:
                    return [m.round for _, m in node.received if isinstance(m, Vote)]

                await until(lambda: len(votes(one)) >= 600 and len(other.received) >= 1200)
                assert votes(one) == votes(other) == list(range(600))
                assert len(other.received) == 1200
                assert proxy.connections > 3

    real(main())


def test_keys_are_rotated_while_messages_flow(tmp_path: Path) -> None:
    """A deployment that must stop for new certificates will not get them."""

    async def main() -> None:
        one, other = await pair(tmp_path, Limits(**FAST))
        async with nodes(one, other):
            for number in range(400):
                one.say(B, number)
                other.say(A, number)
                if number % 100 == 50:
                    for node, name in ((one, A), (other, B)):
                        node.endpoint.rotate(AUTHORITY.issue(tmp_path, name, "party"))
                if number % 100 == 99:
                    await one.endpoint.connected(5)
                await asyncio.sleep(0)
            await until(lambda: len(one.received) >= 400 and len(other.received) >= 400)
            assert one.numbers == other.numbers == list(range(400))
            assert one.endpoint.metrics.connections >= 5

    real(main())


def test_a_frame_is_kept_until_its_step_is_done_and_given_to_the_next_life(
    tmp_path: Path,
) -> None:
    """What a process had received but not carried out when it died is not lost with it."""

    async def main() -> None:
        one, other = await pair(tmp_path, Limits(**FAST))
        async with nodes(one):
            one.say(B, 0)
            assert await one.endpoint.drained(5)
            other.is_acknowledging = False
            one.say(B, 1)
            one.say(B, 2)
            await until(lambda: len(other.received) == 3)
            port = other.endpoint.port
            await other.endpoint.close()
            again = Node(B, tmp_path, limits=Limits(**FAST), peers=[peer(A, one.endpoint.port)])
            again.endpoint.listen(port=port)
            async with nodes(again):
                await until(lambda: len(again.received) == 2)
                assert again.numbers == [1, 2]
                one.say(B, 3)
                again.say(A, 9)
                await until(lambda: again.numbers == [1, 2, 3] and one.numbers == [9])

    real(main())


def test_whoever_cannot_prove_who_he_is_is_refused_on_both_sides(tmp_path: Path) -> None:
    async def main() -> None:
        foreign = Authority.create()
        good = Node(B, tmp_path, peers=[peer(A, 1), peer(C, 1)])
        port = good.endpoint.listen()
        cases = [
            Node(A, tmp_path / "1", authority=foreign, peers=[peer(B, port)]),  # other authority
            Node(A, tmp_path / "2", role="site", peers=[peer(B, port)]),  # other role
            Node(NodeId("0"), tmp_path / "3", peers=[peer(B, port)]),  # not in the directory
            Node(A, tmp_path / "4", peers=[peer(NodeId("bb"), port)]),  # expects somebody else
            Node(A, tmp_path / "5", peers=[peer(B), peer(NodeId("bb"), port)]),  # exchanged
        ]
        async with nodes(good, *cases):
            for node in cases:
                await refusal(node)
            assert good.received == []
            assert good.endpoint.missing() == [A, C]
            assert good.endpoint.metrics.handshakes_failed >= 3
            assert "b answers where bb was expected" in str(await refusal(cases[-1]))

    real(main())


def test_a_peer_with_another_signature_key_than_announced_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        one = Node(A, tmp_path)
        other = Node(B, tmp_path, peers=[peer(A, 1)])
        port = other.endpoint.listen()
        one.endpoint.update_peers([peer(B, port, verify_key=bytes(32))])
        async with nodes(one, other):
            assert "another signature key" in str(await refusal(one))

    real(main())


def test_a_peer_that_is_not_there_is_named(tmp_path: Path) -> None:
    async def main() -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            one = Node(A, tmp_path, peers=[peer(B, unused.getsockname()[1])])
            async with nodes(one):
                with pytest.raises(Unreachable, match="no connection to b"):
                    await one.endpoint.connected(0.2)

    real(main())


def test_a_port_that_is_taken_is_an_error_of_the_set_up(tmp_path: Path) -> None:
    async def main() -> None:
        one, other = Node(A, tmp_path), Node(B, tmp_path)
        async with nodes(one, other):
            port = one.endpoint.listen()
            with pytest.raises(SetupError, match="choose a free port"):
                other.endpoint.listen(port=port)

    real(main())


async def raw(credentials: Credentials, port: int) -> tuple[Any, Any]:
    """Connect like a process that has keys but its own idea of the protocol."""
    context = credentials.client_context()
    return await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="")


def hello(incarnation: bytes, peer_incarnation: bytes = bytes(16), delivered: int = 0) -> bytes:
    body = msgspec.msgpack.encode((incarnation, peer_incarnation, delivered))
    return pack_header(wire.HELLO, len(body)) + body


def data(sequence: int, message: Any, acknowledged: int = 0) -> bytes:
    body = CODEC.encode(message)
    return pack_header(wire.DATA, len(body), sequence, acknowledged) + body


@pytest.mark.parametrize(
    ("what", "octets"),
    [
        ("data before hello", data(1, Vote(1, 1))),
        ("a second hello", hello(b"i" * 16) * 2),
        ("a gap in the sequence", hello(b"i" * 16) + data(2, Vote(1, 1))),
        ("acknowledging the future", hello(b"i" * 16) + data(1, Vote(1, 1), 7)),
        ("an unknown kind", hello(b"i" * 16) + b"\x00\x00\x00\x12\x01\x09" + bytes(16)),
        ("a body that is no message", hello(b"i" * 16) + pack_header(wire.DATA, 1, 1) + b"\xc1"),
        ("no hello at all", b"GET / HTTP/1.1\r\n\r\n" + bytes(100)),
        ("a huge hello is announced", pack_header(wire.HELLO, 10_000)),
        ("a huge hello", pack_header(wire.HELLO, 10_000) + bytes(10_000)),
    ],
)
def test_a_peer_that_breaks_the_rules_is_cut_and_the_machine_hears_nothing(
    tmp_path: Path, what: str, octets: bytes
) -> None:
    async def main() -> None:
        node = Node(B, tmp_path, peers=[peer(A)])
        port = node.endpoint.listen()
        liar = AUTHORITY.issue(tmp_path, A, "party")
        async with nodes(node):
            reader, writer = await raw(liar, port)
            writer.write(octets)
            with contextlib.suppress(ConnectionError):
                while await reader.read(1000):
                    pass
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()
            await until(lambda: node.endpoint.metrics.malformed + node.endpoint.metrics.too_large)
            assert all(message == Vote(1, 1) for _, message in node.received), what
            assert len(node.received) <= 1

    real(main())


def test_a_frame_that_is_sent_twice_is_delivered_once(tmp_path: Path) -> None:
    async def main() -> None:
        node = Node(B, tmp_path, peers=[peer(A)])
        port = node.endpoint.listen()
        async with nodes(node):
            reader, writer = await raw(AUTHORITY.issue(tmp_path, A, "party"), port)
            replay = data(1, Vote(1, 1)) + data(2, Vote(2, 2))
            writer.write(hello(b"i" * 16) + replay + replay + data(3, Vote(3, 3)))
            await until(lambda: len(node.received) >= 3)
            assert node.numbers == [1, 2, 3]
            assert node.endpoint.metrics.repeats_dropped == 2
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()
            del reader

    real(main())


def test_a_frame_above_the_limit_is_neither_sent_nor_accepted(tmp_path: Path) -> None:
    async def main() -> None:
        one = Node(A, tmp_path)
        other = Node(B, tmp_path, limits=Limits(frame_length_max=1000), peers=[peer(A)])
        one.endpoint.update_peers([peer(B, other.endpoint.listen())])
        async with nodes(one, other):
            await one.endpoint.connected(5)
            with pytest.raises(FrameTooLarge, match="split it"):
                other.endpoint.send(A, Ping(1, bytes(1000)))
            one.endpoint.send(B, Ping(1, bytes(100_000)))
            one.endpoint.flush()
            await until(lambda: other.endpoint.metrics.too_large > 0)
            assert other.received == []

    real(main())


def test_plain_tcp_old_tls_and_no_certificate_get_nowhere(tmp_path: Path) -> None:
    async def main() -> None:
        node = Node(B, tmp_path, peers=[peer(A)])
        port = node.endpoint.listen()
        old = AUTHORITY.issue(tmp_path, A, "party").client_context()
        old.minimum_version = ssl.TLSVersion.TLSv1_2
        nameless = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        nameless.check_hostname, nameless.verify_mode = False, ssl.CERT_NONE
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        async with nodes(node):
            for context in (None, old, nameless):
                name = None if context is None else ""
                with contextlib.suppress(ssl.SSLError, ConnectionError):
                    reader, writer = await asyncio.open_connection(
                        "127.0.0.1", port, ssl=context, server_hostname=name
                    )
                    writer.write(hello(b"i" * 16) + data(1, Vote(1, 1)))
                    await reader.read()
                    writer.close()
            await until(lambda: node.endpoint.metrics.handshakes_failed >= 3)
            assert node.received == []

    real(main())


def test_a_peer_that_does_not_read_fills_only_its_own_queue(tmp_path: Path) -> None:
    """One slow party must not take the memory or the time of the others."""

    async def main() -> None:
        async with Proxy(0) as proxy:
            limits = Limits(queue_octets_max=2_000_000, **FAST)
            one, other = await pair(tmp_path, limits, proxy)
            third = Node(C, tmp_path, peers=[peer(A, one.endpoint.port)])
            one.endpoint.update_peers([peer(B, proxy.port), peer(C)])
            async with nodes(one, other, third):
                await third.endpoint.connected(5)
                proxy.stall()
                for number in range(400):
                    one.endpoint.send(B, Ping(number, bytes(50_000)))
                    one.say(C, number)
                    await asyncio.sleep(0)
                await until(lambda: len(third.received) == 400)
                dropped = one.endpoint.metrics.messages_dropped
                assert dropped >= 300
                proxy.go_on()
                await until(lambda: len(other.received) == 400 - dropped)
                numbers = [message.number for _, message in other.received]
                assert numbers == list(range(400 - dropped))

    real(main())


def test_a_silent_connection_is_cut_and_made_anew(tmp_path: Path) -> None:
    async def main() -> None:
        async with Proxy(0) as proxy:
            limits = Limits(heartbeat_s=0.05, silence_max_s=0.25, **FAST)
            one, other = await pair(tmp_path, limits, proxy)
            async with nodes(one, other):
                await asyncio.sleep(0.5)
                assert proxy.connections == 1, "heartbeats keep an idle link alive"
                proxy.stall()
                one.say(B, 1)
                await until(lambda: proxy.connections >= 2)
                proxy.go_on()
                await until(lambda: other.numbers == [1])

    real(main())


def test_a_fast_peer_is_slowed_down_and_loses_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        one = Node(A, tmp_path)
        other = Node(B, tmp_path, limits=Limits(receive_frames_per_s=2000.0), peers=[peer(A)])
        one.endpoint.update_peers([peer(B, other.endpoint.listen())])
        async with nodes(one, other):
            await one.endpoint.connected(5)
            began = other.endpoint.now()
            for number in range(5000):
                one.endpoint.send(B, Vote(number, 0))
            one.endpoint.flush()
            await until(lambda: len(other.received) == 5000)
            assert other.endpoint.now() - began > 0.3
            assert other.endpoint.metrics.throttled > 0
            assert other.numbers == list(range(5000))

    real(main())


def test_a_flood_of_connections_is_closed_before_the_handshake_and_then_forgiven(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        limits = Limits(accept_per_s=20.0, accept_burst=5)
        node = Node(B, tmp_path, limits=limits, peers=[peer(A)])
        port = node.endpoint.listen()
        late = Node(A, tmp_path)
        async with nodes(node, late):
            sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
            await until(lambda: node.endpoint.metrics.refused >= 80)
            late.endpoint.update_peers([peer(B, port)])
            await late.endpoint.connected(10)
            for one in sockets:
                one.close()

    real(main())


def test_guests_are_admitted_by_role_up_to_a_number(tmp_path: Path) -> None:
    """Sites come and go; parties do not list them one by one."""

    async def main() -> None:
        party = Node(B, tmp_path, guest_roles=frozenset({"site"}), limits=Limits(guests_max=2))
        port = party.endpoint.listen()
        sites = [Node(NodeId(f"s{i}"), tmp_path, role="site") for i in range(3)]
        async with nodes(party, *sites):
            for site in sites[:2]:
                site.endpoint.update_peers([peer(B, port)])
                await site.endpoint.connected(5)
                site.say(B, 1)
            await until(lambda: len(party.received) == 2)
            party.say(NodeId("s0"), 5)
            await until(lambda: sites[0].numbers == [5])
            sites[2].endpoint.update_peers([peer(B, port)])
            await refusal(sites[2])
            await sites[0].endpoint.close()
            await sites[2].endpoint.connected(5)
            intruder = Node(C, tmp_path, peers=[peer(B, port)])
            async with nodes(intruder):
                await refusal(intruder)

    real(main())


def test_a_peer_that_leaves_the_directory_is_cut_off(tmp_path: Path) -> None:
    async def main() -> None:
        one, other = await pair(tmp_path, Limits(**FAST))
        async with nodes(one, other):
            other.endpoint.update_peers([])
            await until(lambda: one.endpoint.missing() == [B])
            one.say(B, 1)
            await refusal(one)
            assert other.received == []

    real(main())
