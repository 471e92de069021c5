"""The command line keeps its contract: keys, types, exit codes, and nothing else on stdout."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from veilgrid.cli import main
from veilgrid.cli._day import _schemes
from veilgrid.cli._node import _is_wanted
from veilgrid.report.folders import open_scenario, save_scenario
from veilgrid.roles.operator import SCHEMES
from veilgrid.roles.sealed.ledger_message import Recorded

NUMBER = (int, float)
CERTIFICATE = {"accepted": bool, "primal": NUMBER, "dual": NUMBER, "gap": NUMBER}
AC_CHECK = {"passed": bool, "vm_min_pu": NUMBER, "vm_max_pu": NUMBER, "loading_max": NUMBER}
SETTLEMENT = {"sum": NUMBER, "individually_rational": bool, "sites": list}
SITE = {"site": str, "payment": NUMBER, "cost": NUMBER, "cost_alone": NUMBER}
RUN = {
    "scheme": str,
    "scenario": str,
    "status": str,
    "cost": NUMBER,
    "iterations": int,
    "primal_residual": NUMBER,
    "dual_residual": NUMBER,
    "seconds": NUMBER,
    "certificate": dict,
    "ac_check": dict,
    "settlement": dict,
    "messages": int,
    "bytes": int,
}
STATUSES = {"converged", "iteration_limit", "infeasible", "aborted"}


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run the command in this process; return its exit code, stdout and stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    told = capsys.readouterr()
    code = ended.value.code
    assert isinstance(code, int)
    return code, told.out, told.err


def no_constant(name: str) -> None:
    pytest.fail(f"{name} is no JSON")


def parsed(text: str) -> dict:
    """Exactly one JSON object on one line, in the JSON of the standard."""
    assert text.endswith("}\n")
    assert text.count("\n") == 1
    found = json.loads(text, parse_constant=no_constant)
    assert isinstance(found, dict)
    return found


def assert_shape(found: dict, expected: dict) -> None:
    for key, kind in expected.items():
        assert key in found, key
        assert isinstance(found[key], kind), (key, found[key])
        is_flag = kind is bool
        assert isinstance(found[key], bool) == is_flag, (key, found[key])


def assert_run(found: dict, *, has_loading: bool = True) -> None:
    """Check the keys of ``run`` of a day that has a plan."""
    assert_shape(found, RUN)
    assert found["status"] in STATUSES
    assert_shape(found["certificate"], CERTIFICATE)
    expected = dict(AC_CHECK)
    if not has_loading:
        expected.pop("loading_max")
        assert found["ac_check"]["loading_max"] is None
    assert_shape(found["ac_check"], expected)
    assert_shape(found["settlement"], SETTLEMENT)
    assert found["settlement"]["sites"]
    for site in found["settlement"]["sites"]:
        assert_shape(site, SITE)
    assert found["settlement"]["sum"] == 0
    total = math.fsum(site["payment"] for site in found["settlement"]["sites"])
    assert total == pytest.approx(0.0, abs=1e-6)
    costs = math.fsum(site["cost"] for site in found["settlement"]["sites"])
    assert costs == pytest.approx(found["cost"], abs=1e-4)


@pytest.fixture
def infeasible(tmp_path: Path) -> Path:
    """A day whose lower voltage limit nobody can keep."""
    scenario = open_scenario("six-bus")
    network = replace(scenario.network, voltage_min_pu=1.015, voltage_max_pu=1.03)
    return save_scenario(replace(scenario, network=network), tmp_path / "infeasible")


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A folder with three faults in three files."""
    folder = save_scenario(open_scenario("six-bus"), tmp_path / "broken")
    for name, old, new in (
        ("devices.csv", "pv-farm,farm,pv", "pv-farm,moon,pv"),
        ("buses.csv", "mill,customer", "mill,castle"),
        ("scenario.toml", "interval_minutes = 60", 'interval_minutes = "long"'),
    ):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))
    return folder


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_run_prints_one_object_with_the_keys_of_the_contract(capsys, scheme: str) -> None:
    """A script that reads it must not meet a missing key or a line of talk."""
    code, out, _ = call(capsys, "run", "six-bus", "--scheme", scheme, "--json")
    found = parsed(out)
    assert code == 0
    assert_run(found)
    assert found["scheme"] == scheme
    assert found["scenario"] == "six-bus"
    assert found["status"] == "converged"
    assert found["certificate"]["accepted"]


def test_run_is_sealed_unless_told_otherwise_and_says_what_matters(capsys) -> None:
    """The short table names cost, saving, verdicts, who sees what and what to do next."""
    code, out, _ = call(capsys, "run", "six-bus")
    assert code == 0
    words = ("scheme sealed", "status", "converged", "saving", "certificate", "AC power flow")
    for word in (*words, "collude", "one process", "--out", "--scheme exchange"):
        assert word in out
    with pytest.raises(json.JSONDecodeError):
        json.loads(out)


