"""One replica of the ledger: practical Byzantine fault tolerance as a machine [ledger 3].

Requests are ordered by the primary of a view in three steps [Castro and Liskov 2002]; a replica
writes to its journal before each vote, so that its next life can say nothing else. Nothing that a
peer sends raises; what cannot be honest becomes an :class:`~veilgrid.ledger.message.Accusation`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from veilgrid.errors import invariant
from veilgrid.ledger.checkpoint import (
    Checkpoints,
    Transfer,
    checkpoint_accusation,
    part_of,
)
from veilgrid.ledger.message import (
    BATCH_LENGTH_MAX,
    BATCH_REQUEST_COUNT_MAX,
    CLIENT_WINDOW,
    NOTHING,
    NOTHING_DIGEST,
    VIEW_BITS,
    Accepted,
    Accusation,
    Anchored,
    Batch,
    CaughtUp,
    Certificate,
    Checkpoint,
    Commit,
    Committed,
    Configuration,
    Confirmation,
    Confirmed,
    Diverged,
    Entered,
    FetchBatch,
    FetchedBatch,
    FetchState,
    Installed,
    Left,
    Lineage,
    Locked,
    NewView,
    Notary,
    Prepare,
    PrePrepare,
    Reply,
    Request,
    Stable,
    StatePart,
    Status,
    Verify,
    ViewChange,
    Vouched,
    batch_digest,
    is_bounded,
    keys_of,
    lineage_end,
)
from veilgrid.ledger.service import Application, Moment, Service
from veilgrid.ledger.view_change import Rules, Views, new_view_statement, selected, statement_of
from veilgrid.ledger.window import Slot, Window, contradiction
from veilgrid.machine import (
    START,
    Decide,
    Effect,
    Event,
    NodeId,
    Persist,
    Received,
    Send,
    SetTimer,
    TimerFired,
)
from veilgrid.signature import Signs
from veilgrid.signature import verify as verify_ed25519

MILLISECOND_NS: Final = 1_000_000
_RESEND_MAX: Final = 32
_ATTEMPTS_MAX: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a replica paces itself; all replicas of a ledger must use the same first two.

    Attributes
    ----------
    interval
        Sequences between checkpoints.
    window_length
        Sequences between the watermarks.
    pipeline
        Batches that a primary has under way at a time.
    view_timeout_ns
        A request that waits longer starts a view change; doubles with each.
    status_ns
        A replica tells its peers so often where it stands.
    """

    interval: int = 64
    window_length: int = 128
    pipeline: int = 4
    view_timeout_ns: int = 1000 * MILLISECOND_NS
    status_ns: int = 200 * MILLISECOND_NS


