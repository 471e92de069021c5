"""The colluding dispatcher: whoever plans favours one site [masking 7]."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np

from veilgrid.admm.certify import certify
from veilgrid.admm.exchange import ExchangeSettings, plan_exchange
from veilgrid.admm.outcome import Coordination, RunStatus
from veilgrid.admm.reference import central
from veilgrid.admm.settlement import MICRO, settle
from veilgrid.grid.day import Day
from veilgrid.grid.network import Floats
from veilgrid.roles.attack_setting import AttackOutcome, AttackResult, Setting
from veilgrid.roles.masked import MaskedSettings, plan_masked
from veilgrid.roles.masked_ledger import LedgerRun
from veilgrid.roles.masked_record import Misconduct

PREMIUMS: Final = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
"""Premiums that a colluding dispatcher tries, in units of the highest tariff."""

MASKED_PREMIUMS: Final = (0.1, 1.0)
"""Of these, the ones that a coordinator of masked sites tries: each is a whole day."""

PATIENCE: Final = 5
"""Iterations beyond those of an honest day that a favoured one may take to pass."""

UNNOTICED: Final = 0.004
"""A dispatcher who wants to stay unnoticed raises the total cost by at most this share."""


class _Favour(NamedTuple):
    """A plan that favours one site, and what that brings."""

    premium: float
    plan: Coordination
    gain: float
    cost: float


def favoured_day(day: Day, index: int, premium: float) -> Day:
    """Return the day with a site's injections cheaper by a premium, currency per per-unit."""
    site = day.sites[index]
    produced = np.asarray(site.inject_p.maximum(0.0).sum(axis=0)).ravel()
    cheaper = replace(site, linear=site.linear - premium * produced)
    return replace(day, sites=tuple(cheaper if i == index else s for i, s in enumerate(day.sites)))


def _mwh(day: Day) -> float:
    """Return the energy of one per-unit over one interval, MWh."""
    return day.horizon.hours * day.network.base_mva


def _favours(setting: Setting) -> Iterator[_Favour]:
    """Plan with each premium; the dispatcher pays it out on top of the site's honest price."""
    day, index = setting.day, setting.site
    highest = float(np.max(np.abs(day.buy)))
    for share in reversed(PREMIUMS):
        premium = share * highest
        favoured = favoured_day(day, index, premium)
        if setting.scheme == "exchange":
            plan = plan_exchange(favoured, setting.limits, progress=setting.progress)
        else:
            plan = central(favoured, setting.limits)
        if not plan.setpoints:
            continue
        account = _account(setting, plan, setting.honest.outcome.price_p)
        produced = float(np.maximum(day.sites[index].inject_p @ plan.setpoints[index], 0.0).sum())
        gain = setting.honest_account - (account - premium * produced)
        yield _Favour(premium, plan, gain, day.cost(plan.setpoints))


def _account(setting: Setting, plan: Coordination, price_p: Floats) -> float:
    """Return what a site really bears under a plan at given prices, currency."""
    day, index = setting.day, setting.site
    settled = settle(
        day,
        plan.setpoints,
        setting.honest.alone.setpoints,
        price_p,
        setting.honest.outcome.price_q,
        0.0,
    )
    return settled.accounts[index].cost / MICRO


