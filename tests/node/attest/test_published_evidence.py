"""Evidence of real machines verifies at its own time, and no changed octet of it does."""

import json
from collections.abc import Iterator

import msgspec
import pytest
from evidence_samples import SAMPLES, Sample, policy, sev_snp, sev_snp_debug, tdx

from veilgrid.mpc.dealer import check_dealer
from veilgrid.mpc.policy import Policy as DealerPolicy
from veilgrid.node.attest import amd, nitro
from veilgrid.node.attest.evidence import Evidence, EvidenceRefused, Forged, decode, encode
from veilgrid.node.attest.policy import Minimum, Policy, Revoked
from veilgrid.node.attest.verify import Verdict, examine, verify

replaced = msgspec.structs.replace


@pytest.fixture(params=list(SAMPLES))
def sample(request: pytest.FixtureRequest) -> Sample:
    return SAMPLES[request.param]()


def judged(sample: Sample, **changes: object) -> Verdict:
    given = {
        "evidence": sample.evidence,
        "policy": sample.policy,
        "now_s": sample.now_s,
        "bound": sample.bound,
        **changes,
    }
    return examine(**given)  # type: ignore[arg-type]


def only(verdict: Verdict) -> str:
    assert len(verdict.problems) == 1, verdict.problems
    return verdict.problems[0]


def test_published_evidence_verifies_at_its_own_time(sample: Sample) -> None:
    claims = verify(sample.evidence, sample.policy, sample.now_s, sample.bound)
    assert claims.hardware is True
    assert claims.kind == sample.evidence.kind
    assert claims.measurement.hex() == sample.policy.program[0].measurement
    assert claims.status in sample.policy.program[0].statuses


def test_evidence_survives_its_file(sample: Sample) -> None:
    read = decode(encode(sample.evidence), "evidence.json")
    assert read == sample.evidence


@pytest.mark.parametrize("days", [-10_000, -1_000, 1_000, 10_000])
def test_evidence_is_refused_long_before_and_after_its_time(sample: Sample, days: int) -> None:
    """A clock that was put back, or old collateral that is shown again, is found out."""
    verdict = judged(sample, now_s=sample.now_s + days * 86_400)
    if sample.evidence.kind == "sev-snp" and abs(days) == 1_000:
        assert verdict.is_accepted == (days > 0), "the chip's certificate holds for seven years"
        return
    assert verdict.claims is None
    words = ("is dated", "is not valid before") if days < 0 else ("ended at",)
    assert all(any(word in one for word in words) for one in verdict.problems)


def test_evidence_for_another_nonce_is_refused(sample: Sample) -> None:
    wrong = bytes([sample.bound[0] ^ 1]) + sample.bound[1:]
    assert "another nonce" in only(judged(sample, bound=wrong))
    assert "nothing was asked" in only(judged(sample, bound=b""))


