"""The operator of a day on a ledger as its payer: it compares what is paid with what is pledged.

Validators record commitments to payments that they cannot open [sealed 6.5]. The payer hears the
payments from the parties, and the sites show it their salts, so it can open each commitment.
"""

from collections.abc import Sequence
from typing import Any, Final

from veilgrid.machine import START, Decide, Effect, Event, NodeId, Persist, Received, TimerFired
from veilgrid.roles.ledger_seat import Agreement
from veilgrid.roles.sealed.believed import WORDS
from veilgrid.roles.sealed.ledger import SealedOperator
from veilgrid.roles.sealed.ledger_message import Openings
from veilgrid.roles.sealed.message import Again, Over, Stopped
from veilgrid.roles.sealed.payer import Payer
from veilgrid.roles.sealed.record import commitment_of

AS_PAID: Final = "as paid"
OTHERWISE: Final = "another amount"
NOT_SHOWN: Final = "not shown"


class PayingOperator:
    """An operator that is the payer as well.

    Parameters
    ----------
    payer, recorder
        Its two parts.
    agreement
        Of the ledger.
    records
        What an earlier life persisted.
    """

    def __init__(
        self,
        payer: Payer,
        recorder: SealedOperator,
        agreement: Agreement,
        records: Sequence[Any] = (),
    ) -> None:
        self.payer, self.recorder, self._agreement = payer, recorder, agreement
        told = [one for one in records if isinstance(one, Openings)]
        self._salts = {site: salt for one in told for site, salt in one.salts.items()}

    def handle(self, event: Event) -> list[Effect]:
        """Advance by one event."""
        match event:
            case TimerFired(name) if name == START:
                return [*self.payer.handle(event), *self.recorder.handle(event)]
            case Received(_, Again() | Over() | Stopped()):
                return self.payer.handle(event)
            case TimerFired(name) if name == WORDS:
                return self.payer.handle(event)
            case Received(sender, Openings() as told):
                return self._keep(sender, told)
        return self._unless_named(self.recorder.handle(event))

    def _unless_named(self, effects: list[Effect]) -> list[Effect]:
        """Leave it to the payer to say that the day stopped, if it hears whom the parties blame."""
        is_heard = self.payer.stopped is not None
        return [
            effect
            for effect in effects
            if not (is_heard and isinstance(effect, Decide) and isinstance(effect.outcome, Stopped))
        ]

    def _keep(self, sender: NodeId, told: Openings) -> list[Effect]:
        """Keep the salts of a process's own sites."""
        agreement = self._agreement
        salts = {
            site: salt
            for site, salt in told.salts.items()
            if agreement.groups.get(site) == sender and self._salts.get(site) != salt
        }
        if told.day != agreement.day or not salts:
            return []
        self._salts |= salts
        return [Persist(Openings(agreement.day, salts))]

    def accounts(self) -> list[dict[str, Any]]:
        """Return what each site pays, and how its pledge fits: :data:`AS_PAID`, or why not."""
        payments = self.payer.collected.payments if self.payer.collected else {}
        names = self._agreement.buses
        return [
            {"site": names[bus], "payment": paid, "pledge": self.fit(names[bus], paid)}
            for bus, paid in payments.items()
        ]

    def fit(self, site: str, payment: float) -> str:
        """Return how a site's pledge fits what it pays."""
        pledge, salt = self.recorder.pledges.get(site), self._salts.get(site)
        if pledge is None or salt is None:
            return NOT_SHOWN
        is_same = pledge.commitment == commitment_of(site, round(payment * 1e6), salt)
        return AS_PAID if is_same else OTHERWISE
