"""Devices: each class gives one linear constraint block and one cost block [model 2].

Sizes are in MW and MWh as tables list them; :meth:`Device.block` converts to per-unit, and nothing
after it does. Injection is positive into the grid. Cost in an interval of ``h`` hours is
``h (cost_linear p + cost_quadratic p^2 / 2)``, where p is the power that the device produces
(photovoltaic, wind, generator), discharges (battery) or consumes (load, charger, heat pump), MW.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np
from scipy import sparse

from veilgrid.errors import Finding
from veilgrid.grid._block import CAPABILITY_SIDES, Block, Builder
from veilgrid.grid.horizon import Horizon
from veilgrid.grid.network import BusId, Floats


class Device(Protocol):
    """What every kind of device offers."""

    kind: ClassVar[str]

    @property
    def name(self) -> str:
        """Unique in the scenario."""
        ...

    @property
    def bus(self) -> BusId:
        """Where it is connected."""
        ...

    def findings(self, horizon: Horizon) -> Iterator[Finding]:
        """Yield each rule that the device breaks; ``where`` is the name of the column."""
        ...

    def block(self, horizon: Horizon, base_mva: float) -> Block:
        """Return the device as constraint block and cost block, per-unit."""
        ...

    def uncontrolled(self, horizon: Horizon, base_mva: float) -> Floats:
        """Return what it does if nobody coordinates it, (variable,) of its block, per-unit."""
        ...


def _not_negative(device: object, *names: str) -> Iterator[Finding]:
    for name in names:
        value = getattr(device, name)
        if value is not None and not value >= 0.0:
            yield Finding(name, f"is {value}, must be >= 0")


def _window(start: int, stop: int, horizon: Horizon) -> Floats:
    mask = np.zeros(horizon.interval_count)
    mask[start:stop] = 1.0
    return mask


def _window_findings(start: int, stop: int, horizon: Horizon) -> Iterator[Finding]:
    if not 0 <= start < horizon.interval_count:
        yield Finding("window_start", f"is {start}, must be in 0 … {horizon.interval_count - 1}")
    if not start < stop <= horizon.interval_count:
        yield Finding(
            "window_end",
            f"is {stop}, must be after window_start {start} and at most {horizon.interval_count}",
            "window_end is the first interval outside the window",
        )


@dataclass(frozen=True, kw_only=True)
class _Renewable:
    """Curtailable production up to a forecast.

    ``available_mw`` (interval,) is the forecast; with ``s_max_mva`` the inverter's reactive power
    is free inside its rating, otherwise ``q = q_per_p p``.
    """

    name: str
    bus: BusId
    available_mw: Floats = field(repr=False)
    p_max_mw: float = math.inf
    q_per_p: float = 0.0
    cost_linear: float = 0.0
    cost_quadratic: float = 0.0
    s_max_mva: float | None = None

    def findings(self, horizon: Horizon) -> Iterator[Finding]:
        yield from _not_negative(self, "p_max_mw", "cost_quadratic", "s_max_mva")
        if self.available_mw.shape != (horizon.interval_count,):
            yield Finding("available_mw", f"needs {horizon.interval_count} intervals")
        elif not bool((self.available_mw >= 0.0).all()):
            yield Finding("available_mw", "holds a negative or missing value")

    def block(self, horizon: Horizon, base_mva: float) -> Block:
        builder = Builder(horizon, base_mva)
        follows = 0.0 if self.s_max_mva is not None else self.q_per_p
        builder.variable(
            "p",
            0.0,
            np.minimum(self.available_mw, math.inf if self.s_max_mva is None else self.s_max_mva),
            cost=(self.cost_linear, self.cost_quadratic),
            inject=(1.0, follows),
        )
        if self.s_max_mva is not None:
            builder.capability({"p": 1.0}, self.s_max_mva)
        return builder.build()

    def uncontrolled(self, horizon: Horizon, base_mva: float) -> Floats:
        """Feed in everything available, without reactive power of an inverter's own."""
        high = math.inf if self.s_max_mva is None else self.s_max_mva
        if self.s_max_mva is not None:
            high *= math.cos(math.pi / CAPABILITY_SIDES)
        fed = np.minimum(self.available_mw, high) / base_mva
        blank = np.zeros(horizon.interval_count)
        return np.concatenate([fed] if self.s_max_mva is None else [fed, blank])


