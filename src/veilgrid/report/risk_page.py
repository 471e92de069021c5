"""The page of an aggregation: its figure, the distribution, who was cut off, weights over time."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from veilgrid.report.page import _page
from veilgrid.report.plot import Picture, axis, layout, plain, safe
from veilgrid.risk.aggregate import Plan

_LINES = 12


def write_page(
    folder: Path,
    report: Mapping[str, Any],
    plan: Plan,
    values: Sequence[float | None],
    shares: Sequence[tuple[int, Mapping[str, float]]],
) -> Path:
    """Write ``report.html`` and ``aggregate.json`` into a folder; return the path of the former.

    Parameters
    ----------
    folder
        Made if it does not exist.
    report
        The JSON object of ``veilgrid aggregate``.
    plan
        Of the round.
    values : (source,)
        Readings as they stand in the file on this machine; the committee opened none of them.
    shares
        Number of each remembered round, and each source's part of the weight in it.
    """
    pictures = [one for one in (_distribution(report, plan, values), _weights(shares)) if one]
    text = _page(
        "risk.html.j2",
        pictures,
        title=f"{report['function']} of {len(values)} sources",
        report=report,
        facts=_facts(report),
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.html"
    path.write_text(text, encoding="utf-8")
    (folder / "aggregate.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return path


def _facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = [
        ("accepted", f"{report['accepted']}"),
        ("left out", f"{len(report['rejected'])}"),
        ("method", str(report["method"])),
        ("one source moves the figure by", f"at most {report['influence']:.2%} of the range"),
        ("committee", f"{report['parties']} parties, {report['degree']} may collude"),
        ("time, traffic", f"{report['seconds']:.2f} s, {report['bytes'] / 1e6:.2f} MB"),
    ]
    if report.get("overloaded") is not None:
        state = "overloaded" if report["overloaded"] else "within its rating"
        facts.insert(0, ("rating", f"{report['rating']:g}: {state} ({report['loading']:.1%})"))
    return facts


def _distribution(
    report: Mapping[str, Any], plan: Plan, values: Sequence[float | None]
) -> Picture | None:
    """Draw weight by bin, what is cut off at the ends, and the figure with its interval."""
    low, high = plan.lower / plan.scale, plan.upper / plan.scale
    sizes = np.ones(len(low)) if plan.usual is None else plan.usual
    rows = [
        place
        for place, value in enumerate(values)
        if value is not None and low[place] <= value / sizes[place] <= high[place]
    ]
    if not rows:
        return None
    shown = np.array([float(values[row] or 0.0) / sizes[row] for row in rows])
    weights = plan.weights[rows] / plan.weights[rows].sum()
    cut = _cuts(report, plan)
    counts, edges = np.histogram(shown, bins=min(64, max(10, len(rows) // 2)), weights=weights)
    before = np.concatenate([[0.0], np.cumsum(counts)])
    kept = np.clip(before[1:], cut[0], cut[1]) - np.clip(before[:-1], cut[0], cut[1])
    middles, width = (edges[:-1] + edges[1:]) / 2, float(edges[1] - edges[0])
    unit = "reading / what is usual" if plan.usual is not None else "reading"
    figure = layout(
        barmode="stack", xaxis=axis(unit), yaxis=axis("part of the weight", rangemode="tozero")
    )
    bars = [
        _bars("counted", middles, width, kept, "@plan"),
        _bars("cut off", middles, width, counts - kept, "@line3"),
    ]
    value, interval = report["value"], report["confidence_interval"]
    if value is not None and report["function"] != "variance" and report["function"] != "sum":
        factor = 1.0 if plan.sizes is None else float(plan.sizes.sum()) / len(plan.names)
        lines = [value / factor, *([at / factor for at in interval] if interval else [])]
        figure["shapes"] = [
            {
                "type": "line",
                "x0": at,
                "x1": at,
                "y0": 0,
                "y1": 1,
                "yref": "paper",
                "line": {"dash": "solid" if at == lines[0] else "dot", "width": 2},
            }
            for at in lines
        ]
    return Picture(
        name="distribution",
        title="What was counted and what was cut off",
        caption=(
            "Drawn from the file on this machine. The committee opened the figure only. Lines: the "
            f"figure and its {report['confidence']:.0%} interval."
        ),
        figure={"data": bars, "layout": figure},
    )


def _cuts(report: Mapping[str, Any], plan: Plan) -> tuple[float, float]:
    """Return between which parts of the weight the figure lies."""
    question = plan.question
    if plan.sizes is not None or report["function"] == "trimmed-mean":
        return plan.trim, 1 - plan.trim
    if report["function"] == "cvar":
        level = question.cvar_level
        return (level, 1.0) if question.side == "upper" else (0.0, 1 - level)
    return 0.0, 1.0


def _bars(name: str, at: Any, width: float, heights: Any, colour: str) -> dict[str, Any]:
    return {
        "type": "bar",
        "name": name,
        "x": plain(at),
        "y": plain(heights),
        "width": width,
        "marker": {"color": colour},
        "hovertemplate": "%{x:.4g}: %{y:.3%}<extra>" + name + "</extra>",
    }


def _weights(shares: Sequence[tuple[int, Mapping[str, float]]]) -> Picture | None:
    """Draw the part of the weight of the sources whose weight changed most, round by round."""
    if len(shares) < 2:
        return None
    names = sorted({name for _, parts in shares for name in parts})
    table = np.array([[parts.get(name, np.nan) for _, parts in shares] for name in names])
    spread = np.nan_to_num(np.nanmax(table, axis=1) - np.nanmin(table, axis=1))
    chosen = np.argsort(-spread, kind="stable")[:_LINES]
    rounds = [number for number, _ in shares]
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": safe(names[place]),
            "x": rounds,
            "y": plain(table[place]),
            "line": {"color": f"@line{order % 6}"},
            "hovertemplate": "round %{x}: %{y:.3%}<extra>" + safe(names[place]) + "</extra>",
        }
        for order, place in enumerate(chosen)
    ]
    figure = layout(
        xaxis=axis("round", dtick=max(1, len(rounds) // 12)),
        yaxis=axis("part of the weight", rangemode="tozero"),
    )
    return Picture(
        name="weights",
        title="Weights over time",
        caption="The sources whose weight changed most. A round changes the next one's weights.",
        figure={"data": data, "layout": figure},
    )
