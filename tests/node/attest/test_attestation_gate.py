"""A verifier that asks: each nonce counts once, for one process, for a while."""

import logging
from collections.abc import Iterator

import msgspec
import pytest

from veilgrid.machine import NodeId
from veilgrid.node.attest.evidence import Evidence, EvidenceRefused, binding
from veilgrid.node.attest.gate import _WAITING_MAX, ANSWER_MAX_S, VALID_S, Gate
from veilgrid.node.attest.policy import Policy, Program, Revoked
from veilgrid.node.attest.software import SoftwareProvider
from veilgrid.secret import Secret, SeededRandomness

NOW_S = 1_800_000_000.0
ONE, OTHER = NodeId("worker-1"), NodeId("worker-2")
KEYS = {ONE: bytes(32), OTHER: bytes(range(32))}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("veilgrid.node.attest")
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def provider() -> SoftwareProvider:
    return SoftwareProvider(Secret(bytes(range(32))), bytes(48))


@pytest.fixture
def policy(provider: SoftwareProvider) -> Policy:
    program = Program(kind="software", measurement=provider.measurement.hex())
    roots = (provider.root_key.hex(),)
    return Policy(accept_software=True, software_roots=roots, program=(program,))


@pytest.fixture
def gate(policy: Policy) -> Gate:
    return Gate(policy, SeededRandomness(1))


def answer(
    gate: Gate, provider: SoftwareProvider, node: NodeId = ONE, now_s: float = NOW_S
) -> Evidence:
    nonce = gate.challenge(node, KEYS[node], now_s)
    return provider.quote(binding(KEYS[node], nonce), now_s)


def refused(gate: Gate, node: NodeId, evidence: Evidence, now_s: float = NOW_S) -> str:
    with pytest.raises(EvidenceRefused) as caught:
        gate.admit(node, evidence, now_s)
    assert gate.admission(node, now_s) is None
    return str(caught.value)


def test_who_answers_what_was_asked_is_admitted_for_a_while(
    gate: Gate, provider: SoftwareProvider
) -> None:
    claims = gate.admit(ONE, answer(gate, provider), NOW_S)
    assert claims.hardware is False
    admission = gate.admission(ONE, NOW_S + VALID_S)
    assert admission is not None
    assert admission.claims == claims
    assert gate.admission(ONE, NOW_S + VALID_S + 1) is None
    assert gate.admission(OTHER, NOW_S) is None


def test_an_answer_counts_once(gate: Gate, provider: SoftwareProvider) -> None:
    evidence = answer(gate, provider)
    gate.admit(ONE, evidence, NOW_S)
    assert "answered already" in refused(gate, ONE, evidence)


def test_an_answer_of_yesterday_does_not_fit_todays_question(
    gate: Gate, provider: SoftwareProvider
) -> None:
    old = answer(gate, provider)
    gate.challenge(ONE, KEYS[ONE], NOW_S)
    assert "another nonce" in refused(gate, ONE, old)


def test_nobody_passes_with_the_answer_of_another(gate: Gate, provider: SoftwareProvider) -> None:
    mine = answer(gate, provider)
    answer(gate, provider, OTHER)
    assert "another key" in refused(gate, OTHER, mine)
    assert "was not asked" in refused(gate, NodeId("worker-3"), mine)


@pytest.mark.parametrize("waited_s", [ANSWER_MAX_S + 1, -1.0])
def test_a_late_answer_is_refused_and_its_nonce_used_up(
    gate: Gate, provider: SoftwareProvider, waited_s: float
) -> None:
    evidence = answer(gate, provider)
    assert "answered after" in refused(gate, ONE, evidence, NOW_S + waited_s)
    assert "was not asked" in refused(gate, ONE, evidence)


def test_a_wrong_answer_ends_an_earlier_admission(gate: Gate, provider: SoftwareProvider) -> None:
    gate.admit(ONE, answer(gate, provider), NOW_S)
    forged = msgspec.structs.replace(answer(gate, provider), statement=b"")
    assert "malformed" in refused(gate, ONE, forged)


def test_a_new_policy_counts_at_once(
    gate: Gate, provider: SoftwareProvider, policy: Policy
) -> None:
    """Whoever revokes a program does not wait for an hour."""
    gate.admit(ONE, answer(gate, provider), NOW_S)
    waiting = answer(gate, provider, OTHER)
    revoked = Revoked(measurements=(provider.measurement.hex(),))
    gate.replace_policy(msgspec.structs.replace(policy, revoked=revoked))
    assert gate.admission(ONE, NOW_S) is None
    assert "was not asked" in refused(gate, OTHER, waiting)
    assert "is revoked" in refused(gate, ONE, answer(gate, provider))


def test_nonces_differ_and_their_table_is_bounded(gate: Gate) -> None:
    nodes = [NodeId(f"n{number}") for number in range(_WAITING_MAX + 10)]
    nonces = {gate.challenge(node, bytes(32), NOW_S + at) for at, node in enumerate(nodes)}
    assert len(nonces) == len(nodes)
    assert len(gate._asked) == _WAITING_MAX
    assert nodes[0] not in gate._asked
    assert nodes[-1] in gate._asked
