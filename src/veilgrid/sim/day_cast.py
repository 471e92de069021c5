"""Dishonest sites, workers and validators of a masked day [day 6]."""

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from veilgrid.machine import Effect, Event, Send
from veilgrid.qp.dense import DenseSolution
from veilgrid.roles.ledger_message import Offered, Solved
from veilgrid.roles.ledger_site import SiteGroup
from veilgrid.roles.ledger_validator import Validator
from veilgrid.roles.ledger_worker import Worker, solution_of
from veilgrid.roles.masked_task import Task, claimed, replace_signature


class LyingWorker(Worker):
    """Solve, and submit something else, signed as well as it can be."""

    kind = "infeasible"

    def _told(self, solved: Solved) -> Solved:
        if self.kind == "unsigned":
            return msgspec.structs.replace(solved, claim=replace_signature(solved.claim, bytes(64)))
        found = solution_of(solved)
        tasked = self.shelf.tasks[solved.step, solved.site]
        data = self.shelf.data_digest(solved.step, solved.site)
        if found is None or data is None:
            return solved
        lie = self._lie(solved.site, found)
        task = Task(
            site=solved.site, iteration=solved.step, kind=tasked.kind, data=data, worker=self.me
        )
        claim = claimed(task, lie, self.me, self._signer).claim
        return msgspec.structs.replace(
            solved,
            claim=claim,
            variables=lie.y.astype("<i8").tobytes(),
            multipliers=lie.multipliers.astype("<i8").tobytes(),
        )

    def _lie(self, site: str, found: DenseSolution) -> DenseSolution:
        if self.kind == "stale":
            first = self.__dict__.setdefault("first_solutions", {})
            return first.setdefault(site, found)  # type: ignore[no-any-return]
        if self.kind == "suboptimal":
            return DenseSolution(y=found.y, multipliers=found.multipliers // 2 + 10_000_000)
        return DenseSolution(y=found.y + np.int64(500_000_000), multipliers=found.multipliers)


class WrongVerdicts(Validator):
    """Agree on the order, and refuse every sound claim."""

    def _verdict(self, is_accepted: bool) -> bool:
        return not is_accepted


class LyingGroup(SiteGroup):
    """A process of sites of which some are silent or announce what does not follow."""

    lies: Mapping[str, tuple[str, int]] = {}

    def handle(self, event: Event) -> list[Effect]:
        """Step; sites that do not bid forget that they have something to declare."""
        for site, (kind, _) in self.lies.items():
            if kind == "no-bid" and site in self.devices:
                self._bid.add(site)
        return super().handle(event)

    def _announced(self, offered: Offered, digest: bytes) -> bytes | None:
        kind, since = self.lies.get(offered.site, ("", 0))
        if kind == "silent" and offered.step >= since:
            return None
        if kind == "falsifying" and offered.step >= since:
            return bytes([digest[0] ^ 1]) + digest[1:]
        return digest


class SilentSince:
    """Behave until a step of the ledger, then say nothing."""

    def __init__(self, machine: Any, since: int) -> None:
        self._machine, self._since = machine, since

    @property
    def seat(self) -> Any:
        """As of the wrapped machine."""
        return self._machine.seat

    def handle(self, event: Event) -> list[Effect]:
        """Drop what it would send."""
        effects: list[Effect] = self._machine.handle(event)
        view = getattr(self._machine, "view", None) or self._machine.seat.view
        if view.iteration < self._since:
            return effects
        return [effect for effect in effects if type(effect) is not Send]
