"""Every rule for SEV-SNP and Nitro, broken alone under a root that the test holds."""

import struct
from typing import Any

import cbor2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_platforms import (
    BOUND,
    CHIP,
    NOW_S,
    Enclave,
    Platform,
    certificate,
    chip,
    number,
)

from veilgrid.node.attest import amd, nitro
from veilgrid.node.attest.evidence import Evidence, Forged
from veilgrid.node.attest.policy import Policy
from veilgrid.node.attest.verify import examine

NONE = amd.Firmware(0, 0, 0, 0)


def reasons(platform: Platform | Enclave, evidence: Evidence, now_s: float = NOW_S) -> list[str]:
    try:
        if isinstance(platform, Platform):
            found = amd.inspect(evidence, now_s, NONE, platform.roots)
        else:
            found = nitro.inspect(evidence, now_s, platform.roots)
    except Forged as forged:
        return list(forged.problems)
    return list(found.problems)


def test_a_sound_platform_passes_under_its_own_root_only() -> None:
    """Whoever makes chips of his own is not AMD."""
    for platform in (Platform(), Enclave()):
        evidence = platform.evidence()
        assert reasons(platform, evidence) == []
        verdict = examine(evidence, Policy(), NOW_S, BOUND)
        assert verdict.claims is None
        assert "is not a pinned one" in verdict.problems[0]


WRONG_REPORTS = {
    "is of version 1": {"version": (0x00, struct.pack("<I", 1))},
    "is of version 4": {"version": (0x00, struct.pack("<I", 4))},
    "of kind 2": {"algorithm": (0x34, struct.pack("<I", 2))},
    "not signed by a chip's own key": {"flags": (0x48, struct.pack("<I", 1 << 2))},
    "privilege level 2": {"level": (0x30, struct.pack("<I", 2))},
    "migration agent": {"policy": (0x08, struct.pack("<Q", 0x70000))},
    "does not name its chip": {"chip": (0x1A0, bytes(64))},
    "names another chip": {"chip": (0x1A0, CHIP[:-1] + b"\0")},
    "other firmware": {"firmware": (0x180, bytes([3, 0, 0, 0, 0, 0, 8, 116]))},
}


@pytest.mark.parametrize("reason", list(WRONG_REPORTS))
def test_a_signed_report_that_breaks_a_rule_is_refused_for_it(reason: str) -> None:
    platform = Platform()
    (found,) = reasons(platform, platform.evidence(**WRONG_REPORTS[reason]))
    assert reason in found


@pytest.mark.parametrize("at", range(4))
def test_each_firmware_version_is_compared(at: int) -> None:
    """An old part of the firmware must not hide behind a new certificate."""
    octets = bytearray([3, 0, 0, 0, 0, 0, 8, 115])
    octets[(0, 1, 6, 7)[at]] += 1
    platform = Platform()
    (found,) = reasons(platform, platform.evidence(firmware=(0x180, bytes(octets))))
    assert "other firmware" in found
    minimum = amd.Firmware(*(1 + (3, 0, 8, 115)[at] if at == n else 0 for n in range(4)))
    assert amd.inspect(platform.evidence(), NOW_S, minimum, platform.roots).status == "OutOfDate"


def test_debug_is_read_from_the_guests_policy() -> None:
    platform = Platform()
    for bits, is_debug in ((0x30000, False), (0xB0000, True)):
        evidence = platform.evidence(policy=(0x08, struct.pack("<Q", bits)))
        assert amd.inspect(evidence, NOW_S, NONE, platform.roots).is_debug is is_debug


WRONG_CHAINS = [
    (Platform(chip=chip(x4=bytes(64))), "names another chip"),
    (Platform(chip=chip(x4=b"")), "names another chip"),
    (Platform(chip=chip(x2=b"\x16\x08Genoa-B0")), "not of the Milan generation"),
    (Platform(chip=chip(x3_8=b"")), "other firmware"),
    (Platform(chip=chip(x3_3=number(7))), "other firmware"),
    (Platform(ask=certificate("ask", "ark", is_authority=False)), "not one of an authority"),
    (Platform(ask=certificate("ask", "ark", signs=False)), "not one of an authority"),
    (Platform(ask=certificate("ask", "ark", plain=True)), "does not say that it is an authority"),
    (Platform(ask=certificate("ask", "ark", signer="other")), "AMD's intermediate was not signed"),
    (Platform(ask=certificate("ask", "other")), "AMD's intermediate was not signed"),
    (Platform(ark=certificate("ark", "ark", path_length=0)), "path of 0 authorities"),
    (Enclave(host=certificate("host", "aws", signs=False)), "not one of an authority"),
    (Enclave(host=certificate("host", "aws", signer="other")), "authority 1 was not signed"),
    (Enclave(aws=certificate("aws", "aws", path_length=0)), "path of 0 authorities"),
    (Enclave(signer="other"), "signature does not hold under the enclave's key"),
    (Enclave(header={1: -7}), "is not ES384"),
    (Enclave(header={}), "is not ES384"),
    (Enclave(unsigned={4: b"key"}), "that nobody signed"),
    (Enclave(unsigned=None), "that nobody signed"),
]


