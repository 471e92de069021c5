"""What all attacks share: the honest plan, and how an attack ended [masking 7]."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from veilgrid.admm.outcome import ProgressSink
from veilgrid.admm.settlement import MICRO
from veilgrid.errors import invariant
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits
from veilgrid.roles.operator import DayPlan
from veilgrid.secret import Randomness

GAIN_MIN: Final = 1e-5
"""Share of the cost of all alone above which a gain counts as one."""


class AttackOutcome(StrEnum):
    """How an attack ended."""

    SUCCEEDED = "succeeded"
    PREVENTED = "prevented"
    STALLED = "stalled"
    CONTAINED = "contained"


class AttackResult(NamedTuple):
    """One case under one scheme.

    Attributes
    ----------
    attacker_gain : currency
        By how much better off the attacker is than under the honest plan, true costs counted.
    cost_change_percent
        Of the community's true cost against the honest plan.
    culprit
        Who is named; ``None`` if nobody is.
    why
        What made the outcome, for a person.
    """

    case: str
    scheme: str
    site: str
    outcome: AttackOutcome
    attacker_gain: float
    cost_change_percent: float
    culprit: str | None
    why: str


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all cases share: the honest plan of the scheme.

    Attributes
    ----------
    site : index
        The attacker, or whom the dispatcher favours.
    progress
        Called once an iteration of each run; must raise nothing but what ends the attack.
    """

    day: Day
    scheme: str
    honest: DayPlan
    site: int
    randomness: Randomness
    progress: ProgressSink | None = None

    @property
    def limits(self) -> Limits:
        """Within which the honest plan was made."""
        return self.honest.limits

    @property
    def name(self) -> str:
        """Of the site."""
        return str(self.day.sites[self.site].name)

    @property
    def honest_cost(self) -> float:
        """Community's cost of the honest plan, currency."""
        cost = self.honest.cost
        invariant(cost is not None, "the honest day has a plan")
        return float(cost or 0.0)

    @property
    def honest_account(self) -> float:
        """What the attacker bears under the honest plan, currency."""
        settlement = self.honest.settlement
        invariant(settlement is not None, "the honest day has a settlement")
        return settlement.accounts[self.site].cost / MICRO if settlement else 0.0

    def result(
        self,
        case: str,
        outcome: AttackOutcome,
        why: str,
        *,
        gain: float = 0.0,
        cost: float | None = None,
        culprit: str | None = None,
    ) -> AttackResult:
        """Put a result together; ``cost`` is the community's true cost."""
        base = abs(self.honest_cost) or 1.0
        change = 0.0 if cost is None else 100.0 * (cost - self.honest_cost) / base
        return AttackResult(case, self.scheme, self.name, outcome, gain, change, culprit, why)

    def is_gain(self, amount: float) -> bool:
        """Whether an amount is more than rounding."""
        return amount > max(0.01, GAIN_MIN * abs(self.honest.cost_alone))
