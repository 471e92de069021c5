"""``veilgrid sensitivity``: who could sway a result, and which choices of the weighting matter."""

import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from veilgrid.cli._table_file import read, refuse
from veilgrid.errors import Finding, InputError, SetupError, VeilgridError
from veilgrid.grid._table import Notes, Row, Table, number
from veilgrid.risk.sensitivity import (
    SAMPLES,
    Floats,
    Influence,
    Replay,
    Rounds,
    Weighting,
    indices,
    influences,
    replay,
    warnings_of,
    weightings,
)
from veilgrid.risk.trust import TIERS, influence_cap
from veilgrid.risk.tuning import HELD_OUT, Events, Tuned, errors_of, targets, tune

_COLUMNS: Final = ("round", "source", "value", "tier", "lower", "upper")
_EVENT_COLUMNS: Final = ("round", "source", "truth")
_ROUND_MAX: Final = 2**53


# -- reading -------------------------------------------------------------------------------------


def read_rounds(path: Path) -> Rounds:
    """Read a history of readings.

    Raises
    ------
    InputError
        Every broken rule, with row and column.
    """
    notes = Notes()
    table = read(path, _COLUMNS, notes)
    refuse(notes)
    if table is None or not table.rows:
        raise InputError([Finding(path.name, "holds no readings", "one row a round and source")])
    has_baseline = "baseline" in table.header
    about: dict[str, tuple[Any, ...]] = {}
    readings: dict[tuple[int, str], float | None] = {}
    for row in table.rows:
        _take(table, row, has_baseline, about, readings, notes)
    refuse(notes)
    names = tuple(about)
    labels = tuple(sorted({label for label, _ in readings}))
    values = np.zeros((len(labels), len(names)))
    is_present = np.zeros(values.shape, np.bool_)
    at = {name: k for k, name in enumerate(names)}
    when = {label: k for k, label in enumerate(labels)}
    for (label, name), value in readings.items():
        if value is not None:
            values[when[label], at[name]] = value
            is_present[when[label], at[name]] = True
    if len(names) < 3:
        problem = f"{len(names)} sources, at least 3 are needed to compare them"
        raise InputError([Finding(f"{path.name}, column source", problem)])
    tiers, lower, upper, baselines = zip(*about.values(), strict=True)
    baseline = np.array(baselines, np.float64) if has_baseline else None
    return Rounds(
        names=names,
        tiers=tiers,
        lower=np.array(lower, np.float64),
        upper=np.array(upper, np.float64),
        baseline=baseline,
        values=values,
        is_present=is_present,
        labels=labels,
    )


def _take(
    table: Table,
    row: Row,
    has_baseline: bool,
    about: dict[str, tuple[Any, ...]],
    readings: dict[tuple[int, str], float | None],
    notes: Notes,
) -> None:
    """Take in one row; faults are noted."""
    before = len(notes.findings)
    label = _round(table, row, notes)
    name = row.cells["source"]
    if not name:
        notes.fault(table.at(row.line, "source"), "is empty", "every row needs a name")
    tier = row.cells["tier"].lower()
    if tier not in TIERS:
        here = table.at(row.line, "tier")
        notes.fault(here, f"found {row.cells['tier']!r}", f"expected {', '.join(TIERS)}")
    columns = ["lower", "upper", *(["baseline"] if has_baseline else [])]
    found = {column: _number(table, row, column, notes) for column in columns}
    text = row.cells["value"].lower()
    # A reading that is no finite number is a fault of the sensor and counts as missing.
    is_empty = text in ("", "nan", "inf", "-inf")
    value = None if is_empty else _number(table, row, "value", notes)
    if len(notes.findings) > before or label is None:
        return
    lower, upper, baseline = found["lower"], found["upper"], found.get("baseline")
    if lower is not None and upper is not None and not lower < upper:
        problem = f"{lower:g} is not below the upper bound {upper:g}"
        notes.fault(table.at(row.line, "lower"), problem)
    if baseline is not None and not baseline > 0:
        notes.fault(table.at(row.line, "baseline"), f"found {baseline:g}, must be above 0")
    known = (tier, lower, upper, baseline)
    if about.setdefault(name, known) != known:
        advice = "tier, bounds and baseline of a source stay the same in all rounds"
        notes.fault(table.at(row.line, "source"), f"{name} differs from an earlier row", advice)
    if (label, name) in readings:
        problem = f"{name} already has a reading in round {label}"
        notes.fault(table.at(row.line, "source"), problem)
    readings[label, name] = value


def _round(table: Table, row: Row, notes: Notes) -> int | None:
    value, problem = number(row.cells["round"])
    if not problem and (value != int(value) or not 0 <= value < _ROUND_MAX):
        problem = f"is {value:g}, must be 0, 1, 2 ..."
    if problem:
        notes.fault(table.at(row.line, "round"), problem)
        return None
    return int(value)


