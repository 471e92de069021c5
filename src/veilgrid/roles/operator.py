"""The day-ahead round: coordinate, certify, check by AC power flow, re-plan if needed, settle."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from veilgrid.admm.certify import DayCertificate, certify, certify_alone
from veilgrid.admm.exchange import plan_exchange
from veilgrid.admm.neighbour import NeighbourState, plan_neighbour
from veilgrid.admm.outcome import Coordination, Interrupted, ProgressSink, Refused, RunStatus
from veilgrid.admm.reference import alone, central, least_violation
from veilgrid.admm.settlement import Settlement, settle, settle_alone, settle_told
from veilgrid.errors import Finding, invariant
from veilgrid.grid.acflow import ElectricalCheck, electrical_check
from veilgrid.grid.correction import STEP_PU, corrected, margin_pu, rating_share
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits
from veilgrid.grid.network import Network
from veilgrid.roles.masked import MaskedSettings, plan_masked
from veilgrid.roles.masked_chain import Chain
from veilgrid.roles.masked_ledger import LedgerRun, plan_neighbour_ledger
from veilgrid.roles.masked_neighbour import (
    PUBLISHED,
    MaskedNeighbourSettings,
    plan_masked_neighbour,
)
from veilgrid.roles.obstacles import Obstacle, obstacles
from veilgrid.roles.sealed.day import Life, plan_sealed
from veilgrid.secret import Randomness, SystemRandomness

REPLAN_COUNT_MAX = 6
"""Wider margins tried before a plan that fails the AC check is given up."""

LOCAL_MARGINS = frozenset(
    {"central", "exchange", "ledger", "masked", "neighbour", "neighbour-ledger", "sealed"}
)
"""Schemes whose limits may differ by bus and interval; the others keep one margin for all."""

REPLANNED = frozenset({"alone", "sealed"})
"""Schemes that are not planned again here: there is nothing to narrow, or they do it themselves."""

EXPOSED = {
    "alone": "nothing: nobody plans together",
    "central": "the operator sees every bid, device and load",
    "exchange": "the coordinator sees each site's net demand and cost in every iteration",
    "neighbour": "parents see sums over what hangs below them, of a leaf its own net demand; "
    "all see prices and binding limits",
    "ledger": "everybody who reads the ledger sees every bid, device, load and schedule",
    "neighbour-ledger": "everybody who reads the ledger sees every bid and every iterate",
    "masked": "workers and validators see masked problems, from which schedules, forecasts and "
    "battery sizes can be read (veilgrid audit); the coordinator sees net demands",
    "sealed": "each site sees its own prices; all parties see which limits bind, which way the "
    "exchange goes, total cost and gap; a site's data only if two of the three parties collude",
}
"""Who sees what under each scheme [model 4]."""

_EXPOSED_OTHERWISE = {
    ("masked", "neighbour"): "workers and validators see masked problems, from which schedules, "
    "forecasts and battery sizes can be read (veilgrid audit); parents see their children's net "
    "demands; all see prices and binding limits",
    ("masked", "published"): "workers and validators see masked problems, from which schedules, "
    "forecasts, battery sizes, flows and voltages can be read; neighbours see the copies of the "
    "edge they share",
    ("neighbour", "published"): "neighbours see the copies of the edge they share, flows and "
    "voltage, in every iteration",
}


def exposed(scheme: str, coordination: str | None = None) -> str:
    """Say who sees what under a scheme, coordinated its own way unless told otherwise."""
    return _EXPOSED_OTHERWISE.get((scheme, coordination or ""), EXPOSED[scheme])


@dataclass(frozen=True, kw_only=True)
class Replan:
    """One plan that the AC power flow refused.

    Attributes
    ----------
    margin_pu
        Widest voltage margin of the refused plan.
    rating_share
        Smallest share of any rating that the refused plan was allowed.
    cost : currency
        Of the refused plan.
    iteration_count
        That the refused plan took.
    findings
        What the AC power flow found.
    """

    margin_pu: float
    rating_share: float
    cost: float
    iteration_count: int
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
    limits
        What the plan was made within.
    replans
        Plans that the AC power flow refused before this one.
    ledger
        Export of the ledger that recorded the day, settlement and all, for ``veilgrid verify``;
        empty for schemes without a ledger, and without a plan.
    """

    scheme: str
    day: Day
    outcome: Coordination
    alone: Coordination
    limits: Limits
    certificate: DayCertificate | None = None
    ac_check: ElectricalCheck | None = None
    settlement: Settlement | None = None
    replans: tuple[Replan, ...] = field(default=())
    ledger: bytes = field(default=b"", repr=False)

    @property
    def margin_pu(self) -> float:
        """Widest voltage margin that the plan keeps anywhere, per-unit."""
        return margin_pu(self.day.network, self.limits)

    @property
    def obstacles(self) -> tuple[Obstacle, ...]:
        """Limits that no plan can meet, worst first; empty unless the day is infeasible."""
        return obstacles(self.day, self.limits, self.outcome)

    @property
    def iteration_count_total(self) -> int:
        """Iterations of this plan and of all that the AC power flow refused before it."""
        refused = sum(replan.iteration_count for replan in self.replans)
        return refused + self.outcome.iteration_count

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


