"""Every key of the contract of ``run`` and ``compare``, for every scheme and every way to end."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from veilgrid.admm.exchange import ExchangeSettings, plan_exchange
from veilgrid.admm.neighbour import NeighbourSettings, plan_neighbour
from veilgrid.cli import cli
from veilgrid.errors import InputError
from veilgrid.report.folders import open_scenario, save_scenario
from veilgrid.roles.operator import SCHEMES

NUMBER, TEXT, FLAG = (int, float), (str,), (bool,)
RUN = {
    "scheme": TEXT,
    "scenario": TEXT,
    "status": TEXT,
    "cost": NUMBER,
    "iterations": (int,),
    "primal_residual": NUMBER,
    "dual_residual": NUMBER,
    "seconds": NUMBER,
    "messages": (int,),
    "bytes": (int,),
    "certificate": {"accepted": FLAG, "primal": NUMBER, "dual": NUMBER, "gap": NUMBER},
    "ac_check": {"passed": FLAG, "vm_min_pu": NUMBER, "vm_max_pu": NUMBER, "loading_max": NUMBER},
    "settlement": {"sum": NUMBER, "individually_rational": FLAG, "sites": (list,)},
}
SITE = {"site": TEXT, "payment": NUMBER, "cost": NUMBER, "cost_alone": NUMBER}
COMPARED = {"saving_percent": NUMBER, "gap_percent": NUMBER, "exposed": TEXT}
WITHOUT_PLAN = {
    "cost",
    "primal_residual",
    "dual_residual",
    "primal",
    "dual",
    "gap",
    "vm_min_pu",
    "vm_max_pu",
    "loading_max",
    "sum",
    "individually_rational",
    "gap_percent",
    "saving_percent",
}
"""Keys that may be null, and only where there is no plan."""

PLAIN = [scheme for scheme in SCHEMES if scheme != "sealed"]
"""``sealed`` takes minutes a day; its own tests hold it to the same keys."""
COORDINATED = sorted(set(PLAIN) - {"alone"})
QUICK = sorted(set(PLAIN) - {"neighbour", "neighbour-ledger"})
"""Schemes that find out soon that a day is infeasible."""


def invoked(*arguments: object) -> tuple[int, dict]:
    """Run the installed command's code; return its exit code and its one JSON object."""
    done = CliRunner().invoke(cli, [str(a) for a in arguments], standalone_mode=False)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return int(done.return_value), found


def check(found: dict, expected: dict, *, has_plan: bool) -> None:
    for key, kinds in expected.items():
        assert key in found, key
        value = found[key]
        if isinstance(kinds, dict):
            assert isinstance(value, dict), key
            check(value, kinds, has_plan=has_plan)
        elif value is None:
            assert not has_plan, f"{key} is null although there is a plan"
            assert key in WITHOUT_PLAN, f"{key} is null"
        else:
            assert isinstance(value, kinds), (key, value)
            assert isinstance(value, bool) == (kinds is FLAG), (key, value)


def check_run(found: dict, *, has_plan: bool = True) -> None:
    check(found, RUN, has_plan=has_plan)
    sites = found["settlement"]["sites"]
    assert bool(sites) == has_plan
    for site in sites:
        check(site, SITE, has_plan=True)
    if not has_plan:
        assert found["certificate"]["accepted"] is False
        assert found["ac_check"]["passed"] is False