@dataclass(frozen=True, kw_only=True)
class Photovoltaic(_Renewable):
    """Curtailable solar production up to its forecast."""

    kind: ClassVar[str] = "pv"


@dataclass(frozen=True, kw_only=True)
class Wind(_Renewable):
    """Curtailable wind production up to its forecast."""

    kind: ClassVar[str] = "wind"


@dataclass(frozen=True, kw_only=True)
class Generator:
    """Dispatchable production between ``p_min_mw`` and ``p_max_mw``, ``q = q_per_p p``."""

    kind: ClassVar[str] = "generator"
    name: str
    bus: BusId
    p_max_mw: float
    p_min_mw: float = 0.0
    q_per_p: float = 0.0
    cost_linear: float = 0.0
    cost_quadratic: float = 0.0

    def findings(self, horizon: Horizon) -> Iterator[Finding]:  # noqa: ARG002 - one protocol
        """Yield each rule that the generator breaks."""
        yield from _not_negative(self, "p_min_mw", "p_max_mw", "cost_quadratic")
        if self.p_min_mw > self.p_max_mw:
            yield Finding("p_min_mw", f"is {self.p_min_mw}, above p_max_mw {self.p_max_mw}")

    def block(self, horizon: Horizon, base_mva: float) -> Block:
        """Return the generator's block; see :class:`Block`."""
        builder = Builder(horizon, base_mva)
        builder.variable(
            "p",
            self.p_min_mw,
            self.p_max_mw,
            cost=(self.cost_linear, self.cost_quadratic),
            inject=(1.0, self.q_per_p),
        )
        return builder.build()

    def uncontrolled(self, horizon: Horizon, base_mva: float) -> Floats:
        """Run at the least power."""
        return np.full(horizon.interval_count, self.p_min_mw / base_mva)


@dataclass(frozen=True, kw_only=True)
class Battery:
    """Storage with terminal powers ``charge`` and ``discharge`` and stored energy ``e``.

    ``e_t = e_(t-1) + charge_efficiency charge h - discharge h / discharge_efficiency``,
    ``0 <= e <= energy_max_mwh`` and ``e_last >= energy_final_min_mwh``.
    """

    kind: ClassVar[str] = "battery"
    name: str
    bus: BusId
    charge_max_mw: float
    discharge_max_mw: float
    energy_max_mwh: float
    energy_initial_mwh: float = 0.0
    energy_final_min_mwh: float = 0.0
    charge_efficiency: float = 1.0
    discharge_efficiency: float = 1.0
    q_per_p: float = 0.0
    cost_linear: float = 0.0
    cost_quadratic: float = 0.0
    s_max_mva: float | None = None

    def findings(self, horizon: Horizon) -> Iterator[Finding]:
        """Yield each rule that the battery breaks."""
        yield from _not_negative(
            self, "charge_max_mw", "discharge_max_mw", "energy_max_mwh", "cost_quadratic"
        )
        yield from _not_negative(self, "s_max_mva")
        for name in ("charge_efficiency", "discharge_efficiency"):
            if not 0.0 < getattr(self, name) <= 1.0:
                advice = "0.9 stands for 90 %" if getattr(self, name) > 1.0 else ""
                yield Finding(name, f"is {getattr(self, name)}, must be in (0, 1]", advice)
        for name in ("energy_initial_mwh", "energy_final_min_mwh"):
            if not 0.0 <= getattr(self, name) <= self.energy_max_mwh:
                yield Finding(
                    name,
                    f"is {getattr(self, name)}, outside 0 … energy_max_mwh {self.energy_max_mwh}",
                )
        duration = horizon.hours * horizon.interval_count
        reach = self.energy_initial_mwh + self.charge_max_mw * self.charge_efficiency * duration
        if self.energy_final_min_mwh > reach:
            yield Finding(
                "energy_final_min_mwh",
                f"is {self.energy_final_min_mwh}, but charging all the time reaches {reach:.6g}",
            )

    def block(self, horizon: Horizon, base_mva: float) -> Block:
        """Return the battery's block; see :class:`Block`."""
        builder = Builder(horizon, base_mva)
        count, hours = horizon.interval_count, horizon.hours
        follows = 0.0 if self.s_max_mva is not None else self.q_per_p
        builder.variable("charge", 0.0, self.charge_max_mw, inject=(-1.0, -follows))
        builder.variable(
            "discharge",
            0.0,
            self.discharge_max_mw,
            cost=(self.cost_linear, self.cost_quadratic),
            inject=(1.0, follows),
        )
        floor = np.zeros(count)
        floor[-1] = self.energy_final_min_mwh
        builder.variable("energy", floor, self.energy_max_mwh)
        initial = np.zeros(count)
        initial[0] = self.energy_initial_mwh
        identity = sparse.identity(count, format="csc")
        builder.row(
            "stored energy",
            {
                "energy": identity - sparse.eye(count, k=-1, format="csc"),
                "charge": identity * (-self.charge_efficiency * hours),
                "discharge": identity * (hours / self.discharge_efficiency),
            },
            initial,
            initial,
        )
        if self.s_max_mva is not None:
            builder.capability({"charge": -1.0, "discharge": 1.0}, self.s_max_mva)
        return builder.build()

    def uncontrolled(self, horizon: Horizon, base_mva: float) -> Floats:
        """Idle; charge from the first interval on only as far as the final energy demands it."""
        count, step = horizon.interval_count, self.charge_efficiency * horizon.hours
        missing = max(self.energy_final_min_mwh - self.energy_initial_mwh, 0.0)
        full = missing / (step * self.charge_max_mw) if missing else 0.0
        charge = self.charge_max_mw * np.clip(full - np.arange(count), 0.0, 1.0)
        energy = self.energy_initial_mwh + np.cumsum(charge) * step
        blank = np.zeros(count)
        groups = [charge, blank, energy] + ([] if self.s_max_mva is None else [blank])
        return np.concatenate(groups) / base_mva


