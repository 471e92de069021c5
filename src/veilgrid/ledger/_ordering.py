"""Agreement of a replica: requests, proposals, three steps, execution [ledger 3.1]."""

from veilgrid.errors import invariant
from veilgrid.ledger._stability import Stability
from veilgrid.ledger.journalled import Accepted, Committed, Locked
from veilgrid.ledger.message import (
    BATCH_LENGTH_MAX,
    BATCH_REQUEST_COUNT_MAX,
    CLIENT_WINDOW,
    NOTHING,
    NOTHING_DIGEST,
    VIEW_BITS,
    Batch,
    Commit,
    Confirmation,
    Confirmed,
    FetchBatch,
    Prepare,
    PrePrepare,
    Reply,
    Request,
    batch_digest,
    is_bounded,
)
from veilgrid.ledger.window import Slot, contradiction, vote_statement
from veilgrid.machine import Decide, Effect, NodeId, Persist, Send


class Ordering(Stability):
    """The part of a replica that orders requests within a view and executes them."""

    def _on_request(self, sender: NodeId, request: Request) -> list[Effect]:
        client, number = request.client, request.number
        last = self.service.last(client)
        if client not in self._client_keys or not number <= last + CLIENT_WINDOW:
            return []
        if number <= last:
            results = self.service.cached(client, number)
            if results is None or sender != client:
                return []
            return [self._reply(client, number, results)]
        held = self._pool.get((client, number))
        if held is None:
            if not self._request_holds(request):
                return []
            self._pool[client, number] = request
        elif held != request:
            return []
        if not self._is_active:
            return []
        if self.primary == self.me:
            return self._resume()
        forward = [Send(self.primary, request)] if sender == client else []
        return [*forward, *self._watch()]

    def _request_holds(self, request: Request) -> bool:
        if not is_bounded(request):
            return False
        if self._pool.get((request.client, request.number)) == request:
            return True  # Checked when it came.
        return self._notary.check(
            self._client_keys.get(request.client),
            "request",
            request.signature,
            request.client,
            request.number,
            request.operations,
        )

    def _batch_holds(self, batch: Batch) -> bool:
        requests = batch.requests
        return (
            len(requests) <= BATCH_REQUEST_COUNT_MAX
            and sum(len(o) for r in requests for o in r.operations) <= BATCH_LENGTH_MAX
            and all(self._request_holds(request) for request in requests)
        )

    def _reply(self, client: str, number: int, results: tuple[bytes, ...]) -> Effect:
        fields = (self.views.view, client, number, results, self.me)
        signature = self._notary.sign(self._signer, "reply", *fields)
        return Send(NodeId(client), Reply(*fields, signature))

    def _collected(self) -> Batch:
        """Return the next batch: requests in each client's order, within the limits."""
        chosen: list[Request] = []
        length = 0
        for (client, number), request in sorted(self._pool.items(), key=lambda item: item[0][1]):
            last = max(self._assigned.get(client, 0), self.service.last(client))
            size = sum(map(len, request.operations))
            if number != last + 1 or length + size > BATCH_LENGTH_MAX:
                continue
            if len(chosen) == BATCH_REQUEST_COUNT_MAX:
                break
            length += size
            self._assigned[client] = number
            chosen.append(request)
        return Batch(tuple(chosen))

    def _propose(self) -> list[Effect]:
        """Propose while there is something to order and room for it."""
        effects: list[Effect] = []
        while (
            self._is_active
            and self.primary == self.me
            and self._next <= self._high
            and self._next - 1 - self.service.sequence < self.settings.pipeline
        ):
            batch = self._collected()
            change = self.service.change
            if not batch.requests and (change is None or self._next > change.boundary):
                break
            view, sequence, digest = self.views.view, self._next, batch_digest(batch)
            statement = (view, sequence, digest)
            signature = self._notary.sign(self._signer, "pre-prepare", *statement)
            proposal = PrePrepare(*statement, signature, batch)
            self._next += 1
            slot = self._accept(proposal)
            effects += [Persist(Accepted(proposal)), *self._broadcast(proposal)]
            effects += self._advance(slot)
        return effects

    def _accept(self, proposal: PrePrepare) -> Slot:
        slot = self.window.slot(proposal.sequence)
        slot.accept(proposal)
        if proposal.batch is not None:
            self.window.batches[proposal.digest] = proposal.batch
            self._written.add(proposal.digest)
        return slot

    def _on_pre_prepare(self, proposal: PrePrepare) -> list[Effect]:
        view, sequence, digest = proposal.view, proposal.sequence, proposal.digest
        if view != self.views.view or not self._is_active or self.primary == self.me:
            return []
        if not (self.window.contains(sequence) and sequence <= self._high):
            return []
        slot = self.window.slot(sequence)
        held = slot.proposal
        if held is not None and held.view == view and held.digest == digest:
            return []
        key = self._keys[self.primary]
        if not self._notary.check(key, "pre-prepare", proposal.signature, view, sequence, digest):
            return []
        if held is not None and held.view == view:
            return self._accuse(contradiction("pre-prepare", self.primary, held, proposal))
        if self.views.chosen.get(sequence, digest) != digest or proposal.batch is None:
            return []  # The new view says otherwise.
        if batch_digest(proposal.batch) != digest or not self._batch_holds(proposal.batch):
            return []
        self._accept(proposal)
        effects = [Persist(Accepted(proposal)), *self._prepare(slot), *self._evidence(slot)]
        return [*effects, *self._advance(slot)]

    def _prepare(self, slot: Slot) -> list[Effect]:
        """Vote for the accepted proposal, which must be in the journal before."""
        vote = self._own_prepare(slot)
        return self._broadcast(vote)

    def _own_prepare(self, slot: Slot) -> Prepare:
        proposal = slot.proposal
        invariant(proposal is not None, "only an accepted proposal is prepared")
        statement = (proposal.view, proposal.sequence, proposal.digest)  # type: ignore[union-attr]
        signature = self._notary.sign(self._signer, "prepare", *statement)
        vote = Prepare(*statement, self.me, signature, proposal.signature)  # type: ignore[union-attr]
        slot.prepares[self.me] = vote
        return vote

    def _evidence(self, slot: Slot) -> list[Effect]:
        """Compare the accepted proposal with what other backups were told."""
        return [
            effect for vote in list(slot.prepares.values()) for effect in self._compare(slot, vote)
        ]

    def _compare(self, slot: Slot, vote: Prepare) -> list[Effect]:
        mine = slot.proposal
        if mine is None or mine.view != vote.view or mine.digest == vote.digest:
            return []
        primary = self.configuration.primary(vote.view)
        told = PrePrepare(vote.view, vote.sequence, vote.digest, vote.proposal)
        if not self._notary.check(
            self._keys[primary], "pre-prepare", told.signature, *vote_statement(told)
        ):
            return []
        return self._accuse(contradiction("pre-prepare", primary, mine, told))

    def _on_prepare(self, vote: Prepare) -> list[Effect]:
        if vote.view != self.views.view or not self._is_active:
            return []
        if vote.replica in (self.primary, self.me) or not self.window.contains(vote.sequence):
            return []
        slot = self.window.slot(vote.sequence)
        held = slot.prepares.get(vote.replica)
        if held is not None and held.view == vote.view and held.digest == vote.digest:
            return []
        key = self._keys.get(vote.replica)
        if not self._notary.check(key, "prepare", vote.signature, *vote_statement(vote)):
            return []
        if held is not None and held.view == vote.view:
            return self._accuse(contradiction("prepare", vote.replica, held, vote))
        slot.prepares[vote.replica] = vote
        return [*self._compare(slot, vote), *self._advance(slot)]

    def _on_commit(self, vote: Commit) -> list[Effect]:
        if vote.view >> VIEW_BITS != self.configuration.number or vote.replica == self.me:
            return []
        if not self.window.contains(vote.sequence) or vote.sequence <= self.service.sequence:
            return []
        slot = self.window.slot(vote.sequence)
        held = slot.commits.get(vote.replica)
        if held is not None and (
            held.view > vote.view or vote_statement(held) == vote_statement(vote)
        ):
            return []
        key = self._keys.get(vote.replica)
        if not self._notary.check(key, "commit", vote.signature, *vote_statement(vote)):
            return []
        if held is not None and held.view == vote.view:
            return self._accuse(contradiction("commit", vote.replica, held, vote))
        slot.commits[vote.replica] = vote
        return self._advance(slot)

    def _on_confirmation(self, proof: Confirmation) -> list[Effect]:
        """Take the proof that others have committed, in whatever view."""
        sequence = proof.sequence
        if not self.window.contains(sequence) or sequence <= self.service.sequence:
            return []
        if self.window.slot(sequence).proof is not None:
            return []
        needed = self.configuration.quorum
        statement = vote_statement(proof)
        if proof.view >> VIEW_BITS != self.configuration.number or not self._notary.holds(
            proof.vouches, self._keys, needed, "commit", *statement
        ):
            return []
        self.window.slot(sequence).proof = proof
        return self._execute()

    def _advance(self, slot: Slot) -> list[Effect]:
        """Commit what is prepared, execute what is committed."""
        effects: list[Effect] = []
        proposal = slot.proposal
        if proposal is not None and proposal.view == self.views.view and self._is_active:
            certificate = slot.certificate(self.configuration.backups_needed)
            if certificate is not None and not slot.is_committing:
                slot.prepared = certificate
                effects.append(Persist(Locked(certificate)))
                effects += self._broadcast(self._own_commit(slot))
        if slot.proof is None:
            slot.proof = slot.committed(self.configuration.quorum)
        if slot.proof is not None and slot.sequence == self.service.sequence + 1:
            effects += self._execute()
        return effects

    def _own_commit(self, slot: Slot) -> Commit:
        invariant(slot.prepared is not None, "only what is prepared is committed")
        statement = vote_statement(slot.prepared)  # type: ignore[arg-type]
        signature = self._notary.sign(self._signer, "commit", *statement)
        vote = Commit(*statement, self.me, signature)
        slot.commits[self.me] = vote
        slot.is_committing = True
        return vote

    def _execute(self) -> list[Effect]:
        """Execute committed batches in order, as far as they are known."""
        effects: list[Effect] = []
        while True:
            sequence = self.service.sequence + 1
            slot = self.window.slots.get(sequence)
            if slot is None or slot.proof is None:
                break
            digest = slot.proof.digest
            batch = NOTHING if digest == NOTHING_DIGEST else self.window.batches.get(digest)
            if batch is None:
                effects += self._broadcast(FetchBatch(digest))
                break
            effects += self._execute_one(slot.proof, batch)
            if self.is_halted:
                return effects
        return [*effects, *self._resume()]

    def _execute_one(self, proof: Confirmation, batch: Batch) -> list[Effect]:
        sequence, digest = proof.sequence, proof.digest
        first = len(self.service.records)
        done, is_due = self.service.execute(sequence, batch)
        effects: list[Effect] = []
        for request in done:
            results = self.service.cached(request.client, request.number)
            invariant(results is not None, "the newest reply of a client is kept")
            effects.append(self._reply(request.client, request.number, results or ()))
            self._pool.pop((request.client, request.number), None)
        is_written = digest in self._written or not batch.requests
        written = Committed(proof, None if is_written else batch)
        records = tuple(self.service.records[first:])
        effects += [
            Persist(written),
            Decide(Confirmed(sequence, digest, first, records)),
        ]
        if self._next <= sequence:
            self._next = sequence + 1
        if self._next == sequence + 1:
            self._assigned = {}
        if is_due:
            self.moments[sequence] = self.service.moment()
            effects += self._vouch(sequence)
        return effects

    def _on_batch(self, batch: Batch) -> list[Effect]:
        """Take a batch that was asked for: one that a slot names."""
        if len(batch.requests) > BATCH_REQUEST_COUNT_MAX:
            return []
        digest = batch_digest(batch)
        slots = self.window.slots.values()
        wanted = {slot.proof.digest for slot in slots if slot.proof}
        wanted |= {slot.proposal.digest for slot in slots if slot.proposal}
        if digest not in wanted or digest in self.window.batches:
            return []
        self.window.batches[digest] = batch
        return self._execute()

    def _resume(self) -> list[Effect]:
        return [*self._propose(), *self._watch()]
