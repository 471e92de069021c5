"""A site: all that hangs on one bus, as one constraint block and one cost block, per-unit."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import NewType

import numpy as np
from scipy import sparse

from veilgrid.grid._block import assembled
from veilgrid.grid.device import Device
from veilgrid.grid.horizon import Horizon
from veilgrid.grid.network import Floats

SiteId = NewType("SiteId", str)


@dataclass(frozen=True, slots=True)
class Span:
    """Where a device's group of variables lies: ``x[start:start + interval_count]``."""

    device: str
    kind: str
    group: str
    start: int


@dataclass(frozen=True, kw_only=True)
class Site:
    """The devices and the load of one bus.

    Its problem is ``min sum(quadratic x^2) / 2 + linear . x`` over
    ``row_lower <= matrix x <= row_upper``, ``lower <= x <= upper``; net demand is
    ``load_p - inject_p x`` and ``load_q - inject_q x``.

    Attributes
    ----------
    name
        Of the bus.
    bus : index in the network's bus order
    quadratic, linear, lower, upper : (variable,)
    matrix : (row, variable); row_lower, row_upper : (row,), per-unit
    row_names : names of the row groups, each (device, what, row count)
    inject_p, inject_q : (interval, variable)
    load_p, load_q : (interval,), per-unit
    uncontrolled : (variable,), per-unit
        What the devices do if nobody coordinates them.
    """

    name: SiteId
    bus: int
    quadratic: Floats = field(repr=False)
    linear: Floats = field(repr=False)
    lower: Floats = field(repr=False)
    upper: Floats = field(repr=False)
    matrix: sparse.csc_matrix = field(repr=False)
    row_lower: Floats = field(repr=False)
    row_upper: Floats = field(repr=False)
    row_names: tuple[tuple[str, str, int], ...] = field(repr=False)
    inject_p: sparse.csr_matrix = field(repr=False)
    inject_q: sparse.csr_matrix = field(repr=False)
    load_p: Floats = field(repr=False)
    load_q: Floats = field(repr=False)
    spans: tuple[Span, ...] = field(repr=False)
    uncontrolled: Floats = field(repr=False)

    @classmethod
    def of(
        cls,
        name: str,
        bus: int,
        devices: Iterable[Device],
        horizon: Horizon,
        base_mva: float,
        load_p: Floats,
        load_q: Floats,
    ) -> "Site":
        """Join devices into one site; loads are (interval,) per-unit."""
        own = list(devices)
        blocks = [device.block(horizon, base_mva) for device in own]
        count = horizon.interval_count
        empty = np.zeros(0)

        def joined(attribute: str) -> Floats:
            return np.concatenate([getattr(block, attribute) for block in blocks] or [empty])

        *columns, width = accumulate((len(block.linear) for block in blocks), initial=0)
        *rows, height = accumulate((len(block.row_lower) for block in blocks), initial=0)

        def beside(parts: list[sparse.csr_matrix]) -> sparse.csr_matrix:
            corners = [(0, column, part) for column, part in zip(columns, parts, strict=True)]
            return assembled(corners, (count, width)).tocsr()

        diagonal = [
            (row, column, block.matrix)
            for row, column, block in zip(rows, columns, blocks, strict=True)
        ]
        spans, start = [], 0
        for device, block in zip(own, blocks, strict=True):
            for group in block.groups:
                spans.append(Span(device.name, device.kind, group, start))
                start += count
        return cls(
            name=SiteId(name),
            bus=bus,
            quadratic=joined("quadratic"),
            linear=joined("linear"),
            lower=joined("lower"),
            upper=joined("upper"),
            matrix=assembled(diagonal, (height, width)).tocsc(),
            row_lower=joined("row_lower"),
            row_upper=joined("row_upper"),
            row_names=tuple(
                (device.name, what, length)
                for device, block in zip(own, blocks, strict=True)
                for what, length in block.rows
            ),
            inject_p=beside([block.inject_p for block in blocks]),
            inject_q=beside([block.inject_q for block in blocks]),
            load_p=np.asarray(load_p, dtype=np.float64),
            load_q=np.asarray(load_q, dtype=np.float64),
            spans=tuple(spans),
            uncontrolled=np.concatenate(
                [device.uncontrolled(horizon, base_mva) for device in own] or [empty]
            ),
        )

    @property
    def interval_count(self) -> int:
        """Number of intervals."""
        return len(self.load_p)

    @cached_property
    def is_flexible(self) -> bool:
        """Whether any choice is left to the site."""
        return bool(np.any(self.upper > self.lower))

    @cached_property
    def is_separable(self) -> bool:
        """Whether no row couples two intervals, so that each interval is a problem of its own."""
        if not self.matrix.shape[0]:
            return True
        interval = np.arange(self.matrix.shape[1]) % self.interval_count
        rows = self.matrix.tocsr()
        return all(
            len(set(interval[rows.indices[rows.indptr[r] : rows.indptr[r + 1]]])) <= 1
            for r in range(rows.shape[0])
        )

    def demand_p(self, x: Floats) -> Floats:
        """Net active demand of set-points x, (interval,), per-unit."""
        return np.asarray(self.load_p - self.inject_p @ x)

    def demand_q(self, x: Floats) -> Floats:
        """Net reactive demand of set-points x, (interval,), per-unit."""
        return np.asarray(self.load_q - self.inject_q @ x)

    def cost(self, x: Floats) -> float:
        """Cost of set-points x over the horizon, currency."""
        return float(0.5 * (self.quadratic * x) @ x + self.linear @ x)
