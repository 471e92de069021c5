"""The report: one file, nothing loaded, every picture there, its numbers those of the run."""

import base64
import dataclasses
import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from plotly.offline import get_plotlyjs

from veilgrid.report.page import PICTURES, render, render_compare
from veilgrid.report.plot import View, packed
from veilgrid.report.words import EXPOSED, SCHEMES, certificate

NAMES = {"feeder", "voltage", "dispatch", "prices", "convergence", "savings", "batteries",
         "loading"}  # fmt: skip
SCHEME_NAMES = ("alone", "central", "ledger", "neighbour", "neighbour-ledger", "exchange",
                "masked", "sealed")  # fmt: skip
VOID = {"meta", "input", "br", "link", "img", "hr"}


class Outline(HTMLParser):
    """Collects what a page holds; every element that opens must close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.text.append(data)


def parse(page: str) -> Outline:
    outline = Outline()
    outline.feed(page)
    outline.close()
    assert outline.open == []
    return outline


def page_of(record) -> str:
    return render(record.summary, record.scenario, record.tables)


def figures_of(page: str) -> dict[str, Any]:
    return json.loads(parse(page).scripts[0]) if 'id="figures"' in page else {}


def unpacked(entry: dict[str, Any]) -> np.ndarray:
    codes = np.frombuffer(base64.b64decode(entry["packed"]), "<u2").reshape(entry["shape"])
    return np.where(codes == 65535, np.nan, entry["low"] + entry["step"] * codes)


def drawable(value: object, key: str = "") -> object:
    """Resolve colours and packed numbers as the page does."""
    if isinstance(value, dict):
        if "packed" in value:
            return unpacked(value).tolist()
        return {name: drawable(entry, name) for name, entry in value.items()}
    if isinstance(value, list):
        return [drawable(entry, key) for entry in value]
    is_colour = isinstance(value, str) and key.endswith("color") and value.startswith("@")
    return "#123456" if is_colour else value


def test_the_page_loads_nothing(record) -> None:
    """A report that phones home tells others what was planned."""
    page = page_of(record)
    assert page.count(get_plotlyjs()) == 1
    own = page.replace(get_plotlyjs(), "")
    assert "http://" not in own
    assert "https://" not in own
    assert "url(" not in own
    assert "@import" not in own
    outline = parse(page)
    for tag, attributes in outline.tags:
        assert tag not in {"link", "iframe", "img", "object", "embed", "base", "form"}
        assert not {"src", "href", "srcset", "action"} & set(attributes)
    policy = [a for t, a in outline.tags if t == "meta" and a.get("http-equiv")]
    assert policy[0]["content"].startswith("default-src 'none'")


def test_no_button_sends_data_to_a_server(record) -> None:
    """By default plotly shows one that uploads the figure; ours are named one by one."""
    script = page_of(record).replace(get_plotlyjs(), "")
    assert 'modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]]' in script
    assert 'plotlyServerURL: ""' in script


def test_every_picture_is_there_and_valid(record) -> None:
    page = page_of(record)
    figures = figures_of(page)
    assert set(figures) == NAMES
    assert len(PICTURES) == len(NAMES)
    drawn = [a["data-figure"] for _, a in parse(page).tags if "data-figure" in a]
    assert set(drawn) == NAMES
    for figure in figures.values():
        go.Figure(data=drawable(figure["data"]), layout=drawable(figure["layout"]))
        axes = {k: v for k, v in figure["layout"].items() if re.fullmatch(r"[xy]axis\d*", k)}
        for entry in axes.values():
            assert entry.get("visible") is False or entry["title"]["text"]


def test_pictures_carry_the_numbers_of_the_tables(record) -> None:
    figures = figures_of(page_of(record))
    buses = record.tables.buses
    voltage = buses["voltage_pu"].to_numpy(np.float64).reshape(6, -1)
    assert unpacked(figures["feeder"]["feeder"]["plan"]) == pytest.approx(voltage, abs=1e-5)
    low = next(t for t in figures["voltage"]["data"] if t["name"] == "plan")["y"][:-1]
    assert low == pytest.approx(voltage[1:].min(axis=0).tolist(), abs=1e-6)
    stacked = [t for t in figures["dispatch"]["data"] if "stackgroup" in t]
    total = np.sum([t["y"][:-1] for t in stacked], axis=0)
    load = buses.groupby("interval")["load_mw"].sum().to_numpy()
    assert total == pytest.approx(load, abs=1e-4)


def test_savings_are_sorted_and_sum_to_what_the_table_says(record) -> None:
    bars = figures_of(page_of(record))["savings"]["data"][0]["y"]
    assert bars == sorted(bars, reverse=True)
    table = record.tables.settlement
    sites = table[table["site"] != "station"]
    assert len(bars) == len(sites)
    assert sum(bars) == pytest.approx(sites["saving"].sum())


def test_the_header_says_what_the_summary_says(record) -> None:
    text = " ".join(" ".join(parse(page_of(record)).text).split())
    assert "The horizon costs 1,234.56 EUR" in text
    alone = sum(site["cost_alone"] for site in record.summary["settlement"]["sites"])
    assert f"{100 * (alone - 1234.56) / alone:,.2f} %" in text
    assert "0.9800 to 1.0100 pu (limits 0.95 to 1.05)" in text
    assert "cost is within 0.002 % of a bound that no feasible plan can undercut" in text
    assert "12 messages, 3.5 kB" in text
    assert "The coordinator sees each site's net demand" in text
    assert "Payments sum to zero" in text


HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "a\"b'c&d",
    "{{ 7*7 }}",
    "@ink",
    "%{x}",
    "<!--",
    "ü\u2028ß",
]


def test_names_cannot_break_out_of_their_place(build) -> None:
    """Bus names come from files of others; they are text and never markup."""
    page = page_of(build(HOSTILE))
    outline = parse(page)
    assert sum(tag == "script" for tag, _ in outline.tags) == 3
    assert not any(tag == "img" for tag, _ in outline.tags)
    text = "".join(outline.text)
    for name in HOSTILE:
        assert name in text
    embedded = outline.scripts[0]
    assert "<" not in embedded
    names = json.loads(embedded)["feeder"]["feeder"]["names"]
    assert names[0] == "&lt;script&gt;alert(1)&lt;/script&gt;"


@pytest.mark.parametrize("scheme", ["alone", "central", "exchange"])
@pytest.mark.parametrize(
    ("names", "lacks"),
    [
        (["only"], {"has_devices": False, "has_limits": False}),
        (["only"], {}),
        (["station", "a"], {"has_devices": False}),
        (["station", "a"], {"has_limits": False}),
        (["station", "a", "b"], {"has_plan": False}),
        ([f"bus {k}" for k in range(120)], {}),
    ],
)
def test_unusual_runs_make_a_page(build, scheme, names, lacks) -> None:
    record = build(names, scheme=scheme, **lacks)
    figures = figures_of(page_of(record))
    for figure in figures.values():
        go.Figure(data=drawable(figure["data"]), layout=drawable(figure["layout"]))
    assert ("batteries" in figures) == (
        lacks.get("has_devices", True) and lacks.get("has_plan", True)
    )
    has_sites = len(names) > 1 or lacks.get("has_devices", True)
    assert ("savings" in figures) == (scheme != "alone" and has_sites)


def test_a_run_without_plan_says_so_and_why(build) -> None:
    record = build(["station", "a"], has_plan=False)
    record.summary["findings"] = ["bus a, interval 3: voltage 0.93 pu is below 0.95 pu"]
    text = "".join(parse(page_of(record)).text)
    assert "found no plan that keeps all limits" in text
    assert "bus a, interval 3: voltage 0.93 pu is below 0.95 pu" in text


def test_a_plan_that_fails_its_checks_is_not_praised(record) -> None:
    summary = record.summary | {
        "ac_check": {"passed": False, "vm_min_pu": 0.9, "vm_max_pu": 1.1, "loading_max": 1.2},
        "certificate": {"accepted": False, "primal": 1.0, "dual": 1.0, "gap": 0.5},
        "settlement": {
            "sum": 3.0,
            "individually_rational": False,
            "sites": [],
            "congestion_rent": 12.5,
        },
    }
    text = "".join(parse(render(summary, record.scenario, record.tables)).text)
    for told in (
        "not passed",
        "not accepted",
        "no, 3.00 EUR remain",
        "12.50 EUR",
        "must not be released",
    ):
        assert told in text


def test_a_large_feeder_stays_one_file_of_six_megabytes(build) -> None:
    page = page_of(build([f"b{k}" for k in range(1000)], intervals=96))
    assert len(page.encode()) < 6_200_000


def test_packing_keeps_one_part_in_sixty_thousand() -> None:
    values = np.random.default_rng(0).normal(size=(7, 11))
    values[2, 3] = np.nan
    back = unpacked(packed(values))
    assert np.isnan(back[2, 3])
    spread = np.nanmax(values) - np.nanmin(values)
    assert np.nanmax(np.abs(back - values)) <= spread / 60_000
    assert unpacked(packed(np.full((2, 2), 5.0))).tolist() == [[5.0, 5.0], [5.0, 5.0]]
    assert np.isnan(unpacked(packed(np.full((1, 2), np.nan)))).all()


def test_times_have_an_end(record) -> None:
    view = View.of(record.scenario, record.tables)
    assert view.times[0] == "2016-07-18T21:00:00"
    assert view.times[-1] == "2016-07-19T05:00:00"
    assert view.zone == "UTC+02:00"
    assert view.clock(4) == "2016-07-19 01:00"


def test_texts_are_honest_about_who_sees_what() -> None:
    assert set(SCHEMES) == set(EXPOSED) == set(SCHEME_NAMES)
    assert "Masking is not encryption" in EXPOSED["masked"]
    assert "net demand" in EXPOSED["exchange"]
    assert "coordinator" in EXPOSED["exchange"]
    assert "sums over what hangs below" in EXPOSED["neighbour"]
    assert "everything" in EXPOSED["central"]
    assert EXPOSED["alone"].startswith("Nothing")


def test_schemes_stand_side_by_side(record) -> None:
    runs = []
    for scheme, percent in (("alone", None), ("central", 7.7), ("exchange", 7.69)):
        run = record.summary | {"scheme": scheme, "saving_percent": percent, "gap_percent": 0.01}
        runs.append(run)
    runs[2]["exposed"] = "<b>each site's net demand</b>"
    page = render_compare({"scenario": "six-bus", "schemes": runs})
    outline = parse(page)
    text = "".join(outline.text)
    assert "central saves most: 7.70 %" in text
    assert "<b>each site's net demand</b>" in text
    assert "The operator sees everything" in text
    assert "Left out" not in text
    few = {"scenario": "six-bus", "schemes": runs, "left_out": ["sealed"]}
    assert "Left out on a day of this size: sealed" in "".join(parse(render_compare(few)).text)
    figures = figures_of(page)
    assert set(figures) == {"saving", "iterations", "seconds", "bytes"}
    for figure in figures.values():
        go.Figure(data=drawable(figure["data"]), layout=drawable(figure["layout"]))
        assert len(figure["data"][0]["y"]) == 3


def test_comparing_nothing_makes_a_page() -> None:
    assert "0 schemes" in "".join(parse(render_compare({"scenario": "x", "schemes": []})).text)


def test_rows_of_a_map_are_labelled_with_their_own_names(build) -> None:
    """A bus called 8 that stands in row 12 must not lend its name to row 8."""
    names = [str(number) for number in (0, 9, 8, 7, 6, 5, 4, 3, 2, 1, *range(10, 40))]
    figure = figures_of(page_of(build(names)))["prices"]
    rows, axis = figure["data"][0]["y"], figure["layout"]["yaxis"]
    assert sorted(rows) == sorted(names)
    assert axis["type"] == "category"
    assert axis["tickvals"] == axis["ticktext"]
    places = [rows.index(tick) for tick in axis["tickvals"]]
    assert places == list(range(0, 40, places[1]))


def test_a_day_that_earns_is_not_told_as_a_negative_cost(record) -> None:
    summary = record.summary | {"cost": -150.0}
    sites = [entry | {"cost_alone": -20.0} for entry in summary["settlement"]["sites"]]
    summary["settlement"] = summary["settlement"] | {"sites": sites}
    text = "".join(parse(render(summary, record.scenario, record.tables)).text)
    assert "earns 150.00 EUR, 25.00\u00a0% more than everybody alone" in text
    assert "Income of the horizon" in text


@pytest.mark.parametrize(
    ("gap", "told"),
    [(1e-12, "within 0.0001"), (3e-4, "within 0.03"), (-2e-3, "0.2\u00a0% below a bound")],
)
def test_a_gap_is_told_with_its_side(gap, told) -> None:
    """A cost below the bound is no success: the plan cannot be feasible."""
    fact = certificate({"certificate": {"accepted": True, "primal": 0.0, "gap": gap}})
    assert fact is not None
    assert told in fact.detail


def test_a_run_of_one_iteration_has_no_way_to_show(record) -> None:
    tables = dataclasses.replace(record.tables, iterations=record.tables.iterations.head(1))
    assert set(figures_of(render(record.summary, record.scenario, tables))) == NAMES - {
        "convergence"
    }
