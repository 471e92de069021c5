"""Ways in which a replica could be wrong; the simulations must find each [tests/mutations.md]."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import msgspec

from veilgrid.ledger.merkle import MerkleTree
from veilgrid.ledger.message import Configuration
from veilgrid.ledger.replica import Replica
from veilgrid.ledger.service import Service, Snapshot
from veilgrid.ledger.window import Window
from veilgrid.machine import Effect, Event, Persist


@contextlib.contextmanager
def small_quorum() -> Iterator[None]:
    """2 of 4 decide, although two such pairs need not share an honest replica."""
    with patch.object(Configuration, "quorum", property(lambda _: 2)):
        yield


@contextlib.contextmanager
def vote_before_log() -> Iterator[None]:
    """Votes leave before they are durable."""
    handle = Replica.handle

    def reordered(self: Replica, event: Event) -> list[Effect]:
        effects = handle(self, event)
        late = [effect for effect in effects if isinstance(effect, Persist)]
        return [effect for effect in effects if not isinstance(effect, Persist)] + late

    with patch.object(Replica, "handle", reordered):
        yield


@contextlib.contextmanager
def prepared_ignored() -> Iterator[None]:
    """A view change does not show what was prepared."""
    with patch.object(Window, "prepared", lambda _: iter(())):
        yield


@contextlib.contextmanager
def table_skipped() -> Iterator[None]:
    """Requests are executed whatever their number."""
    with patch.object(Service, "_is_next", lambda _, __: True):
        yield


@contextlib.contextmanager
def checkpoint_unchecked() -> Iterator[None]:
    """A fetched snapshot is believed without looking at the certified summary."""

    def believing(self: Service, octets: bytes, _summary: Any) -> Service | None:
        try:
            snapshot = msgspec.msgpack.decode(octets, type=Snapshot)
            state = self.application.decode(snapshot.state)
        except msgspec.DecodeError:
            return None
        core = snapshot.core
        service = replace(
            self,
            configuration=core.configuration,
            tree=MerkleTree(snapshot.records),
            records=list(snapshot.records),
            clients=dict(core.clients),
            approvals=dict(core.approvals),
            change=core.change,
        )
        service.sequence, service.head, service.state = core.sequence, core.head, state
        return service

    with patch.object(Service, "restored", believing):
        yield


MUTATIONS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "quorum 2 of 4": small_quorum,
    "vote before log": vote_before_log,
    "prepared certificate ignored": prepared_ignored,
    "sequence table skipped": table_skipped,
    "checkpoint not checked": checkpoint_unchecked,
}
