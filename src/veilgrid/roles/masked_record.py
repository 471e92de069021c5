"""What a masked day leaves behind, and who may depart from its protocol [masking 3, 4]."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from veilgrid.admm.exchange import ExchangeState
from veilgrid.admm.outcome import Coordination
from veilgrid.grid.network import Floats
from veilgrid.qp.mask import MaskedProblem
from veilgrid.roles.masked_edge import Falsify
from veilgrid.roles.masked_task import Submission, Task, Verdict


class Record(NamedTuple):
    """One settled task as the ledger has it."""

    task: Task
    submission: Submission
    verdicts: tuple[Verdict, ...]


Tamper = Callable[[Task, MaskedProblem, Submission], Submission]
"""What a dishonest worker makes of an honest submission."""


@dataclass(frozen=True, kw_only=True)
class Misconduct:
    """Who departs from the protocol; empty in any real run.

    Attributes
    ----------
    workers
        By name: what they make of their submissions.
    refusing
        By index of the site: from which iteration on its edge device stays silent.
    falsifying
        By index of the site: what its edge device pretends to have been offered.
    favouring
        By index of the site: premium, currency per per-unit, that a coordinator in league with it
        adds to the prices that it offers; certificates are asked for at the true prices.
    """

    workers: Mapping[str, Tamper] = field(default_factory=dict)
    refusing: Mapping[int, int] = field(default_factory=dict)
    falsifying: Mapping[int, "Falsify"] = field(default_factory=dict)
    favouring: Mapping[int, float] = field(default_factory=dict)


class Watched(NamedTuple):
    """One iteration as it is shown to tests and the audit; arrays (flexible site, interval).

    ``kind`` is that of the tasks; ``solutions`` are what edge devices recover, all variables: the
    truth to score attacks against.
    """

    iteration: int
    offer: ExchangeState
    demand_p: Floats
    demand_q: Floats
    records: tuple[Record, ...]
    problems: tuple[MaskedProblem, ...]
    solutions: tuple[Floats, ...]
    kind: str = "near"


class MaskedOutcome(NamedTuple):
    """A masked day.

    Attributes
    ----------
    refused
        Claims that validators refused: task, worker, reason.
    excluded
        Sites (indices) that went silent; the plan takes their register's fallback.
    named
        Sites whose c' did not follow from the registered one and the offer.
    """

    coordination: Coordination
    refused: tuple[tuple[Task, str, str], ...]
    excluded: tuple[int, ...]
    named: tuple[str, ...] = ()


HONEST = Misconduct()
"""Nobody departs from the protocol."""
