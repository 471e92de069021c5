"""One CSV file of a scenario folder as a table of cells; every fault is noted, none is raised."""

import csv
import difflib
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from veilgrid.errors import Finding
from veilgrid.grid.network import Floats

COLUMN_COUNT_MAX = 100_000
NAMED_MAX = 6


class Notes:
    """Findings that forbid a scenario and remarks that do not, in the order of discovery."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.remarks: list[Finding] = []

    def fault(self, where: str, problem: str, advice: str = "") -> None:
        """Note a broken rule."""
        self.findings.append(Finding(where, problem, advice))

    def remark(self, where: str, problem: str, advice: str = "") -> None:
        """Note something that a person should know and that is allowed."""
        self.remarks.append(Finding(where, problem, advice))


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a file: its number, counted from 1 at the header, and its cells by column."""

    line: int
    cells: dict[str, str]


@dataclass(frozen=True, slots=True)
class Table:
    """A CSV file whose header could be read; ragged rows are left out and noted."""

    file: str
    header: tuple[str, ...]
    rows: tuple[Row, ...] = field(repr=False)

    def at(self, line: int, column: str) -> str:
        """Name a cell as findings do."""
        return f"{self.file} row {line}, column {column}"


def several(names: Iterable[object]) -> str:
    """List names for a person, the first few only."""
    listed = [str(name) for name in names]
    more = len(listed) - NAMED_MAX
    return ", ".join(listed[:NAMED_MAX]) + (f" and {more} more" if more > 0 else "")


def likewise(count: int, where: str = "") -> str:
    """Say that so many more rows have the same fault; empty if none has."""
    return f"; {count} more row{'s' * (count > 1)} {where} likewise".replace("  ", " ") * (
        count > 0
    )


def meant(name: str, known: Iterable[str]) -> str:
    """Advise the known name that resembles ``name``; empty if none does."""
    lowered = {word.lower(): word for word in known}
    close = difflib.get_close_matches(name.lower(), list(lowered), n=1, cutoff=0.7)
    return f"did you mean {lowered[close[0]]}?" if close else ""


