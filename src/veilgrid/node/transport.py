"""Mutual TLS 1.3 over TCP between the processes of a deployment [node 4].

An :class:`Endpoint` holds one :class:`Link` for each peer. A link outlives its connections: frames
are numbered, kept until the peer has acknowledged them and sent again after a reconnect, so that
within one session (until either process restarts) each frame is delivered exactly once and in
order. The process with the smaller NodeId dials, unless the other one has no address.

Sockets are driven directly from the event loop's readiness callbacks: asyncio's own TLS transport
takes half as much processor time again for each octet [node 9].
"""

import asyncio
import contextlib
import logging
import random
import secrets
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

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
from veilgrid.node._link import Bucket, Connection, Hello, Link, Receipt
from veilgrid.node.certificate import Credentials, Identity, identity_of

_log = logging.getLogger("veilgrid.node.transport")
_jitter = random.SystemRandom()
_ADDRESSES_MAX: Final = 4096


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
    silence_max_s: float = 30.0
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


def _settle(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)


Deliver = Callable[[NodeId, Any, Receipt], None]


@dataclass(slots=True)
class _Dialler:
    """The task that keeps one link connected, and what it waits for."""

    task: "asyncio.Task[None]"
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class Audit(Protocol):
    """Write one line of an audit log."""

    def __call__(self, kind: str, /, **fields: str | int | float | bool) -> None:
        """Append what happened."""
        ...


def _unwritten(_kind: str, /, **_fields: str | int | float | bool) -> None:
    """Keep no audit log."""


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
    audit
        Told who connected, who was refused and why a connection ended;
        :meth:`veilgrid.node.signing.AuditLog.write` fits.
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
        audit: Audit | None = None,
    ) -> None:
        self.me = me
        self.codec = codec
        self.deliver = deliver
        self.limits = limits or Limits()
        self.metrics = Metrics()
        self.loop = asyncio.get_running_loop()
        self.now = time.monotonic
        self.after_reading: Callable[[], None] = lambda: None
        self._audit = audit or _unwritten
        self._kept = self.now()
        self.port: int | None = None
        self._incarnation = secrets.token_bytes(16)
        self._guest_roles = guest_roles
        self._guests: list[NodeId] = []
        self._peers: dict[NodeId, Peer] = {}
        self._links: dict[NodeId, Link] = {}
        self._diallers: dict[NodeId, _Dialler] = {}
        self._connections: set[Connection] = set()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._accept_buckets: dict[str, Bucket] = {}
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
        for node in [node for node in self._diallers if not self._dials(self._peers[node])]:
            self._diallers.pop(node).task.cancel()  # If both dialled, they would displace links.
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

    async def connected(self, timeout_s: float, among: Iterable[NodeId] | None = None) -> None:
        """Wait until every peer of the directory, or of it those in ``among``, is connected.

        Raises
        ------
        HandshakeFailed
            A peer could not prove who it is, or refused us, and did not recover in time.
        Unreachable
            A peer did not answer in time.
        """
        awaited = set(self._peers if among is None else among)
        try:
            async with asyncio.timeout(timeout_s):
                while missing := [node for node in self.missing() if node in awaited]:
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
            if (
                not self._may_come(address[0])
                or len(self._handshakes) >= self.limits.handshakes_max
            ):
                self.metrics.refused += 1
                sock.close()
                continue
            task = self.loop.create_task(self._welcome(sock))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    def _may_come(self, address: str) -> bool:
        """Return whether ``address`` may connect once more now."""
        now, buckets = self.now(), self._accept_buckets
        if address not in buckets:
            if len(buckets) >= _ADDRESSES_MAX:
                kept = {host: one for host, one in buckets.items() if not one.is_full(now)}
                self._accept_buckets = buckets = kept
            if len(buckets) >= _ADDRESSES_MAX:
                return False
            buckets[address] = Bucket(self.limits.accept_per_s, self.limits.accept_burst, now)
        return buckets[address].admits(now)

    async def _welcome(self, sock: socket.socket) -> None:
        try:
            secured = await self._handshake(sock, self._server_context, is_server=True)
            try:
                identity = identity_of(secured.getpeercert())
                self._admit(identity)
            except HandshakeFailed:
                secured.close()
                raise
        except HandshakeFailed as error:
            self.metrics.handshakes_failed += 1
            self._audit("refused", reason=str(error))
            _log.warning("connection refused: %s", error)
            return
        except Unreachable as error:
            _log.info("a caller hung up: %s", error)
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

    async def _reach(self, peer: Peer) -> Connection:
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
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError, TimeoutError) as error:
            secured.close()
            raise Unreachable(f"TLS handshake ended early ({type(error).__name__})") from None
        except OSError as error:
            secured.close()
            reason = getattr(error, "reason", None) or type(error).__name__
            raise HandshakeFailed(
                f"TLS handshake failed ({reason}); are both certificates of this deployment's "
                "authority and within their validity?"
            ) from None
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

    def _connect(self, sock: ssl.SSLSocket, identity: Identity) -> Connection:
        self.metrics.connections += 1
        connection = Connection(self, sock, identity)
        self._connections.add(connection)
        link = self._links[identity.node]
        hello = Hello(self._incarnation, link.peer_incarnation, link.delivered)
        connection.post(wire.HELLO, msgspec.msgpack.encode(hello))
        return connection

    def adopt(self, connection: Connection, hello: Hello) -> None:
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
        self._audit("connected", peer=node, role=connection.identity.role)
        self._changed.set()
        connection.write()

    def lost(self, connection: Connection, reason: str, failure: TransportError | None) -> None:
        """Take note that a connection is closed."""
        node = connection.identity.node
        self._audit("disconnected", peer=node, reason=reason)
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
        """Heartbeat: show that we live, cut who does not.

        After a long step of our own nothing was read, so nobody is silent yet.
        """
        now, limits = self.now(), self.limits
        was_busy = now - self._kept > 2 * limits.heartbeat_s
        self._kept = now
        for connection in list(self._connections):
            if now - connection.heard > limits.silence_max_s and not was_busy:
                connection.close("silent for too long")
            else:
                connection.beat()
        self._keeper = self.loop.call_later(limits.heartbeat_s, self._keep)