@dataclass(frozen=True, kw_only=True)
class FlexibleLoad:
    """A load that needs ``energy_required_mwh`` in ``[window_start, window_end)``, when is free."""

    kind: ClassVar[str] = "flexible_load"
    name: str
    bus: BusId
    p_max_mw: float
    energy_required_mwh: float
    window_start: int
    window_end: int
    p_min_mw: float = 0.0
    q_per_p: float = 0.0
    cost_linear: float = 0.0
    cost_quadratic: float = 0.0

    def findings(self, horizon: Horizon) -> Iterator[Finding]:
        """Yield each rule that the load breaks."""
        names = ("p_min_mw", "p_max_mw", "energy_required_mwh", "cost_quadratic")
        yield from _not_negative(self, *names)
        yield from _window_findings(self.window_start, self.window_end, horizon)
        if self.p_min_mw > self.p_max_mw:
            yield Finding("p_min_mw", f"is {self.p_min_mw}, above p_max_mw {self.p_max_mw}")
            return
        hours = (self.window_end - self.window_start) * horizon.hours
        low, high = self.p_min_mw * hours, self.p_max_mw * hours
        if not low - 1e-12 <= self.energy_required_mwh <= high + 1e-12:
            yield Finding(
                "energy_required_mwh",
                f"is {self.energy_required_mwh}, the window allows {low:.6g} … {high:.6g}",
            )

    def block(self, horizon: Horizon, base_mva: float) -> Block:
        """Return the load's block; see :class:`Block`."""
        builder = Builder(horizon, base_mva)
        mask = _window(self.window_start, self.window_end, horizon)
        builder.variable(
            "consumption",
            self.p_min_mw * mask,
            self.p_max_mw * mask,
            cost=(self.cost_linear, self.cost_quadratic),
            inject=(-1.0, -self.q_per_p),
        )
        energy = self.energy_required_mwh
        row = sparse.csc_matrix((mask * horizon.hours)[np.newaxis, :])
        builder.row("energy in the window", {"consumption": row}, energy, energy)
        return builder.build()

    def uncontrolled(self, horizon: Horizon, base_mva: float) -> Floats:
        """Consume evenly over the window."""
        mask = _window(self.window_start, self.window_end, horizon)
        hours = float(mask.sum()) * horizon.hours
        return np.asarray(mask * (self.energy_required_mwh / (hours * base_mva)))


