"""Odd input that is nobody's fault: it planned, or refused in words; nothing is overwritten."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from roles.sealed.sealed_days import small
from veilgrid.cli import main
from veilgrid.report.folders import open_scenario, save_scenario


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run the command in this process; return its exit code, stdout and stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    told = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, told.out, told.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "six-bus", "--scheme", "masked"),
        ("run", "six-bus", "--scheme", "sealed"),
        ("compare", "six-bus"),
        ("attack", "six-bus", "--case", "refusing-site"),
        ("audit", "six-bus"),
        ("simulate", "six-bus"),
        ("aggregate", __file__, "--function", "sum"),
        ("market", __file__),
        ("capacity", __file__),
    ],
)
def test_a_negative_seed_is_refused_in_words(capsys, arguments) -> None:
    """A seed starts a generator, which takes none below zero: a person got a traceback."""
    code, out, err = call(capsys, *arguments, "--seed", -1, "--json")
    assert (code, out) == (2, "")
    assert "--seed" in err


@pytest.mark.parametrize("name", ["../elsewhere", "/elsewhere", "a/b", "..", "a\\b"])
def test_a_name_never_leads_out_of_the_folder_of_results(capsys, tmp_path, name: str) -> None:
    """The name stands in a file that somebody else may have written; a folder is named after it."""
    scenario = open_scenario("six-bus")
    odd = save_scenario(replace(scenario, name=name), tmp_path / "in" / "odd")
    target = tmp_path / "out"
    code, out, _ = call(
        capsys, "run", odd, "six-bus", "--scheme", "alone", "--json", "--out", target
    )
    assert code == 0
    assert len(json.loads(out)["days"]) == 2
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in", "out"]
    reports = sorted(file.parent for file in target.glob("*/report.html"))
    assert len(reports) == 2
    assert all(folder.parent == target for folder in reports)


def test_days_of_one_name_do_not_replace_each_other(capsys, tmp_path) -> None:
    target = tmp_path / "out"
    names = ("six-bus", "six-bus", "six-bus")
    call(capsys, "run", *names, "--scheme", "alone", "--json", "--out", target)
    assert sorted(entry.name for entry in target.iterdir()) == [
        "six-bus",
        "six-bus-2",
        "six-bus-3",
    ]


def test_a_run_with_a_ledger_can_be_run_again_into_its_folder(capsys, tmp_path) -> None:
    """The ledger's export lies in the run's folder and is ours to replace."""
    arguments = ("run", "six-bus", "--scheme", "ledger", "--json", "--out", tmp_path / "day")
    for _ in range(2):
        code, _, err = call(capsys, *arguments)
        assert code == 0, err
    assert (tmp_path / "day" / "ledger.json").is_file()


def test_a_folder_that_cannot_take_results_is_refused_before_planning(capsys, tmp_path) -> None:
    """A day may take minutes; nobody wants to hear afterwards that its results are lost."""
    target = tmp_path / "papers"
    target.mkdir()
    (target / "thesis.tex").write_text("years of work")
    for verb in ("run", "compare"):
        folder = target if verb == "run" else target / "thesis.tex"
        code, out, err = call(capsys, verb, "six-bus", "--json", "--out", folder)
        assert (code, out) == (2 if verb == "run" else 3, "")
        assert "converged" not in err
        assert "thesis.tex" in err


def test_compare_takes_a_day_on_which_nobody_has_a_choice(capsys, tmp_path) -> None:
    """Attacks need somebody to attack with; the comparison does not."""
    scenario = replace(open_scenario("six-bus"), devices=())
    folder = save_scenario(scenario, tmp_path / "rigid")
    arguments = ("compare", folder, "--schemes", "alone,exchange,masked", "--json")
    code, out, err = call(capsys, *arguments)
    assert code in (0, 1), err
    rows = json.loads(out)["schemes"]
    assert [row["scheme"] for row in rows] == ["alone", "exchange", "masked"]
    assert all(row["attacks"] == [] for row in rows)


@pytest.mark.parametrize(
    ("scheme", "case"),
    [
        ("sealed", "dishonest-site"),
        ("masked", "colluding-dispatcher"),
        ("central", "refusing-site"),
    ],
)
def test_attacking_a_day_without_a_plan_tells_which_limits_stand_in_its_way(
    capsys, tmp_path, scheme: str, case: str
) -> None:
    """There was a word on stderr and no JSON: whoever reads it could not tell this from a fault."""
    folder = save_scenario(small(2, rating=0.05), tmp_path / "narrow")
    arguments = ("attack", folder, "--case", case, "--scheme", scheme)
    code, out, _ = call(capsys, *arguments, "--json")
    found = json.loads(out)
    assert code == 1
    assert (found["outcome"], found["attacker_gain"], found["culprit"]) == ("prevented", 0.0, None)
    assert (found["case"], found["scheme"]) == (case, scheme)
    assert found["cost_change_percent"] == 0.0
    assert {(one["limit"], one["bus"]) for one in found["infeasible"]} == {("rating", "a")}
    if scheme == "central":
        code, out, _ = call(capsys, *arguments)
        assert code == 1
        assert "bus a, interval" in out


def test_a_day_on_which_energy_is_free_can_be_sealed(capsys, tmp_path) -> None:
    """Prices on shares are counted in parts of the highest tariff; there is none."""
    scenario = open_scenario("six-bus")
    nothing = np.zeros(scenario.horizon.interval_count)
    folder = save_scenario(replace(scenario, buy=nothing, sell=nothing), tmp_path / "free")
    cost = {}
    for scheme in ("central", "sealed"):
        code, out, err = call(capsys, "run", folder, "--scheme", scheme, "--json")
        assert code == 0, err
        cost[scheme] = json.loads(out)["cost"]
    assert cost["sealed"] == pytest.approx(cost["central"], rel=1e-4)


def test_an_optimum_of_nothing_has_no_share(capsys, tmp_path) -> None:
    """Rounding divided by rounding was printed as a gap of many per cent."""
    scenario = open_scenario("six-bus")
    nothing = np.zeros(scenario.horizon.interval_count)
    folder = save_scenario(replace(scenario, buy=nothing, sell=nothing), tmp_path / "free")
    arguments = ("compare", folder, "--schemes", "central,exchange", "--no-attacks", "--json")
    _, out, _ = call(capsys, *arguments)
    for row in json.loads(out)["schemes"]:
        assert row["gap_percent"] is None or abs(row["gap_percent"]) < 0.01


def test_a_folder_that_is_not_there_is_named_once(capsys, tmp_path) -> None:
    missing = tmp_path / "nowhere"
    _, _, err = call(capsys, "run", missing, "six-bus", "--json")
    assert err.count(str(missing)) == 1


def test_a_path_that_cannot_be_looked_at_is_named_in_words(capsys, tmp_path) -> None:
    """Like a folder without permission: the system refuses to say whether it is there."""
    odd = tmp_path / ("x" * 300)
    for arguments in (("run", odd), ("compare", odd), ("report", odd), ("run", odd, "six-bus")):
        code, out, err = call(capsys, *arguments, "--json")
        assert (code, out) == (2, "")
        assert "xxx" in err
        assert "too long" in err
    for verb in ("run", "compare"):
        code, out, err = call(capsys, verb, "six-bus", "--json", "--out", odd)
        assert (code, out) == (3, "")
        assert "--out" in err
        assert "converged" not in err


def test_a_full_disk_behind_stdout_is_told_in_words() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with full.open("w") as sink:
        done = subprocess.run(
            [sys.executable, "-m", "veilgrid", "run", "six-bus", "--scheme", "alone", "--json"],
            stdout=sink,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 3
    assert done.stderr.startswith("error: No space left")
    assert done.stderr.count("\n") == 1


def test_resume_needs_a_folder_and_leaves_others_alone(capsys, tmp_path) -> None:
    """What is there may be somebody's work, not what a run of ours left."""
    code, out, err = call(capsys, "run", "six-bus", "--resume", "--json")
    assert (code, out) == (2, "")
    assert "--out" in err
    beside = tmp_path / "day.unfinished"
    beside.mkdir()
    (beside / "thesis.tex").write_text("years of work")
    for more in ((), ("--resume",)):
        code, out, err = call(capsys, "run", "six-bus", "--json", "--out", tmp_path / "day", *more)
        assert (code, out) == (2, "")
        assert "day.unfinished" in err
    assert (beside / "thesis.tex").read_text() == "years of work"
