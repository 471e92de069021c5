"""One risk-sensitive figure of many sources: asked, sent, computed, answered [risk 4]."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from veilgrid.errors import Finding, InputError, InvariantError
from veilgrid.mpc import Mpc, Shares, Steps, concatenate
from veilgrid.mpc.bulk import BulkBatch, Mask
from veilgrid.mpc.layout import Integers, Layout
from veilgrid.risk.confidence import LEVEL, Side, check_confidence, count_of, deviation_of, estimate
from veilgrid.risk.robust import (
    Figure,
    Histogram,
    conduct,
    edges_for,
    encode_values,
    exact_between,
    exact_quantiles,
    histogram_layout,
    histogram_of,
    mean_between,
    number_layout,
    quantiles_of,
)
from veilgrid.risk.trust import TrustSettings, weights_for

FUNCTIONS: Final = (
    "sum",
    "mean",
    "weighted-mean",
    "trimmed-mean",
    "median",
    "quantile",
    "cvar",
    "variance",
)
EXACT_MAX: Final = 256
"""Up to so many sources quantiles and tails are exact; beyond, they come from a histogram."""

TRIM: Final = 0.3
"""Weight cut off at each end; so many may collude before they are in what is averaged."""

RATIO_TRIM: Final = 0.4
"""The same for ratios to baselines: weights follow sizes there, so three tenths of the devices may
hold more than three tenths of the weight."""

_LINEAR: Final = ("sum", "mean", "weighted-mean", "variance")
_LEVELS: Final = ("median", "quantile")
_RATIOS: Final = ("sum", "mean", "trimmed-mean")
_FINE: Final = 1000
_HISTOGRAM_BITS: Final = 24
_RATIO_STEPS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Source:
    """What is public about a source before it sends anything.

    Attributes
    ----------
    lower, upper
        Bounds of its reading, in the unit of the readings.
    baseline : > 0 or None
        What it is expected to report.
    reliability : 0..1 or None
        From outside; None if nothing is known.
    usual : > 0 or None
        Median of what it reported at such times; None: its baseline. Readings are divided by it,
        and their common ratio multiplies the baselines [risk 4.5].
    """

    name: str
    tier: str
    lower: float
    upper: float
    baseline: float | None = None
    reliability: float | None = None
    usual: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is computed.

    Attributes
    ----------
    function
        One of :data:`FUNCTIONS`.
    level : 0..1
        Of the quantile (default one half) and of the CVaR (default 0.95).
    trim : 0 to below 0.5
        Weight cut off at each end. Default 0.3, of ratios to baselines 0.4.
    side
        Which side hurts; the tail of the CVaR and the side of the risk-adjusted figure.
    confidence : 0.5..1
        Of the interval and of the risk-adjusted figure.
    count_min
        Valid inputs needed before anything opens.
    is_watched
        Whether each source's conduct is opened (near, off, far off) for the weights of the next
        round.
    tolerance : >= 0
        Deviation, in the unit of the readings, that is never held against a source.
    method
        ``exact`` or ``histogram``; None: by the number of sources.
    """

    function: str
    level: float | None = None
    trim: float | None = None
    side: Side = "upper"
    confidence: float = LEVEL
    count_min: int = 2
    is_watched: bool = False
    tolerance: float = 0.0
    method: Literal["exact", "histogram"] | None = None

    def __post_init__(self) -> None:
        """Refuse what is not offered."""
        findings = []
        if self.function not in FUNCTIONS:
            offered = ", ".join(FUNCTIONS)
            problem = f"{self.function} is not offered; offered are {offered}"
            findings.append(Finding("--function", problem))
        if self.level is not None and not 0 <= self.level <= 1:
            findings.append(Finding("--level", f"found {self.level}, expected 0..1"))
        if self.function == "cvar" and self.level is not None and not 0 <= self.level < 1:
            problem = f"found {self.level}, expected 0 to below 1 for cvar"
            findings.append(Finding("--level", problem))
        if self.trim is not None and not 0 <= self.trim < 0.5:
            findings.append(Finding("--trim", f"found {self.trim}, expected 0 to below 0.5"))
        if self.count_min < 2:
            problem = f"found {self.count_min}; with fewer than 2 inputs a figure is a reading"
            findings.append(Finding("--minimum", problem, "use 2 or more"))
        if findings:
            raise InputError(findings)
        check_confidence(self.confidence)

    @property
    def cvar_level(self) -> float:
        """Weight outside the tail whose mean the CVaR is."""
        return 0.95 if self.level is None else self.level


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """All that is public about a round and fixed before it.

    Attributes
    ----------
    scale
        Steps a unit; a unit of ratio where baselines are used.
    edges : (bin + 1,) or None
        Of the histogram, in steps.
    weights : (source,)
        Whole numbers.
    sizes : (source,) or None
        Baselines where ratios are averaged, else None.
    usual : (source,) or None
        What readings are divided by there.
    method
        ``linear``, ``exact`` or ``histogram``.
    """

    question: Question
    names: tuple[str, ...]
    scale: float
    lower: Integers
    upper: Integers
    edges: Integers | None
    layout: Layout
    weights: Integers
    sizes: npt.NDArray[np.float64] | None
    usual: npt.NDArray[np.float64] | None
    method: str

    def encode(self, values: Sequence[float]) -> Integers:
        """Return inputs for readings: (source, element); out of bounds gives an invalid one."""
        numbers = np.asarray(values, np.float64)
        if self.usual is not None:
            numbers = numbers / self.usual
        steps = np.clip(np.nan_to_num(numbers * self.scale, nan=2.0**52), -(2.0**52), 2.0**52)
        return encode_values(self.layout, np.rint(steps).astype(np.int64), self.edges)

    @property
    def bins(self) -> Integers:
        """Edges of the histogram, which the method of the plan uses."""
        if self.edges is None:
            raise InvariantError("violated: a histogram has bins")
        return self.edges

    @property
    def trim(self) -> float:
        """Weight cut off at each end."""
        usual = TRIM if self.sizes is None else RATIO_TRIM
        return usual if self.question.trim is None else self.question.trim


