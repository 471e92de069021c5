"""``veilgrid aggregate --epsilon``: a figure with noise, from a budget [privacy 1]."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from veilgrid.cli._committee import Committee, Task, secure_round
from veilgrid.cli._readings import Readings
from veilgrid.errors import Finding, InputError
from veilgrid.mpc.form import NOTHING
from veilgrid.node.budget import open_budget
from veilgrid.risk import privacy_bulk
from veilgrid.risk.aggregate import TRIM, Answer, Question
from veilgrid.risk.privacy import (
    MODES,
    Guarantee,
    Who,
    delta_default,
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
)
from veilgrid.risk.trust import TrustSettings, weights_for

REASONS: Final = {
    "invalid": "the value is not within its bounds (found by the check on shares)",
    "missing": "no reading",
    "unreadable": "no party could read its share",
    "contradictory": "sent different messages to different parties",
}
_STEPS_BITS: Final = 39
_STEPS_MAX: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Privacy:
    """What was asked about privacy on the command line.

    Attributes
    ----------
    epsilon, delta
        Of all ``releases`` together; no delta: the usual one for so many devices.
    mode
        Who adds noise.
    budget
        File of the ledger; None keeps none.
    day
        Of the readings, whose budget pays; None: today.
    daily_epsilon
        What a new ledger allows a day; None: the usual.
    """

    epsilon: float
    delta: float | None = None
    mode: str = "committee"
    releases: int = 1
    budget: Path | None = None
    day: str | None = None
    daily_epsilon: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Who computes."""

    parties: int
    degree: int
    seed: int | None = None
    processes: bool = False


def privacy_of(options: Mapping[str, Any]) -> Privacy | None:
    """Return what was asked about privacy; None if nothing was.

    Raises
    ------
    InputError
        Options that make no sense together, all at once.
    """
    findings = []
    others = ("delta", "budget", "day", "daily_epsilon", "noise", "releases")
    if options["epsilon"] is None:
        findings = [
            Finding(f"--{name.replace('_', '-')}", "needs --epsilon", "add it, or leave this out")
            for name in others
            if options[name] is not None
        ]
        if findings:
            raise InputError(findings)
        return None
    mode = options["noise"] or "committee"
    if mode not in MODES:
        findings.append(Finding("--noise", f"found {mode}, expected {', '.join(MODES)}"))
    for name in ("day", "daily_epsilon"):
        if options[name] is not None and options["budget"] is None:
            where = f"--{name.replace('_', '-')}"
            findings.append(Finding(where, "needs --budget", "name the file that keeps it"))
    if options["history"] is not None:
        problem = "opens what each source did, which no noise covers"
        findings.append(Finding("--history", problem, "leave it out with --epsilon"))
    releases = 1 if options["releases"] is None else options["releases"]
    try:
        delta = delta_default(1) if options["delta"] is None else options["delta"]
        Guarantee(options["epsilon"], delta, releases)
    except InputError as error:
        findings += error.findings
    if findings:
        raise InputError(findings)
    return Privacy(
        epsilon=options["epsilon"],
        delta=options["delta"],
        mode=mode,
        releases=releases,
        budget=options["budget"],
        day=options["day"],
        daily_epsilon=options["daily_epsilon"],
    )


def private_aggregate(
    readings: Readings,
    question: Question,
    privacy: Privacy,
    where: Where,
    trust: TrustSettings,
    tell: Callable[[str], None] = lambda text: click.echo(text, err=True),
) -> tuple[dict[str, Any], Answer]:
    """Return the JSON object of ``veilgrid aggregate`` with a noisy figure, and the answer.

    Parameters
    ----------
    readings, question, trust
        As without privacy; ratios to baselines are not formed.
    privacy, where
        What was asked.
    tell
        Called with the predicted error and warnings before anything is computed.

    Raises
    ------
    InputError
        The function or the budget does not allow it.
    RunAborted
        The parties ended without a result.
    """
    scale, asked = _asked(readings, question, privacy, where, trust)
    plan = asked.plan
    for text in _before(asked, scale, where):
        tell(text)

    def compute() -> bytes:
        return json.dumps(_round(readings, question, asked, scale, where)).encode()

    spent: dict[str, Any] | None = None
    if privacy.budget is None:
        octets = compute()
    else:
        day = privacy.day or datetime.now(UTC).date().isoformat()
        usual = delta_default(len(readings.sources))
        with open_budget(privacy.budget, privacy.daily_epsilon, usual) as ledger:
            told = _fingerprint(readings, question, privacy, asked)
            octets, is_repeated = ledger.release(day, told, [plan.charge], compute)
            terms = ledger.budget.terms
            spent = {
                "file": str(privacy.budget),
                "day": day,
                "allowed_epsilon": terms.epsilon,
                "allowed_delta": terms.delta,
                "spent_epsilon": ledger.budget.loss(day).epsilon(terms.delta),
                "course": ledger.budget.course(day),
                "releases": ledger.budget.count(day),
                "repeated": is_repeated,
            }
    report = json.loads(octets)
    report["privacy"]["budget"] = spent
    interval = report["confidence_interval"]
    low, high = report.pop("reach")
    return report, Answer(
        report["value"],
        None if interval is None else (interval[0], interval[1]),
        report["risk_adjusted"],
        (low, high),
        report["influence"],
    )


