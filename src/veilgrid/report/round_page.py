"""Reports of rounds in the committee: a fleet's capacity, a market, each as one HTML file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from veilgrid.errors import SetupError
from veilgrid.grid.network import Floats
from veilgrid.report.page import _page
from veilgrid.report.plot import Picture, axis, layout, plain

AWARDS_SHOWN: Final = 200


def write_page(out: Path, name: str, report: Mapping[str, Any], page: str) -> Path:
    """Write the JSON object and the page into a folder; return the path of the page.

    Raises
    ------
    SetupError
        The folder cannot be written.
    """
    path = out / "report.html"
    try:
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(report, indent=1, allow_nan=False)
        (out / f"{name}.json").write_text(text, encoding="utf-8")
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise SetupError(f"{out} cannot be written: {error.strerror or error}") from error
    return path


# -- a fleet ---------------------------------------------------------------------------


def render_capacity(name: str, report: Mapping[str, Any]) -> str:
    """Render the JSON object of ``veilgrid capacity --json`` as a page."""
    percent = f"{100 * report['confidence']:g} %"
    facts = [
        (f"there with {percent}", f"{report['capacity_kw']:,.2f} kW"),
        ("proved to be there", f"{report['certified_kw']:,.2f} kW"),
        ("mean of the worst cases", f"{report['cvar_kw']:,.2f} kW"),
        ("on average", f"{report['mean_kw']:,.2f} kW of {report['installed_kw']:,.2f} kW"),
        ("a normal approximation would promise", f"{report['normal_kw']:,.2f} kW"),
        ("devices", f"{report['devices']}, and {len(report['rejected'])} rejected"),
    ]
    scenarios = [
        (one["scenario"], f"{one['probability']:g}", f"{one['mean_kw']:,.2f} kW")
        for one in report["scenarios"]
    ]
    return _page(
        "round.html.j2",
        [_quantiles(report)],
        name=name,
        title=f"{report['capacity_kw']:,.1f} kW can be relied on with {percent}",
        facts=facts,
        tables=[("Scenarios", ["scenario", "probability", "mean power"], scenarios)],
    )


def _quantiles(report: Mapping[str, Any]) -> Picture:
    power = np.array([one["kw"] for one in report["quantiles"]])
    chance = np.array([one["probability"] for one in report["quantiles"]])
    curve = {
        "type": "scatter",
        "mode": "lines",
        "name": "chance of less",
        "x": plain(power),
        "y": plain(100 * chance),
        "line": {"color": "@plan", "width": 2},
        "hovertemplate": "%{y:.2f} % for less than %{x:,.1f} kW<extra></extra>",
    }
    miss = 100 * (1 - report["confidence"])
    marks = [
        _point("with the confidence", report["capacity_kw"], miss, "@uncontrolled"),
        _point("proved", report["certified_kw"], miss, "@battery"),
    ]
    figure = layout(
        xaxis=axis("power there (kW)"), yaxis=axis("chance of less (%)", rangemode="tozero")
    )
    return Picture(
        name="quantiles",
        title="How likely less power is there",
        caption="The curve is the distribution that the committee's sums give; the proved bound "
        "stands left of the exact quantile whatever the devices are.",
        figure={"data": [curve, *marks], "layout": figure},
    )


def _point(name: str, x: float, y: float, colour: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [x],
        "y": [y],
        "marker": {"color": colour, "size": 10},
        "hovertemplate": name + ": %{x:,.4g}<extra></extra>",
    }


# -- a market ---------------------------------------------------------------------------


def render_market(
    name: str,
    report: Mapping[str, Any],
    is_buy: npt.NDArray[np.bool_],
    prices: Floats,
    quantities: Floats,
) -> str:
    """Render the JSON object of ``veilgrid market --json`` and the curves of its bids as a page.

    Of several rounds the curves are those of the last one.
    """
    rounds = report.get("rounds", [])
    last = rounds[-1] if rounds else report
    price = report["price"]
    facts = [
        ("price", "none: nobody trades" if price is None else f"{price:g}"),
        ("rule", report["rule"]),
        ("volume", f"{report['volume']:g}"),
        ("welfare", f"{report['welfare']:,.6g} of {report['welfare_optimum']:,.6g} possible"),
        ("participants that trade", f"{len(report['trades'])} of {report['bidders']}"),
        (
            "shown here",
            "all bids: whoever ran this holds the file; the committee opened the price,"
            " the volume and who is flagged",
        ),
    ]
    if rounds:
        facts.insert(0, ("rounds", f"{rounds[0]['number']} to {rounds[-1]['number']}"))
    flags = [
        (*((f"{one['round']}",) if rounds else ()), one["participant"], one["kind"], one["reason"])
        for one in report["flags"]
    ]
    rejected = [(one["participant"], one["reason"]) for one in report["rejected"]]
    awards = [
        (one["participant"], one["side"], f"{one['quantity']:,.6g}", f"{one['payment']:,.2f}")
        for one in sorted(report["trades"], key=lambda one: -one["quantity"])[:AWARDS_SHOWN]
    ]
    pictures = [_curves(last, is_buy, prices, quantities)]
    if len(rounds) > 1:
        pictures += [_course(rounds, "price", "Price"), _course(rounds, "volume", "Volume")]
    return _page(
        "round.html.j2",
        pictures,
        name=name,
        title="Nobody trades" if price is None else f"{report['volume']:g} trade at {price:g}",
        facts=facts,
        tables=[
            (
                "Flags, which lower weights in the next round",
                [*(["round"] if rounds else []), "participant", "kind", "why"],
                flags,
            ),
            ("Left out", ["participant", "why"], rejected),
            (_awards_title(report), ["participant", "side", "quantity", "pays"], awards),
        ],
    )


def _awards_title(report: Mapping[str, Any]) -> str:
    count = len(report["trades"])
    most = f", the largest {AWARDS_SHOWN} of {count}" if count > AWARDS_SHOWN else ""
    return f"What each trades, which opened to itself only{most}"


def _course(rounds: Sequence[Mapping[str, Any]], key: str, title: str) -> Picture:
    told = [one for one in rounds if one[key] is not None]
    line = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": title,
        "x": plain(np.array([one["number"] for one in told], np.float64)),
        "y": plain(np.array([one[key] for one in told], np.float64)),
        "line": {"color": "@plan", "width": 2},
        "hovertemplate": f"round %{{x}}: {key} %{{y:,.6g}}<extra></extra>",
    }
    ticks = {"dtick": 1} if len(rounds) <= 20 else {}
    figure = layout(xaxis=axis("round", **ticks), yaxis=axis(key))
    return Picture(
        name=f"course-{key}",
        title=f"{title} round by round",
        caption="Rounds in which nobody traded have no price.",
        figure={"data": [line], "layout": figure},
    )


def _curves(
    report: Mapping[str, Any], is_buy: npt.NDArray[np.bool_], prices: Floats, quantities: Floats
) -> Picture:
    lines = []
    for label, side, colour in (("demand", is_buy, "@plan"), ("supply", ~is_buy, "@line1")):
        order = np.argsort(-prices[side] if label == "demand" else prices[side], kind="stable")
        ends = np.cumsum(quantities[side][order])
        starts = ends - quantities[side][order]
        levels = np.repeat(prices[side][order], 2)
        lines.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": label,
                "x": plain(np.stack([starts, ends], axis=1).reshape(-1)),
                "y": plain(levels),
                "line": {"color": colour, "width": 2},
                "hovertemplate": label + " %{x:,.4g} at %{y:,.4g}<extra></extra>",
            }
        )
    if report["price"] is not None:
        lines.append(_point("cleared", report["volume"], report["price"], "@uncontrolled"))
    figure = layout(xaxis=axis("quantity", rangemode="tozero"), yaxis=axis("price"))
    return Picture(
        name="curves",
        title="Supply, demand and where they meet",
        caption="Quantities as they count, after caps and weights.",
        figure={"data": lines, "layout": figure},
    )
