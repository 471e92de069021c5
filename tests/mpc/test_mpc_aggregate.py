"""``veilgrid aggregate``: the JSON contract, rejected rows, and what is refused with reasons."""

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats

from veilgrid.cli._aggregate import aggregate
from veilgrid.node.history import RoundHistory
from veilgrid.risk.trust import Standing

ROWS = """source,value,tier,lower,upper
a,1.5,household,0,10
b,2.5,household,0,10
c,99,household,0,10
d,,household,0,10
e,4.25,dso,-5,10
f,-3,dso,-5,10
g,7,dso,-5,10
"""
VALID = [1.5, 2.5, 4.25, -3.0, 7.0]
KEYS = {
    "function",
    "value",
    "confidence_interval",
    "accepted",
    "rejected",
    "privacy",
    "parties",
    "degree",
    "seconds",
    "bytes",
}


def invoke(path: Path, *options: str) -> Any:
    return CliRunner().invoke(aggregate, [str(path), *options])


@pytest.fixture
def readings(tmp_path: Path) -> Path:
    path = tmp_path / "readings.csv"
    path.write_text(ROWS)
    return path


@pytest.mark.parametrize(
    ("function", "right"),
    [
        ("sum", sum(VALID)),
        ("mean", statistics.mean(VALID)),
        ("variance", statistics.variance(VALID)),
        ("median", statistics.median(VALID)),
        ("quantile", 7.0),
    ],
)
def test_every_function_keeps_the_contract(readings: Path, function: str, right: float) -> None:
    more = ["--level", "1"] if function == "quantile" else []
    done = invoke(readings, "--function", function, "--json", "--seed", "3", *more)
    assert done.exit_code == 0, done.output
    report = json.loads(done.output)
    assert set(report) >= KEYS
    assert report["value"] == pytest.approx(right)
    assert report["accepted"] == 5
    assert [one["source"] for one in report["rejected"]] == ["c", "d"]
    assert report["privacy"] is None


def test_seed_replays_a_run(readings: Path) -> None:
    runs = [
        json.loads(invoke(readings, "--function", "mean", "--json", "--seed", "5").output)
        for _ in range(2)
    ]
    for one in runs:
        one.pop("seconds")
    assert runs[0] == runs[1]


def test_people_get_a_short_table(readings: Path) -> None:
    done = invoke(readings, "--function", "mean", "--parties", "5")
    assert done.exit_code == 0
    assert "rejected     c" in done.output
    assert "any 2 of them together" in done.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--function", "sum", "--epsilon", "20"], "expected 0.001..10"),
        (["--function", "variance", "--epsilon", "1"], "ask for quantile"),
        (["--function", "sum", "--parties", "9"], "expected 3..7"),
        (["--function", "median", "--parties", "3", "--degree", "2"], "use degree 1"),
        (["--function", "mode"], "offered are"),
        (["--function", "quantile", "--level", "2"], "expected 0..1"),
    ],
)
def test_what_cannot_run_is_refused_with_what_would(
    readings: Path, options: list[str], said: str
) -> None:
    done = invoke(readings, *options)
    assert done.exit_code == 2
    assert said in done.output


def test_broken_rows_are_all_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.csv"
    path.write_text(
        "source,value,tier,lower,upper\n"
        "a,x,tso,0,1\n"
        "b,1,tso,5,1\n"
        "a,1,dso,0,2\n"
        ",1,tso,0,2\n"
        "c,inf,Household,0,2\n"
        "d,1,dso,,2\n"
        "e,1,dso,0,3\n"
        "e,1,dso,0,3\n"
    )
    done = invoke(path, "--function", "sum")
    assert done.exit_code == 2
    for where in ("row 2, column value", "row 3, column lower", "row 5, column source"):
        assert where in done.output
    for where in ("row 6, column value", "row 7, column lower", "e appears twice"):
        assert where in done.output
    kept = invoke(path, "--function", "sum", "--skip-bad-rows", "--json")
    report = json.loads(kept.output)
    assert report["value"] == 2
    assert [one["source"] for one in report["rejected"]] == ["a", "b", "row 5", "c", "d", "e"]
    assert "row 6, column value" in report["rejected"][3]["reason"]


def test_missing_columns_and_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "columns.csv"
    path.write_text("source,value\na,1\n")
    assert "tier, lower, upper" in invoke(path, "--function", "sum").output
    gone = invoke(tmp_path / "gone.csv", "--function", "sum")
    assert gone.exit_code == 2
    path.write_text("source,value,tier,lower,upper\n")
    assert "no rows" in invoke(path, "--function", "sum").output


