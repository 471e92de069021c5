"""What a coordination run hands back, whichever scheme ran."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from veilgrid.grid.lindistflow import Limits
from veilgrid.grid.network import Floats


class RunStatus(StrEnum):
    """How a run ended; the words of the command line."""

    CONVERGED = "converged"
    ITERATION_LIMIT = "iteration_limit"
    INFEASIBLE = "infeasible"
    ABORTED = "aborted"


class Interrupted(Exception):
    """Raised by a progress sink to end a run with what was reached."""


class Progress(NamedTuple):
    """One iteration as it is shown live.

    ``primal`` and ``dual`` are residuals in per-unit and currency per per-unit; ``cost`` is the
    cost of the balanced plan that the sites' present set-points make, currency.
    """

    iteration: int
    primal: float
    dual: float
    cost: float


ProgressSink = Callable[[Progress], None]


@dataclass(frozen=True)
class Refused:
    """A plan that the AC power flow refused before it was handed back.

    Attributes
    ----------
    cost : currency
    limits
        Within which it was planned.
    places
        (bus, interval, difference of AC and LinDistFlow) beyond limits: ``low`` and ``high``
        squared voltages, per-unit, and ``over`` squared ratings, per-unit of them.
    """

    cost: float
    iteration_count: int
    limits: Limits
    places: Mapping[str, tuple[tuple[int, int, float], ...]]


@dataclass(frozen=True, kw_only=True)
class Coordination:
    """Set-points, prices and the way to them.

    Attributes
    ----------
    setpoints : one (variable,) array a site, per-unit
    price_p, price_q : (bus, interval), currency per per-unit held for one interval
        What a site pays for one more unit of net demand.
    rent : currency
        What binding network rows collect: strengths times bounds.
    history
        One entry an iteration.
    violations
        Rows that no plan can meet: (row of :class:`Limits`, interval, amount); empty unless
        infeasible.
    opened
        What a scheme that hides the rest opened about the finished day; empty for others.
    payments : by bus, currency
        What each site was told that it pays, where the scheme settles itself; ``None`` where
        payments follow from set-points and prices.
    refused, limits
        Earlier plans that the scheme made itself and the AC power flow refused, and the limits
        that it narrowed for this one; ``None`` = those that it was given.
    record
        The ledger on which the day was recorded, still open; ``None`` for schemes without one.
    """

    status: RunStatus
    setpoints: list[Floats] = field(repr=False)
    price_p: Floats = field(repr=False)
    price_q: Floats = field(repr=False)
    rent: float = 0.0
    history: tuple[Progress, ...] = field(default=(), repr=False)
    message_count: int = 0
    byte_count: int = 0
    violations: tuple[tuple[int, int, float], ...] = ()
    warm: object = field(default=None, repr=False)
    opened: dict[str, Any] = field(default_factory=dict, repr=False)
    payments: dict[int, float] | None = field(default=None, repr=False)
    refused: tuple[Refused, ...] = ()
    limits: Limits | None = field(default=None, repr=False)
    record: object = field(default=None, repr=False, compare=False)

    @property
    def iteration_count(self) -> int:
        """Number of iterations done."""
        return len(self.history)
