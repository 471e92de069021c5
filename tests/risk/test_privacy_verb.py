"""``veilgrid aggregate --epsilon``: what a person asks for is what is released and counted."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from veilgrid.cli import main
from veilgrid.cli._private import Privacy, Where, privacy_of, private_aggregate
from veilgrid.cli._readings import Readings
from veilgrid.errors import InputError
from veilgrid.risk.accountant import Charge
from veilgrid.risk.aggregate import Question, Source
from veilgrid.risk.privacy import Budget, Terms
from veilgrid.risk.trust import TrustSettings

HERE = Where(parties=3, degree=1)
NOTHING = dict.fromkeys(
    ("epsilon", "delta", "budget", "day", "daily_epsilon", "noise", "releases", "history")
)


def readings(count: int, bad: bool = True) -> Readings:
    generator = np.random.default_rng(4)
    tiers = ("dso", "household")
    sources = tuple(Source(f"s{k}", tiers[k % 2], 0.0, 10.0) for k in range(count))
    values: list[float | None] = generator.uniform(2, 8, count).round(3).tolist()
    if bad:
        values[0], values[1] = 11.0, None
    return Readings(sources, tuple(values))


def released(
    function: str, privacy: Privacy, count: int = 30, **changed: Any
) -> tuple[dict[str, Any], list[str]]:
    told: list[str] = []
    question = Question(function=function, **changed)
    read = readings(count)
    report, _ = private_aggregate(read, question, privacy, HERE, TrustSettings(), told.append)
    return report, told


@pytest.mark.parametrize("function", ["sum", "mean", "weighted-mean"])
def test_a_noisy_figure_says_what_it_promises(function: str) -> None:
    report, told = released(function, Privacy(epsilon=1.0, delta=1e-6))
    privacy = report["privacy"]
    assert (privacy["epsilon"], privacy["delta"]) == (1.0, 1e-6)
    assert privacy["noise_sd"] > 0
    assert privacy["budget"] is None
    assert report["accepted"] == 28
    assert {one["source"] for one in report["rejected"]} == {"s0", "s1"}
    low, high = report["confidence_interval"]
    assert high - low == pytest.approx(2 * 1.96 * privacy["noise_sd"], rel=1e-3)
    values = [v for v in readings(30).values[2:] if v is not None]
    truth = sum(values) if function == "sum" else sum(values) / 28
    assert abs(report["value"] - truth) < 6 * privacy["noise_sd"] + (function == "weighted-mean")
    # One of 30 within 0..10 can move the sum by 10; 4.22 times that is the least noise.
    if function == "sum":
        assert privacy["noise_sd"] == pytest.approx(42.2, rel=0.01)
    assert "predicted error" in told[0]
    assert any("30 devices" in one for one in told)


@pytest.mark.parametrize("function", ["median", "trimmed-mean", "cvar"])
def test_figures_from_a_noisy_histogram_lie_within_the_bounds(function: str) -> None:
    report, _ = released(function, Privacy(epsilon=8.0, delta=1e-3), 60)
    assert 0 <= report["value"] <= 10
    assert report["privacy"]["noise_unit"] == "devices a bin"
    assert report["method"] == "noisy histogram"


def test_the_delta_of_many_devices_is_small() -> None:
    report, _ = released("mean", Privacy(epsilon=1.0), 12)
    assert report["privacy"]["delta"] == 1e-6


def test_a_budget_gives_the_same_value_again_and_then_refuses(tmp_path: Path) -> None:
    path = tmp_path / "budget"
    privacy = Privacy(epsilon=1.0, delta=1e-6, budget=path, day="2026-06-15")
    first, _ = released("mean", privacy)
    again, _ = released("mean", privacy)
    assert again["value"] == first["value"]
    assert not first["privacy"]["budget"]["repeated"]
    assert again["privacy"]["budget"]["repeated"]
    assert again["privacy"]["budget"]["spent_epsilon"] == pytest.approx(1.0, abs=1e-3)
    with pytest.raises(InputError, match="does not allow this release"):
        released("sum", privacy)
    other = Privacy(epsilon=1.0, delta=1e-6, budget=path, day="2026-06-16")
    assert released("sum", other)[0]["privacy"]["budget"]["releases"] == 1
    assert b"s17" not in path.read_bytes()


def test_releases_share_a_promise(tmp_path: Path) -> None:
    """Three of three fit the day, a fourth does not."""
    privacy = Privacy(epsilon=1.0, delta=1e-6, releases=3, budget=tmp_path / "b", day="d")
    for function in ("sum", "mean", "weighted-mean"):
        report, _ = released(function, privacy, 12)
    assert report["privacy"]["budget"]["spent_epsilon"] <= 1.0
    with pytest.raises(InputError):
        released("median", privacy, 12)


def test_options_that_make_no_sense_are_named_together() -> None:
    assert privacy_of(NOTHING) is None
    with pytest.raises(InputError) as found:
        privacy_of(NOTHING | {"delta": 1e-6, "budget": Path("b"), "noise": "local"})
    assert {one.where for one in found.value.findings} == {"--delta", "--budget", "--noise"}
    with pytest.raises(InputError) as found:
        privacy_of(
            NOTHING
            | {"epsilon": -1.0, "delta": 0.9, "noise": "loud", "day": "d", "history": Path("h")}
        )
    assert {one.where for one in found.value.findings} == {
        "--epsilon",
        "--delta",
        "--noise",
        "--day",
        "--history",
    }


def test_the_variance_is_refused() -> None:
    with pytest.raises(InputError, match="ask for quantile"):
        released("variance", Privacy(epsilon=1.0))


def test_a_report_is_plain_json() -> None:
    report, _ = released("mean", Privacy(epsilon=1.0, mode="parties"), 12)
    assert json.loads(json.dumps(report)) == report
    assert report["privacy"]["mechanism"] == "skellam"


def test_the_command_prints_the_error_before_and_the_promise_with_the_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the command itself: keys, files, the second call, the refusal."""
    path = tmp_path / "readings.csv"
    rows = [f"canary{k},{2 + k % 5},household,0,10" for k in range(20)]
    path.write_text("\n".join(["source,value,tier,lower,upper", *rows]) + "\n")
    command = ["aggregate", str(path), "--function", "mean", "--epsilon", "1", "--delta", "1e-6"]
    budget = ["--budget", str(tmp_path / "budget"), "--day", "2026-06-15"]
    found = []
    for _ in range(2):
        code, out, err = call(capsys, *command, *budget, "--json", "--out", str(tmp_path / "out"))
        assert code == 0
        assert "predicted error" in err
        found.append(json.loads(out))
    assert found[0]["value"] == found[1]["value"]
    assert {"epsilon", "delta", "noise_sd"} <= set(found[0]["privacy"])
    assert found[1]["privacy"]["budget"]["repeated"]
    assert (tmp_path / "out" / "aggregate.json").is_file()
    spent = found[1]["privacy"]["budget"]
    assert spent["course"] == [[1, spent["spent_epsilon"]]]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Budget of 2026-06-15: 1 of 1 spent" in page
    assert "canary" not in page, "a published page names no source"
    code, out, err = call(
        capsys, "aggregate", str(path), "--function", "sum", *command[4:], *budget
    )
    assert (code, out) == (2, "")
    assert "does not allow this release" in err
    code, out, _ = call(capsys, *command, "--rating", "9", "--json")
    assert isinstance(json.loads(out)["overloaded"], bool) or json.loads(out)["value"] is None
    code, out, _ = call(capsys, *command)
    assert "epsilon 1, delta 1e-06" in out
    code, _, err = call(capsys, *command[:4], "--delta", "1e-6", "--budget", "x")
    assert code == 2
    assert all(name in err for name in ("--delta", "--budget"))


def test_the_picture_of_a_busy_day_ends_at_what_is_spent() -> None:
    """A dozen points, the last of which is all that counts; rising all the way."""
    from veilgrid.report.private_page import _spent

    budget = Budget(Terms(10.0, 1e-6, bytes(16)))
    for number in range(30):
        charge = Charge("gaussian", 200.0, 10)
        budget.apply(budget.reserve("today", b"%d" % number, [charge]))
    course = budget.course("today")
    assert len(course) <= 12
    assert course[-1] == (30, budget.loss("today").epsilon(1e-6))
    assert all(a[1] < b[1] for a, b in itertools.pairwise(course))
    told = {"day": "today", "allowed_epsilon": 10.0, "allowed_delta": 1e-6, "course": course}
    line = _spent(told | {"spent_epsilon": course[-1][1]}).figure["data"][0]
    assert line["x"][0] == line["y"][0] == 0
    assert line["x"][-1] == 30


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    told = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, told.out, told.err