def plan_of(
    question: Question,
    sources: Sequence[Source],
    settings: TrustSettings,
    reliabilities: Sequence[float] | None = None,
) -> Plan:
    """Return the plan of a round.

    Parameters
    ----------
    question
        What is asked.
    sources
        In order; baselines count if all have one.
    settings
        Of the weights.
    reliabilities : (source,) or None
        From past rounds; None: those that the sources bring, 1 where they bring none.

    Raises
    ------
    InputError
        Bounds that do not fit, or too few sources.
    """
    if len(sources) < question.count_min:
        problem = f"{len(sources)} usable, at least {question.count_min} are needed"
        raise InputError([Finding("readings", problem)])
    has_baselines = all(one.baseline is not None for one in sources)
    is_ratio = has_baselines and question.function in _RATIOS
    sizes, usual = None, None
    if is_ratio:
        sizes = np.array([one.baseline for one in sources], np.float64)
        usual = np.array([one.usual or one.baseline for one in sources], np.float64)
    method = _method(question, len(sources), is_ratio)
    lower = np.array([one.lower for one in sources], np.float64)
    upper = np.array([one.upper for one in sources], np.float64)
    if usual is not None:
        lower, upper = lower / usual, upper / usual
    scale = _scale(lower, upper, _bits(method, len(sources)))
    low, high = np.rint(lower * scale).astype(np.int64), np.rint(upper * scale).astype(np.int64)
    needs_bins = method != "linear" or question.is_watched
    edges = edges_for(low, high) if needs_bins else None
    layout = number_layout(low, high) if edges is None else histogram_layout(low, high, edges)
    is_weighed = question.function in ("weighted-mean", "trimmed-mean") or is_ratio
    has_record = reliabilities is not None or any(one.reliability is not None for one in sources)
    is_weighed |= has_record and question.function not in ("sum", "mean", "variance")
    weights = np.ones(len(sources), np.int64)
    if is_weighed:
        known = reliabilities or [
            1.0 if one.reliability is None else one.reliability for one in sources
        ]
        listed = None if sizes is None else sizes.tolist()
        weights = weights_for([one.tier for one in sources], known, settings, listed)
        if (weights == weights[0]).all():
            weights = np.ones(len(sources), np.int64)
    names = tuple(one.name for one in sources)
    return Plan(question, names, scale, low, high, edges, layout, weights, sizes, usual, method)