def colluding_dispatcher(setting: Setting) -> AttackResult:
    case = "colluding-dispatcher"
    if setting.scheme in ("alone", "neighbour"):
        why = "nobody dispatches: there is no one to collude with"
        return setting.result(case, AttackOutcome.PREVENTED, why, cost=setting.honest_cost)
    if setting.scheme == "masked":
        return _favoured_masked(setting)
    base = abs(setting.honest_cost) or 1.0
    if setting.scheme in ("central", "exchange"):
        # A higher premium on no less power: the highest that stays unnoticed gains most.
        tried = _favours(setting)
        quiet = (f for f in tried if f.cost - setting.honest_cost <= UNNOTICED * base)
        best = next((favour for favour in quiet if setting.is_gain(favour.gain)), None)
        if best is not None:
            why = (
                f"a premium of {best.premium / _mwh(setting.day):,.0f} per MWh is paid "
                "by all others, who cannot recompute plan or prices"
            )
            return setting.result(
                case, AttackOutcome.SUCCEEDED, why, gain=best.gain, cost=best.cost
            )
        why = "no premium that stays unnoticed brings the site a gain"
        return setting.result(case, AttackOutcome.PREVENTED, why, cost=setting.honest_cost)
    return _verified_dispatch(setting, list(_favours(setting)))


def _verified_dispatch(setting: Setting, tried: list[_Favour]) -> AttackResult:
    """Hand favoured plans to validators; pay what passes at recomputed prices."""
    case, day, limits = "colluding-dispatcher", setting.day, setting.limits
    refused, gain, cost = 0, 0.0, setting.honest_cost
    for favour in tried:
        run = LedgerRun(
            randomness=setting.randomness,
            solvers={"worker-0": lambda _day, _limits, plan=favour.plan: plan},  # type: ignore[misc]
        )
        accepted = run.run(day, limits)
        if run.refused:
            refused += 1
            continue
        judged = certify(day, limits, accepted.setpoints, accepted.price_p, accepted.price_q)
        mine = setting.honest_account - _account(setting, accepted, judged.target.price_p)
        if mine > gain:
            gain, cost = mine, day.cost(accepted.setpoints)
    if setting.is_gain(gain):
        why = "a favoured plan passed the certificate"
        return setting.result(case, AttackOutcome.SUCCEEDED, why, gain=gain, cost=cost)
    why = (
        f"validators refused {refused} of {len(tried)} favoured plans; the others are optimal to "
        "the tolerance, and premiums are not paid: validators recompute prices"
    )
    culprit = "dispatcher" if refused else None
    return setting.result(case, AttackOutcome.PREVENTED, why, gain=gain, cost=cost, culprit=culprit)


def _favoured_masked(setting: Setting) -> AttackResult:
    """Let the coordinator offer one site better prices; the day has to pass its certificate."""
    case, day, limits, index = "colluding-dispatcher", setting.day, setting.limits, setting.site
    if index not in day.flexible:
        why = "a site without choice answers no price: there is nothing to favour"
        return setting.result(case, AttackOutcome.PREVENTED, why, cost=setting.honest_cost)
    highest = float(np.max(np.abs(day.buy)))
    last = setting.honest.outcome.iteration_count + PATIENCE
    settings = MaskedSettings(exchange=ExchangeSettings(iteration_count_max=last))
    refused, gain, cost = 0, 0.0, setting.honest_cost
    for share in MASKED_PREMIUMS:
        favouring = {index: share * highest}
        found = plan_masked(
            day,
            limits,
            setting.randomness,
            settings,
            progress=setting.progress,
            misconduct=Misconduct(favouring=favouring),
        )
        plan = found.coordination
        if plan.status is not RunStatus.CONVERGED:
            refused += 1
            continue
        judged = certify(day, limits, plan.setpoints, plan.price_p, plan.price_q)
        mine = setting.honest_account - _account(setting, plan, judged.target.price_p)
        if mine > gain:
            gain, cost = mine, day.cost(plan.setpoints)
    if setting.is_gain(gain):
        why = "a favoured day passed its certificate"
        return setting.result(case, AttackOutcome.SUCCEEDED, why, gain=gain, cost=cost)
    why = (
        f"{refused} of {len(MASKED_PREMIUMS)} favoured days did not pass their certificate in "
        f"{last} iterations: regret is measured at the prices that follow from the network"
    )
    culprit = "dispatcher" if refused else None
    return setting.result(case, AttackOutcome.PREVENTED, why, gain=gain, cost=cost, culprit=culprit)
