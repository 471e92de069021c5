"""Mutual TLS 1.3 over TCP between the processes of a deployment [node 4].

An :class:`Endpoint` holds one :class:`Link` for each peer. A link outlives its connections: frames
are numbered, kept until the peer has acknowledged them and sent again after a reconnect, so that
within one session (until either process restarts) each frame is delivered exactly once and in
order. The process with the smaller NodeId dials, unless the other one has no address.

Sockets are driven directly from the event loop's readiness callbacks: asyncio's own TLS
transport moved 76 MB/s in large writes here where this one moves above 1 GB/s [node 9].
"""

import asyncio
import contextlib
import logging
import random
import secrets
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from veilgrid.errors import (
    FrameTooLarge,
    HandshakeFailed,
    SetupError,
    TransportError,
    Unreachable,
    invariant,
)
from veilgrid.machine import NodeId
from veilgrid.node import wire
from veilgrid.node.certificate import Credentials, Identity, identity_of

_log = logging.getLogger("veilgrid.node.transport")
_jitter = random.SystemRandom()

_RECORD: Final = 16384
_BATCH: Final = 1 << 20
"""Octets moved in one direction before the other connections get their turn."""
_HELLO_LENGTH_MAX: Final = 256
_NOBODY: Final = bytes(16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Where a process of the deployment is reached.

    Attributes
    ----------
    role
        What its certificate must say.
    port
        None for a process that only dials.
    verify_key : 32 octets, or empty
        If given, its certificate must vouch for the same ed25519 key.
    """

    node: NodeId
    role: str
    host: str = "127.0.0.1"
    port: int | None = None
    verify_key: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of an endpoint; every table and queue has one.

    Attributes
    ----------
    frame_length_max : octets
        Longest frame accepted or sent.
    queue_octets_max, queue_frames_max
        What waits for one peer, sent or not, until it is acknowledged; beyond it a message is
        dropped and counted.
    receive_octets_per_s, receive_frames_per_s
        Faster peers are read more slowly, not cut.
    accept_per_s, accept_burst
        New connections from one address; more are closed before the handshake.
    handshakes_max
        Handshakes under way at the same time.
    guests_max
        Connected processes that are admitted by role without being in the directory.
    """

    frame_length_max: int = wire.FRAME_LENGTH_MAX
    queue_octets_max: int = 1 << 30
    queue_frames_max: int = 1 << 17
    receive_octets_per_s: float = float(4 << 30)
    receive_frames_per_s: float = 500_000.0
    accept_per_s: float = 50.0
    accept_burst: int = 200
    handshakes_max: int = 64
    guests_max: int = 1024
    handshake_timeout_s: float = 10.0
    heartbeat_s: float = 2.0
    silence_max_s: float = 10.0
    backoff_min_s: float = 0.02
    backoff_max_s: float = 2.0


@dataclass(slots=True)
class Metrics:
    """Counters of one endpoint: numbers only, never content."""

    octets_sent: int = 0
    octets_received: int = 0
    frames_sent: int = 0
    frames_received: int = 0
    connections: int = 0
    handshakes_failed: int = 0
    refused: int = 0
    repeats_dropped: int = 0
    messages_dropped: int = 0
    malformed: int = 0
    too_large: int = 0
    throttled: int = 0


class _Hello(msgspec.Struct, frozen=True, array_like=True):
    """First frame on a connection: which life of me speaks, what I have of which life of you."""

    incarnation: bytes
    peer_incarnation: bytes
    delivered: int


_hello_decoder = msgspec.msgpack.Decoder(_Hello)


class _Bucket:
    """A token bucket; ``take`` returns how many seconds too early it was asked."""

    __slots__ = ("_burst", "_level", "_rate", "_then")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate, self._burst, self._level, self._then = rate, burst, burst, now

    def take(self, amount: float, now: float) -> float:
        self._level = min(self._burst, self._level + (now - self._then) * self._rate) - amount
        self._then = now
        return max(0.0, -self._level / self._rate)

    def is_full(self, now: float) -> bool:
        return self._level + (now - self._then) * self._rate >= self._burst


class Link:
    """What one endpoint knows of one peer; survives the connections it uses."""

    __slots__ = (
        "_first",
        "_position",
        "connection",
        "consumed",
        "delivered",
        "failure",
        "has_timer",
        "peer_incarnation",
        "queued_octets",
        "told",
        "unacknowledged",
    )

    def __init__(self) -> None:
        self.connection: _Connection | None = None
        self.peer_incarnation = _NOBODY
        self.unacknowledged: deque[bytes] = deque()
        self._first = 1  # Sequence of unacknowledged[0].
        self._position = 0  # Index there of the next frame to write.
        self.queued_octets = 0
        self.delivered = 0  # Last sequence handed to the driver.
        self.consumed = 0  # Last sequence whose step is done; this is what is acknowledged.
        self.told = 0  # Last acknowledgement that was written.
        self.has_timer = False  # An acknowledgement leaves soon.
        self.failure: TransportError | None = None

    @property
    def has_unsent(self) -> bool:
        return self._position < len(self.unacknowledged)

    def push(self, body: bytes) -> None:
        self.unacknowledged.append(body)
        self.queued_octets += len(body)

    def pull(self) -> tuple[int, bytes]:
        """Return sequence and body of the next frame to write."""
        index = self._position
        self._position += 1
        return self._first + index, self.unacknowledged[index]

    def acknowledge(self, sequence: int) -> None:
        """Forget frames up to ``sequence``.

        Raises
        ------
        MalformedFrame
            The peer acknowledges what was never sent.
        """
        if sequence >= self._first + self._position:
            raise wire.MalformedFrame("the peer acknowledges frames that were never sent")
        while self._first <= sequence:
            self.queued_octets -= len(self.unacknowledged.popleft())
            self._first += 1
            self._position -= 1

    def resume(self, mine: bytes, hello: _Hello) -> None:
        """Line up with a peer that has just said hello."""
        if hello.incarnation != self.peer_incarnation:
            self.peer_incarnation = hello.incarnation
            self.delivered = self.consumed = self.told = 0
        elif hello.peer_incarnation != mine and self._first > 1:
            raise wire.MalformedFrame("a hello older than what the peer has acknowledged")
        if hello.peer_incarnation == mine:
            position = hello.delivered + 1 - self._first
            if not 0 <= position <= len(self.unacknowledged):
                raise wire.MalformedFrame("the peer claims frames that were never sent")
            self._position = position
        else:
            self._first, self._position = 1, 0


class _Connection:
    """One authenticated TLS connection: reads frames, writes what its link holds."""

    def __init__(self, endpoint: "Endpoint", sock: ssl.SSLSocket, identity: Identity) -> None:
        self.identity = identity
        self.link: Link | None = None
        self.heard = endpoint.now()
        self._endpoint = endpoint
        self._loop = endpoint.loop
        self._socket = sock
        self._number = sock.fileno()
        self._reader = wire.FrameReader(_HELLO_LENGTH_MAX)
        self._chunks: deque[memoryview] = deque()
        self._is_writing = False
        self._pauses: set[str] = set()
        self.is_closed = False
        self.is_adopted = False
        self._octets_read = 0
        self._frames_read = 0
        limits, now = endpoint.limits, self.heard
        self._octet_bucket = _Bucket(
            limits.receive_octets_per_s, 2 * limits.receive_octets_per_s, now
        )
        self._frame_bucket = _Bucket(
            limits.receive_frames_per_s, 2 * limits.receive_frames_per_s, now
        )
        self._loop.add_reader(self._number, self.read)
        self._loop.call_soon(self.read)  # Frames may wait inside TLS already.

    def read(self) -> None:
        """Take what has arrived, hand complete frames on."""
        if self.is_closed or self._pauses:
            return
        before = self._octets_read
        try:
            self._read_on(before + _BATCH)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLWantWriteError:
            self._watch_writes()
        except FrameTooLarge as error:
            self._endpoint.metrics.too_large += 1
            self.close(str(error), error)
        except wire.MalformedFrame as error:
            self._endpoint.metrics.malformed += 1
            self.close(str(error), error)
        except OSError as error:
            failure = self._refusal() if isinstance(error, ssl.SSLError) else None
            self.close(f"reading failed ({type(error).__name__})", failure)
        if self._octets_read > before:
            self.heard = self._endpoint.now()
            self._endpoint.metrics.octets_received += self._octets_read - before
            self._throttle(self._octets_read - before)
        self._endpoint.after_reading()

    def _read_on(self, octets_max: int) -> None:
        while self._octets_read < octets_max:
            count = self._socket.recv_into(self._reader.buffer())
            if count == 0:
                self.close("the peer closed the connection", self._refusal())
                return
            self._octets_read += count
            for frame in self._reader.advance(count):
                self._frames_read += 1
                self._take(frame)
                if self.is_closed:
                    return
            if count < _RECORD and not self._socket.pending():
                return
        self._loop.call_soon(self.read)  # More may wait inside TLS, where no selector sees it.

    def _refusal(self) -> HandshakeFailed | None:
        """Return what it means that the peer hung up: before its hello, a refusal.

        With TLS 1.3 the dialling side learns only here that its certificate was not accepted.
        """
        if self.is_adopted:
            return None
        return HandshakeFailed(
            f"{self.identity.node} refused this process; does its directory name us, and is our "
            "certificate of the same authority and within its validity?"
        )

    def _take(self, frame: wire.Frame) -> None:
        endpoint, link = self._endpoint, self.link
        if link is None:
            if frame.kind != wire.HELLO:
                raise wire.MalformedFrame("the first frame must be a hello")
            try:
                hello = _hello_decoder.decode(frame.body)
            except msgspec.DecodeError:
                raise wire.MalformedFrame("a hello that cannot be read") from None
            self._reader.length_max = endpoint.limits.frame_length_max
            endpoint.adopt(self, hello)
            return
        endpoint.metrics.frames_received += 1
        if frame.acknowledged:
            link.acknowledge(frame.acknowledged)
        if frame.kind == wire.DATA:
            if frame.sequence == link.delivered + 1:
                message = endpoint.codec.decode(frame.body)
                link.delivered += 1
                receipt = (link.peer_incarnation, link.delivered)
                endpoint.deliver(self.identity.node, message, receipt)
            elif frame.sequence <= link.delivered:
                endpoint.metrics.repeats_dropped += 1
            else:
                raise wire.MalformedFrame("a gap in the sequence of frames")
        elif frame.kind == wire.GOODBYE:
            self.close("the peer said goodbye")
        elif frame.kind == wire.HELLO:
            raise wire.MalformedFrame("a second hello")

    def _throttle(self, octets: int) -> None:
        frame_count, self._frames_read = self._frames_read, 0
        wait = max(
            self._octet_bucket.take(octets, self.heard),
            self._frame_bucket.take(frame_count, self.heard),
        )
        if wait > 0.001:
            self._endpoint.metrics.throttled += 1
            self.pause("rate")
            self._loop.call_later(wait, self.resume, "rate")

    def pause(self, why: str) -> None:
        """Stop reading; the peer's TCP window fills and slows it down."""
        if not self.is_closed:
            if not self._pauses:
                self._loop.remove_reader(self._number)
            self._pauses.add(why)

    def resume(self, why: str) -> None:
        """Read again, unless there is another reason not to."""
        if why in self._pauses and not self.is_closed:
            self._pauses.discard(why)
            if not self._pauses:
                self._loop.add_reader(self._number, self.read)
                self._loop.call_soon(self.read)

    def post(self, kind: int, body: bytes = b"") -> None:
        """Queue a frame that is not numbered."""
        link = self.link
        told = link.consumed if link is not None else 0
        self._chunks.append(memoryview(wire.pack_header(kind, len(body), 0, told) + body))
        if link is not None:
            link.told = told
        if not self._is_writing:
            self.write()

    def beat(self) -> None:
        """Show that we live, unless the peer is not reading anyway."""
        if self.link is not None and not self._chunks:
            self.post(wire.HEARTBEAT)

    def write(self) -> None:
        """Write until the socket is full or nothing is left."""
        if self.is_closed:
            return
        sent, chunks, send = 0, self._chunks, self._socket.send
        try:
            while sent < _BATCH:
                if not chunks and not self._fill():
                    break
                chunk = chunks[0]
                count = send(chunk)
                sent += count
                if count == len(chunk):
                    chunks.popleft()
                else:
                    chunks[0] = chunk[count:]
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass
        except OSError as error:
            self.close(f"writing failed ({type(error).__name__})")
            return
        self._endpoint.metrics.octets_sent += sent
        if chunks or (self.link is not None and self.link.has_unsent):
            self._watch_writes()
        elif self._is_writing:
            self._is_writing = False
            self._loop.remove_writer(self._number)

    def _watch_writes(self) -> None:
        if not self._is_writing:
            self._is_writing = True
            self._loop.add_writer(self._number, self.write)

    def _fill(self) -> bool:
        """Turn the next frames of the link into chunks; small ones share a TLS record."""
        link = self.link
        if link is None or not link.has_unsent:
            return False
        told = link.consumed
        batch = bytearray()
        while link.has_unsent and len(batch) < _RECORD:
            sequence, body = link.pull()
            self._endpoint.metrics.frames_sent += 1
            batch += wire.pack_header(wire.DATA, len(body), sequence, told)
            room = _RECORD - len(batch)
            if len(body) <= room:
                batch += body
                continue
            view = memoryview(body)
            room = max(room, 0)
            batch += view[:room]
            self._chunks.append(memoryview(batch))
            self._chunks.append(view[room:])
            batch = bytearray()
            break
        if batch:
            self._chunks.append(memoryview(batch))
        link.told = told
        return True

    def close(self, reason: str, failure: TransportError | None = None) -> None:
        """Give the socket back; the link lives on."""
        if self.is_closed:
            return
        self.is_closed = True
        if not self._pauses:
            self._loop.remove_reader(self._number)
        if self._is_writing:
            self._loop.remove_writer(self._number)
        with contextlib.suppress(OSError, ValueError):
            self._socket.unwrap()  # Sends close_notify; does not wait for the answer.
        self._socket.close()
        self._endpoint.lost(self, reason, failure)


def _settle(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)


Receipt = tuple[bytes, int]
"""Which life of the peer, and which of its frames: what an acknowledgement refers to."""

Deliver = Callable[[NodeId, Any, Receipt], None]


@dataclass(slots=True)
class _Dialler:
    """The task that keeps one link connected, and what it waits for."""

    task: "asyncio.Task[None]"
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class Endpoint:
    """All links of one process.

    Parameters
    ----------
    me
        Must equal the NodeId in this process's certificate.
    codec
        The messages of the protocol; anything else cuts the connection.
    deliver
        Called as ``deliver(peer, message, receipt)`` for each message, in order. The frame is
        acknowledged only after :meth:`acknowledge` of the receipt, so a step that was not
        carried out is sent again.
    guest_roles
        Roles admitted without being in the directory; they must dial.
    """

    def __init__(
        self,
        me: NodeId,
        credentials: Credentials,
        codec: wire.Codec,
        deliver: Deliver,
        *,
        peers: Iterable[Peer] = (),
        limits: Limits | None = None,
        guest_roles: frozenset[str] = frozenset(),
    ) -> None:
        self.me = me
        self.codec = codec
        self.deliver = deliver
        self.limits = limits or Limits()
        self.metrics = Metrics()
        self.loop = asyncio.get_running_loop()
        self.now = time.monotonic
        self.after_reading: Callable[[], None] = lambda: None
        self.port: int | None = None
        self._incarnation = secrets.token_bytes(16)
        self._guest_roles = guest_roles
        self._guests: list[NodeId] = []
        self._peers: dict[NodeId, Peer] = {}
        self._links: dict[NodeId, Link] = {}
        self._diallers: dict[NodeId, _Dialler] = {}
        self._connections: set[_Connection] = set()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._accept_buckets: dict[str, _Bucket] = {}
        self._listener: socket.socket | None = None
        self._dirty: set[Link] = set()
        self._changed = asyncio.Event()
        self._is_closing = False
        self._server_context = credentials.server_context()
        self._client_context = credentials.client_context()
        self._keeper = self.loop.call_later(self.limits.heartbeat_s, self._keep)
        self.update_peers(peers)

    # -- set up ----------------------------------------------------------------------------------

    def listen(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Accept connections; port 0 lets the operating system choose. Return the port."""
        invariant(self._listener is None, "an endpoint listens once")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(128)
        except OSError as error:
            listener.close()
            raise SetupError(
                f"cannot listen on {host} port {port} ({error.strerror}); choose a free port"
            ) from None
        listener.setblocking(False)
        self._listener = listener
        self.port = int(listener.getsockname()[1])
        self._open()
        return self.port

    def _open(self) -> None:
        """Accept as soon as somebody is expected; until then callers wait in the backlog."""
        if self._listener is not None and (self._peers or self._guest_roles):
            self.loop.add_reader(self._listener.fileno(), self._accept)

    def update_peers(self, peers: Iterable[Peer]) -> None:
        """Take a new directory: dial who is new, drop who is gone, follow who has moved."""
        wanted = {peer.node: peer for peer in peers if peer.node != self.me}
        for node in self._peers.keys() - wanted.keys():
            if (dialler := self._diallers.pop(node, None)) is not None:
                dialler.task.cancel()
            link = self._links.pop(node)
            if link.connection is not None:
                link.connection.close("no longer in the directory")
        for node, peer in wanted.items():
            self._peers[node] = peer
            self._links.setdefault(node, Link())
            if not self._dials(peer):
                continue
            if node in self._diallers:
                self._diallers[node].wake.set()
            else:
                self._diallers[node] = _Dialler(self.loop.create_task(self._dial(node)))
        self._peers = wanted
        self._open()

    def _dials(self, peer: Peer) -> bool:
        if peer.port is None:
            return False
        return self._listener is None or self.me < peer.node

    def rotate(self, credentials: Credentials) -> None:
        """Use new keys from now on; every link reconnects, and loses and repeats nothing."""
        server, client = credentials.server_context(), credentials.client_context()
        self._server_context, self._client_context = server, client
        for connection in list(self._connections):
            connection.close("keys are rotated")

    async def connected(self, timeout_s: float) -> None:
        """Wait until every peer of the directory is connected.

        Raises
        ------
        HandshakeFailed
            A peer could not prove who it is, or refused us, and did not recover in time.
        Unreachable
            A peer did not answer in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while missing := self.missing():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            for node in missing:
                failure = self._links[node].failure
                if isinstance(failure, HandshakeFailed):
                    raise failure from None
            raise Unreachable(
                f"no connection to {', '.join(missing)} within {timeout_s:g} s; "
                "are they running, and are their addresses right?"
            ) from None

    def missing(self) -> list[NodeId]:
        """Return the peers of the directory that are not connected now."""
        return [node for node in self._peers if self._links[node].connection is None]

    # -- sending ---------------------------------------------------------------------------------

    def send(self, to: NodeId, message: Any) -> None:
        """Queue ``message``; it leaves at the next :meth:`flush`.

        A peer that is unknown, or whose queue is full, gets nothing; that is counted.

        Raises
        ------
        FrameTooLarge
            The message exceeds the limit of this endpoint.
        """
        body = self.codec.encode(message)
        limits, link = self.limits, self._links.get(to)
        if len(body) + wire.HEADER_LENGTH > limits.frame_length_max:
            raise FrameTooLarge(
                f"a {type(message).__name__} of {len(body)} octets, at most "
                f"{limits.frame_length_max} may be sent; split it or raise frame_length_max"
            )
        if (
            link is None
            or link.queued_octets + len(body) > limits.queue_octets_max
            or len(link.unacknowledged) >= limits.queue_frames_max
        ):
            self.metrics.messages_dropped += 1
            return
        link.push(body)
        self._dirty.add(link)

    def acknowledge(self, peer: NodeId, receipt: Receipt) -> None:
        """Say that the step caused by the frame of ``receipt`` is carried out."""
        link = self._links.get(peer)
        if link is None or link.peer_incarnation != receipt[0]:
            return  # The peer has restarted or left in the meantime.
        link.consumed = max(link.consumed, receipt[1])
        if link.consumed - link.told >= 64:
            self._dirty.add(link)
        elif not link.has_timer:
            link.has_timer = True
            self.loop.call_later(0.02, self._acknowledge_late, link)

    def _acknowledge_late(self, link: Link) -> None:
        link.has_timer = False
        if link.connection is not None and link.told < link.consumed:
            link.connection.post(wire.ACKNOWLEDGE)

    def flush(self) -> None:
        """Write what was queued."""
        while self._dirty:
            link = self._dirty.pop()
            if link.connection is None:
                continue
            if link.has_unsent:
                link.connection.write()
            elif link.consumed > link.told:
                link.connection.post(wire.ACKNOWLEDGE)

    async def drained(self, timeout_s: float) -> bool:
        """Wait until connected peers have acknowledged everything; False if time ran out."""
        self.flush()
        deadline = self.now() + timeout_s
        while any(link.connection and link.unacknowledged for link in self._links.values()):
            if self.now() > deadline:
                return False
            await asyncio.sleep(0.005)
        return True

    def pause(self) -> None:
        """Read nothing until :meth:`resume`: the driver is behind."""
        for connection in self._connections:
            connection.pause("driver")

    def resume(self) -> None:
        """Read again."""
        for connection in list(self._connections):
            connection.resume("driver")

    async def close(self) -> None:
        """Say goodbye, close every socket, end every task."""
        self._is_closing = True
        self._keeper.cancel()
        if self._listener is not None:
            self.loop.remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None
        tasks = [dialler.task for dialler in self._diallers.values()] + list(self._handshakes)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in list(self._connections):
            if connection.link is not None:
                connection.post(wire.GOODBYE)
            connection.close("this process ends")

    # -- connections -----------------------------------------------------------------------------

    def _accept(self) -> None:
        invariant(self._listener is not None, "only a listener accepts")
        for _ in range(64):
            try:
                sock, address = self._listener.accept()  # type: ignore[union-attr]
            except OSError:
                return
            now = self.now()
            bucket = self._accept_buckets.get(address[0])
            if bucket is None:
                if len(self._accept_buckets) >= 4096:
                    self._accept_buckets = {
                        host: kept
                        for host, kept in self._accept_buckets.items()
                        if not kept.is_full(now)
                    }
                bucket = _Bucket(self.limits.accept_per_s, self.limits.accept_burst, now)
                self._accept_buckets[address[0]] = bucket
            if bucket.take(1, now) > 0 or len(self._handshakes) >= self.limits.handshakes_max:
                self.metrics.refused += 1
                sock.close()
                continue
            task = self.loop.create_task(self._welcome(sock))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    async def _welcome(self, sock: socket.socket) -> None:
        try:
            secured = await self._handshake(sock, self._server_context, is_server=True)
            try:
                identity = identity_of(secured.getpeercert())
                self._admit(identity)
            except HandshakeFailed:
                secured.close()
                raise
        except TransportError as error:
            self.metrics.handshakes_failed += 1
            _log.warning("connection refused: %s", error)
            return
        self._connect(secured, identity)

    def _admit(self, identity: Identity) -> None:
        """Raise :class:`HandshakeFailed` unless the holder may talk to us."""
        node, peer = identity.node, self._peers.get(identity.node)
        if peer is None:
            if identity.role not in self._guest_roles or node == self.me:
                raise HandshakeFailed(f"{node} is not in the directory")
            if node not in self._links:
                self._make_room_for(node)
                self._guests.append(node)
                self._links[node] = Link()
            return
        if identity.role != peer.role:
            raise HandshakeFailed(f"{node} has role {identity.role}, expected {peer.role}")
        if peer.verify_key and identity.verify_key != peer.verify_key:
            raise HandshakeFailed(f"{node} has another signature key than the directory says")

    def _make_room_for(self, node: NodeId) -> None:
        if len(self._guests) < self.limits.guests_max:
            return
        for guest in self._guests:
            if self._links[guest].connection is None:
                self._guests.remove(guest)
                del self._links[guest]
                return
        raise HandshakeFailed(f"no room for {node}: {len(self._guests)} guests already")

    async def _dial(self, node: NodeId) -> None:
        """Keep the link to ``node`` connected, with growing pauses between failures."""
        pause = self.limits.backoff_min_s
        while not self._is_closing:
            dialler, link, peer = self._diallers[node], self._links[node], self._peers[node]
            dialler.wake.clear()
            connection = None
            try:
                connection = await self._reach(peer)
            except TransportError as error:
                if isinstance(error, HandshakeFailed):
                    self.metrics.handshakes_failed += 1
                link.failure = error
                _log.info("cannot reach %s: %s", node, error)
            if connection is not None:
                while not connection.is_closed:
                    await dialler.wake.wait()
                    dialler.wake.clear()
                if connection.is_adopted:
                    pause = self.limits.backoff_min_s
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(dialler.wake.wait(), pause * _jitter.uniform(0.5, 1.0))
            pause = min(2 * pause, self.limits.backoff_max_s)

    async def _reach(self, peer: Peer) -> _Connection:
        sock = socket.socket(socket.AF_INET6 if ":" in peer.host else socket.AF_INET)
        sock.setblocking(False)
        try:
            async with asyncio.timeout(self.limits.handshake_timeout_s):
                await self.loop.sock_connect(sock, (peer.host, peer.port))
        except (OSError, TimeoutError) as error:
            sock.close()
            raise Unreachable(
                f"{peer.node} at {peer.host} port {peer.port} ({type(error).__name__})"
            ) from None
        except asyncio.CancelledError:
            sock.close()
            raise
        secured = await self._handshake(sock, self._client_context, is_server=False)
        try:
            identity = identity_of(secured.getpeercert())
            if identity.node != peer.node:
                raise HandshakeFailed(f"{identity.node} answers where {peer.node} was expected")
            self._admit(identity)
        except HandshakeFailed:
            secured.close()
            raise
        return self._connect(secured, identity)

    async def _handshake(
        self, sock: socket.socket, context: ssl.SSLContext, *, is_server: bool
    ) -> ssl.SSLSocket:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            secured = context.wrap_socket(
                sock, server_side=is_server, do_handshake_on_connect=False
            )
        except OSError as error:
            sock.close()
            raise Unreachable(f"connection lost before TLS ({type(error).__name__})") from None
        number = secured.fileno()
        try:
            async with asyncio.timeout(self.limits.handshake_timeout_s):
                while True:
                    try:
                        secured.do_handshake()
                        return secured
                    except ssl.SSLWantReadError:
                        await self._ready(number, self.loop.add_reader, self.loop.remove_reader)
                    except ssl.SSLWantWriteError:
                        await self._ready(number, self.loop.add_writer, self.loop.remove_writer)
        except (ssl.SSLError, ConnectionError) as error:
            secured.close()
            reason = getattr(error, "reason", None) or type(error).__name__
            raise HandshakeFailed(
                f"TLS handshake failed ({reason}); are both certificates of this deployment's "
                "authority and within their validity?"
            ) from None
        except (OSError, TimeoutError) as error:
            secured.close()
            raise Unreachable(f"TLS handshake ended early ({type(error).__name__})") from None
        except asyncio.CancelledError:
            secured.close()
            raise

    async def _ready(
        self, number: int, add: Callable[..., None], remove: Callable[[int], bool]
    ) -> None:
        waiter: asyncio.Future[None] = self.loop.create_future()
        add(number, _settle, waiter)
        try:
            await waiter
        finally:
            remove(number)

    def _connect(self, sock: ssl.SSLSocket, identity: Identity) -> _Connection:
        self.metrics.connections += 1
        connection = _Connection(self, sock, identity)
        self._connections.add(connection)
        link = self._links[identity.node]
        hello = _Hello(self._incarnation, link.peer_incarnation, link.delivered)
        connection.post(wire.HELLO, msgspec.msgpack.encode(hello))
        return connection

    def adopt(self, connection: _Connection, hello: _Hello) -> None:
        """Give the link of a peer that said hello its new connection."""
        node = connection.identity.node
        link = self._links.get(node)
        if link is None:
            connection.close("no longer in the directory")
            return
        former = link.connection
        link.connection = None
        if former is not None:
            former.link = None
            former.close("replaced by a newer connection")
        link.resume(self._incarnation, hello)
        link.failure = None
        link.connection, connection.link = connection, link
        connection.is_adopted = True
        self._changed.set()
        connection.write()

    def lost(self, connection: _Connection, reason: str, failure: TransportError | None) -> None:
        """Take note that a connection is closed."""
        node = connection.identity.node
        _log.info("connection to %s closed: %s", node, reason)
        self._connections.discard(connection)
        link = self._links.get(node)
        if link is not None:
            if failure is not None:
                link.failure = failure
                if isinstance(failure, HandshakeFailed):
                    self.metrics.handshakes_failed += 1
            if link.connection is connection:
                link.connection = None
        if (dialler := self._diallers.get(node)) is not None:
            dialler.wake.set()

    def _keep(self) -> None:
        """Heartbeat: show that we live, cut who does not."""
        now, limits = self.now(), self.limits
        for connection in list(self._connections):
            if now - connection.heard > limits.silence_max_s:
                connection.close("silent for too long")
            else:
                connection.beat()
        self._keeper = self.loop.call_later(limits.heartbeat_s, self._keep)
