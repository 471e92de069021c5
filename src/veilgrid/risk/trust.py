"""Weights of sources, from their tier and from what they did in past rounds [risk 3]."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from veilgrid.errors import Finding, InputError, invariant

Floats = npt.NDArray[np.float64]

TIERS: Final[Mapping[str, float]] = {"tso": 4.0, "dso": 3.0, "aggregator": 2.0, "household": 1.0}
RATIO_MAX: Final = 4.0
WEIGHT_STEPS: Final = 4096


class Conduct(IntEnum):
    """What a source did in a round; the first three are opened by the committee."""

    NEAR = 0
    OFF = 1
    FAR = 2
    INVALID = 3
    MISSING = 4


_RESIDUAL: Final = {Conduct.NEAR: 0.6, Conduct.OFF: 2.5, Conduct.FAR: 6.0, Conduct.INVALID: 6.0}
"""Residual in robust standard deviations that a conduct stands for."""

_BAD: Final = {Conduct.FAR: 1.0, Conduct.INVALID: 1.0, Conduct.MISSING: 1.0 / 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustSettings:
    """How weights are made.

    Attributes
    ----------
    tiers
        Weight of each tier; the largest at most 4 times the smallest.
    memory : 0..1
        What a round's evidence is still worth one round later.
    severity : > 0
        How many good rounds one bad round outweighs.
    smoothing : 0..1
        Share of the newest residual in the running variance.
    floor : > 0
        Least reliability: nobody is silenced for good.
    cap : 0..1
        Largest share of one source; 3 over the number of sources if that is more.
    """

    tiers: Mapping[str, float] = field(default_factory=lambda: dict(TIERS))
    memory: float = 0.97
    severity: float = 3.0
    smoothing: float = 0.1
    floor: float = 0.02
    cap: float = 0.02

    def __post_init__(self) -> None:
        """Refuse settings under which trust would not be bounded."""
        findings = []
        weights = list(self.tiers.values())
        if not weights or min(weights) <= 0 or max(weights) > RATIO_MAX * min(weights):
            problem = f"the largest tier may weigh at most {RATIO_MAX:g} times the smallest"
            findings.append(Finding("tiers", problem))
        findings += [
            Finding(name, f"found {getattr(self, name)}, expected 0..1")
            for name in ("memory", "smoothing", "floor", "cap")
            if not 0 < getattr(self, name) <= 1
        ]
        if not self.severity > 0:
            findings.append(Finding("severity", f"found {self.severity}, expected > 0"))
        if findings:
            raise InputError(findings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is remembered of a source; it changes only after a round is over.

    Attributes
    ----------
    good, bad
        Evidence, fading: parameters of a Beta distribution [Josang and Ismail 2002].
    variance
        Running mean of squared residuals, in robust standard deviations squared.
    brier, crps
        Running scores of what was expected of it: lower is better [Gneiting and Raftery 2007].
    rounds
        How many it was asked in.
    """

    good: float = 2.0
    bad: float = 0.2
    variance: float = 0.4
    brier: float = 0.0
    crps: float = 0.0
    rounds: int = 0

    @property
    def expectation(self) -> float:
        """Probability, by its past, that it behaves in the next round."""
        return self.good / (self.good + self.bad)

    def reliability(self, floor: float) -> float:
        """Return ``floor``..1: expectation, less where residuals have been large."""
        precision = min(1.0, 1.0 / max(self.variance, 1e-9))
        return max(floor, self.expectation * precision)

    def after(self, conduct: Conduct, settings: TrustSettings) -> "Standing":
        """Return the standing once a round is over."""
        bad = _BAD.get(conduct, 0.0)
        share, memory = settings.smoothing, settings.memory
        residual = _RESIDUAL.get(conduct)
        variance, crps = self.variance, self.crps
        if residual is not None:
            variance = (1 - share) * variance + share * residual**2
            score = crps_normal(residual, float(np.sqrt(max(self.variance, 1e-9))))
            crps = (1 - share) * crps + share * score if self.rounds else score
        behaved = float(bad == 0)
        miss = (self.expectation - behaved) ** 2
        return replace(
            self,
            good=memory * self.good + behaved,
            bad=memory * self.bad + settings.severity * bad,
            variance=variance,
            brier=(1 - share) * self.brier + share * miss if self.rounds else miss,
            crps=crps,
            rounds=self.rounds + 1,
        )


def crps_normal(residual: float, deviation: float) -> float:
    """Return the continuous ranked probability score of N(0, deviation) at a residual.

    It is in the unit of the residual; 0 is perfect [Gneiting and Raftery 2007].
    """
    from scipy import special

    z = residual / deviation
    density = np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
    score = z * (2 * special.ndtr(z) - 1) + 2 * density - 1 / np.sqrt(np.pi)
    return float(deviation * score)


def influence_cap(count: int, settings: TrustSettings) -> float:
    """Return the largest share of the whole weight that one of ``count`` sources may have."""
    return min(max(settings.cap, 3.0 / max(count, 1)), 1.0)


def capped(weights: Floats, cap: float) -> Floats:
    """Return weights of which none is more than ``cap`` of their sum; the order is kept.

    What is cut off goes to nobody: the others keep their weights, so the sum shrinks and the
    limit with it until it holds.
    """
    invariant(bool((weights >= 0).all()) and weights.sum() > 0, "weights are at least 0, some more")
    if cap * np.count_nonzero(weights) <= 1:
        return np.where(weights > 0, 1.0, 0.0)
    ordered = np.sort(weights)[::-1]
    rest = ordered.sum() - np.cumsum(ordered)
    for cut in range(len(ordered)):
        # With the largest ``cut`` at the limit, limit = cap * (cut * limit + what is below them).
        below = ordered.sum() if cut == 0 else rest[cut - 1]
        limit = np.inf if cut == 0 else cap * below / (1 - cap * cut)
        if ordered[cut] <= (cap * below if cut == 0 else limit):
            break
    found: Floats = np.minimum(weights, limit)
    return found


def weights_for(
    tiers: Sequence[str],
    reliabilities: Sequence[float],
    settings: TrustSettings,
    sizes: Sequence[float] | None = None,
) -> npt.NDArray[np.int64]:
    """Return public whole-number weights, fixed before any input of the round is sent.

    Parameters
    ----------
    tiers, reliabilities : (source,)
        Reliability within 0..1; the floor is applied here.
    settings
        Tiers, floor and cap.
    sizes : (source,), > 0
        Baselines where ratios are averaged: a large site counts for more.

    Returns
    -------
    (source,), 1..4096
        Equal sources get equal weights; the cap holds up to rounding.
    """
    steps = np.array([settings.tiers[tier] for tier in tiers], np.float64)
    trusted = steps * np.maximum(np.asarray(reliabilities, np.float64), settings.floor)
    if sizes is not None:
        trusted = trusted * np.asarray(sizes, np.float64)
    limited = capped(trusted, influence_cap(len(trusted), settings))
    scaled = np.floor(limited / limited.max() * WEIGHT_STEPS)
    found: npt.NDArray[np.int64] = np.maximum(scaled, 1).astype(np.int64)
    return found
