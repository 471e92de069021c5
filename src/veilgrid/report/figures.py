"""The pictures of a run, but for the feeder itself; each returns ``None`` if it has no subject."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from veilgrid.grid.network import Floats
from veilgrid.report.feeder import reading_order
from veilgrid.report.plot import (
    CELLS_MAX,
    Picture,
    View,
    axis,
    colour_bar,
    extremes,
    fixed,
    layout,
    level,
    names_axis,
    numbers,
    packed,
    plain,
    rows_axis,
    safe,
    short,
    step_line,
    thinned,
    time_axis,
)
from veilgrid.report.tables import pays_more

INJECTING = {"pv": "solar", "wind": "wind", "generator": "generators", "battery": "battery"}
CONSUMING = {
    "flexible_load": "flexible load",
    "ev_charger": "vehicle charging",
    "heat_pump": "heat pumps",
}
BATTERY_LINES_MAX = 6
BRANCHES_MAX = 25
NEGLIGIBLE_MW = 1e-9
NEGLIGIBLE_MONEY = 1e-9
HALF_A_CENT = 0.005


def dispatch(view: View) -> Picture | None:
    """Draw injections by kind above zero, consumption below, against the load; and the exchange."""
    if not view.has_plan:
        return None
    load = view.by_bus("load_mw")
    total = np.zeros(view.scenario.horizon.interval_count) if load is None else load.sum(axis=0)
    exchange = numbers(view.tables.substation["exchange_mw"])
    above, below = _stacks(view)
    above.append(("import from the grid", "exchange", np.maximum(exchange, 0.0)))
    below.append(("export to the grid", "exchange", np.minimum(exchange, 0.0)))
    data = []
    for group, stack in (("above", above), ("below", below)):
        for name, colour, values in stack:
            if np.abs(values).max() > NEGLIGIBLE_MW:
                data.append(_area(view, group, name, colour, values))
    data.append(step_line(view, total, "load", "@ink", hovertemplate=_megawatt("load")))
    data.extend(_exchange_lines(view, exchange))
    figure = layout(
        xaxis=time_axis(view, anchor="y2", domain=[0, 1]),
        yaxis=axis("power (MW)", domain=[0.38, 1], zeroline=True),
        yaxis2=axis("exchange (MW)", domain=[0, 0.27], zeroline=True, anchor="x"),
    )
    return Picture(
        name="dispatch",
        title=_dispatch_message(view, exchange, above),
        caption=(
            "Above zero what feeds the feeder, stacked; below zero what draws from it besides the "
            "load (line). Lower panel: exchange with the grid above, import positive, as planned "
            "(solid) and without coordination (dotted)."
        ),
        figure={"data": data, "layout": figure},
        height=520,
    )


def _megawatt(name: str) -> str:
    return f"{name}: %{{y:.3f}} MW<extra></extra>"


def _area(view: View, group: str, name: str, colour: str, values: Floats) -> dict[str, Any]:
    strength = "" if group == "above" else "/0.55"
    return step_line(
        view,
        values,
        name,
        f"@{colour}",
        stackgroup=group,
        fillcolor=f"@{colour}{strength}",
        hovertemplate=_megawatt(name),
        line={"width": 0},
    )


def _stacks(view: View) -> tuple[list[tuple[str, str, Floats]], list[tuple[str, str, Floats]]]:
    """Sum injections by kind and sign: (name, colour, (interval,) in MW)."""
    devices = view.tables.devices
    count = view.scenario.horizon.interval_count
    above: list[tuple[str, str, Floats]] = []
    below: list[tuple[str, str, Floats]] = []
    for kind, name in {**INJECTING, **CONSUMING}.items():
        own = numbers(devices.loc[devices["kind"] == kind, "p_mw"]).reshape(-1, count)
        into, out = np.maximum(own, 0.0).sum(axis=0), np.minimum(own, 0.0).sum(axis=0)
        is_battery = kind == "battery"
        above.append((f"{name} discharge" if is_battery else name, kind, into))
        below.append((f"{name} charge" if is_battery else name, kind, out))
    return above, below


def _exchange_lines(view: View, exchange: Floats) -> list[dict[str, Any]]:
    lines = []
    before = numbers(view.tables.substation["exchange_uncontrolled_mw"])
    for values, name, colour, dash in (
        (before, "exchange without coordination", "@uncontrolled", "dot"),
        (exchange, "exchange planned", "@plan", "solid"),
    ):
        if np.isfinite(values).any():
            more = {"yaxis": "y2", "showlegend": False, "line": {"dash": dash}}
            hover = _megawatt(name)
            lines.append(step_line(view, values, name, colour, hovertemplate=hover, **more))
    return lines


def _dispatch_message(view: View, exchange: Floats, above: list[tuple[str, str, Floats]]) -> str:
    hours = view.scenario.horizon.hours
    own = sum(float(values.sum()) for _, colour, values in above if colour != "exchange") * hours
    peak = int(exchange.argmax())
    if exchange[peak] <= NEGLIGIBLE_MW:
        return f"The feeder never imports; its devices feed in {own:,.1f} MWh"
    bought = float(np.maximum(exchange, 0.0).sum()) * hours
    return (
        f"Devices feed in {own:,.1f} MWh, the grid above {bought:,.1f} MWh; "
        f"import peaks at {exchange[peak]:.2f} MW at {view.clock(peak)}"
    )


def prices(view: View) -> Picture | None:
    """Draw the price of one more MWh at each bus and interval, with the tariff."""
    values = view.by_bus("price") if view.has_plan else None
    if values is None:
        return None
    order = reading_order(view.scenario.network.tree)
    names = [view.scenario.network.buses[bus].name for bus in order]
    unit = f"{safe(view.scenario.currency)}/MWh"
    figure = layout(
        hovermode="closest",
        showlegend=False,
        xaxis=time_axis(view, anchor="y2"),
        yaxis=rows_axis("bus, along the feeder", names, domain=[0.4, 1]),
        yaxis2=axis(unit, domain=[0, 0.32]),
    )
    chosen = thinned(view)
    caption = (
        "What one more MWh at a bus costs; buses stand in their order along the feeder. Lower "
        "panel: tariff for buying (solid) and for selling (dashed), and the span of the prices of "
        "all buses (blue)."
    )
    if len(chosen) < view.scenario.horizon.interval_count:
        caption += f" The map shows {len(chosen)} of the intervals."
    data = [_price_map(view, values[order], names, chosen, unit), *_tariff(view, values, unit)]
    return Picture(
        name="prices",
        title=_price_message(view, values),
        caption=caption,
        figure={"data": data, "layout": figure},
        height=580,
    )


def _price_map(
    view: View, values: Floats, names: Sequence[str], chosen: list[int], unit: str
) -> dict[str, Any]:
    """Map prices (bus, interval), buses in the order of ``names``."""
    heat = {
        "type": "heatmap",
        "x": [view.times[interval] for interval in (*chosen, len(view.times) - 1)],
        "y": [safe(name) for name in names],
        "z": packed(values[:, chosen]),
        "colorscale": "Cividis",
        "colorbar": colour_bar(unit),
        "hovertemplate": "bus %{y}<br>%{x|%H:%M}: %{z:.2f} " + unit + "<extra></extra>",
        "hoverongaps": False,
    }
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if high - low < 1e-6 * (1.0 + abs(high)):
        heat |= {"zmin": low - 1.0, "zmax": low + 1.0}
    return heat


def _tariff(view: View, values: Floats, unit: str) -> list[dict[str, Any]]:
    """Draw the tariff over the span of all buses' prices."""
    low, high = extremes(values)
    edge = {"yaxis": "y2", "line": {"width": 0.5}, "hoverinfo": "skip"}
    lines = [
        step_line(view, low, "lowest price", "@plan", **edge),
        step_line(
            view, high, "highest price", "@plan", fill="tonexty", fillcolor="@plan/0.35", **edge
        ),
    ]
    for column, dash in (("buy", "solid"), ("sell", "dash")):
        lines.append(
            step_line(
                view,
                numbers(view.tables.substation[column]),
                column,
                f"@{column}",
                yaxis="y2",
                line={"dash": dash},
                hovertemplate=f"{column}: %{{y:.2f}} {unit}<extra></extra>",
            )
        )
    return lines