def _scale(readings: Readings) -> float:
    """Return the finest power of ten, at most a million steps a unit, whose bounds fit."""
    largest = max(max(abs(one.lower), abs(one.upper)) for one in readings.sources)
    scale = float(_STEPS_MAX)
    while largest * scale >= 2**_STEPS_BITS:
        scale /= 10
    return scale


def _asked(
    readings: Readings,
    question: Question,
    privacy: Privacy,
    where: Where,
    trust: TrustSettings,
) -> tuple[float, PrivateQuestion]:
    scale, listed = _scale(readings), readings.sources
    has_record = any(one.reliability is not None for one in listed)
    function = question.function
    is_weighed = function in ("weighted-mean", "trimmed-mean")
    is_weighed |= has_record and function not in ("sum", "mean", "variance")
    weights = np.ones(len(listed), np.int64)
    if is_weighed:
        known = [1.0 if one.reliability is None else one.reliability for one in listed]
        weights = weights_for([one.tier for one in listed], known, trust)
        if (weights == weights[0]).all():
            weights = np.ones(len(listed), np.int64)
    sources = [
        Source(one.name, round(one.lower * scale), round(one.upper * scale), int(weight))
        for one, weight in zip(listed, weights, strict=True)
    ]
    delta = delta_default(len(listed)) if privacy.delta is None else privacy.delta
    level = {
        "trimmed-mean": TRIM if question.trim is None else question.trim,
        "cvar": question.cvar_level,
    }.get(function, 0.5 if question.level is None else question.level)
    asked = ask(
        function,
        sources,
        Guarantee(privacy.epsilon, delta, privacy.releases),
        Who(len(listed), where.parties, where.degree),
        mode=privacy.mode,
        level=level,
        side=question.side,
    )
    return scale, asked


def _divisor(asked: PrivateQuestion, clients: list[str]) -> float:
    if asked.edges or asked.function == "sum":
        return 1.0
    weights = asked.weights
    return float(sum(weights[name] for name in clients))


def _noise_sd(asked: PrivateQuestion, scale: float, clients: list[str]) -> float:
    """Return the noise in the unit of the figure; of a histogram, in devices a bin."""
    if asked.edges:
        return asked.plan.noise_sd / max(one.weight for one in asked.sources)
    return asked.plan.noise_sd / scale / _divisor(asked, clients)


def _before(asked: PrivateQuestion, scale: float, where: Where) -> list[str]:
    """Return what a person must know before the figure is released."""
    names = [one.name for one in asked.sources]
    unit = " devices a bin" if asked.edges else ""
    error = error_of(asked)
    what = "of all ranks" if asked.edges else "of a fleet in the middle of its bounds"
    told = [
        f"noise: standard deviation {_noise_sd(asked, scale, names):.4g}{unit}, "
        f"predicted error {error:.2%} {what}"
    ]
    told += [f"warning: {text}" for text in warnings_of(asked.plan, asked.who, error)]
    if where.seed is not None:
        told.append("warning: a seed replays the noise; this figure is not private")
    return told


def _round(
    readings: Readings, question: Question, asked: PrivateQuestion, scale: float, where: Where
) -> dict[str, Any]:
    committee = Committee.fresh(where.parties, where.degree, b"private", where.seed)
    values = {
        one.name: round(value * scale)
        for one, value in zip(readings.sources, readings.values, strict=True)
        if value is not None
    }
    told = PrivateRound(asked, question.count_min)
    if privacy_bulk.is_bulk(asked):
        task = Task(privacy_bulk.program_of, told, privacy_bulk.mailbox_of)
        forms = dict.fromkeys(privacy_bulk.clients_of(asked), NOTHING)
        inputs = privacy_bulk.inputs_of(asked, values, committee.randomness)
    else:
        task = Task(program_of, told)
        forms, inputs = forms_of(asked), inputs_of(asked, values, committee.randomness)
    done = secure_round(committee, forms, inputs, task, processes=where.processes)
    result = done.result
    numbers, clients = [int(text) for text in result["numbers"]], result["clients"]
    value = answer_of(asked, numbers, clients) / scale
    interval = _interval(asked, numbers, clients, value, scale, _normal(question))
    rejected = [{"source": name, "reason": reason} for name, reason in readings.skipped]
    rejected += [
        {"source": name, "reason": REASONS[result["flags"][name]]}
        for name in values | dict.fromkeys(one.name for one in readings.sources)
        if name in result["flags"]
    ]
    side = 1 if question.side == "upper" else 0
    weights = asked.weights
    return {
        "function": question.function,
        "value": value,
        "risk_adjusted": value if interval is None else interval[side],
        "confidence": question.confidence,
        "side": question.side,
        "confidence_interval": interval,
        "accepted": len(clients),
        "rejected": rejected,
        "method": "noisy histogram" if asked.edges else "noisy sum",
        "influence": max(weights[name] for name in clients) / sum(weights[k] for k in clients),
        "privacy": _privacy(asked, scale, clients) | {"silent_parties": result["silent"]},
        "parties": where.parties,
        "degree": where.degree,
        "seconds": done.seconds,
        "bytes": done.octets,
        "mode": done.mode,
        "excluded": done.excluded,
        "reach": _reach(asked, clients, scale),
    }


