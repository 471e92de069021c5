"""How much the weighting of sources matters, and who could sway a result [sensitivity 1].

A history of rounds is played again in the clear, with the weights that :mod:`veilgrid.risk.trust`
would have given: from past rounds only. From the replay come the influence of each source, and
what the choice of trim, tiers, decay and cap does to the figures.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import numpy.typing as npt

from veilgrid.errors import Finding, InputError, SetupError, invariant
from veilgrid.risk.aggregate import TRIM
from veilgrid.risk.history import reliabilities_of, standings_after
from veilgrid.risk.trust import (
    TIERS,
    Conduct,
    Standing,
    TrustSettings,
    influence_cap,
    weights_for,
)

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

BINS: Final = 64
SAMPLES: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighting:
    """The four choices behind the weights.

    Attributes
    ----------
    trim : 0..0.45
        Weight cut off at each end.
    tiers : 1..4
        How many times a transmission operator's reading weighs that of a household; the tiers
        between keep their places.
    decay : 0.8..0.995
        What evidence is still worth one round later.
    cap : 0.01..0.5
        Largest share of one source; 3 over the number of sources if that is more.
    """

    trim: float = TRIM
    tiers: float = 4.0
    decay: float = 0.97
    cap: float = 0.02

    def settings(self) -> TrustSettings:
        """Return the settings of :mod:`veilgrid.risk.trust` for it."""
        part = (self.tiers - 1) / (max(TIERS.values()) - 1)
        tiers = {name: 1 + (weight - 1) * part for name, weight in TIERS.items()}
        return TrustSettings(tiers=tiers, memory=self.decay, cap=self.cap)


RANGES: Final = {
    "trim": (0.0, 0.45),
    "tiers": (1.0, 4.0),
    "decay": (0.8, 0.995),
    "cap": (0.01, 0.5),
}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Rounds:
    """Past rounds, the oldest first.

    Attributes
    ----------
    names, tiers : (source,)
    lower, upper : (source,)
        Bounds, in the unit of the readings.
    baseline : (source,), > 0, or None
        Where all sources have one, ratios to it are averaged.
    values : (round, source)
        Readings; 0 where there is none.
    is_present : (round, source)
    labels : (round,)
        How the file calls the rounds.
    """

    names: tuple[str, ...]
    tiers: tuple[str, ...]
    lower: Floats
    upper: Floats
    baseline: Floats | None
    values: Floats
    is_present: Mask
    labels: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check shapes."""
        shape = (len(self.labels), len(self.names))
        is_fit = self.values.shape == self.is_present.shape == shape
        invariant(is_fit and len(self.tiers) == shape[1], "one reading a round and source")
        invariant(bool(np.isfinite(self.values).all()), "readings are finite")

    @property
    def is_valid(self) -> Mask:
        """Return which readings lie within their bounds, (round, source)."""
        within = (self.values >= self.lower) & (self.values <= self.upper)
        valid: Mask = within & self.is_present
        return valid

    @property
    def span(self) -> float:
        """Return the distance of the outermost bounds."""
        return float(self.upper.max() - self.lower.min())


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """What came of playing rounds again.

    Attributes
    ----------
    figures : (round,)
    weights : (round, source)
        Shares of the whole weight; 0 for who did not count.
    is_answered : (round,)
        Whether at least two sources counted.
    """

    figures: Floats
    weights: Floats
    is_answered: Mask


def trimmed_mean(values: Floats, weights: Floats, trim: float) -> float:
    """Return the mean of the weight that is left when ``trim`` is cut off at each end.

    The same cuts as on shares: whole steps of weight, cutting through a source where need be.
    """
    mass = float(weights.sum())
    invariant(mass > 0 and values.size > 0, "somebody counts")
    cut = min(np.floor(trim * mass), np.floor((mass - 1) / 2)) if mass > 1 else 0.0
    order = np.argsort(values, kind="stable")
    ends = np.cumsum(weights[order])
    kept = np.minimum(ends, mass - cut) - np.maximum(ends - weights[order], cut)
    kept = np.maximum(kept, 0.0)
    return float(np.dot(kept, values[order]) / kept.sum())


def conducts(values: Floats, weights: Floats, floor: float) -> npt.NDArray[np.int64]:
    """Return 0, 1 or 2 for each reading: near the median, off, far off, as on shares.

    Off is beyond 2, far off beyond 4 robust standard deviations, which are at least ``floor``.
    """
    order = np.argsort(values, kind="stable")
    ends = np.cumsum(weights[order])
    at = np.searchsorted(ends, ends[-1] * np.array([0.25, 0.5, 0.75]), side="left")
    low, middle, high = values[order][np.minimum(at, values.size - 1)]
    deviation = max((high - low) * 0.741, floor)
    away = np.abs(values - middle) / max(deviation, 1e-300)
    found: npt.NDArray[np.int64] = (away > 2).astype(np.int64) + (away > 4)
    return found


