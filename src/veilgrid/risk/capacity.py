"""Dispatchable capacity of a fleet whose devices may fail, from validated inputs [capacity 1].

A device sends one message: a one-hot vector over public bins of capacity, and how far it is
within its bin. Everything that is summed, log-moments above all, is a public linear function of
that; so no device can send moments that contradict each other. Failure probabilities come from
the public history of each device. Written once: it runs on shares and on plain numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from veilgrid.errors import Finding, InputError, invariant
from veilgrid.grid.network import Floats
from veilgrid.mpc._round import Steps
from veilgrid.mpc._shares import Shares, concatenate, public_matrix
from veilgrid.mpc.bulk import BulkBatch
from veilgrid.mpc.layout import Integers, Layout, Number, OneHot, Scaled
from veilgrid.mpc.order import Mpc
from veilgrid.risk.capacity_tail import (
    LogMoments,
    Moments,
    Tail,
    bound_points_of,
    certified,
    exact_tail,
    points_of,
    tail_of,
)

BIN_COUNT: Final = 64
CLASS_COUNT_MAX: Final = 64
SCENARIO_COUNT_MAX: Final = 16
EXACT_MAX: Final = 64
"""So few devices are counted by size and convolved."""

FILL_STEPS: Final = 2**20
"""A place within a bin is one of so many; capacities are rounded down to one."""

_CLASS_STEPS: Final = 2**16
_SCALE: Final = 2**36


# -- what is public ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Bins:
    """Public bins of capacity.

    Attributes
    ----------
    edges_kw : (bin,), kW, rising from 0
        Where bins begin; the last is one point.
    step_kw : kW
        If not zero, all capacities are multiples of it and each edge is one.
    """

    edges_kw: Floats
    step_kw: float = 0.0

    @property
    def top_kw(self) -> float:
        """Largest capacity that fits."""
        return float(self.edges_kw[-1])

    def layout(self) -> Layout:
        """Return what every device sends."""
        return Layout(
            (
                Number("part", 0, FILL_STEPS - 1),
                OneHot("bin", len(self.edges_kw)),
                Scaled("fill", "bin", "part"),
            )
        )

    def encode(self, capacities_kw: Floats) -> Integers:
        """Return devices' inputs, rounded down: (device, element).

        Raises
        ------
        InputError
            A capacity does not fit; all such are named.
        """
        found = np.asarray(capacities_kw, np.float64)
        bad = np.flatnonzero(~(np.isfinite(found) & (found >= 0) & (found <= self.top_kw)))
        if bad.size:
            wanted = f"expected 0..{self.top_kw:g} kW"
            listed = [Finding(f"device {i}", f"found {found[i]:g} kW", wanted) for i in bad]
            raise InputError(listed)
        places = np.searchsorted(self.edges_kw, found, side="right") - 1
        above = np.append(self.edges_kw, self.edges_kw[-1] + 1.0)
        share = (found - self.edges_kw[places]) / (above[places + 1] - self.edges_kw[places])
        parts = np.clip(np.floor(share * FILL_STEPS), 0, FILL_STEPS - 1).astype(np.int64)
        return self.layout().encode({"bin": places, "part": parts})


def bins_of(low_kw: float, top_kw: float, step_kw: float = 0.0) -> Bins:
    """Return bins for capacities between public bounds.

    With a step that gives at most 64 multiples, bins are those; otherwise edges grow by a
    constant factor from ``low_kw``.
    """
    invariant(0 <= low_kw <= top_kw and top_kw > 0, "bounds of capacity rise")
    count = round(top_kw / step_kw) if step_kw else 0
    if 0 < count <= BIN_COUNT and abs(count * step_kw - top_kw) < 1e-9 * top_kw:
        return Bins((np.arange(count + 1) * step_kw).astype(np.float64), step_kw)
    low = max(low_kw, 1e-6 * top_kw)
    if low > 0.999 * top_kw:
        low = 0.5 * top_kw
    edges = np.geomspace(low, top_kw, BIN_COUNT - 1)
    edges[0], edges[-1] = low, top_kw
    return Bins(np.concatenate([[0.0], edges]).astype(np.float64))


@dataclass(frozen=True, slots=True, eq=False)
class History:
    """Public failure probabilities and how likely each scenario is.

    Attributes
    ----------
    weights : (scenario,), sum 1
    failure : (scenario, device), 0..1
        From the public history of each device, fixed before the round.
    """

    weights: Floats
    failure: Floats

    def __post_init__(self) -> None:
        """Refuse probabilities that are none."""
        invariant(self.failure.shape[0] == len(self.weights), "a row of probabilities a scenario")
        invariant(len(self.weights) <= SCENARIO_COUNT_MAX, "at most 16 scenarios")
        invariant(bool(abs(self.weights.sum() - 1) < 1e-9), "scenarios' probabilities sum to one")
        invariant(
            bool(((self.failure >= 0) & (self.failure <= 1)).all()), "probabilities lie in 0..1"
        )

    def classes(self) -> "list[Classes]":
        """Return the classes of failure probability under each scenario."""
        return [_classes(row) for row in self.failure]


@dataclass(frozen=True, slots=True, eq=False)
class Classes:
    """Failure probabilities as a few public ones, or mixtures of two neighbours.

    Attributes
    ----------
    levels : (class,), rising
    below : (device,)
        The class at or below the device's probability.
    above_weight : (device,), 0..65536
        How much of the next class is mixed in.
    """

    levels: Floats
    below: Integers
    above_weight: Integers


def _classes(failure: Floats) -> Classes:
    levels = np.unique(failure)
    if len(levels) > CLASS_COUNT_MAX:
        inner = levels[(levels > 0) & (levels < 1)]
        odds = np.log(inner / (1 - inner))
        spaced = np.linspace(odds.min(), odds.max(), CLASS_COUNT_MAX - 2)
        near = 1 / (1 + np.exp(-spaced))
        near[0], near[-1] = inner.min(), inner.max()
        ends = levels[(levels == 0) | (levels == 1)]
        levels = np.unique(np.concatenate([near, ends]))
    below = np.clip(np.searchsorted(levels, failure, side="right") - 1, 0, len(levels) - 1)
    above = np.minimum(below + 1, len(levels) - 1)
    width = np.where(above > below, levels[above] - levels[below], 1.0)
    # Rounded up: a device counts as failing a little too often, never too rarely.
    weight = np.ceil((failure - levels[below]) / width * _CLASS_STEPS).astype(np.int64)
    return Classes(levels, below.astype(np.int64), np.clip(weight, 0, _CLASS_STEPS))


# -- sums over devices -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Tally:
    """Shared sums over devices: how many of each class stand in each bin, and how far within.

    Attributes
    ----------
    counts, fills : one a scenario, (class * bin)
        In units of 1/65536 device.
    """

    counts: tuple[Shares, ...]
    fills: tuple[Shares, ...]

    def plus(self, other: "Tally", factor: int = 1) -> "Tally":
        """Return the sum with ``factor`` times another tally."""

        def added(mine: tuple[Shares, ...], theirs: tuple[Shares, ...]) -> tuple[Shares, ...]:
            pairs = zip(mine, theirs, strict=True)
            return tuple((a + b * factor).claim(a.bound) for a, b in pairs)

        return Tally(added(self.counts, other.counts), added(self.fills, other.fills))


def tally(batch: BulkBatch, classes: Sequence[Classes], rows: Integers, capacity: int) -> Tally:
    """Sum inputs by class, without a message.

    Parameters
    ----------
    batch
        Validated inputs.
    classes
        Of all devices of the fleet.
    rows : (client of the batch,)
        Which device of the fleet each client is.
    capacity
        Devices that the fleet may have; bounds of sums follow from it.
    """
    counts, fills = [], []
    for one in classes:
        below, weight = one.below[rows], one.above_weight[rows]
        hot, fill = [], []
        for level in range(len(one.levels)):
            share = np.where(below == level, _CLASS_STEPS - weight, 0)
            share = share + np.where(below + 1 == level, weight, 0)
            held = np.flatnonzero(share)
            part = _subset(batch, held)
            hot.append(part.column_sums("bin", share[held]))
            fill.append(part.column_sums("fill", share[held]))
        bound = capacity * _CLASS_STEPS
        counts.append(concatenate(hot).claim(bound))
        fills.append(concatenate(fill).claim(bound * FILL_STEPS))
    return Tally(tuple(counts), tuple(fills))


def _subset(batch: BulkBatch, rows: npt.NDArray[np.int64]) -> BulkBatch:
    return replace(
        batch,
        names=tuple(batch.names[row] for row in rows),
        data=np.ascontiguousarray(batch.data[rows]),
        is_counted=batch.is_counted[rows],
        is_replaced=batch.is_replaced[rows],
    )


# -- log-moments -----------------------------------------------------------------------------------


def log_moments(levels: Floats, capacities: Floats, points: Floats) -> tuple[Floats, ...]:
    """Return a device's log-moment and its derivatives: three times (point, class, bin).

    ``K(s) = log(p + (1 - p) exp(s c))`` for capacity ``c`` that is lost with probability ``p``.
    """
    p = levels[None, :, None]
    exponent = points[:, None, None] * capacities[None, None, :]
    with np.errstate(divide="ignore"):
        there = np.log1p(-p) + exponent
        value = np.logaddexp(np.log(p) + 0 * exponent, there)
    share = np.exp(there - value)
    return value, share * capacities, share * (1 - share) * capacities**2


def _applied(tables: Floats, counts: Shares, fills: Shares, *, up: bool = False) -> Shares:
    """Apply functions of capacity (function, class, bin), linear within bins, to a tally."""
    scaled = tables * _SCALE
    whole = (np.ceil(scaled) if up else np.rint(scaled)).astype(np.int64)
    rise = np.zeros_like(whole)
    rise[:, :, :-1] = whole[:, :, 1:] - whole[:, :, :-1]
    shape = (len(whole), -1)
    steady = public_matrix(whole.reshape(shape), counts)
    return steady * FILL_STEPS + public_matrix(rise.reshape(shape), fills)


def _opened(mpc: Mpc, parts: Sequence[Shares], height: int) -> Steps[Floats]:
    """Open functions of every scenario: (scenario, function)."""
    numbers = yield from mpc.open(concatenate(parts))
    units = float(_SCALE) * FILL_STEPS * _CLASS_STEPS
    return np.array([number / units for number in numbers]).reshape(len(parts), height)


@dataclass(frozen=True, slots=True, eq=False)
class Capacity:
    """What the committee opened and what follows from it, in kW.

    Attributes
    ----------
    mean_kw, capacity_kw, certified_kw, cvar_kw, installed_kw
        Expected power, power that is there with the confidence, the same proved, mean of the
        worst cases, sum of all capacities.
    moments
        Mean and variance by scenario, in units of the largest capacity.
    tail
        Further quantiles, in the same unit.
    """

    mean_kw: float
    capacity_kw: float
    certified_kw: float
    cvar_kw: float
    installed_kw: float
    moments: Moments
    tail: Tail
    unit_kw: float


def dispatchable(
    mpc: Mpc,
    sums: Tally,
    bins: Bins,
    history: History,
    classes: Sequence[Classes],
    confidence: float,
    levels: Sequence[float] = (),
) -> Steps[Capacity]:
    """Open the fleet's log-moments at public points and return its capacity.

    Opened are, for each scenario, the sum of capacities, mean and variance; then, at points that
    follow from those, log-moments with two derivatives and the values for the certified bound.
    """
    places, miss = bins.edges_kw / bins.top_kw, 1.0 - confidence
    zero = np.zeros(1)
    first = []
    for counts, fills, one in zip(sums.counts, sums.fills, classes, strict=True):
        _, mean, variance = log_moments(one.levels, places, zero)
        all_of_it = np.broadcast_to(places, mean.shape)
        first.append(_applied(np.concatenate([all_of_it, mean, variance]), counts, fills))
    opened = yield from _opened(mpc, first, 3)
    moments = Moments(opened[:, 1], np.maximum(opened[:, 2], 0.0))
    points = points_of(moments)
    tried = bound_points_of(moments, history.weights, miss)
    parts, gaps = [], []
    for j, one in enumerate(classes):
        tables = log_moments(one.levels, places, points[j])
        usual = _applied(np.concatenate(tables), sums.counts[j], sums.fills[j])
        values, _, _ = log_moments(one.levels, places, -tried)
        upper = _applied(values, sums.counts[j], sums.fills[j], up=True)
        parts.append(concatenate([usual, upper]))
        gaps.append(_mixing_gaps(one, values))
    width = points.shape[1]
    opened_more = yield from _opened(mpc, parts, 3 * width + len(tried))
    logs = LogMoments(points, *(opened_more[:, k * width : (k + 1) * width] for k in range(3)))
    floor = certified(tried, opened_more[:, 3 * width :] + np.stack(gaps), history.weights, miss)
    tail = tail_of(
        logs,
        history.weights,
        miss,
        installed=float(opened[0, 0]),
        floor=floor,
        step=bins.step_kw / bins.top_kw,
        levels=levels,
    )
    unit = bins.top_kw
    mean_kw = float(history.weights @ moments.mean) * unit
    return Capacity(
        mean_kw,
        tail.quantile * unit,
        tail.certified * unit,
        tail.shortfall_mean * unit,
        float(opened[0, 0]) * unit,
        moments,
        tail,
        unit,
    )


def counted(
    mpc: Mpc,
    sums: Tally,
    bins: Bins,
    history: History,
    classes: Sequence[Classes],
    confidence: float,
    levels: Sequence[float] = (),
) -> Steps[Capacity]:
    """Open how many devices of a small fleet are of which size; return its exact capacity.

    For fleets of at most :data:`EXACT_MAX` devices whose capacities are the edges of bins. There
    a saddlepoint is rough, and log-moments would tell as much as these counts do.
    """
    numbers = yield from mpc.open(concatenate(sums.counts))
    width, start, tables = len(bins.edges_kw), 0, []
    for one in classes:
        size = len(one.levels) * width
        found = np.array(numbers[start : start + size], np.float64) / _CLASS_STEPS
        tables.append(np.rint(found).reshape(-1, width))
        start += size
    places = bins.edges_kw / bins.top_kw
    held = [one.levels for one in classes]
    pairs = list(zip(held, tables, strict=True))
    mean = np.array([float((1 - p) @ table @ places) for p, table in pairs])
    variance = np.array([float((p * (1 - p)) @ table @ places**2) for p, table in pairs])
    miss = 1.0 - confidence
    tail = exact_tail(places, held, tables, history.weights, miss, levels)
    unit = bins.top_kw
    return Capacity(
        float(history.weights @ mean) * unit,
        tail.quantile * unit,
        tail.certified * unit,
        tail.shortfall_mean * unit,
        float(tables[0].sum(axis=0) @ places) * unit,
        Moments(mean, variance),
        tail,
        unit,
    )


def _mixing_gaps(one: Classes, values: Floats) -> Floats:
    """Return by how much mixing two classes may understate log-moments: (point,).

    A log-moment is concave in the failure probability, so a mixture lies below it; by how much at
    most is the same for all capacities of a bin and added for every device.
    """
    mixed = np.flatnonzero((one.above_weight > 0) & (one.above_weight < _CLASS_STEPS))
    if not mixed.size:
        return np.zeros(values.shape[0])
    low, high = values[:, :-1], values[:, 1:]
    spread = np.diff(one.levels)[None, :, None]
    slope_low = np.expm1(high - low) / spread  # Derivative at the lower class, of log(A + B p).
    chord = (high - low) / spread
    with np.errstate(divide="ignore", invalid="ignore"):
        at = 1.0 / chord - 1.0 / slope_low
        most = np.log1p(slope_low * at) - chord * at
    worst = np.nan_to_num(np.maximum(most, 0.0)).max(axis=2)
    counts = np.bincount(one.below[mixed], minlength=len(one.levels) - 1)[: worst.shape[1]]
    return np.asarray(worst @ counts) * (1 + 1e-6)
