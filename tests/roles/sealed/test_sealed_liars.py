"""No lie of a site pays: it is named and replaced, or has no effect on what counts."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from veilgrid.admm.site_step import SiteSteps
from veilgrid.grid.lindistflow import Limits
from veilgrid.machine import NodeId
from veilgrid.mpc.field import PRIME
from veilgrid.mpc.message import Said, Submission
from veilgrid.roles.sealed import day as sealed_day
from veilgrid.roles.sealed.message import Notice
from veilgrid.roles.sealed.program import AMOUNT_BITS

from .sealed_days import SETTINGS, SITES, Change, Ended, LiarGroup, run_day, setpoints_of, small

SCENARIO = small(2)
DAY, LIMITS = SCENARIO.day(), Limits.of(SCENARIO.network)
LIAR = 3
"""The bus with the gas generator."""
ITERATIONS = 20
SHORT = replace(SETTINGS, iteration_count_max=ITERATIONS)
PROOF, BIDS, WISH, ANSWER, REGRET = "certificate", "bids", "wish", "answer", "regret"
TIMES = 2 * DAY.interval_count


def ended_of(lies: dict[int, Change], **more: Any) -> Ended:
    ended = run_day(DAY, LIMITS, lies, settings=SHORT, **more)
    assert ended.sites is not None, ended.stopped
    return ended


@pytest.fixture(scope="module")
def honest() -> Ended:
    ended = run_day(DAY, LIMITS, settings=SHORT)
    assert ended.public["status"] == "converged"
    assert ended.excluded == {}
    return ended


def account(ended: Ended, bus: int) -> float:
    """What a site pays and spends."""
    assert ended.sites is not None
    return ended.sites.payments[bus] + ended.sites.own_costs[bus]


def on(kind: str, change: Any, iteration: int | None = None) -> Change:
    def lie(task: str, at: int, own: list[int]) -> list[int] | None:
        if task != kind or (iteration is not None and at != iteration):
            return own
        return change(list(own))  # type: ignore[no-any-return]

    return lie


def centered(value: int) -> int:
    return (value + PRIME // 2) % PRIME - PRIME // 2


def plus(places: slice, amount: int) -> Any:
    def change(own: list[int]) -> list[int]:
        own[places] = [centered(value + amount) for value in own[places]]
        return own

    return change


def silent(_: list[int]) -> None:
    return None


NAMED = {
    "demand in every answer": on(ANSWER, plus(slice(0, TIMES), 2**28)),
    "own cost in every answer": on(ANSWER, plus(slice(TIMES, TIMES + 1), -(2**38))),
    "payment in every answer": on(ANSWER, plus(slice(TIMES + 1, TIMES + 2), 2**38)),
    "set-point of the proof": on(PROOF, plus(slice(0, 1), 2**29)),
    "multiplier of the proof": on(PROOF, plus(slice(TIMES, TIMES + 1), 2**24)),
    "a bid of a giant": on(BIDS, plus(slice(0, 1), 2**100)),
    "a bid of half the field": on(BIDS, plus(slice(0, 2), (PRIME + 1) // 2)),
    "a proof of a giant": on(PROOF, plus(slice(-1, None), 2**100)),
    "an own cost of a giant": on(ANSWER, plus(slice(TIMES, TIMES + 1), 2**110)),
    "a giant regret below zero": on(REGRET, plus(slice(0, 1), -(2**100))),
    "a fraction as regret": on(REGRET, plus(slice(0, 1), pow(2**25, -1, PRIME))),
    "silence at bids": on(BIDS, silent),
    "silence at the first wish": on(WISH, silent, 1),
    "silence in an iteration": on(WISH, silent, 3),
    "silence at an answer": on(ANSWER, silent),
    "silence at the proof": on(PROOF, silent),
    "silence about regret": on(REGRET, silent),
}


@pytest.mark.parametrize("lie", NAMED)
def test_a_liar_is_named_and_the_day_goes_on_without_it(lie: str, honest: Ended) -> None:
    """Its neighbours must get a plan, and must not be blamed."""
    ended = ended_of({LIAR: NAMED[lie]})
    assert set(ended.excluded) == {LIAR}, ended.public
    assert ended.public["status"] == "converged"
    plan = setpoints_of(DAY, ended)
    np.testing.assert_allclose(plan[LIAR], DAY.uncontrolled[LIAR], atol=1e-9)
    if "bid" not in lie:
        assert account(ended, LIAR) >= account(honest, LIAR) - 1e-3


HARMLESS = {
    "wish in one iteration": on(WISH, plus(slice(0, TIMES), 2**30), 3),
    "products in every answer": on(ANSWER, plus(slice(TIMES + 2, None), 2**60)),
    "regret of nothing": on(REGRET, lambda own: [0] * len(own)),
}


@pytest.mark.parametrize("lie", HARMLESS)
def test_a_lie_without_effect_on_the_proof_gains_nothing(lie: str, honest: Ended) -> None:
    ended = ended_of({LIAR: HARMLESS[lie]})
    assert set(ended.excluded) <= {LIAR}, ended.public
    allowed = SETTINGS.gap_max * 2.0 * DAY.cost(setpoints_of(DAY, honest))
    assert account(ended, LIAR) >= account(honest, LIAR) - allowed
    if ended.public["status"] == "converged":
        assert abs(DAY.cost(setpoints_of(DAY, ended)) - DAY.cost(setpoints_of(DAY, honest))) < 0.1


class Pretender(LiarGroup):
    """A site that acts as if its fuel were cheaper than it bid, and regrets nothing."""

    def _arrange(self) -> None:
        super()._arrange()
        members = [
            replace(self._sites[bus], linear=0.5 * self._sites[bus].linear)
            if bus == LIAR
            else self._sites[bus]
            for bus in self._mine.own
        ]
        mine, nothing = self._mine, np.zeros(len(members))
        mine.solved = members
        mine.reweigh(mine.register)
        mine.alone_steps = SiteSteps(members, nothing, nothing, self._executor)


def test_a_plan_that_is_feasible_but_not_the_cheapest_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All its own limits hold, only its part of the gap tells: no other site may be blamed."""
    monkeypatch.setattr(sealed_day, "SiteGroup", Pretender)
    lie = on(REGRET, lambda own: [0] * len(own))
    monkeypatch.setattr(Pretender, "lies", {LIAR: lie}, raising=False)
    ended = ended_of({})
    assert set(ended.excluded) == {LIAR}
    assert ended.public["status"] == "converged"