def replay(rounds: Rounds, weighting: Weighting, count_min: int = 2) -> Replay:
    """Play all rounds again; the weights of each come from those before it."""
    settings = weighting.settings()
    standings: dict[str, Standing] = {}
    is_valid, sizes = rounds.is_valid, rounds.baseline
    readings = rounds.values if sizes is None else rounds.values / sizes
    span = _span_of_readings(rounds)
    figures = np.zeros(len(rounds.labels))
    shares = np.zeros(rounds.values.shape)
    is_answered = is_valid.sum(axis=1) >= count_min
    known: dict[tuple[Standing, Conduct], Standing] = {}
    for k in range(len(rounds.labels)):
        reliabilities = reliabilities_of(
            rounds.names, standings, settings, [None] * len(rounds.names)
        )
        listed = None if sizes is None else sizes.tolist()
        weights = weights_for(rounds.tiers, reliabilities, settings, listed).astype(np.float64)
        weights = np.where(is_valid[k], weights, 0.0)
        valid = np.flatnonzero(is_valid[k])
        if is_answered[k]:
            shares[k] = weights / weights.sum()
            figures[k] = trimmed_mean(readings[k, valid], weights[valid], weighting.trim)
        levels = np.full(len(rounds.names), int(Conduct.INVALID))
        levels[~rounds.is_present[k]] = int(Conduct.MISSING)
        if valid.size:
            levels[valid] = conducts(readings[k, valid], weights[valid], span / BINS)
        standings = _after(rounds.names, standings, levels, settings, known)
    if sizes is not None:
        figures = figures * float(sizes.mean())
    return Replay(figures, shares, np.asarray(is_answered, np.bool_))


def _span_of_readings(rounds: Rounds) -> float:
    if rounds.baseline is None:
        return rounds.span
    return float((rounds.upper / rounds.baseline).max() - (rounds.lower / rounds.baseline).min())


def _after(
    names: Sequence[str],
    standings: dict[str, Standing],
    levels: npt.NDArray[np.int64],
    settings: TrustSettings,
    known: dict[tuple[Standing, Conduct], Standing],
) -> dict[str, Standing]:
    """Return everybody's standing after a round; equal pasts are worked out once."""
    after = {}
    for name, level in zip(names, levels.tolist(), strict=True):
        key = (standings.get(name, Standing()), Conduct(level))
        if key not in known:
            known[key] = standings_after({name: key[0]}, {name: key[1]}, settings)[name]
        after[name] = known[key]
    return after


# -- influence -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Influence:
    """What one source can do, as parts of the range of all readings.

    Attributes
    ----------
    source
    left_out
        Largest move of a figure when its reading is left out.
    worst
        Largest move when it reports whatever its bounds allow.
    share
        Its largest share of the weight in any round.
    """

    source: str
    left_out: float
    worst: float
    share: float


def influences(
    rounds: Rounds, played: Replay, weighting: Weighting, last: int = 50
) -> list[Influence]:
    """Return the influence of every source over the last rounds, the largest first.

    Weights stay as they were: they were fixed before the round.
    """
    count = len(rounds.names)
    left_out, worst = np.zeros(count), np.zeros(count)
    sizes = np.ones(count) if rounds.baseline is None else rounds.baseline
    lower, upper = rounds.lower / sizes, rounds.upper / sizes
    span = max(_span_of_readings(rounds), 1e-300)
    answered = np.flatnonzero(played.is_answered)[-last:]
    for k in answered.tolist():
        valid = np.flatnonzero(rounds.is_valid[k])
        values, weights = (rounds.values[k] / sizes)[valid], _whole(played.weights[k, valid])
        base = trimmed_mean(values, weights, weighting.trim)
        for place, source in enumerate(valid.tolist()):
            moved = values.copy()
            for bound in (lower[source], upper[source]):
                moved[place] = bound
                found = trimmed_mean(moved, weights, weighting.trim)
                worst[source] = max(worst[source], abs(found - base) / span)
            rest = np.arange(valid.size) != place
            without = trimmed_mean(values[rest], weights[rest], weighting.trim)
            left_out[source] = max(left_out[source], abs(without - base) / span)
    shares = played.weights[answered].max(axis=0, initial=0.0)
    listed = [
        Influence(name, float(left_out[k]), float(worst[k]), float(shares[k]))
        for k, name in enumerate(rounds.names)
    ]
    return sorted(listed, key=lambda one: -one.worst)