class Replica:
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
        invariant(genesis.is_sound(), "the first configuration is sound")
        self.me = me
        self.genesis = genesis
        self.settings = settings or Settings()
        self._signer = signer
        self._notary = Notary(genesis.digest(), verify)
        self.service = Service(
            application, genesis, self.settings.interval, self.settings.window_length
        )
        self.window = Window(self.settings.window_length)
        self.checkpoints = Checkpoints()
        self.transfer = Transfer()
        self.moments: dict[int, Moment] = {}
        self.stable: Certificate | None = None
        self.steps: tuple[tuple[Certificate, Configuration], ...] = ()
        self.is_halted = False
        self._configure(genesis)
        self._pool: dict[tuple[str, int], Request] = {}
        self._assigned: dict[str, int] = {}
        self._next = 1
        self._watched: tuple[str, int] | None = None
        self._is_armed = False
        self._written: set[bytes] = set()
        self._accused: set[tuple[str, str, int, int]] = set()
        self._served: tuple[int, bytes] = (-1, b"")
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

    def _configure(self, configuration: Configuration) -> None:
        """Begin a configuration: its views and rules."""
        self.configuration = configuration
        self.views = Views(configuration.first_view)
        boundary = self.steps[-1][0] if self.steps else None
        self.rules = Rules(self._notary, configuration, boundary, self.settings.window_length)
        self._keys = keys_of(configuration.replicas)
        self._client_keys = {**keys_of(configuration.clients), **self._keys}
        self._others = [NodeId(name) for name in self._keys if name != self.me]
        self.checkpoints = Checkpoints()
        self._is_armed, self._watched = False, None

    # -- looking in ------------------------------------------------------------------------------

    @property
    def is_member(self) -> bool:
        """Whether it votes in the present configuration."""
        return self.me in self._keys

    @property
    def primary(self) -> NodeId:
        """Who proposes in the present view."""
        return self.configuration.primary(self.views.view)

    @property
    def lineage(self) -> Lineage | None:
        """How the newest stable checkpoint follows from the first configuration."""
        return Lineage(self.steps, self.stable) if self.stable else None

    @property
    def _is_active(self) -> bool:
        return self.is_member and not self.views.is_changing and not self.is_halted

    @property
    def _high(self) -> int:
        high = self.window.low + self.window.length
        change = self.service.change
        return min(high, change.boundary) if change else high

    # -- the dispatcher --------------------------------------------------------------------------

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

    def _broadcast(self, message: Any) -> list[Effect]:
        return [Send(node, message) for node in self._others]

    # -- requests and proposals ------------------------------------------------------------------

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
            return [*self._propose(), *self._watch()]
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

    # -- the three steps -------------------------------------------------------------------------

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
            self._keys[primary], "pre-prepare", told.signature, *_statement(told)
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
        if not self._notary.check(key, "prepare", vote.signature, *_statement(vote)):
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
        if held is not None and (held.view > vote.view or _statement(held) == _statement(vote)):
            return []
        key = self._keys.get(vote.replica)
        if not self._notary.check(key, "commit", vote.signature, *_statement(vote)):
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
        statement = _statement(proof)
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
        statement = _statement(slot.prepared)
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
        return [*effects, *self._propose(), *self._watch()]

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

    # -- checkpoints -----------------------------------------------------------------------------

    def _vouch(self, sequence: int) -> list[Effect]:
        """Sign the checkpoint at ``sequence``."""
        summary = self.service.summary(self.moments[sequence])
        signature = self._notary.sign(self._signer, "checkpoint", summary)
        vote = Checkpoint(summary, self.me, signature)
        if not self.is_member:
            return []
        certificate = self.checkpoints.add(vote, self.configuration.quorum)
        effects = [Persist(Vouched(vote)), *self._broadcast(vote)]
        return [*effects, *(self._anchor(certificate) if certificate else [])]

    def _on_checkpoint(self, vote: Checkpoint) -> list[Effect]:
        if vote.summary.sequence <= self.window.low or vote.replica == self.me:
            return []
        held = self.checkpoints.held(vote)
        if held is not None and held.summary == vote.summary:
            return []
        key = self._keys.get(vote.replica)
        if not self._notary.check(key, "checkpoint", vote.signature, vote.summary):
            return []
        if held is not None:
            return self._accuse(checkpoint_accusation(held, vote, self.views.view))
        certificate = self.checkpoints.add(vote, self.configuration.quorum)
        return self._anchor(certificate) if certificate else []

    def _anchor(self, certificate: Certificate) -> list[Effect]:
        """Take up a checked certificate: a new low watermark, or something to fetch."""
        sequence = certificate.summary.sequence
        if sequence <= self.window.low:
            return []
        if sequence > self.service.sequence:
            self.transfer.aim(Lineage(self.steps, certificate))
            return []
        moment = self.moments.get(sequence)
        if moment is None or self.service.summary(moment) != certificate.summary:
            self.is_halted = True
            return [Decide(Diverged(sequence))]
        self._settle(certificate)
        effects: list[Effect] = [
            Persist(Stable(certificate)),
            Decide(Anchored(Lineage(self.steps, certificate))),
        ]
        return [*effects, *self._propose(), *self._watch()]

    def _settle(self, certificate: Certificate) -> None:
        """Move the low watermark; begin the next configuration if this is its boundary."""
        sequence = certificate.summary.sequence
        self.stable = certificate
        self.window.advance(sequence)
        self._written &= self.window.journalled()
        self.checkpoints.forget(sequence)
        self.moments = {s: moment for s, moment in self.moments.items() if s >= sequence}
        if self.transfer.sequence <= sequence:
            self.transfer.target = None
        following = self.moments[sequence].core.configuration
        if following.number > self.configuration.number:
            self.steps = (*self.steps, (certificate, following))
            self._configure(following)
            self._next, self._assigned = sequence + 1, {}
            self._pool = {k: r for k, r in self._pool.items() if k[0] in self._client_keys}

    # -- view changes ----------------------------------------------------------------------------

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
        """Give up all views before ``view`` and say what is known."""
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
        return [*effects, *self._propose(), *self._watch()]

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

    # -- telling each other what is missing ------------------------------------------------------

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
                    full = PrePrepare(*_statement(proposal), proposal.signature, batch)
                    effects.append(Send(to, full))
            mine = (slot.prepares.get(self.me), slot.commits.get(self.me))
            effects += [Send(to, vote) for vote in mine if vote is not None]
        return effects

    # -- fetching the state ----------------------------------------------------------------------

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

    # -- faults and the journal ------------------------------------------------------------------

    def _accuse(self, accusation: Accusation | None) -> list[Effect]:
        if accusation is None:
            return []
        name = (accusation.culprit, accusation.kind, accusation.view, accusation.sequence)
        if name in self._accused or len(self._accused) > 10_000:
            return []
        self._accused.add(name)
        return [Decide(accusation)]

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


def _statement(vote: Any) -> tuple[int, int, bytes]:
    return vote.view, vote.sequence, vote.digest
