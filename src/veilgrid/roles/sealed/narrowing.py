"""Narrower limits after the AC power flow refused a plan, without anybody's demands [sealed 6.1].

At the places where the refused plan is beyond its limits (these open in any case), the difference
of the two models opens, in steps of ``2**-13``: what the losses make of a voltage, or of what a
branch carries. Limits are narrowed by it. Limits elsewhere stay; should one of those be next,
another plan follows. Neither model's voltages open: those of a bus and its neighbours would be an
equation about the one site there.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from veilgrid.grid.correction import STEP_PU, carried_over
from veilgrid.grid.lindistflow import Correction, Limits

REFUSALS_MAX: Final = 6
"""Plans that are planned again; what the AC power flow says of the next one stands."""

SHOWN_BITS: Final = 13
"""Binary places of differences that open, per-unit squared or shares of a squared rating."""

HALF: Final = 2.0 ** -(SHOWN_BITS + 1)
"""What a difference may have been rounded down by."""

OVER_MAX: Final = 0.75
"""A rating is halved at most."""

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
        ``low``, ``high``: bus, interval, squared voltage in LinDistFlow less that in AC, per-unit;
        ``over``: branch, interval, squared apparent power in AC (the larger end) less that in
        LinDistFlow, per-unit of the squared rating.

    Notes
    -----
    A plan keeps its limits in LinDistFlow, so at a bus beyond them in AC its drop is taken to be
    what they allow. A branch over its rating carries at least the rating in AC, which bounds what
    it carries beyond LinDistFlow.
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
        for bus, interval, missed in shown.get(name, ()):
            place = int(bus), int(interval)
            room = 2.0 * limit * STEP_PU - sign * (own - limit**2)
            drop = np.array(slack - (own + sign * before[side][place]))
            found = float(carried_over(np.array(missed), drop, slack - limit**2))
            parts[side][place] = max(parts[side][place], sign * found + HALF + room)
    for branch, interval, missed in shown.get("over", ()):
        place, rating = (int(branch), int(interval)), float(tree.rating_pu[int(branch)])
        square = min(max(missed + HALF, 0.0), OVER_MAX)
        more = rating * (square / (1.0 + (1.0 - square) ** 0.5) + STEP_PU)
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