def test_an_old_message_is_refused_like_silence() -> None:
    """What was signed for another task must not count in this one."""
    kept: dict[str, Submission] = {}

    def meddle(sender: NodeId, to: NodeId, message: Any) -> Any:
        if not isinstance(message, Submission) or not message.client.startswith(
            f"{LIAR:06d} answer"
        ):
            return message
        return kept.setdefault(str(to), message)

    ended = run_day(DAY, LIMITS, meddle=meddle, settings=SHORT)
    assert set(ended.excluded) == {LIAR}
    assert ended.public["status"] == "converged"


@pytest.mark.parametrize("what", [Said, Notice])
@pytest.mark.parametrize("first", [10, 200])
def test_a_silent_party_is_named_or_done_without(what: type, first: int, honest: Ended) -> None:
    """A party that withholds what sites need must not get honest sites excluded."""
    seen = 0

    def meddle(sender: NodeId, to: NodeId, message: Any) -> Any:
        nonlocal seen
        if sender != "party-2" or not isinstance(message, what):
            return message
        seen += 1
        return None if seen >= first else message

    ended = run_day(DAY, LIMITS, meddle=meddle, settings=SHORT)
    if ended.sites is None:
        assert ended.stopped[SITES].culprits == ["party-2"]
    else:
        assert ended.excluded == {}
        assert account(ended, LIAR) == pytest.approx(account(honest, LIAR), rel=1e-3)


