"""Signed checkpoints, and fetching the state behind one [ledger 5]."""

from dataclasses import dataclass, field
from typing import Final

from veilgrid.ledger.message import (
    PART_COUNT_MAX,
    PART_LENGTH,
    Accusation,
    Certificate,
    Checkpoint,
    FetchState,
    Lineage,
    StatePart,
    Vouch,
    digest_of,
    encode,
)

_HELD_MAX: Final = 8


@dataclass(slots=True)
class Checkpoints:
    """The newest checkpoint votes of each replica, at most eight of each."""

    votes: dict[str, dict[int, Checkpoint]] = field(default_factory=dict)

    def held(self, checkpoint: Checkpoint) -> Checkpoint | None:
        """Return the vote of the same replica on the same sequence."""
        return self.votes.get(checkpoint.replica, {}).get(checkpoint.summary.sequence)

    def add(self, checkpoint: Checkpoint, quorum: int) -> Certificate | None:
        """Keep a vote that was checked; return the certificate if it completes one."""
        mine = self.votes.setdefault(checkpoint.replica, {})
        mine[checkpoint.summary.sequence] = checkpoint
        if len(mine) > _HELD_MAX:
            del mine[min(mine)]
        agreeing = [
            Vouch(vote.replica, vote.signature)
            for _, votes in sorted(self.votes.items())
            if (vote := votes.get(checkpoint.summary.sequence)) is not None
            and vote.summary == checkpoint.summary
        ]
        if len(agreeing) < quorum:
            return None
        return Certificate(checkpoint.summary, tuple(agreeing[:quorum]))

    def forget(self, low: int) -> None:
        """Drop votes on sequences up to ``low``."""
        for replica, votes in self.votes.items():
            self.votes[replica] = {s: vote for s, vote in votes.items() if s > low}

    def of(self, replica: str) -> list[Checkpoint]:
        """Return the votes held of ``replica``, by sequence."""
        return [vote for _, vote in sorted(self.votes.get(replica, {}).items())]


def checkpoint_accusation(one: Checkpoint, other: Checkpoint, view: int) -> Accusation:
    """Return the accusation that two genuine votes on one sequence make."""
    return Accusation(
        one.replica,
        "checkpoint",
        view,
        one.summary.sequence,
        (summary_digest(one), summary_digest(other)),
        (one.signature, other.signature),
    )


def summary_digest(checkpoint: Checkpoint) -> bytes:
    """Return the digest of what a checkpoint says."""
    return digest_of("summary", encode(checkpoint.summary))


@dataclass(slots=True)
class Transfer:
    """Fetch one snapshot, part after part from one peer, the next peer if that one fails.

    Attributes
    ----------
    target
        A checked lineage whose newest checkpoint lies ahead of this replica.
    is_fresh
        A part has come since the last tick.
    """

    target: Lineage | None = None
    parts: list[bytes] = field(default_factory=list)
    peer: int = 0
    is_fresh: bool = False

    @property
    def sequence(self) -> int:
        """Sequence of the target, 0 without one."""
        return self.target.stable.summary.sequence if self.target else 0

    def aim(self, lineage: Lineage) -> bool:
        """Take up a newer target; return whether it is one."""
        if lineage.stable.summary.sequence <= self.sequence:
            return False
        self.target, self.parts, self.is_fresh = lineage, [], False
        return True

    def tick(self) -> FetchState | None:
        """Ask again: the same peer if it answers, else the next one."""
        if self.target is None:
            return None
        if not self.is_fresh:
            self.peer, self.parts = self.peer + 1, []
        self.is_fresh = False
        return FetchState(self.sequence, len(self.parts))

    def take(self, part: StatePart) -> FetchState | bytes | None:
        """Return the next question, or the whole snapshot when the last part is there."""
        if (
            self.target is None
            or part.sequence != self.sequence
            or part.part != len(self.parts)
            or not 0 < part.part_count <= PART_COUNT_MAX
            or len(part.octets) > PART_LENGTH
        ):
            return None
        self.parts.append(part.octets)
        self.is_fresh = True
        if len(self.parts) < part.part_count:
            return FetchState(self.sequence, len(self.parts))
        octets, self.parts, self.is_fresh = b"".join(self.parts), [], False
        return octets


def part_of(sequence: int, snapshot: bytes, part: int) -> StatePart | None:
    """Return one part of a snapshot, None beyond its end."""
    count = max(1, -(-len(snapshot) // PART_LENGTH))
    if not 0 <= part < count:
        return None
    octets = snapshot[part * PART_LENGTH : (part + 1) * PART_LENGTH]
    return StatePart(sequence, part, count, octets)
