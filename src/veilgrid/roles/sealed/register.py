"""What everybody knows before a sealed day: the network, the tariff, and scales [sealed 2].

All numbers on shares are integers: power in steps of ``2**-32`` per-unit, prices in steps of
``2**-32`` price units, network coefficients in steps of ``2**-30``. Public matrices are rounded
once, here; parties compare their digest, because floating point differs between machines.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from veilgrid.errors import invariant
from veilgrid.grid.lindistflow import Limits, charging_injection
from veilgrid.grid.network import Floats

Integers = npt.NDArray[np.int64]

POWER_BITS: Final = 32
"""Binary places of powers and of prices in units."""

FACTOR_BITS: Final = 30
"""Binary places of public factors."""

POWER_MAX: Final = 2**38
"""Bound of a site's power in steps: 64 per-unit."""

WISH_MAX: Final = 2**42
"""Bound of a site's wish in steps: where penalties are small, prices make up most of it."""

WISH_SPAN: Final = 2**36
"""Every site may wish for so much, in steps: 16 per-unit."""

WISH_PRICE: Final = 3.0 * 2**10
"""Price units times its inverse penalty that a site may wish for, where that is more."""

PRICE_HEARD: Final = 2.0**20
"""Price units, beyond anything that rows in force add up to; sites take larger ones for this."""

EXCESS_TOLERANCE: Final = 1e-8
"""Per-unit; rows exceeded by less are kept. Below it lies the rounding of factors."""


COEFFICIENT_MIN: Final = 1e-6
"""Per-unit; rows whose coefficients are all smaller are not scaled: nothing moves them."""


@dataclass(frozen=True, kw_only=True)
class Register:
    """The operator's model of network and connections; public to parties and sites.

    Attributes
    ----------
    limits
        Voltage limits and ratings with their planning margin.
    buy, sell : (interval,), currency per per-unit and interval
        Tariff at the substation.
    give_p, give_q : (bus,), >= 0
        Inverse penalties, from the register's rated ranges; 0 = the bus has no flexible device.
    stiffness : (interval,), None = one everywhere
        By which the penalties of all buses are multiplied; always powers of two.
    strength_max : > 0
        Ceiling of a scaled row's strength, currency.
    inner : >= 0, per-unit
        Distance kept from limits while iterates still disagree.
    voltage_limits : per-unit, None = unbounded
        Lower and upper limit without any margin, for the AC power flow.
    """

    limits: Limits
    buy: Floats
    sell: Floats
    give_p: Floats
    give_q: Floats
    strength_max: float
    inner: float = 0.0
    voltage_limits: tuple[float | None, float | None] = (None, None)
    stiffness: Floats | None = None

    def __post_init__(self) -> None:
        invariant(len(self.give_p) == len(self.limits.tree), "one inverse penalty a bus")

    @property
    def bus_count(self) -> int:
        """Number of buses."""
        return len(self.give_p)

    @property
    def interval_count(self) -> int:
        """Number of intervals."""
        return len(self.buy)

    @cached_property
    def wish_max(self) -> Integers:
        """Bounds of wishes in steps, (active then reactive, bus, interval) [sealed 6.6]."""
        give = np.stack([self.give_p, self.give_q])[:, :, np.newaxis] * self.softness
        own = np.floor(WISH_PRICE * self.unit * give * 2.0**POWER_BITS)
        bounds = np.where(give > 0.0, np.clip(own, WISH_SPAN, WISH_MAX), WISH_MAX)
        return np.asarray(bounds, dtype=np.int64)

    @property
    def softness(self) -> Floats:
        """By which inverse penalties are multiplied, (interval,)."""
        return np.ones(self.interval_count) if self.stiffness is None else 1.0 / self.stiffness

    def stiffened(self, stiffness: Floats | None) -> "Register":
        """Multiply the penalties given at first by other numbers, (interval,)."""
        return replace(self, stiffness=stiffness)

    def voltage_bounds(self, kind: int) -> Floats:
        """Return the bounds (bus, interval) of lower (0) or upper (1) voltage rows, unscaled."""
        if kind not in self._voltage_bounds:
            limits = self.limits
            count = self.bus_count
            own = np.array([limits.row(kind * count + bus)[2] for bus in range(count)])
            wide = np.repeat(own[:, np.newaxis], self.interval_count, axis=1)
            if limits.correction is not None:
                wide = wide - limits.correction[kind]
            self._voltage_bounds[kind] = wide
        return self._voltage_bounds[kind]

    @cached_property
    def _voltage_bounds(self) -> dict[int, Floats]:
        return {}

    def tightened(self, inner: float) -> "Register":
        """Keep an inner distance from limits, per-unit."""
        return replace(self, inner=inner)

    def without(self, bus: int) -> "Register":
        """Treat a bus as one without choice."""
        give_p, give_q = self.give_p.copy(), self.give_q.copy()
        give_p[bus] = give_q[bus] = 0.0
        return replace(self, give_p=give_p, give_q=give_q)

    @cached_property
    def charging_flow(self) -> Floats:
        """Reactive power that line charging sends up each branch, (branch,), per-unit."""
        tree = self.limits.tree
        return np.asarray(tree.subtree @ charging_injection(tree))

    @cached_property
    def unit(self) -> float:
        """Price unit: the power of two above the highest tariff; one where energy is free."""
        highest = float(np.max(np.maximum(np.abs(self.buy), np.abs(self.sell))))
        return float(2.0 ** np.ceil(np.log2(max(highest, 1e-6)))) if highest > 0.0 else 1.0

    def row(self, number: int) -> tuple[Floats, Floats, float, float]:
        """Return a row scaled to largest coefficient one: ``a_p, a_q, bound, factor``.

        One that hardly anything moves, behind a branch without impedance, stays as it is.
        """
        if number not in self._rows:
            active, reactive, bound = self.limits.row(number)
            largest = float(max(np.abs(active).max(), np.abs(reactive).max()))
            scale = largest if largest > COEFFICIENT_MIN else 1.0
            self._rows[number] = (active / scale, reactive / scale, bound / scale, scale)
        return self._rows[number]

    def bound(self, number: int, interval: int) -> float:
        """Return a scaled row's bound in an interval."""
        _, _, bound, scale = self.row(number)
        return bound - self.limits.narrowing(number, interval) / scale

    @cached_property
    def _rows(self) -> dict[int, tuple[Floats, Floats, float, float]]:
        return {}

    @cached_property
    def prepared(self) -> dict[object, Any]:
        """What was computed from this register alone and may be asked for again."""
        return {}


def factors(values: Floats) -> Integers:
    """Round public factors to :data:`FACTOR_BITS` binary places."""
    scaled = np.rint(np.asarray(values) * 2.0**FACTOR_BITS)
    invariant(bool(np.all(np.abs(scaled) < 2.0**62)), "public factors fit 62 bits")
    return np.asarray(scaled, dtype=np.int64)


def power_steps(values: Floats) -> Integers:
    """Round powers or prices in units to :data:`POWER_BITS` binary places."""
    return np.asarray(np.rint(np.asarray(values) * 2.0**POWER_BITS), dtype=np.int64)
