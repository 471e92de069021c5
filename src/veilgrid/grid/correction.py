"""What LinDistFlow leaves out of one plan, as narrower limits for the next one [model 7].

At a refused plan, LinDistFlow and the AC power flow are both known at every bus and in every
interval. Their difference comes from losses, which grow with the square of what flows; so it is
carried over to the limit by the square of the voltage drop. Planning again within limits narrowed
by just that much lands on the true limits where these bind, and gives nothing away elsewhere.
"""

import numpy as np

from veilgrid.grid.acflow import AcState, ac_flow
from veilgrid.grid.lindistflow import Correction, Flows, Limits, flows
from veilgrid.grid.network import Floats, Network

STEP_PU = 2e-6
"""Kept beyond each difference, so that the next plan does not end just outside again."""

SHARE_MIN = 0.5
"""A difference is carried over to at least this share of a bus's present drop, and at most to all
of it: buses that keep their limit keep the difference that they have."""


def corrected(network: Network, limits: Limits, demand_p: Floats, demand_q: Floats) -> Limits:
    """Narrow limits by what the AC power flow of a plan differs from LinDistFlow.

    Parameters
    ----------
    network
        Whose limits the AC power flow has to meet.
    limits
        What the plan was made within; nothing in the result is wider.
    demand_p, demand_q : (bus, interval), per-unit
        The plan's net demands.

    Returns
    -------
    Limits
        Where no power flow exists, limits stay as they are.
    """
    tree = network.tree
    exact, linear = ac_flow(tree, demand_p, demand_q), flows(tree, demand_p, demand_q)
    low, high = network.voltage_min_pu, network.voltage_max_pu
    before = limits.correction
    if before is None:
        blank = np.zeros_like(demand_p)
        before = Correction(blank, blank, blank)
    parts = [
        *(
            before[side]
            if limit is None or planned is None
            else np.maximum(
                before[side],
                sign * _difference(exact, linear, limit**2, tree.slack_voltage_pu**2)
                + 2.0 * limit * STEP_PU
                - sign * (planned - limit**2),
            )
            for side, (sign, limit, planned) in enumerate(
                ((1.0, low, limits.squared_min), (-1.0, high, limits.squared_max))
            )
        ),
        np.maximum(before.rating, _overload(exact, linear, tree.rating_pu)),
    ]
    known = exact.is_converged[np.newaxis, :]
    merged = [np.where(known, part, old) for part, old in zip(parts, before, strict=True)]
    return Limits(
        tree=limits.tree,
        squared_min=limits.squared_min,
        squared_max=limits.squared_max,
        correction=Correction(*merged),
    )


def _difference(exact: AcState, linear: Flows, limit: float, slack: float) -> Floats:
    """Return by how much AC lies below LinDistFlow where a bus is at its limit, (bus, interval).

    Squared per-unit. With the drop ``D`` in LinDistFlow and the difference ``k D^2``, the bus is
    at its limit where ``D + k D^2 = slack - limit``.
    """
    found = linear.voltage_squared - exact.magnitude**2
    return carried_over(found, slack - linear.voltage_squared, slack - limit)


def carried_over(found: Floats, drop: Floats, whole: float) -> Floats:
    """Return what a difference at one drop is where the drop reaches the limit.

    Parameters
    ----------
    found : any axes, per-unit squared
        By how much AC lies below LinDistFlow.
    drop : the same axes, per-unit squared
        How far LinDistFlow lies below the substation.
    whole : per-unit squared
        How far the limit does.
    """
    with np.errstate(all="ignore"):  # A bus without a drop keeps the difference it has.
        curvature = found / drop**2
        root = np.sqrt(1.0 + 4.0 * curvature * whole)
        share = 2.0 * whole / (1.0 + root) / drop
    is_known = np.isfinite(share) & (share > 0.0)
    return np.asarray(found * np.where(is_known, np.clip(share, SHARE_MIN, 1.0), 1.0) ** 2)


def _overload(exact: AcState, linear: Flows, rating: Floats) -> Floats:
    """Return what a branch carries beyond LinDistFlow, (branch, interval), per-unit."""
    is_rated = np.isfinite(rating)[:, np.newaxis]
    carried = exact.loading * np.where(np.isfinite(rating), rating, 0.0)[:, np.newaxis]
    beyond = carried - np.hypot(linear.active, linear.reactive)
    step = STEP_PU * np.where(is_rated, rating[:, np.newaxis], 0.0)
    return np.where(is_rated, np.maximum(beyond + step, 0.0), 0.0)


def margin_pu(network: Network, limits: Limits) -> float:
    """Return the widest voltage margin that limits keep anywhere, per-unit."""
    change = limits.correction
    blank = np.zeros((1, 1))
    widest = 0.0
    if network.voltage_min_pu is not None and limits.squared_min is not None:
        low = np.sqrt(limits.squared_min + (blank if change is None else change.low))
        widest = max(widest, float(low.max()) - network.voltage_min_pu)
    if network.voltage_max_pu is not None and limits.squared_max is not None:
        high = np.sqrt(limits.squared_max - (blank if change is None else change.high))
        widest = max(widest, network.voltage_max_pu - float(high.min()))
    return round(widest, 12)


def rating_share(network: Network, limits: Limits) -> float:
    """Return the smallest share of any rating that limits allow."""
    rating = network.tree.rating_pu[:, np.newaxis]
    allowed = limits.tree.rating_pu[:, np.newaxis]
    if limits.correction is not None:
        allowed = allowed - limits.correction.rating
    with np.errstate(invalid="ignore"):
        share = np.where(np.isfinite(rating), allowed / rating, 1.0)
    return float(share.min(initial=1.0))
