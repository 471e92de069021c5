"""The three cases against `sealed`, and lies of our own, by its machines [sealed 8.1]."""

from collections.abc import Collection
from dataclasses import replace
from typing import Final

from veilgrid.admm.certify import certify
from veilgrid.admm.outcome import RunStatus
from veilgrid.admm.settlement import MICRO, settle
from veilgrid.grid.day import Day
from veilgrid.machine import NodeId
from veilgrid.roles.attack_setting import AttackOutcome, AttackResult, Setting
from veilgrid.roles.sealed.attack import LIES, Attacked, default_bus, play, play_lie, silent_from

LIAR: Final = NodeId("party-2")

NETWORK_STEP: Final = 1
"""The task whose computation a corrupt party meddles with: the first network step."""

ROUNDS: Final = (2, 6)
"""In which of its rounds."""

REFUSES_AT: Final = 3
"""Iteration from which a refusing site stays silent."""


def dishonest_site(setting: Setting, lies: tuple[str, ...] = ("load",)) -> AttackResult:
    """Let a site lie in each way that is asked for; the most profitable one counts."""
    case, index = "dishonest-site", setting.site
    if index not in setting.day.flexible:
        why = "a site without choice sends nothing after its committed bid: there is no lie to tell"
        return setting.result(case, AttackOutcome.PREVENTED, why, cost=setting.honest_cost)
    found = [_lied(setting, lie) for lie in lies]
    return max(found, key=lambda one: (one.outcome is AttackOutcome.SUCCEEDED, one.attacker_gain))


def _lied(setting: Setting, lie: str) -> AttackResult:
    case = "dishonest-site"
    ended = play_lie(setting.day, setting.limits, setting.randomness, setting.site, lie)
    what = f"it {LIES[lie]}"
    plan = ended.coordination
    if plan is None or plan.status is not RunStatus.CONVERGED:
        return _stopped(setting, case, ended, what)
    gain, cost = _account_gain(setting, ended), setting.day.cost(plan.setpoints)
    is_named = setting.site in ended.excluded
    if setting.is_gain(gain) and not is_named:
        return setting.result(case, AttackOutcome.SUCCEEDED, what, gain=gain, cost=cost)
    if is_named:
        why = f"{what}: {ended.excluded[setting.site]}; planned again with its committed fallback"
        return setting.result(
            case, AttackOutcome.CONTAINED, why, gain=gain, cost=cost, culprit=setting.name
        )
    why = f"{what}: no effect on prices that the certificate accepts"
    return setting.result(case, AttackOutcome.PREVENTED, why, gain=gain, cost=cost)


def _account_gain(setting: Setting, ended: Attacked) -> float:
    """Return by how much less the attacker bears than under the honest plan, currency."""
    day, plan = setting.day, ended.coordination
    if plan is None:
        return 0.0
    taking_part = _settled_as(day, ended.excluded)
    found = certify(taking_part, setting.limits, plan.setpoints, plan.price_p, plan.price_q)
    target = found.target
    settled = settle(
        day,
        plan.setpoints,
        setting.honest.alone.setpoints,
        target.price_p,
        target.price_q,
        float(target.rent.sum()),
    )
    return setting.honest_account - settled.accounts[setting.site].cost / MICRO


def _settled_as(day: Day, excluded: Collection[int]) -> Day:
    """Return the day in which excluded sites have no choice but their fallback."""
    sites = [
        replace(site, lower=site.uncontrolled, upper=site.uncontrolled) if bus in excluded else site
        for bus, site in enumerate(day.sites)
    ]
    return replace(day, sites=tuple(sites))


def _stopped(setting: Setting, case: str, ended: Attacked, what: str) -> AttackResult:
    """Report that the day came to no plan: everybody is left alone."""
    plan = ended.coordination
    why = f"{what}: " + (ended.reason if plan is None else f"the day ended as {plan.status}")
    culprit = ", ".join(ended.culprits) or ", ".join(
        str(setting.day.sites[bus].name) for bus in ended.excluded
    )
    cost = setting.honest.cost_alone
    return setting.result(case, AttackOutcome.STALLED, why, cost=cost, culprit=culprit or None)


def colluding_party(setting: Setting) -> AttackResult:
    """Let a party of the committee change what it says; then another takes its seat."""
    case, named = "colluding-dispatcher", set()
    for place in ROUNDS:
        deviant = (LIAR, NETWORK_STEP, place)
        ended = play(setting.day, setting.limits, setting.randomness, deviant=deviant)
        if ended.coordination is not None:
            gain = _account_gain(setting, ended)
            cost = setting.day.cost(ended.coordination.setpoints)
            outcome = AttackOutcome.SUCCEEDED if setting.is_gain(gain) else AttackOutcome.PREVENTED
            why = "a changed message of a party was taken"
            return setting.result(case, outcome, why, gain=gain, cost=cost)
        named |= set(ended.culprits)
        if named != {LIAR}:
            return _stopped(setting, case, ended, "a party changed what it said")
    again = play(setting.day, setting.limits, setting.randomness)
    plan = again.coordination
    if plan is None or plan.status is not RunStatus.CONVERGED:
        return _stopped(setting, case, again, "another party took its seat")
    why = (
        "nobody dispatches; a party that changed what it said and signed it was named before "
        "anything opened, and the day ran again with another in its seat"
    )
    gain, cost = _account_gain(setting, again), setting.day.cost(plan.setpoints)
    return setting.result(
        case, AttackOutcome.CONTAINED, why, gain=gain, cost=cost, culprit=str(LIAR)
    )


def refusing_site(setting: Setting) -> AttackResult:
    """Let a site fall silent."""
    case, index = "refusing-site", setting.site
    at = min(REFUSES_AT, max(1, setting.honest.outcome.iteration_count))
    lies = {index: silent_from(at)}
    ended = play(setting.day, setting.limits, setting.randomness, lies=lies)
    plan = ended.coordination
    if plan is None or plan.status is not RunStatus.CONVERGED:
        return _stopped(setting, case, ended, "it fell silent")
    cost = setting.day.cost(plan.setpoints)
    if index not in ended.excluded:
        why = "a site without choice sends nothing after its bid: nobody waits for it"
        return setting.result(case, AttackOutcome.PREVENTED, why, cost=cost)
    why = f"{ended.excluded[index]} in iteration {at}; planned again with its committed fallback"
    gain = _account_gain(setting, ended)
    return setting.result(
        case, AttackOutcome.CONTAINED, why, gain=gain, cost=cost, culprit=setting.name
    )


__all__ = ["colluding_party", "default_bus", "dishonest_site", "refusing_site"]
