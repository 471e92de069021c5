"""Anderson acceleration among neighbours: sites keep their past, only inner products add up.

Each site remembers its own part of past iterates. After an iteration it sends up the inner products
of its newest residual with the past ones, added to its children's; the substation turns the sums
into weights, which go down, and every site mixes its own past with them [docs/protocol/neighbour.md
1]. Both ends of an edge mix the same averages with the same weights, so they stay equal.
"""

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from veilgrid.admm.accelerate import STRETCH_MAX, mixing_weights
from veilgrid.errors import invariant
from veilgrid.grid.network import Floats

GUARD = 2.0
"""A mixed iterate whose residual is this many times the last one's is taken back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One site's part of an iterate.

    Attributes
    ----------
    average, multiplier : (variable, interval)
        Of the edge to the parent, child's end; zero for the substation.
    below, below_multiplier : (child, variable, interval)
        Of the edges to the children, parent's end.
    demand, demand_multiplier : (flow=2, interval)
    """

    average: Floats
    multiplier: Floats
    below: Floats
    below_multiplier: Floats
    demand: Floats
    demand_multiplier: Floats


class Past:
    """One site's past points and images; vectors are weighted so that all units agree."""

    def __init__(
        self, penalty: Floats, below: Floats, demand_penalty: float, unit: float, memory: int
    ) -> None:
        own = np.sqrt(penalty)[:, np.newaxis]
        under = np.sqrt(below)[:, :, np.newaxis]
        demand, root = np.sqrt(demand_penalty), 1.0 / np.sqrt(unit)
        self._weights = (own, 1.0 / own, under, 1.0 / under, demand, 1.0 / demand)
        self._unit = root
        self._children, self._memory = len(below), memory
        self._images: deque[Floats] = deque()
        self._residuals: deque[Floats] = deque()

    def push(self, point: Point, image: Point) -> Floats:
        """Remember a pair; return inner products of its residual with all, newest last."""
        end = self._pack(image)
        residual = end - self._pack(point)
        self._images.append(end)
        self._residuals.append(residual)
        if len(self._images) > self._memory:
            self._images.popleft()
            self._residuals.popleft()
        return np.array([float(residual @ other) for other in self._residuals])

    def mix(self, weights: Floats, count: int) -> Point:
        """Mix images, newest last; ``count`` is the number of intervals."""
        invariant(len(weights) == len(self._images), "one weight for each remembered image")
        total = np.zeros_like(self._images[-1])
        for weight, image in zip(weights, self._images, strict=True):
            total = total + weight * image
        return self._unpack(total, count)

    def retreat(self, count: int) -> Point:
        """Forget everything and return the image before the newest."""
        invariant(len(self._images) > 1, "a mixed iterate has a predecessor")
        before = self._images[-2]
        self._images.clear()
        self._residuals.clear()
        return self._unpack(before, count)

    @property
    def can_retreat(self) -> bool:
        """Whether an image before the newest is remembered."""
        return len(self._images) > 1

    def __len__(self) -> int:
        return len(self._images)

    def _pack(self, point: Point) -> Floats:
        parts = (
            point.average,
            point.multiplier,
            point.below,
            point.below_multiplier,
            point.demand,
            point.demand_multiplier,
        )
        rows = zip(parts, self._weights, strict=True)
        return np.concatenate([(part * (weight * self._unit)).ravel() for part, weight in rows])

    def _unpack(self, vector: Floats, count: int) -> Point:
        edge = (self._children, 3, count)
        shapes = ((3, count), (3, count), edge, edge, (2, count), (2, count))
        found, start = [], 0
        for shape, weight in zip(shapes, self._weights, strict=True):
            size = int(np.prod(shape))
            found.append(vector[start : start + size].reshape(shape) / (weight * self._unit))
            start += size
        return Point(
            average=found[0],
            multiplier=found[1],
            below=found[2],
            below_multiplier=found[3],
            demand=found[4],
            demand_multiplier=found[5],
        )


