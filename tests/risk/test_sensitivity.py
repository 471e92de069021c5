"""Influence, Sobol indices and tuning of the weighting, on histories with known faults."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from veilgrid.cli import main
from veilgrid.errors import InputError
from veilgrid.mpc.plain import Plain
from veilgrid.risk.robust import exact_between
from veilgrid.risk.sensitivity import (
    RANGES,
    Rounds,
    Weighting,
    conducts,
    indices,
    influences,
    replay,
    trimmed_mean,
    warnings_of,
    weightings,
)
from veilgrid.risk.tuning import Events, targets, tune

TIERS = ("tso", "dso", "aggregator", "household")


def history(
    count: int = 16, length: int = 30, bad: int = 3, seed: int = 1, shift: float = 30.0
) -> tuple[Rounds, Events]:
    """Sources measure one truth a round; the last ``bad`` ones are off by ``shift``."""
    generator = np.random.default_rng(seed)
    truth = 50 + 5 * np.sin(np.arange(length) / 3)
    values = truth[:, np.newaxis] + generator.normal(0, 1, (length, count))
    values[:, count - bad :] += shift
    names = tuple(f"s{k}" for k in range(count))
    rounds = Rounds(
        names=names,
        tiers=tuple(TIERS[k % 4] for k in range(count)),
        lower=np.zeros(count),
        upper=np.full(count, 100.0),
        baseline=None,
        values=np.clip(values, 0, 100),
        is_present=np.ones((length, count), np.bool_),
        labels=tuple(range(length)),
    )
    return rounds, Events(dict(enumerate(truth.tolist())), {})


@pytest.mark.parametrize("trim", [0.0, 0.1, 0.25, 0.49])
def test_the_trimmed_mean_is_that_of_the_committee(trim: float) -> None:
    """What is studied must be what runs on shares, cut by cut."""
    generator = np.random.default_rng(5)
    for _ in range(5):
        values = generator.integers(0, 1000, 9)
        weights = generator.integers(1, 50, 9)
        mass = int(weights.sum())
        cut = min(int(trim * mass), (mass - 1) // 2)
        plain = Plain(1)
        steps = exact_between(plain, plain.constant(values), 0, weights.tolist(), cut, mass - cut)
        with pytest.raises(StopIteration) as stop:
            next(steps)
        figure = stop.value.value
        opening = plain.open(figure.parts)
        with pytest.raises(StopIteration) as opened:
            next(opening)
        expected = opened.value.value[0] / figure.divisor
        found = trimmed_mean(values.astype(float), weights.astype(float), trim)
        assert found == pytest.approx(expected, rel=1e-9)


def test_conduct_is_judged_by_robust_deviations() -> None:
    values = np.array([9.0, 10.0, 10.5, 11.0, 10.2, 9.8, 14.0, 40.0])
    assert conducts(values, np.ones(8), 1.0).tolist() == [0, 0, 0, 0, 0, 0, 1, 2]
    assert conducts(values, np.ones(8), 100.0).tolist() == [0] * 8


def test_weights_come_from_the_past_only() -> None:
    """A round's own readings must not move its weights: change the last, nothing before moves."""
    rounds, _ = history()
    before = replay(rounds, Weighting())
    values = rounds.values.copy()
    values[-1] = 99.0
    after = replay(replace(rounds, values=values), Weighting())
    assert np.array_equal(before.weights, after.weights)
    assert np.array_equal(before.figures[:-1], after.figures[:-1])


def test_bad_sources_lose_their_weight_and_invalid_ones_do_not_count() -> None:
    rounds, _ = history()
    values = rounds.values.copy()
    values[:, 0] = 101.0
    played = replay(replace(rounds, values=values), Weighting())
    assert (played.weights[:, 0] == 0).all()
    assert played.weights[-1, -3:].max() < 0.3 * played.weights[0, -3:].max()
    assert np.allclose(played.weights.sum(axis=1), 1.0)


def test_ratios_to_baselines_are_averaged() -> None:
    rounds, _ = history(bad=0)
    sizes = np.linspace(1.0, 4.0, len(rounds.names))
    scaled = replace(rounds, baseline=sizes, values=0.5 * sizes * np.ones(rounds.values.shape))
    played = replay(scaled, Weighting())
    assert played.figures == pytest.approx(0.5 * sizes.mean())


