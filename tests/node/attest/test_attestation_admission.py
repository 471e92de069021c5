"""A validator's assessor: questions repeat, answers count once, what was good can end."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from veilgrid.node.attest.admission import EXPIRED, PolicyAssessor, quote_by
from veilgrid.node.attest.policy import Policy, Program, Revoked
from veilgrid.node.attest.software import SoftwareProvider
from veilgrid.secret import Secret, SeededRandomness

KEY = bytes(range(32))
PROVIDER = SoftwareProvider(Secret(KEY), bytes(48))
POLICY = Policy(
    accept_software=True,
    software_roots=(PROVIDER.root_key.hex(),),
    program=(Program(kind="software", measurement=PROVIDER.measurement.hex()),),
)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("veilgrid.node.attest")
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(logging.NOTSET)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def assessor(clock: Clock) -> PolicyAssessor:
    return PolicyAssessor(POLICY, SeededRandomness(1), clock, answer_max_s=60.0, valid_s=600.0)


def shown(assessor: PolicyAssessor, clock: Clock) -> bytes:
    """Let the process answer, accepted; return the nonce."""
    nonce = assessor.ask("site:a", KEY)
    assert nonce is not None
    judged = assessor.judge("site:a", nonce, quote_by(PROVIDER, clock)(KEY, nonce))
    assert judged is not None
    assert judged.is_accepted, judged.reason
    assert "not hardware" in judged.reason
    return nonce


def test_a_question_is_repeated_until_its_answer_is_overdue(
    assessor: PolicyAssessor, clock: Clock
) -> None:
    """A lost message must not make an honest answer look replayed."""
    first = assessor.ask("site:a", KEY)
    clock.now_s += 59
    assert assessor.ask("site:a", KEY) == first
    clock.now_s += 2
    later = assessor.ask("site:a", KEY)
    assert later not in (None, first)
    evidence = quote_by(PROVIDER, clock)(KEY, first or b"")
    assert assessor.judge("site:a", first or b"", evidence) is None, "an old answer is no fault"


def test_an_answer_counts_once_and_then_nobody_is_asked(
    assessor: PolicyAssessor, clock: Clock
) -> None:
    """Repeated frames are no replay."""
    nonce = shown(assessor, clock)
    assert assessor.judge("site:a", nonce, b"anything") is None
    assert assessor.ask("site:a", KEY) is None
    assert assessor.judge("site:b", nonce, b"anything") is None


def test_what_was_good_expires_and_silence_then_refuses(
    assessor: PolicyAssessor, clock: Clock
) -> None:
    """A device that was replaced overnight has to show itself again."""
    shown(assessor, clock)
    clock.now_s += 601
    assert assessor.ask("site:a", KEY) is not None
    assert assessor.lapsed("site:a") is None
    clock.now_s += 61
    assessor.ask("site:a", KEY)
    refusal = assessor.lapsed("site:a")
    assert refusal is not None
    assert (refusal.is_accepted, refusal.reason, refusal.evidence) == (False, EXPIRED, b"")
    shown(assessor, clock)
    assert assessor.lapsed("site:a") is None


def test_who_never_was_good_is_not_refused_for_silence(
    assessor: PolicyAssessor, clock: Clock
) -> None:
    """He is not let in, and may still come."""
    assessor.ask("site:a", KEY)
    clock.now_s += 61
    assessor.ask("site:a", KEY)
    assert assessor.lapsed("site:a") is None


@pytest.mark.parametrize("evidence", [b"", b"{}", b"\xff\xff", b"x" * (2 << 20)])
def test_octets_that_are_no_evidence_are_refused_with_a_digest(
    assessor: PolicyAssessor, evidence: bytes
) -> None:
    """What was shown can be produced again as evidence against who showed it."""
    nonce = assessor.ask("site:a", KEY)
    judged = assessor.judge("site:a", nonce or b"", evidence)
    assert judged is not None
    assert not judged.is_accepted
    assert len(judged.evidence) == 32


def test_a_changed_policy_file_counts_at_the_next_question(tmp_path: Path, clock: Clock) -> None:
    """Whoever revokes edits a file and restarts nothing; a broken file changes nothing."""
    path = tmp_path / "attestation.toml"

    def write(revoked: str, version: int) -> None:
        path.write_text(
            "format = 1\naccept_software = true\n"
            f'software_roots = ["{PROVIDER.root_key.hex()}"]\n'
            f'[[program]]\nkind = "software"\nmeasurement = "{PROVIDER.measurement.hex()}"\n'
            f"{revoked}"
        )
        stamp = 1_000_000_000 * version
        os.utime(path, ns=(stamp, stamp))

    write("", 1)
    assessor = PolicyAssessor(path, SeededRandomness(1), clock)
    shown(assessor, clock)
    assert assessor.ask("site:a", KEY) is None
    write("nonsense = 1\n", 2)
    assert assessor.ask("site:a", KEY) is None, "the former policy stays"
    write(f'[revoked]\nmeasurements = ["{PROVIDER.measurement.hex()}"]\n', 3)
    nonce = assessor.ask("site:a", KEY)
    assert nonce is not None
    judged = assessor.judge("site:a", nonce, quote_by(PROVIDER, clock)(KEY, nonce))
    assert judged is not None
    assert "revoked" in judged.reason


def test_replaced_policies_ask_everybody_again(assessor: PolicyAssessor, clock: Clock) -> None:
    """An admission is no older than the policy by which it was given."""
    shown(assessor, clock)
    revoked = Revoked(roots=POLICY.software_roots)
    assessor.replace_policy(msgspec.structs.replace(POLICY, revoked=revoked))
    assert assessor.ask("site:a", KEY) is not None
