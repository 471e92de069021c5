"""Attacks on what opens about limits: amounts that no plan can meet, extremes of the power flow.

Each of these numbers is an equation between all demands of one interval [sealed 8.2]. What opens
is rounded; controls have the exact numbers, solve the same way, and show what rounding is for.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from veilgrid.grid.acflow import ac_flow
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits, flows
from veilgrid.grid.network import Floats
from veilgrid.roles.audit_opened import (
    OTHERS,
    PUBLIC,
    Equations,
    attack_equations,
    joined,
    row_of,
)
from veilgrid.roles.audit_score import Recovered
from veilgrid.roles.audit_truth import is_unmet
from veilgrid.roles.sealed.step import UNMET_BITS
from veilgrid.roles.sealed.view import Views

AMOUNTS: Final = "who got the exact amounts, which stay shut"
EXTREMES: Final = "who got the exact extremes, which stay shut"

Found = tuple[list[Recovered], list[Recovered]]
Linear = tuple[Floats, Floats, float]
"""A row: coefficients (bus,) of active and of reactive demands, and their sum."""


def attack_limits(day: Day, views: Views, site: int) -> Found:
    """Attack one site through amounts exceeded, or through a plan's extremes.

    Parameters
    ----------
    day, views, site
        As of any audit of `sealed`; of an infeasible day :func:`.audit_truth.relieved`.

    Returns
    -------
    tuple
        Rows of who is promised to see nothing, and controls.
    """
    demands = day.demands(views.coordination.setpoints)
    if is_unmet(views):
        rough, exact = unmet_equations(views, demands)
        names = "amounts by which rows are exceeded", AMOUNTS
    else:
        rough, exact = extreme_equations(day, views.coordination.opened["electrical"], demands)
        names = "lowest and highest voltage, highest loading", EXTREMES
    return _beside_exact(day, views, site, (rough, exact), demands, names)


def _beside_exact(
    day: Day,
    views: Views,
    site: int,
    equations: tuple[Sequence[Equations], Sequence[Equations]],
    demands: tuple[Floats, Floats],
    names: tuple[str, str],
) -> Found:
    """Solve what opened, and as controls what is exact, for everybody and with all others' data."""
    what, control = names
    rows, beyond = attack_equations(day, views, site, equations[0], demands, what)
    exact, others = attack_equations(day, views, site, equations[1], demands, f"exact {what}")
    exact = [row._replace(role=control) for row in exact if row.role == PUBLIC]
    others = [row._replace(role=f"{OTHERS}, {control}") for row in others]
    return rows, [*beyond, *exact, *others]


def unmet_equations(
    views: Views, demands: tuple[Floats, Floats]
) -> tuple[list[Equations], list[Equations]]:
    """Return what amounts exceeded say of the demands that relieve limits most: coarse and exact.

    Amounts are rounded up, so an attacker takes half a step off.
    """
    limits = views.coordination.limits or views.public.register.limits
    unmet = next(one["unmet"] for one in reversed(views.opened) if one.get("is_unmet"))
    rough: dict[int, list[Linear]] = {}
    exact: dict[int, list[Linear]] = {}
    for number, t, amount in unmet:
        active, reactive, bound = row_of(limits, int(number), int(t))
        near = bound + float(amount) - 0.5 * 2.0**-UNMET_BITS
        truth = float(active @ demands[0][:, t] + reactive @ demands[1][:, t])
        rough.setdefault(int(t), []).append((active, reactive, near))
        exact.setdefault(int(t), []).append((active, reactive, truth))
    return _by_interval(rough), _by_interval(exact)


def extreme_equations(
    day: Day, shown: dict[str, Any], demands: tuple[Floats, Floats]
) -> tuple[list[Equations], list[Equations]]:
    """Return what a plan's lowest and highest voltage and loading say of demands.

    The attacker is given more than opens: where they stand, what losses make of them, and the
    angle of what the heaviest branch carries. What it has from the day is the number.
    """
    limits = Limits.of(day.network)
    state, linear = ac_flow(limits.tree, *demands), flows(limits.tree, *demands)
    magnitude = state.magnitude
    rough: dict[int, list[Linear]] = {}
    exact: dict[int, list[Linear]] = {}

    def add(t: int, active: Floats, reactive: Floats, off: float) -> None:
        truth = float(active @ demands[0][:, t] + reactive @ demands[1][:, t])
        exact.setdefault(t, []).append((active, reactive, truth))
        rough.setdefault(t, []).append((active, reactive, truth + off))

    ends = (("vm_min_pu", magnitude.argmin()), ("vm_max_pu", magnitude.argmax()))
    for name, place in ends if shown["vm_min_pu"] is not None else ():
        bus, t = (int(part) for part in np.unravel_index(place, magnitude.shape))
        if bus != limits.tree.root:
            off = float(magnitude[bus, t]) ** 2 - float(shown[name]) ** 2
            add(t, limits.shared_resistance[bus], limits.shared_reactance[bus], off)
    if shown.get("loading_max") is not None:
        heavy = np.where(np.isfinite(state.loading), state.loading, 0.0)
        bus, t = (int(part) for part in np.unravel_index(heavy.argmax(), heavy.shape))
        rating = float(limits.tree.rating_pu[bus])
        angle = np.arctan2(linear.reactive[bus, t], linear.active[bus, t])
        member = np.asarray(limits.tree.subtree[[bus]].toarray())[0]
        off = (float(shown["loading_max"]) - float(heavy[bus, t])) * rating
        add(t, np.cos(angle) * member, np.sin(angle) * member, off)
    return _by_interval(rough), _by_interval(exact)


def _by_interval(rows: dict[int, list[Linear]]) -> list[Equations]:
    return [joined(t, one) for t, one in sorted(rows.items())]


__all__ = ["AMOUNTS", "EXTREMES", "attack_limits", "extreme_equations", "unmet_equations"]