def _reach(asked: PrivateQuestion, clients: list[str], scale: float) -> list[float]:
    """Return between what the bounds let the figure lie."""
    kept = [one for one in asked.sources if one.name in set(clients)]
    low, high = [one.lower / scale for one in kept], [one.upper / scale for one in kept]
    if asked.function == "sum":
        return [sum(low), sum(high)]
    return [min(low), max(high)]


def _normal(question: Question) -> float:
    """Return how many standard deviations the confidence asked for takes, on both sides."""
    from scipy import special

    return float(special.ndtri((1 + question.confidence) / 2))


def _interval(
    asked: PrivateQuestion,
    numbers: list[int],
    clients: list[str],
    value: float,
    scale: float,
    normal: float,
) -> list[float] | None:
    """Return where the figure without noise lies; None for means of tails."""
    if not asked.edges:
        half = normal * _noise_sd(asked, scale, clients)
        return [value - half, value + half]
    if asked.function not in ("median", "quantile"):
        return None
    level = 0.5 if asked.function == "median" else asked.level
    half = normal * error_of(asked)
    ends = []
    for at in (level - half, level + half):
        moved = PrivateQuestion(
            "quantile",
            min(max(at, 0.0), 1.0),
            asked.side,
            asked.sources,
            asked.who,
            asked.plan,
            asked.edges,
        )
        ends.append(answer_of(moved, numbers, clients) / scale)
    return ends


def _privacy(asked: PrivateQuestion, scale: float, clients: list[str]) -> dict[str, Any]:
    plan, error = asked.plan, error_of(asked)
    unit = plan.quantum if asked.edges else plan.quantum / scale / _divisor(asked, clients)
    return {
        "epsilon": plan.guarantee.epsilon,
        "delta": plan.guarantee.delta,
        "noise_sd": _noise_sd(asked, scale, clients),
        "noise_unit": "devices a bin" if asked.edges else "as the value",
        "predicted_error": error,
        "noise": plan.mode,
        "releases": plan.guarantee.releases,
        "mechanism": "skellam" if plan.charge.kind == "skellam" else "discrete gaussian",
        "sensitivity": plan.charge.sensitivity * unit,
        "warnings": warnings_of(plan, asked.who, error),
    }


def _fingerprint(
    readings: Readings, question: Question, privacy: Privacy, asked: PrivateQuestion
) -> bytes:
    """Return everything that determines the figure but its noise; only a keyed hash is kept."""
    sources = [
        (one.name, one.tier, one.lower, one.upper, one.reliability, value, asked.weights[one.name])
        for one, value in zip(readings.sources, readings.values, strict=True)
    ]
    sources.sort(key=lambda one: one[0])
    told: list[Any] = [
        question.function,
        asked.level,
        question.side,
        question.count_min,
        privacy.mode,
    ]
    told += [privacy.epsilon, asked.plan.guarantee.delta, privacy.releases, sources]
    return json.dumps(told).encode()


def privacy_rows(privacy: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return what a person is told about privacy, as rows of a table."""
    if privacy is None:
        return []
    noise = f"{privacy['noise_sd']:.4g}"
    if privacy["noise_unit"] != "as the value":
        noise += f" {privacy['noise_unit']}"
    rows = [
        (
            "privacy",
            f"epsilon {privacy['epsilon']:g}, delta {privacy['delta']:g}; noise {noise}, "
            f"predicted error {privacy['predicted_error']:.2%}",
        )
    ]
    budget = privacy["budget"]
    if budget is not None:
        again = "; given before, nothing was spent" if budget["repeated"] else ""
        rows.append(
            (
                "budget",
                f"{budget['spent_epsilon']:.3g} of {budget['allowed_epsilon']:g} spent on "
                f"{budget['day']}{again}",
            )
        )
    return rows
