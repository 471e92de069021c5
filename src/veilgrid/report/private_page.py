"""The page of a noisy figure: what it is worth, and how much of the day's budget is spent.

It shows what may be published: no reading and no figure without its noise.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from veilgrid.report.page import _page
from veilgrid.report.plot import Picture, axis, layout, plain
from veilgrid.report.round_page import write_page as write_round


def write_page(folder: Path, report: Mapping[str, Any]) -> Path:
    """Write ``report.html`` and ``aggregate.json`` into a folder; return the path of the former.

    Parameters
    ----------
    folder
        Made if it does not exist.
    report
        The JSON object of ``veilgrid aggregate --epsilon``.

    Raises
    ------
    SetupError
        The folder cannot be written.
    """
    return write_round(folder, "aggregate", report, render(report))


def render(report: Mapping[str, Any]) -> str:
    """Render the JSON object of ``veilgrid aggregate --epsilon`` as a page."""
    privacy, value = report["privacy"], report["value"]
    budget = privacy["budget"]
    facts = [
        ("figure, with noise", "withheld" if value is None else f"{value:,.6g}"),
        ("promise", f"epsilon {privacy['epsilon']:g}, delta {privacy['delta']:.3g}"),
        ("figures that share it", f"{privacy['releases']}"),
        ("noise", f"{privacy['noise_sd']:,.4g} {privacy['noise_unit']}, {privacy['mechanism']}"),
        ("who added it", str(privacy["noise"])),
        ("predicted error", f"{privacy['predicted_error']:.2%}"),
        ("sources", f"{report['accepted']}, and {len(report['rejected'])} left out"),
        ("committee", f"{report['parties']} parties, {report['degree']} may collude"),
    ]
    interval = report["confidence_interval"]
    if interval is not None:
        name = f"without noise ({report['confidence']:.0%})"
        facts.insert(1, (name, f"{interval[0]:,.6g} to {interval[1]:,.6g}"))
    if budget is not None:
        facts.append(("budget", f"{budget['spent_epsilon']:.3g} of {budget['allowed_epsilon']:g}"))
    return _page(
        "round.html.j2",
        ([_running(report["feed"])] if "feed" in report else [])
        + ([] if budget is None else [_spent(budget)]),
        name=report["function"],
        title=f"{report['function']} with noise" + ("" if value is None else f": {value:,.6g}"),
        facts=facts,
        table_title="To be considered",
        columns=["warning"],
        rows=[(text,) for text in privacy["warnings"]],
    )


def _running(feed: Mapping[str, Any]) -> Picture:
    """Draw the published totals with twice their noise on both sides."""
    each = feed["each"]
    at = [one["interval"] for one in each]
    totals = np.array([one["total"] for one in each])
    noise = 2 * np.array([one["noise_sd"] for one in each])
    line = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": "published",
        "x": at,
        "y": plain(totals),
        "error_y": {"type": "data", "array": plain(noise), "thickness": 1},
        "line": {"color": "@plan", "width": 2},
        "hovertemplate": "up to interval %{x}: %{y:,.5g}<extra></extra>",
    }
    figure = layout(xaxis=axis("interval"), yaxis=axis("running total"))
    return Picture(
        name="running",
        title=f"Running total, {len(each)} of {feed['intervals']} intervals",
        caption="What was published, with two standard deviations of its noise. The same numbers "
        "are given to whoever asks again.",
        figure={"data": [line], "layout": figure},
    )


def _spent(budget: Mapping[str, Any]) -> Picture:
    """Draw the day's loss after each release, and what the day allows."""
    course = [(0, 0.0), *budget["course"]]
    releases, losses = zip(*course, strict=True)
    steps = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": "spent",
        "x": list(releases),
        "y": plain(np.array(losses)),
        "line": {"color": "@plan", "width": 2, "shape": "hv"},
        "hovertemplate": "after %{x} releases: epsilon %{y:.4g}<extra></extra>",
    }
    allowed = {
        "type": "scatter",
        "mode": "lines",
        "name": "allowed",
        "x": [0, max(releases[-1], 1)],
        "y": [budget["allowed_epsilon"]] * 2,
        "line": {"color": "@uncontrolled", "dash": "dot", "width": 2},
        "hovertemplate": "allowed: %{y:.4g}<extra></extra>",
    }
    figure = layout(
        xaxis=axis("releases of the day", dtick=max(1, releases[-1] // 12)),
        yaxis=axis("epsilon", rangemode="tozero"),
    )
    return Picture(
        name="budget",
        title=f"Budget of {budget['day']}: {budget['spent_epsilon']:.3g} "
        f"of {budget['allowed_epsilon']:g} spent",
        caption="What the releases of the day promise together, at delta "
        f"{budget['allowed_delta']:.3g}; less than the sum of what each promises. A release "
        "that was reserved and not answered counts, because somebody may have seen it.",
        figure={"data": [steps, allowed], "layout": figure},
    )
