"""The feeder as a tree on paper: where each bus stands, so that nothing overlaps.

Buses stand at their depth (hops from the substation). The longest way through each subtree is a
straight row; the ways that leave it are packed above and below, the farthest from the substation
first, each in the nearest row that is free over its whole length [after Reingold and Tilford 1981].
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from veilgrid.errors import invariant
from veilgrid.grid.network import Floats, Integers, Network, Tree
from veilgrid.report.plot import (
    Picture,
    View,
    axis,
    colour_bar,
    extremes,
    layout,
    level,
    packed,
    plain,
    short,
    step_line,
    thinned,
    time_axis,
)

NAMED_MAX = 30
"""Up to so many buses carry their name in the picture; more only when pointed at."""

COLOURS = [
    [0.0, "#2166ac"],
    [0.25, "#92c5de"],
    [0.5, "#f3f0e8"],
    [0.75, "#f4a582"],
    [1.0, "#b2182b"],
]
"""Blue is low, red is high, pale is the middle between the limits."""


@dataclass
class _Shape:
    """A laid-out subtree: rows of its buses relative to its first bus, and what it covers.

    ``top`` and ``bottom`` give the extreme rows at each depth.
    """

    rows: dict[int, int] = field(default_factory=dict)
    top: dict[int, int] = field(default_factory=dict)
    bottom: dict[int, int] = field(default_factory=dict)

    def cover(self, depth: int, row: int) -> None:
        self.top[depth] = max(row, self.top.get(depth, row))
        self.bottom[depth] = min(row, self.bottom.get(depth, row))

    def room_above(self, other: "_Shape") -> int:
        """Lowest row > 0 at which ``other`` stands clear above this shape."""
        shared = [self.top[d] + 1 - other.bottom[d] for d in other.bottom if d in self.top]
        return max([1, *shared])

    def room_below(self, other: "_Shape") -> int:
        """Highest row < 0 at which ``other`` stands clear below this shape."""
        shared = [self.bottom[d] - 1 - other.top[d] for d in other.top if d in self.bottom]
        return min([-1, *shared])

    def add(self, other: "_Shape", row: int) -> None:
        for bus, own in other.rows.items():
            self.rows[bus] = own + row
        for depth, own in other.top.items():
            self.cover(depth, own + row)
        for depth, own in other.bottom.items():
            self.cover(depth, own + row)


def place(tree: Tree) -> tuple[Integers, Integers]:
    """Place every bus of a radial network.

    Returns
    -------
    depth, row : (bus,)
        Position along the feeder and across it; no two buses share both, the substation is at
        (0, 0) and no branch crosses another.
    """
    children: list[list[int]] = [[] for _ in range(len(tree))]
    for bus in tree.order[1:]:
        children[int(tree.parent[bus])].append(int(bus))
    reach = tree.depth.copy()
    for bus in tree.order[::-1]:
        for child in children[int(bus)]:
            reach[bus] = max(reach[bus], reach[child])
    for own in children:
        own.sort(key=lambda child: (-int(reach[child]), child))
    shapes: dict[int, _Shape] = {}
    for bus in tree.order[::-1]:
        parent = int(tree.parent[bus])
        if parent < 0 or children[parent][0] != bus:
            shapes[int(bus)] = _shape(int(bus), children, tree.depth, shapes)
    rows = shapes[tree.root].rows
    invariant(len(rows) == len(tree), "every bus has a place")
    return tree.depth, np.array([rows[bus] for bus in range(len(tree))], dtype=np.int64)


def _shape(
    first: int, children: list[list[int]], depth: Integers, shapes: dict[int, _Shape]
) -> _Shape:
    """Lay out the subtree of ``first``: its longest way straight, the others around it."""
    way = [first]
    while children[way[-1]]:
        way.append(children[way[-1]][0])
    shape = _Shape()
    for bus in way:
        shape.rows[bus] = 0
        shape.cover(int(depth[bus]), 0)
    for bus in reversed(way):
        for child in reversed(children[bus][1:]):
            lateral = shapes.pop(child)
            above, below = shape.room_above(lateral), shape.room_below(lateral)
            shape.add(lateral, above if above <= -below else below)
    return shape


def electrical_distance(tree: Tree) -> Floats:
    """Impedance between each bus and the substation, (bus,), per-unit."""
    return np.asarray(tree.path @ np.hypot(tree.resistance_pu, tree.reactance_pu))


def reading_order(tree: Tree) -> Integers:
    """Order buses so that neighbours on the feeder stand together, (bus,): depth first."""
    children: list[list[int]] = [[] for _ in range(len(tree))]
    for bus in tree.order[1:]:
        children[int(tree.parent[bus])].append(int(bus))
    order: list[int] = []
    waiting = [tree.root]
    while waiting:
        bus = waiting.pop()
        order.append(bus)
        waiting.extend(reversed(children[bus]))
    return np.array(order, dtype=np.int64)


def feeder(view: View) -> Picture | None:
    """Draw the feeder as a tree coloured by voltage, with a slider over intervals."""
    plan, before = view.by_bus("voltage_pu"), view.by_bus("voltage_uncontrolled_pu")
    shown = plan if plan is not None else before
    if shown is None:
        return None
    network = view.scenario.network
    tree = network.tree
    depth, row = place(tree)
    worst = _worst(shown, network)
    chosen = thinned(view, (worst[1],))
    height = int(np.clip(150 + 30 * (row.max() - row.min() + 1), 300, 900))
    demand = view.by_bus("net_demand_mw")
    marks = _marks(view, shown[:, worst[1]], depth, row, _colour_range(network, plan, before))
    marks["marker"]["size"] = _sizes(tree, row, height)
    figure = {
        "data": [_lines(tree, depth, row), marks],
        "layout": _paper(depth, row),
        "feeder": {
            "names": view.names,
            "times": [view.clock(interval) for interval in chosen],
            "first": chosen.index(worst[1]),
            "plan": None if plan is None else packed(plan[:, chosen]),
            "before": None if before is None else packed(before[:, chosen]),
            "demand": None if demand is None else packed(demand[:, chosen]),
            "distance": plain(electrical_distance(tree), 3),
            "root": tree.root,
            "low": network.voltage_min_pu,
            "high": network.voltage_max_pu,
            "size": marks["marker"]["size"],
        },
    }
    limits = [
        f"{word} limit {limit:g} pu"
        for word, limit in (("lower", network.voltage_min_pu), ("upper", network.voltage_max_pu))
        if limit is not None
    ]
    caption = "Blue is low, red is high. The square is the substation. "
    if limits:
        caption += f"A ring marks a bus outside the limits ({', '.join(limits)}). "
    return Picture(
        name="feeder",
        title=_message(view, shown, worst, plan is not None),
        caption=caption + "Point at a bus for its figures.",
        figure=figure,
        height=height,
    )


def _paper(depth: Integers, row: Integers) -> dict[str, Any]:
    """Lay out the picture: depth to the right, rows without an axis."""
    return layout(
        hovermode="closest",
        showlegend=False,
        xaxis=axis(
            "branches between substation and bus",
            range=[-0.6, float(depth.max()) + 0.8],
            dtick=1 if depth.max() <= 12 else None,
            nticks=12,
            tickangle=0,
            showgrid=False,
            zeroline=False,
        ),
        yaxis={
            "visible": False,
            "fixedrange": True,
            "range": [float(row.min()) - 0.9, float(row.max()) + 0.9],
        },
    )


def _sizes(tree: Tree, row: Integers, height: int) -> list[float]:
    """Choose marker sizes in px, so that neighbours in a column stay apart where they can."""
    count = len(tree)
    size = 20.0 if count <= 20 else 14.0 if count <= 100 else 9.0 if count <= 300 else 6.0
    size = min(size, max(4.0, 0.9 * (height - 150) / float(row.max() - row.min() + 1)))
    return [max(12.0, size + 6.0) if bus == tree.root else size for bus in range(count)]


def _colour_range(
    network: Network, plan: Floats | None, before: Floats | None
) -> tuple[float, float]:
    """Span the colours between the limits, else as far from nominal as any voltage is."""
    nominal = network.slack_voltage_pu
    known = [values for values in (plan, before) if values is not None]
    reach = max(0.005, *(float(np.nanmax(np.abs(values - nominal))) for values in known))
    low, high = network.voltage_min_pu, network.voltage_max_pu
    bottom = nominal - reach if low is None else low
    top = nominal + reach if high is None else high
    return (bottom, top) if bottom < top else (bottom - reach, bottom + reach)


def _worst(values: Floats, network: Network) -> tuple[int, int]:
    """Find the bus and interval nearest to or beyond a limit, else farthest from nominal."""
    low, high = network.voltage_min_pu, network.voltage_max_pu
    strain = np.full(values.shape, -np.inf)
    if low is not None:
        strain = np.fmax(strain, low - values)
    if high is not None:
        strain = np.fmax(strain, values - high)
    if low is None and high is None:
        strain = np.abs(values - network.slack_voltage_pu)
    strain = np.where(np.isfinite(values), strain, -np.inf)
    if len(values) > 1:
        strain[network.tree.root] = -np.inf
    bus, interval = np.unravel_index(int(strain.argmax()), strain.shape)
    return int(bus), int(interval)


def _lines(tree: Tree, depth: Integers, row: Integers) -> dict[str, Any]:
    """Draw branches as one broken line."""
    x: list[float | None] = []
    y: list[float | None] = []
    for bus in tree.order[1:]:
        parent = tree.parent[bus]
        x += [float(depth[parent]), float(depth[bus]), None]
        y += [float(row[parent]), float(row[bus]), None]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "y": y,
        "line": {"color": "@axis", "width": 2 if len(tree) <= 300 else 1},
        "hoverinfo": "skip",
    }


def _marks(
    view: View, first: Floats, depth: Integers, row: Integers, span: tuple[float, float]
) -> dict[str, Any]:
    """Draw buses as markers in the colour of their voltage."""
    count, root = len(view.names), view.scenario.network.tree.root
    marks: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers",
        "x": depth.tolist(),
        "y": row.tolist(),
        "cliponaxis": False,
        "marker": {
            "opacity": 1,
            "symbol": ["square" if bus == root else "circle" for bus in range(count)],
            "color": plain(first, 5),
            "cmin": span[0],
            "cmax": span[1],
            "colorscale": COLOURS,
            "colorbar": colour_bar("voltage (pu)", tickformat=".3f", nticks=6),
            "line": {"color": "@axis", "width": 1},
        },
        "hoverinfo": "text",
    }
    if count <= NAMED_MAX:
        names = [short(bus.name) for bus in view.scenario.network.buses]
        marks |= {"mode": "markers+text", "text": names, "textposition": "top center"}
        marks |= {"textfont": {"size": 11}}
    return marks


def _message(view: View, values: Floats, worst: tuple[int, int], is_plan: bool) -> str:
    bus, interval = worst
    network = view.scenario.network
    name = network.buses[bus].name
    where = name if name.lower().startswith("bus") else f"bus {name}"
    word = "In the plan" if is_plan else "Without coordination"
    extreme = "highest" if values[bus, interval] > network.slack_voltage_pu else "lowest"
    return (
        f"{word}, the {extreme} voltage is {values[bus, interval]:.3f} pu "
        f"at {where}, {view.clock(interval)}"
    )


def voltage_band(view: View) -> Picture | None:
    """Draw the lowest and highest voltage of all buses over time, before and after."""
    plan, before = view.by_bus("voltage_pu"), view.by_bus("voltage_uncontrolled_pu")
    if plan is None and before is None:
        return None
    others = np.arange(len(view.names)) != view.scenario.network.tree.root
    if not others.any():
        others[:] = True
    data: list[dict[str, Any]] = []
    reach = max(float(np.nanmax(v) - np.nanmin(v)) for v in (plan, before) if v is not None)
    for values, name, colour, dash in (
        (before, "without coordination", "uncontrolled", "dot"),
        (plan, "plan", "plan", "solid"),
    ):
        if values is None:
            continue
        low, high = extremes(values[others])
        line = {"width": 1.5, "dash": dash}
        hover = {"hovertemplate": f"{name}: %{{y:.4f}} pu<extra></extra>"}
        group = {"legendgroup": colour, "line": line, **hover}
        data.append(step_line(view, low, name, f"@{colour}", showlegend=False, **group))
        fill = {"fill": "tonexty", "fillcolor": "@plan/0.22"} if colour == "plan" else {}
        data.append(step_line(view, high, name, f"@{colour}", **fill, **group))
    network = view.scenario.network
    shapes, notes = [], []
    for limit, word, anchor in (
        (network.voltage_max_pu, "upper limit", "bottom"),
        (network.voltage_min_pu, "lower limit", "top"),
    ):
        if limit is not None:
            shapes.append(level(limit))
            notes.append(_note(f"{word} {limit:g} pu", limit, anchor))
    chosen = [values if values is None else values[others] for values in (plan, before)]
    title = _band_message(chosen[0], chosen[1], network.voltage_min_pu, network.voltage_max_pu)
    caption = "Lowest and highest voltage of all buses but the substation, from an AC power flow."
    if not shapes:
        caption += " This scenario sets no voltage limits."
    figure = layout(
        xaxis=time_axis(view),
        yaxis=axis("voltage (pu)", tickformat=".3f" if reach > 0.01 else ".4f"),
        shapes=shapes,
        annotations=notes,
    )
    return Picture(
        name="voltage",
        title=title,
        caption=caption,
        figure={"data": data, "layout": figure},
        height=380,
    )


def _note(text: str, value: float, anchor: str) -> dict[str, Any]:
    """Write a word at the right end of a level."""
    return {
        "text": text,
        "xref": "paper",
        "x": 1,
        "xanchor": "right",
        "y": value,
        "yanchor": anchor,
        "yshift": 4 if anchor == "bottom" else -4,
        "showarrow": False,
        "font": {"color": "@limit", "size": 12},
    }


def _band_message(
    plan: Floats | None, before: Floats | None, low: float | None, high: float | None
) -> str:
    def span(values: Floats) -> str:
        return f"{np.nanmin(values):.3f} to {np.nanmax(values):.3f} pu"

    def outside(values: Floats) -> bool:
        below = low is not None and bool(np.nanmin(values) < low - 1e-6)
        return below or (high is not None and bool(np.nanmax(values) > high + 1e-6))

    if plan is None or before is None:
        known = plan if plan is not None else before
        word = "Planned voltages" if plan is not None else "Voltages without coordination"
        return f"{word} range from {span(known)}" if known is not None else ""
    if low is None and high is None:
        return f"Planned voltages range from {span(plan)}; without coordination {span(before)}"
    if outside(plan):
        return f"The plan leaves the voltage limits: {span(plan)}"
    if outside(before):
        return f"The plan keeps the limits ({span(plan)}); without coordination {span(before)}"
    return f"Voltages keep the limits, planned ({span(plan)}) and without coordination"
