"""What crosses a wire: frames, and the codec that fills them [node 2].

A frame is a fixed header of 22 octets and a body. Numbers are big-endian:

    length u32 | version u8 | kind u8 | sequence u64 | acknowledged u64 | body

``length`` counts the octets after itself. The body of a data frame is one msgpack-encoded tagged
Struct; large payloads travel in ``bytes`` or ``memoryview`` fields and are not copied on arrival
when the field is a ``memoryview``. This module does no I/O.
"""

import struct
import types
import typing
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import msgspec

from veilgrid.errors import FrameTooLarge, SetupError, TransportError, invariant

VERSION: Final = 1
HEADER: Final = struct.Struct(">IBBQQ")
HEADER_LENGTH: Final = HEADER.size
FRAME_LENGTH_MAX: Final = 256 << 20
"""Default bound of one frame, header included."""

HELLO: Final = 1
DATA: Final = 2
ACKNOWLEDGE: Final = 3
HEARTBEAT: Final = 4
GOODBYE: Final = 5
KINDS: Final = frozenset({HELLO, DATA, ACKNOWLEDGE, HEARTBEAT, GOODBYE})

_SCRATCH_LENGTH: Final = 1 << 18
_OUTSIDE_BODY: Final = HEADER_LENGTH - 4


class MalformedFrame(TransportError):
    """A peer sent octets that are not a frame or not a known message."""


class Frame(NamedTuple):
    """One frame as it arrived."""

    kind: int
    sequence: int
    acknowledged: int
    body: bytes | bytearray


class Codec:
    """Encode and decode the messages of one protocol and refuse everything else.

    Parameters
    ----------
    messages
        The tagged, frozen Structs that may appear: a union, one class or several of either.

    Raises
    ------
    SetupError
        A class is not a tagged, frozen Struct, or two share a tag.
    """

    __slots__ = ("_decode", "_encode", "types")

    def __init__(self, messages: Any) -> None:
        self.types = _members(messages)
        tags: dict[Any, type] = {}
        for member in self.types:
            settings = getattr(member, "__struct_config__", None)
            if settings is None or settings.tag is None or not settings.frozen:
                raise SetupError(f"{member!r} must be a msgspec.Struct(frozen=True, tag=True)")
            if settings.tag in tags:
                raise SetupError(f"{member!r} and {tags[settings.tag]!r} share a tag")
            tags[settings.tag] = member
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(typing.Union[self.types]).decode  # noqa: UP007

    def encode(self, message: Any) -> bytes:
        """Return the body of ``message``; a wrong type is a bug of the sender."""
        invariant(isinstance(message, self.types), "only registered messages are sent")
        return self._encode(message)

    def decode(self, body: bytes | bytearray | memoryview) -> Any:
        """Return the message in ``body``.

        Raises
        ------
        MalformedFrame
            The octets are no registered message. The text repeats nothing of what was sent.
        """
        try:
            return self._decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise MalformedFrame(
                f"a body of {len(body)} octets is no known message; do both sides run this version?"
            ) from None


def _members(messages: Any) -> tuple[type, ...]:
    if isinstance(messages, types.UnionType) or typing.get_origin(messages) is typing.Union:
        return tuple(member for part in typing.get_args(messages) for member in _members(part))
    if isinstance(messages, type):
        return (messages,)
    if isinstance(messages, Iterable):
        return tuple(dict.fromkeys(member for part in messages for member in _members(part)))
    raise SetupError(f"{messages!r} is neither a message type nor a union of them")


def pack_header(kind: int, body_length: int, sequence: int = 0, acknowledged: int = 0) -> bytes:
    """Return the header of a frame whose body has ``body_length`` octets."""
    return HEADER.pack(body_length + _OUTSIDE_BODY, VERSION, kind, sequence, acknowledged)


class FrameReader:
    """Cut a stream of octets into frames without copying the large ones.

    Ask for :meth:`buffer`, let the socket write there, then call :meth:`advance`.

    Parameters
    ----------
    length_max : octets
        A longer frame raises :class:`FrameTooLarge` as soon as its header is here; nothing is
        allocated for it.
    """

    __slots__ = ("_body", "_fill", "_filled", "_header", "_scratch", "_view", "length_max")

    def __init__(self, length_max: int = FRAME_LENGTH_MAX) -> None:
        self.length_max = length_max
        self._scratch = bytearray(_SCRATCH_LENGTH)
        self._view = memoryview(self._scratch)
        self._fill = 0
        self._body: bytearray | None = None
        self._filled = 0
        self._header = (0, 0, 0)

    def buffer(self) -> memoryview:
        """Return where the next octets belong; never empty."""
        if self._body is not None:
            return memoryview(self._body)[self._filled :]
        return self._view[self._fill :]

    def advance(self, count: int) -> list[Frame]:
        """Take note of ``count`` octets written to :meth:`buffer`; return complete frames.

        Raises
        ------
        FrameTooLarge
            A frame exceeds ``length_max``.
        MalformedFrame
            The version or the kind is unknown.
        """
        if self._body is not None:
            self._filled += count
            if self._filled < len(self._body):
                return []
            frame = Frame(*self._header, self._body)
            self._body = None
            return [frame]
        self._fill += count
        return self._cut()

    def _cut(self) -> list[Frame]:
        frames: list[Frame] = []
        start, fill, view = 0, self._fill, self._view
        while fill - start >= HEADER_LENGTH:
            length, version, kind, sequence, acknowledged = HEADER.unpack_from(view, start)
            self._check(length, version, kind)
            stop = start + 4 + length
            body_start = start + HEADER_LENGTH
            if stop <= fill:
                frames.append(Frame(kind, sequence, acknowledged, bytes(view[body_start:stop])))
                start = stop
                continue
            if stop - start > _SCRATCH_LENGTH // 2:
                self._body = bytearray(stop - body_start)
                self._filled = fill - body_start
                self._body[: self._filled] = view[body_start:fill]
                self._header = (kind, sequence, acknowledged)
                start = fill
            break
        rest = fill - start
        if start and rest:
            self._scratch[:rest] = bytes(view[start:fill])
        self._fill = rest
        return frames

    def _check(self, length: int, version: int, kind: int) -> None:
        if version != VERSION:
            raise MalformedFrame(f"frame of version {version}, expected {VERSION}")
        if kind not in KINDS or length < _OUTSIDE_BODY:
            raise MalformedFrame(f"frame of unknown kind {kind} or impossible length {length}")
        if length + 4 > self.length_max:
            raise FrameTooLarge(f"frame of {length + 4} octets, at most {self.length_max} accepted")
