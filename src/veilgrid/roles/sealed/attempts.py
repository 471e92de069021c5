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
    is_waiting
        Whether this party does.
    """

    returned: list[str] = field(default_factory=list)
    stops: dict[NodeId, Stopped] = field(default_factory=dict)
    is_waiting: bool = False

    def may_follow(self, attempt: int) -> bool:
        """Whether another attempt may follow this one."""
        return attempt + 1 < ATTEMPTS_MAX + len(self.returned)

    def may_return(self, group: str) -> bool:
        """Whether a process of sites may have the day begin again."""
        return self.returned.count(group) < RETURNS_MAX

    def away(self, agreement: Agreement) -> list[str]:
        """Return the parties that do not know yet: they are lost, or still compute."""
        return [str(party) for party in agreement.parties if party not in self.stops]

    def begin(self) -> None:
        """Forget the attempt that is over."""
        self.stops.clear()
        self.is_waiting = False


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
