"""Regions first, then one committee: the same figure as flat, and less to do for the big one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilgrid.cli import main
from veilgrid.cli._aggregate import Setting, aggregate_by_region, aggregate_readings
from veilgrid.cli._readings import Readings
from veilgrid.errors import InputError
from veilgrid.mpc import Plain
from veilgrid.mpc.bulk import plain_batch
from veilgrid.risk import regions
from veilgrid.risk.aggregate import Question, Source, answer_of, answer_steps
from veilgrid.risk.rounds import Round

COUNT = 24
VALUES = np.random.default_rng(2).uniform(-3, 9, COUNT).round(4)
REGIONS = tuple(f"feeder {row % 4}" for row in range(COUNT))
KEPT = [row for row in range(COUNT) if row not in (3, 8)]
SETTING = Setting(seed=3)
FUNCTIONS = ("sum", "mean", "weighted-mean", "variance", "trimmed-mean", "median", "cvar")


def sources_of(count: int, baselines: bool = False) -> tuple[Source, ...]:
    tiers = ("household", "dso", "household", "aggregator")
    return tuple(
        Source(f"s{row}", tiers[row % 4], -5.0, 10.0, 2.0 + row % 3 if baselines else None)
        for row in range(count)
    )


def readings() -> Readings:
    values: list[float | None] = VALUES.tolist()
    values[3], values[8] = 1e6, None
    return Readings(sources_of(COUNT), tuple(values), regions=REGIONS)


def opened(asked: regions.RegionalRound, handed: Any) -> Any:
    """Run the cross-regional round on plain numbers."""
    mpc, plan = Plain(), asked.plan()
    batch = plain_batch(mpc, regions.layout_of(asked), regions.inputs_of(asked, handed))
    return mpc.run(regions.answer_steps(mpc, batch, asked, plan))


def handed_by(asked: regions.RegionalRound, steps: Any) -> list[dict[str, int]]:
    plan = asked.plan()
    if not regions.is_summed(plan):
        return [regions.handed_histogram(asked, rows, steps) for rows in asked.members]
    return [
        regions.handed_sums(asked, *regions.sums_of(plan, rows, steps)) for rows in asked.members
    ]


@settings(max_examples=20, deadline=None)
@given(
    function=st.sampled_from(FUNCTIONS),
    baselines=st.booleans(),
    count=st.integers(6, 60),
    split=st.integers(2, 5),
    seed=st.integers(0, 999),
)
def test_figures_by_region_are_the_flat_ones(
    function: str, baselines: bool, count: int, split: int, seed: int
) -> None:
    """Nothing but a few bits of the spread may be lost where sums of squares are large."""
    values = np.random.default_rng(seed).uniform(-5, 10, count).round(3)
    round_ = Round(
        question=Question(function=function, method="histogram"),
        sources=sources_of(count, baselines),
    )
    plan, mpc = round_.plan(), Plain()
    flat: Any = mpc.run(
        answer_steps(mpc, plain_batch(mpc, plan.layout, plan.encode(values.tolist())), plan)
    )
    members = tuple(tuple(range(first, count, split)) for first in range(split))
    asked = regions.RegionalRound(
        round_=round_, regions=tuple(f"r{k}" for k in range(split)), members=members
    )
    usual = 1.0 if plan.usual is None else plan.usual
    steps = np.rint(values / usual * plan.scale).astype(np.int64)
    found = opened(asked, handed_by(asked, steps))
    assert found["numbers"][0] == flat["numbers"][0]
    one, other = answer_of(plan, found), answer_of(plan, flat)
    assert one.value == pytest.approx(other.value, rel=1e-9, abs=1e-9)
    assert one.risk_adjusted == pytest.approx(other.risk_adjusted, rel=1e-6, abs=1e-6)
    assert one.influence == other.influence


def test_a_gateway_cannot_hand_on_what_its_sources_bounds_do_not_allow() -> None:
    """It is left out with its sources; the figure of the others stands."""
    for function in ("mean", "trimmed-mean"):
        round_ = Round(
            question=Question(function=function, method="histogram"), sources=sources_of(9)
        )
        members = ((0, 3, 6), (1, 4, 7), (2, 5, 8))
        asked = regions.RegionalRound(round_=round_, regions=("a", "b", "c"), members=members)
        plan = asked.plan()
        steps = np.rint(np.arange(9) * plan.scale).astype(np.int64)
        handed = handed_by(asked, steps)
        without = replace(asked, regions=("a", "c"), members=(members[0], members[2]))
        right = opened(without, handed_by(without, steps))
        name = "first" if function == "mean" else "part 40"
        for much in (10**9, -(10**9)):
            lying = [dict(one) for one in handed]
            lying[1][name] += much
            found = opened(asked, lying)
            assert found["numbers"] == right["numbers"]
            assert found["flags"] == {"1": "invalid"}
            assert found["counted"] == [0, 2, 3, 5, 6, 8]
        if function == "trimmed-mean":
            empty = next(k for k in range(64) if handed[1][f"count {k}"] == 0)
            width = int(np.diff(plan.bins)[empty])
            for told in ({"part": 1}, {"count": 1, "room": width - 1}):
                lying = [dict(one) for one in handed]
                for name, more in told.items():
                    lying[1][f"{name} {empty}"] += more
                assert opened(asked, lying)["flags"] == {"1": "invalid"}, told


@pytest.mark.parametrize(
    ("way", "function"),
    [
        ("clear", "sum"),
        ("clear", "trimmed-mean"),
        ("committee", "sum"),
        ("committee", "weighted-mean"),
        ("committee", "variance"),
    ],
)
def test_shares_by_region_give_the_flat_figure_and_cost_the_big_committee_less(
    way: str, function: str
) -> None:
    """Bad and missing readings are left out where they arise."""
    method = "histogram" if function == "trimmed-mean" else None
    question = Question(function=function, method=method)
    flat = aggregate_readings(readings(), question, SETTING).report
    done, found = aggregate_by_region(readings(), question, SETTING, way)  # type: ignore[arg-type]
    report, told = done.report, done.report["regions"]
    if function == "sum":
        assert report["value"] == pytest.approx(VALUES[KEPT].sum(), abs=1e-5)
    # A histogram has bins of the readings that may come; those that count are the same.
    assert report["value"] == pytest.approx(flat["value"], abs=1e-5)
    assert report["accepted"] == flat["accepted"] == COUNT - 2
    assert [one["source"] for one in report["rejected"]] == ["s3", "s8"]
    if function != "trimmed-mean":
        assert told["cross_bytes"] < flat["bytes"]
    assert report["bytes"] == told["bytes"] + told["cross_bytes"] == found.octets
    assert [one["region"] for one in told["each"]] == sorted(set(REGIONS))
    assert sum(one["accepted"] for one in told["each"]) == COUNT - 2
    if function == "sum":
        for one in found.parts:
            total = VALUES[list(one.rows)].sum()
            assert one.first / found.plan.scale == pytest.approx(total, abs=1e-5)
            assert str(one.first) not in json.dumps(report), "no region's sum is told"


def test_what_is_no_hierarchy_or_would_show_too_much_is_refused() -> None:
    whole, question = readings(), Question(function="sum")
    for wrong, words in (
        (replace(whole, regions=("a",) * COUNT), "two at least"),
        (replace(whole, regions=()), "needs the column region"),
    ):
        with pytest.raises(InputError, match=words):
            aggregate_by_region(wrong, question, SETTING, "clear")
    with pytest.raises(InputError, match="histogram"):
        aggregate_by_region(whole, Question(function="median"), SETTING, "committee")
    lonely = replace(whole, regions=("alone", *REGIONS[1:]))
    with pytest.raises(InputError, match="region alone"):
        aggregate_by_region(lonely, question, SETTING, "committee")


def test_the_verb_takes_regions_and_names_options_that_do_not_go_with_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "readings.csv"
    rows = [f"s{k},{k % 7},household,0,10,feeder {k % 3}" for k in range(12)]
    path.write_text("\n".join(["source,value,tier,lower,upper,region", *rows]) + "\n")
    command = ["aggregate", str(path), "--function", "mean", "--regions", "clear"]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--json", "--out", str(tmp_path / "out")])
    assert ended.value.code == 0
    report = json.loads(capsys.readouterr().out)
    assert report["value"] == pytest.approx(sum(k % 7 for k in range(12)) / 12)
    assert report["regions"]["way"] == "clear"
    assert (tmp_path / "out" / "report.html").is_file()
    with pytest.raises(SystemExit) as ended:
        main([*command, "--history", str(tmp_path / "h")])
    assert ended.value.code == 2
    assert "--regions" in capsys.readouterr().err
    path.write_text("\n".join(["source,value,tier,lower,upper,region", "a,1,household,0,2,", ""]))
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 2
    assert "row 2, column region" in capsys.readouterr().err
