"""The rules of a view change: what it must show, and what follows from a quorum [ledger 4]."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from veilgrid.ledger.message import (
    DIGEST_LENGTH,
    NOTHING_DIGEST,
    VIEW_BITS,
    Certificate,
    Configuration,
    NewView,
    Notary,
    Prepared,
    ViewChange,
    certificate_holds,
    digest_of,
    encode,
    keys_of,
)


@dataclass(frozen=True, slots=True)
class Rules:
    """Check view changes within one configuration.

    Attributes
    ----------
    boundary
        Certificate of the checkpoint at which this configuration began; None for the first one.
    window_length
        How many sequences lie between the watermarks.
    """

    notary: Notary
    configuration: Configuration
    boundary: Certificate | None
    window_length: int

    def prepared_holds(self, prepared: Prepared) -> bool:
        """Return whether a primary and 2f backups signed this."""
        configuration = self.configuration
        if prepared.view >> VIEW_BITS != configuration.number:
            return False
        primary = configuration.primary(prepared.view)
        keys = keys_of(configuration.replicas)
        statement = (prepared.view, prepared.sequence, prepared.digest)
        if not self.notary.check(keys[primary], "pre-prepare", prepared.proposal, *statement):
            return False
        del keys[primary]
        needed = configuration.backups_needed
        return self.notary.holds(prepared.vouches, keys, needed, "prepare", *statement)

    def stable_holds(self, stable: Certificate | None) -> bool:
        """Return whether this may be the newest stable checkpoint of a member."""
        start = self.boundary.summary.sequence if self.boundary else 0
        if stable is None:
            return self.boundary is None
        if self.boundary is not None and stable.summary == self.boundary.summary:
            return True
        return (
            stable.summary.sequence > start
            and stable.summary.configuration_digest == self.configuration.digest()
            and certificate_holds(self.notary, self.configuration, stable)
        )

    def holds(self, change: ViewChange) -> bool:
        """Return whether everything that ``change`` shows is genuine and bounded."""
        low = change.stable.summary.sequence if change.stable else 0
        keys = keys_of(self.configuration.replicas)
        sequences = [prepared.sequence for prepared in change.prepared]
        return (
            change.view >> VIEW_BITS == self.configuration.number
            and change.view > self.configuration.first_view
            and len(sequences) <= self.window_length
            and all(low < sequence <= low + self.window_length for sequence in sequences)
            and all(one < other for one, other in pairwise(sequences))
            and all(prepared.view < change.view for prepared in change.prepared)
            and all(len(prepared.digest) == DIGEST_LENGTH for prepared in change.prepared)
            and self.notary.check(
                keys.get(change.replica), "view-change", change.signature, *statement_of(change)
            )
            and self.stable_holds(change.stable)
            and all(self.prepared_holds(prepared) for prepared in change.prepared)
        )

    def new_view_holds(self, new: NewView, known: Iterable[ViewChange]) -> bool:
        """Return whether a new view follows from its view changes.

        ``known`` were checked before.
        """
        configuration = self.configuration
        names = {change.replica for change in new.view_changes}
        primary = configuration.primary(new.view)
        key = keys_of(configuration.replicas)[primary]
        if (
            len(new.view_changes) != configuration.quorum
            or len(names) != configuration.quorum
            or any(change.view != new.view for change in new.view_changes)
            or not self.notary.check(key, "new-view", new.signature, *new_view_statement(new))
        ):
            return False
        checked = list(known)
        if not all(change in checked or self.holds(change) for change in new.view_changes):
            return False
        _, chosen = selected(new.view_changes)
        return len(chosen) == len(new.proposals) and all(
            self.notary.check(key, "pre-prepare", signature, new.view, sequence, digest)
            for (sequence, digest), signature in zip(chosen, new.proposals, strict=True)
        )


def statement_of(change: ViewChange) -> tuple[int, bytes, bytes, str]:
    """Return what the signature of a view change covers."""
    return (
        change.view,
        digest_of("stable", encode(change.stable)),
        digest_of("prepared", encode(change.prepared)),
        change.replica,
    )


def new_view_statement(new: NewView) -> tuple[int, bytes]:
    """Return what the signature of a new view covers."""
    return new.view, digest_of("new-view", encode((new.view_changes, new.proposals)))


def selected(
    changes: Iterable[ViewChange],
) -> tuple[Certificate | None, list[tuple[int, bytes]]]:
    """Return where a new view starts and what it must propose [ledger 4.4].

    The start is the highest stable checkpoint shown. Each sequence above it, up to the highest
    prepared one, gets the batch that was prepared in the highest view, or nothing if none was.
    """
    changes = list(changes)
    stable = max(
        (change.stable for change in changes if change.stable is not None),
        key=lambda certificate: certificate.summary.sequence,
        default=None,
    )
    low = stable.summary.sequence if stable else 0
    best: dict[int, Prepared] = {}
    for change in changes:
        for prepared in change.prepared:
            held = best.get(prepared.sequence)
            if prepared.sequence > low and (held is None or held.view < prepared.view):
                best[prepared.sequence] = prepared
    high = max(best, default=low)
    return stable, [
        (sequence, best[sequence].digest if sequence in best else NOTHING_DIGEST)
        for sequence in range(low + 1, high + 1)
    ]


@dataclass(slots=True)
class Views:
    """Which view a replica is in, and the newest view change of each replica.

    Attributes
    ----------
    is_changing
        It has left all views before ``view`` and waits for the new one.
    attempts
        View changes since the last progress; the time-out doubles with each.
    new_view
        What opened ``view``; None in the first one.
    chosen
        What ``new_view`` obliges the primary to propose.
    """

    view: int
    is_changing: bool = False
    attempts: int = 0
    new_view: NewView | None = None
    chosen: dict[int, bytes] = field(default_factory=dict)
    changes: dict[str, ViewChange] = field(default_factory=dict)

    def is_news(self, change: ViewChange) -> bool:
        """Return whether this is newer than what is held of its sender."""
        held = self.changes.get(change.replica)
        is_open = change.view > self.view or (change.view == self.view and self.is_changing)
        return is_open and (held is None or held.view < change.view)

    def for_view(self) -> list[ViewChange]:
        """Return the view changes for the present view, in a fixed order."""
        found = [change for change in self.changes.values() if change.view == self.view]
        return sorted(found, key=lambda change: change.replica)

    @property
    def leaving_count(self) -> int:
        """How many replicas ask for this view or a later one."""
        return sum(change.view >= self.view for change in self.changes.values())

    def joinable(self, needed: int) -> int | None:
        """Return the lowest newer view if f + 1 replicas ask for newer ones [ledger 4.3]."""
        newer = [change.view for change in self.changes.values() if change.view > self.view]
        return min(newer) if len(newer) >= needed else None

    def enter(self, new: NewView) -> tuple[Certificate | None, list[tuple[int, bytes]]]:
        """Take up a new view that was checked."""
        stable, chosen = selected(new.view_changes)
        self.view, self.is_changing, self.new_view = new.view, False, new
        self.chosen = dict(chosen)
        self.changes = {n: c for n, c in self.changes.items() if c.view > new.view}
        return stable, chosen
