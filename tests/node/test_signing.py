"""Signatures, transcripts and the audit log."""

import json
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import VerifyKey

from veilgrid.errors import InputError, InvariantError, SetupError
from veilgrid.machine import NodeId
from veilgrid.node.signing import (
    AuditLog,
    AuditUnwritable,
    Seal,
    Transcript,
    chained,
    contradicts,
    fresh_signer,
    holds,
    load_signer,
    read_audit,
    save_signer,
)
from veilgrid.secret import Secret
from veilgrid.signature import Signer, canonical, verify

SIGNER = Signer(Secret(bytes(range(32))))
A, B = NodeId("a"), NodeId("b")


@given(payload=st.binary(max_size=100), place=st.integers(0, 511))
def test_a_signature_holds_for_its_domain_and_payload_only(payload: bytes, place: int) -> None:
    """A vote of one protocol must not pass for a vote of another."""
    signature = SIGNER.sign("ledger/1/prepare", payload)
    assert verify(SIGNER.verify_key, "ledger/1/prepare", payload, signature)
    assert not verify(SIGNER.verify_key, "ledger/1/commit", payload, signature)
    assert not verify(SIGNER.verify_key, "ledger/1/prepare", payload + b"x", signature)
    assert not verify(fresh_signer().verify_key, "ledger/1/prepare", payload, signature)
    flipped = bytearray(signature)
    flipped[place // 8] ^= 1 << place % 8
    assert not verify(SIGNER.verify_key, "ledger/1/prepare", payload, bytes(flipped))


def test_what_is_signed_is_as_documented_and_an_independent_library_agrees() -> None:
    signed = canonical("d", b"payload")
    assert signed.startswith(b"veilgrid signature 1\x00\x00\x01d")
    assert len(signed) == 24 + 32
    VerifyKey(SIGNER.verify_key).verify(signed, SIGNER.sign("d", b"payload"))


def test_garbage_instead_of_a_signature_or_key_does_not_raise() -> None:
    for key, signature in ((b"", b""), (SIGNER.verify_key, b"x" * 63), (bytes(32), bytes(64))):
        assert not verify(key, "d", b"payload", signature)
    with pytest.raises(InvariantError):
        canonical("", b"")


def test_a_signature_key_is_kept_private_and_shown_nowhere(tmp_path: Path) -> None:
    save_signer(SIGNER, tmp_path / "seed")
    assert (tmp_path / "seed").stat().st_mode & 0o777 == 0o600
    assert load_signer(tmp_path / "seed").verify_key == SIGNER.verify_key
    assert bytes(range(32)).hex() not in repr(SIGNER) + repr(vars(type(SIGNER)))
    with pytest.raises(SetupError, match="cannot be read"):
        load_signer(tmp_path / "absent")
    (tmp_path / "seed").write_bytes(b"short")
    with pytest.raises(SetupError, match="32 octets"):
        load_signer(tmp_path / "seed")


def test_who_signs_two_histories_of_one_length_has_convicted_himself() -> None:
    """Evidence must convince a third party, and an honest keeper must never produce it."""
    one, other = Transcript("mpc/1", SIGNER), Transcript("mpc/1", SIGNER)
    assert one.note(A, B, b"truth") == chained(Transcript("mpc/1", SIGNER).head, A, B, b"truth")
    other.note(A, B, b"lie")
    first, second, key = one.seal(), other.seal(), SIGNER.verify_key
    assert holds(first, key, "mpc/1")
    assert contradicts(first, second, key, "mpc/1")
    assert not contradicts(first, first, key, "mpc/1")
    assert not contradicts(first, second, key, "mpc/2")
    forged = Seal(first.count, bytes(32), first.signature)
    assert not contradicts(first, forged, key, "mpc/1")
    one.note(B, A, b"more")
    assert not contradicts(first, one.seal(), key, "mpc/1")


def test_the_transcript_tells_who_spoke_to_whom() -> None:
    heads = {
        chained(bytes(32), NodeId(sender), NodeId(receiver), body)
        for sender, receiver, body in (("a", "b", b""), ("b", "a", b""), ("ab", "", b""))
    }
    assert len(heads) == 3


def test_a_hundred_signatures_are_signed_and_checked_within_a_second() -> None:
    """A party signs every round; this must not become its cost."""
    began = time.process_time()
    for number in range(100):
        payload = number.to_bytes(8, "big")
        assert verify(SIGNER.verify_key, "d", payload, SIGNER.sign("d", payload))
    assert time.process_time() - began < 1


def test_the_audit_log_continues_its_chain_after_a_restart(tmp_path: Path) -> None:
    path, alarms = tmp_path / "audit", []
    for life in range(3):
        log = AuditLog(path, alarms.append, lambda: 1)
        log.write("started", life=life, peer="p1")
        log.close()
    assert read_audit(path)[1] == 3
    assert alarms == []
    entry = json.loads(path.read_text().splitlines()[1].partition(" ")[2])
    assert entry == {"index": 1, "kind": "started", "life": 1, "peer": "p1", "time_ns": 1}


@pytest.mark.parametrize("change", ["drop", "edit", "swap", "repeat"])
def test_a_changed_audit_log_names_the_first_line_that_is_wrong(
    tmp_path: Path, change: str
) -> None:
    path = tmp_path / "audit"
    log = AuditLog(path, print, lambda: 1)
    for index in range(4):
        log.write("step", number=index)
    log.close()
    lines = path.read_text().splitlines()
    lines = {
        "drop": [lines[0], *lines[2:]],
        "edit": [lines[0], lines[1].replace('"number":1', '"number":9'), *lines[2:]],
        "swap": [lines[0], lines[2], lines[1], lines[3]],
        "repeat": [lines[0], lines[0], *lines[1:]],
    }[change]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match="line 2"):
        read_audit(path)


@contextmanager
def small_disk() -> Iterator[None]:
    """Let no file grow beyond 1000 octets; only inside, for the test's own report is a file too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_an_audit_log_that_cannot_be_written_raises_an_alarm(tmp_path: Path) -> None:
    """Silence is what an intruder wants."""
    alarms: list[str] = []
    log = AuditLog(tmp_path / "audit", alarms.append, lambda: 1)

    def fill() -> None:
        while True:
            log.write("step")

    with small_disk(), pytest.raises(AuditUnwritable, match="start again"):
        fill()
    assert len(alarms) == 1
    assert "cannot be written" in alarms[0]
    log.close()
    with pytest.raises(AuditUnwritable):
        AuditLog(tmp_path / "absent" / "audit", alarms.append)
    assert len(alarms) == 2
