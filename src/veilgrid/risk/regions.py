"""Figures of regions: each hands on a few sums, the big committee adds up over regions [risk 8].

A region is a feeder or an edge gateway with its own sources. Its sums are made in the clear by its
gateway, or by a small committee of its own. The big committee gets one input a region, within what
the bounds of the region's sources allow, and opens the figure of all sources only.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from veilgrid.errors import invariant
from veilgrid.mpc import Engine, Enrolled, Mailbox, Mpc, Program, Shares, Steps, concatenate
from veilgrid.mpc.bulk import BulkBatch, BulkMailbox, bulk_intake
from veilgrid.mpc.layout import Equal, Integers, Layout, Number
from veilgrid.risk.aggregate import Plan, figure_from, opened_from
from veilgrid.risk.robust import Figure, Histogram, number_layout
from veilgrid.risk.rounds import Round
from veilgrid.secret import Secret

SUMMED: Final = ("sum", "mean", "weighted-mean", "variance")
"""Functions for which a region's sums suffice; the others take a histogram of each region."""

_SUM_BITS: Final = 61


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionalRound:
    """All that is public about the cross-regional round.

    Attributes
    ----------
    round_
        Of all sources, as if there were no regions; weights and steps follow from it.
    regions
        Names, in order.
    members : by region
        Places of the sources whose readings count there; known to all, as in a flat round.
    """

    round_: Round
    regions: tuple[str, ...]
    members: tuple[tuple[int, ...], ...]

    def plan(self) -> Plan:
        """Return the plan of all sources."""
        return self.round_.plan()

    @property
    def counted(self) -> list[int]:
        """Return the places of all sources that count."""
        return sorted(row for rows in self.members for row in rows)


def is_summed(plan: Plan) -> bool:
    """Return whether a region hands on sums, and not a histogram."""
    return plan.method == "linear"


def needs_squares(plan: Plan) -> bool:
    """Return whether a region hands on the sum of squares as well, for a spread."""
    return plan.question.function != "sum"


# -- what a region hands on ----------------------------------------------------------------------


def squares_shift(plan: Plan, rows: Sequence[int]) -> int:
    """Return by how many bits sums of squares are rounded, so that they fit a number."""
    largest = np.maximum(np.abs(plan.lower), np.abs(plan.upper))
    total = sum(int(plan.weights[row]) * int(largest[row]) ** 2 for row in rows)
    return max(total.bit_length() - _SUM_BITS, 0)


def sums_of(plan: Plan, rows: Sequence[int], steps: Integers) -> tuple[int, int]:
    """Return the weighted sum and the weighted sum of squares of some sources' readings."""
    pairs = [(int(plan.weights[row]), int(steps[row])) for row in rows]
    return sum(w * v for w, v in pairs), sum(w * v * v for w, v in pairs)


def layout_of(asked: RegionalRound) -> Layout:
    """Return what each region may send: nothing that its sources' bounds do not allow."""
    plan = asked.plan()
    if is_summed(plan):
        return _sums_layout(plan, asked)
    widths, masses = np.diff(plan.bins), _masses(plan, asked)
    parts: list[Number] = []
    rules = [Equal(tuple((f"count {k}", 1) for k in range(len(widths))), masses)]
    for k, width in enumerate(widths.tolist()):
        reach = masses * (width - 1)
        parts += [Number(f"count {k}", 0, masses), Number(f"part {k}", 0, reach)]
        parts.append(Number(f"room {k}", 0, reach))
        rules.append(Equal(((f"part {k}", 1), (f"room {k}", 1), (f"count {k}", 1 - width))))
    return Layout(tuple(parts), tuple(rules))


def _masses(plan: Plan, asked: RegionalRound) -> Integers:
    return np.array([int(plan.weights[list(rows)].sum()) for rows in asked.members], np.int64)


def _sums_layout(plan: Plan, asked: RegionalRound) -> Layout:
    """Return the layout of a sum, and of a sum of squares where a spread is wanted."""
    ends = [
        [int((plan.weights[list(rows)] * bound[list(rows)]).sum()) for rows in asked.members]
        for bound in (plan.lower, plan.upper)
    ]
    parts = [Number("first", np.array(ends[0], np.int64), np.array(ends[1], np.int64))]
    if needs_squares(plan):
        largest = np.maximum(np.abs(plan.lower), np.abs(plan.upper))
        shift = squares_shift(plan, asked.counted)
        tops = [sums_of(plan, rows, largest)[1] >> shift for rows in asked.members]
        parts.append(Number("second", 0, np.array(tops, np.int64)))
    return Layout(tuple(parts))


def inputs_of(asked: RegionalRound, handed: Sequence[Mapping[str, int]]) -> Integers:
    """Return what regions send, as elements: (region, element).

    ``handed`` holds the sums of each region, or its histogram, by the names of the parts.
    """
    layout = layout_of(asked)
    rows = [
        layout.encode({name: np.array([value]) for name, value in one.items()}, np.array([place]))
        for place, one in enumerate(handed)
    ]
    return np.concatenate(rows)


def handed_sums(asked: RegionalRound, first: int, second: int) -> dict[str, int]:
    """Return a region's sums in the form in which they are handed on."""
    plan = asked.plan()
    out = {"first": first}
    if needs_squares(plan):
        out["second"] = second >> squares_shift(plan, asked.counted)
    return out