def test_influence_at_worst_is_found_by_trying() -> None:
    """A plain mean of 16 within 0..100: one source moves it by 1/16 of its way to a bound."""
    rounds, _ = history(bad=0, length=3)
    tiers = tuple("household" for _ in rounds.names)
    rounds = replace(rounds, tiers=tiers)
    weighting = Weighting(trim=0.0, tiers=1.0, cap=0.5)
    played = replay(rounds, weighting)
    found = influences(rounds, played, weighting)
    one = {influence.source: influence for influence in found}["s4"]
    shares = played.weights[:, 4]
    away = np.maximum(rounds.values[:, 4], 100 - rounds.values[:, 4]) / 100
    assert one.worst == pytest.approx(float((shares * away).max()), rel=0.01)
    assert one.left_out < one.worst
    trimmed = influences(rounds, played, replace(weighting, trim=0.3))
    assert trimmed[0].worst < 0.3 * found[0].worst


def test_who_could_sway_stop_or_decide_is_warned_about() -> None:
    rounds, _ = history(count=4, bad=0)
    weighting = Weighting(trim=0.0, tiers=1.0)
    played = replay(rounds, weighting, count_min=4)
    found = influences(rounds, played, weighting)
    told = warnings_of(rounds, played, found, weighting, count_min=4, rating=52.0)
    assert any("would have stopped it" in one for one in told)
    assert any("decide on which side of 52" in one for one in told)
    many, _ = history(count=40, bad=0)
    calm = replay(many, Weighting())
    assert (
        warnings_of(many, calm, influences(many, calm, Weighting()), Weighting(), count_min=2) == []
    )
    rounds = replace(rounds, tiers=("tso", "household", "household", "household"))
    spread = replace(rounds, values=np.tile([90.0, 10.0, 20.0, 40.0], (30, 1)))
    median = Weighting(trim=0.45)
    played = replay(spread, median)
    found = influences(spread, played, median)
    assert found[0].worst <= 1.0


def test_sobol_indices_of_a_known_function() -> None:
    """Only trim counts, then trim and cap in a product."""
    choices = weightings(256, 3)
    trim = np.array([one.trim for one in choices])
    alone = {one.parameter: one for one in indices(trim * 2 + 1, 3)}
    assert alone["trim"].first == pytest.approx(1.0, abs=0.05)
    assert alone["cap"].total == pytest.approx(0.0, abs=0.01)
    cap = np.array([one.cap for one in choices])
    centred = (trim - 0.225) * (cap - 0.255)
    both = {one.parameter: one for one in indices(centred, 3)}
    assert both["trim"].total == pytest.approx(1.0, abs=0.1)
    assert abs(both["trim"].first) < 0.1
    assert [one.parameter for one in indices(np.ones(len(choices)), 3)] == list(RANGES)
    assert all(one.total == 0 for one in indices(np.ones(len(choices)), 3))


def test_tuning_finds_the_trim_that_bad_sources_ask_for() -> None:
    """Without trimming, three of 16 sources shift the mean; the held-out rounds agree."""
    rounds, events = history(length=20)
    # Other sources are bad each round, so that reliability alone cannot help.
    values = rounds.values.copy()
    values[:, -3:] -= 30
    for k in range(20):
        values[k, [k % 16, (k + 5) % 16, (k + 10) % 16]] += 30
    rounds = replace(rounds, values=np.clip(values, 0, 100))
    default = Weighting(trim=0.0, tiers=1.0, decay=0.8, cap=0.5)
    tried = [(one, replay(rounds, one)) for one in weightings(8, 1)]
    tuned = tune(rounds, events, tried, (default, replay(rounds, default)))
    assert tuned.is_recommended
    assert tuned.weighting.trim > 0.1
    assert tuned.held_out_error < 0.5 * tuned.default_held_out_error
    assert (tuned.training_rounds, tuned.held_out_rounds) == (14, 6)


def test_what_only_looked_better_on_the_past_is_not_recommended() -> None:
    """The last rounds are told to have another truth: the choice must not see them."""
    rounds, events = history(length=20)
    default = Weighting(trim=0.3)
    tried = [(one, replay(rounds, one)) for one in weightings(8, 1)]
    turned = Events({k: v if k < 14 else 500.0 for k, v in events.truths.items()}, {})
    first = tune(rounds, events, tried, (default, replay(rounds, default)))
    second = tune(rounds, turned, tried, (default, replay(rounds, default)))
    assert second.weighting == first.weighting
    # A best on training that moves away from what came later is refused.
    worse = replace(Weighting(), trim=0.0)
    figures = replay(rounds, worse)
    figures.figures[:] = [events.truths[k] + (0 if k < 14 else 9) for k in range(20)]
    refused = tune(rounds, events, [(worse, figures)], (default, replay(rounds, default)))
    assert refused.weighting == worse
    assert not refused.is_recommended


