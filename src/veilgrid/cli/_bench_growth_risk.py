"""How rounds over many inputs grow with their number: rows, a picture and a table [risk 7]."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from veilgrid.cli._bench_aggregate import round_row
from veilgrid.cli._bench_growth import drawing, put, table
from veilgrid.cli._bench_rounds import timed
from veilgrid.risk import aggregate_workload, market_workload

BEGIN: Final = "<!-- rounds: written by `veilgrid bench aggregate --growth --update` -->"
END: Final = "<!-- /rounds -->"
PICTURE: Final = "rounds-growth.svg"
COUNTED: Final = "how many (sources, orders, devices)"
TRIMMED: Final = "trimmed mean"

SIZES: Final[tuple[tuple[str, int, tuple[int, ...]], ...]] = (
    (TRIMMED, 3, (100, 1_000, 10_000, 100_000)),
    (TRIMMED, 5, (100, 1_000, 10_000)),
    ("market", 3, (100, 1_000, 5_000, 10_000, 100_000)),
    ("market", 5, (100, 1_000, 10_000)),
    ("capacity", 3, (200, 1_000, 10_000)),
    ("refresh", 3, (200, 1_000, 10_000)),
)
"""Work, parties, and how many inputs. A refresh changes a hundredth of so many devices."""


def bench_growth(
    sizes: Sequence[tuple[str, int, tuple[int, ...]]] = SIZES,
    told: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Return seconds, megabytes, rounds and memory of each kind of round and number of inputs.

    Raises
    ------
    RunAborted
        A result differs from the same computation on plain numbers.
    """
    rows = []
    for kind, n, counts in sizes:
        for count in counts:
            row = _measured(kind, n, count)
            told(f"{kind}, {count} inputs, {n} parties: {row['seconds']:.2f} s")
            rows.append(row)
    return rows


def _measured(kind: str, n: int, count: int) -> dict[str, Any]:
    degree = (n - 1) // 2
    if kind == TRIMMED:
        row = round_row(aggregate_workload.Workload("trimmed-mean", count, degree), n)
    else:
        row = timed(f"{kind}, {count}", market_workload.Workload(kind, count, degree), n)
    return {
        "what": kind,
        "parties": n,
        "count": count,
        "seconds": row["ours"],
        "megabytes": row["ours_megabytes"],
        "rounds": row["rounds"],
        "peak_megabytes": row["ours_peak_megabytes"],
        "processor_seconds": row["processor_seconds"],
    }


def update(page: Path, rows: Sequence[dict[str, Any]]) -> list[Path]:
    """Put picture and table between the markers of a page; return what was written.

    Raises
    ------
    InputError
        The page has no such markers.
    """
    return put(page, (BEGIN, END), PICTURE, drawing(rows, COUNTED), table(rows))
