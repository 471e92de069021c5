"""The source paper's three manipulations, carried out against every scheme [masking 7].

Nothing here looks an outcome up: each case runs the scheme with the manipulation in it, lets the
scheme's own checks act, and reads the outcome off the money and the status.

* ``dishonest-site``: after gate closure a site acts in every iteration as if its load were five
  per cent smaller than what it registered and will draw.
* ``colluding-dispatcher``: whoever plans favours one site: its power is planned as if it were
  cheaper, and paid a premium that all others bear.
* ``refusing-site``: a site stops answering in the third iteration.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np

from veilgrid.admm.neighbour import EdgeSettings, Said, plan_neighbour
from veilgrid.admm.outcome import Coordination, ProgressSink, RunStatus
from veilgrid.admm.reference import alone, central
from veilgrid.admm.settlement import MICRO, settle_alone
from veilgrid.errors import Finding, InputError, RunAborted, invariant
from veilgrid.grid.day import Day
from veilgrid.grid.network import Floats
from veilgrid.roles.attack_dispatcher import colluding_dispatcher
from veilgrid.roles.attack_sealed import (
    colluding_party,
    default_bus,
    dishonest_site,
    refusing_site,
)
from veilgrid.roles.attack_setting import AttackOutcome, AttackResult, Setting, without
from veilgrid.roles.masked import plan_masked
from veilgrid.roles.masked_edge import EdgeDevice, Offer
from veilgrid.roles.masked_ledger import LedgerRun, bids_digest
from veilgrid.roles.masked_record import HONEST, Misconduct
from veilgrid.roles.operator import SCHEMES, DayPlan, plan_cost, plan_day
from veilgrid.secret import Randomness, SeededRandomness

LOAD_SHARE: Final = 0.05
"""By so much of its load a dishonest site claims to need less."""

REFUSES_AT: Final = 3
"""Iteration from which a refusing site stays silent."""

CASES: Final = ("dishonest-site", "colluding-dispatcher", "refusing-site")


ATTACKED: Final = (
    "alone",
    "central",
    "ledger",
    "neighbour",
    "neighbour-ledger",
    "exchange",
    "masked",
    "sealed",
)
"""Schemes that the cases know how to attack."""

PUBLISHED: Final = {
    "dishonest-site": "gains 228 CNY without verification",
    "colluding-dispatcher": "takes 2083 to 2221 CNY, cost +0.35 to +0.4 %, under a central plan",
    "refusing-site": "stops plain neighbours; excluding it costs 1.5 % under masking",
}
"""What the source paper reports, to set beside [model 8]."""


def default_site(day: Day, case: str) -> int:
    """Pick who can gain or spoil most: the largest load, the dearest device, the widest range."""

    def reach(index: int) -> float:
        site = day.sites[index]
        span = np.where(site.linear > 0.0, site.upper - site.lower, 0.0)
        return float(np.sum(site.inject_p.maximum(0.0) @ span))

    def width(index: int) -> float:
        site = day.sites[index]
        return float(np.sum(abs(site.inject_p) @ (site.upper - site.lower)))

    root = day.network.tree.root
    others = [i for i in range(len(day.sites)) if i != root]
    flexible = [i for i in day.flexible if i != root]
    if case == "dishonest-site":
        return max(others, key=lambda i: float(day.sites[i].load_p.sum()))
    if not flexible:
        raise InputError([Finding("scenario", "no site has a device with a choice to attack with")])
    if case == "refusing-site":
        return max(flexible, key=width)
    return max(flexible, key=lambda i: (_dearest(day, i), reach(i)))


def _dearest(day: Day, index: int) -> bool:
    """Whether a site can produce more than the optimum wants: there a premium changes the plan."""
    site = day.sites[index]
    marginal = site.linear + site.quadratic * site.upper
    produces = np.asarray(site.inject_p.maximum(0.0).sum(axis=0)).ravel() > 0.0
    has_room = site.upper > site.lower
    return bool(np.any(produces & has_room & (marginal > float(np.mean(day.buy)))))


def attack(
    day: Day, case: str, scheme: str, randomness: Randomness, site: int | None = None
) -> AttackResult:
    """Carry out one case against one scheme.

    Parameters
    ----------
    day
        What is planned.
    case
        One of :data:`CASES`.
    scheme
        A key of the operator's schemes.
    randomness
        For masks and keys.
    site : index
        The attacker; ``None`` = the one with most to gain.

    Raises
    ------
    RunAborted
        The honest day has no plan to compare with.
    """
    invariant(scheme in ATTACKED, f"scheme is one of {ATTACKED}, not {scheme!r}")
    invariant(case in CASES, f"case is one of {CASES}, not {case!r}")
    return attack_plan(plan_day(day, scheme), case, randomness, site)


def most_missed(honest: DayPlan) -> int | None:
    """Pick whom all others miss most: who is worth most to them at the honest prices.

    A site's worth is by how much its part of the plan is cheaper, at the plan's nodal prices, than
    what its devices do if nobody coordinates them.
    """
    day, plan = honest.day, honest.outcome

    def cost(index: int, x: Floats) -> float:
        site = day.sites[index]
        paid = plan.price_p[index] @ site.demand_p(x) + plan.price_q[index] @ site.demand_q(x)
        return site.cost(x) + float(paid)

    flexible = [i for i in day.flexible if i != day.network.tree.root]
    return max(
        flexible,
        key=lambda i: cost(i, day.sites[i].uncontrolled) - cost(i, plan.setpoints[i]),
        default=None,
    )


def attack_plan(
    honest: DayPlan,
    case: str,
    randomness: Randomness,
    site: int | None = None,
    progress: ProgressSink | None = None,
) -> AttackResult:
    """Carry out one case against the scheme of an honest plan that is known already."""
    if honest.outcome.status is RunStatus.INFEASIBLE:
        return _infeasible(honest, case, site)
    if honest.settlement is None:
        raise RunAborted(f"the honest day is {honest.outcome.status}: there is nothing to attack")
    if site is None and case == "refusing-site":
        site = most_missed(honest)
    setting = Setting(
        day=honest.day,
        scheme=honest.scheme,
        honest=honest,
        site=_chosen(honest.day, case, honest.scheme) if site is None else site,
        randomness=randomness,
        progress=progress,
    )
    if honest.scheme == "sealed":
        return _SEALED[case](setting)
    return _ACTS[case](setting)


def _infeasible(honest: DayPlan, case: str, site: int | None) -> AttackResult:
    """Report that no plan keeps all limits, attacked or not: there is none to gain from or stop."""
    day, unmet = honest.day, honest.obstacles
    index = _chosen(day, case, honest.scheme) if site is None else site
    why = "no plan keeps all limits, without any attack"
    told = (str(day.sites[index].name), AttackOutcome.PREVENTED, 0.0, 0.0, None)
    return AttackResult(case, honest.scheme, *told, f"{why}; {unmet[0]}" if unmet else why, unmet)


def _chosen(day: Day, case: str, scheme: str) -> int:
    """Pick the attacker; under `sealed` only a site with a choice has anything to lie in."""
    own = default_bus(day) if scheme == "sealed" and case == "dishonest-site" else None
    return default_site(day, case) if own is None else own


# (a) A site that departs from its registered bid.


def false_day(day: Day, index: int, share: float = LOAD_SHARE) -> Day:
    """Return the day as a dishonest site pretends it to be."""
    site = day.sites[index]
    said = replace(site, load_p=site.load_p * (1.0 - share), load_q=site.load_q * (1.0 - share))
    return replace(day, sites=tuple(said if i == index else s for i, s in enumerate(day.sites)))


def _dishonest_site(setting: Setting) -> AttackResult:
    case, day, index = "dishonest-site", setting.day, setting.site
    pretended = false_day(day, index)
    if setting.scheme in ("alone", "central", "ledger"):
        return _dishonest_bidder(setting, pretended)
    if setting.scheme == "masked":
        return _dishonest_masked(setting, pretended)
    outcome = SCHEMES[setting.scheme](pretended, setting.limits, None, setting.progress)
    if not outcome.setpoints:
        return _stalled(setting, case, outcome)
    if setting.scheme == "neighbour-ledger":
        excess = _recorded_excess(day, pretended, outcome)
        if excess[index] > 1e-6:
            why = (
                f"its recorded copies miss the balance of its registered bid by "
                f"{excess[index] * day.network.base_mva:.4f} MW; validators refuse them"
            )
            return setting.result(
                case,
                AttackOutcome.PREVENTED,
                why,
                cost=setting.honest_cost,
                culprit=setting.name,
            )
    gain, cost = setting.gain(outcome, pretended), day.cost(outcome.setpoints)
    if setting.is_gain(gain):
        why = "it pays for what it says, and nobody checks that against its balance"
        return setting.result(case, AttackOutcome.SUCCEEDED, why, gain=gain, cost=cost)
    return setting.result(
        case, AttackOutcome.PREVENTED, "saying less gains nothing here", gain=gain, cost=cost
    )


def _dishonest_bidder(setting: Setting, pretended: Day) -> AttackResult:
    """Let the plan be made for what the site pretends, and settle on what is registered."""
    case, day, index = "dishonest-site", setting.day, setting.site
    if setting.scheme == "alone":
        plan = alone(pretended)
        account = settle_alone(day, plan.setpoints).accounts[index]
        gain = setting.honest_account - account.cost / MICRO
        why = "its contract is metered: it pays for what it draws"
    else:
        # Operator and validators compare what is handed in with the digests of gate closure.
        is_known = bids_digest(pretended) == bids_digest(day)
        plan = central(pretended if is_known else day, setting.limits)
        if setting.scheme == "ledger" and plan.setpoints:
            plan = central(pretended, setting.limits)
            run = LedgerRun(
                randomness=setting.randomness, solvers={"worker-0": lambda _day, _limits: plan}
            )
            plan = run.run(day, setting.limits)
        if not plan.setpoints:
            return _stalled(setting, case, plan)
        gain = setting.gain(plan)
        why = "it says nothing after its registered bid, and pays by that"
    is_gain = setting.is_gain(gain)
    outcome = AttackOutcome.SUCCEEDED if is_gain else AttackOutcome.PREVENTED
    costs = plan_cost(setting.scheme, day, plan)
    return setting.result(case, outcome, why, gain=gain, cost=costs)


def _recorded_excess(day: Day, pretended: Day, outcome: Coordination) -> Floats:
    """By how much each site's recorded net demand misses its registered bid, per-unit."""
    said_p, said_q = pretended.demands(outcome.setpoints)
    due_p, due_q = day.demands(outcome.setpoints)
    off = np.maximum(np.abs(said_p - due_p), np.abs(said_q - due_q))
    return np.asarray(off.max(axis=1))


