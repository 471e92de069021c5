"""How often a sealed day may begin again, and who has to know before it does [sealed 4.6]."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from veilgrid.machine import NodeId
from veilgrid.roles.sealed.message import Agreement, Stopped

ATTEMPTS_MAX: Final = 3
"""How often the coordination of a day is begun; a party that is lost more often ends it."""

RETURNS_MAX: Final = 2
"""How often one process of sites may have the day begin again, which does not count above."""


@dataclass
class Attempts:
    """What one party knows of losses.

    Attributes
    ----------
    returned
        Processes of sites that had the day begin again, once for each time.
    stops
        Who knows that the present attempt is over, and from where on.
    ended
        Who says that the whole day is: a corrupt party may say both.
    is_waiting
        Whether this party does.
    is_closing
        Whether it is too late for who was lost to tell only this party.
    """

    returned: list[str] = field(default_factory=list)
    stops: dict[NodeId, Stopped] = field(default_factory=dict)
    ended: dict[NodeId, Stopped] = field(default_factory=dict)
    is_waiting: bool = False
    is_closing: bool = False

    def may_follow(self, attempt: int) -> bool:
        """Whether another attempt may follow this one."""
        return attempt + 1 < ATTEMPTS_MAX + len(self.returned)

    def may_return(self, group: str) -> bool:
        """Whether a process of sites may have the day begin again."""
        return self.returned.count(group) < RETURNS_MAX

    def away(self, agreement: Agreement) -> list[str]:
        """Return the parties that do not know yet: they are lost, or still compute."""
        known = {*self.stops, *self.ended}
        return [str(party) for party in agreement.parties if party not in known]

    def note(self, author: NodeId, stopped: Stopped) -> None:
        """Remember the first word of each kind that a party said."""
        (self.stops if stopped.is_lost else self.ended).setdefault(author, stopped)

    def unexcused(
        self, culprits: list[str], me: NodeId
    ) -> tuple[list[str], tuple[NodeId, Stopped] | None]:
        """Return who was silent without having said why, and else whose word explains it.

        Who accused this party is not excused by that.
        """
        said = {
            str(name): (name, one)
            for name, one in [*self.ended.items(), *self.stops.items()]
            if {*one.culprits} - {str(name), str(me)}
        }
        names = [name for name in culprits if name not in said]
        excused = [said[name] for name in culprits if name in said]
        return names, excused[0] if excused and not names else None

    def verdict(self, agreement: Agreement, me: NodeId) -> tuple[str, list[str]]:
        """Return why the day ends, and who is to blame: whom more than may be corrupt do.

        Where no such number does, whom this party blamed already, or else who is away.
        """
        said = [one.culprits for one in self.ended.values()]
        for one in self.ended.values():
            if said.count(one.culprits) > agreement.degree:
                return one.reason, one.culprits
        mine, away = self.stops[me], self.away(agreement)
        culprits = [name for name in mine.culprits if name in agreement.parties and name != me]
        if culprits or not away:
            return mine.reason, culprits
        return "a party did not come back", away

    def begin(self) -> None:
        """Forget the attempt that is over."""
        self.stops.clear()
        self.ended.clear()
        self.is_waiting = self.is_closing = False


def are_bids_open(stops: list[Stopped]) -> bool:
    """Return whether it is not sure, of all who stopped, that everybody has the bids.

    Who got two tasks further knows that all have them; so do all together who got one.
    """
    tasks = [one.task for one in stops]
    return max(tasks) < 2 and min(tasks) < 1


def groups_of(agreement: Agreement) -> set[str]:
    """Return the names of all processes of sites."""
    return {str(group) for group in agreement.groups.values()}


def listeners_of(agreement: Agreement) -> set[NodeId]:
    """Return all processes that hear how attempts begin and end: those of sites, and the payer."""
    payers = set() if agreement.payer is None else {agreement.payer}
    return {*agreement.groups.values(), *payers}


def is_present(agreement: Agreement, group: str, absent: Iterable[int]) -> bool:
    """Whether a process has a site whose bid counts."""
    missing = set(absent)
    return any(str(home) == group and bus not in missing for bus, home in agreement.groups.items())
