"""The contract's manipulations and ours against a sealed day, carried out by its machines.

Nothing is looked up: the day runs with the liar in it, parties and sites act as they would in a
deployment, and what it came to is read off the money, the status and who is named [sealed 8.1].

* ``dishonest-site``: after gate closure a site departs from its bid; :data:`LIES` lists the ways.
* ``colluding-dispatcher``: nobody dispatches here; the nearest to it is a party of the committee,
  which changes what it says in the network step and signs that.
* ``refusing-site``: a site stops answering.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec
import numpy as np

from veilgrid.admm.outcome import Coordination
from veilgrid.errors import RunAborted, invariant
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits
from veilgrid.grid.site import Site
from veilgrid.machine import Effect, Event, NodeId, Send
from veilgrid.mpc.message import Said, private_statement, statement
from veilgrid.roles.sealed.day import (
    PublicDay,
    cast_of,
    coordination_of,
    costs_alone,
    step_in_memory,
)
from veilgrid.roles.sealed.keys import SITES
from veilgrid.roles.sealed.kinds import REGRET, WISH
from veilgrid.roles.sealed.party import SealedParty
from veilgrid.roles.sealed.sites import SiteGroup
from veilgrid.secret import Randomness

Change = Callable[[str, int, list[int]], list[int] | None]
"""What a liar makes of its numbers for a kind of task in an iteration; ``None`` = silence."""

LOAD_SHARE: Final = 0.05
"""By so much of its load a dishonest site pretends to need less."""

CHEAPER: Final = 0.5
"""Share of its true cost that a dishonest site pretends its devices to have."""

PULL_STEPS: Final = 2**28
"""By so much, 1/16 per-unit, a dishonest site asks for less than it should in every wish."""


class DeviantGroup(SiteGroup):
    """Sites of which some change what they send, or act as if they were others."""

    lies: Mapping[int, Change]
    pretended: Mapping[int, Site]

    def _bid(self) -> list[Effect]:
        """Commit truthfully; pretend from then on."""
        effects = super()._bid()
        if self.pretended:
            self._sites.update(self.pretended)
            self._arrange()
        return effects

    def _submit(self, vectors: Any, name: str) -> list[Effect]:
        task, changed = self.course.task, dict(vectors)
        for bus, change in self.lies.items():
            if bus in changed:
                own = change(task.kind, task.iteration, [int(value) for value in changed[bus]])
                if own is None:
                    del changed[bus]
                else:
                    changed[bus] = own
        return super()._submit(changed, name)


class DeviantParty(SealedParty):
    """A party that adds to what it says in one round of one task, and signs that."""

    task_number: int
    round_number: int

    def handle(self, event: Event) -> list[Effect]:
        """Answer as an honest party does, but for the lie."""
        return [self._changed(effect) for effect in super().handle(event)]

    def _changed(self, effect: Effect) -> Effect:
        session = self.agreement.session(self.task_number)
        if not isinstance(effect, Send) or not isinstance(effect.message, Said):
            return effect
        said = effect.message
        if said.session != session or said.round != self.round_number:
            return effect
        me = self._number
        if said.shared:
            lie = _added(said.shared)
            text = statement(session, said.round, me, hashlib.sha256(lie).digest())
            signature = self._signer.sign("mpc/1/said", text)
            return Send(effect.to, msgspec.structs.replace(said, shared=lie, signature=signature))
        lie = _added(said.private)
        receiver = self.agreement.parties.index(effect.to) + 1
        digest = hashlib.sha256(lie).digest()
        text = private_statement(session, said.round, me, receiver, digest)
        signature = self._signer.sign("mpc/1/said", text)
        return Send(
            effect.to, msgspec.structs.replace(said, private=lie, private_signature=signature)
        )


def _added(octets: bytes) -> bytes:
    """Add one to the first word."""
    return bytes([octets[0] ^ 1, *octets[1:]]) if octets else octets


@dataclass(frozen=True)
class Attacked:
    """What came of a day with a liar in it.

    Attributes
    ----------
    coordination
        With the limits that it was made within; ``None`` where the day stopped without a result.
    excluded
        Buses that took their fallback, with the reason.
    culprits
        Parties that are named where the day stopped.
    reason
        Why it stopped.
    """

    coordination: Coordination | None
    excluded: Mapping[int, str]
    culprits: tuple[str, ...]
    reason: str


def play(
    day: Day,
    limits: Limits,
    randomness: Randomness,
    *,
    lies: Mapping[int, Change] | None = None,
    pretended: Mapping[int, Site] | None = None,
    deviant: tuple[NodeId, int, int] | None = None,
) -> Attacked:
    """Run a day in which some deviate.

    Parameters
    ----------
    day, limits, randomness
        As of an honest one.
    lies, pretended : by bus
        What dishonest sites send, or as whom they act.
    deviant
        A party that lies, in which task and round.
    """
    public = PublicDay.of(day, limits)
    cast = cast_of(public, dict(enumerate(day.sites)), costs_alone(day), randomness)
    if lies or pretended:
        group = cast.group
        group.__class__ = DeviantGroup
        group.lies, group.pretended = dict(lies or {}), dict(pretended or {})  # type: ignore[attr-defined]
    if deviant is not None:
        name, task, place = deviant
        party = cast.machines[name]
        invariant(isinstance(party, SealedParty), "a party deviates")
        party.__class__ = DeviantParty
        party.task_number, party.round_number = task, place  # type: ignore[attr-defined]
    with cast.pool:
        driven = step_in_memory(cast.machines, until=SITES)
    try:
        found = coordination_of(day, driven, SITES, public.register.unit, limits)
    except RunAborted as stopped:
        named = tuple(name for name in (stopped.culprit or "").split(", ") if name)
        return Attacked(None, {}, named, str(stopped.reason))
    excluded = {int(bus): str(why) for bus, why in found.opened["excluded"].items()}
    return Attacked(replace(found, limits=found.limits or limits), excluded, (), "")


# -- lies of a site -------------------------------------------------------------------------------


def less_load(site: Site) -> Site:
    """Return a site that needs less than it bid."""
    share = 1.0 - LOAD_SHARE
    return replace(site, load_p=site.load_p * share, load_q=site.load_q * share)


def cheaper_devices(site: Site) -> Site:
    """Return a site whose devices cost less than it bid."""
    return replace(site, linear=site.linear * CHEAPER, quadratic=site.quadratic * CHEAPER)


def _no_regret(kind: str, _iteration: int, own: list[int]) -> list[int]:
    return [0] * len(own) if kind == REGRET else own


def _pull(times: int) -> Change:
    def change(kind: str, iteration: int, own: list[int]) -> list[int]:
        if kind != WISH or iteration < 2:
            return own
        return [value - PULL_STEPS for value in own[:times]] + own[times:]

    return change


def silent_from(iteration: int) -> Change:
    """Return the behaviour of a site that says nothing from an iteration on."""

    def change(kind: str, at: int, own: list[int]) -> list[int] | None:
        return own if kind == "bids" or at < iteration else None

    return change


LIES: Final = {
    "load": "acts as if its load were five per cent smaller than it bid",
    "cost": "acts as if its devices cost half of what it bid, and claims to regret nothing",
    "wish": "asks for less than it should in every wish, and answers truthfully",
}
"""What a dishonest site tries, one after the other."""


def play_lie(day: Day, limits: Limits, randomness: Randomness, bus: int, lie: str) -> Attacked:
    """Run a day in which one site tells one of :data:`LIES`."""
    site = day.sites[bus]
    if lie == "load":
        return play(day, limits, randomness, pretended={bus: less_load(site)})
    if lie == "cost":
        pretended = {bus: cheaper_devices(site)}
        return play(day, limits, randomness, pretended=pretended, lies={bus: _no_regret})
    invariant(lie == "wish", "a lie is one of the known ones")
    return play(day, limits, randomness, lies={bus: _pull(day.interval_count)})


def default_bus(day: Day) -> int | None:
    """Return the site with a choice that has the largest load; the others send nothing to lie in.

    ``None`` where no site has a choice.
    """
    root = day.network.tree.root
    flexible = [bus for bus in day.flexible if bus != root]
    return max(flexible, key=lambda bus: float(np.sum(day.sites[bus].load_p)), default=None)
