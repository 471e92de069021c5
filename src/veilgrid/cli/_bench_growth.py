"""How secure computation grows with inputs and parties: rows, a picture and a table of text."""

import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from veilgrid.cli._bench_mpc import measured, specs_of
from veilgrid.errors import Finding, InputError
from veilgrid.mpc.workload import Workload
from veilgrid.node.local import Deployment

BEGIN: Final = "<!-- growth: written by `veilgrid bench mpc --growth --update` -->"
END: Final = "<!-- /growth -->"
PICTURE: Final = "mpc-growth.svg"
COUNTED: Final = "how many (comparisons, products, numbers sorted)"

SIZES: Final[tuple[tuple[str, int, tuple[int, ...]], ...]] = (
    ("comparisons", 3, (100, 1_000, 10_000, 100_000)),
    ("comparisons", 5, (100, 1_000, 10_000)),
    ("comparisons", 7, (100, 1_000, 10_000)),
    ("multiplications", 3, (10_000, 100_000, 1_000_000)),
    ("multiplications", 5, (10_000, 100_000, 1_000_000)),
    ("multiplications", 7, (10_000, 100_000, 1_000_000)),
    ("sort", 3, (100, 1_000, 10_000)),
    ("sort", 5, (100, 1_000)),
    ("sort", 7, (100, 1_000)),
)
"""Work, parties, and how many of it: each goes up to what the smallest machine holds."""

_PANELS: Final = (
    ("seconds", "seconds", 1.0),
    ("megabytes", "MB sent by one party", 1.0),
    ("rounds", "rounds", 1.0),
)
_COLOURS: Final = {3: "#2563a8", 5: "#b45f06", 7: "#7b3294"}
_DASHES: Final = {
    "comparisons": "",
    "multiplications": "6 3",
    "sort": "2 3",
    "trimmed mean": "",
    "market": "6 3",
    "capacity": "2 3",
    "refresh": "8 2 2 2",
}
_WIDTH, _HEIGHT, _GAP = 270, 230, 60


