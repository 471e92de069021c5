"""Readings of many sources from a CSV file."""

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from veilgrid.errors import Finding, InputError
from veilgrid.risk.aggregate import Source
from veilgrid.risk.trust import TIERS

COLUMNS: Final = ("source", "value", "tier", "lower", "upper")
OPTIONAL: Final = ("baseline", "usual", "reliability", "region", "interval")


@dataclass(frozen=True, slots=True)
class Readings:
    """A file of readings.

    Attributes
    ----------
    sources, values : (source,)
        In the order of the file; a value is None where there is none.
    skipped
        Name and reason of rows that could not be used; empty unless they were to be skipped.
    regions : (source,)
        Feeder or gateway that each belongs to; empty where the file does not say.
    intervals : (source,), from 1
        Of a series; a source then has a row in each interval.
    """

    sources: tuple[Source, ...]
    values: tuple[float | None, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    regions: tuple[str, ...] = ()
    intervals: tuple[int, ...] = ()


def read_readings(path: Path, *, skips_bad_rows: bool = False, is_series: bool = False) -> Readings:
    """Read a CSV file of readings.

    Parameters
    ----------
    path
        The file.
    skips_bad_rows
        Leave out rows that break a rule, and say so, in place of refusing the file.
    is_series
        Rows have intervals; otherwise that column is not looked at.

    Raises
    ------
    InputError
        Every broken rule, with row and column.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            header = [name.strip() for name in reader.fieldnames or []]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError([Finding(str(path), f"cannot be read ({error})")]) from None
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        problem = f"column {', '.join(missing)} is missing"
        raise InputError([Finding(path.name, problem, f"expected {', '.join(COLUMNS)}")])
    if not rows:
        raise InputError([Finding(path.name, "holds no rows")])
    has = {column: column in header for column in OPTIONAL}
    findings: list[Finding] = []
    sources: list[Source] = []
    values: list[float | None] = []
    skipped: list[tuple[str, str]] = []
    regions: list[str] = []
    intervals: list[int] = []
    seen: set[tuple[int, str]] = set()
    for line, row in enumerate(rows, 2):
        cells = {(key or "").strip(): value for key, value in row.items() if key is not None}
        faults: list[Finding] = []
        found = _row(path.name, line, cells, has, faults)
        interval = _interval(path.name, line, cells, faults) if is_series else 0
        if found and (interval, found[0].name) in seen:
            where = f"{path.name} row {line}, column source"
            faults.append(Finding(where, f"{found[0].name} appears twice"))
        region = (cells.get("region") or "").strip()
        if has["region"] and not region:
            faults.append(Finding(f"{path.name} row {line}, column region", "is empty"))
        if faults and skips_bad_rows:
            name = (cells.get("source") or "").strip() or f"row {line}"
            skipped.append((name, "; ".join(str(fault) for fault in faults)))
        findings += faults
        if found and not faults:
            seen.add((interval, found[0].name))
            intervals += [interval] if is_series else []
            sources.append(found[0])
            values.append(found[1])
            regions += [region] if has["region"] else []
    if findings and not skips_bad_rows:
        raise InputError(findings)
    return Readings(tuple(sources), tuple(values), tuple(skipped), tuple(regions), tuple(intervals))


def _row(
    name: str,
    line: int,
    cells: Mapping[str, str | None],
    has: Mapping[str, bool],
    faults: list[Finding],
) -> tuple[Source, float | None] | None:
    where = f"{name} row {line}, column "
    value = _number(where, "value", cells, faults, is_needed=False)
    lower = _number(where, "lower", cells, faults)
    upper = _number(where, "upper", cells, faults)
    baseline = _number(where, "baseline", cells, faults) if has["baseline"] else None
    usual = _number(where, "usual", cells, faults) if has["usual"] else None
    reliability = None
    if has["reliability"]:
        reliability = _number(where, "reliability", cells, faults, is_needed=False)
    source = (cells.get("source") or "").strip()
    if not source:
        faults.append(Finding(where + "source", "is empty"))
    tier = (cells.get("tier") or "").strip().lower()
    if tier not in TIERS:
        found = repr(tier) if tier else "nothing"
        faults.append(Finding(where + "tier", f"found {found}, expected {', '.join(TIERS)}"))
    if lower is not None and upper is not None and lower > upper:
        problem = f"{lower:g} is above the upper bound {upper:g}"
        faults.append(Finding(where + "lower", problem))
    if baseline is not None and not baseline > 0:
        problem = f"found {baseline:g}, expected more than 0"
        advice = "leave out the column if there is no baseline for everybody"
        faults.append(Finding(where + "baseline", problem, advice))
    if usual is not None and not usual > 0:
        problem = f"found {usual:g}, expected more than 0"
        advice = "write the baseline where no median is known"
        faults.append(Finding(where + "usual", problem, advice))
    if usual is not None and not has["baseline"]:
        problem = "is used with the column baseline only"
        faults.append(Finding(where + "usual", problem, "add baseline, or leave this out"))
    if reliability is not None and not 0 <= reliability <= 1:
        faults.append(Finding(where + "reliability", f"found {reliability:g}, expected 0..1"))
    if faults or lower is None or upper is None:
        return None
    return Source(source, tier, lower, upper, baseline, reliability, usual), value


def _interval(name: str, line: int, cells: Mapping[str, str | None], faults: list[Finding]) -> int:
    text = (cells.get("interval") or "").strip()
    if text.isdecimal() and int(text) > 0:
        return int(text)
    problem = f"found {text!r}, expected a whole number from 1"
    faults.append(Finding(f"{name} row {line}, column interval", problem))
    return 0


def _number(
    where: str,
    column: str,
    cells: Mapping[str, str | None],
    faults: list[Finding],
    *,
    is_needed: bool = True,
) -> float | None:
    """Return a finite number; None where nothing stands, which is a fault if it is needed."""
    text = (cells.get(column) or "").strip()
    if text.lower() in ("", "nan"):
        if is_needed:
            faults.append(Finding(where + column, "is empty, expected a number"))
        return None
    try:
        value = float(text)
    except ValueError:
        faults.append(Finding(where + column, f"found {text!r}, expected a number"))
        return None
    if not math.isfinite(value):
        faults.append(Finding(where + column, f"found {text}, expected a finite number"))
        return None
    return value
