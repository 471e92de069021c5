"""CSV files of verbs as tables of cells, with the same findings as scenario folders."""

from collections.abc import Callable, Sequence
from pathlib import Path

from veilgrid.errors import Finding, InputError
from veilgrid.grid._table import Notes, Row, Table, number, read_table


def read(path: Path, required: Sequence[str], notes: Notes) -> Table | None:
    """Read a CSV file; faults are noted.

    Raises
    ------
    InputError
        The file cannot be opened.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error})"
        raise InputError([Finding(str(path), problem, "give the path of a CSV file")]) from None
    return read_table(path.name, data, required, notes)


def cell(
    table: Table, row: Row, column: str, rule: Callable[[float], str], notes: Notes
) -> float | None:
    """Return the number in a cell; ``None`` if anything is wrong with it, which is noted."""
    value, problem = number(row.cells[column])
    problem = problem or rule(value)
    if problem:
        notes.fault(table.at(row.line, column), problem)
        return None
    return value


def at_least_zero(value: float) -> str:
    """Say what is wrong with a number that must not be negative."""
    return "" if value >= 0 else f"is {value:g}, must be 0 or more"


def probability(value: float) -> str:
    """Say what is wrong with a probability."""
    return "" if 0 <= value <= 1 else f"is {value:g}, must lie in 0..1"


def name_of(table: Table, row: Row, column: str, notes: Notes, seen: dict[str, int]) -> str:
    """Return the unique name in a cell; faults are noted."""
    found = row.cells[column]
    here = table.at(row.line, column)
    if not found:
        notes.fault(here, "is empty", "every row needs a name")
    elif found in seen:
        notes.fault(here, f"{found} is already in row {seen[found]}", "names are unique")
    seen.setdefault(found, row.line)
    return found


def refuse(notes: Notes) -> None:
    """Raise all faults at once, if there are any."""
    if notes.findings:
        raise InputError(notes.findings)
