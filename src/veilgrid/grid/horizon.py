"""The time axis of a plan."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Horizon:
    """Equal intervals from a start on.

    Attributes
    ----------
    start
        ISO 8601 with offset, e.g. ``2023-11-09T00:00:00+08:00``.
    interval_minutes
        > 0.
    interval_count
        > 0.
    """

    start: str
    interval_minutes: int
    interval_count: int

    @property
    def hours(self) -> float:
        """Length of one interval in hours."""
        return self.interval_minutes / 60.0