def _method(question: Question, count: int, is_ratio: bool) -> str:
    if question.function in _LINEAR and not is_ratio:
        return "linear"
    return question.method or ("exact" if count <= EXACT_MAX else "histogram")


def _bits(method: str, count: int) -> int:
    """Return how many bits a value may take so that no sum of weighted squares is too large."""
    if method == "histogram":
        return _HISTOGRAM_BITS
    return min(40, 49 - max(count - 1, 1).bit_length())


def _scale(lower: npt.NDArray[np.float64], upper: npt.NDArray[np.float64], bits: int) -> float:
    """Return the finest power of ten, at most a million steps a unit, that fits the bits.

    Only a histogram, whose bins are wider anyway, may have steps of more than a unit.
    """
    largest = float(max(np.abs(lower).max(), np.abs(upper).max()))
    for power in range(6, -13 if bits == _HISTOGRAM_BITS else -1, -1):
        if largest * 10.0**power < 2 ** (bits - 1):
            return float(10**power) if power >= 0 else 10.0**power
    problem = f"bounds of up to {largest:g} do not fit {bits} bits"
    raise InputError([Finding("readings", problem, "use larger units")])


# -- what the committee does ---------------------------------------------------------------------


def answer_steps(mpc: Mpc, batch: BulkBatch, plan: Plan) -> Steps[dict[str, Any]]:
    """Compute and open the figure, and conduct if it is watched; ``Plain`` gives the oracle."""
    counted = batch.is_counted | batch.is_replaced
    weights = np.where(counted, plan.weights, 0)
    figure = yield from _figure(mpc, batch, plan, weights)
    opened = [figure.parts]
    if plan.question.is_watched:
        opened.append((yield from _conduct(mpc, batch, plan, weights)))
    numbers = yield from mpc.open(concatenate(opened))
    found = opened_from(figure, numbers, np.flatnonzero(batch.is_counted).tolist(), batch.flags)
    return found | {"replaced": np.flatnonzero(batch.is_replaced).tolist()}


def opened_from(
    figure: Figure, numbers: Sequence[int], counted: Sequence[int], flags: Mapping[str, str]
) -> dict[str, Any]:
    """Return what opened, in the form in which :func:`answer_of` reads it."""
    size = len(figure.parts)
    return {
        "numbers": [str(value) for value in numbers[:size]],
        "divisor": str(figure.divisor),
        "spread_divisor": str(figure.spread_divisor),
        "centre": figure.centre,
        "conduct": numbers[size:],
        "counted": counted,
        "replaced": [],
        "flags": flags,
    }


def _conduct(mpc: Mpc, batch: BulkBatch, plan: Plan, weights: Integers) -> Steps[Shares]:
    histogram = histogram_of(batch, plan.bins, weights)
    finest = int(np.diff(plan.bins).min())
    allowed = max(math.ceil(plan.question.tolerance * plan.scale), finest)
    return (yield from conduct(mpc, batch, histogram, allowed))