def _dishonest_masked(setting: Setting, pretended: Day) -> AttackResult:
    """Let a site's owner falsify its iterates although bid and mask are registered."""
    case, day, index = "dishonest-site", setting.day, setting.site
    if index not in day.flexible:
        why = "a site without choice declares its registered load once; there is no iterate"
        return setting.result(case, AttackOutcome.PREVENTED, why, cost=setting.honest_cost)

    def falsify(edge: EdgeDevice, offer: Offer) -> Offer:
        """Act as if the load were smaller: the pull on net demand shifts by the difference."""
        less = day.sites[index].load_p - pretended.sites[index].load_p
        # c' holds price - penalty * target: the same pull, with and without targets.
        penalty = offer.scale * edge.form.penalty_p
        return offer._replace(price_p=offer.price_p - penalty * less)

    # Iterates end apart by the tolerance under other masks; the same masks part them by the lie.
    seed = int.from_bytes(setting.randomness.octets(8), "big")
    truthful, found = (
        plan_masked(
            day,
            setting.limits,
            SeededRandomness(seed),
            progress=setting.progress,
            misconduct=misconduct,
        )
        for misconduct in (HONEST, Misconduct(falsifying={index: falsify}))
    )
    plan = found.coordination
    gain = setting.gain(plan) - setting.gain(truthful.coordination)
    cost = day.cost(plan.setpoints)
    is_named = setting.name in found.named
    if setting.is_gain(gain) and not is_named:
        why = "its falsified iterates were taken"
        return setting.result(case, AttackOutcome.SUCCEEDED, why, gain=gain, cost=cost)
    why = "its c' does not follow from the registered one and the offer; the one that does is used"
    return setting.result(
        case,
        AttackOutcome.PREVENTED,
        why,
        gain=gain,
        cost=cost,
        culprit=setting.name if is_named else None,
    )


