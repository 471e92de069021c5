"""What sites and the payer believe of the parties: what more of them say than may be corrupt."""

from collections.abc import Mapping
from typing import Final, TypeVar

import msgspec

from veilgrid.machine import NodeId
from veilgrid.roles.sealed.message import Agreement, Stopped

_Word = TypeVar("_Word")

WORDS: Final = "words"
WORDS_NS: Final = 60_000_000_000
"""Timer for another party's word where the first ones blame nobody alike, and how long it runs."""


def agreed(words: Mapping[NodeId, _Word], agreement: Agreement) -> _Word | None:
    """Return what more parties say alike than may be corrupt, or None."""
    said = list(words.values())
    return next((one for one in said if said.count(one) > agreement.degree), None)


class Stops:
    """Parties' words that a day has stopped.

    Attributes
    ----------
    last
        What follows from those that came; None where they are no more than may be corrupt.
    """

    def __init__(self) -> None:
        self.last: Stopped | None = None
        self._said: dict[NodeId, Stopped] = {}

    def take(self, sender: NodeId, stopped: Stopped, agreement: Agreement) -> bool:
        """Take a word; return whether no further one can change who is named.

        Named is whom more parties blame than may be corrupt. One of the first may be corrupt and
        blame anybody: where they do not blame alike another's word decides, if it comes.
        """
        if stopped.day != agreement.day or stopped.is_lost:
            return False
        self._said[sender] = stopped
        said, degree = list(self._said.values()), agreement.degree
        if len(said) <= degree:
            return False
        blamed = [name for one in said for name in set(one.culprits)]
        culprits = sorted({name for name in blamed if blamed.count(name) > degree})
        reason = next((one.reason for one in said if culprits == one.culprits), stopped.reason)
        self.last = msgspec.structs.replace(stopped, reason=reason, culprits=culprits)
        silent = [one for one in said if not one.culprits]
        return bool(culprits) or len(silent) > degree or len(said) == len(agreement.parties)