def _figure(mpc: Mpc, batch: BulkBatch, plan: Plan, weights: Integers) -> Steps[Figure]:
    if plan.method == "linear":
        return (yield from _linear(mpc, batch, plan, weights))
    if plan.method == "histogram":
        histogram = histogram_of(batch, plan.bins, weights)
        return (yield from figure_from(mpc, histogram, plan, weights))
    if plan.question.function in _LEVELS:
        return (yield from _quantiles(mpc, batch, plan, weights))
    times, low, high = _cuts(plan, weights)
    rows = np.flatnonzero(weights > 0)
    value = batch.number("value")[rows]
    listed = [int(weight) * times for weight in weights[rows]]
    return (yield from exact_between(mpc, value, int(plan.lower.min()), listed, low, high))


def figure_from(mpc: Mpc, histogram: Histogram, plan: Plan, weights: Integers) -> Steps[Figure]:
    """Return the figure of a histogram; ``weights`` of sources are zero where one is left out."""
    if plan.question.function in _LEVELS:
        levels = _levels(plan.question, count_of(weights.tolist()))
        return (yield from quantiles_of(mpc, histogram.times(_fineness(plan)), levels))
    times, low, high = _cuts(plan, weights)
    return (yield from mean_between(mpc, histogram.times(times), low, high))


def _fineness(plan: Plan) -> int:
    """Return by what to multiply weights, so that a tail may cut through one input."""
    return _FINE if plan.weights.max() == 1 else 1


