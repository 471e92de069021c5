"""The day-ahead round: coordinate, certify, check by AC power flow, re-plan if needed, settle."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from veilgrid.admm.certify import DayCertificate, certify, certify_alone
from veilgrid.admm.exchange import plan_exchange
from veilgrid.admm.neighbour import NeighbourState, plan_neighbour
from veilgrid.admm.outcome import Coordination, Interrupted, ProgressSink, RunStatus
from veilgrid.admm.reference import alone, central, least_violation
from veilgrid.admm.settlement import Settlement, settle, settle_alone
from veilgrid.errors import Finding, invariant
from veilgrid.grid.acflow import ElectricalCheck, electrical_check
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits

REPLAN_COUNT_MAX = 6
"""Wider margins tried before a plan that fails the AC check is given up."""

MARGIN_STEP_PU = 2e-6
"""Added to each shortfall of voltage, so that the next plan does not end just outside again."""

EXPOSED = {
    "alone": "nothing: nobody plans together",
    "central": "the operator sees every bid, device and load",
    "exchange": "the coordinator sees each site's net demand and cost in every iteration",
    "neighbour": "neighbouring sites see flows and voltages of the branch they share",
}
"""Who sees what under each scheme [model 4]."""


@dataclass(frozen=True, kw_only=True)
class Replan:
    """One plan that the AC power flow refused.

    Attributes
    ----------
    margin_pu
        Voltage margin of the refused plan.
    rating_share
        Share of the ratings that the refused plan was allowed.
    findings
        What the AC power flow found.
    """

    margin_pu: float
    rating_share: float
    findings: tuple[Finding, ...]


@dataclass(frozen=True, kw_only=True)
class DayPlan:
    """A planned day with all its checks.

    Attributes
    ----------
    certificate, ac_check, settlement
        ``None`` where there is no plan.
    alone
        What everybody would do without coordination.
    replans
        Plans that the AC power flow refused before this one.
    """

    scheme: str
    day: Day
    outcome: Coordination
    alone: Coordination
    certificate: DayCertificate | None = None
    ac_check: ElectricalCheck | None = None
    settlement: Settlement | None = None
    margin_pu: float = 0.0
    replans: tuple[Replan, ...] = field(default=())

    @property
    def cost(self) -> float | None:
        """Cost of the plan, currency; ``None`` without a plan."""
        return None if self.settlement is None else plan_cost(self.scheme, self.day, self.outcome)

    @property
    def cost_alone(self) -> float:
        """Sum of what all sites pay alone, currency."""
        return plan_cost("alone", self.day, self.alone)

    @property
    def is_as_wanted(self) -> bool:
        """Converged, certified and electrically sound."""
        return (
            self.outcome.status is RunStatus.CONVERGED
            and self.certificate is not None
            and self.certificate.is_accepted
            and self.ac_check is not None
            and (self.ac_check.passed or self.scheme == "alone")
        )


Scheme = Callable[[Day, Limits, object, ProgressSink | None], Coordination]


def _central(
    day: Day, limits: Limits, _start: object, progress: ProgressSink | None
) -> Coordination:
    outcome = central(day, limits)
    if progress is not None and outcome.history:
        with suppress(Interrupted):  # the one solve is done; there is nothing to cut short
            progress(outcome.history[-1])
    return outcome


def _alone(
    day: Day, _limits: Limits, _start: object, _progress: ProgressSink | None
) -> Coordination:
    return alone(day)


def _exchange(
    day: Day, limits: Limits, start: object, progress: ProgressSink | None
) -> Coordination:
    return plan_exchange(day, limits, start=start, progress=progress)


def _neighbour(
    day: Day, limits: Limits, start: object, progress: ProgressSink | None
) -> Coordination:
    state = start if isinstance(start, NeighbourState) else None
    outcome = plan_neighbour(day, limits, start=state, progress=progress)
    if outcome.status in (RunStatus.ITERATION_LIMIT, RunStatus.INFEASIBLE):
        violations = least_violation(day, limits)
        if violations:
            none = replace(outcome, status=RunStatus.INFEASIBLE, setpoints=[])
            return replace(none, violations=violations)
    return outcome


SCHEMES: dict[str, Scheme] = {
    "alone": _alone,
    "central": _central,
    "neighbour": _neighbour,
    "exchange": _exchange,
}


def plan_day(
    day: Day,
    scheme: str = "exchange",
    start: object = None,
    progress: ProgressSink | None = None,
) -> DayPlan:
    """Plan, check and settle one day.

    Parameters
    ----------
    day
        What to plan.
    scheme
        A key of :data:`SCHEMES`.
    start
        ``outcome.warm`` of the last day under the same scheme, or None.
    progress
        Called once an iteration.

    Returns
    -------
    DayPlan
        A plan that fails the AC power flow is planned again with a wider margin, as often as
        :data:`REPLAN_COUNT_MAX`; ``ac_check`` says whether the last one passes.
    """
    invariant(scheme in SCHEMES, f"scheme is one of {sorted(SCHEMES)}, not {scheme!r}")
    others = alone(day)
    margin, share = day.network.voltage_margin_pu, 1.0
    replans: list[Replan] = []
    while True:
        limits = _limits(day, margin, share)
        outcome = SCHEMES[scheme](day, limits, start, progress)
        blank = DayPlan(
            scheme=scheme,
            day=day,
            outcome=outcome,
            alone=others,
            margin_pu=margin,
            replans=tuple(replans),
        )
        if not outcome.setpoints:
            return blank
        check = electrical_check(day.network, *day.demands(outcome.setpoints))
        can_replan = scheme != "alone" and outcome.status is RunStatus.CONVERGED
        if check.passed or not can_replan or len(replans) == REPLAN_COUNT_MAX:
            break
        wider = _wider(day, check, margin, share)
        if wider is None:
            break
        replans.append(Replan(margin_pu=margin, rating_share=share, findings=check.findings))
        margin, share = wider
    return _checked(blank, limits, check)


def _limits(day: Day, margin_pu: float, rating_share: float) -> Limits:
    limits = Limits.of(day.network, margin_pu)
    if rating_share == 1.0:
        return limits
    tree = replace(limits.tree, rating_pu=limits.tree.rating_pu * rating_share)
    return replace(limits, tree=tree)


def _wider(
    day: Day, check: ElectricalCheck, margin: float, share: float
) -> tuple[float, float] | None:
    """Return the margin and share of ratings that make up for what the AC check found."""
    network = day.network
    low, high = network.voltage_min_pu, network.voltage_max_pu
    short = max(
        0.0 if low is None else low - check.vm_min_pu,
        0.0 if high is None else check.vm_max_pu - high,
    )
    over = (check.loading_max or 0.0) - 1.0
    if short <= 0.0 and over <= 0.0:
        return None
    return (
        margin + short + MARGIN_STEP_PU if short > 0.0 else margin,
        share * (1.0 - over - 1e-4) if over > 0.0 else share,
    )


def plan_cost(scheme: str, day: Day, outcome: Coordination) -> float:
    """Return what set-points cost under a scheme, currency.

    Alone, each site pays for its own exchange at the substation's tariff; nothing is netted.
    """
    if scheme != "alone":
        return day.cost(outcome.setpoints)
    return sum(
        site.cost(x) + day.exchange_cost(site.demand_p(x))
        for site, x in zip(day.sites, outcome.setpoints, strict=True)
    )


def _checked(plan: DayPlan, limits: Limits, check: ElectricalCheck) -> DayPlan:
    """Add certificate and settlement."""
    day, outcome = plan.day, plan.outcome
    if plan.scheme == "alone":
        certificate = certify_alone(day, outcome.setpoints, outcome.price_p)
        settlement = settle_alone(day, outcome.setpoints)
    else:
        found = certify(day, limits, outcome.setpoints, outcome.price_p, outcome.price_q)
        certificate = found.certificate
        settlement = settle(
            day,
            outcome.setpoints,
            plan.alone.setpoints,
            found.target.price_p,
            found.target.price_q,
            float(found.target.rent.sum()),
        )
        outcome = replace(outcome, price_p=found.target.price_p, price_q=found.target.price_q)
    return replace(
        plan, outcome=outcome, certificate=certificate, ac_check=check, settlement=settlement
    )
