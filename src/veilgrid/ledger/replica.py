"""One replica of the ledger: practical Byzantine fault tolerance as a machine [ledger 1; ledger 3].

What its operators may do is in [docs/threat-model.md 3].

Requests are ordered by the primary of a view in three steps [Castro and Liskov 2002]; a replica
writes to its journal before each vote, so that its next life can say nothing else. Nothing that a
peer sends raises; what cannot be honest becomes an :class:`~veilgrid.ledger.message.Accusation`.
"""

from collections.abc import Callable, Sequence
from typing import Any

from veilgrid.errors import invariant
from veilgrid.ledger._catching_up import CatchingUp
from veilgrid.ledger.journalled import (
    Accepted,
    Committed,
    Entered,
    Installed,
    Left,
    Locked,
    Stable,
    Vouched,
)
from veilgrid.ledger.message import (
    NOTHING,
    VIEW_BITS,
    Batch,
    Checkpoint,
    Commit,
    Configuration,
    Confirmation,
    FetchBatch,
    FetchedBatch,
    FetchState,
    Lineage,
    NewView,
    Prepare,
    PrePrepare,
    Request,
    StatePart,
    Status,
    Verify,
    ViewChange,
    batch_digest,
)
from veilgrid.ledger.service import Application
from veilgrid.ledger.settings import Settings
from veilgrid.machine import START, Effect, Event, NodeId, Received, Send, TimerFired
from veilgrid.signature import Signs
from veilgrid.signature import verify as verify_ed25519


class Replica(CatchingUp):
    """One of 3f + 1.

    Parameters
    ----------
    me
        Its name in the configuration.
    genesis
        The first configuration; its digest names the ledger.
    signer
        Its key.
    application
        What is replicated.
    records
        What its journal holds, oldest first.
    verify
        ed25519; a simulation may pass something cheaper.
    """

    def __init__(
        self,
        me: NodeId,
        genesis: Configuration,
        signer: Signs,
        application: Application,
        records: Sequence[Any] = (),
        settings: Settings | None = None,
        verify: Verify = verify_ed25519,
    ) -> None:
        super().__init__(me, genesis, signer, application, settings, verify)
        self._votes: dict[type, Callable[[Any], list[Effect]]] = {
            PrePrepare: self._on_pre_prepare,
            Prepare: self._on_prepare,
            Commit: self._on_commit,
            Confirmation: self._on_confirmation,
            Checkpoint: self._on_checkpoint,
            ViewChange: self._on_view_change,
            NewView: self._on_new_view,
            Lineage: self._on_lineage,
        }
        for record in records:
            self._recover(record)

    def handle(self, event: Event) -> list[Effect]:
        """Advance by one event. All branching on event kind happens here and below."""
        if self.is_halted:
            return []
        match event:
            case Received(sender, message):
                return self._received(sender, message)
            case TimerFired("view"):
                return self._on_view_timeout()
            case TimerFired("status"):
                return self._on_tick()
            case TimerFired(name) if name == START:
                return self._on_start()
        return []

    def _received(self, sender: NodeId, message: Any) -> list[Effect]:
        vote = self._votes.get(type(message))
        if vote is not None:
            return vote(message)
        match message:
            case Request():
                return self._on_request(sender, message)
            case Status() if sender in self._keys and sender != self.me:
                return self._on_status(sender, message)
            case FetchBatch(digest) if sender in self._keys and digest in self.window.batches:
                return [Send(sender, FetchedBatch(self.window.batches[digest]))]
            case FetchedBatch(batch):
                return self._on_batch(batch)
            case FetchState() if sender in self._keys:
                return self._on_fetch_state(sender, message)
            case StatePart():
                return self._on_state_part(message)
        return []

    def _recover(self, record: Any) -> None:
        """Take up one record of the journal; nothing is sent."""
        match record:
            case Accepted(proposal):
                self._recover_proposal(proposal)
            case Locked(prepared) if self.window.contains(prepared.sequence):
                slot = self.window.slot(prepared.sequence)
                slot.prepared = prepared
                self._own_commit(slot)
            case Committed(proof, batch) if proof.sequence == self.service.sequence + 1:
                self._recover_committed(proof, batch)
            case Vouched(checkpoint):
                if checkpoint.summary.sequence > self.window.low:
                    self.checkpoints.add(checkpoint, len(self._keys) + 1)
            case Left(change) if change.view >> VIEW_BITS == self.configuration.number:
                self.views.view, self.views.is_changing = change.view, True
                self.views.changes[self.me] = change
            case Entered(new) if new.view >> VIEW_BITS == self.configuration.number:
                self._enter_silently(new)
                for slot in self.window.slots.values():
                    held = slot.proposal
                    if held and held.view == new.view and self.primary != self.me:
                        self._own_prepare(slot)
            case Stable(certificate):
                self._settle(certificate)
            case Installed(lineage, snapshot):
                invariant(self._install(lineage, snapshot), "an installed snapshot was checked")

    def _recover_proposal(self, proposal: PrePrepare) -> None:
        if not self.window.contains(proposal.sequence):
            return
        slot = self._accept(proposal)
        if self.configuration.primary(proposal.view) != self.me:
            self._own_prepare(slot)
        else:
            self._next = max(self._next, proposal.sequence + 1)

    def _recover_committed(self, proof: Confirmation, batch: Batch | None) -> None:
        sequence, digest = proof.sequence, proof.digest
        known = self.window.batches.get(digest, NOTHING) if batch is None else batch
        invariant(batch_digest(known) == digest, "the journal holds what it confirmed")
        self.window.batches[digest] = known
        self.window.slot(sequence).proof = proof
        self._next = max(self._next, sequence + 1)
        _, is_due = self.service.execute(sequence, known)
        if is_due:
            self.moments[sequence] = self.service.moment()
