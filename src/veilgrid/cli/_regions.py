"""Sums of regions: gateways or small committees first, one committee over the regions [risk 8]."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from veilgrid.cli._aggregate import Setting, aggregate_readings
from veilgrid.cli._readings import Readings
from veilgrid.errors import Finding, InputError
from veilgrid.risk.aggregate import Question, Source

Way = Literal["clear", "committee"]


@dataclass(frozen=True, slots=True)
class Regional:
    """A sum over regions and what it cost.

    Attributes
    ----------
    report
        Of the cross-regional round, as of ``veilgrid aggregate``.
    sums
        By region, what it handed on; known to its gateway, or to the region's committee.
    regional_seconds
        Of each region's own round; regions work side by side.
    octets
        Sent in all rounds.
    """

    report: Mapping[str, Any]
    sums: Mapping[str, float]
    regional_seconds: tuple[float, ...]
    octets: int

    @property
    def seconds(self) -> float:
        """Time until the figure is there if every region has its own machines."""
        return max(self.regional_seconds, default=0.0) + float(self.report["seconds"])


def sum_by_region(
    readings: Readings, regions: Sequence[str], way: Way, setting: Setting
) -> Regional:
    """Return the sum of all readings, region by region first.

    ``clear``: each region's gateway sees its own sources' readings, leaves out those that are
    outside their bounds, and adds up. ``committee``: a small committee of the region does that on
    shares and sees the sum only. Either way the big committee gets one number a region, with the
    sum of bounds as its bounds, and no region sees another's.

    Raises
    ------
    InputError
        Fewer than two regions, or not one for each source.
    RunAborted
        A committee ended without a result.
    """
    names = sorted(set(regions))
    if len(regions) != len(readings.sources) or len(names) < 2:
        problem = f"{len(regions)} given for {len(readings.sources)} sources, {len(names)} differ"
        raise InputError([Finding("regions", problem, "name one for each source, two at least")])
    sums: dict[str, float] = {}
    seconds: list[float] = []
    octets = 0
    gateways = []
    for name in names:
        rows = [row for row, region in enumerate(regions) if region == name]
        part = Readings(
            tuple(readings.sources[row] for row in rows),
            tuple(readings.values[row] for row in rows),
        )
        if way == "clear":
            sums[name] = _in_the_clear(part)
        else:
            done = aggregate_readings(part, Question(function="sum"), setting).report
            sums[name] = float(done["value"])
            seconds.append(float(done["seconds"]))
            octets += int(done["bytes"])
        gateways.append(_gateway(name, part))
    whole = Readings(tuple(gateways), tuple(sums[name] for name in names))
    top = aggregate_readings(whole, Question(function="sum"), replace(setting)).report
    return Regional(top, sums, tuple(seconds), octets + int(top["bytes"]))


def _in_the_clear(part: Readings) -> float:
    """Add up what lies within its bounds, as the region's gateway does."""
    return sum(
        value
        for source, value in zip(part.sources, part.values, strict=True)
        if value is not None and source.lower <= value <= source.upper
    )


def _gateway(name: str, part: Readings) -> Source:
    """Return the region as a source, whose bounds hold whoever is left out."""
    lower = sum(min(one.lower, 0.0) for one in part.sources)
    upper = sum(max(one.upper, 0.0) for one in part.sources)
    return Source(name, "aggregator", lower, upper)