def _whole(shares: Floats) -> Floats:
    """Return shares as steps of weight again; cuts are made in whole steps."""
    whole: Floats = np.maximum(np.rint(shares / shares.max() * 4096), 1.0)
    return whole


def warnings_of(
    rounds: Rounds,
    played: Replay,
    found: Sequence[Influence],
    weighting: Weighting,
    *,
    count_min: int,
    rating: float | None = None,
) -> list[str]:
    """Return where one source could sway, stop or decide a result."""
    told = []
    limit = influence_cap(len(rounds.names), weighting.settings())
    swaying = [one for one in found if one.worst > limit]
    if swaying:
        first = swaying[0]
        more = f" and {len(swaying) - 1} more" if len(swaying) > 1 else ""
        told.append(
            f"{first.source}{more} could move a figure by {first.worst:.1%} of the range, more "
            f"than the cap of {limit:.1%}; trim more, cap lower, or ask more sources"
        )
    counts = rounds.is_valid.sum(axis=1)
    close = [rounds.labels[k] for k in np.flatnonzero(counts == count_min)]
    if close:
        told.append(
            f"round {close[-1]} had just {count_min} valid readings; any one source missing would "
            "have stopped it"
        )
    stopped = [rounds.labels[k] for k in np.flatnonzero(counts < count_min)]
    if stopped:
        told.append(f"round {stopped[-1]} had fewer than {count_min} valid readings: no figure")
    if rating is not None and found:
        reach = found[0].worst * rounds.span
        near = np.abs(played.figures - rating) <= reach
        decided = [rounds.labels[k] for k in np.flatnonzero(near & played.is_answered)]
        if decided:
            told.append(
                f"in round {decided[-1]} one source could decide on which side of {rating:g} the "
                "figure lies"
            )
    return told


# -- Sobol indices -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Index:
    """How much of the variation of an output one parameter explains.

    Attributes
    ----------
    parameter
    first : about 0..1
        Alone.
    total : about 0..1
        Together with others.
    first_confidence, total_confidence
        Half widths of 95 % intervals.
    """

    parameter: str
    first: float
    total: float
    first_confidence: float
    total_confidence: float


def problem() -> dict[str, object]:
    """Return the parameters and their ranges as SALib names them."""
    bounds = [list(RANGES[name]) for name in RANGES]
    return {"num_vars": len(RANGES), "names": list(RANGES), "bounds": bounds}


def weightings(samples: int, seed: int) -> list[Weighting]:
    """Return the choices to be tried, in the order that :func:`indices` needs.

    Parameters
    ----------
    samples : a power of two, 8..4096
        The number of choices is six times that.
    seed
        Of the scrambled sequence.

    Raises
    ------
    SetupError
        SALib is missing.
    """
    if samples not in {2**k for k in range(3, 13)}:
        advice = "use 64 for a look and 512 for narrow intervals"
        found = f"found {samples}, expected a power of two from 8 to 4096"
        raise InputError([Finding("--samples", found, advice)])
    try:
        from SALib.sample import sobol
    except ImportError:
        raise SetupError(
            "Sobol indices need SALib; install it with: pip install 'veilgrid[privacy]'"
        ) from None
    drawn = sobol.sample(problem(), samples, calc_second_order=False, seed=seed + 1)
    names = [one.name for one in fields(Weighting)]
    invariant(names == list(RANGES), "columns are the fields of a weighting")
    return [Weighting(**dict(zip(names, row, strict=True))) for row in drawn.tolist()]


def indices(outputs: Floats, seed: int) -> list[Index]:
    """Return the Sobol indices of outputs of :func:`weightings` [Saltelli 2010].

    All are 0 where the output does not change at all.
    """
    if float(np.ptp(outputs)) <= 1e-12 * max(float(np.abs(outputs).max()), 1e-300):
        return [Index(name, 0.0, 0.0, 0.0, 0.0) for name in RANGES]
    from SALib.analyze import sobol

    # SALib takes a seed of 0 for none.
    found = sobol.analyze(problem(), outputs, calc_second_order=False, seed=seed + 1)
    return [
        Index(name, *(float(found[key][k]) for key in ("S1", "ST", "S1_conf", "ST_conf")))
        for k, name in enumerate(RANGES)
    ]
