"""How a party ends a sealed day, and whom it tells what of that [sealed 4.6]."""

from dataclasses import dataclass, field

import msgspec

from veilgrid.machine import NodeId, Received, Send
from veilgrid.roles.sealed.attempts import listeners_of
from veilgrid.roles.sealed.heard import PAYER
from veilgrid.roles.sealed.message import Agreement, DayEnded, Over, Rejoined, Stopped


def part_of(agreement: Agreement, name: NodeId, own: dict[int, bytes]) -> dict[int, bytes]:
    """Return what is for one process of what opened behind pads; parties keep all."""
    homes = {**agreement.groups, PAYER: agreement.payer}
    is_party = name in agreement.parties
    return {bus: octets for bus, octets in own.items() if is_party or homes[bus] == name}


def told(agreement: Agreement, name: NodeId, over: Over) -> Send:
    """Tell one process how the day ended."""
    return Send(name, msgspec.structs.replace(over, own=part_of(agreement, name, over.own)))


def is_asking(agreement: Agreement, event: Received) -> bool:
    """Whether an event after the end is from who comes back and does not know of it."""
    match event:
        case Received(sender, Rejoined()):
            return sender in listeners_of(agreement)
        case Received(sender, Stopped(is_lost=True)):
            return sender in agreement.parties
        case _:
            return False


@dataclass
class Ending:
    """How the day ended, as far as one party knows.

    Attributes
    ----------
    kept
        With its result; ``None`` before, and where it ended without.
    said
        What each other party told who came back too late to see it.
    """

    kept: DayEnded | None = None
    said: dict[NodeId, Over] = field(default_factory=dict)

    def keep(self, over: Over, round_count: int, trip_count: int) -> DayEnded:
        """Keep how the day ended, for whoever comes back later."""
        public = msgspec.msgpack.decode(over.public)
        self.kept = DayEnded(public, round_count, trip_count, over)
        return self.kept

    def is_believed(self, agreement: Agreement, sender: NodeId, over: Over) -> bool:
        """Note what a party says; whether more say so than may be corrupt."""
        self.said[sender] = over
        return list(self.said.values()).count(over) > agreement.degree
