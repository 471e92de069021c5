"""Judge evidence: is it genuine, is it ours, may what it shows take part [attestation 2]."""

import hmac
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from veilgrid.errors import invariant
from veilgrid.node.attest import amd, intel, nitro, software
from veilgrid.node.attest.evidence import (
    EVIDENCE_LENGTH_MAX,
    HARDWARE_KINDS,
    Claims,
    Evidence,
    EvidenceRefused,
    Forged,
    Found,
)
from veilgrid.node.attest.policy import Policy

_BOUND_MIN: Final = 32
_log = logging.getLogger("veilgrid.node.attest")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of evidence.

    Attributes
    ----------
    claims
        What genuine evidence says, accepted or not; None if it is not genuine.
    problems
        Every reason to refuse it; none means accepted.
    registers
        What people may want to see of it.
    """

    claims: Claims | None
    problems: tuple[str, ...]
    registers: dict[str, str] = field(default_factory=dict)

    @property
    def is_accepted(self) -> bool:
        """Nothing speaks against it."""
        return self.claims is not None and not self.problems


def examine(
    evidence: Evidence, policy: Policy, now_s: float, bound: bytes, *, is_told: bool = True
) -> Verdict:
    """Judge evidence and give every reason against it.

    Parameters
    ----------
    evidence
        What the process showed.
    policy
        What it has to show.
    now_s : seconds since 1970
        The verifier's clock.
    bound
        What the evidence has to contain: :func:`~veilgrid.node.attest.evidence.binding` of the
        process's public key and the nonce that was sent to it.
    is_told
        Warn that software evidence was accepted; who has said so before need not repeat it.
    """
    invariant(math.isfinite(now_s), "the verifier's clock shows a time")
    if len(bound) < _BOUND_MIN:
        return Verdict(claims=None, problems=("nothing was asked that evidence could be bound to",))
    if _length(evidence) > EVIDENCE_LENGTH_MAX:
        return Verdict(claims=None, problems=("the evidence is too long",))
    try:
        found = _inspect(evidence, policy, now_s)
    except Forged as forged:
        return Verdict(claims=None, problems=forged.problems)
    claims = Claims(
        kind=found.kind,
        hardware=found.kind in HARDWARE_KINDS,
        measurement=found.measurement,
        status=found.status,
        advisories=found.advisories,
    )
    problems = (*found.problems, *_problems(found, policy, now_s, bound))
    if is_told and not problems and not claims.hardware:
        _log.warning("accepted evidence of kind software: hardware=False, for development only")
    return Verdict(claims=claims, problems=problems, registers=found.registers)


def verify(
    evidence: Evidence, policy: Policy, now_s: float, bound: bytes, *, is_told: bool = True
) -> Claims:
    """Return what is believed of a process; see :func:`examine`.

    Raises
    ------
    EvidenceRefused
        With every reason.
    """
    verdict = examine(evidence, policy, now_s, bound, is_told=is_told)
    if verdict.claims is None or verdict.problems:
        raise EvidenceRefused(verdict.problems)
    return verdict.claims


def _length(evidence: Evidence) -> int:
    octets = sum(len(one) for one in evidence.certificates)
    return octets + len(evidence.statement) + len(evidence.collateral)


def _inspect(evidence: Evidence, policy: Policy, now_s: float) -> Found:
    if evidence.kind == "software":
        if not policy.accept_software:
            raise Forged("software evidence is not hardware, and the policy does not accept it")
        return software.inspect(evidence, policy.roots)
    if evidence.kind == "sev-snp":
        return amd.inspect(evidence, now_s, policy.minimum.firmware)
    if evidence.kind == "nitro":
        return nitro.inspect(evidence, now_s)
    return intel.inspect(evidence, now_s)


def _problems(found: Found, policy: Policy, now_s: float, bound: bytes) -> Iterator[str]:
    if not hmac.compare_digest(found.bound, bound):
        yield "the evidence is bound to another key or another nonce than was asked"
    if found.is_debug and not policy.accept_debug:
        yield "the program runs in debug mode: its host can look into it"
    yield from _program_problems(found, policy)
    yield from _age_problems(found, policy, now_s)
    yield from _revocations(found, policy)


def _program_problems(found: Found, policy: Policy) -> Iterator[str]:
    measurement = found.measurement.hex()
    matching = [
        one for one in policy.program if (one.kind, one.measurement) == (found.kind, measurement)
    ]
    if not matching:
        yield f"program {measurement[:16]}... of kind {found.kind} is not in the policy"
    statuses = {status for one in matching for status in one.statuses} or {"ok"}
    if found.status not in statuses:
        accepted = ", ".join(sorted(statuses))
        yield f"the platform's status is {found.status}; accepted is {accepted}"


def _age_problems(found: Found, policy: Policy, now_s: float) -> Iterator[str]:
    if found.issued_s is None:
        return
    age_s = now_s - found.issued_s
    if not age_s <= policy.age_max_s:
        yield f"the evidence is {age_s:.0f} s old; accepted is {policy.age_max_s:g} s"
    if not age_s >= -policy.clock_error_s:
        yield f"the evidence is dated {-age_s:.0f} s after the given time"


def _revocations(found: Found, policy: Policy) -> Iterator[str]:
    revoked = policy.revoked
    for name, present, listed in (
        ("measurement", {found.measurement.hex()}, revoked.measurements),
        ("certificate", found.certificates, revoked.certificates),
        ("chip", found.chips, revoked.chips),
        ("development root", found.roots, revoked.roots),
        ("advisory", set(found.advisories), revoked.advisories),
    ):
        for one in sorted(present & set(listed)):
            yield f"{name} {one[:16]} is revoked by the policy"