# (c) A site that refuses.


def _refusing_site(setting: Setting) -> AttackResult:
    case, day, index = "refusing-site", setting.day, setting.site
    if setting.scheme == "alone":
        why = "nobody waits for anybody"
        return setting.result(case, AttackOutcome.PREVENTED, why, cost=setting.honest_cost)
    if setting.scheme in ("neighbour", "neighbour-ledger"):

        def silent(said: Said) -> Said | None:
            return said if said.iteration < REFUSES_AT else None

        plan = plan_neighbour(
            day,
            setting.limits,
            EdgeSettings(),
            progress=setting.progress,
            tamper={index: silent},
        )
        if plan.status is RunStatus.ABORTED:
            return _stalled(setting, case, plan)
        cost = day.cost(plan.setpoints) if plan.setpoints else None
        why = "its neighbours went on without it"
        return _contained(setting, cost, why)
    if setting.scheme == "masked":
        found = plan_masked(
            day,
            setting.limits,
            setting.randomness,
            progress=setting.progress,
            misconduct=Misconduct(
                refusing={index: min(REFUSES_AT, max(1, setting.honest.outcome.iteration_count))}
            ),
        )
        plan, is_excluded = found.coordination, index in found.excluded
        if plan.status is not RunStatus.CONVERGED or not is_excluded:
            return _stalled(setting, case, plan)
        return _contained(
            setting, day.cost(plan.setpoints), "excluded after its delay; the others planned anew"
        )
    plan = SCHEMES[setting.scheme](without(day, [index]), setting.limits, None, setting.progress)
    if plan.status is not RunStatus.CONVERGED:
        return _stalled(setting, case, plan)
    why = {
        "exchange": "named as silent and counted at its registered forecast",
    }.get(setting.scheme, "no bid arrives; its registered forecast stands in for it")
    return _contained(setting, day.cost(plan.setpoints), why)


def _contained(setting: Setting, cost: float | None, why: str) -> AttackResult:
    return setting.result(
        "refusing-site", AttackOutcome.CONTAINED, why, cost=cost, culprit=setting.name
    )


def _stalled(setting: Setting, case: str, plan: Coordination) -> AttackResult:
    """No plan comes about: everybody is left alone."""
    why = f"stopped after iteration {plan.iteration_count}; everybody is left alone"
    return setting.left_alone(case, AttackOutcome.STALLED, why, plan)


_ACTS: dict[str, Callable[[Setting], AttackResult]] = {
    "dishonest-site": _dishonest_site,
    "colluding-dispatcher": colluding_dispatcher,
    "refusing-site": _refusing_site,
}


_SEALED: dict[str, Callable[[Setting], AttackResult]] = {
    "dishonest-site": dishonest_site,
    "colluding-dispatcher": colluding_party,
    "refusing-site": refusing_site,
}
