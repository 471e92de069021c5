"""``veilgrid aggregate``: one risk-sensitive figure of many sources' readings [risk 4]."""

import json
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import click

from veilgrid.cli._committee import Committee, SecureResult, Task, secure_round
from veilgrid.cli._feed import feed_of, publish_feed
from veilgrid.cli._private import (
    Privacy,
    Where,
    privacy_of,
    privacy_rows,
    private_aggregate,
)
from veilgrid.cli._readings import Readings, read_readings
from veilgrid.cli._regions import Machines, Regional, Way, by_region
from veilgrid.errors import Finding, InputError, VeilgridError
from veilgrid.mpc import policy
from veilgrid.mpc.form import NOTHING
from veilgrid.node.history import RoundHistory
from veilgrid.risk.aggregate import FUNCTIONS, Answer, Plan, Question, answer_of
from veilgrid.risk.electrical import electrical_faults
from veilgrid.risk.history import conduct_of, reliabilities_of, standings_after
from veilgrid.risk.rounds import Round, mailbox_of, program_of
from veilgrid.risk.trust import Conduct, Standing, TrustSettings

_REASONS: Final = {
    "invalid": "the value is not within its bounds (found by the check on shares)",
    "outside": "the value is not within its bounds (found by its gateway)",
    "region": "its region's sums are missing or not possible, and are left out",
    "missing": "no reading",
    "unreadable": "no party could read its share",
    "contradictory": "sent different messages to different parties",
}
_LINEAR: Final = ("sum", "mean", "weighted-mean")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How a round runs and what is done with its figure."""

    parties: int = 3
    degree: int = 1
    seed: int | None = None
    processes: bool = False
    rating: float | None = None
    measured: float | None = None
    meter_tolerance: float = 0.1
    trust: TrustSettings = field(default_factory=TrustSettings)


@dataclass(frozen=True, slots=True)
class Done:
    """A round with all that its report shows."""

    report: dict[str, Any]
    plan: Plan
    readings: Readings
    standings: Mapping[str, Standing]


def aggregate_readings(
    readings: Readings, question: Question, setting: Setting, history: RoundHistory | None = None
) -> Done:
    """Run one round and return the JSON object of ``veilgrid aggregate``.

    Raises
    ------
    RunAborted
        The parties ended without a result.
    """
    names = [one.name for one in readings.sources]
    standings = history.standings() if history else {}
    known: tuple[float, ...] = ()
    if history:
        given = [one.reliability for one in readings.sources]
        known = tuple(reliabilities_of(names, standings, setting.trust, given))
    watched = replace(question, is_watched=history is not None)
    round_ = Round(
        question=watched, sources=readings.sources, settings=setting.trust, reliabilities=known
    )
    plan = round_.plan()
    number = history.reserve(question.function) if history else None
    try:
        report, result = _secure(round_, plan, readings, setting)
    except VeilgridError:
        if history and number:
            history.fail(number)
        raise
    if history and number:
        conducts = conduct_of(names, result)
        standings = standings_after(standings, conducts, setting.trust)
        mass = float(plan.weights.sum())
        shares = {name: float(at) / mass for name, at in zip(names, plan.weights, strict=True)}
        report["round"] = number
        report["conduct"] = _conduct_words(conducts, standings)
        history.complete(number, report, conducts, shares, standings)
    return Done(report, plan, readings, standings)


def _secure(
    round_: Round, plan: Plan, readings: Readings, setting: Setting
) -> tuple[dict[str, Any], dict[str, Any]]:
    committee = Committee.fresh(setting.parties, setting.degree, b"aggregate", setting.seed)
    encoded = plan.encode([0.0 if value is None else value for value in readings.values])
    inputs = {
        name: None if value is None else row.tolist()
        for name, value, row in zip(plan.names, readings.values, encoded, strict=True)
    }
    done = secure_round(
        committee,
        dict.fromkeys(plan.names, NOTHING),
        inputs,
        Task(program_of, round_, mailbox_of),
        processes=setting.processes,
    )
    return _report(plan, readings, setting, done.result, done), done.result


def aggregate_by_region(
    readings: Readings, question: Question, setting: Setting, way: Way
) -> tuple[Done, Regional]:
    """Run a round region by region, and return the JSON object and what each round cost.

    Raises
    ------
    InputError
        No regions, or a function for which this way shows too much.
    RunAborted
        A committee ended without a result.
    """
    machines = Machines(
        parties=setting.parties,
        degree=setting.degree,
        seed=setting.seed,
        processes=setting.processes,
    )
    found = by_region(readings, question, way, machines, setting.trust)
    report = _report(found.plan, readings, setting, found.result, found.top)
    told = {"regions": found.told(), "seconds": found.seconds, "bytes": found.octets}
    return Done(report | told, found.plan, readings, {}), found


def _report(
    plan: Plan,
    readings: Readings,
    setting: Setting,
    result: Mapping[str, Any],
    done: SecureResult,
) -> dict[str, Any]:
    """Return the JSON object of a round."""
    answer, flags = answer_of(plan, result), result["flags"]
    rejected = [{"source": name, "reason": reason} for name, reason in readings.skipped]
    rejected += [
        {"source": name, "reason": _REASONS[flags[name]]} for name in plan.names if name in flags
    ]
    report = {
        "function": plan.question.function,
        "value": answer.value,
        "risk_adjusted": answer.risk_adjusted,
        "confidence": plan.question.confidence,
        "side": plan.question.side,
        "confidence_interval": list(answer.interval) if answer.interval else None,
        "accepted": len(result["counted"]),
        "rejected": rejected,
        "method": _method_words(plan),
        "influence": answer.influence,
        "privacy": None,
        "parties": setting.parties,
        "degree": setting.degree,
        "seconds": done.seconds,
        "bytes": done.octets,
        "mode": done.mode,
        "excluded": done.excluded,
    }
    if setting.rating is not None:
        report |= _against_rating(answer, setting)
    return report


def _method_words(plan: Plan) -> str:
    if plan.method == "linear":
        return "linear"
    words = f"{plan.method}, ratios to baselines" if plan.sizes is not None else plan.method
    is_trimmed = plan.sizes is not None or plan.question.function == "trimmed-mean"
    return f"{words}, {plan.trim:.0%} trimmed at each end" if is_trimmed else words


def _against_rating(answer: Answer, setting: Setting) -> dict[str, Any]:
    """Compare the figure to act on with a rating, if it can be true at all."""
    rating = setting.rating or 0.0
    faults = electrical_faults(answer, rating, setting.measured, setting.meter_tolerance)
    checked = {"rating": rating, "electrical_check": {"passed": not faults, "faults": faults}}
    if faults:
        withheld = ("value", "risk_adjusted", "confidence_interval", "overloaded", "loading")
        return checked | dict.fromkeys(withheld)
    return checked | {
        "overloaded": answer.risk_adjusted > rating,
        "loading": answer.risk_adjusted / rating,
    }


def _conduct_words(
    conducts: Mapping[str, Conduct], standings: Mapping[str, Standing]
) -> list[dict[str, Any]]:
    """Return the sources that did anything but well, with what is remembered of them."""
    return [
        {
            "source": name,
            "conduct": conduct.name.lower(),
            "reliability": standings[name].reliability(0.0),
            "brier": standings[name].brier,
            "crps": standings[name].crps,
        }
        for name, conduct in conducts.items()
        if conduct != Conduct.NEAR
    ]


# -- the verb ------------------------------------------------------------------------------------


@click.command()
@click.argument("readings", type=click.Path(path_type=Path))
@click.option("--function", "function", required=True, help=f"One of {', '.join(FUNCTIONS)}.")
@click.option("--level", type=float, help="Of quantile (default 0.5) and cvar (default 0.95).")
@click.option("--trim", type=float, help="Weight cut off at each end. Default 0.3; 0.4 of ratios.")
@click.option(
    "--side",
    type=click.Choice(["upper", "lower"]),
    default="upper",
    show_default=True,
    help="Which side hurts.",
)
@click.option("--confidence", type=float, default=0.95, show_default=True, help="Of intervals.")
@click.option("--tolerance", type=float, default=0.0, help="Deviation never held against a source.")
@click.option("--method", type=click.Choice(["exact", "histogram"]), help="Default: by size.")
@click.option("--parties", type=int, default=3, show_default=True, help="3 to 7.")
@click.option("--degree", type=int, help="Parties that may collude. Default: the most possible.")
@click.option("--minimum", type=int, default=2, show_default=True, help="Valid inputs needed.")
@click.option("--rating", type=float, help="Of the element that carries it all; gives overloaded.")
@click.option("--measured", type=float, help="What the meter of that element says.")
@click.option("--tiers", help="Weights, e.g. tso=4,dso=3,aggregator=2,household=1.")
@click.option("--skip-bad-rows", is_flag=True, help="Leave out broken rows instead of refusing.")
@click.option("--history", type=click.Path(path_type=Path), help="File that remembers sources.")
@click.option(
    "--regions",
    type=click.Choice(["clear", "committee"]),
    help="By the column region: gateways that see readings, or small committees, first.",
)
@click.option("--processes", is_flag=True, help="Each party as a process, with mutual TLS.")
@click.option("--epsilon", type=float, help="Add noise: differential privacy of each source.")
@click.option("--delta", type=float, help="Default: 1e-6, less for more than 100,000 sources.")
@click.option("--noise", help="committee (default), parties, devices or local: who adds it.")
@click.option("--releases", type=int, help="Figures a day that share epsilon. Default 1.")
@click.option("--budget", type=click.Path(path_type=Path), help="File that counts what is spent.")
@click.option("--day", help="Of the readings, whose budget pays. Default: today, UTC.")
@click.option("--daily-epsilon", type=float, help="What a new budget allows a day. Default 1.")
@click.option("--feed", type=int, help="Publish a running sum, planned for so many intervals.")
@click.option("--per-day", type=int, help="Intervals a day of a feed. Default 96.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the report.")
@click.option(
    "--seed", type=click.IntRange(min=0), help="Replay this run exactly. Default: fresh randomness."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def aggregate(
    readings: Path, out: Path | None, history: Path | None, as_json: bool, **options: Any
) -> None:
    """Compute one figure of many sources' READINGS without showing any of them.

    READINGS is a CSV file with the columns source, value, tier, lower, upper and, if wanted,
    baseline and reliability. Each source sends its number in shares to the parties, which check
    its bounds and open the figure only.
    """
    try:
        given = options | {"history": history}
        privacy = privacy_of(given)
        question, setting = _asked(given)
        feed = feed_of(given, privacy)
        skips = options["skip_bad_rows"]
        read = read_readings(readings, skips_bad_rows=skips, is_series=feed is not None)
        if feed is not None:
            report = publish_feed(read, question, feed, _where(setting))
            written = _private_page(report, out)
        elif privacy is not None:
            report, written = _private(read, question, setting, privacy, out)
        elif options["regions"]:
            done, _ = aggregate_by_region(read, question, setting, options["regions"])
            report, written = done.report, _written(done, None, out)
        else:
            with RoundHistory(history) if history else nullcontext() as kept:
                done = aggregate_readings(read, question, setting, kept)
                report, written = done.report, _written(done, kept, out)
    except VeilgridError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    if as_json:
        click.echo(json.dumps(report | {"out": str(written) if written else None}))
    else:
        _tell(report, written)
    sys.exit(1 if report["value"] is None else 0)


def _private(
    readings: Readings, question: Question, setting: Setting, privacy: Privacy, out: Path | None
) -> tuple[dict[str, Any], Path | None]:
    """Return the report of a noisy figure; its page shows what may be published only."""
    report, answer = private_aggregate(readings, question, privacy, _where(setting), setting.trust)
    if setting.rating is not None:
        report |= _against_rating(answer, setting)
    return report, _private_page(report, out)


def _where(setting: Setting) -> Where:
    return Where(
        parties=setting.parties,
        degree=setting.degree,
        seed=setting.seed,
        processes=setting.processes,
    )


def _private_page(report: dict[str, Any], out: Path | None) -> Path | None:
    if out is None:
        return None
    from veilgrid.report.private_page import write_page

    return write_page(out, report)


def _written(done: Done, history: RoundHistory | None, out: Path | None) -> Path | None:
    if out is None:
        return None
    from veilgrid.report.risk_page import write_page

    past = history.rounds() if history else []
    shares = [(one.number, one.shares) for one in past if one.shares]
    return write_page(out, done.report, done.plan, done.readings.values, shares)


def _asked(options: Mapping[str, Any]) -> tuple[Question, Setting]:
    """Return question and setting; all findings at once."""
    findings: list[Finding] = []
    question, setting = None, None
    parties = options["parties"]
    try:
        question = Question(
            function=options["function"],
            level=options["level"],
            trim=options["trim"],
            side=options["side"],
            confidence=options["confidence"],
            count_min=options["minimum"],
            tolerance=options["tolerance"],
            method=options["method"],
        )
    except InputError as error:
        findings += error.findings
    kind = "sum" if options["function"] in _LINEAR else "median"
    degree = options["degree"]
    try:
        chosen = policy.default_degree(parties, kind) if degree is None else degree
        asked = kind if options["history"] is None else "median"
        policy.check(parties, chosen, asked, where=lambda name: f"--{name}")
        setting = Setting(
            parties=parties,
            degree=chosen,
            seed=options["seed"],
            processes=options["processes"],
            rating=options["rating"],
            measured=options["measured"],
            trust=TrustSettings(tiers=_tiers(options["tiers"])),
        )
    except InputError as error:
        findings += error.findings
    findings += _limits(options)
    if findings or question is None or setting is None:
        raise InputError(findings)
    return question, setting


def _limits(options: Mapping[str, Any]) -> list[Finding]:
    findings = []
    rating, measured = options["rating"], options["measured"]
    if rating is not None and not rating > 0:
        findings.append(Finding("--rating", f"found {rating:g}, expected more than 0"))
    if measured is not None and rating is None:
        problem = "is compared with the figure only where a rating is given"
        findings.append(Finding("--measured", problem, "add --rating"))
    if not options["tolerance"] >= 0:
        findings.append(
            Finding("--tolerance", f"found {options['tolerance']:g}, expected 0 or more")
        )
    for name in ("history", "epsilon"):
        if options["regions"] is not None and options[name] is not None:
            problem = f"is not offered with --{name}, which needs every source in one committee"
            findings.append(Finding("--regions", problem, "leave one of them out"))
    if rating is not None and options["function"] == "variance":
        findings.append(Finding("--rating", "a variance is not compared with a rating"))
    return findings


def _tiers(text: str | None) -> dict[str, float]:
    """Return weights of tiers; those that are not named keep theirs."""
    tiers = dict(TrustSettings().tiers)
    findings = []
    for part in (text or "").split(","):
        name, _, weight = part.strip().partition("=")
        if not part.strip():
            continue
        try:
            value = float(weight)
        except ValueError:
            value = 0.0
        if name.lower() not in tiers or not value > 0:
            offered = ", ".join(tiers)
            problem = f"found {part.strip()!r}, expected one of {offered} = a number above 0"
            findings.append(Finding("--tiers", problem))
            continue
        tiers[name.lower()] = value
    if findings:
        raise InputError(findings)
    return tiers


def _region_rows(told: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if told is None:
        return []
    cost = f"{told['seconds']:.2f} s, {told['bytes'] / 1e6:.2f} MB"
    cross = f"{told['cross_seconds']:.2f} s, {told['cross_bytes'] / 1e6:.2f} MB"
    first = f"{len(told['each'])}, {told['way']}: {cost}; across them {cross}"
    return [("regions", first), ("seen by", told["seen"])]


def _tell(report: Mapping[str, Any], written: Path | None) -> None:
    """Print a short table for a person."""
    rows: list[tuple[str, str]] = []
    if report["value"] is None:
        rows.append(("withheld", "the figure cannot be true:"))
        rows += [("", fault) for fault in report["electrical_check"]["faults"]]
    else:
        sure = f"{report['confidence']:.0%}"
        rows.append((report["function"], f"{report['value']:.6g}"))
        if report["confidence_interval"]:
            low, high = report["confidence_interval"]
            rows.append((f"{sure} within", f"{low:.6g} .. {high:.6g}"))
            side = "at most" if report["side"] == "upper" else "at least"
            rows.append((f"{sure} {side}", f"{report['risk_adjusted']:.6g}"))
        if "overloaded" in report:
            state = "overloaded" if report["overloaded"] else "within its rating"
            rows.append(("rating", f"{report['rating']:g}: {state}, {report['loading']:.1%}"))
    rows.append(("accepted", str(report["accepted"])))
    rows += [("rejected", f"{one['source']}: {one['reason']}") for one in report["rejected"]]
    rows += [
        ("watched", f"{one['source']}: {one['conduct']}, reliability {one['reliability']:.2f}")
        for one in report.get("conduct", [])
    ]
    rows += privacy_rows(report["privacy"]) + _region_rows(report.get("regions"))
    rows.append(
        (
            "parties",
            f"{report['parties']}, any {report['degree']} of them together learn nothing else; "
            f"{report['seconds']:.2f} s, {report['bytes'] / 1e6:.2f} MB",
        )
    )
    if written:
        rows.append(("report", str(written)))
    width = max(12, *(len(name) for name, _ in rows))
    for name, text in rows:
        click.echo(f"{name:{width}} {text}")
