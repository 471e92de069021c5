"""Attestation by software: never hardware, refused in production, and its secrets stay inside."""

import logging
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veilgrid.errors import InputError, InvariantError, SetupError
from veilgrid.mpc.dealer import check_dealer
from veilgrid.mpc.policy import Policy as DealerPolicy
from veilgrid.node.attest.evidence import Claims, Evidence, EvidenceRefused, binding
from veilgrid.node.attest.policy import Policy, Program, Revoked
from veilgrid.node.attest.software import (
    NAME,
    SoftwareProvider,
    SoftwareStatement,
    measure_package,
)
from veilgrid.node.attest.verify import examine, verify
from veilgrid.secret import Secret

ROOT = bytes(range(100, 132))
NOW_S = 1_800_000_000.0
KEY, NONCE = bytes(32), bytes(range(16))
MEASUREMENT = bytes(48)
replaced = msgspec.structs.replace


@pytest.fixture
def provider() -> SoftwareProvider:
    return SoftwareProvider(Secret(ROOT), MEASUREMENT)


def accepting(provider: SoftwareProvider, **changes: object) -> Policy:
    given = {
        "accept_software": True,
        "software_roots": (provider.root_key.hex(),),
        "program": (Program(kind="software", measurement=provider.measurement.hex()),),
        **changes,
    }
    return Policy(**given)  # type: ignore[arg-type]


def quoted(provider: SoftwareProvider) -> Evidence:
    return provider.quote(binding(KEY, NONCE), NOW_S)


def problems(evidence: Evidence, policy: Policy, now_s: float = NOW_S) -> tuple[str, ...]:
    return examine(evidence, policy, now_s, binding(KEY, NONCE)).problems


def test_a_development_policy_accepts_it_and_says_that_it_is_no_hardware(
    provider: SoftwareProvider, caplog: pytest.LogCaptureFixture
) -> None:
    claims = verify(quoted(provider), accepting(provider), NOW_S, binding(KEY, NONCE))
    assert (claims.kind, claims.hardware, claims.status) == ("software", False, "ok")
    assert "hardware=False" in repr(claims)
    assert "hardware=False" in repr(provider)
    assert "not hardware" in NAME
    assert SoftwareProvider.hardware is False
    assert caplog.text.count("hardware=False") >= 2


def test_no_policy_accepts_it_that_was_not_told_to(provider: SoftwareProvider) -> None:
    """However the rest of the policy looks."""
    evidence = quoted(provider)
    for changes in ({}, {"accept_debug": True}, {"age_max_s": 1e9}, {"software_roots": ()}):
        strict = accepting(provider, accept_software=False, **changes)
        assert "is not hardware" in problems(evidence, strict)[0]
    assert "is not hardware" in problems(evidence, Policy())[0]


def test_nothing_can_claim_that_software_is_hardware() -> None:
    for kind, hardware in (("software", True), ("tdx", False)):
        with pytest.raises(InvariantError):
            Claims(kind=kind, hardware=hardware, measurement=b"", status="ok")


def test_a_committee_refuses_a_dealer_with_software_evidence(provider: SoftwareProvider) -> None:
    claims = verify(quoted(provider), accepting(provider), NOW_S, binding(KEY, NONCE))
    measured = frozenset({MEASUREMENT})
    strict = DealerPolicy(is_dealer_allowed=True, dealer_measurements=measured)
    with pytest.raises(InputError, match="not hardware"):
        check_dealer(strict, claims)
    lenient = DealerPolicy(is_dealer_allowed=True, is_software_dealer_allowed=True)
    check_dealer(lenient, claims)


def test_each_changed_field_is_refused_with_its_reason(provider: SoftwareProvider) -> None:
    policy = accepting(provider)
    said = msgspec.msgpack.decode(quoted(provider).statement, type=SoftwareStatement)
    stranger = SoftwareProvider(Secret(bytes(32)), MEASUREMENT)
    for changes, reason in (
        ({"measurement": bytes(47) + b"\1"}, "signature of the development root"),
        ({"report_data": bytes(64)}, "signature of the development root"),
        ({"issued_s": NOW_S + 1}, "signature of the development root"),
        ({"signature": bytes(64)}, "signature of the development root"),
        ({"signature": b""}, "signature of the development root"),
        ({"root": stranger.root_key}, "is not in the policy"),
    ):
        statement = msgspec.msgpack.encode(replaced(said, **changes))
        (found,) = problems(Evidence(kind="software", statement=statement), policy)
        assert reason in found
    assert problems(Evidence(kind="software", statement=b"\xff"), policy) == (
        "the software statement is malformed",
    )
    assert "is not in the policy" in problems(quoted(stranger), policy)[0]


def test_genuine_evidence_is_refused_for_every_reason_at_once(provider: SoftwareProvider) -> None:
    other = Program(kind="software", measurement="ab" * 48)
    revoked = Revoked(measurements=(MEASUREMENT.hex(),), roots=(provider.root_key.hex(),))
    policy = accepting(provider, program=(other,), revoked=revoked)
    with pytest.raises(EvidenceRefused) as caught:
        verify(quoted(provider), policy, NOW_S + 301, binding(KEY, bytes(16)))
    text = str(caught.value)
    parts = (
        "another nonce",
        "is not in the policy",
        "301 s old",
        "measurement 0000000000000000 is revoked",
        "development root",
    )
    assert [part for part in parts if part not in text] == []
    assert len(caught.value.problems) == len(parts)


