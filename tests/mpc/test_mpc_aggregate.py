"""``veilgrid aggregate``: the JSON contract, rejected rows, and what is refused with reasons."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from veilgrid.cli._aggregate import aggregate

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
        (["--function", "cvar"], "not offered yet"),
        (["--function", "sum", "--epsilon", "1"], "--epsilon"),
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
        "a,x,t,0,1\n"
        "b,1,t,5,1\n"
        "a,1,t,0,2\n"
        ",1,t,0,2\n"
        "c,inf,t,0,2\n"
        "d,1,t,,2\n"
        "e,1,t,0,3\n"
        "e,1,t,0,3\n"
    )
    done = invoke(path, "--function", "sum")
    assert done.exit_code == 2
    for where in ("row 2, column value", "row 3, column lower", "row 5, column source"):
        assert where in done.output
    for where in ("row 6, column value", "row 7, column lower", "e appears twice"):
        assert where in done.output


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
    path.write_text("source,value,tier,lower,upper\na,1,t,0,1e13\nb,1,t,0,1\n")
    done = invoke(path, "--function", "sum")
    assert done.exit_code == 2
    assert "40 bits" in done.output
