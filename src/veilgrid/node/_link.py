"""Links and the connections they use: the inside of the transport [node 4].

A :class:`Link` is what one endpoint knows of one peer and survives the connections it uses; a
:class:`Connection` is one authenticated TLS connection.
"""

from __future__ import annotations

import contextlib
import ssl
from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec

from veilgrid.errors import FrameTooLarge, HandshakeFailed, TransportError
from veilgrid.node import wire
from veilgrid.node.certificate import Identity

if TYPE_CHECKING:
    from veilgrid.node.transport import Endpoint

_RECORD: Final = 16384
_BATCH: Final = 1 << 20
"""Octets moved in one direction before the other connections get their turn."""
_HELLO_LENGTH_MAX: Final = 256
_NOBODY: Final = bytes(16)


Receipt = tuple[bytes, int]
"""Which life of the peer, and which of its frames: what an acknowledgement refers to."""


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """First frame on a connection: which life of me speaks, what I have of which life of you."""

    incarnation: bytes
    peer_incarnation: bytes
    delivered: int


_hello_decoder = msgspec.msgpack.Decoder(Hello)


class Bucket:
    """A token bucket; ``take`` returns how many seconds too early it was asked."""

    __slots__ = ("_burst", "_level", "_rate", "_then")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate, self._burst, self._level, self._then = rate, burst, burst, now

    def take(self, amount: float, now: float) -> float:
        self._level = min(self._burst, self._level + (now - self._then) * self._rate) - amount
        self._then = now
        return max(0.0, -self._level / self._rate)

    def admits(self, now: float) -> bool:
        """Take one token if there is one; asking in vain costs nothing."""
        self.take(0, now)
        if self._level < 1:
            return False
        self._level -= 1
        return True

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
        self.connection: Connection | None = None
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

    def resume(self, mine: bytes, hello: Hello) -> None:
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


class Connection:
    """One authenticated TLS connection: reads frames, writes what its link holds."""

    def __init__(self, endpoint: Endpoint, sock: ssl.SSLSocket, identity: Identity) -> None:
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
        self._octet_bucket = Bucket(
            limits.receive_octets_per_s, 2 * limits.receive_octets_per_s, now
        )
        self._frame_bucket = Bucket(
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
