"""Slots between the watermarks: what was proposed and who voted for it [ledger 3, 4].

Every table here is bounded: slots by the window, votes by the replicas, views by replacement.
Votes are stored only after their signature was checked.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from veilgrid.ledger.message import (
    Accusation,
    Batch,
    Commit,
    Confirmation,
    Prepare,
    Prepared,
    PrePrepare,
    Vouch,
)


@dataclass(slots=True)
class Slot:
    """One sequence.

    Attributes
    ----------
    proposal
        The newest accepted one.
    prepares, commits
        The newest vote of each replica. Commits count in whatever view they were made.
    prepared
        Certificate of the highest view in which this replica saw one.
    is_committing
        The commit vote of the newest view is sent.
    proof
        That a quorum committed one digest.
    """

    sequence: int
    proposal: PrePrepare | None = None
    prepares: dict[str, Prepare] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    prepared: Prepared | None = None
    is_committing: bool = False
    proof: Confirmation | None = None

    def accept(self, proposal: PrePrepare) -> None:
        """Take over a proposal of a newer view."""
        self.proposal = proposal
        self.is_committing = False

    def certificate(self, needed: int) -> Prepared | None:
        """Return the prepared certificate of the newest proposal if 2f backups prepared it."""
        proposal = self.proposal
        if proposal is None:
            return None
        agreeing = [v for v in self.prepares.values() if _matches(v, proposal)]
        if len(agreeing) < needed:
            return None
        return Prepared(
            proposal.view,
            proposal.sequence,
            proposal.digest,
            proposal.signature,
            tuple(Vouch(vote.replica, vote.signature) for vote in agreeing[:needed]),
        )

    def committed(self, quorum: int) -> Confirmation | None:
        """Return the proof that a quorum committed one digest in one view, None before."""
        tally = Counter((vote.view, vote.digest) for vote in self.commits.values())
        for (view, digest), count in tally.items():
            if count >= quorum:
                vouches = [
                    Vouch(vote.replica, vote.signature)
                    for _, vote in sorted(self.commits.items())
                    if (vote.view, vote.digest) == (view, digest)
                ]
                return Confirmation(view, self.sequence, digest, tuple(vouches[:quorum]))
        return None


def _matches(vote: Prepare, proposal: PrePrepare) -> bool:
    return vote.view == proposal.view and vote.digest == proposal.digest


@dataclass(slots=True)
class Window:
    """Slots of sequences above the stable checkpoint, at most ``length`` of them."""

    length: int
    low: int = 0
    slots: dict[int, Slot] = field(default_factory=dict)
    batches: dict[bytes, Batch] = field(default_factory=dict)

    def contains(self, sequence: int) -> bool:
        """Return whether ``sequence`` lies between the watermarks."""
        return self.low < sequence <= self.low + self.length

    def slot(self, sequence: int) -> Slot:
        """Return the slot of a sequence inside the window."""
        if sequence not in self.slots:
            self.slots[sequence] = Slot(sequence)
        return self.slots[sequence]

    def advance(self, low: int) -> None:
        """Forget everything up to a stable checkpoint."""
        self.low = low
        self.slots = {s: slot for s, slot in self.slots.items() if s > low}
        used = self.journalled()
        used |= {slot.proof.digest for slot in self.slots.values() if slot.proof}
        self.batches = {digest: b for digest, b in self.batches.items() if digest in used}

    def journalled(self) -> set[bytes]:
        """Return the digests that proposals and certificates in the journal keep alive.

        After a restart exactly these are known, so only their batches may be left out of later
        records; a proof that has not been executed is in memory only.
        """
        held = [*(slot.proposal for slot in self.slots.values())]
        shown = [*(slot.prepared for slot in self.slots.values())]
        return {item.digest for item in (*held, *shown) if item is not None}

    def prepared(self) -> Iterator[Prepared]:
        """Yield the prepared certificates above the stable checkpoint, by sequence."""
        for sequence in sorted(self.slots):
            certificate = self.slots[sequence].prepared
            if certificate is not None:
                yield certificate


def contradiction(
    kind: str,
    culprit: str,
    one: PrePrepare | Prepare | Commit,
    other: PrePrepare | Prepare | Commit,
) -> Accusation | None:
    """Return the accusation that two genuine votes make together, None if they agree."""
    if (one.view, one.sequence) != (other.view, other.sequence) or one.digest == other.digest:
        return None
    return Accusation(
        culprit,
        kind,
        one.view,
        one.sequence,
        (one.digest, other.digest),
        (one.signature, other.signature),
    )


def vote_statement(
    vote: PrePrepare | Prepare | Commit | Confirmation | Prepared,
) -> tuple[int, int, bytes]:
    """Return what is signed of a vote: view, sequence, digest."""
    return vote.view, vote.sequence, vote.digest
