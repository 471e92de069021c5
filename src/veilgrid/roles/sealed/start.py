"""Where the sites of a sealed day stood at its end, for the next day to begin from [sealed 4.8]."""

from dataclasses import dataclass, field

from veilgrid.grid.day import Day
from veilgrid.roles.sealed.message import Wished


@dataclass(frozen=True)
class Start:
    """Where the sites of one day stood at its end, to begin another from.

    Attributes
    ----------
    names
        Of the sites with a choice.
    interval_count, base_mva
        In which the numbers are.
    wished
        Targets and prices, as sites keep them for another attempt.
    """

    names: tuple[str, ...]
    interval_count: int
    base_mva: float
    wished: Wished = field(repr=False)

    @classmethod
    def of(cls, day: Day, wished: Wished) -> "Start":
        """Keep where the sites of a day stand."""
        names = tuple(str(day.sites[bus].name) for bus in day.flexible)
        return cls(names, day.interval_count, day.network.base_mva, wished)

    def misfit(self, day: Day) -> str | None:
        """Say why another day cannot begin from here; None if it can."""
        names = tuple(str(day.sites[bus].name) for bus in day.flexible)
        if self.interval_count != day.interval_count:
            return f"it has {day.interval_count} intervals, the last day {self.interval_count}"
        if self.names != names or self.wished.own != list(day.flexible):
            return "other sites have a choice than on the last day"
        if self.base_mva != day.network.base_mva:
            return "its powers have another base than the last day's"
        return None

    @staticmethod
    def fitted(start: object, day: Day) -> Wished | None:
        """Return what sites begin from, if there is anything and it fits."""
        is_fit = isinstance(start, Start) and start.misfit(day) is None
        return start.wished if isinstance(start, Start) and is_fit else None