TIGHT = replace(small(2, low=0.98), load_p_mw=1.5 * small(2).load_p_mw)
STORE = 2
"""The bus with the battery."""
SET_POINTS = slice(0, DAY.sites[STORE].linear.size)


def lifted(own: list[int]) -> list[int]:
    """Raise both multipliers of a bound: their difference stays right."""
    count = DAY.sites[STORE].linear.size
    for place in (count, 2 * count):
        own[place] += 2**40
    return own


RELIEF = {
    "all that it can": (list, "claimed"),
    "nothing": (lambda own: [0] * SET_POINTS.stop + own[SET_POINTS.stop :], "relieves"),
    "less by its multipliers": (lifted, "relieves"),
    "more than its devices can": (plus(SET_POINTS, 2**31), "relieves"),
    "a giant": (plus(SET_POINTS, 2**100), "out of range"),
    "silence": (silent, "missing"),
}


@pytest.mark.parametrize("lie", RELIEF)
def test_who_relieves_less_than_its_bid_lets_it_cannot_have_a_day_called_infeasible(
    lie: str,
) -> None:
    """Payments claimed too high make prices look too high; the day must not end by that alone."""
    change, word = RELIEF[lie]
    overpaid, asked = plus(slice(TIMES + 1, TIMES + 2), 2**46), list[int]()

    def both(kind: str, at: int, own: list[int]) -> list[int] | None:
        if kind == "surplus":
            asked.append(at)
            return change(own)
        return overpaid(own) if kind == ANSWER else own

    day, limits = TIGHT.day(), Limits.of(TIGHT.network)
    ended = run_day(day, limits, {STORE: both}, settings=SHORT)
    assert asked[0] == 4
    assert word == "claimed" or len(asked) == 1
    assert set(ended.excluded) == {STORE}
    assert word in ended.excluded[STORE]
    assert ended.public["status"] == "converged"


def test_a_multiplier_that_is_wrong_by_more_than_comparisons_see_is_named() -> None:
    """2**49 steps of a reduced cost vanish from the 78 bits that are compared."""
    scenario = small(8)
    day, limits = scenario.day(), Limits.of(scenario.network)
    count = day.sites[STORE].linear.size

    def change(own: list[int]) -> list[int]:
        at_bound = own[:count].index(0)
        own[count + at_bound] += 2**49
        return own

    ended = run_day(day, limits, {STORE: on(PROOF, change)}, settings=SHORT)
    assert set(ended.excluded) == {STORE}
    assert "multipliers" in ended.excluded[STORE]
    assert ended.public["status"] == "converged"


@pytest.mark.parametrize("is_flexible", [False, True])
def test_nobody_widens_what_others_may_claim_by_the_cost_of_a_fallback(is_flexible: bool) -> None:
    """Gaps are relative to the cost: one bid of half a million would let every claim pass."""
    unit = sealed_day.PublicDay.of(DAY, LIMITS).register.unit

    def dear(kind: str, _iteration: int, own: list[int]) -> list[int] | None:
        if kind == "bids":
            return [*own[: 2 * TIMES + 1], 2**44, *own[2 * TIMES + 2 :]]
        return own if kind != "wish" else None

    def cheap(kind: str, _iteration: int, own: list[int]) -> list[int]:
        less = round(0.5 / unit * 2.0**AMOUNT_BITS) if kind == "answer" else 0
        return [value - less * (place == TIMES) for place, value in enumerate(own)]

    liar = DAY.flexible[0] if is_flexible else 0
    assert (liar in DAY.flexible) == is_flexible
    ended = run_day(DAY, LIMITS, {liar: dear, LIAR: cheap})
    assert ended.public["status"] == "converged"
    assert ended.excluded.keys() == {LIAR, *([liar] if is_flexible else [])}
    if not is_flexible:
        assert ended.public["certificate"]["cost"] < 1000.0
