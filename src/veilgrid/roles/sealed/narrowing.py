"""Narrower limits after the AC power flow refused a plan, without anybody's demands [sealed 6.1].

At the places where the refused plan is beyond its limits (these open in any case), what both models
say of it opens: voltages, or what a branch carries. That is what :mod:`veilgrid.grid.correction`
makes a narrower limit of. Limits elsewhere stay; should one of those be next, another plan follows.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from veilgrid.grid.correction import STEP_PU, carried_over
from veilgrid.grid.lindistflow import Correction, Limits

REFUSALS_MAX: Final = 6
"""Plans that are planned again; what the AC power flow says of the next one stands."""

Places = Sequence[Sequence[float]]
"""Bus, interval, and numbers about the place."""


def narrowed(
    limits: Limits,
    voltage_limits: tuple[float | None, float | None],
    interval_count: int,
    shown: Mapping[str, Places],
) -> Limits:
    """Narrow limits where a plan was refused.

    Parameters
    ----------
    limits
        What the plan was made within; nothing in the result is wider.
    voltage_limits : per-unit, None = unbounded
        What the AC power flow has to keep.
    interval_count
        Of the day.
    shown
        ``low``, ``high``: bus, interval, squared voltage in AC and in LinDistFlow, per-unit;
        ``over``: branch, interval, squared apparent power in AC (the larger end) and in
        LinDistFlow, per-unit of the squared rating.
    """
    tree = limits.tree
    blank = np.zeros((len(tree), interval_count))
    before = limits.correction or Correction(blank, blank, blank)
    parts = [part.copy() for part in before]
    slack = tree.slack_voltage_pu**2
    planned = (limits.squared_min, limits.squared_max)
    for side, (name, sign) in enumerate((("low", 1.0), ("high", -1.0))):
        limit, own = voltage_limits[side], planned[side]
        if limit is None or own is None:
            continue
        for bus, interval, exact, linear in shown.get(name, ()):
            place = int(bus), int(interval)
            drop = np.array(slack - linear)
            difference = float(carried_over(np.array(linear - exact), drop, slack - limit**2))
            more = sign * difference + 2.0 * limit * STEP_PU - sign * (own - limit**2)
            parts[side][place] = max(parts[side][place], more)
    for branch, interval, exact, linear in shown.get("over", ()):
        place, rating = (int(branch), int(interval)), float(tree.rating_pu[int(branch)])
        more = rating * (max(exact, 0.0) ** 0.5 - max(linear, 0.0) ** 0.5 + STEP_PU)
        parts[2][place] = max(parts[2][place], more)
    return Limits(
        tree=tree,
        squared_min=limits.squared_min,
        squared_max=limits.squared_max,
        correction=Correction(*parts),
    )


def has_places(shown: Mapping[str, Any]) -> bool:
    """Whether a plan was refused somewhere."""
    return any(shown.get(name) for name in ("low", "high", "over"))