@dataclass(frozen=True, kw_only=True)
class ElectricVehicleCharger:
    """A vehicle present in ``[window_start, window_end)`` that leaves with enough energy.

    At least ``energy_required_mwh`` enters the battery, ``charge_efficiency`` of what is drawn;
    at most ``energy_max_mwh`` fits.
    """

    kind: ClassVar[str] = "ev_charger"
    name: str
    bus: BusId
    charge_max_mw: float
    energy_required_mwh: float
    window_start: int
    window_end: int
    energy_max_mwh: float = math.inf
    charge_efficiency: float = 1.0
    q_per_p: float = 0.0
    cost_linear: float = 0.0
    cost_quadratic: float = 0.0

    def findings(self, horizon: Horizon) -> Iterator[Finding]:
        """Yield each rule that the charger breaks."""
        yield from _not_negative(self, "charge_max_mw", "energy_required_mwh", "cost_quadratic")
        yield from _window_findings(self.window_start, self.window_end, horizon)
        if not 0.0 < self.charge_efficiency <= 1.0:
            yield Finding("charge_efficiency", f"is {self.charge_efficiency}, must be in (0, 1]")
        hours = (self.window_end - self.window_start) * horizon.hours
        reach = min(self.charge_max_mw * self.charge_efficiency * hours, self.energy_max_mwh)
        if not self.energy_required_mwh <= reach + 1e-12:
            yield Finding(
                "energy_required_mwh",
                f"is {self.energy_required_mwh}, at most {reach:.6g} can be charged while present",
            )

    def block(self, horizon: Horizon, base_mva: float) -> Block:
        """Return the charger's block; see :class:`Block`."""
        builder = Builder(horizon, base_mva)
        mask = _window(self.window_start, self.window_end, horizon)
        builder.variable(
            "charge",
            0.0,
            self.charge_max_mw * mask,
            cost=(self.cost_linear, self.cost_quadratic),
            inject=(-1.0, -self.q_per_p),
        )
        row = sparse.csc_matrix((mask * horizon.hours * self.charge_efficiency)[np.newaxis, :])
        builder.row(
            "charged energy", {"charge": row}, self.energy_required_mwh, self.energy_max_mwh
        )
        return builder.build()

    def uncontrolled(self, horizon: Horizon, base_mva: float) -> Floats:
        """Charge at full power from arrival until the required energy is in."""
        step = self.charge_max_mw * self.charge_efficiency * horizon.hours
        full = self.energy_required_mwh / step if step > 0.0 else 0.0
        since = np.arange(horizon.interval_count) - self.window_start
        share = np.where(since >= 0, np.clip(full - since, 0.0, 1.0), 0.0)
        return np.asarray(share * (self.charge_max_mw / base_mva))