@pytest.fixture
def infeasible(tmp_path: Path) -> Path:
    scenario = open_scenario("six-bus")
    network = replace(scenario.network, voltage_min_pu=1.015, voltage_max_pu=1.03)
    return save_scenario(replace(scenario, network=network), tmp_path / "infeasible")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the iterative schemes stop long before they are done."""

    def exchange(day, limits, start, progress):
        settings = ExchangeSettings(iteration_count_max=3)
        return plan_exchange(day, limits, settings, start=start, progress=progress)

    monkeypatch.setitem(SCHEMES, "exchange", exchange)
    few = NeighbourSettings(iteration_count_max=3)
    shortened = partial(plan_neighbour, settings=few)

    def neighbour(day, limits, _start, progress):
        return shortened(day, limits, progress=progress)

    monkeypatch.setitem(SCHEMES, "neighbour", neighbour)


@pytest.mark.parametrize("scheme", sorted([*COORDINATED, "sealed"]))
def test_an_infeasible_day_has_every_key(scheme: str, infeasible: Path) -> None:
    """A script reads the same keys, whoever found out that there is no plan."""
    code, found = invoked("run", infeasible, "--scheme", scheme, "--json")
    assert code == 1
    assert found["status"] == "infeasible"
    assert found["scheme"] == scheme
    check_run(found, has_plan=False)
    assert found["infeasible"]
    shortfalls = [row["short_by"] for row in found["infeasible"] if row["unit"] == "pu"]
    assert shortfalls == sorted(shortfalls, reverse=True)


def test_a_day_alone_heeds_no_limit_and_says_that_ac_refuses_it(infeasible: Path) -> None:
    _, found = invoked("run", infeasible, "--scheme", "alone", "--json")
    assert found["status"] == "converged"
    check_run(found)
    assert found["ac_check"]["passed"] is False


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("scheme", ["exchange", "neighbour"])
def test_a_run_that_reached_its_iteration_limit_has_every_key(scheme: str) -> None:
    """What was reached is handed over, and nothing calls it converged."""
    code, found = invoked("run", "six-bus", "--scheme", scheme, "--json")
    assert code == 1
    assert found["status"] == "iteration_limit"
    assert found["iterations"] == 3
    check_run(found)


@pytest.mark.parametrize("scheme", QUICK)
def test_several_days_have_every_key_and_totals(
    scheme: str, infeasible: Path, tmp_path: Path
) -> None:
    """Totals add up; a day without a plan leaves no total cost but does not stop the others."""
    plain = save_scenario(replace(open_scenario("six-bus"), name="plain"), tmp_path / "plain")
    code, found = invoked("run", plain, infeasible, "--scheme", scheme, "--json")
    one, other = found["days"]
    check_run(one)
    check_run(other, has_plan=scheme == "alone")
    assert one["status"] == "converged"
    for key in ("iterations", "messages", "bytes", "seconds"):
        assert found[key] == pytest.approx(one[key] + other[key])
    assert found["scheme"] == scheme
    if scheme == "alone":
        assert found["cost"] == pytest.approx(one["cost"] + other["cost"])
        return
    assert code == 1
    assert found["cost"] is None
    assert found["status"] == "infeasible"


def test_bench_dispatch_sets_each_scheme_beside_central() -> None:
    """A reader of the rows finds who was measured, at which size, against whom."""
    code, found = invoked(
        "bench", "dispatch", "--scenario", "six-bus", "--sites", "5,10", "--schemes", "exchange",
        "--json",
    )  # fmt: skip
    assert code == 0
    assert found["name"] == "dispatch"
    assert [row["what"] for row in found["rows"]] == ["exchange, 6 sites", "exchange, 11 sites"]
    for row in found["rows"]:
        check(row, {"what": TEXT, "unit": TEXT}, has_plan=True)
        check(row, dict.fromkeys(("ours", "peer", "ratio"), NUMBER), has_plan=True)
        assert row["unit"] == "s"
        assert row["peer_name"] == "central"
        assert row["ratio"] == pytest.approx(row["peer"] / row["ours"])
        assert abs(row["gap"]) <= 1e-4


def test_bench_dispatch_refuses_what_it_does_not_know() -> None:
    arguments = ["bench", "dispatch", "--sites", "60,many,0", "--schemes", "exchange,majority"]
    done = CliRunner().invoke(cli, arguments, standalone_mode=False)
    assert isinstance(done.exception, InputError)
    assert [finding.where for finding in done.exception.findings] == [
        "--sites",
        "--sites",
        "--schemes",
    ]


def test_compare_has_every_key_for_every_scheme(infeasible: Path) -> None:
    for scenario, schemes, has_plan in (
        ("six-bus", PLAIN, True),
        (infeasible, QUICK, False),
    ):
        _, found = invoked("compare", scenario, "--schemes", ",".join(schemes), "--json")
        assert [row["scheme"] for row in found["schemes"]] == schemes
        assert isinstance(found["scenario"], str)
        for row in found["schemes"]:
            known = has_plan or row["scheme"] == "alone"
            check_run(row, has_plan=known)
            check(row, COMPARED, has_plan=has_plan)
