"""Who is owed and owes all payments of a sealed day: it hears them, and nothing else [sealed 4.9].

It takes part in gate closure with seeds that stand for no bid. At the end all payments open behind
its pads, in the round in which each opens behind its site's.
"""

from collections.abc import Sequence
from dataclasses import replace

import msgspec

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
from veilgrid.mpc.client import Seeds, submit_with_seeds
from veilgrid.mpc.message import Submission
from veilgrid.roles.sealed.believed import WORDS, WORDS_NS, Stops, agreed
from veilgrid.roles.sealed.heard import BID, PAYER, client_of
from veilgrid.roles.sealed.judge import COST_BITS
from veilgrid.roles.sealed.message import (
    Again,
    Agreement,
    Collected,
    Collecting,
    Over,
    Rejoined,
    Stopped,
)
from veilgrid.secret import Randomness, Secret
from veilgrid.signature import Signs

PayerRecord = Collecting | Collected


class Payer:
    """The payer of a day.

    Parameters
    ----------
    me
        Name of the process.
    agreement
        Who takes part; names this payer and its key.
    unit : currency per per-unit and interval
        Of prices on shares.
    records
        What an earlier life persisted.
    """

    def __init__(
        self,
        me: NodeId,
        agreement: Agreement,
        unit: float,
        *,
        signer: Signs,
        randomness: Randomness,
        records: Sequence[PayerRecord] = (),
    ) -> None:
        self.me, self.agreement, self._unit = me, agreement, unit
        self._signer, self._randomness = signer, randomness
        self._kept: Collecting | None = None
        self.collected: Collected | None = None
        self._agains: dict[NodeId, Again] = {}
        self._overs: dict[NodeId, Over] = {}
        self._stops = Stops()
        self._is_over = False
        for record in records:
            match record:
                case Collecting(attempt):
                    self._kept = record
                    self.agreement = replace(agreement, attempt=attempt)
                case Collected():
                    self.collected = record

    def handle(self, event: Event) -> list[Effect]:
        """Advance by one event."""
        if self._is_over:
            return []
        parties = self.agreement.parties
        match event:
            case TimerFired(name) if name == START:
                return self._begin()
            case Received(sender, Again() as again) if sender in parties:
                return self._on_again(sender, again)
            case Received(sender, Over() as over) if sender in parties:
                return self._on_over(sender, over)
            case Received(sender, Stopped() as stopped) if sender in parties:
                return self._on_stopped(sender, stopped)
            case TimerFired(name) if name == WORDS and self._stops.last is not None:
                return self._stop()
            case _:
                return []

    def _begin(self) -> list[Effect]:
        if self.collected is not None:
            self._is_over = True
            return [Decide(self.collected)]
        if self._kept is None:
            return self._commit()
        # What was sent may not have left; parties that have it drop the second.
        word = Rejoined(self.agreement.day, self.agreement.attempt)
        asked = [Send(party, word) for party in self.agreement.parties]
        return [*self._said(self._kept.submission), *asked]

    def _commit(self) -> list[Effect]:
        """Share seeds with the parties; what they stand for is a zero that nobody computes with."""
        agreement = self.agreement
        submission, seeds = submit_with_seeds(
            agreement.session(0),
            client_of(PAYER, BID),
            [0],
            degree=agreement.degree,
            box_keys=agreement.box_keys,
            signer=self._signer,
            randomness=self._randomness,
        )
        octets = seeds.octets.reveal_to("own encrypted journal")
        self._kept = Collecting(agreement.attempt, octets, submission)
        return [Persist(self._kept), *self._said(submission)]

    def _said(self, submission: Submission) -> list[Effect]:
        return [Send(party, submission) for party in self.agreement.parties]

    def _on_again(self, sender: NodeId, again: Again) -> list[Effect]:
        """Commit anew where gate closure begins anew; else what was committed stands."""
        agreement = self.agreement
        if again.day != agreement.day or again.attempt <= agreement.attempt:
            return []
        self._agains[sender] = again
        if agreed(self._agains, agreement) != again or not again.is_from_bids:
            return []
        self._agains.clear()
        self.agreement = replace(agreement, attempt=again.attempt)
        return self._commit()

    def _on_over(self, sender: NodeId, over: Over) -> list[Effect]:
        """Take the pads off once more parties say the same than may be corrupt."""
        if over.day != self.agreement.day:
            return []
        self._overs[sender] = over
        if agreed(self._overs, self.agreement) != over:
            return []
        payments: dict[int, float] = {}
        if PAYER in over.own and self._kept is not None:
            session = replace(self.agreement, attempt=over.attempt).session(over.task - 1)
            n, degree = len(self.agreement.parties), self.agreement.degree
            seeds = Seeds(n, degree, Secret(self._kept.seeds))
            amounts = seeds.unpadded(over.own[PAYER], session)
            step = self._unit / 2.0 ** (COST_BITS + 1)
            payments = {bus: amount * step for bus, amount in enumerate(amounts)}
        self._is_over = True
        self.collected = Collected(payments, msgspec.msgpack.decode(over.public))
        return [Persist(self.collected), Decide(self.collected)]

    def _on_stopped(self, sender: NodeId, stopped: Stopped) -> list[Effect]:
        """End where more parties say that the day stopped than may be corrupt."""
        is_clear = self._stops.take(sender, stopped, self.agreement)
        if not is_clear and self._stops.last is not None:
            return [SetTimer(WORDS, WORDS_NS)]
        return self._stop() if is_clear else []

    @property
    def stopped(self) -> Stopped | None:
        """What follows from the parties' words that the day stopped, if enough came."""
        return self._stops.last

    def _stop(self) -> list[Effect]:
        self._is_over = True
        return [Decide(self._stops.last)]