def _price_message(view: View, values: Floats) -> str:
    currency = view.scenario.currency
    low, high = extremes(values)
    spread = float(np.nanmax(high - low))
    span = f"{np.nanmin(values):,.1f} to {np.nanmax(values):,.1f} {currency}/MWh"
    if spread < 0.01:
        return f"Prices range from {span}, in each interval the same at every bus"
    when = view.clock(int(np.nanargmax(high - low)))
    return f"Prices range from {span}; at {when} they differ by {spread:,.2f} between buses"


def convergence(view: View) -> Picture | None:
    """Draw residuals and cost by iteration, one below the other; one iteration is no way."""
    table = view.tables.iterations
    count = len(table)
    if count < 2:
        return None
    currency = safe(view.scenario.currency)
    is_sealed = view.scheme == "sealed"
    names = ("primal (pu)", f"dual ({currency}/pu)")
    if is_sealed:  # No residual of a site opens: a length in the metric does, and the gap.
        names = ("last movement", f"gap ({currency})")
    figure = layout(
        showlegend=False,
        xaxis=axis("iteration", anchor="y3", rangemode="tozero", dtick=1 if count <= 12 else None),
    )
    data = []
    for column, title, colour, number, domain in (
        ("primal_residual", names[0], "@plan", "", [0.72, 1]),
        ("dual_residual", names[1], "@uncontrolled", "2", [0.36, 0.64]),
        ("cost", f"cost ({currency})", "@ink", "3", [0, 0.28]),
    ):
        values = numbers(table[column])
        more: dict[str, Any] = {}
        if column != "cost":
            values = np.where(values > 0.0, values, np.nan)
            more = {"type": "log", "exponentformat": "power", "dtick": _decades(values)}
        figure[f"yaxis{number}"] = axis(title, domain=domain, **more)
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if count <= 60 else "lines",
                "x": table["iteration"].tolist(),
                "y": plain(values, 9),
                "line": {"color": colour, "width": 2},
                "yaxis": f"y{number}",
                "name": title,
                "hovertemplate": f"{title}: %{{y:.6g}}<extra></extra>",
            }
        )
    title = f"{count} iterations"
    last = numbers(table["primal_residual"])[-1]
    caption = (
        "Primal and dual residual tell how far sites still disagree; cost is that of the "
        "balanced plan."
    )
    if is_sealed:
        caption = (
            "What opens to all of each iteration: how far all sites together moved, weighted, what "
            "separates the plan's cost from the bound as claimed, and the cost."
        )
    elif math.isfinite(last):
        title += f", ending with a primal residual of {last:.1e} pu"
    return Picture(
        name="convergence",
        title=title,
        caption=caption,
        figure={"data": data, "layout": figure},
        height=600,
    )


