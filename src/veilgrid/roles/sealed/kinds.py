"""What computations a sealed day is made of [sealed 4.3]."""

from dataclasses import dataclass
from typing import Final

BIDS: Final = "bids"
WISH: Final = "wish"
ANSWER: Final = "answer"
REGRET: Final = "regret"
PULL: Final = "pull"
SURPLUS: Final = "surplus"
CHALLENGE: Final = "challenge"
CERTIFICATE: Final = "certificate"
DONE: Final = "done"


@dataclass(frozen=True, slots=True)
class Task:
    """One computation of the committee.

    Attributes
    ----------
    number
        Of the computation; differs also between repetitions.
    kind
        :data:`BIDS`, :data:`WISH`, :data:`ANSWER`, :data:`REGRET`, :data:`PULL`,
        :data:`SURPLUS`, :data:`CHALLENGE` or :data:`CERTIFICATE`.
    iteration
        Of the coordination, from 1.
    """

    number: int
    kind: str
    iteration: int
