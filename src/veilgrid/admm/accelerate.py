"""Anderson acceleration of a fixed-point map, from inner products alone.

Only the Gram matrix of past residuals is needed to find the mixing weights, so sites can keep their
parts of the state to themselves and add up inner products [Walker and Ni 2011].
"""

from collections import deque

import numpy as np

from veilgrid.errors import invariant
from veilgrid.grid.network import Floats


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

    def mix(self, point: Floats, image: Floats) -> Floats:
        """Return the next point from this pair and the past ones; all are flat arrays."""
        self._images.append(image)
        self._residuals.append(image - point)
        residuals = np.array(self._residuals)
        weights = mixing_weights(residuals @ residuals.T, self._regularisation)
        return np.asarray(weights @ np.array(self._images))


class GuardedAnderson:
    """Anderson acceleration every few steps, taken back when it made the residual grow.

    Plain steps in between keep the history from becoming dependent, which stalls the mixing of a
    map that is only piecewise linear.

    Parameters
    ----------
    memory : >= 1
        Past pairs to mix; 1 = plain iteration.
    interval : >= 1
        Steps from one mixing to the next.
    growth_max : >= 1
        A residual that grew by more after a mixed step returns to the plain step before it.
    """

    def __init__(self, memory: int, interval: int = 1, growth_max: float = 1.5) -> None:
        self._mixer, self._memory = Anderson(memory), memory
        self._interval, self._growth_max = interval, growth_max
        self._plain: Floats | None = None
        self._residual = np.inf
        self._step = 0

    def mix(self, point: Floats, step: Floats) -> Floats:
        """Return the next point after the plain step ``point -> point + step``; flat arrays."""
        if self._memory == 1:
            return point + step
        residual = float(np.linalg.norm(step))
        plain, self._plain = self._plain, None
        if plain is not None and residual > self._growth_max * self._residual:
            self._mixer.forget()
            return plain
        image = point + step
        mixed = self._mixer.mix(point, image)
        self._step += 1
        if self._step % self._interval:
            return image
        self._plain, self._residual = image, residual
        return mixed