def _cuts(plan: Plan, weights: Integers) -> tuple[int, int, int]:
    """Return by what weights are multiplied, and the masses between which a mean is taken."""
    mass = int(weights.sum())
    if plan.question.function != "cvar":
        cut = min(int(plan.trim * mass), (mass - 1) // 2)
        return 1, cut, mass - cut
    times = _fineness(plan)
    mass *= times
    cut = min(int(plan.question.cvar_level * mass), mass - 1)
    return (times, cut, mass) if plan.question.side == "upper" else (times, 0, mass - cut)


def _linear(mpc: Mpc, batch: BulkBatch, plan: Plan, weights: Integers) -> Steps[Figure]:
    value, mass = batch.number("value"), int(weights.sum())
    if plan.question.function == "sum":
        return Figure(value.sum(), 1, 1, 0)
    listed = [int(weight) for weight in weights]
    return (yield from exact_between(mpc, value, int(plan.lower.min()), listed, 0, mass))


def _levels(question: Question, count: float) -> list[float]:
    """Return the level asked for and those of its confidence interval by ranks."""
    from scipy import special

    level = 0.5 if question.function == "median" or question.level is None else question.level
    half = float(special.ndtri((1 + question.confidence) / 2))
    half *= math.sqrt(level * (1 - level) / max(count, 1))
    one = float(special.ndtri(question.confidence)) * math.sqrt(level * (1 - level) / max(count, 1))
    adjusted = level + one if question.side == "upper" else level - one
    return [min(max(at, 0.0), 1.0) for at in (level, level - half, level + half, adjusted)]


def _quantiles(mpc: Mpc, batch: BulkBatch, plan: Plan, weights: Integers) -> Steps[Figure]:
    levels = _levels(plan.question, count_of(weights.tolist()))
    rows = np.flatnonzero(weights > 0)
    value, lower = batch.number("value")[rows], int(plan.lower.min())
    listed = [int(weight) for weight in weights[rows]]
    mass = sum(listed)
    if max(listed) > 1:
        ranks = [min(max(math.ceil(level * mass - 1e-9), 1), mass) for level in levels]
        found = yield from exact_quantiles(mpc, value, lower, listed, ranks)
        return Figure(found * _RATIO_STEPS, _RATIO_STEPS, 1, 0)
    # Linear between two neighbours, as people know it from spreadsheets and NumPy.
    at = [level * (mass - 1) for level in levels]
    ranks = [min(math.floor(place) + 1 + k, mass) for place in at for k in (0, 1)]
    found = yield from exact_quantiles(mpc, value, lower, listed, ranks)
    parts = []
    for k, place in enumerate(at):
        share = round((place - math.floor(place)) * _RATIO_STEPS)
        parts.append(found[2 * k] * (_RATIO_STEPS - share) + found[2 * k + 1] * share)
    return Figure(concatenate(parts), _RATIO_STEPS, 1, 0)


# -- what it means -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """A figure to act on.

    Attributes
    ----------
    value
        What the function gives.
    interval
        At the confidence asked for; None where the figure is exact or no interval is defined.
    risk_adjusted
        The figure to act on: on the side that hurts, with the confidence asked for.
    reach : (lowest, highest)
        What the bounds of the sources allow.
    influence
        Largest part of the range by which one source moves the value.
    """

    value: float
    interval: tuple[float, float] | None
    risk_adjusted: float
    reach: tuple[float, float]
    influence: float


def answer_of(plan: Plan, result: Mapping[str, Any]) -> Answer:
    """Return the answer from what the committee opened."""
    question = plan.question
    counted: Mask = np.zeros(len(plan.names), bool)
    counted[[*result["counted"], *result["replaced"]]] = True
    weights = np.where(counted, plan.weights, 0)
    numbers = [int(text) for text in result["numbers"]]
    divisor, centre = int(result["divisor"]), int(result["centre"])
    values = [(number / divisor + centre) / plan.scale for number in numbers]
    reach = _reach(plan, counted)
    influence = float(weights.max() / weights.sum())
    if question.function in ("median", "quantile"):
        low, high = sorted(values[1:3])
        return Answer(values[0], (low, high), values[3], reach, influence)
    if plan.method == "linear" and question.function == "sum":
        return Answer(values[0], None, values[0], reach, influence)
    deviation = deviation_of(numbers[1], int(result["spread_divisor"])) / plan.scale
    count = count_of(weights.tolist())
    if question.function == "variance":
        size = int(counted.sum())
        variance = deviation**2 * size / max(size - 1, 1)
        return _variance(variance, size, question, reach, influence)
    if question.function == "cvar":
        influence = min(influence / (1 - question.cvar_level), 1.0)
    elif plan.method != "linear":
        influence = min(influence / (1 - 2 * plan.trim), 1.0)
    found = estimate(values[0], deviation, count, question.confidence, question.side)
    factor = 1.0
    if plan.sizes is not None:
        factor = float(plan.sizes.sum()) / (1 if question.function == "sum" else len(plan.names))
    interval = found.interval and (found.interval[0] * factor, found.interval[1] * factor)
    return Answer(found.value * factor, interval, found.risk_adjusted * factor, reach, influence)


def _variance(
    variance: float, size: int, question: Question, reach: tuple[float, float], influence: float
) -> Answer:
    """Return the variance with the interval that holds for normal readings."""
    from scipy import special

    freedom = max(size - 1, 1)
    tail = (1 - question.confidence) / 2
    low = variance * freedom / float(special.chdtri(freedom, tail))
    high = variance * freedom / float(special.chdtri(freedom, 1 - tail))
    one = 1 - question.confidence if question.side == "lower" else question.confidence
    adjusted = variance * freedom / float(special.chdtri(freedom, one))
    return Answer(variance, (low, high), adjusted, reach, influence)


def _reach(plan: Plan, counted: Mask) -> tuple[float, float]:
    """Return between what the bounds let the figure lie."""
    low, high = plan.lower[counted] / plan.scale, plan.upper[counted] / plan.scale
    if plan.question.function == "variance":
        return 0.0, float((high.max() - low.min()) ** 2)
    if plan.sizes is not None:
        part = 1.0 if plan.question.function == "sum" else 1 / len(plan.names)
        total = float(plan.sizes.sum()) * part
        return float(low.min()) * total, float(high.max()) * total
    if plan.question.function == "sum":
        return float(low.sum()), float(high.sum())
    return float(low.min()), float(high.max())