def handed_histogram(asked: RegionalRound, rows: Sequence[int], steps: Integers) -> dict[str, int]:
    """Return the weighted histogram of a region's readings, as its gateway makes it."""
    plan = asked.plan()
    edges, widths = plan.bins, np.diff(plan.bins)
    listed = list(rows)
    place = np.searchsorted(edges, steps[listed], side="right") - 1
    weights = plan.weights[listed]
    counts = np.bincount(place, weights, len(widths)).astype(np.int64)
    inside = weights * (steps[listed] - edges[place])
    parts = np.zeros(len(widths), np.int64)
    np.add.at(parts, place, inside)
    out: dict[str, int] = {}
    for k, width in enumerate(widths.tolist()):
        out |= {f"count {k}": int(counts[k]), f"part {k}": int(parts[k])}
        out[f"room {k}"] = int(counts[k]) * (width - 1) - int(parts[k])
    return out


# -- the big committee ---------------------------------------------------------------------------


def mailbox_of(asked: RegionalRound) -> Callable[..., Mailbox]:
    """Return what makes a party's mailbox for the cross-regional round."""
    return _mailboxes(layout_of(asked))


def program_of(asked: RegionalRound, mailbox: Mailbox) -> Program:
    """Return a party's program over regions; its result reads like that of a flat round."""
    plan = asked.plan()

    def program(mpc: Engine) -> Steps[dict[str, Any]]:
        invariant(isinstance(mailbox, BulkMailbox), "the mailbox is one for many clients")
        batch = yield from bulk_intake(mpc, mailbox, 2)  # type: ignore[arg-type]
        return (yield from answer_steps(mpc, batch, asked, plan))

    return program


def answer_steps(
    mpc: Mpc, batch: BulkBatch, asked: RegionalRound, plan: Plan
) -> Steps[dict[str, Any]]:
    """Compute and open the figure of all regions whose input is valid."""
    kept = np.flatnonzero(batch.is_counted)
    counted = sorted(row for place in kept for row in asked.members[place])
    weights = np.zeros(len(plan.names), np.int64)
    weights[counted] = plan.weights[counted]
    if is_summed(plan):
        figure = yield from _summed(mpc, batch, asked, plan, weights)
    else:
        figure = yield from figure_from(mpc, _merged(batch, plan, weights), plan, weights)
    numbers = yield from mpc.open(figure.parts)
    return opened_from(figure, numbers, counted, batch.flags)


def _summed(
    mpc: Mpc, batch: BulkBatch, asked: RegionalRound, plan: Plan, weights: Integers
) -> Steps[Figure]:
    first = batch.number("first").sum()  # Regions that do not count add zero.
    if not needs_squares(plan):
        return Figure(first, 1, 1, 0)
    mass, shift = int(weights.sum()), squares_shift(plan, asked.counted)
    squares = batch.number("second").sum() * (1 << shift)
    square = yield from mpc.inner(first, first)
    return Figure(concatenate([first, squares * mass - square]), mass, mass**2, 0)


def _merged(batch: BulkBatch, plan: Plan, weights: Integers) -> Histogram:
    """Return the histogram of all regions together; nothing of it opens."""
    edges, mass = plan.bins, int(weights.sum())
    widths = np.diff(edges).tolist()
    centre = int(edges[len(edges) // 2])

    def column(name: str) -> list[Shares]:
        return [batch.number(f"{name} {k}").sum() for k in range(len(widths))]

    counts = concatenate(column("count")).claim(mass)
    parts = concatenate(column("part")).claim(mass * max(widths))
    moved = edges - centre
    sums = counts * [int(edge) for edge in moved[:-1]] + parts
    return Histogram(
        counts, sums.claim(mass * int(np.abs(moved).max())), parts, moved, centre, mass
    )


# -- a region's own committee --------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionRound:
    """All that is public about the round of one region's own committee.

    Attributes
    ----------
    round_
        Of the sources of all regions.
    rows
        Places of the region's own.
    """

    round_: Round
    rows: tuple[int, ...]

    def layout(self) -> Layout:
        """Return what each source of the region sends: its reading within its bounds."""
        plan, rows = self.round_.plan(), list(self.rows)
        return number_layout(plan.lower[rows], plan.upper[rows])


def region_mailbox_of(asked: RegionRound) -> Callable[..., Mailbox]:
    """Return what makes a party's mailbox for a region's round."""
    return _mailboxes(asked.layout())


def region_program_of(asked: RegionRound, mailbox: Mailbox) -> Program:
    """Return the program of a party of a region's committee: it opens the region's sums only."""
    plan = asked.round_.plan()
    listed = [int(weight) for weight in plan.weights[list(asked.rows)]]

    def program(mpc: Engine) -> Steps[dict[str, Any]]:
        invariant(isinstance(mailbox, BulkMailbox), "the mailbox is one for many clients")
        batch = yield from bulk_intake(mpc, mailbox, plan.question.count_min)  # type: ignore[arg-type]
        value = batch.number("value")
        sums = [value.weighted_sum(listed)]
        if needs_squares(plan):
            sums.append((yield from mpc.inner(value * listed, value)))
        numbers = yield from mpc.open(concatenate(sums))
        return {
            "numbers": [str(number) for number in numbers],
            "counted": np.flatnonzero(batch.is_counted).tolist(),
            "flags": batch.flags,
        }

    return program


def _mailboxes(layout: Layout) -> Callable[..., Mailbox]:
    def made(
        party: int,
        n: int,
        degree: int,
        session: bytes,
        clients: Mapping[str, Enrolled],
        box_key: Secret[bytes],
    ) -> Mailbox:
        return BulkMailbox(party, n, degree, session, clients, box_key, layout)

    return made
