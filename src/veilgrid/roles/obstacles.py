"""Why a day is infeasible: the limits that no plan can meet together, in words of the network."""

import math
from dataclasses import dataclass

from veilgrid.admm.outcome import Coordination
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """One limit that cannot be met.

    Attributes
    ----------
    limit
        ``voltage_min``, ``voltage_max`` or ``rating``.
    bus
        Where; for a rating, the bus that the branch feeds.
    interval
        When.
    short_by : pu for voltages, MVA for ratings, > 0
        In the plan that exceeds all limits together least.
    limit_pu, reached_pu : per-unit
        What a voltage has to keep, its margin included, and what that plan reaches; ``None`` for
        a rating.
    """

    limit: str
    bus: str
    interval: int
    short_by: float
    limit_pu: float | None = None
    reached_pu: float | None = None

    @property
    def unit(self) -> str:
        """Unit of ``short_by``."""
        return "MVA" if self.limit == "rating" else "pu"

    def __str__(self) -> str:
        where = f"bus {self.bus}, interval {self.interval}"
        if self.limit_pu is None or self.reached_pu is None:
            return f"{where}: branch rating short by {self.short_by:.4f} MVA"
        return (
            f"{where}: {self.limit} {self.limit_pu:.4f} pu, at best {self.reached_pu:.4f} pu "
            "is reached"
        )


def obstacles(day: Day, limits: Limits, outcome: Coordination) -> tuple[Obstacle, ...]:
    """Describe each limit that cannot be met once, worst first within its unit.

    Parameters
    ----------
    day, limits
        What was to be planned, and within which limits.
    outcome
        Of a day without a plan; any other has no obstacles.
    """
    worst: dict[tuple[str, str, int], Obstacle] = {}
    for number, interval, amount in outcome.violations:
        found = _obstacle(day, limits, number, interval, amount)
        key = (found.limit, found.bus, found.interval)
        # A rating is a polygon: the side furthest off says how far off it is.
        if key not in worst or found.short_by > worst[key].short_by:
            worst[key] = found
    return tuple(sorted(worst.values(), key=lambda found: (found.unit != "pu", -found.short_by)))


def _obstacle(day: Day, limits: Limits, number: int, interval: int, amount: float) -> Obstacle:
    what, bus = limits.describe(number)
    name = str(day.network.buses[bus].name)
    if what == "rating":
        short_by = amount * day.network.base_mva
        return Obstacle(limit=what, bus=name, interval=interval, short_by=short_by)
    sign = 1.0 if what == "voltage_min" else -1.0
    squared = limits.squared_min if what == "voltage_min" else limits.squared_max
    edge = float(squared or 0.0) + sign * limits.narrowing(number, interval)
    reached = math.sqrt(max(edge - sign * amount, 0.0))
    edge = math.sqrt(edge)
    return Obstacle(
        limit=what,
        bus=name,
        interval=interval,
        short_by=abs(edge - reached),
        limit_pu=edge,
        reached_pu=reached,
    )