def _number(table: Table, row: Row, column: str, notes: Notes) -> float | None:
    value, problem = number(row.cells[column])
    if problem:
        notes.fault(table.at(row.line, column), problem)
        return None
    return value


def read_events(path: Path, rounds: Rounds) -> Events:
    """Read labels of past rounds.

    Raises
    ------
    InputError
        Every broken rule, with row and column.
    """
    notes = Notes()
    table = read(path, _EVENT_COLUMNS, notes)
    refuse(notes)
    truths: dict[int, float] = {}
    bad: dict[int, set[str]] = {}
    for row in table.rows if table is not None else ():
        label = _round(table, row, notes)  # type: ignore[arg-type]
        _label(table, row, label, rounds, truths, bad, notes)  # type: ignore[arg-type]
    refuse(notes)
    return Events(truths, {label: frozenset(names) for label, names in bad.items()})


def _label(
    table: Table,
    row: Row,
    label: int | None,
    rounds: Rounds,
    truths: dict[int, float],
    bad: dict[int, set[str]],
    notes: Notes,
) -> None:
    source, truth = row.cells["source"], row.cells["truth"]
    if label is not None and label not in rounds.labels:
        notes.fault(table.at(row.line, "round"), f"{label} is no round of the history")
    if not source and not truth:
        advice = "name a source that was bad, or give the true figure of the round"
        notes.fault(table.at(row.line, "source"), "is empty, and so is truth", advice)
    if source and source not in rounds.names:
        notes.fault(table.at(row.line, "source"), f"{source} is no source of the history")
    value = _number(table, row, "truth", notes) if truth else None
    if label is None:
        return
    if source:
        bad.setdefault(label, set()).add(source)
    if value is not None and truths.setdefault(label, value) != value:
        notes.fault(table.at(row.line, "truth"), f"round {label} already has another one")


# -- the study -----------------------------------------------------------------------------------


def study(
    rounds: Rounds,
    events: Events | None,
    *,
    weighting: Weighting,
    samples: int,
    held_out: float,
    count_min: int,
    rating: float | None,
    seed: int,
) -> tuple[dict[str, Any], list[Influence]]:
    """Return the JSON object of ``veilgrid sensitivity`` and the influence of every source."""
    played = replay(rounds, weighting, count_min)
    if not played.is_answered.any():
        problem = f"no round has {count_min} valid readings"
        raise InputError([Finding("HISTORY", problem, "lower --minimum or check the bounds")])
    found = influences(rounds, played, weighting)
    choices = weightings(samples, seed)
    tried = list(_tried(rounds, choices, count_min))
    outputs, what = _outputs(rounds, events, tried)
    tuned = tune(rounds, events, tried, (weighting, played), held_out) if events else None
    told = warnings_of(rounds, played, found, weighting, count_min=count_min, rating=rating)
    report = {
        "indices": [asdict(one) for one in indices(outputs, seed)],
        "output": what,
        "influence_max": found[0].worst,
        "left_out_max": max(one.left_out for one in found),
        "cap": influence_cap(len(rounds.names), weighting.settings()),
        "influences": [asdict(one) for one in found[:20]],
        "tuned": None if tuned is None else _tuned(tuned),
        "weighting": asdict(weighting),
        "warnings": told,
        "rounds": len(rounds.labels),
        "sources": len(rounds.names),
        "evaluations": len(tried),
        "seed": seed,
    }
    return report, found


def _tried(
    rounds: Rounds, choices: list[Weighting], count_min: int
) -> Iterator[tuple[Weighting, Replay]]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    for one in track(choices, "replaying", console=console, transient=True):
        yield one, replay(rounds, one, count_min)


def _outputs(
    rounds: Rounds, events: Events | None, tried: list[tuple[Weighting, Replay]]
) -> tuple[Floats, str]:
    """Return one number a choice: the error where truth is known, else how far figures move."""
    if events is not None:
        places, wanted = targets(rounds, events)
        if places.size:
            errors = [errors_of(played, places, wanted).mean() for _, played in tried]
            return np.array(errors), "mean relative error on labelled rounds"
    answered = tried[0][1].is_answered
    plain = np.array(
        [
            rounds.values[k][rounds.is_valid[k]].mean() if answered[k] else 0.0
            for k in range(len(rounds.labels))
        ]
    )
    moved = [
        float(np.sqrt(np.mean((played.figures - plain)[answered] ** 2))) / rounds.span
        for _, played in tried
    ]
    return np.array(moved), "distance of the figures from plain means, as part of the range"


def _tuned(tuned: Tuned) -> dict[str, Any]:
    found = asdict(tuned)
    found.update(found.pop("weighting"))
    return found