def _decades(values: Floats) -> int | None:
    """Label every so many decades, so that labels stay apart."""
    known = values[np.isfinite(values)]
    if len(known) < 2:
        return 1
    return max(1, math.ceil(math.log10(float(known.max() / known.min()) + 1.0) / 4))


def savings(view: View) -> Picture | None:
    """Draw what each site saves against alone, sorted; a bare substation is no site."""
    table = view.tables.settlement
    bare = _bare_substation(view)
    active = table[(table[["payment", "cost", "cost_alone"]].abs() > NEGLIGIBLE_MONEY).any(axis=1)]
    active = active[active["site"] != bare]
    if len(active) == 0:
        return None
    active = active.sort_values("saving", ascending=False, kind="stable")
    saving, worse = numbers(active["saving"]), pays_more(active).to_numpy()
    span = {"range": [-1, 1]} if np.abs(saving).max() < HALF_A_CENT else {}
    currency = safe(view.scenario.currency)
    figure = layout(
        hovermode="closest",
        xaxis=names_axis("site, sorted", active["site"].tolist(), tickangle=-45),
        yaxis=axis(f"saving against alone ({currency})", zeroline=True, **span),
        bargap=0.15 if len(active) <= 200 else 0.0,
    )
    hover = zip(active["site"], active["cost_alone"], active["cost"], strict=True)
    data = [
        {
            "type": "bar",
            "x": list(range(len(active))),
            "y": plain(saving, 9),
            "customdata": [[safe(site), alone, cost] for site, alone, cost in hover],
            "marker": {"color": ["@loss" if is_worse else "@gain" for is_worse in worse]},
            "hovertemplate": (
                "site %{customdata[0]}<br>saves %{y:,.2f} " + currency + "<br>alone "
                "%{customdata[1]:,.2f}, together %{customdata[2]:,.2f}<extra></extra>"
            ),
        }
    ]
    gaining = int((saving > HALF_A_CENT).sum())
    losing = f"{worse.sum()} pay more" if worse.any() else "none pays more"
    return Picture(
        name="savings",
        title=f"{gaining} of {len(active)} sites pay less than alone, {losing}",
        caption="Saving = cost alone minus cost together, payments included. Buses without load "
        "and devices are left out.",
        figure={"data": data, "layout": figure},
    )


