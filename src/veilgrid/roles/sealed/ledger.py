"""A sealed day of a deployment on the ledger: validators compare what parties say [sealed 6.5].

When a day has ended, each party tells operator and validators what opened, in digests. Each site
writes the digest of its committed message under its own key and pledges its payment; the operator
proposes, validators accept what agrees with the parties' word, and miss sites whose entries do
not.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from veilgrid.ledger.export import exported
from veilgrid.ledger.operation import (
    Absent,
    Approve,
    Bid,
    CloseBids,
    OpenDay,
    ProposeIteration,
    subject_of,
)
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
from veilgrid.roles.ledger_seat import AGAIN, Agreement, Seat, bus_of, client_of, send_all
from veilgrid.roles.ledger_validator import Validator, folded
from veilgrid.roles.ledger_view import DayView
from veilgrid.roles.sealed.ledger_message import (
    KEPT,
    FetchWord,
    Openings,
    Pledge,
    Pledges,
    Recorded,
    Word,
    Words,
    is_genuine,
    outcome_proposal,
    payments_proposal,
    pledged,
    unfit,
)
from veilgrid.roles.sealed.message import DayEnded, Stopped
from veilgrid.roles.sealed.party import SealedParty
from veilgrid.roles.sealed.sites import SiteGroup
from veilgrid.roles.sealed.sites_kept import SiteOutcome
from veilgrid.signature import Signs

_BIDS: Final = "sealed bids"
_PLEDGES: Final = "sealed pledges"
_UNRECORDED: Final = "sealed unrecorded"
_RECORD_PATIENCE_TIMES: Final = 4


class TellingParty:
    """A party that tells operator and validators how its day ended."""

    def __init__(self, party: SealedParty, agreement: Agreement) -> None:
        self.party, self._agreement = party, agreement
        self._word: Word | None = None

    def handle(self, event: Event) -> list[Effect]:
        """Advance by one event."""
        agreement = self._agreement
        told = (agreement.operator, *agreement.validators)
        if isinstance(event, Received) and isinstance(event.message, FetchWord):
            is_asked = event.sender in told and self._word is not None
            return [Send(event.sender, self._word)] if is_asked else []
        effects: list[Effect] = []
        for effect in self.party.handle(event):
            match effect:
                case Decide(DayEnded() as ended):
                    self._word = Word.of(agreement.day, agreement.buses, self.party, ended)
                case Decide(Stopped()):
                    self._word = Word.without_result(agreement.day)
            if isinstance(effect, Decide) and self._word is not None:
                effects += send_all(told, self._word)
            effects.append(effect)
        return effects


class Recorder(ABC):
    """Who takes part in the record of a day: hears what others say, then does what is due."""

    view: DayView

    def __init__(self, agreement: Agreement) -> None:
        self._agreement, self._is_over = agreement, False
        self._done: set[tuple[Any, ...]] = set()

    def handle(self, event: Event) -> list[Effect]:
        """Advance by one event."""
        effects = self._take(event)
        return [*effects, *self._act()]

    @abstractmethod
    def _take(self, event: Event) -> list[Effect]: ...

    @abstractmethod
    def _act(self) -> list[Effect]: ...

    def _once(self, *key: Any) -> bool:
        """Return whether this is to be done now, for the first time."""
        if key in self._done:
            return False
        self._done.add(key)
        return True

    @property
    def _status(self) -> str:
        """How the record ended; empty before."""
        if self.view.last is not None:
            return "closed"
        return "refused" if self.view.refusals else ""

    def _stop(self) -> list[Effect]:
        """End a day of which there is nothing to record."""
        self._is_over = True
        day = self._agreement.day.encode()
        return [Decide(Stopped(day, 0, "the day ended without a result", []))]


class RecordingSites(Recorder):
    """Sites of one process that also write to the ledger and pledge their payments.

    Their day does not depend on the ledger: what they do and pay is decided as soon as it is
    known, and recorded after.
    """

    def __init__(
        self,
        me: NodeId,
        group: SiteGroup,
        agreement: Agreement,
        signer: Signs,
        records: Sequence[Any],
    ) -> None:
        super().__init__(agreement)
        self.group, self._signer = group, signer
        self._own = [client_of(bus) for bus, home in agreement.groups.items() if home == me]
        self._seat = Seat(me, agreement, self._own, signer, records)
        self.view = self._seat.view
        self._pledges: list[Pledge] = []
        self._ended: SiteOutcome | None = None

    def _take(self, event: Event) -> list[Effect]:
        agreement = self._agreement
        match event:
            case TimerFired(name) if name == START:
                return [*self._seat.start(), *self._passed(event)]
            case TimerFired(name) if name == AGAIN:
                return [] if self._is_over else self._seat.again()
            case TimerFired(name) if name == _UNRECORDED:
                return self._over(is_recorded=False)
            case Received(sender, FetchWord()):
                is_told = sender in (agreement.operator, *agreement.validators)
                return self._pledge([sender]) if is_told and self._pledges else []
            case Received() | TimerFired():
                found = self._seat.handle(event)
                return self._passed(event) if found is None else found
        return self._passed(event)

    def _passed(self, event: Event) -> list[Effect]:
        effects: list[Effect] = []
        for effect in self.group.handle(event):
            effects.append(effect)
            match effect:
                case Decide(SiteOutcome() as ended):
                    effects += self._on_ended(ended)
        return effects

    def _on_ended(self, ended: SiteOutcome) -> list[Effect]:
        agreement, salts = self._agreement, self.group.salts()
        self._ended = ended
        self._pledges = [
            pledged(agreement.day, site, round(ended.payments[bus] * 1e6), salts[bus], self._signer)
            for bus, site in enumerate(agreement.buses)
            if bus in ended.payments
        ]
        patience = _RECORD_PATIENCE_TIMES * agreement.patience.bids_ns
        effects: list[Effect] = [SetTimer(_UNRECORDED, patience)]
        return [*effects, *self._pledge((agreement.operator, *agreement.validators))]

    def _pledge(self, names: Sequence[str]) -> list[Effect]:
        """Tell what is pledged, and the operator, who knows the amounts, with which salts."""
        agreement, salts = self._agreement, self.group.salts()
        shown = {site: salts[bus] for bus, site in enumerate(agreement.buses) if bus in salts}
        told = Openings(agreement.day, shown)
        effects = send_all([name for name in names if name == agreement.operator], told)
        return [*effects, *send_all(names, Pledges(agreement.day, self._pledges))]

    def _act(self) -> list[Effect]:
        """Write what is due; look whether the record is there."""
        view = self.view
        if self._ended is None or self._is_over or not view.is_open:
            return []
        if self._status:
            return self._over(is_recorded=self._status == "closed")
        effects: list[Effect] = []
        digests = self.group.bid_digests
        for client in self._own if view.is_bidding else []:
            bus = self._agreement.buses.index(bus_of(client))
            if client in view.bids or bus not in digests:
                continue
            if self._agreement.is_attested and client not in view.admitted:
                continue
            if self._once("bid", client):
                bid = Bid(self._agreement.day, digests[bus])
                effects += self._seat.desk.submit(client, bid)
        return effects

    def _over(self, *, is_recorded: bool) -> list[Effect]:
        if self._is_over or self._ended is None:
            return []
        self._is_over = True
        left_out = [client for client in self._own if client in self.view.excluded]
        unrecorded = [bus_of(client) for client in (left_out if is_recorded else self._own)]
        told = {"is_recorded": is_recorded, "unrecorded": unrecorded}
        return [Decide(Recorded({**self._ended.public, **told}))]


class SealedOperator(Recorder):
    """Opens the record of a day, proposes what parties and sites say, and ends it."""

    def __init__(
        self,
        me: NodeId,
        agreement: Agreement,
        words: Words,
        signer: Signs,
        records: Sequence[Any],
    ) -> None:
        super().__init__(agreement)
        self.me, self.words, self._are_bids_late = me, words, False
        own = [record for record in records if not isinstance(record, KEPT)]
        self._seat = Seat(me, agreement, [str(me)], signer, own)
        self.view = self._seat.view
        told = [one for one in records if isinstance(one, Pledges)]
        self.pledges = {one.site: one for each in told for one in each.pledges}

    def _take(self, event: Event) -> list[Effect]:
        agreement = self._agreement
        match event:
            case TimerFired(name) if name == START:
                flexible = {agreement.buses[index] for index in agreement.flexible}
                rigid = tuple(client_of(bus) for bus in agreement.buses if bus not in flexible)
                opening = OpenDay(agreement.day, agreement.clients, 0, rigid)
                return [*self._seat.start(), *self._seat.desk.submit(str(self.me), opening)]
            case TimerFired(name) if name == AGAIN:
                return [] if self._is_over else [*self._seat.again(), *self._fetch()]
            case TimerFired(name) if name == _BIDS:
                self._are_bids_late = True
                return []
            case Received(sender, Word() as word):
                return self.words.take(sender, word)
            case Received(sender, Pledges() as told):
                return self._keep(sender, told)
            case Received(sender, FetchWord()) if sender in agreement.validators:
                return send_all([sender], self._collected())
            case Received() | TimerFired():
                return self._seat.handle(event) or []
        return []

    def _keep(self, sender: NodeId, told: Pledges) -> list[Effect]:
        """Keep each site's first pledge."""
        agreement = self._agreement
        new = _first_pledges(told, sender, agreement, self.pledges)
        self.pledges |= {pledge.site: pledge for pledge in new}
        return [Persist(Pledges(agreement.day, new))] if new else []

    def _collected(self) -> Pledges:
        present = [bus_of(client) for client in self.view.present]
        own = [self.pledges[bus] for bus in present if bus in self.pledges]
        return Pledges(self._agreement.day, own)

    def _fetch(self) -> list[Effect]:
        """Ask for what a restart lost, or what never came."""
        ask, effects = FetchWord(self._agreement.day), list[Effect]()
        if self.words.agreed is None:
            effects += send_all(self.words.parties, ask)
        homes = {
            self._agreement.groups[bus]
            for bus in self._agreement.buses
            if bus not in self.pledges and client_of(bus) not in self.view.excluded
        }
        return effects if self.words.agreed is None else [*effects, *send_all(sorted(homes), ask)]

    def _act(self) -> list[Effect]:
        view, word, day = self.view, self.words.agreed, self._agreement.day
        if self._is_over or word is None:
            return []
        if not word.opened:
            return self._stop()
        if not view.is_open:
            return []
        if self._status:
            self._is_over = True
            last = self._seat.desk.checkpoint(str(self.me))
            return [*last, Decide(Recorded({"status": self._status}))]
        if view.is_bidding:
            return self._close_bids(word)
        if unfit(view, word):
            return []  # Validators take them out first.
        if view.iteration == 1:
            return self._propose(outcome_proposal(day, word))
        collected = self._collected().pledges
        if len(collected) < len(view.present):
            return []
        told = send_all(self._agreement.validators, Pledges(day, collected))
        proposal = self._propose(payments_proposal(day, collected))
        return [*told, *proposal] if proposal else []

    def _close_bids(self, word: Word) -> list[Effect]:
        """End bidding when all have written, or have had the time for it."""
        due = {client_of(bus) for bus in word.bids} - set(self.view.excluded)
        effects: list[Effect] = []
        if self._once("wait"):
            effects.append(SetTimer(_BIDS, self._agreement.patience.bids_ns))
        is_due = due <= set(self.view.bids) or self._are_bids_late
        if is_due and self.view.bids and self._once("close"):
            effects += self._seat.desk.submit(str(self.me), CloseBids(self._agreement.day))
        return effects

    def _propose(self, proposal: ProposeIteration) -> list[Effect]:
        is_under_way = self.view.proposal is not None
        if is_under_way or not self._once(proposal, len(self.view.excluded)):
            return []
        return self._seat.desk.submit(str(self.me), proposal)


