"""A participant's seat at the ledger of a day: what all agree on, its clients, what it follows."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from veilgrid.ledger.client import TIMER, Client
from veilgrid.ledger.message import Answer, Configuration, Member, Reply, encode
from veilgrid.ledger.operation import Operation
from veilgrid.ledger.service import CHECKPOINT_OPERATION
from veilgrid.machine import (
    START,
    Decide,
    Effect,
    NodeId,
    Persist,
    Received,
    Send,
    SetTimer,
    TimerFired,
)
from veilgrid.roles.ledger_message import Bulletin, FetchRecords, Seated
from veilgrid.roles.ledger_view import DayView, Follower
from veilgrid.signature import Signs

SECOND_NS: Final = 1_000_000_000
AGAIN: Final = "again"
"""Name of the timer at which everybody asks again for what it misses."""
_OPERATIONS_MAX: Final = 200


class Patience(msgspec.Struct, frozen=True):
    """How long everybody waits, nanoseconds.

    Attributes
    ----------
    again_ns
        Before asking again for what is missing.
    site_ns, worker_ns
        Validators wait so long for a site's announcement and a worker's solution.
    bids_ns
        The operator waits so long for bids, and for costs at the end.
    client_ns, view_ns, status_ns
        See the ledger's client and replica.
    """

    again_ns: int = 2 * SECOND_NS
    site_ns: int = 30 * SECOND_NS
    worker_ns: int = 8 * SECOND_NS
    bids_ns: int = 60 * SECOND_NS
    client_ns: int = 3 * SECOND_NS
    view_ns: int = 3 * SECOND_NS
    status_ns: int = SECOND_NS


class Agreement(msgspec.Struct, frozen=True):
    """Who takes part in a day; the same for everybody.

    Attributes
    ----------
    buses
        All sites, in bus order.
    flexible
        Indices of the sites with a choice.
    groups
        By bus: the process that runs its edge device.
    keys
        By process: under which it signs.
    is_attested
        Whether sites bid, and workers are drawn, only with accepted evidence of attestation.
    """

    day: str
    operator: str
    validators: tuple[str, ...]
    workers: tuple[str, ...]
    buses: tuple[str, ...]
    flexible: tuple[int, ...]
    groups: dict[str, str]
    keys: dict[str, bytes]
    patience: Patience = Patience()
    is_attested: bool = False

    @property
    def genesis(self) -> Configuration:
        """The ledger's first configuration: validators, and everybody else as its client."""
        others = [self.operator, *self.workers]
        sites = [Member(client_of(bus), self.keys[self.groups[bus]]) for bus in self.buses]
        return Configuration(
            0,
            tuple(Member(name, self.keys[name]) for name in self.validators),
            (*(Member(name, self.keys[name]) for name in others), *sites),
        )

    @property
    def followers(self) -> tuple[str, ...]:
        """Processes that follow the ledger without a replica."""
        return (self.operator, *self.workers, *dict.fromkeys(self.groups.values()))

    def home(self, client: str) -> NodeId:
        """Return the process that holds a ledger client."""
        return NodeId(self.groups[bus_of(client)] if client.startswith(_SITE) else client)

    @property
    def clients(self) -> tuple[str, ...]:
        """Ledger names of all sites, in bus order."""
        return tuple(client_of(bus) for bus in self.buses)

    @property
    def members(self) -> tuple[str, ...]:
        """Ledger names of the sites with a choice, in bus order."""
        return tuple(client_of(self.buses[index]) for index in self.flexible)


_SITE: Final = "site:"


def client_of(bus: str) -> str:
    """Return a site's name on the ledger."""
    return _SITE + bus


def bus_of(client: str) -> str:
    """Return the bus of a site's name on the ledger."""
    return client.removeprefix(_SITE)


