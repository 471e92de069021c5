"""Trust: bad sources lose their weight, no source ever has too much, none stops a round."""

from typing import Any

import numpy as np
import pytest
from collusion_table import Households
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from veilgrid.errors import InputError
from veilgrid.mpc import Plain
from veilgrid.mpc.bulk import plain_batch
from veilgrid.risk.aggregate import Answer, Plan, Question, Source, answer_of, answer_steps, plan_of
from veilgrid.risk.history import conduct_of, reliabilities_of, standings_after
from veilgrid.risk.trust import (
    Conduct,
    Standing,
    TrustSettings,
    capped,
    crps_normal,
    influence_cap,
    weights_for,
)

SETTINGS = TrustSettings()


class Rounds:
    """Rounds in the clear, with the same steps that the committee runs."""

    def __init__(self, sources: list[Source], **question: Any) -> None:
        self.sources = sources
        self.question = Question(**{"function": "trimmed-mean", "is_watched": True, **question})
        self.standings: dict[str, Standing] = {}

    def plan(self) -> Plan:
        names = [one.name for one in self.sources]
        given = [one.reliability for one in self.sources]
        known = reliabilities_of(names, self.standings, SETTINGS, given)
        return plan_of(self.question, self.sources, SETTINGS, known)

    def run(self, values: Any) -> tuple[Answer, dict[str, Any], Plan]:
        plan = self.plan()
        mpc = Plain()
        batch = plain_batch(mpc, plan.layout, plan.encode(values), plan.names)
        result: Any = mpc.run(answer_steps(mpc, batch, plan))
        if self.question.is_watched:
            conducts = conduct_of(plan.names, result)
            self.standings = standings_after(self.standings, conducts, SETTINGS)
        return answer_of(plan, result), result, plan

    def share(self, rows: Any) -> float:
        """Part of the whole weight that some sources have in the next round."""
        weights = self.plan().weights
        return float(weights[rows].sum() / weights.sum())


def sensors(count: int, upper: float = 200.0, **more: Any) -> list[Source]:
    return [Source(f"s{k}", "household", 0.0, upper, **more) for k in range(count)]


BAD = {
    "offset": lambda rng, truth, size: truth * (1.5 + 0.1 * rng.standard_normal(size)),
    "stuck at zero": lambda rng, truth, size: np.zeros(size),  # noqa: ARG005
    "at the bound": lambda rng, truth, size: np.full(size, 200.0),  # noqa: ARG005
    "noise": lambda rng, truth, size: rng.uniform(0, 200, size),  # noqa: ARG005
}


@pytest.mark.parametrize("how", list(BAD))
def test_a_fifth_of_bad_sensors_hardly_matters_and_loses_its_weight(how: str) -> None:
    """300 sensors, 60 bad: error at most 0.02 of the mean, weight halved within two rounds."""
    rng = np.random.default_rng(11)
    rounds = Rounds(sensors(300))
    bad = np.arange(60)
    before = rounds.share(bad)
    for number in range(4):
        truth = 80 + 5 * np.sin(number)
        values = truth * (1 + 0.05 * rng.standard_normal(300))
        values[bad] = np.clip(BAD[how](rng, truth, 60), 0, 200)
        answer, _, _ = rounds.run(values)
        assert abs(answer.value - truth) <= 0.02 * truth, f"round {number}: {answer.value}"
        if number == 1 and how != "noise":
            assert rounds.share(bad) <= before / 2
    assert rounds.share(bad) <= before / 2


def test_who_turns_bad_after_a_good_year_loses_half_in_two_rounds() -> None:
    standing = Standing()
    for _ in range(300):
        standing = standing.after(Conduct.NEAR, SETTINGS)
    before = standing.reliability(SETTINGS.floor)
    for _ in range(2):
        standing = standing.after(Conduct.FAR, SETTINGS)
    assert standing.reliability(SETTINGS.floor) <= before / 2


@pytest.mark.parametrize("period", [2, 3, 4, 6])
def test_on_off_attackers_are_down_to_half_within_twelve_rounds(period: int) -> None:
    """Who is good in between, to recover, loses all the same."""
    attacker = honest = Standing()
    reached = None
    for number in range(1, 41):
        is_bad = number % period == 0
        attacker = attacker.after(Conduct.FAR if is_bad else Conduct.NEAR, SETTINGS)
        honest = honest.after(Conduct.NEAR, SETTINGS)
        ratio = attacker.reliability(SETTINGS.floor) / honest.reliability(SETTINGS.floor)
        if ratio <= 0.5 and reached is None:
            reached = number
    assert reached is not None
    assert reached <= 12