def test_a_process_whose_plan_the_power_flow_refuses_does_not_end_as_wanted() -> None:
    """Exit code 0 tells whoever started it that the plan may be carried out."""
    sound = {"low": [], "high": [], "over": [], "moving": 0}

    def told(electrical: dict) -> Recorded:
        return Recorded({"status": "converged", "certificate": {"electrical": electrical}})

    assert _is_wanted(told(sound))
    assert not _is_wanted(told({**sound, "low": [[3, 0]]}))
    assert _is_wanted(Recorded({"status": "closed"}))
    assert not _is_wanted(Recorded({"status": "refused"}))


def test_a_coordinator_sees_more_and_says_so(capsys) -> None:
    code, out, _ = call(capsys, "run", "six-bus", "--scheme", "exchange")
    assert code == 0
    assert "each site's net demand" in out
    assert "one process" not in out


def test_the_coordination_names_the_scheme(capsys) -> None:
    _, out, _ = call(capsys, "run", "six-bus", "--coordination", "neighbour", "--json")
    assert parsed(out)["scheme"] == "neighbour"


def test_a_recorded_day_leaves_a_ledger_that_verify_accepts(capsys, tmp_path) -> None:
    arguments = ("run", "six-bus", "--scheme", "ledger", "--out", tmp_path / "day", "--json")
    assert call(capsys, *arguments)[0] == 0
    code, out, _ = call(capsys, "verify", tmp_path / "day" / "ledger.json", "--json")
    assert code == 0
    assert parsed(out)["records"] > 20


def test_masked_runs_without_a_coordinator(capsys) -> None:
    """The contract's two ways of masked; each says how it was coordinated."""
    found = []
    for own in ("neighbour", "exchange"):
        code, out, _ = call(
            capsys, "run", "six-bus", "--scheme", "masked", "--coordination", own, "--json"
        )
        assert code == 0
        found.append(json.loads(out))
    assert [each["coordination"] for each in found] == ["neighbour", "exchange"]
    assert found[0]["cost"] == pytest.approx(found[1]["cost"], rel=4e-4)
    assert found[0]["certificate"]["accepted"]


def test_a_coordination_that_contradicts_the_scheme_is_refused(capsys) -> None:
    code, out, err = call(
        capsys, "run", "six-bus", "--scheme", "central", "--coordination", "neighbour", "--json"
    )
    assert code == 2
    assert out == ""
    assert "--coordination" in err


def test_an_infeasible_day_ends_with_one_and_names_bus_and_interval(capsys, infeasible) -> None:
    """A person must learn what to relax; a script must see that there is no plan."""
    code, out, _ = call(capsys, "run", infeasible, "--scheme", "central", "--json")
    found = parsed(out)
    assert code == 1
    assert set(RUN) <= set(found)
    assert found["status"] == "infeasible"
    assert found["cost"] is None
    assert found["certificate"]["accepted"] is False
    assert found["ac_check"]["passed"] is False
    assert found["settlement"] == {"sum": None, "individually_rational": None, "sites": []}
    assert found["infeasible"]
    buses = {bus.name for bus in open_scenario("six-bus").network.buses}
    for row in found["infeasible"]:
        assert row["bus"] in buses
        assert 0 <= row["interval"] < 24
        assert row["limit"] in ("voltage_min", "voltage_max", "rating")
        assert row["short_by"] > 0.0
    code, out, _ = call(capsys, "run", infeasible, "--scheme", "central")
    assert code == 1
    assert "interval" in out
    assert "relax" in out


def test_a_broken_folder_ends_with_two_and_every_finding(capsys, broken, tmp_path) -> None:
    """One finding at a time would cost a person as many runs as there are faults."""
    target = tmp_path / "out"
    code, out, err = call(capsys, "run", broken, "--json", "--out", target)
    assert code == 2
    assert out == ""
    for name in ("devices.csv", "buses.csv", "scenario.toml"):
        assert name in err, err
    assert "Traceback" not in err
    assert not target.exists()


def test_findings_of_several_folders_come_together_with_their_names(capsys, broken) -> None:
    code, out, err = call(capsys, "run", "six-bus", broken, "no-such-day", "--json")
    assert (code, out) == (2, "")
    assert "no-such-day" in err
    assert str(broken) in err


