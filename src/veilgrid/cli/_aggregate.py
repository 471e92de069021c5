"""``veilgrid aggregate``: one figure of many sources' readings."""

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from veilgrid.cli._committee import Committee, secure_round
from veilgrid.errors import Finding, InputError, VeilgridError
from veilgrid.mpc import policy
from veilgrid.mpc.aggregate import Question, answer_of, program_of
from veilgrid.mpc.field import FixedPoint
from veilgrid.mpc.form import Form, number, number_bits

_COLUMNS: Final = ("source", "value", "tier", "lower", "upper")
_LATER: Final = ("weighted-mean", "trimmed-mean", "cvar")
_OFFERED: Final = ("sum", "mean", "variance", "median", "quantile")
_REASONS: Final = {
    "invalid": "the value is not within its bounds (found by the check on shares)",
    "missing": "no reading",
    "unreadable": "no party could read its share",
    "contradictory": "sent different messages to different parties",
}


# -- readings -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reading:
    """One row: who, what, and the bounds it must keep; None for no value."""

    source: str
    value: float | None
    lower: float
    upper: float


def read_readings(path: Path) -> list[Reading]:
    """Read a CSV file of readings.

    Raises
    ------
    InputError
        Every broken rule, with row and column.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
            header = rows[0].keys() if rows else []
    except (OSError, UnicodeDecodeError) as error:
        raise InputError([Finding(str(path), f"cannot be read ({error})")]) from None
    missing = [column for column in _COLUMNS if column not in header]
    if missing:
        listed = ", ".join(missing)
        problem = f"column {listed} is missing" if rows else "holds no rows"
        raise InputError([Finding(path.name, problem, f"expected {', '.join(_COLUMNS)}")])
    findings: list[Finding] = []
    readings: list[Reading] = []
    seen: set[str] = set()
    for place, row in enumerate(rows, 2):
        reading = _reading(path.name, place, row, findings)
        if reading is None:
            continue
        if reading.source in seen:
            where = f"{path.name} row {place}, column source"
            findings.append(Finding(where, f"{reading.source} appears twice"))
        seen.add(reading.source)
        readings.append(reading)
    if findings:
        raise InputError(findings)
    return readings


def _reading(
    name: str, place: int, row: Mapping[str, str | None], findings: list[Finding]
) -> Reading | None:
    before = len(findings)
    numbers = {
        column: _number(name, place, column, row.get(column), findings)
        for column in ("value", "lower", "upper")
    }
    source = (row.get("source") or "").strip()
    if not source:
        findings.append(Finding(f"{name} row {place}, column source", "is empty"))
    for column in ("lower", "upper"):
        if numbers[column] is None and len(findings) == before:
            findings.append(Finding(f"{name} row {place}, column {column}", "is empty"))
    lower, upper = numbers["lower"], numbers["upper"]
    if lower is not None and upper is not None and lower > upper:
        where = f"{name} row {place}, column lower"
        findings.append(Finding(where, f"{lower:g} is above the upper bound {upper:g}"))
    if len(findings) > before or lower is None or upper is None:
        return None
    return Reading(source, numbers["value"], lower, upper)


def _number(
    name: str, place: int, column: str, text: str | None, findings: list[Finding]
) -> float | None:
    where = f"{name} row {place}, column {column}"
    stripped = (text or "").strip()
    if stripped.lower() in ("", "nan") and column in ("value",):
        return None
    try:
        value = float(stripped)
    except ValueError:
        findings.append(Finding(where, f"found {stripped!r}, expected a number"))
        return None
    if value != value or abs(value) == float("inf"):
        findings.append(Finding(where, f"found {stripped}, expected a finite number"))
        return None
    return value


def scale_of(readings: Sequence[Reading]) -> FixedPoint:
    """Return the finest power of ten, at most a million steps a unit, that fits 40 bits."""
    largest = max(max(abs(one.lower), abs(one.upper)) for one in readings)
    for power in range(6, -1, -1):
        if largest * 10**power < 2**39:
            return FixedPoint(10**power, 40)
    problem = f"bounds of up to {largest:g} do not fit 40 bits"
    raise InputError([Finding("readings", problem, "use larger units")])


# -- the round -----------------------------------------------------------------------------------


def _form(reading: Reading, scale: FixedPoint) -> Form:
    lower, upper = scale.integers([reading.lower, reading.upper])
    return number(lower, upper)


def aggregate_readings(
    readings: Sequence[Reading],
    question: Question,
    *,
    parties: int,
    degree: int,
    seed: int | None = None,
) -> dict[str, Any]:
    """Return the JSON object of ``veilgrid aggregate``.

    Raises
    ------
    RunAborted
        The parties ended without a result.
    """
    scale = scale_of(readings)
    lowest = min(scale.integers([one.lower for one in readings]))
    asked = Question(question.function, question.level, question.count_min, lowest)
    forms = {one.source: _form(one, scale) for one in readings}
    inputs = {
        one.source: number_bits(forms[one.source], round(one.value * scale.scale))
        for one in readings
        if one.value is not None
    }
    committee = Committee.fresh(parties, degree, b"aggregate", seed)
    done = secure_round(committee, forms, inputs, lambda mailbox: program_of(asked, mailbox))
    result = done.result
    numbers = [int(text) for text in result["numbers"]]
    value, interval = answer_of(asked, numbers, len(result["clients"]), scale.scale)
    by_source = result["flags"]
    return {
        "function": asked.function,
        "value": value,
        "confidence_interval": interval,
        "accepted": len(result["clients"]),
        "rejected": [
            {"source": one.source, "reason": _REASONS[by_source[one.source]]}
            for one in readings
            if one.source in by_source
        ],
        "privacy": None,
        "parties": parties,
        "degree": degree,
        "seconds": done.seconds,
        "bytes": done.octets,
    }


@click.command()
@click.argument("readings", type=click.Path(path_type=Path))
@click.option("--function", "function", required=True, help=f"One of {', '.join(_OFFERED)}.")
@click.option("--level", type=float, default=0.5, show_default=True, help="Of the quantile.")
@click.option("--parties", type=int, default=3, show_default=True, help="3 to 7.")
@click.option("--degree", type=int, help="Parties that may collude. Default: the most possible.")
@click.option("--minimum", type=int, default=2, show_default=True, help="Valid inputs needed.")
@click.option("--epsilon", type=float, help="Differential privacy: not offered yet.")
@click.option("--delta", type=float, help="Differential privacy: not offered yet.")
@click.option("--rating", type=float, help="Transformer rating: not offered yet.")
@click.option("--seed", type=int, help="Replay this run exactly. Default: fresh randomness.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def aggregate(
    readings: Path,
    function: str,
    level: float,
    parties: int,
    degree: int | None,
    minimum: int,
    as_json: bool,
    seed: int | None,
    **later: float | None,
) -> None:
    """Compute one figure of many sources' READINGS without showing any of them.

    READINGS is a CSV file with the columns source, value, tier, lower, upper. Each source sends
    its number in shares to the parties, which check its bounds and open the figure only.
    """
    try:
        _refuse_later(function, later)
        chosen = policy.default_degree(parties, function) if degree is None else degree
        policy.check(parties, chosen, function, where=lambda name: f"--{name}")
        question = Question(function, level, minimum)
        report = aggregate_readings(
            read_readings(readings), question, parties=parties, degree=chosen, seed=seed
        )
    except VeilgridError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    if as_json:
        click.echo(json.dumps(report))
        return
    click.echo(f"{function:12} {report['value']:.6g}")
    if report["confidence_interval"]:
        low, high = report["confidence_interval"]
        click.echo(f"{'95 % within':12} {low:.6g} .. {high:.6g}")
    click.echo(f"{'accepted':12} {report['accepted']}")
    for one in report["rejected"]:
        click.echo(f"{'rejected':12} {one['source']}: {one['reason']}")
    click.echo(
        f"{'parties':12} {parties}, any {chosen} of them together learn nothing else; "
        f"{report['seconds']:.2f} s, {report['bytes'] / 1e6:.2f} MB"
    )


def _refuse_later(function: str, later: Mapping[str, float | None]) -> None:
    findings = []
    if function in _LATER:
        offered = ", ".join(_OFFERED)
        findings.append(
            Finding("--function", f"{function} is not offered yet", f"offered are {offered}")
        )
    findings += [
        Finding(f"--{name}", "is not offered yet", "leave it out")
        for name, value in later.items()
        if value is not None
    ]
    if findings:
        raise InputError(findings)