@pytest.mark.parametrize(
    ("shift_s", "is_fresh"), [(-61, False), (-60, True), (0, True), (300, True), (301, False)]
)
def test_it_is_fresh_between_clock_error_and_age(
    provider: SoftwareProvider, shift_s: float, is_fresh: bool
) -> None:
    assert (problems(quoted(provider), accepting(provider), NOW_S + shift_s) == ()) is is_fresh


def test_a_date_that_is_no_number_is_refused(provider: SoftwareProvider) -> None:
    evidence = provider.quote(binding(KEY, NONCE), float("nan"))
    assert len(problems(evidence, accepting(provider))) == 2
    with pytest.raises(InvariantError):
        problems(quoted(provider), accepting(provider), float("nan"))


def test_key_and_nonce_cannot_be_shifted_into_each_other() -> None:
    """H(key || nonce) without a length would let another pair give the same digest."""
    seen = {binding(bytes(n), bytes(64 - n)) for n in range(0, 49)}
    assert len(seen) == 49
    assert {len(one) for one in seen} == {64}
    with pytest.raises(InvariantError):
        binding(KEY, bytes(15))


# -- sealing --------------------------------------------------------------------------------------


@given(octets=st.binary(max_size=200), label=st.text(max_size=20))
def test_what_is_sealed_opens_again(octets: bytes, label: str) -> None:
    provider = SoftwareProvider(Secret(ROOT), MEASUREMENT)
    for to in ("program", "root"):
        sealed = provider.seal(Secret(octets), label, to)  # type: ignore[arg-type]
        assert provider.unseal(sealed, label) == Secret(octets)
        _what_it_is, _, encrypted = sealed.partition(b"\n")  # the first line may hold such words
        assert len(octets) < 8 or octets not in encrypted


def test_sealed_octets_open_for_their_root_program_and_label_only() -> None:
    mine = SoftwareProvider(Secret(ROOT), MEASUREMENT)
    later = SoftwareProvider(Secret(ROOT), bytes(47) + b"\1")
    other = SoftwareProvider(Secret(bytes(32)), MEASUREMENT)
    secret = Secret(b"twelve octets")
    for_program, for_root = mine.seal(secret, "seed"), mine.seal(secret, "seed", "root")
    assert later.unseal(for_root, "seed") == secret
    for provider, sealed, label in (
        (later, for_program, "seed"),
        (other, for_root, "seed"),
        (other, for_program, "seed"),
        (mine, for_root, "other"),
        (mine, for_program, "other"),
    ):
        with pytest.raises(SetupError, match="cannot be unsealed"):
            provider.unseal(sealed, label)


def test_no_octet_of_what_is_sealed_can_be_changed() -> None:
    provider = SoftwareProvider(Secret(ROOT), MEASUREMENT)
    sealed = provider.seal(Secret(b"twelve octets"), "seed")
    for at in range(len(sealed)):
        changed = sealed[:at] + bytes([sealed[at] ^ 2]) + sealed[at + 1 :]
        with pytest.raises(SetupError):
            provider.unseal(changed, "seed")
    for shorter in range(len(sealed)):
        with pytest.raises(SetupError):
            provider.unseal(sealed[:shorter], "seed")


# -- files and secrets ----------------------------------------------------------------------------


def test_a_root_is_made_once_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "root"
    made = SoftwareProvider.create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert SoftwareProvider.load(path).root_key == made.root_key
    with pytest.raises(SetupError, match="exists already"):
        SoftwareProvider.create(path)
    path.write_bytes(b"short")
    with pytest.raises(SetupError, match="5 octets"):
        SoftwareProvider.load(path)


def test_no_root_shows_in_texts_evidence_or_logs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The canary is the root itself, and what is sealed with it."""
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "root"
    path.write_bytes(ROOT)
    provider = SoftwareProvider.load(path)
    canary = Secret(b"canary of thirty two octets long")
    sealed = provider.seal(canary, "seed")
    evidence = quoted(provider)
    shown = [repr(provider), str(provider), repr(evidence), repr(canary), caplog.text]
    for wrong in (sealed[:-1], sealed[:-1] + b"\0"):
        with pytest.raises(SetupError) as caught:
            provider.unseal(wrong, "seed")
        shown += [str(caught.value), repr(caught.value)]
    shown.append(str(verify(evidence, accepting(provider), NOW_S, binding(KEY, NONCE))))
    for octets in (ROOT, canary.reveal_to("test")):
        for text in shown:
            assert repr(octets)[2:-1] not in text
            assert octets.hex() not in text
        assert octets not in evidence.statement
        assert octets not in sealed
    assert not hasattr(provider, "__dict__")


def test_the_measurement_tells_versions_of_the_package_apart() -> None:
    assert len(measure_package()) == 48
    assert measure_package() == measure_package()
    assert SoftwareProvider(Secret(ROOT)).measurement == measure_package()
