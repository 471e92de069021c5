"""Who is admitted to a day: validators' ballots on evidence of attestation, counted [ledger 9.5].

Each validator asks with a nonce of its own and judges outside ``apply`` [attestation 8]; here its
ballots are counted like verdicts. A ballot may turn from yes to no, because what was good can
expire or be revoked; never back within a day.
"""

from typing import Final

import msgspec

REASON_LENGTH_MAX: Final = 300


class Admission(msgspec.Struct, frozen=True, array_like=True):
    """What validators say of one participant.

    Attributes
    ----------
    ballots
        By validator: whether the evidence that it was shown is accepted.
    verdict
        Of 2f + 1 equal ballots, None before. A refusal is final for the day.
    reason
        Of the ballot that made it a refusal.
    """

    ballots: dict[str, bool] = {}
    verdict: bool | None = None
    reason: str = ""


def counted(
    held: Admission, validator: str, *, is_accepted: bool, reason: str, quorum: int
) -> Admission | None:
    """Return the admission with one more ballot; None if this ballot does not count."""
    before = held.ballots.get(validator)
    if before is False or before is is_accepted or held.verdict is False:
        return None
    ballots = {**held.ballots, validator: is_accepted}
    if sum(ballots.values()) >= quorum:
        return Admission(ballots, True)
    if sum(not ballot for ballot in ballots.values()) >= quorum:
        return Admission(ballots, False, reason)
    return Admission(ballots, held.verdict)
