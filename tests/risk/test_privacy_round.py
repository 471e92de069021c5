"""A private figure: what is planned, what the committee opens, what happens if some cheat."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest

from veilgrid.cli._committee import Committee, Task, secure_round
from veilgrid.errors import InputError, RunAborted
from veilgrid.mpc.form import NOTHING, Form
from veilgrid.mpc.noise import noise_bits, with_noise
from veilgrid.mpc.plain import Plain
from veilgrid.risk import privacy_bulk
from veilgrid.risk.privacy import (
    MODES,
    Guarantee,
    Who,
    delta_default,
    plan_noise,
    warnings_of,
)
from veilgrid.risk.privacy_round import (
    PrivateQuestion,
    PrivateRound,
    Source,
    answer_of,
    ask,
    error_of,
    forms_of,
    inputs_of,
    program_of,
    read_off,
    released,
)
from veilgrid.secret import SeededRandomness

PROMISE = Guarantee(1.0, 1e-6)


def fleet(count: int, upper: int = 10_000) -> tuple[list[Source], dict[str, int]]:
    generator = np.random.default_rng(7)
    sources = [Source(f"s{k}", 0, upper, 1 + k % 3) for k in range(count)]
    values = {one.name: int(generator.integers(0, upper + 1)) for one in sources}
    return sources, values


def round_of(question: PrivateQuestion, values: dict[str, int], **changed: Any) -> dict[str, Any]:
    """Let the parties compute in this process; ``changed`` replaces inputs by name."""
    who = question.who
    inputs: dict[str, Any] = dict(inputs_of(question, values, SeededRandomness(9)))
    inputs.update(changed)
    committee = Committee.fresh(who.parties, who.degree, b"private", 11)
    round_ = PrivateRound(question, 2)
    forms = forms_of(question)
    return secure_round(committee, forms, inputs, partial(program_of, round_)).result


def bulk_round_of(
    question: PrivateQuestion, values: dict[str, int], **changed: Any
) -> dict[str, Any]:
    """The same through the intake for many clients."""
    who = question.who
    forms = dict.fromkeys(privacy_bulk.clients_of(question), NOTHING)
    inputs: dict[str, Any] = dict(privacy_bulk.inputs_of(question, values, SeededRandomness(9)))
    inputs.update(changed)
    committee = Committee.fresh(who.parties, who.degree, b"private", 11)
    task = Task(privacy_bulk.program_of, PrivateRound(question, 2), privacy_bulk.mailbox_of)
    return secure_round(committee, forms, inputs, task).result


def numbers_of(result: dict[str, Any]) -> list[int]:
    return [int(text) for text in result["numbers"]]


def in_the_clear(question: PrivateQuestion, values: dict[str, int], seed: int) -> list[int]:
    """The same function on plain numbers, with the same inputs as devices would send."""
    plain, forms = Plain(seed), forms_of(question)
    inputs = inputs_of(question, values, SeededRandomness(seed))
    shared = {name: plain.constant(forms[name].values(bits)) for name, bits in inputs.items()}
    devices = {name: one for name, one in shared.items() if not name.startswith("noise of")}
    noises = [one for name, one in shared.items() if name.startswith("noise of")]
    steps = released(plain, question, devices, noises)
    try:
        next(steps)
    except StopIteration as stop:
        return list(stop.value)
    raise AssertionError("plain numbers need no round")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("function", ["sum", "mean", "weighted-mean"])
def test_the_error_has_the_standard_deviation_that_was_printed(mode: str, function: str) -> None:
    """People decide by the predicted error before anything is released."""
    sources, values = fleet(40)
    question = ask(function, sources, PROMISE, Who(40), mode=mode)
    weights = question.weights
    truth = sum(weights[name] * value for name, value in values.items())
    scale = 1 if function == "sum" else sum(weights.values())
    errors = []
    for seed in range(60):
        numbers = in_the_clear(question, values, seed)
        errors.append(answer_of(question, numbers, list(values)) - truth / scale)
    spread = question.plan.noise_sd / scale
    assert abs(np.mean(errors)) < 4.5 * spread / math.sqrt(60)
    assert 0.7 < np.std(errors) / spread < 1.35


@pytest.mark.parametrize("mode", MODES)
def test_the_intake_for_many_clients_gives_the_same_kind_of_answer(mode: str) -> None:
    """At the bounds, missing, and out of bounds: each is taken for what it is."""
    sources, values = fleet(12)
    values |= {"s0": 0, "s1": 10_000, "s3": 10_001, "s4": -5}
    del values["s5"]
    question = ask("weighted-mean", sources, PROMISE, Who(12), mode=mode)
    result = bulk_round_of(question, values)
    refused = {"s5"} if mode == "local" else {"s3", "s4", "s5"}
    assert set(result["flags"]) == refused
    kept = {k: min(max(v, 0), 10_000) for k, v in values.items() if k not in refused}
    assert sorted(result["clients"]) == sorted(kept)
    weights = question.weights
    mass = sum(weights[k] for k in kept)
    truth = sum(weights[k] * v for k, v in kept.items()) / mass
    found = answer_of(question, numbers_of(result), result["clients"])
    assert abs(found - truth) < 6 * question.plan.noise_sd / mass


def test_the_intake_for_many_clients_counts_bins_at_both_ends() -> None:
    sources, values = fleet(60)
    sources = [Source(one.name, one.lower, one.upper) for one in sources]
    values |= {"s0": 0, "s1": 10_000, "s2": 10_001}
    question = ask("median", sources, Guarantee(9.0, 1e-3), Who(60))
    result = bulk_round_of(question, values)
    assert list(result["flags"]) == ["s2"]
    found = answer_of(question, numbers_of(result), result["clients"])
    del values["s2"]
    assert abs(found - np.median(list(values.values()))) < 2500


@pytest.mark.parametrize("mode", MODES)
def test_a_committee_answers_within_the_noise(mode: str) -> None:
    """On shares, malicious checks and all; one device is out of its bounds and is named."""
    sources, values = fleet(12)
    values["s3"] = 10_001
    question = ask("sum", sources, PROMISE, Who(12), mode=mode)
    result = round_of(question, values)
    rejected = [] if mode == "local" else ["s3"]
    assert list(result["flags"]) == rejected
    truth = sum(min(v, 10_000) for name, v in values.items() if name not in rejected)
    found = answer_of(question, numbers_of(result), result["clients"])
    assert abs(found - truth) < 6 * question.plan.noise_sd
    assert found != truth


@pytest.mark.parametrize("run", [round_of, bulk_round_of])
def test_a_party_without_noise_is_named_and_the_others_cover_for_it(run: Any) -> None:
    """Two honest parties add the whole variance that the promise needs."""
    sources, values = fleet(10)
    question = ask("sum", sources, PROMISE, Who(10), mode="parties")
    assert 2 * question.plan.share_variance >= question.plan.charge.sigma**2
    result = run(question, values, **{"noise of party 2": None})
    assert result["silent"] == ["2"]
    truth = sum(values.values())
    found = answer_of(question, numbers_of(result), result["clients"])
    assert abs(found - truth) < 6 * question.plan.noise_sd


@pytest.mark.parametrize("run", [round_of, bulk_round_of])
def test_without_two_parties_noise_nothing_opens(run: Any) -> None:
    sources, values = fleet(10)
    question = ask("sum", sources, PROMISE, Who(10), mode="parties")
    absent = {"noise of party 1": None, "noise of party 3": None}
    with pytest.raises(RunAborted, match="no valid noise"):
        run(question, values, **absent)


def test_noise_beyond_its_bound_is_refused_on_shares() -> None:
    """A party cannot push the figure further than honest noise might."""
    sources, values = fleet(10)
    question = ask("sum", sources, PROMISE, Who(10), mode="parties")
    form = forms_of(question)["noise of party 1"]
    beyond = [1] * form.bit_count
    beyond[0] = 1_000_000
    result = round_of(question, values, **{"noise of party 1": beyond})
    assert result["silent"] == ["1"]


@pytest.mark.parametrize("who", ["noise of party 1", "s4"])
@pytest.mark.parametrize("what", ["value", "noise"])
def test_among_many_clients_parties_add_noise_only_and_devices_readings_only(
    who: str, what: str
) -> None:
    """A party could else push the figure as a device, and a device as a party."""
    sources, values = fleet(10)
    question = ask("sum", sources, PROMISE, Who(10), mode="parties")
    layout, names = privacy_bulk.layout_of(question), privacy_bulk.clients_of(question)
    row = np.array([names.index(who)])
    too_much = {"value": np.array([3]), "noise": np.array([3])}
    if who.startswith("noise"):
        too_much = {"value": np.array([3]), "noise": np.array([0])}
        if what == "noise":
            bound = question.plan.share_bound
            too_much = {"value": np.array([0]), "noise": np.array([bound + 1])}
    elif what == "value":
        too_much = {"value": np.array([10_001]), "noise": np.array([0])}
    bits = layout.encode(too_much, row)[0].tolist()
    result = bulk_round_of(question, values, **{who: bits})
    assert result["silent"] == (["1"] if who.startswith("noise") else [])
    assert list(result["flags"]) == ([] if who.startswith("noise") else ["s4"])


def test_a_device_cannot_smuggle_noise_beyond_its_bound() -> None:
    form = Form(2, ((1, 2),), (0,))
    widened = with_noise(form, 5)
    assert widened.values([1, 1, *noise_bits(widened, 5, -5)]) == [3, -5]
    assert widened.values([0, 1, *noise_bits(widened, 5, 5)]) == [2, 5]
    assert any(bit not in (0, 1) for bit in noise_bits(widened, 5, 6))
    reached = {tuple(widened.values([0, 0, *(n >> k & 1 for k in range(4))]))[1] for n in range(16)}
    assert reached == set(range(-5, 6))


@pytest.mark.parametrize("mode", ["committee", "parties"])
def test_a_noisy_histogram_gives_the_median(mode: str) -> None:
    """With little noise the answer is within a bin of the truth; weights and bounds count."""
    sources, values = fleet(60)
    sources = [Source(one.name, one.lower, one.upper) for one in sources]
    question = ask("median", sources, Guarantee(9.0, 1e-3), Who(60), mode=mode)
    assert question.plan.charge.count == 2
    result = round_of(question, values)
    assert len(result["numbers"]) == 64
    found = answer_of(question, numbers_of(result), result["clients"])
    assert abs(found - np.median(list(values.values()))) < 2500


def test_reading_off_a_histogram_agrees_with_numpy() -> None:
    generator = np.random.default_rng(3)
    sample = generator.gamma(2.0, 100.0, 100_000)
    edges = list(range(0, 1601, 25))
    counts = np.histogram(sample, edges)[0].astype(float).tolist()
    assert len(counts) == 64
    assert read_off("median", 0.0, counts, edges) == pytest.approx(np.median(sample), rel=0.01)
    quantile = read_off("quantile", 0.9, counts, edges)
    assert quantile == pytest.approx(np.quantile(sample, 0.9), rel=0.01)
    ordered = np.sort(sample)
    trimmed = read_off("trimmed-mean", 0.1, counts, edges)
    assert trimmed == pytest.approx(ordered[10_000:90_000].mean(), rel=0.01)
    tail = read_off("cvar", 0.9, counts, edges)
    assert tail == pytest.approx(ordered[90_000:].mean(), rel=0.01)
    tail = read_off("cvar", 0.9, counts, edges, "lower")
    assert tail == pytest.approx(ordered[:10_000].mean(), rel=0.05)
    assert read_off("median", 0.0, [-1.0] * 64, edges) == 800


@pytest.mark.parametrize(("low", "high"), [(0, 10_000), (4_000, 4_100), (9_999, 10_000), (0, 0)])
def test_a_histogram_reading_out_of_its_own_bounds_fails_its_check(low: int, high: int) -> None:
    sources = [Source("a", 0, 10_000), Source("b", low, high)]
    question = ask("median", sources, PROMISE, Who(2))
    form = forms_of(question)["b"]
    for value, is_valid in ((low, True), (high, True), (low - 1, False), (high + 1, False)):
        bits = inputs_of(question, {"b": value}, SeededRandomness(1))["b"]
        weights, total = form.equalities[0]
        assert (sum(w * b for w, b in zip(weights, bits, strict=True)) == total) == is_valid


def test_what_one_device_can_change_is_covered_by_the_charge() -> None:
    """Move one device from end to end: in coarse steps never more than was charged."""
    generator = np.random.default_rng(1)
    for _ in range(60):
        sensitivity = int(generator.integers(1, 10 ** int(generator.integers(1, 9))))
        plan = plan_noise("committee", PROMISE, Who(100), sensitivity, bound=10**11)
        base = int(generator.integers(0, 10**11))
        low = base * plan.factor >> plan.shift
        high = (base + sensitivity) * plan.factor >> plan.shift
        assert high - low <= plan.charge.sensitivity
        assert plan.charge.sigma * plan.quantum < 1.1 * 4.3 * sensitivity


def test_the_default_feed_has_the_error_of_the_design() -> None:
    """10,000 devices, epsilon 1 a day of 96 quarter hours: 0.83 % each."""
    sources = [Source(f"s{k}", 0, 5_000_000) for k in range(10_000)]
    promise = Guarantee(1.0, delta_default(10_000), 96)
    question = ask("sum", sources, promise, Who(10_000))
    assert error_of(question) == pytest.approx(0.0083, rel=0.05)
    assert warnings_of(question.plan, question.who, error_of(question)) == []


def test_local_noise_costs_the_square_root_of_the_fleet() -> None:
    sources, _ = fleet(400)
    sds = {mode: ask("sum", sources, PROMISE, Who(400), mode=mode).plan.noise_sd for mode in MODES}
    assert sds["local"] / sds["committee"] == pytest.approx(20, rel=0.05)
    assert sds["parties"] / sds["committee"] == pytest.approx(math.sqrt(1.5), rel=0.05)
    assert sds["devices"] / sds["committee"] == pytest.approx(math.sqrt(1.5), rel=0.05)


def test_what_does_not_work_is_refused_with_what_would() -> None:
    sources, _ = fleet(10)
    with pytest.raises(InputError, match="quantile"):
        ask("variance", sources, PROMISE, Who(10))
    with pytest.raises(InputError, match="committee or parties"):
        ask("median", sources, PROMISE, Who(10), mode="local")
    with pytest.raises(InputError, match="committee, parties, devices, local"):
        ask("sum", sources, PROMISE, Who(10), mode="none")
    with pytest.raises(InputError, match="raise epsilon"):
        ask("sum", sources, Guarantee(0.001, 1e-9), Who(10))
    with pytest.raises(InputError, match="--releases"):
        Guarantee(1.0, 1e-6, 0)


def test_small_fleets_and_large_errors_are_warned_about() -> None:
    sources, _ = fleet(10)
    question = ask("sum", sources, PROMISE, Who(10))
    told = " ".join(warnings_of(question.plan, question.who, error_of(question)))
    assert "10 devices" in told
    assert "%" in told