@pytest.mark.parametrize(("part", "error_max"), [(0.1, 0.03), (0.3, 0.12)])
@pytest.mark.parametrize("how", ["high", "low", "half more"])
def test_colluding_devices_bend_a_sum_by_little(part: float, error_max: float, how: str) -> None:
    """Ratios to baselines are trimmed: sizes differ fifty-fold, so trimming values would fail."""
    rng = np.random.default_rng(7)
    count = 1000
    baselines = rng.lognormal(0, 0.8, count)
    sources = [
        Source(f"d{k}", "household", 0.0, 4 * size, baseline=float(size))
        for k, size in enumerate(baselines)
    ]
    truth = baselines * (1 + 0.15 * rng.standard_normal(count)).clip(0, 4)
    values = truth.copy()
    bad = rng.permutation(count)[: round(part * count)]
    factor = {"high": 4.0, "low": 0.0, "half more": 1.5}[how]
    values[bad] = factor * baselines[bad]
    answer, _, _ = Rounds(sources, function="sum", is_watched=False).run(values)
    error = abs(answer.value / truth.sum() - 1)
    assert error <= error_max, f"{error:.4f}"
    if how == "high" and part == 0.3:
        assert abs(values.sum() / truth.sum() - 1) > 0.5


@pytest.mark.parametrize("seed", [1, 2, 6, 11])
@pytest.mark.parametrize("shape", ["normal", "lognormal"])
@pytest.mark.parametrize(
    ("part", "spread", "error_max"), [(0.1, 0.1, 0.03), (0.3, 0.1, 0.12), (0.3, 0.15, 0.12)]
)
def test_it_does_not_depend_on_which_devices_collude(
    seed: int, shape: str, part: float, spread: float, error_max: float
) -> None:
    """Three tenths of the devices can hold a third of the weight; a trim of 0.3 let 25 % in."""
    rng = np.random.default_rng(seed)
    count = 1000
    baselines = rng.lognormal(0, 0.8, count)
    normal = rng.standard_normal(count)
    ratios = {"normal": 1 + spread * normal, "lognormal": np.exp(spread * normal - spread**2 / 2)}
    truth = baselines * ratios[shape].clip(0, 4)
    bad = rng.permutation(count)[: round(part * count)]
    sources = [
        Source(f"d{k}", "household", 0.0, 4 * size, baseline=float(size))
        for k, size in enumerate(baselines)
    ]
    for factor in (4.0, 0.0, 1.5, 1 + 2 * spread, 1 - 2 * spread):
        values = truth.copy()
        values[bad] = factor * baselines[bad]
        answer, _, _ = Rounds(sources, function="sum", is_watched=False).run(values)
        error = abs(answer.value / truth.sum() - 1)
        assert error <= error_max, f"{factor}: {error:.4f}"


def test_trimming_values_would_bias_a_clean_sum_and_trimming_ratios_does_not() -> None:
    rng = np.random.default_rng(8)
    baselines = rng.lognormal(0, 0.8, 2000)
    values = baselines * np.exp(0.2 * rng.standard_normal(2000) - 0.02)
    sources = [
        Source(f"d{k}", "household", 0.0, 6 * size, baseline=float(size))
        for k, size in enumerate(baselines)
    ]
    answer, _, _ = Rounds(sources, function="sum", is_watched=False).run(values)
    assert abs(answer.value / values.sum() - 1) < 0.02
    naive = stats.trim_mean(values, 0.1) * len(values)
    assert abs(naive / values.sum() - 1) > 0.05


@pytest.mark.parametrize("seed", [3, 8])
def test_real_households_are_divided_by_what_is_usual_for_them(seed: int) -> None:
    """A kettle makes readings skewed: their middle, over means, is a fifth below their sum."""
    pytest.importorskip("simbench", reason="needs the extra simbench for its household profiles")
    values, mean, median = Households.read(15).fleet(seed)
    errors = {}
    for name, usual in (("baseline", None), ("usual", median.tolist())):
        sources = [
            Source(f"d{k}", "household", 0.0, 6 * size, size, None, usual and usual[k])
            for k, size in enumerate(mean.tolist())
        ]
        for part in (0.0, 0.1):
            told = values.clip(0, 6 * mean)
            bad = np.random.default_rng(seed).permutation(len(told))[: round(part * len(told))]
            told[bad] = 6 * mean[bad]
            answer, _, _ = Rounds(sources, function="sum", is_watched=False).run(told)
            errors[name, part] = abs(answer.value / values.sum() - 1)
    assert errors["baseline", 0.0] > 0.1, errors
    assert errors["usual", 0.0] < 0.05, errors
    assert errors["usual", 0.1] < 0.12, errors


