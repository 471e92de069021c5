"""The report as one HTML file that needs nothing else: no network, no other file."""

import json
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from veilgrid.grid.scenario import Scenario
from veilgrid.report import figures, words
from veilgrid.report.feeder import feeder, voltage_band
from veilgrid.report.plot import Picture, View, axis, fixed, layout, names_axis, plain, safe
from veilgrid.report.tables import Tables

PICTURES = (
    feeder,
    voltage_band,
    figures.dispatch,
    figures.prices,
    figures.convergence,
    figures.savings,
    figures.batteries,
    figures.loading,
)
BARS = (
    ("saving", "saving against everybody alone (%)", 1.0),
    ("iterations", "iterations", 1.0),
    ("seconds", "time (s)", 1.0),
    ("bytes", "sent between processes (MB)", 1e-6),
)
"""What schemes are compared by: key, title with unit, factor to that unit."""

ROWS_OPEN_MAX = 15
"""A longer settlement table is folded."""


def render(summary: Mapping[str, Any], scenario: Scenario, tables: Tables) -> str:
    """Render the report of a run.

    Parameters
    ----------
    summary
        The JSON object of ``veilgrid run --json``.
    scenario, tables
        What was planned, and the results.
    """
    scheme = str(summary.get("scheme"))
    drawn = run_pictures(scheme, scenario, tables)
    network = scenario.network
    currency = scenario.currency
    hours = scenario.horizon.hours * scenario.horizon.interval_count
    period = "day" if hours == 24.0 else "horizon"
    verdicts = (
        words.certificate(summary),
        words.ac_check(summary, network.voltage_min_pu, network.voltage_max_pu),
    )
    return _page(
        "report.html.j2",
        drawn,
        title=f"{scenario.name}: {scheme}",
        summary=summary,
        scenario=scenario,
        scheme=scheme,
        scheme_words=words.SCHEMES.get(scheme, ""),
        headline=words.headline(summary, currency, period),
        facts=words.facts(summary, currency, period),
        verdicts=[fact for fact in verdicts if fact is not None],
        obstacles=words.obstacles(summary),
        exposed=words.EXPOSED.get(scheme, ""),
        checks=words.settlement_checks(summary, tables.settlement, currency),
        settlement=tables.settlement.sort_values("saving", ascending=False, kind="stable").to_dict(
            "records"
        ),
        is_folded=len(tables.settlement) > ROWS_OPEN_MAX,
        zone=View.of(scenario, tables).zone,
    )


def run_pictures(scheme: str, scenario: Scenario, tables: Tables) -> list[Picture]:
    """Draw all pictures of a run that have a subject."""
    view = View.of(scenario, tables, scheme)
    chosen = [draw for draw in PICTURES if scheme != "alone" or draw is not figures.savings]
    return [picture for draw in chosen if (picture := draw(view)) is not None]


def render_compare(comparison: Mapping[str, Any]) -> str:
    """Render the JSON object of ``veilgrid compare --json`` as a page."""
    currency = str(comparison.get("currency", ""))
    rows = compare_rows(comparison)
    scenario = str(comparison.get("scenario", ""))
    return _page(
        "compare.html.j2",
        compare_pictures(rows),
        title=f"{scenario}: schemes compared",
        scenario_name=scenario,
        rows=rows,
        currency=currency,
        size=words.size,
        left_out=[str(name) for name in comparison.get("left_out") or []],
    )


def compare_rows(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one row a scheme: what a table of schemes shows."""
    return [
        {
            "scheme": str(run.get("scheme")),
            "how": words.SCHEMES.get(str(run.get("scheme")), ""),
            "status": words.STATUSES.get(str(run.get("status")), str(run.get("status"))),
            "cost": words.number(run.get("cost")),
            "saving": words.number(run.get("saving_percent")),
            "gap": words.number(run.get("gap_percent")),
            "iterations": words.number(run.get("iterations")),
            "seconds": words.number(run.get("seconds")),
            "bytes": words.number(run.get("bytes")),
            "ac": words.part(run, "ac_check").get("passed"),
            "seen_by": words.SEEN_BY.get(str(run.get("scheme")), "not stated"),
            "exposed": _exposed(run),
            "attacks": [dict(found) for found in run.get("attacks") or []],
        }
        for run in comparison.get("schemes") or []
    ]


def compare_pictures(rows: list[dict[str, Any]]) -> list[Picture]:
    """Draw :data:`BARS` of what :func:`compare_rows` returned."""
    return [picture for bars in BARS if (picture := _bars(rows, *bars)) is not None]


def _exposed(run: Mapping[str, Any]) -> str:
    """Say what others saw: as the run tells it, else as the scheme is known to do."""
    told = run.get("exposed")
    if isinstance(told, str) and told:
        return told
    if isinstance(told, Iterable) and not isinstance(told, str | Mapping) and told:
        return "; ".join(str(entry) for entry in told)
    return words.EXPOSED.get(str(run.get("scheme")), "")


def _bars(rows: list[dict[str, Any]], key: str, title: str, factor: float) -> Picture | None:
    """Draw one figure of all schemes as bars; ``None`` if no scheme has it."""
    values = np.array([np.nan if row[key] is None else row[key] * factor for row in rows])
    if not np.isfinite(values).any():
        return None
    places = list(range(len(rows)))
    figure = layout(
        hovermode="closest",
        showlegend=False,
        xaxis=axis(title, rangemode="tozero", nticks=6),
        yaxis=names_axis("", [row["scheme"] for row in rows]),
    )
    figure["yaxis"]["range"] = figure["yaxis"]["range"][::-1]
    data = {
        "type": "bar",
        "orientation": "h",
        "x": plain(values),
        "y": places,
        "customdata": [safe(row["scheme"]) for row in rows],
        "marker": {"color": [f"@line{place % 6}" for place in places]},
        "text": [f"{value:,.3g}" if np.isfinite(value) else "unknown" for value in values],
        "textposition": "auto",
        "cliponaxis": False,
        "hovertemplate": "%{customdata}: %{x:,.4g}<extra></extra>",
    }
    return Picture(
        name=key,
        title=_best(rows) if key == "saving" else title[0].upper() + title[1:],
        caption="",
        figure={"data": [data], "layout": figure},
        height=90 + 40 * len(rows),
    )


def _best(rows: list[dict[str, Any]]) -> str:
    saving = [row for row in rows if row["saving"] is not None]
    if not saving:
        return "Schemes side by side"
    best = max(saving, key=lambda row: row["saving"])
    return f"{best['scheme']} saves most: {best['saving']:.2f} % against everybody alone"


def _page(template: str, pictures: list[Picture], **context: Any) -> str:
    specs = {picture.name: picture.figure for picture in pictures}
    return (
        _environment()
        .get_template(template)
        .render(
            pictures=pictures,
            figures=embedded(specs),
            plotly=_plotly() if pictures else "",
            style=asset("page.css"),
            script=asset("page.js"),
            **context,
        )
    )


def embedded(value: object) -> str:
    """Write JSON that is safe inside a script element."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("veilgrid.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["fixed"] = fixed
    return environment


@cache
def _plotly() -> str:
    """Return plotly.js, which is what draws; MIT-licensed, its notice stands at its top."""
    return str(get_plotlyjs())


def asset(name: str) -> str:
    """Return a file of this package's templates: ``page.css`` or ``page.js``."""
    source = resources.files("veilgrid.report").joinpath("templates", name)
    return source.read_text(encoding="utf-8")