def _write(folder: Path, report: dict[str, Any], found: list[Influence]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(report, indent=1)
        (folder / "sensitivity.json").write_text(text + "\n", encoding="utf-8")
        with (folder / "influence.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["source", "left_out", "worst", "share"])
            writer.writerows((one.source, one.left_out, one.worst, one.share) for one in found)
    except OSError as error:
        raise SetupError(f"{folder} cannot be written ({error.strerror})") from None


@click.command()
@click.argument("history", type=click.Path(path_type=Path))
@click.option("--events", type=click.Path(path_type=Path), help="CSV file of labelled rounds.")
@click.option("--trim", type=float, default=Weighting().trim, show_default=True, help="In use.")
@click.option("--tiers", type=float, default=4.0, show_default=True, help="Ratio in use, 1 to 4.")
@click.option("--decay", type=float, default=0.97, show_default=True, help="In use.")
@click.option("--cap", type=float, default=0.02, show_default=True, help="In use.")
@click.option("--samples", type=int, default=SAMPLES, show_default=True, help="Power of two.")
@click.option(
    "--held-out", type=float, default=HELD_OUT, show_default=True, help="Share judged only."
)
@click.option("--minimum", type=int, default=2, show_default=True, help="Valid readings needed.")
@click.option("--rating", type=float, help="Warn where one source could decide about it.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the results.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the sampled choices.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def sensitivity(
    history: Path,
    events: Path | None,
    trim: float,
    tiers: float,
    decay: float,
    cap: float,
    samples: int,
    held_out: float,
    minimum: int,
    rating: float | None,
    out: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Show which source could sway a result, and which choices of the weighting matter.

    HISTORY is a CSV file with the columns round, source, value, tier, lower, upper and optionally
    baseline, one row a round and source. EVENTS has the columns round, source, truth: a source
    that was bad in that round, or the true figure of the round, or both.
    """
    try:
        weighting = Weighting(trim=trim, tiers=tiers, decay=decay, cap=cap)
        _check(weighting, minimum, samples, seed)
        rounds = read_rounds(history)
        known = read_events(events, rounds) if events else None
        report, found = study(
            rounds,
            known,
            weighting=weighting,
            samples=samples,
            held_out=held_out,
            count_min=minimum,
            rating=rating,
            seed=seed,
        )
        if out is not None:
            _write(out, report, found)
    except VeilgridError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    if as_json:
        click.echo(json.dumps(report))
        return
    _show(report)
    if out is not None:
        click.echo(f"written to {out}")


def _check(weighting: Weighting, minimum: int, samples: int, seed: int) -> None:
    """Refuse options that no weighting has, all at once."""
    limits = {"trim": (0.0, 0.499), "tiers": (1.0, 4.0), "decay": (0.01, 1.0), "cap": (0.001, 1.0)}
    findings = [
        Finding(f"--{name}", f"found {getattr(weighting, name):g}, expected {low:g}..{high:g}")
        for name, (low, high) in limits.items()
        if not low <= getattr(weighting, name) <= high
    ]
    if minimum < 2:
        findings.append(Finding("--minimum", f"found {minimum}, expected 2 or more"))
    if samples not in {2**k for k in range(3, 13)}:
        problem = f"found {samples}, expected a power of two from 8 to 4096"
        findings.append(Finding("--samples", problem))
    if not 0 <= seed < 2**32:
        findings.append(Finding("--seed", f"found {seed}, expected 0..4294967295"))
    if findings:
        raise InputError(findings)


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table as Grid

    console = Console()
    grid = Grid("parameter", "alone", "with others", title=f"share of: {report['output']}")
    for one in report["indices"]:
        first = f"{one['first']:.2f} ± {one['first_confidence']:.2f}"
        total = f"{one['total']:.2f} ± {one['total_confidence']:.2f}"
        grid.add_row(one["parameter"], first, total)
    console.print(grid)
    grid = Grid("source", "left out", "at worst", "largest share", title="influence")
    for one in report["influences"][:8]:
        grid.add_row(
            one["source"], f"{one['left_out']:.2%}", f"{one['worst']:.2%}", f"{one['share']:.1%}"
        )
    console.print(grid)
    tuned = report["tuned"]
    if tuned is not None:
        choice = ", ".join(
            f"{name} {tuned[name]:.3g}" for name in ("trim", "tiers", "decay", "cap")
        )
        verdict = "recommended" if tuned["is_recommended"] else "not better where it counts; keep"
        console.print(
            f"best on {tuned['training_rounds']} earlier events: {choice}\n"
            f"error on {tuned['held_out_rounds']} later events: {tuned['held_out_error']:.2%}, "
            f"today {tuned['default_held_out_error']:.2%}: {verdict}"
        )
    for told in report["warnings"]:
        console.print(f"warning: {told}")