class SealedValidator(Recorder):
    """A replica that accepts what ``degree + 1`` parties say, and nothing else [sealed 6.5].

    ``records`` are what an earlier life kept.
    """

    def __init__(
        self,
        validator: Validator,
        agreement: Agreement,
        words: Words,
        records: Sequence[Any] = (),
    ) -> None:
        super().__init__(agreement)
        self._validator, self.words, self.view = validator, words, validator.view
        told = [one for one in records if isinstance(one, Pledges)]
        self._heard = {one.site: one for each in told for one in each.pledges}
        self._offered: list[Pledge] = []
        self._are_pledges_late = False

    def __getattr__(self, name: str) -> Any:
        """Look into the validator, as the gate of evidence does."""
        if name == "_validator":
            raise AttributeError(name)
        return getattr(self._validator, name)

    def _take(self, event: Event) -> list[Effect]:
        agreement = self._agreement
        match event:
            case Received(sender, Word() as word):
                return self.words.take(sender, word)
            case Received(sender, Pledges() as told) if sender == agreement.operator:
                if told.day == agreement.day:
                    self._offered = [one for one in told.pledges if is_genuine(one, agreement)]
                return []
            case Received(sender, Pledges() as told):
                new = _first_pledges(told, sender, agreement, self._heard)
                self._heard |= {one.site: one for one in new}
                return [Persist(Pledges(agreement.day, new))] if new else []
            case Received(_, FetchWord()):
                return []
            case TimerFired(name) if name == _PLEDGES:
                self._are_pledges_late = True
                return []
        effects: list[Effect] = self._validator.handle(event)
        if isinstance(event, TimerFired) and event.name == AGAIN and not self._is_over:
            ask = FetchWord(agreement.day)
            if self.words.agreed is None:
                effects += send_all(self.words.parties, ask)
            elif self.view.iteration == 2:
                effects += send_all([agreement.operator], ask)
        return effects

    def _act(self) -> list[Effect]:
        view, word = self.view, self.words.agreed
        if self._is_over or word is None or not (view.is_open or not word.opened):
            return []
        if not word.opened:
            return self._stop()
        if self._status:
            return self._end()
        if view.is_bidding:
            return []
        wrong = unfit(view, word)
        if wrong:
            return self._miss(wrong)
        effects: list[Effect] = []
        if view.iteration == 2 and self._once("pledges"):
            effects.append(SetTimer(_PLEDGES, self._agreement.patience.site_ns))
        return [*effects, *self._judge(word), *self._miss_silent()]

    def _miss(self, clients: Iterable[str]) -> list[Effect]:
        day, effects = self._agreement.day, list[Effect]()
        for client in clients:
            if self._once("absent", client):
                effects += self._submit(Absent(day, client))
        return effects

    def _miss_silent(self) -> list[Effect]:
        """Miss sites that pledge nothing, once they have had the time for it."""
        if self.view.iteration != 2 or not self._are_pledges_late:
            return []
        known = {one.site for one in self._offered} | set(self._heard)
        return self._miss(one for one in self.view.present if bus_of(one) not in known)

    def _judge(self, word: Word) -> list[Effect]:
        """Compare what the operator proposes with the parties' word and the sites' pledges."""
        proposal, day = self.view.proposal, self._agreement.day
        if not isinstance(proposal, ProposeIteration):
            return []
        if self.view.iteration == 1:
            is_accepted = word.is_accepted and proposal == outcome_proposal(day, word)
        else:
            offered = sorted(client_of(one.site) for one in self._offered)
            if offered != sorted(self.view.present):
                return []  # Not here yet; it is asked for again.
            is_accepted = proposal == payments_proposal(day, self._offered)
        subject = subject_of(proposal)
        if not self._once("vote", subject, len(self.view.excluded)):
            return []
        return self._submit(Approve(day, subject, is_accepted))

    def _submit(self, operation: Absent | Approve) -> list[Effect]:
        effects: list[Effect] = self._validator.desk.submit(self._validator.me, operation)
        return effects

    def _end(self) -> list[Effect]:
        """Ask for a checkpoint, and end with the export when it is certified."""
        replica = self._validator.replica
        lineage, records = replica.lineage, replica.service.records
        count = lineage.stable.summary.record_count if lineage is not None else 0
        if lineage is None or not _is_told(records[:count], self._agreement.day):
            return []
        self._is_over = True
        export = exported(self._agreement.genesis, lineage, list(records[:count]))
        return [Decide(Recorded({"status": self._status}, export))]


def _first_pledges(
    told: Pledges, sender: NodeId, agreement: Agreement, known: Mapping[str, Pledge]
) -> list[Pledge]:
    """Return the genuine pledges of a process's own sites of which none is known yet."""
    return [
        pledge
        for pledge in told.pledges
        if agreement.groups.get(pledge.site) == sender
        and pledge.site not in known
        and is_genuine(pledge, agreement)
    ]


def _is_told(records: Sequence[bytes], day: str) -> bool:
    """Whether records tell a day to its end."""
    view = folded(day, records)
    return view.last is not None or view.refusals > 0