@pytest.mark.parametrize("verb", ["run", "compare", "report"])
def test_a_folder_that_is_not_there_ends_with_two(capsys, tmp_path, verb: str) -> None:
    code, out, err = call(capsys, verb, tmp_path / "nowhere", "--json")
    assert (code, out) == (2, "")
    assert "nowhere" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "six-bus", "--scheme", "majority"),
        ("run", "six-bus", "--coordination", "shouting"),
        ("run", "--no-such-option"),
        ("run", "six-bus", "--seed", "many"),
        ("compare", "six-bus", "--schemes", "central,majority"),
        ("compare", "six-bus", "--schemes", ","),
        ("no-such-verb",),
        ("report",),
    ],
)
def test_what_the_command_does_not_know_ends_with_two_and_a_hint(capsys, arguments) -> None:
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.strip()
    assert "Traceback" not in err


def test_an_unknown_scheme_is_answered_with_those_known(capsys) -> None:
    for arguments in (
        ("run", "six-bus", "--scheme", "majority"),
        ("compare", "six-bus", "--schemes", "majority"),
    ):
        _, _, err = call(capsys, *arguments)
        assert all(scheme in err for scheme in SCHEMES)


def test_several_days_come_with_totals_and_start_warm(capsys, tmp_path) -> None:
    """Days add up; each is whole; the second starts where the first ended."""
    scenario = open_scenario("six-bus")
    first = save_scenario(replace(scenario, name="monday"), tmp_path / "a")
    second = save_scenario(replace(scenario, name="tuesday"), tmp_path / "b")
    out_folder = tmp_path / "runs"
    code, out, _ = call(
        capsys, "run", first, second, "--scheme", "exchange", "--json", "--out", out_folder
    )
    found = parsed(out)
    assert code == 0
    assert [day["scenario"] for day in found["days"]] == ["monday", "tuesday"]
    for day in found["days"]:
        assert_run(day)
    for key in ("cost", "iterations", "messages", "bytes", "seconds"):
        assert found[key] == pytest.approx(sum(day[key] for day in found["days"]))
    assert found["status"] == "converged"
    assert found["scheme"] == "exchange"
    assert found["days"][1]["iterations"] <= found["days"][0]["iterations"]
    for day in ("monday", "tuesday"):
        assert (out_folder / day / "report.html").is_file()


def test_the_status_of_several_days_is_that_of_the_one_that_failed(capsys, infeasible) -> None:
    code, out, _ = call(capsys, "run", "six-bus", infeasible, "--scheme", "central", "--json")
    found = parsed(out)
    assert code == 1
    assert found["status"] == "infeasible"
    assert found["cost"] is None
    assert [day["status"] for day in found["days"]] == ["converged", "infeasible"]


def test_out_holds_the_results_and_the_report_can_be_rendered_anew(capsys, tmp_path) -> None:
    target = tmp_path / "run"
    code, out, _ = call(capsys, "run", "six-bus", "--scheme", "alone", "--json", "--out", target)
    assert code == 0
    assert json.loads((target / "run.json").read_text()) == parsed(out)
    page = target / "report.html"
    assert "six-bus" in page.read_text()
    page.unlink()
    code, out, _ = call(capsys, "report", target, "--json")
    assert code == 0
    assert parsed(out) == {"path": str(page)}
    assert page.is_file()
    code, out, _ = call(capsys, "report", target)
    assert (code, out) == (0, f"report: {page}\n")


def test_out_of_an_infeasible_day_is_whole_too(capsys, infeasible, tmp_path) -> None:
    """What is known of a failed day helps to mend it."""
    target = tmp_path / "run"
    code, out, _ = call(capsys, "run", infeasible, "--scheme", "central", "--json", "--out", target)
    assert code == 1
    assert json.loads((target / "run.json").read_text()) == parsed(out)
    assert (target / "report.html").is_file()


def test_a_folder_of_others_is_left_as_it_is(capsys, tmp_path) -> None:
    """Nothing of ours may be left half-written beside somebody's thesis."""
    target = tmp_path / "papers"
    target.mkdir()
    (target / "thesis.tex").write_text("years of work")
    arguments = ("run", "six-bus", "--scheme", "alone", "--json", "--out", target)
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert "thesis.tex" in err
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["papers", "thesis.tex"]


def test_a_file_where_the_folder_should_be_is_left_as_it_is(capsys, tmp_path) -> None:
    target = tmp_path / "results"
    target.write_text("not yours")
    arguments = ("run", "six-bus", "--scheme", "alone", "--json", "--out", target)
    code, out, _ = call(capsys, *arguments)
    assert code in (2, 3)
    assert out == ""
    assert target.read_text() == "not yours"
    assert list(tmp_path.iterdir()) == [target]