def test_too_few_valid_inputs_open_nothing(readings: Path) -> None:
    done = invoke(readings, "--function", "mean", "--minimum", "6")
    assert done.exit_code == 5
    assert "only 5 of 7" in done.output


def test_bounds_too_large_for_the_scale_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.csv"
    path.write_text("source,value,tier,lower,upper\na,1,tso,0,1e17\nb,1,tso,0,1\n")
    done = invoke(path, "--function", "sum")
    assert done.exit_code == 2
    assert "40 bits" in done.output


def fleet(path: Path, values: list[float | str], **columns: list[Any]) -> Path:
    """Write readings of households with bounds 0..200 and further columns."""
    lines = [",".join(["source", "value", "tier", "lower", "upper", *columns])]
    for row, value in enumerate(values):
        more = [str(column[row]) for column in columns.values()]
        lines.append(",".join([f"s{row}", str(value), "household", "0", "200", *more]))
    path.write_text("\n".join(lines) + "\n")
    return path


def answer(path: Path, *options: str) -> Any:
    done = invoke(path, "--json", "--seed", "4", *options)
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


NORMAL = np.random.default_rng(6).normal(80, 6, 40).round(3).tolist()


@pytest.mark.parametrize(
    ("function", "options", "right"),
    [
        ("weighted-mean", [], np.mean(NORMAL)),
        ("trimmed-mean", ["--trim", "0.1"], stats.trim_mean(NORMAL, 0.1)),
        ("median", [], np.median(NORMAL)),
        ("quantile", ["--level", "0.9"], np.quantile(NORMAL, 0.9)),
        ("cvar", ["--level", "0.9"], np.sort(NORMAL)[-4:].mean()),
        ("cvar", ["--level", "0.9", "--side", "lower"], np.sort(NORMAL)[:4].mean()),
        ("variance", [], np.var(NORMAL, ddof=1)),
    ],
)
def test_figures_of_a_clean_file_equal_numpy(
    tmp_path: Path, function: str, options: list[str], right: float
) -> None:
    """Even numbers of readings, no bad ones: what people would compute in a spreadsheet."""
    report = answer(fleet(tmp_path / "f.csv", NORMAL), "--function", function, *options)
    assert report["value"] == pytest.approx(right, abs=2e-5 * right)
    low, high = report["confidence_interval"]
    assert low < report["value"] < high


def test_interval_of_a_mean_is_students(tmp_path: Path) -> None:
    report = answer(fleet(tmp_path / "f.csv", NORMAL), "--function", "mean", "--confidence", "0.9")
    right = stats.t.interval(0.9, 39, np.mean(NORMAL), stats.sem(NORMAL))
    assert report["confidence_interval"] == pytest.approx(right, rel=1e-6)
    one = np.mean(NORMAL) + stats.t.ppf(0.9, 39) * stats.sem(NORMAL)
    assert report["risk_adjusted"] == pytest.approx(one, rel=1e-6)


def test_histogram_of_many_is_close_to_sorting(tmp_path: Path) -> None:
    """From 257 sources on, no reading is compared with anything."""
    values = np.random.default_rng(7).normal(80, 6, 300).round(3).tolist()
    path = fleet(tmp_path / "f.csv", values)
    found = answer(path, "--function", "trimmed-mean")
    assert found["method"].startswith("histogram")
    assert found["value"] == pytest.approx(stats.trim_mean(values, 0.3), abs=0.3)
    assert answer(path, "--function", "median")["value"] == pytest.approx(
        np.median(values), abs=0.5
    )


def test_reliability_weighs_and_baselines_make_ratios(tmp_path: Path) -> None:
    values = [10.0, 20.0, 30.0, 40.0]
    path = fleet(tmp_path / "f.csv", values, reliability=[1, 1, 0.5, 0.25])
    report = answer(path, "--function", "weighted-mean")
    right = np.average(values, weights=[1, 1, 0.5, 0.25])
    assert report["value"] == pytest.approx(right, rel=1e-3)
    sizes = [float(size) for size in range(10, 50, 4)]
    lied = [1.05 * size for size in sizes]
    lied[2] = 200.0
    path = fleet(tmp_path / "g.csv", lied, baseline=sizes)
    report = answer(path, "--function", "sum")
    assert report["value"] == pytest.approx(1.05 * sum(sizes), rel=1e-3)
    assert "ratios to baselines" in report["method"]


@pytest.mark.parametrize("bad", ["1000000", "nan", "", "-5"])
def test_one_bad_reading_is_named_and_stops_nothing(tmp_path: Path, bad: str) -> None:
    clean = answer(fleet(tmp_path / "f.csv", NORMAL), "--function", "mean")
    values: list[float | str] = [*NORMAL]
    values[5] = bad
    report = answer(fleet(tmp_path / "g.csv", values), "--function", "mean")
    assert [one["source"] for one in report["rejected"]] == ["s5"]
    assert report["accepted"] == 39
    assert abs(report["value"] - clean["value"]) <= 3 / 40 * 200


