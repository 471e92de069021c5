"""Growth of rounds over many inputs: measured on processes, drawn and written as measured."""

import xml.etree.ElementTree as ET
from pathlib import Path

from veilgrid.cli._bench_aggregate import _shares
from veilgrid.cli._bench_growth_risk import BEGIN, END, PICTURE, SIZES, bench_growth, update

SVG = "{http://www.w3.org/2000/svg}"


def test_small_rounds_are_measured_and_every_point_is_drawn(tmp_path: Path) -> None:
    """Each row is a round of processes that opened what plain numbers give."""
    told: list[str] = []
    rows = bench_growth((("trimmed mean", 3, (60,)), ("market", 3, (64,))), told.append)
    assert [(row["what"], row["count"]) for row in rows] == [("trimmed mean", 60), ("market", 64)]
    assert all(0 < row["seconds"] < 120 and row["megabytes"] > 0 for row in rows)
    assert len(told) == 2
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    assert update(page, rows) == [page, tmp_path / "img" / PICTURE]
    root = ET.fromstring((tmp_path / "img" / PICTURE).read_text())  # noqa: S314 - our own text
    assert len(root.findall(f"{SVG}circle")) == 3 * len(rows)
    assert "| market | 3 | 64 |" in page.read_text()


def test_the_sizes_reach_the_goals() -> None:
    """A picture that stops short of 100,000 would not show the goal."""
    largest = {kind: counts[-1] for kind, n, counts in SIZES if n == 3}
    assert largest["trimmed mean"] == largest["market"] == 100_000
    assert largest["capacity"] == largest["refresh"] == 10_000


def test_shares_of_a_round_add_up_to_all_of_it() -> None:
    rows = _shares(100)
    assert len(rows) == 3
    assert all(row["ours"] >= 0 for row in rows)
    whole = rows[-1]["peer"]
    assert rows[0]["ours"] <= whole * 10
    assert {row["unit"] for row in rows} == {"s"}
