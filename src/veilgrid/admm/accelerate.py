"""Anderson acceleration of a fixed-point map, from inner products alone.

Only the Gram matrix of past residuals is needed to find the mixing weights, so sites can keep their
parts of the state to themselves and add up inner products [Walker and Ni 2011].
"""

from collections import deque

import numpy as np

from veilgrid.errors import invariant
from veilgrid.grid.network import Floats

STRETCH_MAX = 1024.0
"""Longest stride through a drift, in plain steps."""


def mixing_weights(gram: Floats, regularisation: float = 1e-10) -> Floats:
    """Return weights that sum to one and make the mixed residual small.

    Parameters
    ----------
    gram : (past, past)
        Inner products of the residuals ``image - point``, newest last.
    regularisation : > 0
        Relative to the mean squared residual; larger is more cautious.

    Returns
    -------
    (past,)
    """
    count = len(gram)
    invariant(gram.shape == (count, count) and count > 0, "a Gram matrix is square")
    scale = float(np.trace(gram)) / count
    if not np.isfinite(scale) or scale <= 0.0:
        return np.asarray(np.eye(count)[-1])
    ridge = gram / scale + regularisation * np.eye(count)
    raw = np.linalg.lstsq(ridge, np.ones(count), rcond=None)[0]
    total = float(raw.sum())
    if not np.isfinite(total) or abs(total) < 1e-12:
        return np.asarray(np.eye(count)[-1])
    return np.asarray(raw / total)


class Anderson:
    """Accelerate ``point -> image``; the caller guards the step and calls :meth:`forget`.

    Parameters
    ----------
    memory : >= 1
        How many past pairs to mix; 1 = no acceleration.
    """

    def __init__(self, memory: int, regularisation: float = 1e-10) -> None:
        invariant(memory >= 1, "acceleration remembers at least the present pair")
        self._images: deque[Floats] = deque(maxlen=memory)
        self._residuals: deque[Floats] = deque(maxlen=memory)
        self._regularisation = regularisation

    def forget(self) -> None:
        """Drop the past, after a jump or a failed step."""
        self._images.clear()
        self._residuals.clear()

    def mix(self, point: Floats, image: Floats) -> tuple[Floats, Floats]:
        """Return the mixture of this pair's and the past images, and that of the residuals.

        Arrays are flat. The mixed residual is nearly the shortest one that the past allows.
        """
        self._images.append(image)
        self._residuals.append(image - point)
        residuals = np.array(self._residuals)
        weights = mixing_weights(residuals @ residuals.T, self._regularisation)
        return np.asarray(weights @ np.array(self._images)), np.asarray(weights @ residuals)


class GuardedAnderson:
    """Anderson acceleration with a guard, and long strides where the map only drifts.

    On problems with flat pieces (batteries without cost) splitting methods drift: part of the
    residual stays the same vector while prices climb towards the next kink. Mixing cancels what
    oscillates, and what it leaves is that drift: while the mixed residual is not much shorter
    than the plain one, the step along it is doubled from mixing to mixing. A step that made the
    residual grow is taken back to the plain step before it.

    Parameters
    ----------
    memory : >= 1
        Past pairs to mix; 1 = plain iteration.
    interval : >= 1
        Steps from one mixing to the next.
    growth_max : >= 1
        Growth of the residual that takes a step back.
    drift_min : in (0, 1]
        Mixed over plain residual from which the map drifts.
    reach_max : > 0
        Longest way of a mixture from the plain step, in plain steps; in a drift the mixture is
        nearly undetermined and would jump anywhere.
    """

    def __init__(
        self,
        memory: int,
        interval: int = 1,
        growth_max: float = 2.0,
        drift_min: float = 0.8,
        reach_max: float = 20.0,
    ) -> None:
        self._mixer, self._memory, self._interval = Anderson(memory), memory, interval
        self._growth_max, self._drift_min, self._reach_max = growth_max, drift_min, reach_max
        self._plain: Floats | None = None
        self._residual = np.inf
        self._stretch = 1.0
        self._step = 0

    def mix(self, point: Floats, step: Floats) -> Floats:
        """Return the next point after the plain step ``point -> point + step``; flat arrays."""
        if self._memory == 1:
            return point + step
        residual = float(np.linalg.norm(step))
        plain, self._plain = self._plain, None
        if plain is not None and residual > self._growth_max * self._residual:
            self._mixer.forget()
            self._stretch = 1.0
            return plain
        image = point + step
        mixed, drift = self._mixer.mix(point, image)
        self._step += 1
        if self._step % self._interval:
            return image
        self._plain, self._residual = image, residual
        length = float(np.linalg.norm(mixed - image))
        if length > self._reach_max * residual:
            mixed = image + (self._reach_max * residual / length) * (mixed - image)
        if np.linalg.norm(drift) <= self._drift_min * residual:
            self._stretch = 1.0
            return mixed
        self._stretch = min(2.0 * self._stretch, STRETCH_MAX)
        return mixed + self._stretch * drift
