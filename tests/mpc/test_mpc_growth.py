"""The picture and the table of growth: what the page shows is what was measured."""

import itertools
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from veilgrid.cli._bench_growth import BEGIN, END, PICTURE, SIZES, drawing, start_up, table, update
from veilgrid.errors import InputError

SVG = "{http://www.w3.org/2000/svg}"
START = {
    "what": "start, kernels on disk",
    "parties": 3,
    "count": None,
    "seconds": 1.5,
    "megabytes": None,
    "rounds": None,
    "peak_megabytes": 180.0,
    "processor_seconds": 1.2,
}
ROWS = [
    START,
    *(
        {
            "what": kind,
            "parties": n,
            "count": count,
            "seconds": count / 1000 * n,
            "megabytes": count * n / 1e4,
            "rounds": 20 + n,
            "peak_megabytes": 200.0,
            "processor_seconds": 1.0,
        }
        for kind, n, counts in SIZES
        for count in counts
    ),
]


def test_the_picture_holds_every_point_in_every_panel() -> None:
    root = ET.fromstring(drawing(ROWS))  # noqa: S314 - our own text
    points = len(ROWS) - 1
    assert len(root.findall(f"{SVG}circle")) == 3 * points
    assert len(root.findall(f"{SVG}polyline")) == 3 * len(SIZES)
    _, _, width, height = (float(part) for part in root.attrib["viewBox"].split())
    places = [float(one.attrib[axis]) for one in root.findall(f"{SVG}circle") for axis in ("cx",)]
    assert all(0 < place < width for place in places)
    assert all(0 < float(one.attrib["cy"]) < height for one in root.findall(f"{SVG}circle"))
    assert len(drawing(ROWS)) < 100_000


def test_linear_growth_is_drawn_as_a_straight_line_of_slope_one() -> None:
    """Seconds here are proportional to the count: equal steps to the right, equal steps up."""
    root = ET.fromstring(drawing(ROWS))  # noqa: S314 - our own text
    line = root.findall(f"{SVG}polyline")[0].attrib["points"]
    points = [tuple(float(part) for part in one.split(",")) for one in line.split()]
    rises = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(points)]
    assert max(rises) - min(rises) < 0.01
    assert max(rises) < 0, "up is less in an SVG"


def test_the_page_is_changed_between_its_markers_only(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    written = update(page, ROWS)
    again = update(page, ROWS)
    assert written == again == [page, tmp_path / "img" / PICTURE]
    text = page.read_text()
    assert text.startswith("before\n\n<!--")
    assert text.endswith("-->\n\nafter\n")
    assert "old" not in text
    assert text.count(table(ROWS)) == 1
    assert f"(img/{PICTURE})" in text
    page.write_text("no markers")
    with pytest.raises(InputError, match="no markers"):
        update(page, ROWS)


def test_a_start_is_measured_on_real_processes() -> None:
    row = start_up(is_cold=False)
    assert set(row) == set(START)
    assert 0.1 < row["seconds"] < 120
    assert 50 < row["peak_megabytes"] < 500