Scheme = Callable[..., Coordination]
"""Takes day, limits, start, progress; those in :data:`DRAWING` also ``randomness``."""


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


def _ledger(
    day: Day,
    limits: Limits,
    _start: object,
    progress: ProgressSink | None,
    randomness: Randomness | None = None,
) -> Coordination:
    run = LedgerRun(randomness=randomness or SystemRandomness(), is_recorded=True)
    outcome = run.run(day, limits)
    if progress is not None and outcome.history:
        with suppress(Interrupted):
            progress(outcome.history[-1])
    return outcome


def _neighbour_ledger(
    day: Day,
    limits: Limits,
    start: object,
    progress: ProgressSink | None,
    randomness: Randomness | None = None,
) -> Coordination:
    return plan_neighbour_ledger(day, limits, start, progress, randomness or SystemRandomness())


def _masked(
    day: Day,
    limits: Limits,
    start: object,
    progress: ProgressSink | None,
    randomness: Randomness | None = None,
) -> Coordination:
    draw = randomness or SystemRandomness()
    settings = MaskedSettings(is_recorded=True)
    return plan_masked(day, limits, draw, settings, start, progress).coordination


def _masked_neighbour(
    day: Day,
    limits: Limits,
    start: object,
    progress: ProgressSink | None,
    randomness: Randomness | None = None,
) -> Coordination:
    draw = randomness or SystemRandomness()
    settings = MaskedNeighbourSettings(is_recorded=True)
    return plan_masked_neighbour(day, limits, draw, settings, start, progress).coordination


def _masked_published(
    day: Day,
    limits: Limits,
    _start: object,
    progress: ProgressSink | None,
    randomness: Randomness | None = None,
) -> Coordination:
    draw = randomness or SystemRandomness()
    settings = MaskedNeighbourSettings(coordination=PUBLISHED, is_recorded=True)
    return plan_masked_neighbour(day, limits, draw, settings, progress=progress).coordination


def _neighbour_published(
    day: Day, limits: Limits, _start: object, progress: ProgressSink | None
) -> Coordination:
    return plan_neighbour(day, limits, PUBLISHED, progress=progress)


def _sealed(
    day: Day,
    limits: Limits,
    start: object,
    progress: ProgressSink | None,
    randomness: Randomness | None = None,
    life: Life | None = None,
) -> Coordination:
    draw = randomness or SystemRandomness()
    return plan_sealed(
        day,
        limits,
        randomness=draw,
        progress=progress,
        is_recorded=True,
        start=start,
        life=life,
    )


SCHEMES: dict[str, Scheme] = {
    "alone": _alone,
    "central": _central,
    "ledger": _ledger,
    "neighbour": _neighbour,
    "neighbour-ledger": _neighbour_ledger,
    "exchange": _exchange,
    "masked": _masked,
    "sealed": _sealed,
}

COORDINATIONS: dict[tuple[str, str], Scheme] = {
    ("masked", "neighbour"): _masked_neighbour,
    ("masked", "published"): _masked_published,
    ("neighbour", "published"): _neighbour_published,
}
"""Schemes coordinated otherwise than by themselves; ``published`` = edge by edge [neighbour 2]."""

DRAWING = frozenset({"ledger", "masked", "neighbour-ledger", "sealed"})
"""Schemes that draw keys, masks or shares."""