@dataclass(frozen=True, kw_only=True)
class HeatPump:
    """A heat pump that serves a heat demand through a thermal store.

    ``e_t = (1 - loss_per_hour h) e_(t-1) + cop p h - heat h`` with ``0 <= e <= energy_max_mwh``
    of heat; ``heat_mw`` (interval,) is the demand.
    """

    kind: ClassVar[str] = "heat_pump"
    name: str
    bus: BusId
    p_max_mw: float
    heat_mw: Floats = field(repr=False)
    cop: float = 3.0
    energy_max_mwh: float = 0.0
    energy_initial_mwh: float = 0.0
    energy_final_min_mwh: float = 0.0
    loss_per_hour: float = 0.0
    q_per_p: float = 0.0
    cost_linear: float = 0.0
    cost_quadratic: float = 0.0

    def findings(self, horizon: Horizon) -> Iterator[Finding]:
        """Yield each rule that the heat pump breaks."""
        yield from _not_negative(self, "p_max_mw", "energy_max_mwh", "cost_quadratic")
        if not self.cop > 0.0:
            yield Finding("cop", f"is {self.cop}, must be > 0")
        if not 0.0 <= self.loss_per_hour * horizon.hours < 1.0:
            yield Finding("loss_per_hour", f"is {self.loss_per_hour}, loses all in an interval")
        for name in ("energy_initial_mwh", "energy_final_min_mwh"):
            if not 0.0 <= getattr(self, name) <= self.energy_max_mwh:
                yield Finding(
                    name,
                    f"is {getattr(self, name)}, outside 0 … energy_max_mwh {self.energy_max_mwh}",
                )
        if self.heat_mw.shape != (horizon.interval_count,):
            yield Finding("heat_mw", f"needs {horizon.interval_count} intervals")
        elif not bool((self.heat_mw >= 0.0).all()):
            yield Finding("heat_mw", "holds a negative or missing value")
        else:
            yield from self._reach_findings(horizon.hours)

    def _reach_findings(self, hours: float) -> Iterator[Finding]:
        """Follow the store at full power: what it cannot serve then, nothing can."""
        stored, made = self.energy_initial_mwh, self.cop * self.p_max_mw * hours
        kept = 1.0 - self.loss_per_hour * hours
        for interval, heat in enumerate(self.heat_mw.tolist()):
            stored = min(kept * stored + made - heat * hours, self.energy_max_mwh)
            if stored < -1e-9:
                missing = f"{-stored / hours:.6g} MW of heat are missing in interval {interval}"
                yield Finding("p_max_mw", f"is {self.p_max_mw}, even at full power {missing}")
                return
        if stored < self.energy_final_min_mwh - 1e-9:
            problem = f"is {self.energy_final_min_mwh}, at full power {stored:.6g} is reached"
            yield Finding("energy_final_min_mwh", problem)

    def block(self, horizon: Horizon, base_mva: float) -> Block:
        """Return the heat pump's block; see :class:`Block`."""
        builder = Builder(horizon, base_mva)
        count, hours = horizon.interval_count, horizon.hours
        builder.variable(
            "consumption",
            0.0,
            self.p_max_mw,
            cost=(self.cost_linear, self.cost_quadratic),
            inject=(-1.0, -self.q_per_p),
        )
        floor = np.zeros(count)
        floor[-1] = self.energy_final_min_mwh
        builder.variable("energy", floor, self.energy_max_mwh)
        kept = 1.0 - self.loss_per_hour * hours
        source = -self.heat_mw * hours
        source[0] += kept * self.energy_initial_mwh
        identity = sparse.identity(count, format="csc")
        builder.row(
            "stored heat",
            {
                "energy": identity - kept * sparse.eye(count, k=-1, format="csc"),
                "consumption": identity * (-self.cop * hours),
            },
            source,
            source,
        )
        return builder.build()

    def uncontrolled(self, horizon: Horizon, base_mva: float) -> Floats:
        """Follow the heat demand and hold the store; fill it earlier only where power lacks."""
        count, hours = horizon.interval_count, horizon.hours
        kept, made = 1.0 - self.loss_per_hour * hours, self.cop * self.p_max_mw * hours
        heat = (self.heat_mw * hours).tolist()
        needed = [self.energy_final_min_mwh] * count
        for t in range(count - 1, 0, -1):
            needed[t - 1] = max((needed[t] + heat[t] - made) / kept, 0.0)
        stored, power, energy = self.energy_initial_mwh, np.zeros(count), np.zeros(count)
        for t in range(count):
            before = kept * stored - heat[t]
            bought = max(needed[t], self.energy_initial_mwh) - before
            power[t] = min(max(bought, 0.0), made) / (self.cop * hours)
            stored = energy[t] = before + power[t] * self.cop * hours
        return np.concatenate([power, energy]) / base_mva


@dataclass(frozen=True, kw_only=True)
class Inverter:
    """Reactive power alone, inside a rating: a compensator, or an inverter at night."""

    kind: ClassVar[str] = "inverter"
    name: str
    bus: BusId
    s_max_mva: float

    def findings(self, horizon: Horizon) -> Iterator[Finding]:  # noqa: ARG002 - one protocol
        """Yield each rule that the inverter breaks."""
        yield from _not_negative(self, "s_max_mva")

    def block(self, horizon: Horizon, base_mva: float) -> Block:
        """Return the inverter's block; see :class:`Block`."""
        builder = Builder(horizon, base_mva)
        builder.variable("q", -self.s_max_mva, self.s_max_mva, inject=(0.0, 1.0))
        return builder.build()

    def uncontrolled(self, horizon: Horizon, base_mva: float) -> Floats:  # noqa: ARG002
        """Give no reactive power."""
        return np.zeros(horizon.interval_count)


DEVICE_KINDS: dict[str, type] = {
    cls.kind: cls
    for cls in (
        Photovoltaic,
        Wind,
        Generator,
        Battery,
        FlexibleLoad,
        ElectricVehicleCharger,
        HeatPump,
        Inverter,
    )
}
