"""What every picture shares: the view of a run, number encoding, axes, colours by name.

A picture is a plotly figure as plain data. Colours are names (``@pv``, ``@plan/0.2``) that the
page resolves from its style sheet, so that light, dark and print need no second picture; large
arrays are packed into 16 bits, which the page unpacks.
"""

import base64
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd

from veilgrid.grid.network import Floats
from veilgrid.grid.scenario import Scenario
from veilgrid.report.tables import Tables, starts_of

MISSING = 65535
LABELS_MAX = 20
ROW_LABELS_MAX = 8
LABEL_LENGTH_MAX = 18
CELLS_MAX = 80_000
"""So many values of a (bus, interval) array go into the page; more are thinned by interval."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A plotly figure with its message.

    Attributes
    ----------
    name
        Its place in the page.
    title
        What it shows, as a sentence.
    caption
        How to read it.
    figure
        ``data``, ``layout`` and, for the feeder, what its slider needs.
    height : px
    """

    name: str
    title: str
    caption: str
    figure: dict[str, Any] = field(repr=False)
    height: int = 360


@dataclass(frozen=True, kw_only=True)
class View:
    """A run as pictures see it.

    Attributes
    ----------
    times
        Starts of all intervals and the end of the last, local time without offset.
    scheme
        Under which the run was; empty if it does not matter.
    """

    scenario: Scenario
    tables: Tables = field(repr=False)
    times: tuple[str, ...] = field(repr=False)
    zone: str
    scheme: str = ""

    @classmethod
    def of(cls, scenario: Scenario, tables: Tables, scheme: str = "") -> "View":
        starts = starts_of(scenario)
        end = starts[-1] + timedelta(minutes=scenario.horizon.interval_minutes)
        offset = starts[0].strftime("%z") or "+0000"
        return cls(
            scenario=scenario,
            tables=tables,
            times=tuple(moment.strftime("%Y-%m-%dT%H:%M:%S") for moment in (*starts, end)),
            zone=f"UTC{offset[:3]}:{offset[3:5]}",
            scheme=scheme,
        )

    @property
    def has_plan(self) -> bool:
        """Whether the run ended with set-points."""
        return len(self.tables.buses) > 0

    def by_bus(self, column: str) -> Floats | None:
        """Column of ``buses`` as (bus, interval); ``None`` if nothing is known."""
        values = numbers(self.tables.buses[column])
        if not np.isfinite(values).any():
            return None
        return values.reshape(len(self.scenario.network.buses), -1)

    def clock(self, interval: int) -> str:
        """Local time of an interval's start, with the date if the horizon exceeds a day."""
        day, time = self.times[interval].split("T")
        is_long = self.times[0][:10] != self.times[-2][:10]
        return f"{day} {time[:5]}" if is_long else time[:5]

    @property
    def names(self) -> list[str]:
        """Names of the buses, safe to show."""
        return [safe(bus.name) for bus in self.scenario.network.buses]


def numbers(column: "pd.Series[Any]") -> Floats:
    """Values of a column; NaN where it is empty."""
    return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan))


def extremes(values: Floats) -> tuple[Floats, Floats]:
    """Least and greatest value over the first axis; NaN where nothing is known."""
    known = np.isfinite(values)
    low = np.where(known, values, np.inf).min(axis=0)
    high = np.where(known, values, -np.inf).max(axis=0)
    return np.where(np.isfinite(low), low, np.nan), np.where(np.isfinite(high), high, np.nan)


def fixed(value: float, digits: int = 2) -> str:
    """Write a number with fixed decimals and without a negative zero."""
    return f"{round(float(value), digits) + 0.0:,.{digits}f}"


def safe(text: object) -> str:
    """Escape a name for plotly, which reads tags in texts."""
    return html.escape(str(text), quote=False)


def short(text: object) -> str:
    """Shorten a name for an axis and escape it."""
    whole = str(text)
    cut = whole if len(whole) <= LABEL_LENGTH_MAX else whole[: LABEL_LENGTH_MAX - 1] + "…"
    return safe(cut)


def plain(values: Floats, digits: int = 6) -> list[float | None]:
    """List numbers with ``digits`` significant digits; ``None`` where nothing is known."""
    return [float(f"{v:.{digits}g}") if math.isfinite(v) else None for v in values.tolist()]


def packed(values: Floats) -> dict[str, Any]:
    """Encode a 2-D array with 16 bits a value: one part in 65,000 of its range."""
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    step = (high - low) / (MISSING - 1) or 1.0
    scaled = np.where(np.isfinite(values), np.rint((values - low) / step), MISSING)
    code = base64.b64encode(scaled.astype("<u2").tobytes()).decode()
    return {"packed": code, "low": low, "step": step, "shape": list(values.shape)}


