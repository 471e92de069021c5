"""``veilgrid aggregate --regions``: gateways or small committees first, then a big one [risk 8]."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import msgspec
import numpy as np

from veilgrid.cli._committee import Committee, SecureResult, Task, secure_round
from veilgrid.cli._readings import Readings
from veilgrid.errors import Finding, InputError
from veilgrid.mpc.form import NOTHING
from veilgrid.mpc.layout import Integers
from veilgrid.risk.aggregate import Plan, Question
from veilgrid.risk.regions import (
    SUMMED,
    RegionalRound,
    RegionRound,
    handed_histogram,
    handed_sums,
    inputs_of,
    is_summed,
    mailbox_of,
    program_of,
    region_mailbox_of,
    region_program_of,
    sums_of,
)
from veilgrid.risk.rounds import Round
from veilgrid.risk.trust import TrustSettings

Way = Literal["clear", "committee"]
_SIGNATURE: Final = 64
_SEEN: Final = {
    "clear": "a gateway its own sources' readings; the big committee the figure",
    "committee": "a region's committee its own region's sums; the big committee the figure",
}


@dataclass(frozen=True, slots=True)
class Handed:
    """What a region hands on, and what it cost; known to its gateway, or to its committee.

    Attributes
    ----------
    rows
        Places of the sources that count.
    flags
        By source that does not, why.
    first, second
        Weighted sums of readings and of their squares, in steps.
    octets
        Sent by and to the region's sources, and within its committee.
    """

    region: str
    rows: tuple[int, ...]
    flags: dict[str, str]
    first: int
    second: int
    seconds: float
    octets: int


@dataclass(frozen=True, slots=True)
class Regional:
    """A figure over regions.

    Attributes
    ----------
    plan
        Of all sources, as if there were no regions.
    result
        What opened, as of a flat round.
    parts
        By region.
    top
        The cross-regional round.
    """

    plan: Plan
    result: dict[str, Any]
    parts: tuple[Handed, ...]
    top: SecureResult
    way: Way

    @property
    def seconds(self) -> float:
        """Time until the figure is there: regions work side by side."""
        return max(one.seconds for one in self.parts) + self.top.seconds

    @property
    def octets(self) -> int:
        """What all machines sent together."""
        return sum(one.octets for one in self.parts) + self.top.octets

    def told(self) -> dict[str, Any]:
        """Return the entry ``regions`` of the JSON object: no region's sum is in it."""
        return {
            "way": self.way,
            "seen": _SEEN[self.way],
            "seconds": max(one.seconds for one in self.parts),
            "bytes": sum(one.octets for one in self.parts),
            "cross_seconds": self.top.seconds,
            "cross_bytes": self.top.octets,
            "each": [
                {
                    "region": one.region,
                    "accepted": len(one.rows),
                    "seconds": one.seconds,
                    "bytes": one.octets,
                }
                for one in self.parts
            ],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """Who computes: the size of all committees."""

    parties: int = 3
    degree: int = 1
    seed: int | None = None
    processes: bool = False

    def committee(self, purpose: bytes, place: int) -> Committee:
        """Return a fresh committee; a seed gives each its own."""
        seed = None if self.seed is None else self.seed + place
        return Committee.fresh(self.parties, self.degree, purpose, seed)


def by_region(
    readings: Readings, question: Question, way: Way, machines: Machines, trust: TrustSettings
) -> Regional:
    """Compute one figure, region by region first.

    ``clear``: each region's gateway sees its own sources' readings, leaves out those that are
    outside their bounds, and adds up or counts into bins. ``committee``: a small committee of the
    region adds up on shares and sees the region's sums only. Either way the big committee gets
    one input a region, within what its sources' bounds allow, and opens the figure.

    Raises
    ------
    InputError
        No regions, or a function for which this way shows too much.
    RunAborted
        A committee ended without a result.
    """
    names = sorted(set(readings.regions))
    asked = question
    if question.function not in SUMMED or any(one.baseline for one in readings.sources):
        asked = replace(question, method="histogram")
    round_ = Round(question=asked, sources=readings.sources, settings=trust)
    plan = round_.plan()
    _refuse(readings, names, plan, way)
    steps = _steps(plan, readings)
    parts = []
    for place, name in enumerate(names):
        rows = [row for row, region in enumerate(readings.regions) if region == name]
        if way == "clear":
            parts.append(_by_gateway(name, rows, plan, readings, steps))
        else:
            committee = machines.committee(b"region", place + 1)
            parts.append(_by_committee(name, rows, round_, readings, committee, machines))
    kept = [one for one in parts if one.rows]
    told = RegionalRound(
        round_=round_,
        regions=tuple(one.region for one in kept),
        members=tuple(one.rows for one in kept),
    )
    top = _across(told, kept, steps, machines)
    result = dict(top.result)
    lost = {
        plan.names[row]: "region"
        for one in kept
        for row in one.rows
        if one.region in top.result["flags"]
    }
    result["flags"] = {name: why for one in parts for name, why in one.flags.items()} | lost
    return Regional(plan, result, tuple(parts), top, way)


def _refuse(readings: Readings, names: Sequence[str], plan: Plan, way: Way) -> None:
    findings = []
    if len(readings.regions) != len(readings.sources):
        problem = "needs the column region, which names each source's feeder or gateway"
        findings.append(Finding("--regions", problem, "add it to the file"))
    elif len(names) < 2:
        findings.append(Finding("--regions", f"found {len(names)} region, two at least are needed"))
    if way == "committee" and not is_summed(plan):
        problem = (
            f"{plan.question.function} of these readings needs each region's histogram, which the "
            "region's committee would have to open"
        )
        advice = "use --regions clear, or leave --regions out"
        findings.append(Finding("--regions committee", problem, advice))
    if way == "committee":
        fewest = max(plan.question.count_min, 2)
        findings += [
            Finding(
                f"region {name}",
                f"has {readings.regions.count(name)} source, so its committee would see readings",
                f"put at least {fewest} sources in a region",
            )
            for name in names
            if readings.regions.count(name) < fewest
        ]
    if findings:
        raise InputError(findings)


def _steps(plan: Plan, readings: Readings) -> Integers:
    """Return readings in steps; what is missing or far off lies outside all bounds."""
    values = np.array([np.nan if one is None else one for one in readings.values], np.float64)
    if plan.usual is not None:
        values = values / plan.usual
    steps = np.clip(np.nan_to_num(values * plan.scale, nan=2.0**52), -(2.0**52), 2.0**52)
    return np.rint(steps).astype(np.int64)


def _by_gateway(
    name: str, rows: Sequence[int], plan: Plan, readings: Readings, steps: Integers
) -> Handed:
    """Read, check and add up, as a gateway does with readings that reach it in the clear."""
    began = time.perf_counter()
    flags, kept, octets = {}, [], 0
    for row in rows:
        value = readings.values[row]
        if value is None:
            flags[plan.names[row]] = "missing"
            continue
        octets += len(msgspec.msgpack.encode((plan.names[row], value))) + _SIGNATURE
        if plan.lower[row] <= steps[row] <= plan.upper[row]:
            kept.append(row)
        else:
            flags[plan.names[row]] = "outside"
    first, second = sums_of(plan, kept, steps)
    seconds = time.perf_counter() - began
    return Handed(name, tuple(kept), flags, first, second, seconds, octets)


def _by_committee(
    name: str,
    rows: Sequence[int],
    round_: Round,
    readings: Readings,
    committee: Committee,
    machines: Machines,
) -> Handed:
    asked = RegionRound(round_=round_, rows=tuple(rows))
    plan, layout = round_.plan(), asked.layout()
    encoded = layout.encode({"value": _steps(plan, readings)[list(rows)]})
    inputs = {
        plan.names[row]: None if readings.values[row] is None else line.tolist()
        for row, line in zip(rows, encoded, strict=True)
    }
    done = secure_round(
        committee,
        dict.fromkeys(inputs, NOTHING),
        inputs,
        Task(region_program_of, asked, region_mailbox_of),
        processes=machines.processes,
    )
    numbers = [int(text) for text in done.result["numbers"]]
    kept = tuple(rows[place] for place in done.result["counted"])
    flags = dict(done.result["flags"])
    return Handed(name, kept, flags, numbers[0], sum(numbers[1:]), done.seconds, done.octets)


def _across(
    told: RegionalRound, parts: Sequence[Handed], steps: Integers, machines: Machines
) -> SecureResult:
    """Run the big committee, whose clients are the regions."""
    if len(parts) < 2:
        problem = f"{len(parts)} region has a reading within bounds, two at least are needed"
        raise InputError([Finding("--regions", problem)])
    if is_summed(told.plan()):
        handed = [handed_sums(told, one.first, one.second) for one in parts]
    else:
        handed = [handed_histogram(told, one.rows, steps) for one in parts]
    encoded = inputs_of(told, handed)
    inputs = {name: row.tolist() for name, row in zip(told.regions, encoded, strict=True)}
    return secure_round(
        machines.committee(b"regions", 0),
        dict.fromkeys(inputs, NOTHING),
        inputs,
        Task(program_of, told, mailbox_of),
        processes=machines.processes,
    )
