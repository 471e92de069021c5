"""A client of the ledger: asks once, believes f + 1 equal signed replies [ledger 3.4].

Other machines may hold a :class:`Client` and pass events on to it; its only timer is called
``ledger``.
"""

from collections import Counter, deque
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from veilgrid.errors import invariant
from veilgrid.ledger.journalled import Answered, Asked
from veilgrid.ledger.message import (
    CLIENT_WINDOW,
    Answer,
    Configuration,
    Lineage,
    Notary,
    Reply,
    Request,
    Verify,
    keys_of,
    lineage_end,
    signed_request,
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
from veilgrid.signature import Signs
from veilgrid.signature import verify as verify_ed25519

TIMER: Final = "ledger"
_PATIENCE_MAX: Final = 6


class Submit(msgspec.Struct, frozen=True, tag=True):
    """What whoever owns the client hands to it, as a message from the client's own name."""

    operations: tuple[bytes, ...]


class Client:
    """Submit operations, executed exactly once, and learn their results.

    An ``Answer`` is decided at least once over all lives of its process, and carries its number.

    Parameters
    ----------
    me
        Its name among the clients (or replicas) of the configuration.
    genesis
        The first configuration.
    records
        What its journal holds: requests without an answer are sent again.
    patience_ns
        It waits so long for the primary, then asks all replicas; doubles up to 64 times.
    first_operations
        Submitted at the first start, one request each.
    """

    def __init__(
        self,
        me: NodeId,
        genesis: Configuration,
        signer: Signs,
        records: Sequence[Any] = (),
        *,
        patience_ns: int = 300_000_000,
        first_operations: Sequence[tuple[bytes, ...]] = (),
        verify: Verify = verify_ed25519,
    ) -> None:
        self.me = me
        self._genesis = genesis
        self._signer = signer
        self._notary = Notary(genesis.digest(), verify)
        self._patience_ns = patience_ns
        self._patience = 0
        self._view = genesis.first_view
        self._follow(genesis)
        self._number = 0
        self._open: dict[int, Request] = {}
        self._replies: dict[int, dict[str, Reply]] = {}
        self._waiting: deque[tuple[bytes, ...]] = deque()
        self._is_armed = False
        for record in records:
            match record:
                case Asked(request):
                    self._number = request.number
                    self._open[request.number] = request
                case Answered(number):
                    self._open.pop(number, None)
        self._waiting.extend(tuple(operations) for operations in first_operations[self._number :])

    def _follow(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self._keys = keys_of(configuration.replicas)
        self._view = max(self._view, configuration.first_view)

    @property
    def open_count(self) -> int:
        """How many submissions have no answer yet."""
        return len(self._open) + len(self._waiting)

    def handle(self, event: Event) -> list[Effect]:
        """Advance by one event."""
        match event:
            case TimerFired(name) if name == START:
                return [*self._ask(self._keys), *self._admit(), *self._arm()]
            case TimerFired(name) if name == TIMER:
                return self._on_timer()
            case Received(_, Submit(operations)):
                return self.submit(operations)
            case Received(sender, Reply() as reply) if sender == reply.replica:
                return self._on_reply(reply)
            case Received(_, Lineage() as lineage):
                following = lineage_end(self._notary, self._genesis, lineage)
                if following is not None and following.number > self.configuration.number:
                    self._follow(following)
        return []

    def submit(self, operations: tuple[bytes, ...]) -> list[Effect]:
        """Ask for ``operations`` to be executed together; an ``Answer`` is decided later."""
        self._waiting.append(tuple(operations))
        return [*self._admit(), *self._arm()]

    def _admit(self) -> list[Effect]:
        """Give a number to what waits, write it down and send it, as far as the window allows."""
        effects: list[Effect] = []
        while self._waiting and self._number + 1 < min(self._open, default=self._number + 1) + (
            CLIENT_WINDOW
        ):
            self._number += 1
            request = signed_request(
                self._notary, self._signer, self.me, self._number, self._waiting.popleft()
            )
            self._open[request.number] = request
            primary = self.configuration.primary(self._view)
            effects += [Persist(Asked(request)), Send(primary, request)]
        return effects

    def _arm(self) -> list[Effect]:
        if self._is_armed or not self._open:
            return []
        self._is_armed = True
        return [SetTimer(TIMER, self._patience_ns << self._patience)]

    def _ask(self, replicas: Any) -> list[Effect]:
        return [Send(NodeId(node), request) for request in self._open.values() for node in replicas]

    def _on_timer(self) -> list[Effect]:
        self._is_armed = False
        if not self._open:
            return []
        self._patience = min(self._patience + 1, _PATIENCE_MAX)
        return [*self._ask(self._keys), *self._arm()]

    def _on_reply(self, reply: Reply) -> list[Effect]:
        key = self._keys.get(reply.replica)
        if reply.client != self.me or reply.number not in self._open or key is None:
            return []
        fields = (reply.view, reply.client, reply.number, reply.results, reply.replica)
        if not self._notary.check(key, "reply", reply.signature, *fields):
            return []
        replies = self._replies.setdefault(reply.number, {})
        replies[reply.replica] = reply
        tally = Counter(other.results for other in replies.values())
        results, count = tally.most_common(1)[0]
        if count <= self.configuration.fault_max:
            return []
        views = sorted(other.view for other in replies.values() if other.results == results)
        self._view = max(self._view, views[0])
        invariant(count == self.configuration.fault_max + 1, "an answer is given once")
        del self._open[reply.number], self._replies[reply.number]
        self._patience = 0
        return [
            Decide(Answer(reply.number, results)),  # First: a crash repeats it, not loses it.
            Persist(Answered(reply.number, results)),
            *self._admit(),
            *self._arm(),
        ]