def decoded(file: str, data: bytes, notes: Notes) -> str | None:
    """Decode UTF-8, with or without a byte order mark."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        notes.fault(f"{file} row {line}", "is not UTF-8 text", "save the file as UTF-8")
        return None
    if "\0" in text:
        notes.fault(file, "holds NUL characters: it is not UTF-8 text", "save the file as UTF-8")
        return None
    if not text.strip():
        notes.fault(file, "is empty")
        return None
    return text


def read_table(
    file: str, data: bytes, required: Sequence[str], notes: Notes, optional: Sequence[str] = ()
) -> Table | None:
    """Split a file into header and rows; ``None`` if not even the header is usable."""
    text = decoded(file, data, notes)
    if text is None:
        return None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    lines: list[tuple[int, list[str]]] = []
    try:
        lines.extend(
            (reader.line_num, [cell.strip() for cell in cells])
            for cells in reader
            if any(cell.strip() for cell in cells)
        )
    except csv.Error as error:
        notes.fault(f"{file} row {reader.line_num}", f"is not valid CSV: {error}")
        return None
    if not lines:
        notes.fault(file, "is empty")
        return None
    header = lines[0][1]
    if not _header_is_usable(file, header, required, optional, notes):
        return None
    rows = []
    for line, cells in lines[1:]:
        if len(cells) == len(header):
            rows.append(Row(line, dict(zip(header, cells, strict=True))))
        else:
            notes.fault(
                f"{file} row {line}",
                f"has {len(cells)} cells, the header has {len(header)}",
                "an empty cell still needs its comma; decimals are written with a point",
            )
    return Table(file, tuple(header), tuple(rows))


def _header_is_usable(
    file: str,
    header: list[str],
    required: Sequence[str],
    optional: Sequence[str],
    notes: Notes,
) -> bool:
    if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
        advice = "export with commas between cells and points in decimals"
        notes.fault(f"{file} row 1", "cells are not separated by commas", advice)
        return False
    if len(header) > COLUMN_COUNT_MAX:
        notes.fault(f"{file} row 1", f"has {len(header)} columns, at most {COLUMN_COUNT_MAX}")
        return False
    seen: dict[str, int] = {}
    for position, name in enumerate(header, start=1):
        if not name:
            notes.fault(f"{file} row 1", f"column {position} has no name")
        elif name in seen:
            notes.fault(f"{file} row 1, column {name}", "is listed more than once")
        seen[name] = position
    missing = [name for name in required if name not in seen]
    strangers = [name for name in header if name not in (*required, *optional)]
    for name in missing:
        close = meant(name, strangers).replace("did you mean", "is it written as column")
        notes.fault(f"{file} row 1, column {name}", "is missing", close)
    return not missing and len(seen) == len(header)


def check_strangers(table: Table, known: Sequence[str], notes: Notes) -> None:
    """Note columns that nobody reads: as a fault if a known name resembles them."""
    for name in table.header:
        if name not in known:
            absent = [word for word in known if word not in table.header]
            close, here = meant(name, absent), f"{table.file} row 1, column {name}"
            if close:
                notes.fault(here, "is unknown", close)
            else:
                notes.remark(here, "is ignored: the format knows no such column")


def number(text: str) -> tuple[float, str]:
    """Read a finite number; the second result says what is wrong, empty if nothing is."""
    try:
        value = math.nan if "_" in text else float(text)
    except ValueError:
        value = math.nan
        if text.count(",") == 1 and text.replace(",", ".").replace(".", "", 1).isdigit():
            return value, f"is {shown(text)}, decimals are written with a point"
    if math.isfinite(value):
        return value, ""
    return value, f"is {shown(text)}, a finite number is needed" if text else "is empty"


def shown(text: str) -> str:
    """Quote what was found, shortened."""
    return repr(text if len(text) <= 40 else text[:37] + "...")


def read_series(
    table: Table,
    interval_count: int | None,
    columns: Sequence[str],
    notes: Notes,
    rule: Callable[[float], str] = lambda value: "",  # noqa: ARG005 - no rule by default
) -> Floats | None:
    """Read columns of a table by interval, (column, interval).

    ``rule`` says what is wrong with a value, empty if nothing is. Intervals must be 0, 1, 2 ...
    in order and ``interval_count`` in number. ``None`` if anything was noted.
    """
    before = len(notes.findings)
    _check_intervals(table, interval_count, notes)
    values = np.zeros((len(columns), len(table.rows)))
    for index, column in enumerate(columns):
        faults: dict[str, list[tuple[int, str]]] = {}
        for position, row in enumerate(table.rows):
            value, problem = number(row.cells[column])
            values[index, position] = value
            problem = problem or rule(value)
            if problem:
                faults.setdefault(problem.rpartition(",")[2], []).append((row.line, problem))
        for group in faults.values():
            line, problem = group[0]
            more = likewise(len(group) - 1, "of this column")
            notes.fault(table.at(line, column), problem + more)
    return values if len(notes.findings) == before else None


def _check_intervals(table: Table, interval_count: int | None, notes: Notes) -> None:
    """Note every interval that is missing, doubled, out of order or not a number."""
    numbers: list[int] = []
    seen: dict[int, int] = {}
    for row in table.rows:
        value, problem = number(row.cells["interval"])
        here = table.at(row.line, "interval")
        if problem or value != int(value) or value < 0:
            notes.fault(here, problem or f"is {value:g}, must be 0, 1, 2 ...")
        elif int(value) in seen:
            notes.fault(here, f"interval {int(value)} is already in row {seen[int(value)]}")
        elif interval_count is not None and value >= interval_count:
            last = interval_count - 1
            notes.fault(here, f"is {int(value)}, the last interval is {last}", "count from 0")
        else:
            if numbers and value < numbers[-1]:
                notes.fault(here, f"interval {int(value)} stands after {numbers[-1]}", "sort them")
            seen[int(value)] = row.line
            numbers.append(int(value))
    expected = interval_count if interval_count is not None else max(numbers, default=-1) + 1
    if expected <= 10 * len(table.rows) + 1000:
        absent = [number_ for number_ in range(expected) if number_ not in seen]
    else:
        absent = list(range(len(table.rows), len(table.rows) + NAMED_MAX))
    if absent:
        notes.fault(
            table.file,
            f"{len(seen)} of {expected} intervals are there, missing: {several(absent)}",
            "give every interval one row, or correct interval_count in scenario.toml",
        )