def test_compare_sets_the_schemes_side_by_side(capsys, tmp_path) -> None:
    target = tmp_path / "all"
    names = ["exchange", "alone", "central"]
    code, out, _ = call(
        capsys, "compare", "six-bus", "--schemes", ",".join(names), "--json", "--out", target
    )
    found = parsed(out)
    assert code == 0
    assert found["scenario"] == "six-bus"
    assert [row["scheme"] for row in found["schemes"]] == names
    for row in found["schemes"]:
        assert_run(row)
        assert_shape(row, {"saving_percent": NUMBER, "gap_percent": NUMBER, "exposed": str})
        assert (target / row["scheme"] / "report.html").is_file()
    rows = {row["scheme"]: row for row in found["schemes"]}
    assert rows["central"]["gap_percent"] == 0.0
    assert rows["alone"]["saving_percent"] == pytest.approx(0.0, abs=1e-6)
    assert abs(rows["exchange"]["gap_percent"]) <= 0.01
    assert rows["central"]["saving_percent"] > 1.0
    assert (target / "compare.html").is_file()


def test_compare_of_a_large_day_leaves_slow_schemes_out_and_says_so(capsys, monkeypatch) -> None:
    """A bare `compare` of the bundled day would otherwise run for many minutes."""
    monkeypatch.setattr("veilgrid.cli._day._SETPOINTS_MAX", 100)
    code, out, err = call(capsys, "compare", "six-bus", "--no-attacks", "--json")
    found = parsed(out)
    ran = [row["scheme"] for row in found["schemes"]]
    assert code == 0
    assert found["left_out"] == ["neighbour-ledger", "sealed"]
    assert "masked: converged" in err
    assert sorted(ran + found["left_out"]) == sorted(SCHEMES)
    assert all(name in err for name in found["left_out"])
    few = ("compare", "six-bus", "--schemes", "alone,central", "--no-attacks", "--json")
    code, out, err = call(capsys, *few)
    assert parsed(out)["left_out"] == []
    assert "left out" not in err


def test_compare_takes_all_schemes_by_one_word() -> None:
    assert _schemes("all") == list(SCHEMES)


def test_compare_measures_against_central_though_it_is_not_shown(capsys) -> None:
    code, out, _ = call(capsys, "compare", "six-bus", "--schemes", "alone", "--json")
    found = parsed(out)
    assert code == 0
    assert [row["scheme"] for row in found["schemes"]] == ["alone"]
    assert found["schemes"][0]["gap_percent"] > 1.0


def test_compare_of_an_infeasible_day_ends_with_one(capsys, infeasible) -> None:
    arguments = ("compare", infeasible, "--schemes", "alone,central", "--json")
    code, out, _ = call(capsys, *arguments)
    found = parsed(out)
    assert code == 1
    rows = {row["scheme"]: row for row in found["schemes"]}
    assert rows["central"]["cost"] is None
    assert rows["central"]["gap_percent"] is None


def test_compare_prints_a_table_for_a_person(capsys) -> None:
    code, out, _ = call(capsys, "compare", "six-bus", "--schemes", "alone,central")
    assert code == 0
    assert "above central" in out
    assert "the operator sees every bid" in out


def test_a_day_without_ratings_and_devices_is_printed_as_json(capsys, tmp_path) -> None:
    """Infinite and undefined figures are null: NaN is no JSON."""
    scenario = open_scenario("six-bus")
    branches = tuple(replace(b, rating_mva=np.inf) for b in scenario.network.branches)
    network = replace(scenario.network, branches=branches, voltage_min_pu=None, voltage_max_pu=None)
    bare = replace(scenario, network=network, devices=())
    folder = save_scenario(bare, tmp_path / "bare")
    for scheme in ("exchange", "sealed"):
        code, out, _ = call(capsys, "run", folder, "--scheme", scheme, "--json")
        assert code == 0
        found = parsed(out)
        assert found["ac_check"]["loading_max"] is None
        assert found["iterations"] == 1
        for key in ("primal_residual", "dual_residual"):  # Nothing was measured; this is certified.
            assert 0.0 <= found[key] <= 1e-6


def test_a_seed_is_taken_by_every_verb_and_changes_nothing(capsys) -> None:
    """Under `sealed` masks round the last digits of residuals: there the same seed, the same."""
    for scheme, seeds in (("exchange", (1, 2)), ("sealed", (1, 1))):
        found = []
        for seed in seeds:
            arguments = ("run", "six-bus", "--scheme", scheme, "--json", "--seed", seed)
            found.append({**parsed(call(capsys, *arguments)[1]), "seconds": None})
        assert found[0] == found[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--help",), ("run", "compare", "report", "import", "bench")),
        (("run", "--help"), ("--scheme", "--coordination", "--out", "--seed", "--json")),
        (("compare", "--help"), ("--schemes", "--out", "--json")),
        (("report", "--help"), ("RUN", "--json")),
        (("import", "--help"), ("simbench", "pandapower")),
        (("--version",), ("version",)),
    ],
)
def test_help_says_what_there_is(capsys, arguments, words) -> None:
    code, out, err = call(capsys, *arguments)
    assert (code, err) == (0, "")
    for word in words:
        assert word in out