class Mixer:
    """The substation's part: sums of inner products in, weights out."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._gram = np.zeros((0, 0))
        self._last = np.inf
        self._is_mixed = False

    def weights(self, row: Floats) -> Floats:
        """Return mixing weights, newest last; empty = take the last step back and start afresh.

        Parameters
        ----------
        row : (past,)
            Inner products of the newest residual with the remembered ones, itself last.
        """
        size = float(row[-1])
        if self._is_mixed and not size <= GUARD**2 * self._last:
            self._gram = np.zeros((0, 0))
            self._last, self._is_mixed = np.inf, False
            return np.zeros(0)
        self._last = size
        kept = len(row) - 1
        gram = np.zeros((kept + 1, kept + 1))
        if kept:
            gram[:kept, :kept] = self._gram[-kept:, -kept:]
        gram[-1], gram[:, -1] = row, row
        self._gram, self._is_mixed = gram, kept > 0
        return mixing_weights(gram)


class Blend(NamedTuple):
    """How every site makes its next point from its past: the same numbers for all.

    Attributes
    ----------
    weights : (past,)
        Of the past images, newest last; empty = the newest image as it is.
    reach : in (0, 1]
        Part of the way from the newest image to the mixture.
    stretch : >= 0
        Length of the step along the mixed residual.
    is_retreat
        Go back to the last image before the mixture, and forget.
    """

    weights: Floats
    reach: float = 1.0
    stretch: float = 0.0
    is_retreat: bool = False


class Trail:
    """One site's past images and residuals, flat vectors in the common metric."""

    def __init__(self, memory: int) -> None:
        self._images: deque[Floats] = deque(maxlen=memory)
        self._residuals: deque[Floats] = deque(maxlen=memory)
        self._strides: deque[Floats] = deque(maxlen=memory)
        self._plain: Floats | None = None

    def push(self, point: Floats, step: Floats) -> tuple[Floats, Floats]:
        """Remember a plain step; return inner products of it and of the way to its image.

        Returns
        -------
        (past,), (past,)
            Newest last: products of the step with remembered steps, and of the difference between
            the newest two images with remembered differences.
        """
        image = point + step
        last = self._images[-1] if self._images else image
        self._images.append(image)
        self._residuals.append(step)
        self._strides.append(image - last)
        stride = self._strides[-1]
        return (
            np.array([float(step @ other) for other in self._residuals]),
            np.array([float(stride @ other) for other in self._strides]),
        )

    def follow(self, blend: Blend) -> Floats:
        """Return the next point."""
        if blend.is_retreat:
            invariant(self._plain is not None, "a mixture has a plain step before it")
            plain = self._plain if self._plain is not None else self._images[-1]
            self.forget()
            return plain
        image = self._images[-1]
        self._plain = None
        if not len(blend.weights):
            return image
        self._plain = image
        mixed, drift = np.zeros_like(image), np.zeros_like(image)
        for weight, past, step in zip(blend.weights, self._images, self._residuals, strict=True):
            mixed = mixed + weight * past
            drift = drift + weight * step
        return image + blend.reach * (mixed - image) + blend.stretch * drift

    def forget(self) -> None:
        """Drop the past."""
        self._images.clear()
        self._residuals.clear()
        self._strides.clear()
        self._plain = None

    def fits(self, blend: Blend) -> bool:
        """Whether a blend can be followed from here."""
        if blend.is_retreat:
            return self._plain is not None
        return len(blend.weights) in (0, len(self._images))

    def __len__(self) -> int:
        return len(self._images)


class Blender:
    """Decide at the substation how to go on, from sums of inner products.

    The rules are those of :class:`veilgrid.admm.accelerate.GuardedAnderson`, which sees the
    vectors themselves.
    """

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
        self._steps = self._strides = np.zeros((0, 0))
        self._guard: float | None = None
        self._stretch, self._step = 1.0, 0

    def forget(self) -> None:
        """Drop the past: the map has changed."""
        self._steps = self._strides = np.zeros((0, 0))
        self._guard, self._stretch, self._step = None, 1.0, 0

    @property
    def is_striding(self) -> bool:
        """Whether the map drifts and steps along it are stretched."""
        return self._stretch > 1.0

    def blend(self, steps: Floats, strides: Floats, *, is_plain: bool = False) -> Blend:
        """Take the newest sums of inner products, newest last; ``is_plain`` = do not mix."""
        if self._memory == 1:
            return Blend(np.zeros(0))
        residual = float(np.sqrt(steps[-1]))
        guard, self._guard = self._guard, None
        if guard is not None and residual > self._growth_max * guard:
            self._steps = self._strides = np.zeros((0, 0))
            self._stretch = 1.0
            return Blend(np.zeros(0), is_retreat=True)
        self._steps = _grown(self._steps, steps)
        self._strides = _grown(self._strides, strides)
        self._step += 1
        if self._step % self._interval or is_plain:
            return Blend(np.zeros(0))
        self._guard = residual
        weights = mixing_weights(self._steps)
        # The mixture less the newest image: minus each stride, by the weight of all images before.
        before = np.concatenate([[0.0], np.cumsum(weights)[:-1]])
        length = float(np.sqrt(max(float(before @ self._strides @ before), 0.0)))
        reach = min(1.0, self._reach_max * residual / length) if length > 0.0 else 1.0
        drift = float(np.sqrt(max(float(weights @ self._steps @ weights), 0.0)))
        if drift <= self._drift_min * residual:
            self._stretch = 1.0
            return Blend(weights, reach)
        self._stretch = min(2.0 * self._stretch, STRETCH_MAX)
        return Blend(weights, reach, self._stretch)


def _grown(gram: Floats, row: Floats) -> Floats:
    """Add the newest row to a Gram matrix; what is no longer remembered falls off."""
    kept = len(row) - 1
    grown = np.zeros((kept + 1, kept + 1))
    if kept:
        grown[:kept, :kept] = gram[-kept:, -kept:]
    grown[-1], grown[:, -1] = row, row
    return grown
