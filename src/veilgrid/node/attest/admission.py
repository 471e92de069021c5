"""A validator's assessor and a process's quotes, with a clock and files [attestation 8]."""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from veilgrid.errors import ConfigError, SetupError
from veilgrid.machine import NodeId
from veilgrid.node.attest.evidence import EvidenceRefused, binding, decode, encode
from veilgrid.node.attest.gate import ANSWER_MAX_S, VALID_S, Gate
from veilgrid.node.attest.policy import Policy, read_policy
from veilgrid.node.attest.software import Provider
from veilgrid.roles.ledger_admission import Judgement, Quote
from veilgrid.secret import Randomness

Clock = Callable[[], float]
"""Seconds since 1970."""
EXPIRED: Final = "what was shown has expired or is revoked, and nothing new was shown"
_log = logging.getLogger("veilgrid.node.attest")


def quote_by(provider: Provider, clock: Clock) -> Quote:
    """Return how a process makes evidence when it is asked."""

    def quote(public_key: bytes, nonce: bytes) -> bytes:
        return encode(provider.quote(binding(public_key, nonce), clock()))

    return quote


class PolicyAssessor:
    """Ask and judge by a policy; fits :class:`~veilgrid.roles.ledger_admission.Assessor`.

    A question is repeated with the same nonce until its answer is overdue, so that a lost message
    costs nobody his place; an answer to an earlier question is ignored.

    Parameters
    ----------
    policy
        What evidence has to show; a path is read again whenever the file has changed.
    """

    def __init__(
        self,
        policy: Policy | Path,
        randomness: Randomness,
        clock: Clock,
        *,
        answer_max_s: float = ANSWER_MAX_S,
        valid_s: float = VALID_S,
    ) -> None:
        self._path = policy if isinstance(policy, Path) else None
        self._stamp = self._changed_at()
        rules = policy if isinstance(policy, Policy) else read_policy(policy)
        self._gate = Gate(rules, randomness, answer_max_s=answer_max_s, valid_s=valid_s)
        self._clock, self._answer_max_s = clock, answer_max_s
        self._open: dict[str, tuple[bytes, float]] = {}
        self._was_good: set[str] = set()
        self._is_overdue: set[str] = set()

    def replace_policy(self, policy: Policy) -> None:
        """Judge by another policy: everybody is asked again [attestation 8]."""
        self._gate.replace_policy(policy)
        self._open.clear()

    def ask(self, who: str, public_key: bytes) -> bytes | None:
        """Return the nonce to ask ``who`` with now; None while what it has shown is good."""
        self._reread()
        now_s = self._clock()
        if self._gate.admission(NodeId(who), now_s) is not None:
            return None
        nonce, since_s = self._open.get(who, (b"", 0.0))
        if nonce and now_s - since_s <= self._answer_max_s:
            return nonce
        if nonce:
            self._is_overdue.add(who)
        nonce = self._gate.challenge(NodeId(who), public_key, now_s)
        self._open[who] = nonce, now_s
        return nonce

    def judge(self, who: str, nonce: bytes, evidence: bytes) -> Judgement | None:
        """Judge an answer; None if it is not one to the question that was asked last."""
        asked, since_s = self._open.get(who, (b"", 0.0))
        now_s = self._clock()
        if asked != nonce or not 0 <= now_s - since_s <= self._answer_max_s:
            return None
        del self._open[who]
        self._is_overdue.discard(who)
        digest = hashlib.sha256(evidence).digest()
        try:
            claims = self._gate.admit(NodeId(who), decode(evidence, f"evidence of {who}"), now_s)
        except ConfigError as error:
            return Judgement(is_accepted=False, evidence=digest, reason=str(error))
        except EvidenceRefused as refused:
            _log.warning("%s: %s", who, refused)
            reason = "; ".join(refused.problems)
            return Judgement(is_accepted=False, evidence=digest, reason=reason)
        self._was_good.add(who)
        kind = "hardware" if claims.hardware else "not hardware"
        return Judgement(is_accepted=True, evidence=digest, reason=f"{claims.kind} ({kind})")

    def lapsed(self, who: str) -> Judgement | None:
        """Return a refusal if what was good has ended, and no answer came [attestation 8.2]."""
        if who not in self._was_good or who not in self._is_overdue:
            return None
        return Judgement(is_accepted=False, evidence=b"", reason=EXPIRED)

    def _changed_at(self) -> int:
        if self._path is None:
            return 0
        try:
            return self._path.stat().st_mtime_ns
        except OSError:
            return -1

    def _reread(self) -> None:
        """Take up a changed policy file; while it cannot be read, the former one counts."""
        stamp = self._changed_at()
        if self._path is None or stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self.replace_policy(read_policy(self._path))
        except (ConfigError, SetupError) as error:
            _log.error("the policy stays as it was: %s", error)