@pytest.mark.parametrize("wrong", [1e6, -1e6, float("nan"), 199.99, 0.0])
@pytest.mark.parametrize("function", ["mean", "weighted-mean", "trimmed-mean", "median"])
def test_one_arbitrary_input_moves_the_result_by_its_cap_at_most(
    wrong: float, function: str
) -> None:
    """A million, NaN or anything within bounds: at most kappa times the range, and no stop."""
    rng = np.random.default_rng(3)
    count = 200
    values = 80 * (1 + 0.05 * rng.standard_normal(count))
    clean, _, _ = Rounds(sensors(count), function=function).run(values)
    values[17] = wrong
    answer, result, _ = Rounds(sensors(count), function=function).run(values)
    cap = influence_cap(count, SETTINGS)
    assert abs(answer.value - clean.value) <= cap * 200
    is_outside = not 0 <= wrong <= 200
    assert result["flags"] == ({"s17": "invalid"} if is_outside else {})
    if not is_outside:
        assert result["conduct"][17] == Conduct.FAR
    assert answer.influence <= cap


@settings(max_examples=200, deadline=None)
@given(
    weights=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=80),
    cap=st.floats(0.01, 0.5),
)
def test_nobody_weighs_more_than_the_cap(weights: list[float], cap: float) -> None:
    given_weights = np.array(weights)
    found = capped(given_weights, cap)
    if cap * len(weights) > 1:
        assert found.max() <= cap * found.sum() * (1 + 1e-9)
        assert (found <= given_weights * (1 + 1e-12)).all()
    assert (np.diff(found[np.argsort(given_weights)]) >= -1e-12).all()


@settings(max_examples=100, deadline=None)
@given(count=st.integers(2, 400), seed=st.integers(0, 1000))
def test_whole_number_weights_keep_cap_floor_and_ratio(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tiers = rng.choice(list(SETTINGS.tiers), count).tolist()
    found = weights_for(tiers, rng.uniform(0, 1, count).tolist(), SETTINGS)
    assert found.min() >= 1
    assert found.max() <= influence_cap(count, SETTINGS) * found.sum() * 1.01 + 1


def test_tiers_that_differ_too_much_are_refused() -> None:
    with pytest.raises(InputError, match="4 times"):
        TrustSettings(tiers={"tso": 5.0, "household": 1.0})


def test_weights_come_from_past_rounds_only() -> None:
    """What a source does in a round cannot raise or lower its own weight in that round."""
    rounds = Rounds(sensors(50))
    values = np.full(50, 80.0) + np.arange(50) % 5
    _, _, first = rounds.run(values)
    values[3] = 190
    _, result, second = rounds.run(values)
    assert first.weights.tolist() == second.weights.tolist()
    assert result["conduct"][3] == Conduct.FAR
    assert rounds.plan().weights[3] < rounds.plan().weights[4] / 2


def test_scores_are_those_of_the_literature() -> None:
    """CRPS by its integral; Brier by its definition."""
    for residual, deviation in ((0.6, 0.5), (-2.0, 1.3), (6.0, 0.63)):

        def gap(x: float, residual: float = residual, deviation: float = deviation) -> float:
            return float((stats.norm.cdf(x, 0, deviation) - (x >= residual)) ** 2)

        right = (
            sum(
                integrate.quad(gap, low, high)[0]
                for low, high in ((-30, min(residual, 0)), (min(residual, 0), max(residual, 0)))
            )
            + integrate.quad(gap, max(residual, 0), 30)[0]
        )
        assert crps_normal(residual, deviation) == pytest.approx(right, rel=1e-5)
    standing = Standing(good=3, bad=1)
    assert standing.after(Conduct.NEAR, SETTINGS).brier == pytest.approx(0.25**2)
    assert standing.after(Conduct.FAR, SETTINGS).brier == pytest.approx(0.75**2)


def test_silence_costs_less_than_lies_and_nobody_is_silenced_for_good() -> None:
    silent = liar = Standing()
    for number in range(50):
        silent = silent.after(Conduct.MISSING, SETTINGS)
        liar = liar.after(Conduct.INVALID, SETTINGS)
        if number < 5:
            assert silent.reliability(SETTINGS.floor) > 2 * liar.reliability(SETTINGS.floor)
    assert liar.reliability(SETTINGS.floor) == SETTINGS.floor
    for _ in range(100):
        liar = liar.after(Conduct.NEAR, SETTINGS)
    assert liar.reliability(SETTINGS.floor) > 0.8
