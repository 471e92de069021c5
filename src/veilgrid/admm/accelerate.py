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
