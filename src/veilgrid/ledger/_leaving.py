"""View changes of a replica: the timer, leaving, joining, entering [ledger 4]."""

from typing import Final

from veilgrid.ledger._ordering import Ordering
from veilgrid.ledger.journalled import Entered, Left
from veilgrid.ledger.message import (
    NOTHING_DIGEST,
    VIEW_BITS,
    Certificate,
    FetchBatch,
    Lineage,
    NewView,
    PrePrepare,
    ViewChange,
)
from veilgrid.ledger.view_change import new_view_statement, selected, statement_of
from veilgrid.machine import Effect, Persist, SetTimer

_ATTEMPTS_MAX: Final = 10


class Leaving(Ordering):
    """The part of a replica that gives up a primary that does not serve."""

    def _waiting(self) -> tuple[str, int] | None:
        """Return the oldest request that could be executed now."""
        if self._watched is not None and self._watched in self._pool:
            return self._watched
        for client, number in self._pool:
            if number == self.service.last(client) + 1:
                return client, number
        return ("", self.service.change.boundary) if self.service.change else None

    def _watch(self) -> list[Effect]:
        """See to it that the timer runs while something waits [ledger 4.1]."""
        if not self._is_active:
            return []
        waiting = self._waiting()
        if waiting != self._watched:
            if self._watched is not None:
                self.views.attempts = 0
            self._is_armed, self._watched = False, waiting
        if waiting is None or self._is_armed:
            return []
        return self._arm()

    def _arm(self) -> list[Effect]:
        self._is_armed = True
        doubled = min(self.views.attempts, _ATTEMPTS_MAX)
        return [SetTimer("view", self.settings.view_timeout_ns << doubled)]

    def _on_view_timeout(self) -> list[Effect]:
        if not self._is_armed or not self.is_member:
            return []
        self._is_armed = False
        return self._leave(self.views.view + 1)

    def _leave(self, view: int) -> list[Effect]:
        """Give up all views before ``view`` and say what is known [ledger 4.2]."""
        self.views.view, self.views.is_changing = view, True
        self.views.attempts += 1
        self._is_armed = False
        unsigned = ViewChange(view, self.stable, tuple(self.window.prepared()), self.me, b"")
        signature = self._notary.sign(self._signer, "view-change", *statement_of(unsigned))
        change = ViewChange(view, self.stable, unsigned.prepared, self.me, signature)
        self.views.changes[self.me] = change
        effects = [Persist(Left(change)), *self._broadcast(change)]
        return [*effects, *self._gather()]

    def _on_view_change(self, change: ViewChange) -> list[Effect]:
        if not self.is_member or change.replica == self.me or not self.views.is_news(change):
            return []
        if not self.rules.holds(change):
            return []
        self.views.changes[change.replica] = change
        effects: list[Effect] = []
        if change.stable is not None and change.stable.summary.sequence > self.service.sequence:
            self.transfer.aim(Lineage(self.steps, change.stable))
        joinable = self.views.joinable(self.configuration.fault_max + 1)
        if joinable is not None:
            effects += self._leave(joinable)
        return [*effects, *self._gather()]

    def _gather(self) -> list[Effect]:
        """With a quorum of view changes: open the view as its primary, or wait for it."""
        changes = self.views.for_view()
        if not self.views.is_changing or self.views.leaving_count < self.configuration.quorum:
            return []
        if self.primary != self.me or len(changes) < self.configuration.quorum:
            return [] if self._is_armed else self._arm()
        shown = tuple(changes[: self.configuration.quorum])
        _, chosen = selected(shown)
        view = self.views.view
        proposals = tuple(
            self._notary.sign(self._signer, "pre-prepare", view, sequence, digest)
            for sequence, digest in chosen
        )
        unsigned = NewView(view, shown, proposals, b"")
        signature = self._notary.sign(self._signer, "new-view", *new_view_statement(unsigned))
        new = NewView(view, shown, proposals, signature)
        return [Persist(Entered(new)), *self._broadcast(new), *self._enter(new)]

    def _on_new_view(self, new: NewView) -> list[Effect]:
        is_open = new.view > self.views.view or (
            new.view == self.views.view and self.views.is_changing
        )
        if not self.is_member or not is_open or new.view >> VIEW_BITS != self.configuration.number:
            return []
        if not self.rules.new_view_holds(new, self.views.changes.values()):
            return []
        return [Persist(Entered(new)), *self._enter(new)]

    def _enter(self, new: NewView) -> list[Effect]:
        """Begin a view that is in the journal: vote for all that it proposes."""
        effects = self._anchor_shown(self._enter_silently(new))
        for sequence in self.views.chosen:
            slot = self.window.slots.get(sequence)
            if slot is None or slot.proposal is None or slot.proposal.view != new.view:
                continue
            if self.primary != self.me:
                effects += self._prepare(slot)
            digest = slot.proposal.digest
            if digest != NOTHING_DIGEST and digest not in self.window.batches:
                effects += self._broadcast(FetchBatch(digest))
            effects += self._advance(slot)
        return [*effects, *self._resume()]

    def _enter_silently(self, new: NewView) -> Certificate | None:
        stable, chosen = self.views.enter(new)
        self._is_armed = False
        self._assigned = {}
        low = stable.summary.sequence if stable else 0
        self._next = max(low, chosen[-1][0] if chosen else 0) + 1
        for (sequence, digest), signature in zip(chosen, new.proposals, strict=True):
            if self.window.contains(sequence):
                self._accept(PrePrepare(new.view, sequence, digest, signature))
        return stable

    def _anchor_shown(self, stable: Certificate | None) -> list[Effect]:
        return self._anchor(stable) if stable is not None else []