class Desk:
    """Ledger clients of one process: each has one request under way and collects what follows."""

    def __init__(
        self, agreement: Agreement, names: Iterable[str], signer: Signs, records: Sequence[Any]
    ) -> None:
        genesis, patience = agreement.genesis, agreement.patience
        self._clients: dict[str, Client] = {}
        self._waiting: dict[str, list[bytes]] = {}
        for name in names:
            own = [r.record for r in records if isinstance(r, Seated) and r.client == name]
            self._clients[name] = Client(
                NodeId(name), genesis, signer, own, patience_ns=patience.client_ns
            )
            self._waiting[name] = []

    def start(self) -> list[Effect]:
        """Ask again what had no answer in an earlier life."""
        return [
            effect
            for name, client in self._clients.items()
            for effect in self._own(name, client.handle(TimerFired(START)))
        ]

    def submit(self, name: str, *operations: Operation) -> list[Effect]:
        """Submit as one client, together with what else waits."""
        self._waiting[name] += [encode(operation) for operation in operations]
        return self._flush(name)

    def checkpoint(self, name: str) -> list[Effect]:
        """Ask, as one client, that what is recorded so far is certified."""
        self._waiting[name].append(CHECKPOINT_OPERATION)
        return self._flush(name)

    def handle(self, event: Received | TimerFired) -> list[Effect] | None:
        """Take an event of the clients; None if it is none."""
        match event:
            case TimerFired(name) if name.startswith(TIMER + " "):
                own = name.removeprefix(TIMER + " ")
                if own not in self._clients:
                    return []
                return self._own(own, self._clients[own].handle(TimerFired(TIMER)))
            case Received(_, Reply(client=own)) if own in self._clients:
                return [*self._own(own, self._clients[own].handle(event)), *self._flush(own)]
            case Received(_, Reply()):
                return []
        return None

    def _flush(self, name: str) -> list[Effect]:
        client, waiting = self._clients[name], self._waiting[name]
        if not waiting or client.open_count:
            return []
        now, self._waiting[name] = waiting[:_OPERATIONS_MAX], waiting[_OPERATIONS_MAX:]
        return self._own(name, client.submit(tuple(now)))

    def _own(self, name: str, effects: list[Effect]) -> list[Effect]:
        kept: list[Effect] = []
        for effect in effects:
            match effect:
                case SetTimer(timer, delay_ns):
                    kept.append(SetTimer(f"{timer} {name}", delay_ns))
                case Persist(record):
                    kept.append(Persist(Seated(name, record)))
                case Decide(Answer()):
                    pass
                case _:
                    kept.append(effect)
        return kept


class Seat:
    """What every participant without a replica does: clients, followed records, asking again."""

    def __init__(
        self,
        me: NodeId,
        agreement: Agreement,
        names: Iterable[str],
        signer: Signs,
        records: Sequence[Any],
    ) -> None:
        self.me, self.agreement = me, agreement
        self.desk = Desk(agreement, names, signer, records)
        self.view = DayView(agreement.day)
        self._follower = Follower(agreement.validators)

    def start(self) -> list[Effect]:
        """Begin, or go on after a restart."""
        return [*self.desk.start(), *self.again()]

    def again(self) -> list[Effect]:
        """Ask for records that may be missing, and come back later."""
        ask = FetchRecords(self._follower.position)
        return [
            *(Send(NodeId(name), ask) for name in self.agreement.validators),
            SetTimer(AGAIN, self.agreement.patience.again_ns),
        ]

    def handle(self, event: Received | TimerFired) -> list[Effect] | None:
        """Take an event of clients or records; None if it concerns neither."""
        match event:
            case Received(sender, Bulletin() as bulletin):
                for record in self._follower.take(sender, bulletin):
                    self.view.fold(record)
                return []
        return self.desk.handle(event)


def send_all(names: Iterable[str], message: Any) -> list[Effect]:
    """Return one message to several."""
    return [Send(NodeId(name), message) for name in names]


Keys = Mapping[str, bytes]
