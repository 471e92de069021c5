"""Acceleration of sealed iterations: sites keep their state, sums of products decide [sealed 4.4].

The same steps as :class:`veilgrid.admm.accelerate.GuardedAnderson`, split in two: how to mix
follows from inner products over all sites, which open as sums; the mixing itself each site does
with its own past. One thing differs: whether a mixing went too far is learned with the step after
it, so taking it back comes one step later.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np

from veilgrid.admm.accelerate import STRETCH_MAX, mixing_weights
from veilgrid.grid.network import Floats

BACK: Final = "back"
PLAIN: Final = "plain"
MIX: Final = "mix"


@dataclass(frozen=True, slots=True)
class Mixture:
    """What to do with a step: take it back, take it as it is, or mix the past.

    Attributes
    ----------
    kind
        :data:`BACK`, :data:`PLAIN` or :data:`MIX`.
    weights : (past,)
        Of images and steps, newest last.
    reach
        Share of the way from the newest image to the mixed one.
    stretch
        Multiple of the mixed step that is added.
    """

    kind: str
    weights: tuple[float, ...] = ()
    reach: float = 1.0
    stretch: float = 0.0


class MixingRule:
    """The public half: which products are asked for, and what follows from their sums."""

    def __init__(
        self,
        memory: int,
        interval: int,
        growth_max: float = 2.0,
        drift_min: float = 0.8,
        reach_max: float = 20.0,
    ) -> None:
        self._memory, self._interval = memory, interval
        self._growth_max, self._drift_min, self._reach_max = growth_max, drift_min, reach_max
        self._past = 0
        self._step = 0
        self._has_plain = self._is_back = False
        self._residual = float("inf")
        self._stretch = 1.0

    @property
    def is_due(self) -> bool:
        """Whether the next step is mixed, so that products with the past are needed."""
        is_turn = (self._step + 1) % self._interval == 0
        return self._memory > 1 and is_turn and not self._is_back

    @property
    def is_striding(self) -> bool:
        """Whether the sites' map drifts and steps along it are stretched."""
        return self._stretch > 1.0

    @property
    def is_judged(self) -> bool:
        """Whether the next step tells if the mixing before it went too far."""
        return self._has_plain

    @property
    def is_back(self) -> bool:
        """Whether the next wish takes the last mixing back."""
        return self._is_back

    def step_plainly(self) -> Mixture:
        """Return what to do with a step that is not mixed."""
        if self._is_back:
            self._is_back = False
            self._past, self._stretch = 0, 1.0
            return Mixture(BACK)
        self._past = min(self._past + 1, self._memory)
        self._step += 1
        return Mixture(PLAIN)

    def judge(self, square: float) -> None:
        """Learn how long the step after a mixing was: much longer takes the mixing back."""
        self._has_plain = False
        self._is_back = max(square, 0.0) ** 0.5 > self._growth_max * self._residual

    @property
    def product_count(self) -> int:
        """How many sums of products are needed with the next step."""
        if not self.is_due:
            return 1
        past = min(self._past + 1, self._memory)
        return 1 + past * (past + 1) // 2 + (past - 1) * past // 2

    def decide(self, products: list[float]) -> Mixture:
        """Return what to do with a step that is due, whose products these are."""
        self._past = min(self._past + 1, self._memory)
        self._step += 1
        return self._mixture(products[1:], max(products[0], 0.0) ** 0.5)

    def _mixture(self, products: list[float], residual: float) -> Mixture:
        past = self._past
        gram = _symmetric(products[: past * (past + 1) // 2], past)
        apart = _symmetric(products[past * (past + 1) // 2 :], past - 1)
        weights = mixing_weights(gram)
        length = max(float(weights[:-1] @ apart @ weights[:-1]), 0.0) ** 0.5
        drift = max(float(weights @ gram @ weights), 0.0) ** 0.5
        self._has_plain, self._residual = True, residual
        is_far = length > self._reach_max * residual
        reach = self._reach_max * residual / length if is_far else 1.0
        if drift <= self._drift_min * residual:
            self._stretch = 1.0
            return Mixture(MIX, tuple(weights.tolist()), reach, 0.0)
        self._stretch = min(2.0 * self._stretch, STRETCH_MAX)
        return Mixture(MIX, tuple(weights.tolist()), reach, self._stretch)


def _symmetric(upper: list[float], size: int) -> Floats:
    out = np.zeros((size, size))
    out[np.triu_indices(size)] = upper
    return np.asarray(out + np.triu(out, 1).T, dtype=np.float64)


class MixingMemory:
    """The private half of some sites: their past steps, (site, element) each."""

    def __init__(self, memory: int) -> None:
        self._images: deque[Floats] = deque(maxlen=memory)
        self._steps: deque[Floats] = deque(maxlen=memory)
        self._plain: Floats | None = None

    def products(self, point: Floats, step: Floats, *, is_due: bool) -> Floats:
        """Return each site's products, (site, product), for the step ``point -> point + step``."""
        square = np.einsum("se,se->s", step, step)[:, np.newaxis]
        if not is_due:
            return np.asarray(square, dtype=np.float64)
        steps = [*self._steps, step][-(self._steps.maxlen or 1) :]
        images = [*self._images, point + step][-(self._images.maxlen or 1) :]
        apart = [image - images[-1] for image in images[:-1]]
        return np.hstack([square, _pairs(steps, len(step)), _pairs(apart, len(step))])

    def next_point(self, point: Floats, step: Floats, mixture: Mixture) -> Floats:
        """Return the next point of each site."""
        if mixture.kind == BACK:
            self._images.clear()
            self._steps.clear()
            plain, self._plain = self._plain, None
            return np.asarray(point + step if plain is None else plain, dtype=np.float64)
        image = point + step
        self._images.append(image)
        self._steps.append(step)
        if mixture.kind == PLAIN:
            return np.asarray(image, dtype=np.float64)
        weights = np.array(mixture.weights)
        mixed = np.tensordot(weights, np.array(self._images), axes=1)
        drift = np.tensordot(weights, np.array(self._steps), axes=1)
        self._plain = image
        moved = image + mixture.reach * (mixed - image) + mixture.stretch * drift
        return np.asarray(moved, dtype=np.float64)


def _pairs(vectors: list[Floats], site_count: int) -> Floats:
    """Return products of all pairs of vectors, site by site, upper triangle row by row."""
    if not vectors:
        return np.zeros((site_count, 0))
    stacked = np.array(vectors)
    gram = np.einsum("ise,jse->sij", stacked, stacked)
    rows, columns = np.triu_indices(len(vectors))
    return np.asarray(gram[:, rows, columns], dtype=np.float64)