def bench_growth(
    sizes: Sequence[tuple[str, int, tuple[int, ...]]] = SIZES,
    told: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Return seconds, megabytes, rounds and memory of each kind and amount of work.

    Parties are processes with mutual TLS on loopback, secure against deviating parties.
    """
    rows: list[dict[str, Any]] = [start_up(is_cold=True), start_up(is_cold=False)]
    for kind, n, counts in sizes:
        for count in counts:
            ours = measured(Workload(kind, count, (n - 1) // 2), n)
            told(f"{count} {kind}, {n} parties: {ours['seconds']:.2f} s")
            rows.append(
                {
                    "what": kind,
                    "parties": n,
                    "count": count,
                    "seconds": ours["seconds"],
                    "megabytes": ours["octets"] / 1e6,
                    "rounds": int(ours["rounds"]),
                    "peak_megabytes": ours["peak"] / 1e6,
                    "processor_seconds": ours["processor_seconds"],
                }
            )
    return rows


def start_up(*, is_cold: bool) -> dict[str, Any]:
    """Return how long three parties take to start, connect and load every kernel.

    Parameters
    ----------
    is_cold
        Without kernels that an earlier start compiled and kept on disk.
    """
    workload = Workload("comparisons", 1, 1)
    with tempfile.TemporaryDirectory(prefix="veilgrid-kernels-") as folder:
        environment = dict(os.environ)
        if is_cold:
            environment["NUMBA_CACHE_DIR"] = folder
        began = time.perf_counter()
        with Deployment(specs_of(workload, 3), environment=environment) as deployment:
            deployment.start(300)
            seconds = time.perf_counter() - began
            deployment.wait(60)
            results = deployment.stop()
    return {
        "what": "first start, kernels compiled" if is_cold else "start, kernels on disk",
        "parties": 3,
        "count": None,
        "seconds": seconds,
        "megabytes": None,
        "rounds": None,
        "peak_megabytes": max(one.peak_memory_octets for one in results) / 1e6,
        "processor_seconds": max(one.processor_seconds for one in results),
    }


# -- text -----------------------------------------------------------------------------------------


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a table in Markdown."""
    out = [
        "| work | parties | count | s | MB sent a party | rounds | peak MB | processor s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        count = "-" if row["count"] is None else f"{row['count']:,}"
        cells = [row["what"], str(row["parties"]), count, f"{row['seconds']:.3g}"]
        cells += ["-" if row["megabytes"] is None else f"{row['megabytes']:.3g}"]
        cells += ["-" if row["rounds"] is None else str(row["rounds"])]
        cells += [f"{row['peak_megabytes']:.0f}", f"{row['processor_seconds']:.1f}"]
        out.append(f"| {' | '.join(cells)} |")
    return "\n".join(out)


def update(page: Path, rows: Sequence[dict[str, Any]]) -> list[Path]:
    """Put picture and table between the markers of a page; return what was written.

    Raises
    ------
    InputError
        The page has no such markers.
    """
    return put(page, (BEGIN, END), PICTURE, drawing(rows), table(rows))


def put(page: Path, marks: tuple[str, str], picture: str, drawn: str, written: str) -> list[Path]:
    """Put a picture and a table between two markers of a page; return what was written.

    Raises
    ------
    InputError
        The page has no such markers.
    """
    begin, end = marks
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    head, is_begun, rest = text.partition(begin)
    _, is_ended, tail = rest.partition(end)
    if not (is_begun and is_ended):
        problem = "the page has no markers for this growth"
        raise InputError([Finding(str(page), problem, f"add {begin} and {end}")])
    path = page.parent / "img" / picture
    path.parent.mkdir(exist_ok=True)
    path.write_text(drawn, encoding="utf-8")
    shown = f"![Seconds, megabytes and rounds against the amount of work](img/{picture})"
    parts = (begin, shown, written, circumstances(), end)
    page.write_text(head + "\n\n".join(parts) + tail, encoding="utf-8")
    return [page, path]


def circumstances() -> str:
    """Return what else kept the machine busy while it was measured."""
    busy = os.getloadavg()[2]
    return (
        f"Measured on {os.cpu_count()} processors; load average of the last 15 minutes "
        f"{busy:.1f}, of which the measured processes are a part."
    )


# -- picture --------------------------------------------------------------------------------------


def drawing(rows: Sequence[dict[str, Any]], counted: str = COUNTED) -> str:
    """Return an SVG of seconds, megabytes and rounds against the amount, both axes by decades."""
    lines = [row for row in rows if row["count"] is not None]
    width, height = len(_PANELS) * (_WIDTH + _GAP) + 20, _HEIGHT + 130
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for place, (key, title, _) in enumerate(_PANELS):
        out += _panel(lines, key, title, _GAP + place * (_WIDTH + _GAP), 30)
        middle = _GAP + place * (_WIDTH + _GAP) + _WIDTH / 2
        out.append(f'<text x="{middle}" y="{_HEIGHT + 64}" text-anchor="middle">{counted}</text>')
    out += _legend(lines, _GAP, _HEIGHT + 80)
    return "\n".join([*out, "</svg>", ""])


def _decades(values: Sequence[float]) -> tuple[int, int]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _panel(rows: Sequence[dict[str, Any]], key: str, title: str, left: int, top: int) -> list[str]:
    (x_low, x_high), (y_low, y_high) = (
        _decades([float(row[name]) for row in rows]) for name in ("count", key)
    )

    def x_of(value: float) -> float:
        return left + _WIDTH * (math.log10(value) - x_low) / (x_high - x_low)

    def y_of(value: float) -> float:
        return top + _HEIGHT * (1 - (math.log10(value) - y_low) / (y_high - y_low))

    out = [f'<text x="{left}" y="{top - 10}" font-weight="bold">{title}</text>']
    for power in range(x_low, x_high + 1):
        x = x_of(10.0**power)
        out.append(f'<path d="M{x:.1f} {top}v{_HEIGHT}" stroke="#dddddd"/>')
        label = f"{10**power:,}" if power < 4 else f"1e{power}"
        out.append(
            f'<text x="{x:.1f}" y="{top + _HEIGHT + 16}" text-anchor="middle">{label}</text>'
        )
    for power in range(y_low, y_high + 1):
        y = y_of(10.0**power)
        out.append(f'<path d="M{left} {y:.1f}h{_WIDTH}" stroke="#dddddd"/>')
        label = f"{10.0**power:g}" if -3 < power < 5 else f"1e{power}"
        out.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for kind, n in _series(rows):
        points = [row for row in rows if (row["what"], row["parties"]) == (kind, n)]
        line = " ".join(f"{x_of(row['count']):.1f},{y_of(row[key]):.1f}" for row in points)
        out.append(
            f'<polyline points="{line}" fill="none" stroke="{_COLOURS[n]}" stroke-width="1.6" '
            f'stroke-dasharray="{_DASHES[kind]}"/>'
        )
        out += [
            f'<circle cx="{x_of(row["count"]):.1f}" cy="{y_of(row[key]):.1f}" r="2.4" '
            f'fill="{_COLOURS[n]}"/>'
            for row in points
        ]
    return out


def _series(rows: Sequence[dict[str, Any]]) -> list[tuple[str, int]]:
    return list(dict.fromkeys((row["what"], row["parties"]) for row in rows))


def _legend(rows: Sequence[dict[str, Any]], left: int, top: int) -> list[str]:
    out = []
    for place, (kind, n) in enumerate(_series(rows)):
        x, y = left + (place // 3) * 220, top + (place % 3) * 16
        out.append(
            f'<path d="M{x} {y}h28" stroke="{_COLOURS[n]}" stroke-width="1.6" '
            f'stroke-dasharray="{_DASHES[kind]}"/>'
        )
        out.append(f'<text x="{x + 34}" y="{y + 4}">{kind}, {n} parties</text>')
    return out