@pytest.mark.parametrize(("platform", "reason"), WRONG_CHAINS)
def test_a_chain_that_breaks_a_rule_is_refused_for_it(
    platform: Platform | Enclave, reason: str
) -> None:
    (found,) = reasons(platform, platform.evidence())
    assert reason in found


@pytest.mark.parametrize("platform", [Platform(), Enclave()])
@pytest.mark.parametrize(("days", "word"), [(-2, "is not valid before"), (2, "ended at")])
def test_every_certificate_of_a_chain_has_to_be_valid(
    platform: Platform | Enclave, days: int, word: str
) -> None:
    found = reasons(platform, platform.evidence(), NOW_S + days * 86_400)
    assert len(found) == 3
    assert all(word in one for one in found)


WRONG_DOCUMENTS: list[tuple[str, dict[str, Any]]] = [
    ("names no module", {"module_id": ""}),
    ("names no module", {"module_id": 3}),
    ("digest is not SHA384", {"digest": "SHA256"}),
    ("no sound time", {"timestamp": 0}),
    ("no sound time", {"timestamp": True}),
    ("no sound time", {"timestamp": 1 << 60}),
    ("no sound time", {"timestamp": 1.5}),
    ("no sound registers", {"pcrs": {}}),
    ("no sound registers", {"pcrs": ...}),
    ("no sound registers", {"pcrs": {1: bytes(48)}}),
    ("no sound registers", {"pcrs": {0: bytes(47)}}),
    ("no sound registers", {"pcrs": {0: bytes(48), 32: bytes(48)}}),
    ("no sound registers", {"pcrs": {0: bytes(48), "1": bytes(48)}}),
    ("no sound chain", {"cabundle": []}),
    ("no sound chain", {"cabundle": [b""] * 9}),
    ("no sound chain", {"cabundle": ["x"]}),
    ("no sound chain", {"certificate": None}),
    ("user_data is malformed", {"user_data": bytes(513)}),
    ("user_data is malformed", {"user_data": "text"}),
    ("nonce is malformed", {"nonce": bytes(513)}),
    ("public_key is malformed", {"public_key": bytes(1025)}),
]


@pytest.mark.parametrize(("reason", "changes"), WRONG_DOCUMENTS)
def test_a_signed_document_that_breaks_a_rule_is_refused_for_it(
    reason: str, changes: dict[str, Any]
) -> None:
    enclave = Enclave()
    (found,) = reasons(enclave, enclave.evidence(**changes))
    assert reason in found


def test_a_document_without_user_data_is_bound_to_nothing() -> None:
    enclave = Enclave()
    for value in (None, ...):
        found = nitro.inspect(enclave.evidence(user_data=value), NOW_S, enclave.roots)
        assert found.bound == b""


def test_a_tagged_document_is_the_same() -> None:
    """COSE allows its tag 18; other tags are none of it."""
    enclave = Enclave()
    evidence = enclave.evidence()
    message = cbor2.loads(evidence.statement)
    tagged = msgspec.structs.replace(evidence, statement=cbor2.dumps(cbor2.CBORTag(18, message)))
    assert reasons(enclave, tagged) == []
    for tag in (17, 98):
        wrong = cbor2.dumps(cbor2.CBORTag(tag, message))
        found = reasons(enclave, msgspec.structs.replace(evidence, statement=wrong))
        assert found == ["the document is no COSE_Sign1"], tag


@given(octets=st.binary(max_size=400), kind=st.sampled_from(["nitro", "sev-snp", "sgx", "tdx"]))
def test_any_octets_are_refused_with_a_reason(octets: bytes, kind: str) -> None:
    """A peer sends what it likes; only a reason comes of it, never another error."""
    for statement in (octets, octets.ljust(1184, b"\0"), cbor2.dumps([octets, {}, octets, octets])):
        evidence = Evidence(
            kind=kind,  # type: ignore[arg-type]
            statement=statement,
            certificates=(octets, octets, octets),
            collateral=octets.decode("latin-1") or "{}",
        )
        verdict = examine(evidence, Policy(), NOW_S, BOUND)
        assert verdict.claims is None
        assert verdict.problems


@given(at=st.integers(0, 3000), flip=st.integers(1, 255))
def test_a_changed_chain_is_refused_with_a_reason(at: int, flip: int) -> None:
    """Certificates with one wrong octet reach the deepest parts of the parser."""
    enclave = Enclave()
    octets = bytearray(enclave.evidence().statement)
    octets[at % len(octets)] ^= flip
    changed = Evidence(kind="nitro", statement=bytes(octets))
    assert reasons(enclave, changed), at % len(octets)