def _bare_substation(view: View) -> str | None:
    """Name the substation if neither load nor devices stand there: it only passes money on."""
    network = view.scenario.network
    has_load = bool(np.abs(view.scenario.load_p_mw[network.tree.root]).max() > 0.0)
    has_devices = any(device.bus == network.slack_bus for device in view.scenario.devices)
    return None if has_load or has_devices else str(network.slack_bus)


def batteries(view: View) -> Picture | None:
    """Draw states of charge: lines of few batteries, a map of many; and the total."""
    capacity = {
        device.name: float(getattr(device, "energy_max_mwh", 0.0))
        for device in view.scenario.devices
        if device.kind == "battery" and float(getattr(device, "energy_max_mwh", 0.0)) > 0.0
    }
    initial = {
        device.name: float(getattr(device, "energy_initial_mwh", 0.0))
        for device in view.scenario.devices
        if device.name in capacity
    }
    table = view.tables.devices
    own = table[table["device"].isin(list(capacity))]
    if len(own) == 0:
        return None
    count = view.scenario.horizon.interval_count
    names = own["device"].tolist()[::count]
    first = np.array([[initial[name]] for name in names])
    energy = np.hstack([first, numbers(own["energy_mwh"]).reshape(-1, count)])
    sizes = np.array([capacity[name] for name in names])
    share = 100.0 * energy / sizes[:, np.newaxis]
    total = energy.sum(axis=0)
    data = [_line(view, total, "stored in all batteries", "@ink", "y2") | {"showlegend": False}]
    if len(names) <= BATTERY_LINES_MAX:
        data += _battery_lines(view, names, share)
        upper = axis("state of charge (%)", range=[-3, 103], domain=[0.42, 1])
    else:
        data.append(_battery_map(view, names, share))
        upper = rows_axis("battery", names, domain=[0.42, 1])
    figure = layout(
        xaxis=time_axis(view, anchor="y2"),
        yaxis=upper,
        yaxis2=axis("stored (MWh)", domain=[0, 0.3], rangemode="tozero"),
        shapes=[level(float(sizes.sum()), "y2")],
        hovermode="closest",
    )
    plural = "ies hold" if len(names) > 1 else "y holds"
    when = view.clock(int(total.argmax()))
    span = f"{fixed(total.min())} to {fixed(total.max())} MWh; fullest at {when}"
    if fixed(total.min()) == fixed(total.max()):
        span = f"{fixed(total.max())} MWh all the time"
    return Picture(
        name="batteries",
        title=f"{len(names)} batter{plural} {span}",
        caption=f"Dashed: all batteries full ({sizes.sum():.2f} MWh).",
        figure={"data": data, "layout": figure},
        height=460 if len(names) <= BATTERY_LINES_MAX else 540,
    )


