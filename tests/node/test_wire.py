"""Frames and the codec: what one version writes, the next one must read."""

import contextlib
import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from node_machines import MESSAGES, Added, Ping, Pong, Vote

from veilgrid.errors import FrameTooLarge, InvariantError, SetupError
from veilgrid.node import wire
from veilgrid.node.wire import Codec, Frame, FrameReader, MalformedFrame, pack_header
from veilgrid.secret import Secret

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "wire.json").read_text())
BY_NAME = {kind.__name__: kind for kind in (Added, Ping, Pong, Vote)}


def read_all(octets: bytes, pieces: list[int], length_max: int = 1 << 20) -> list[Frame]:
    reader, frames, position, turn = FrameReader(length_max), [], 0, 0
    while position < len(octets):
        view = reader.buffer()
        wanted = pieces[turn % len(pieces)] if pieces else len(octets)
        count = min(wanted, len(view), len(octets) - position)
        view[:count] = octets[position : position + count]
        frames += reader.advance(count)
        position, turn = position + count, turn + 1
    return frames


def decode_all(octets: bytes, length_max: int) -> list[object]:
    return [Codec(MESSAGES).decode(frame.body) for frame in read_all(octets, [], length_max)]


@pytest.mark.parametrize("vector", VECTORS["frames"], ids=lambda vector: vector["what"])
def test_a_frame_is_written_and_read_as_the_vectors_say(vector: dict) -> None:
    codec = Codec(MESSAGES)
    fields = {
        name: bytes.fromhex(value) if name == "payload" else value
        for name, value in vector["message"]["fields"].items()
    }
    message = BY_NAME[vector["message"]["type"]](**fields)
    body = codec.encode(message)
    frame = pack_header(vector["kind"], len(body), vector["sequence"], vector["acknowledged"])
    assert (frame + body).hex() == vector["octets"]
    [read] = read_all(bytes.fromhex(vector["octets"]), [])
    assert read[:3] == (vector["kind"], vector["sequence"], vector["acknowledged"])
    assert codec.decode(read.body) == message


@pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda vector: vector["what"])
def test_a_broken_frame_is_refused_as_the_vectors_say(vector: dict) -> None:
    expected = {"too large": FrameTooLarge, "malformed": MalformedFrame}[vector["error"]]
    with pytest.raises(expected):
        decode_all(bytes.fromhex(vector["octets"]), vector["length_max"])


lengths = st.one_of(
    st.integers(0, 300), st.sampled_from([16384, 131_050, 131_072, 262_144, 300_000])
)


@given(
    bodies=st.lists(st.tuples(lengths, st.integers(0, 2**64 - 1)), max_size=8),
    pieces=st.lists(st.one_of(st.integers(1, 40), st.integers(1, 100_000)), min_size=1, max_size=5),
)
def test_frames_survive_any_cut_of_the_stream(
    bodies: list[tuple[int, int]], pieces: list[int]
) -> None:
    """A reader that loses or joins octets at a boundary would corrupt a share silently."""
    if sum(length for length, _ in bodies) > 20_000:
        pieces = [piece + 5_000 for piece in pieces]
    sent = [
        Frame(wire.DATA, sequence, index, bytes([index + 1]) * length)
        for index, (length, sequence) in enumerate(bodies)
    ]
    octets = b"".join(
        pack_header(frame.kind, len(frame.body), frame.sequence, frame.acknowledged) + frame.body
        for frame in sent
    )
    assert read_all(octets, pieces) == sent


def test_a_frame_that_is_too_large_is_refused_from_its_header_alone() -> None:
    """Otherwise four octets of a stranger would make us allocate four gigabytes."""
    reader = FrameReader(1000)
    header = pack_header(wire.DATA, 2**31)
    reader.buffer()[: len(header)] = header
    with pytest.raises(FrameTooLarge, match="at most 1000"):
        reader.advance(len(header))


def test_a_large_payload_is_not_copied_when_its_field_is_a_view() -> None:
    codec = Codec(MESSAGES)
    body = bytearray(codec.encode(Pong(1, memoryview(b"x" * 100_000))))
    pong = codec.decode(body)
    body[-1] = ord("y")
    assert pong.payload[-1] == ord("y")


@given(octets=st.binary(max_size=200))
def test_no_octets_make_decoding_fail_otherwise_than_malformed(octets: bytes) -> None:
    codec = Codec(MESSAGES)
    with contextlib.suppress(MalformedFrame):
        assert isinstance(codec.decode(octets), codec.types)


def test_what_a_refused_frame_holds_is_not_repeated_in_the_error() -> None:
    body = msgspec.msgpack.encode({"type": "Vote", "round": "canary-41", "value": 1})
    with pytest.raises(MalformedFrame) as caught:
        Codec(MESSAGES).decode(body)
    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_only_tagged_frozen_structs_with_distinct_tags_may_travel() -> None:
    class Bare(msgspec.Struct, frozen=True):
        value: int

    class Soft(msgspec.Struct, tag=True):
        value: int

    class Impostor(msgspec.Struct, frozen=True, tag="Vote"):
        value: int

    for wrong in (Bare, Soft, int):
        with pytest.raises(SetupError, match=r"must be a msgspec\.Struct"):
            Codec(wrong)
    with pytest.raises(SetupError, match="share a tag"):
        Codec([Vote, Impostor])
    with pytest.raises(SetupError, match="neither a message type"):
        Codec(3)


def test_an_unregistered_message_or_a_secret_cannot_be_sent() -> None:
    class Leaky(msgspec.Struct, frozen=True, tag=True):
        value: Secret

    with pytest.raises(InvariantError):
        Codec(Vote).encode(Ping(1, b""))
    with pytest.raises(TypeError):
        Codec(Leaky).encode(Leaky(Secret(b"1234")))
