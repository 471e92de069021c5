"""What a replica tells peers that lack something, and fetches itself [ledger 5.4, 5.5]."""

from typing import Final

from veilgrid.errors import invariant
from veilgrid.ledger._leaving import Leaving
from veilgrid.ledger.checkpoint import part_of
from veilgrid.ledger.journalled import Installed
from veilgrid.ledger.message import (
    NOTHING,
    NOTHING_DIGEST,
    Anchored,
    CaughtUp,
    FetchState,
    Lineage,
    PrePrepare,
    StatePart,
    Status,
    lineage_end,
)
from veilgrid.ledger.window import vote_statement
from veilgrid.machine import Decide, Effect, NodeId, Persist, Send, SetTimer

_RESEND_MAX: Final = 32


class CatchingUp(Leaving):
    """The part of a replica that repeats what was lost and takes over a certified state."""

    def _on_start(self) -> list[Effect]:
        effects: list[Effect] = []
        for sequence in sorted(self.moments):
            held = {vote.summary.sequence for vote in self.checkpoints.of(self.me)}
            if sequence > self.window.low and sequence not in held:
                effects += self._vouch(sequence)
        for sequence in sorted(self.window.slots):
            if sequence in self.window.slots:
                effects += self._advance(self.window.slots[sequence])
        return [*effects, *self._on_tick(), *self._gather(), *self._watch()]

    def _on_tick(self) -> list[Effect]:
        views, window = self.views, self.window
        status = Status(views.view, views.is_changing, self.service.sequence, window.low)
        effects = self._broadcast(status)
        if self.transfer.sequence > self.service.sequence:
            question = self.transfer.tick()
            peer = self._others[self.transfer.peer % len(self._others)]
            effects += [Send(peer, question)]
        slot = window.slots.get(self.service.sequence + 1)
        if slot is not None and slot.proof is not None:
            effects += self._execute()
        return [*effects, SetTimer("status", self.settings.status_ns)]

    def _on_status(self, sender: NodeId, status: Status) -> list[Effect]:
        """Send again what ``sender`` lacks [ledger 5.4]."""
        effects: list[Effect] = []
        lineage = self.lineage
        if lineage is not None and status.stable < self.window.low:
            effects.append(Send(sender, lineage))
        views = self.views
        is_behind = status.view < views.view or (status.view == views.view and status.is_changing)
        if views.is_changing and self.me in views.changes and status.view <= views.view:
            effects.append(Send(sender, views.changes[self.me]))
        elif is_behind and views.new_view is not None:
            effects.append(Send(sender, views.new_view))
        effects += [
            Send(sender, vote)
            for vote in self.checkpoints.of(self.me)
            if vote.summary.sequence > status.stable
        ]
        effects += self._resent(sender, status.executed)
        return effects

    def _resent(self, to: NodeId, executed: int) -> list[Effect]:
        effects: list[Effect] = []
        for sequence in range(executed + 1, executed + 1 + _RESEND_MAX):
            slot = self.window.slots.get(sequence)
            if slot is None:
                continue
            if slot.proof is not None:
                effects.append(Send(to, slot.proof))
                continue
            proposal = slot.proposal
            if proposal is not None and self.primary == self.me:
                batch = self.window.batches.get(proposal.digest)
                if proposal.digest == NOTHING_DIGEST:
                    batch = NOTHING
                if proposal.view == self.views.view and batch is not None:
                    full = PrePrepare(*vote_statement(proposal), proposal.signature, batch)
                    effects.append(Send(to, full))
            mine = (slot.prepares.get(self.me), slot.commits.get(self.me))
            effects += [Send(to, vote) for vote in mine if vote is not None]
        return effects

    def _on_lineage(self, lineage: Lineage) -> list[Effect]:
        sequence = lineage.stable.summary.sequence
        if sequence <= self.window.low or sequence <= self.transfer.sequence:
            return []
        if len(lineage.steps) < len(self.steps):
            return []
        if lineage_end(self._notary, self.genesis, lineage) is None:
            return []
        if sequence <= self.service.sequence:
            return self._anchor(lineage.stable)
        self.transfer.aim(lineage)
        return []

    def _on_fetch_state(self, sender: NodeId, question: FetchState) -> list[Effect]:
        moment = self.moments.get(question.sequence)
        if moment is None or question.sequence != self.window.low:
            lineage = self.lineage
            return [Send(sender, lineage)] if lineage is not None else []
        if self._served[0] != question.sequence:
            self._served = (question.sequence, self.service.snapshot(moment))
        part = part_of(question.sequence, self._served[1], question.part)
        return [Send(sender, part)] if part is not None else []

    def _on_state_part(self, part: StatePart) -> list[Effect]:
        answer = self.transfer.take(part)
        if answer is None:
            return []
        peer = self._others[self.transfer.peer % len(self._others)]
        if isinstance(answer, FetchState):
            return [Send(peer, answer)]
        lineage = self.transfer.target
        invariant(lineage is not None, "a snapshot belongs to a target")
        if lineage is None or self.transfer.sequence <= self.service.sequence:
            return []
        first = len(self.service.records)
        if not self._install(lineage, answer):
            return []  # A liar's snapshot: the next tick asks somebody else.
        effects: list[Effect] = [Persist(Installed(lineage, answer))]
        missed = tuple(self.service.records[first:])
        effects.append(Decide(CaughtUp(self.service.sequence, first, missed)))
        effects.append(Decide(Anchored(lineage)))
        return [*effects, *self._execute()]

    def _install(self, lineage: Lineage, snapshot: bytes) -> bool:
        """Take over a snapshot if it is the certified one."""
        service = self.service.restored(snapshot, lineage.stable.summary)
        if service is None:
            return False
        sequence = lineage.stable.summary.sequence
        self.service = service
        self.moments = {sequence: service.moment()}
        if len(lineage.steps) > len(self.steps):
            self.steps = lineage.steps
            self._configure(lineage.steps[-1][1])
        self._settle(lineage.stable)
        self._next = max(self._next, sequence + 1)
        last = service.last
        self._pool = {k: r for k, r in self._pool.items() if k[1] > last(k[0])}
        return True