def thinned(view: View, always: tuple[int, ...] = ()) -> list[int]:
    """Intervals whose (bus, interval) values go into the page: all of them if they fit."""
    count, intervals = len(view.scenario.network.buses), view.scenario.horizon.interval_count
    room = max(2, CELLS_MAX // count)
    if intervals <= room:
        return list(range(intervals))
    regular = np.linspace(0, intervals - 1, room).round().astype(int).tolist()
    return sorted({*regular, *always})


def axis(title: str, **more: Any) -> dict[str, Any]:
    """Describe an axis, its unit in the title."""
    return {
        "title": {"text": title, "standoff": 8, "font": {"size": 13}},
        "automargin": True,
        "gridcolor": "@grid",
        "linecolor": "@grid",
        "zerolinecolor": "@axis",
        "tickcolor": "@grid",
        **more,
    }


def time_axis(view: View, **more: Any) -> dict[str, Any]:
    """Describe the axis of local time."""
    return axis(
        f"local time ({view.zone})",
        type="date",
        tickformat="%H:%M\n%-d %b %Y",
        range=[view.times[0], view.times[-1]],
        **more,
    )


def names_axis(title: str, names: Sequence[str], **more: Any) -> dict[str, Any]:
    """Describe an axis of positions 0, 1, 2 ... labelled with as many names as can be read."""
    places = list(range(0, len(names), max(1, math.ceil(len(names) / LABELS_MAX))))
    return axis(
        title,
        tickmode="array",
        tickvals=places,
        ticktext=[short(names[place]) for place in places],
        range=[-0.5, len(names) - 0.5],
        showgrid=False,
        zeroline=False,
        **more,
    )


def rows_axis(title: str, names: Sequence[str], **more: Any) -> dict[str, Any]:
    """Describe the axis of a map whose rows are ``names``, the first one on top.

    The rows are categories, so that pointing at one tells its name; a tick is found by its
    category, for a bus may be called 8 and stand in row 12.
    """
    places = range(0, len(names), max(1, math.ceil(len(names) / ROW_LABELS_MAX)))
    return axis(
        title,
        type="category",
        tickmode="array",
        tickvals=[safe(names[place]) for place in places],
        ticktext=[short(names[place]) for place in places],
        range=[len(names) - 0.5, -0.5],
        showgrid=False,
        zeroline=False,
        **more,
    )


def layout(**more: Any) -> dict[str, Any]:
    """Begin a layout with what all share."""
    return {
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "@ink"},
        "paper_bgcolor": "@clear",
        "plot_bgcolor": "@clear",
        "modebar": {"bgcolor": "@card", "color": "@axis", "activecolor": "@ink"},
        "margin": {"l": 64, "r": 20, "t": 12, "b": 48},
        "hoverlabel": {"bgcolor": "@card", "bordercolor": "@axis", "font": {"color": "@ink"}},
        "legend": {
            "orientation": "h",
            "traceorder": "normal",
            "x": 0,
            "xanchor": "left",
            "y": 1.02,
            "yanchor": "bottom",
        },
        "hovermode": "x unified",
        **more,
    }


def steps(values: Floats) -> Floats:
    """Repeat the last value, so that a stepped line reaches the end of the last interval."""
    return np.append(values, values[-1:])


def step_line(view: View, values: Floats, name: str, colour: str, **more: Any) -> dict[str, Any]:
    """Draw a stepped line over time."""
    line = {"color": colour, "width": 2, "shape": "hv", **more.pop("line", {})}
    return {
        "type": "scatter",
        "mode": "lines",
        "x": list(view.times),
        "y": plain(steps(values)),
        "name": name,
        "line": line,
        **more,
    }


def level(value: float, yref: str = "y") -> dict[str, Any]:
    """Mark a level across the whole picture."""
    return {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "yref": yref,
        "y0": value,
        "y1": value,
        "line": {"color": "@limit", "width": 1.5, "dash": "dash"},
    }


def colour_bar(title: str, **more: Any) -> dict[str, Any]:
    """Describe a key of colours above the picture."""
    return {
        "title": {"text": title, "side": "top", "font": {"size": 13}},
        "orientation": "h",
        "thickness": 12,
        "len": 1.0,
        "xpad": 0,
        "ypad": 4,
        "y": 1.0,
        "yanchor": "bottom",
        "outlinewidth": 0,
        **more,
    }