def test_a_program_that_is_not_listed_is_refused(sample: Sample) -> None:
    listed = sample.policy.program[0]
    other = replaced(listed, measurement="ab" * (len(listed.measurement) // 2))
    verdict = judged(sample, policy=replaced(sample.policy, program=(other,)))
    assert any("is not in the policy" in one for one in verdict.problems)
    wrong_kind = replaced(listed, kind="software")
    verdict = judged(sample, policy=replaced(sample.policy, program=(wrong_kind,)))
    assert any("is not in the policy" in one for one in verdict.problems)
    assert judged(sample, policy=Policy()).problems


def test_what_is_revoked_is_refused_by_name(sample: Sample) -> None:
    measurement = sample.policy.program[0].measurement
    verdict = judged(
        sample, policy=replaced(sample.policy, revoked=Revoked(measurements=(measurement,)))
    )
    assert only(verdict) == f"measurement {measurement[:16]} is revoked by the policy"


def found_in(sample: Sample) -> tuple[str, ...]:
    if sample.evidence.kind == "sev-snp":
        found = amd.inspect(sample.evidence, sample.now_s, amd.Firmware(0, 0, 0, 0))
    elif sample.evidence.kind == "nitro":
        found = nitro.inspect(sample.evidence, sample.now_s)
    else:
        from veilgrid.node.attest import intel

        found = intel.inspect(sample.evidence, sample.now_s)
    return tuple(sorted(found.certificates)), tuple(sorted(found.chips))  # type: ignore[return-value]


def test_revoked_certificates_and_chips_are_refused(sample: Sample) -> None:
    """Whoever learns that a chip's key was stolen puts it on the list."""
    certificates, chips = found_in(sample)
    assert len(certificates) >= 3
    for one in certificates:
        listed = replaced(sample.policy, revoked=Revoked(certificates=(one,)))
        assert only(judged(sample, policy=listed)).startswith("certificate")
    (chip,) = chips
    listed = replaced(sample.policy, revoked=Revoked(chips=(chip,)))
    assert only(judged(sample, policy=listed)).startswith("chip")


def test_a_dealer_is_judged_by_these_claims() -> None:
    """The committee's own check takes them as they are."""
    sample = tdx()
    claims = verify(sample.evidence, sample.policy, sample.now_s, sample.bound)
    agreed = DealerPolicy(
        is_dealer_allowed=True, dealer_measurements=frozenset({claims.measurement})
    )
    check_dealer(agreed, claims)
    other = DealerPolicy(is_dealer_allowed=True, dealer_measurements=frozenset({bytes(48)}))
    with pytest.raises(Exception, match="was not agreed on"):
        check_dealer(other, claims)


# -- Intel ----------------------------------------------------------------------------------------


def test_a_status_is_returned_and_the_policy_decides() -> None:
    """dcap-qvl does not fail for a platform with known holes: it says so, and nothing else."""
    sample = SAMPLES["sgx"]()
    strict = policy("sgx", sample.policy.program[0].measurement)
    verdict = judged(sample, policy=strict)
    assert only(verdict) == (
        "the platform's status is ConfigurationAndSWHardeningNeeded; accepted is ok"
    )
    assert verdict.claims is not None
    advisory = replaced(sample.policy, revoked=Revoked(advisories=("INTEL-SA-00615",)))
    assert "INTEL-SA-00615" in only(judged(sample, policy=advisory))


def test_a_platform_below_every_known_level_is_refused() -> None:
    sample = tdx("tdx_quote_outdated")
    verdict = judged(sample)
    assert verdict.claims is None
    assert only(verdict) == "the quote does not verify: No matching TCB level found"


QUOTE = {
    "version": (0, "malformed"),
    "attestation key type": (2, "attestation key type"),
    "kind": (4, "malformed"),
    "vendor": (12, "vendor"),
    "user data": (28, "report signature is invalid"),
    "body": (48 + 16, "report signature is invalid"),
}
SGX = {
    "attributes": (48 + 48, "report signature is invalid"),
    "measurement": (48 + 64, "report signature is invalid"),
    "report data": (48 + 320, "report signature is invalid"),
    "signature": (436, "report signature is invalid"),
    "attestation key": (500, "report hash mismatch"),
    "enclave report": (564 + 64, "Signature is invalid for qe_report"),
    "enclave report's signature": (564 + 384, "Signature is invalid for qe_report"),
}


@pytest.mark.parametrize("field", [*QUOTE, *SGX])
def test_each_changed_field_of_a_quote_is_refused_with_its_reason(field: str) -> None:
    sample = SAMPLES["sgx"]()
    at, reason = {**QUOTE, **SGX}[field]
    octets = bytearray(sample.evidence.statement)
    octets[at] ^= 1
    verdict = judged(sample, evidence=replaced(sample.evidence, statement=bytes(octets)))
    assert verdict.claims is None
    assert reason in only(verdict)


@pytest.mark.parametrize("kind", ["sgx", "tdx"])
def test_no_octet_of_a_quote_can_be_changed(kind: str) -> None:
    """What carries nothing: line breaks of the PEM inside, and the number of its kind of envelope.

    dcap-qvl looks at the low octet of that number only; what is inside is signed.
    """
    sample = SAMPLES[kind]()
    octets = sample.evidence.statement
    last = octets.rindex(b"-----END")
    for at in range(0, last, 17):
        if octets[at : at + 1] in b"\r\n" or (kind, at) == ("tdx", 765):
            continue
        changed = octets[:at] + bytes([octets[at] ^ 1]) + octets[at + 1 :]
        verdict = judged(sample, evidence=replaced(sample.evidence, statement=changed))
        assert verdict.claims is None, f"octet {at}"


COLLATERAL = {
    "tcb_info": "collateral|tcb_info|TcbInfo",
    "tcb_info_signature": "tcb_info",
    "tcb_info_issuer_chain": "TCB info's signer|certificate chain|tcb_info",
    "qe_identity": "collateral|qe_identity|QeIdentity",
    "qe_identity_signature": "qe_identity",
    "qe_identity_issuer_chain": "quoting enclave's signer|certificate chain|qe_identity",
    "root_ca_crl": "collateral|[Cc]rl|CRL",
    "pck_crl": "collateral|[Cc]rl|CRL|Revocation",
    "pck_crl_issuer_chain": "platforms' issuer",
}


@pytest.mark.parametrize("field", list(COLLATERAL))
def test_each_changed_field_of_the_collateral_is_refused_with_its_reason(field: str) -> None:
    import re

    sample = tdx()
    whole = json.loads(sample.evidence.collateral)
    text = whole[field]
    tried = 0
    for at in range(1, len(text), max(1, len(text) // 40)):
        if text[at] in "\n\r":
            continue
        other = "1" if text[at] != "1" else "2"
        changed = json.dumps({**whole, field: text[:at] + other + text[at + 1 :]})
        verdict = judged(sample, evidence=replaced(sample.evidence, collateral=changed))
        assert verdict.claims is None, f"{field} at {at}"
        assert any(re.search(COLLATERAL[field], one) for one in verdict.problems), verdict
        tried += 1
    assert tried > 20
    for missing in ({k: v for k, v in whole.items() if k != field}, {**whole, field: 3}):
        evidence = replaced(sample.evidence, collateral=json.dumps(missing))
        assert only(judged(sample, evidence=evidence)) == "the collateral is malformed"


def test_a_quote_without_collateral_is_refused() -> None:
    sample = tdx()
    verdict = judged(sample, evidence=replaced(sample.evidence, collateral=""))
    assert "collateral is missing" in only(verdict)
    named_wrong = replaced(sample.evidence, kind="sgx")
    assert "of kind tdx, not sgx" in only(judged(sample, evidence=named_wrong))


# -- AMD ------------------------------------------------------------------------------------------

REPORT = {
    "version": (0x00, "of version"),
    "guest version": (0x04, "signature does not hold"),
    "policy": (0x0A, "signature does not hold"),
    "family": (0x10, "signature does not hold"),
    "level": (0x30, "signature does not hold"),
    "algorithm": (0x34, "not ECDSA P-384"),
    "report data": (0x50, "signature does not hold"),
    "measurement": (0x90, "signature does not hold"),
    "host data": (0xC0, "signature does not hold"),
    "firmware": (0x180, "other firmware"),
    "chip": (0x1A0, "another chip"),
    "r": (0x2A0, "signature does not hold"),
    "s": (0x2A0 + 72, "signature does not hold"),
    "behind the signature": (0x2A0 + 144, "signature does not hold"),
}


@pytest.mark.parametrize("field", list(REPORT))
def test_each_changed_field_of_a_report_is_refused_with_its_reason(field: str) -> None:
    sample = sev_snp()
    at, reason = REPORT[field]
    octets = bytearray(sample.evidence.statement)
    octets[at] ^= 0x10
    verdict = judged(sample, evidence=replaced(sample.evidence, statement=bytes(octets)))
    assert verdict.claims is None
    assert any(reason in one for one in verdict.problems), verdict.problems


def test_no_octet_of_a_report_can_be_changed() -> None:
    sample = sev_snp()
    octets = sample.evidence.statement
    for at in range(0, len(octets), 5):
        changed = octets[:at] + bytes([octets[at] ^ 1]) + octets[at + 1 :]
        verdict = judged(sample, evidence=replaced(sample.evidence, statement=changed))
        assert verdict.claims is None, f"octet {at}"


def test_certificates_of_another_chip_or_in_another_order_are_refused() -> None:
    sample, other = sev_snp(), sev_snp_debug()
    chip, ask, ark = sample.evidence.certificates

    def problems(*certificates: bytes) -> tuple[str, ...]:
        evidence = replaced(sample.evidence, certificates=certificates)
        return judged(sample, evidence=evidence).problems

    assert any("another chip" in one for one in problems(other.evidence.certificates[0], ask, ark))
    assert any("was not signed by" in one for one in problems(chip, ark, ask))
    assert any("is not a pinned one" in one for one in problems(chip, ask, ask))
    assert "three certificates" in problems(chip, ask)[0]
    for number, name in enumerate(("the chip", "AMD's intermediate", "AMD's root")):
        broken = list(sample.evidence.certificates)
        broken[number] = broken[number][:-1] + bytes([broken[number][-1] ^ 1])
        assert any(name in one for one in problems(*broken)), name
        broken[number] = b"\x30\x03abc"
        assert problems(*broken) == (f"the certificate of {name} is malformed",)


def test_old_firmware_is_out_of_date_where_the_policy_says_so() -> None:
    sample = sev_snp()
    demanding = replaced(sample.policy, minimum=Minimum(microcode=116))
    assert "OutOfDate" in only(judged(sample, policy=demanding))
    assert judged(
        sample, policy=replaced(sample.policy, minimum=Minimum(microcode=115))
    ).is_accepted


def test_a_machine_in_debug_mode_is_refused_unless_the_policy_says_otherwise() -> None:
    sample = sev_snp_debug()
    assert "debug mode" in only(judged(sample))
    assert judged(sample, policy=replaced(sample.policy, accept_debug=True)).is_accepted
    enclave = SAMPLES["nitro"]()
    strict = replaced(enclave.policy, accept_debug=False)
    assert "debug mode" in only(judged(enclave, policy=strict))


# -- Nitro ----------------------------------------------------------------------------------------


def test_no_octet_of_a_document_can_be_changed() -> None:
    sample = SAMPLES["nitro"]()
    octets = sample.evidence.statement
    for at in range(0, len(octets), 7):
        changed = octets[:at] + bytes([octets[at] ^ 1]) + octets[at + 1 :]
        verdict = judged(sample, evidence=replaced(sample.evidence, statement=changed))
        assert verdict.claims is None, f"octet {at}"
    for changed in (octets + b"\0", octets[:-1], b"", b"\xff" * 100, b"\x81" * 100_000):
        verdict = judged(sample, evidence=replaced(sample.evidence, statement=changed))
        assert verdict.claims is None


def test_a_document_is_fresh_for_a_while_only() -> None:
    """Its certificates hold for hours; the policy asks for minutes."""
    sample = SAMPLES["nitro"]()
    late = judged(sample, now_s=sample.now_s + 400)
    assert "s old; accepted is 300 s" in only(late)
    early = judged(sample, now_s=sample.now_s - 120)
    assert "after the given time" in only(early)


# -- all ------------------------------------------------------------------------------------------


def _forms(sample: Sample) -> Iterator[Evidence]:
    for kind in SAMPLES:
        yield replaced(sample.evidence, kind=kind)
    yield replaced(sample.evidence, statement=sample.evidence.statement[:100])
    yield replaced(sample.evidence, statement=b"", collateral="{")
    yield replaced(sample.evidence, collateral="[" * 100_000)
    yield replaced(sample.evidence, statement=bytes(2 << 20))


def test_evidence_of_one_kind_passes_as_no_other(sample: Sample) -> None:
    for evidence in _forms(sample):
        if evidence == sample.evidence:
            continue
        if (
            evidence.statement == sample.evidence.statement
            and evidence.kind == sample.evidence.kind
        ):
            continue  # Only a part changed that its kind does not look at.
        verdict = judged(sample, evidence=evidence)
        assert verdict.claims is None
        assert verdict.problems


def test_a_refusal_gives_every_reason_at_once(sample: Sample) -> None:
    with pytest.raises(EvidenceRefused) as caught:
        verify(sample.evidence, Policy(), sample.now_s, bytes(64))
    assert "another nonce" in str(caught.value)
    assert "is not in the policy" in str(caught.value)
    assert caught.value.exit_code == 4


def test_forged_evidence_raises_inside_only() -> None:
    assert not issubclass(Forged, EvidenceRefused)