def test_rating_is_judged_by_the_figure_to_act_on(tmp_path: Path) -> None:
    path = fleet(tmp_path / "f.csv", NORMAL)
    total = sum(NORMAL)
    report = answer(path, "--function", "sum", "--rating", str(total + 1))
    assert report["overloaded"] is False
    assert report["loading"] == pytest.approx(total / (total + 1))
    mean = answer(path, "--function", "mean", "--rating", str(np.mean(NORMAL) + 0.5))
    assert mean["value"] < mean["rating"] < mean["risk_adjusted"]
    assert mean["overloaded"] is True


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--rating", "10"], "different units"),
        (["--rating", "4000", "--measured", "1000"], "Kirchhoff"),
    ],
)
def test_a_figure_that_cannot_be_true_is_withheld(
    tmp_path: Path, options: list[str], why: str
) -> None:
    path = fleet(tmp_path / "f.csv", NORMAL)
    done = invoke(path, "--function", "sum", "--json", *options)
    assert done.exit_code == 1
    report = json.loads(done.output)
    assert report["value"] is None
    assert report["overloaded"] is None
    assert why in report["electrical_check"]["faults"][0]
    told = invoke(path, "--function", "sum", *options)
    assert "withheld" in told.output
    assert why in told.output


def test_history_weighs_by_past_rounds_and_survives_a_crash(tmp_path: Path) -> None:
    """Reserved before, written after; a round that ended badly changes no standing."""
    path, kept = fleet(tmp_path / "f.csv", NORMAL), tmp_path / "rounds.db"
    bad: list[float | str] = [*NORMAL]
    bad[3] = 190
    broken = fleet(tmp_path / "g.csv", bad)
    first = answer(broken, "--function", "weighted-mean", "--history", str(kept))
    assert [one["source"] for one in first["conduct"] if one["conduct"] == "far"] == ["s3"]
    second = answer(broken, "--function", "weighted-mean", "--history", str(kept))
    assert abs(second["value"] - np.mean(NORMAL)) < 0.6 * abs(first["value"] - np.mean(NORMAL))
    failed = invoke(path, "--function", "mean", "--history", str(kept), "--minimum", "41")
    assert failed.exit_code == 2
    aborted = fleet(tmp_path / "h.csv", [*NORMAL[:-1], "nan"])
    failed = invoke(aborted, "--function", "mean", "--history", str(kept), "--minimum", "40")
    assert failed.exit_code == 5
    with RoundHistory(kept) as history:
        before = history.standings()
        number = history.reserve("mean")
    with RoundHistory(kept) as history:
        assert history.standings() == before
        states = [one.state for one in history.rounds()]
        assert states == ["done", "done", "failed", "reserved"]
        history.complete(1, {"value": 0}, {}, {}, {"s3": Standing()})
        assert history.standings() == before
        assert history.rounds()[0].result["value"] == first["value"]
        assert history.rounds()[1].shares["s3"] < history.rounds()[1].shares["s4"]
        assert history.reserve("mean") == number + 1


def test_a_foreign_file_is_no_history(tmp_path: Path) -> None:
    path = fleet(tmp_path / "f.csv", NORMAL)
    done = invoke(path, "--function", "mean", "--history", str(path))
    assert done.exit_code == 3
    assert "history" in done.output


def test_report_shows_what_was_cut_off_and_weights_over_time(tmp_path: Path) -> None:
    bad: list[float | str] = [*NORMAL]
    bad[3] = 190
    path, out = fleet(tmp_path / "f.csv", bad), tmp_path / "out"
    options = ["--function", "trimmed-mean", "--history", str(tmp_path / "r.db"), "--out", str(out)]
    answer(path, *options)
    report = answer(path, *options)
    assert report["out"] == str(out / "report.html")
    page = (out / "report.html").read_text()
    for said in ("What was counted and what was cut off", "Weights over time", "<td>far</td>"):
        assert said.replace("<td>", '<td class="text">') in page
    assert "opened the figure only" in page


def test_processes_give_the_same_figure(tmp_path: Path) -> None:
    """Three processes with mutual TLS, told the round by message."""
    path = fleet(tmp_path / "f.csv", NORMAL[:8])
    done = invoke(path, "--function", "mean", "--json", "--processes")
    assert done.exit_code == 0, done.output
    report = json.loads(done.output)
    assert "processes" in report["mode"]
    assert report["value"] == pytest.approx(np.mean(NORMAL[:8]), rel=1e-6)