def plan_day(
    day: Day,
    scheme: str = "exchange",
    start: object = None,
    progress: ProgressSink | None = None,
    randomness: Randomness | None = None,
    coordination: str | None = None,
    life: Life | None = None,
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
    randomness
        Of keys, masks and shares; ``None`` = the system's.
    coordination
        With the scheme a key of :data:`COORDINATIONS`; ``None`` = as the scheme does by itself.
    life
        Of a sealed day: what an earlier run left of it, and where this one keeps its records.

    Returns
    -------
    DayPlan
        A plan that fails the AC power flow is planned again within narrower limits, started from
        the refused plan, as often as :data:`REPLAN_COUNT_MAX`; ``ac_check`` says whether the last
        one passes.
    """
    invariant(scheme in SCHEMES, f"scheme is one of {sorted(SCHEMES)}, not {scheme!r}")
    is_known = coordination is None or (scheme, coordination) in COORDINATIONS
    invariant(is_known, f"{scheme} cannot be coordinated by {coordination}")
    solve = COORDINATIONS[scheme, coordination] if coordination else SCHEMES[scheme]
    others = alone(day)
    limits = Limits.of(day.network)
    replans: list[Replan] = []
    drawn: dict[str, Any] = {"randomness": randomness} if scheme in DRAWING else {}
    if life is not None:
        invariant(scheme == "sealed", "only a sealed day is kept and gone on with")
        drawn["life"] = life
    while True:
        outcome = solve(day, limits, start, progress, **drawn)
        replans += [_replan(day.network, one) for one in outcome.refused]
        limits = outcome.limits or limits
        blank = DayPlan(
            scheme=scheme,
            day=day,
            outcome=outcome,
            alone=others,
            limits=limits,
            replans=tuple(replans),
        )
        if not outcome.setpoints:
            return blank
        demands = day.demands(outcome.setpoints)
        check = electrical_check(day.network, *demands)
        can_replan = scheme not in REPLANNED and outcome.status is RunStatus.CONVERGED
        if check.passed or not can_replan or len(replans) == REPLAN_COUNT_MAX:
            break
        begin = start
        if scheme in LOCAL_MARGINS:
            narrower: Limits | None = corrected(day.network, limits, *demands)
            begin = outcome.warm
        else:
            narrower = _narrower(day, limits, check)
        if narrower is None:
            break
        replans.append(
            Replan(
                margin_pu=blank.margin_pu,
                rating_share=rating_share(day.network, limits),
                cost=day.cost(outcome.setpoints),
                iteration_count=outcome.iteration_count,
                findings=check.findings,
            )
        )
        limits, start = narrower, begin
    return _checked(blank, limits, check)


def _narrower(day: Day, limits: Limits, check: ElectricalCheck) -> Limits | None:
    """Return limits with one wider margin, or smaller ratings, for all buses and intervals."""
    network = day.network
    low, high = network.voltage_min_pu, network.voltage_max_pu
    short = max(
        0.0 if low is None else low - check.vm_min_pu,
        0.0 if high is None else check.vm_max_pu - high,
    )
    over = (check.loading_max or 0.0) - 1.0
    if short <= 0.0 and over <= 0.0:
        return None
    wider = Limits.of(network, margin_pu(network, limits) + short + STEP_PU)
    if short <= 0.0:
        wider = limits
    share = 1.0 - over - 1e-4 if over > 0.0 else 1.0
    tree = replace(limits.tree, rating_pu=limits.tree.rating_pu * share)
    return replace(wider, tree=tree)


def _replan(network: Network, refused: Refused) -> Replan:
    """Describe a plan that a scheme refused itself, each bus or branch by its worst interval."""
    names, worst = [str(bus.name) for bus in network.buses], dict[tuple[str, int], Finding]()
    low, high = network.voltage_min_pu, network.voltage_max_pu
    for kind, limit in (("low", low), ("high", high), ("over", None)):
        for bus, interval, missed in sorted(refused.places[kind], key=lambda one: -abs(one[2])):
            if kind == "over":
                here = f"branch {names[network.tree.parent[bus]]}->{names[bus]}"
                problem = "loaded beyond its rating by AC power flow"
            else:
                what = "min" if kind == "low" else "max"
                here = f"bus {names[bus]}"
                problem = f"beyond voltage_{what}_pu {limit} by AC power flow"
            problem += f"; losses move its square by {abs(missed):.4f}"
            worst.setdefault((kind, bus), Finding(f"{here}, interval {interval}", problem))
    return Replan(
        margin_pu=margin_pu(network, refused.limits),
        rating_share=rating_share(network, refused.limits),
        cost=refused.cost,
        iteration_count=refused.iteration_count,
        findings=tuple(worst.values()),
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
        plans, target = (outcome.setpoints, plan.alone.setpoints), found.target
        if outcome.payments is None:
            rent = float(target.rent.sum())
            settlement = settle(day, *plans, target.price_p, target.price_q, rent)
        else:
            settlement = settle_told(day, *plans, outcome.payments, outcome.rent)
        outcome = replace(outcome, price_p=found.target.price_p, price_q=found.target.price_q)
    ledger, chain = b"", outcome.record
    if isinstance(chain, Chain):
        chain.settle({str(account.site): account.payment for account in settlement.accounts})
        ledger, outcome = chain.export(), replace(outcome, record=None)
    return replace(
        plan,
        outcome=outcome,
        certificate=certificate,
        ac_check=check,
        settlement=settlement,
        ledger=ledger,
    )
