"""Ask processes for evidence, each time with a nonce of its own that counts once [attestation 8].

What evidence stands against, and what not, is in [attestation 7].

A gate belongs to one verifier and holds no sockets: who runs it sends the challenge and hands back
what comes.
"""

from dataclasses import dataclass
from typing import Final

from veilgrid.errors import invariant
from veilgrid.machine import NodeId
from veilgrid.node.attest.evidence import Claims, Evidence, EvidenceRefused, binding
from veilgrid.node.attest.policy import Policy
from veilgrid.node.attest.verify import verify
from veilgrid.secret import Randomness

NONCE_LENGTH: Final = 32
ANSWER_MAX_S: Final = 60.0
VALID_S: Final = 3600.0
_WAITING_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class Admission:
    """What is believed of a process, and until when it need not be asked again."""

    claims: Claims
    until_s: float


@dataclass(frozen=True, slots=True)
class _Asked:
    nonce: bytes
    public_key: bytes
    at_s: float


class Gate:
    """Remember who was asked what, and who has shown it.

    Parameters
    ----------
    policy
        What evidence has to show; :meth:`replace_policy` changes it.
    randomness
        Draws the nonces.
    answer_max_s
        How long an answer may take.
    valid_s
        How long an admission lasts.
    """

    def __init__(
        self,
        policy: Policy,
        randomness: Randomness,
        *,
        answer_max_s: float = ANSWER_MAX_S,
        valid_s: float = VALID_S,
    ) -> None:
        self._policy = policy
        self._randomness = randomness
        self._answer_max_s = answer_max_s
        self._valid_s = valid_s
        self._asked: dict[NodeId, _Asked] = {}
        self._admitted: dict[NodeId, Admission] = {}
        self._has_told_software = False

    def challenge(self, node: NodeId, public_key: bytes, now_s: float) -> bytes:
        """Return the nonce with which ``node`` is asked; an earlier one does not count any more.

        Parameters
        ----------
        node
            From its certificate.
        public_key
            Under which the directory says that it signs.
        now_s : seconds since 1970
            The verifier's clock.
        """
        if node not in self._asked and len(self._asked) >= _WAITING_MAX:
            oldest = min(self._asked, key=lambda one: self._asked[one].at_s)
            del self._asked[oldest]
        nonce = self._randomness.octets(NONCE_LENGTH)
        invariant(len(nonce) == NONCE_LENGTH, "randomness gives as many octets as were asked for")
        self._asked[node] = _Asked(nonce, public_key, now_s)
        return nonce

    def admit(self, node: NodeId, evidence: Evidence, now_s: float) -> Claims:
        """Judge the answer of ``node``; its nonce is used up, whatever comes of it.

        Parameters
        ----------
        node
            From the certificate of the connection on which the answer came.
        evidence
            The answer.
        now_s : seconds since 1970
            The verifier's clock.

        Raises
        ------
        EvidenceRefused
            It was not asked, answers too late, or does not show what it has to.
        """
        asked = self._asked.pop(node, None)
        self._admitted.pop(node, None)
        if asked is None:
            raise EvidenceRefused((f"{node} was not asked, or has answered already",))
        waited_s = now_s - asked.at_s
        if not 0 <= waited_s <= self._answer_max_s:
            problem = f"{node} answered after {waited_s:.0f} s; {self._answer_max_s:g} s are given"
            raise EvidenceRefused((problem,))
        bound = binding(asked.public_key, asked.nonce)
        claims = verify(evidence, self._policy, now_s, bound, is_told=not self._has_told_software)
        self._has_told_software |= not claims.hardware
        self._admitted[node] = Admission(claims, now_s + self._valid_s)
        return claims

    def admission(self, node: NodeId, now_s: float) -> Admission | None:
        """Return what ``node`` has shown, if that is not too long ago."""
        found = self._admitted.get(node)
        return found if found is not None and now_s <= found.until_s else None

    def replace_policy(self, policy: Policy) -> None:
        """Judge by another policy from now on; everybody has to show evidence again."""
        self._policy = policy
        self._asked.clear()
        self._admitted.clear()
