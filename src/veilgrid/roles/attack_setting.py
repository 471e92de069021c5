"""What all attacks share: the honest plan, and how an attack ended [masking 7]."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, NamedTuple

from veilgrid.admm.certify import certify
from veilgrid.admm.outcome import Coordination, ProgressSink
from veilgrid.admm.settlement import MICRO, Settlement, settle, settle_told
from veilgrid.errors import InvariantError, invariant
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits
from veilgrid.roles.obstacles import Obstacle, obstacles
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
    obstacles
        Limits that no plan can meet; empty unless the day ended as infeasible.
    """

    case: str
    scheme: str
    site: str
    outcome: AttackOutcome
    attacker_gain: float
    cost_change_percent: float
    culprit: str | None
    why: str
    obstacles: tuple[Obstacle, ...] = ()


def without(day: Day, indices: Collection[int]) -> Day:
    """Return the day with sites fixed at what their devices do uncontrolled: their fallback."""
    sites = [
        replace(site, lower=site.uncontrolled, upper=site.uncontrolled) if i in indices else site
        for i, site in enumerate(day.sites)
    ]
    return replace(day, sites=tuple(sites))


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
    def _settlement(self) -> Settlement:
        found = self.honest.settlement
        if found is None:
            raise InvariantError("the honest day has a settlement")
        return found

    def gain(self, plan: Coordination, said: Day | None = None) -> float:
        """Return by how much less the attacker bears under a plan than under the honest one.

        Parameters
        ----------
        plan
            With set-points.
        said
            The day as sites act; they pay for that. ``None`` = as they are.

        Returns
        -------
        currency
        """
        day, plans = said or self.day, (plan.setpoints, self.honest.alone.setpoints)
        if plan.payments is not None:
            settled = settle_told(day, *plans, plan.payments, plan.rent)
        else:
            limits = plan.limits or self.limits
            target = certify(day, limits, plan.setpoints, plan.price_p, plan.price_q).target
            rent = float(target.rent.sum())
            settled = settle(day, *plans, target.price_p, target.price_q, rent)
        return self.honest_account - settled.accounts[self.site].cost / MICRO

    @property
    def honest_account(self) -> float:
        """What the attacker bears under the honest plan, currency."""
        return self._settlement.accounts[self.site].cost / MICRO

    def result(
        self,
        case: str,
        outcome: AttackOutcome,
        why: str,
        *,
        gain: float = 0.0,
        cost: float | None = None,
        culprit: str | None = None,
        unmet: tuple[Obstacle, ...] = (),
    ) -> AttackResult:
        """Put a result together; ``cost`` is the community's true cost."""
        base = abs(self.honest_cost) or 1.0
        change = 0.0 if cost is None else 100.0 * (cost - self.honest_cost) / base
        told = (gain, change, culprit, why, unmet)
        return AttackResult(case, self.scheme, self.name, outcome, *told)

    def left_alone(
        self,
        case: str,
        outcome: AttackOutcome,
        why: str,
        plan: Coordination | None,
        culprit: str | None = None,
    ) -> AttackResult:
        """Report that no plan came about: everybody is left alone, the attacker as well."""
        alone = self._settlement.accounts[self.site].cost_alone / MICRO
        unmet = () if plan is None else obstacles(self.day, plan.limits or self.limits, plan)
        return self.result(
            case,
            outcome,
            f"{why}; {unmet[0]}" if unmet else why,
            gain=self.honest_account - alone,
            cost=self.honest.cost_alone,
            culprit=culprit,
            unmet=unmet,
        )

    def is_gain(self, amount: float) -> bool:
        """Whether an amount is more than rounding."""
        return amount > max(0.01, GAIN_MIN * abs(self.honest.cost_alone))