def _line(view: View, values: Floats, name: str, colour: str, yaxis: str) -> dict[str, Any]:
    """Draw a straight line through the states at the ends of intervals."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": list(view.times),
        "y": plain(values),
        "yaxis": yaxis,
        "name": name,
        "line": {"color": colour, "width": 2},
        "hovertemplate": f"{name}<br>%{{x|%H:%M}}: %{{y:.3f}}<extra></extra>",
    }


def _battery_lines(view: View, names: list[str], share: Floats) -> list[dict[str, Any]]:
    lines = []
    for position, (name, values) in enumerate(zip(names, share, strict=True)):
        line = _line(view, values, short(name), f"@line{position % BATTERY_LINES_MAX}", "y")
        lines.append(line | {"hovertemplate": "%{x|%H:%M}: %{y:.1f} %<extra></extra>"})
    return lines


def _battery_map(view: View, names: list[str], share: Floats) -> dict[str, Any]:
    room = max(2, CELLS_MAX // len(names))
    last = share.shape[1] - 1
    chosen = np.unique(np.linspace(0, last, min(room, last + 1)).round().astype(int))
    return {
        "type": "heatmap",
        "x": [view.times[place] for place in chosen],
        "z": packed(share[:, chosen]),
        "zmin": 0,
        "zmax": 100,
        "colorscale": "Viridis",
        "colorbar": colour_bar("state of charge (%)"),
        "y": [safe(name) for name in names],
        "hovertemplate": "%{y}<br>%{x|%H:%M}: %{z:.1f} %<extra></extra>",
        "showlegend": False,
    }


def loading(view: View) -> Picture | None:
    """Draw the most loaded branches that have a rating."""
    rated = view.tables.branches.dropna(subset=["loading"])
    if len(rated) == 0:
        return None
    values = pd.DataFrame({"to_bus": rated["to_bus"], "loading": numbers(rated["loading"]) * 100.0})
    worst = rated.loc[values.groupby("to_bus", sort=False)["loading"].idxmax()]
    worst = worst.sort_values("loading", ascending=False, kind="stable")
    shown = worst.head(BRANCHES_MAX)
    percent = numbers(shown["loading"]) * 100.0
    places = list(range(len(shown)))
    labels = [f"→ {bus}" for bus in shown["to_bus"]]
    whole = [
        [safe(a), safe(b), view.clock(int(interval))]
        for a, b, interval in zip(
            shown["from_bus"], shown["to_bus"], shown["interval"], strict=True
        )
    ]
    top = max(105.0, float(percent.max()) * 1.05)
    data = {
        "type": "bar",
        "x": places,
        "y": plain(percent),
        "customdata": whole,
        "marker": {"color": ["@plan" if value <= 100.0 + 1e-4 else "@loss" for value in percent]},
        "hovertemplate": "%{customdata[0]} → %{customdata[1]}<br>%{y:.1f} % at %{customdata[2]}"
        "<extra></extra>",
    }
    figure = layout(
        hovermode="closest",
        xaxis=names_axis("branch, sorted", labels, tickangle=-45),
        yaxis=axis("highest loading (% of rating)", range=[0, top]),
        shapes=[level(100.0)],
    )
    first = shown.iloc[0]
    where = f"{first['from_bus']} → {first['to_bus']} at {view.clock(int(first['interval']))}"
    verdict = "Every rating is kept" if percent[0] <= 100.0 + 1e-4 else "A rating is exceeded"
    more = len(worst) - len(shown)
    caption = "The highest planned loading of each branch."
    if more:
        caption += f" {more} branches with less are not shown."
    return Picture(
        name="loading",
        title=f"{verdict}: the highest loading is {percent[0]:.0f} %, {where}",
        caption=caption,
        figure={"data": [data], "layout": figure},
    )
