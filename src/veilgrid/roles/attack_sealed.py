"""The three cases against `sealed`, and lies of our own, by its machines [sealed 8.1]."""

from typing import Any, Final

from veilgrid.admm.outcome import Coordination, RunStatus
from veilgrid.grid.lindistflow import Limits
from veilgrid.machine import NodeId
from veilgrid.roles.attack_setting import AttackOutcome, AttackResult, Setting, without
from veilgrid.roles.sealed.attack import LIES, Attacked, default_bus, play, play_lie, silent_from

DISHONEST: Final = "dishonest-site"

LIAR: Final = NodeId("party-2")

NETWORK_STEP: Final = 1
"""The task whose computation a corrupt party meddles with: the first network step."""

ROUNDS: Final = (2, 6)
"""In which of its rounds."""

REFUSES_AT: Final = 3
"""Iteration from which a refusing site stays silent."""


def dishonest_site(setting: Setting, lies: tuple[str, ...] = ("load",)) -> AttackResult:
    """Let a site lie in each way that is asked for; the most profitable one counts."""
    case, index = DISHONEST, setting.site
    if index not in setting.day.flexible:
        why = "a site without choice sends nothing after its committed bid: there is no lie to tell"
        return setting.result(case, AttackOutcome.PREVENTED, why, cost=setting.honest_cost)
    found = [_lied(setting, lie) for lie in lies]
    return max(found, key=lambda one: (one.outcome is AttackOutcome.SUCCEEDED, one.attacker_gain))


def _lied(setting: Setting, lie: str) -> AttackResult:
    case = DISHONEST
    limits = Limits.of(setting.day.network)
    ended = play_lie(setting.day, limits, setting.randomness, setting.site, lie)
    what = f"it {LIES[lie]}"
    plan = ended.coordination
    if plan is None or plan.status is not RunStatus.CONVERGED:
        return _stopped(setting, case, ended, what)
    gain, cost = _gain(setting, ended, plan), setting.day.cost(plan.setpoints)
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


def _played(setting: Setting, **deviation: Any) -> Attacked:
    """Run the day as it begins: within its own limits, not those of an honest plan made again."""
    return play(setting.day, Limits.of(setting.day.network), setting.randomness, **deviation)


def _gain(setting: Setting, ended: Attacked, plan: Coordination) -> float:
    """Return by how much less the attacker bears; who was named had no choice but its fallback."""
    return setting.gain(plan, without(setting.day, ended.excluded))


def _stopped(setting: Setting, case: str, ended: Attacked, what: str) -> AttackResult:
    """Report that the day came to no plan.

    A dishonest site wants money. Where it is named, and the limits cannot be kept without its
    choice, it got none; who refuses wants that nobody gets a plan, and has that.
    """
    plan = ended.coordination
    names = [str(setting.day.sites[bus].name) for bus in ended.excluded]
    culprit = ", ".join(ended.culprits or names) or None
    outcome, why = AttackOutcome.STALLED, ended.reason
    if plan is not None:
        why = f"the day ended as {plan.status}"
        if plan.status is RunStatus.INFEASIBLE and setting.site in ended.excluded:
            reason = ended.excluded[setting.site]
            why = f"{reason}; with its committed fallback no plan keeps all limits"
            if case == DISHONEST:
                outcome = AttackOutcome.CONTAINED
    return setting.left_alone(case, outcome, f"{what}: {why}", plan, culprit)


def colluding_party(setting: Setting) -> AttackResult:
    """Let a party of the committee change what it says; then another takes its seat."""
    case, named = "colluding-dispatcher", set()
    for place in ROUNDS:
        ended = _played(setting, deviant=(LIAR, NETWORK_STEP, place))
        taken = ended.coordination
        if taken is not None and taken.setpoints:
            gain, cost = setting.gain(taken), setting.day.cost(taken.setpoints)
            outcome = AttackOutcome.SUCCEEDED if setting.is_gain(gain) else AttackOutcome.PREVENTED
            why = "a changed message of a party was taken"
            return setting.result(case, outcome, why, gain=gain, cost=cost)
        named |= set(ended.culprits)
        if named != {LIAR}:
            return _stopped(setting, case, ended, "a party changed what it said")
    again = _played(setting)
    plan = again.coordination
    if plan is None or plan.status is not RunStatus.CONVERGED:
        return _stopped(setting, case, again, "another party took its seat")
    why = (
        "nobody dispatches; a party that changed what it said and signed it was named before "
        "anything opened, and the day ran again with another in its seat"
    )
    gain, cost = setting.gain(plan), setting.day.cost(plan.setpoints)
    return setting.result(
        case, AttackOutcome.CONTAINED, why, gain=gain, cost=cost, culprit=str(LIAR)
    )


def refusing_site(setting: Setting) -> AttackResult:
    """Let a site fall silent."""
    case, index = "refusing-site", setting.site
    at = min(REFUSES_AT, max(1, setting.honest.outcome.iteration_count))
    lies = {index: silent_from(at)}
    ended = _played(setting, lies=lies)
    plan = ended.coordination
    if plan is None or plan.status is not RunStatus.CONVERGED:
        return _stopped(setting, case, ended, "it fell silent")
    cost = setting.day.cost(plan.setpoints)
    if index not in ended.excluded:
        why = "a site without choice sends nothing after its bid: nobody waits for it"
        return setting.result(case, AttackOutcome.PREVENTED, why, cost=cost)
    why = f"{ended.excluded[index]} in iteration {at}; planned again with its committed fallback"
    gain = _gain(setting, ended, plan)
    return setting.result(
        case, AttackOutcome.CONTAINED, why, gain=gain, cost=cost, culprit=setting.name
    )


__all__ = ["colluding_party", "default_bus", "dishonest_site", "refusing_site"]