def test_labelled_bad_sources_give_the_mean_of_the_others() -> None:
    rounds, _ = history(count=4, bad=1, length=6)
    places, wanted = targets(rounds, Events({}, {2: frozenset({"s3"}), 4: frozenset({"s3"})}))
    assert places.tolist() == [2, 4]
    assert wanted == pytest.approx(rounds.values[[2, 4], :3].mean(axis=1))
    with pytest.raises(InputError, match="at least 5"):
        tune(
            rounds,
            Events({}, {2: frozenset({"s3"})}),
            [(Weighting(), replay(rounds, Weighting()))],
            (Weighting(), replay(rounds, Weighting())),
        )


# -- the verb ------------------------------------------------------------------------------------


def write(folder: Path, rounds: Rounds, events: Events) -> tuple[Path, Path]:
    first, second = folder / "history.csv", folder / "events.csv"
    with first.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["round", "source", "value", "tier", "lower", "upper"])
        for k, label in enumerate(rounds.labels):
            for j, name in enumerate(rounds.names):
                value = f"{rounds.values[k, j]:.3f}" if rounds.is_present[k, j] else ""
                writer.writerow([label, name, value, rounds.tiers[j], 0, 100])
    with second.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["round", "source", "truth"])
        for label, truth in events.truths.items():
            writer.writerow([label, "", truth])
    return first, second


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    told = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, told.out, told.err


def test_the_verb_keeps_its_contract(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write(tmp_path, *history(count=8, length=10))
    arguments = ["sensitivity", files[0], "--events", files[1], "--samples", 8]
    code, out, _ = call(capsys, *arguments, "--json", "--out", tmp_path / "out")
    assert code == 0
    found = json.loads(out)
    assert {one["parameter"] for one in found["indices"]} == {"trim", "tiers", "decay", "cap"}
    assert all({"first", "total"} <= set(one) for one in found["indices"])
    assert 0 < found["influence_max"] <= 1
    assert {"trim", "tiers", "decay", "cap", "held_out_error"} <= set(found["tuned"])
    assert json.loads((tmp_path / "out" / "sensitivity.json").read_text()) == found
    rows = (tmp_path / "out" / "influence.csv").read_text().splitlines()
    assert len(rows) == 9
    again = json.loads(call(capsys, *arguments, "--json")[1])
    assert again == found
    code, out, _ = call(capsys, *arguments)
    assert code == 0
    assert "influence" in out
    code, out, _ = call(capsys, "sensitivity", files[0], "--samples", 8, "--json")
    assert json.loads(out)["tuned"] is None


def test_every_fault_of_both_files_is_named_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write(tmp_path, *history(count=4, length=6))
    lines = files[0].read_text().splitlines()
    lines[1] = "x,s0,1,dso,0,100"
    lines[2] = "0,s1,abc,king,5,1"
    lines[3] = "0,,1,dso,0,100"
    lines.append("5,s3,1,household,0,100")
    lines.append("6,s3,1,household,0,90")
    files[0].write_text("\n".join(lines) + "\n")
    code, out, err = call(capsys, "sensitivity", files[0], "--json")
    assert (code, out) == (2, "")
    for place in (
        "row 2, column round",
        "row 3, column value",
        "row 3, column tier",
        "row 4, column source",
        "already has a reading in round 5",
        "differs from an earlier row",
    ):
        assert place in err, place
    files = write(tmp_path, *history(count=4, length=6))
    files[1].write_text("round,source,truth\n99,s1,\n1,nobody,\n2,,\n3,,1\n3,,2\n")
    code, _, err = call(capsys, "sensitivity", files[0], "--events", files[1], "--samples", 8)
    assert code == 2
    for place in ("99 is no round", "nobody is no source", "row 4", "already has another one"):
        assert place in err, place
    code, _, err = call(
        capsys, "sensitivity", files[0], "--samples", 7, "--trim", 0.6, "--minimum", 1
    )
    assert code == 2
    assert all(name in err for name in ("--samples", "--trim", "--minimum"))
    assert call(capsys, "sensitivity", tmp_path / "none.csv")[0] == 2
