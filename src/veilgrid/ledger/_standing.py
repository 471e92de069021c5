"""Where a replica stands: what every part of it reads and writes [ledger 3].

The parts build on each other: this one, checkpoints (``_stability``), agreement (``_ordering``),
view changes (``_leaving``), what peers lack (``_catching_up``), and the dispatcher with the journal
(``replica``). Each part calls those below it; the two hooks of those above are named here.
"""

from abc import ABC, abstractmethod
from typing import Any

from veilgrid.errors import invariant
from veilgrid.ledger.checkpoint import Checkpoints, Transfer
from veilgrid.ledger.message import (
    Accusation,
    Certificate,
    Configuration,
    Lineage,
    Notary,
    Request,
    Verify,
    keys_of,
)
from veilgrid.ledger.service import Application, Moment, Service
from veilgrid.ledger.settings import Settings
from veilgrid.ledger.view_change import Rules, Views
from veilgrid.ledger.window import Window
from veilgrid.machine import Decide, Effect, NodeId, Send
from veilgrid.signature import Signs


class Standing(ABC):
    """The state of a replica and what follows from it without any message."""

    def __init__(
        self,
        me: NodeId,
        genesis: Configuration,
        signer: Signs,
        application: Application,
        settings: Settings | None,
        verify: Verify,
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

    def _broadcast(self, message: Any) -> list[Effect]:
        return [Send(node, message) for node in self._others]

    def _accuse(self, accusation: Accusation | None) -> list[Effect]:
        if accusation is None:
            return []
        name = (accusation.culprit, accusation.kind, accusation.view, accusation.sequence)
        if name in self._accused or len(self._accused) > 10_000:
            return []
        self._accused.add(name)
        return [Decide(accusation)]

    # -- what the parts above do when something below has changed --------------------------------

    @abstractmethod
    def _resume(self) -> list[Effect]:
        """Propose what has room now, and watch what waits."""

    @abstractmethod
    def _watch(self) -> list[Effect]:
        """See to it that the timer runs while something waits [ledger 4.1]."""
