"""Anderson acceleration among neighbours: sites keep their past, only inner products add up.

Each site remembers its own part of past iterates. After an iteration it sends up the inner products
of its newest residual with the past ones, added to its children's; the substation turns the sums
into weights, which go down, and every site mixes its own past with them [docs/protocol/neighbour.md
4]. Both ends of an edge mix the same averages with the same weights, so they stay equal.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np

from veilgrid.admm.accelerate import mixing_weights
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
