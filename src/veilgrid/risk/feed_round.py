"""One interval of a published running total, computed by a committee [privacy 5].

The whole feed is paid for when it starts, once for each day that it runs; a round that is begun
again after a crash is paid for by itself, because somebody may have seen the first result.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from veilgrid.errors import invariant
from veilgrid.mpc import Engine, Enrolled, Mailbox, Mpc, Program, Shares, Steps, concatenate
from veilgrid.mpc.bulk import BulkBatch, BulkMailbox, bulk_intake
from veilgrid.mpc.layout import Integers, Layout, Number
from veilgrid.mpc.noise import SIGMA_MAX, gaussian_slack
from veilgrid.risk.accountant import Charge
from veilgrid.risk.privacy import Guarantee
from veilgrid.risk.privacy_feed import FACTOR_BITS, FeedPlan, column_norm, publish
from veilgrid.secret import Secret

PER_DAY: Final = 96


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """What is fixed when a feed starts.

    Attributes
    ----------
    plan
        Way, noise and steps.
    guarantee
        For all that one device sends in a day.
    per_day
        Intervals that a device's day has.
    sensitivity : steps
        Largest distance of anybody's bounds.
    scale
        Steps a unit of the readings.
    """

    plan: FeedPlan
    guarantee: Guarantee
    per_day: int
    sensitivity: int
    scale: float

    @property
    def quantum(self) -> float:
        """Return how many steps a coarse step of an opened number is."""
        return float(2.0**self.plan.shift / self.plan.factor / 2**FACTOR_BITS)

    def charge(self) -> Charge:
        """Return what the whole feed costs a day: the length of the change by one device."""
        plan, within = self.plan, min(self.per_day, self.plan.intervals)
        column = np.array(plan.column, np.float64)
        reach = plan.factor * column_norm(column, within) * self.sensitivity / 2.0**plan.shift
        if plan.shift:  # Rounding adds less than one to each number that changes.
            reach += math.sqrt(within if plan.way == "interval" else plan.intervals)
        return Charge("gaussian", plan.sigma, math.ceil(reach), 1, self._slack * plan.intervals)

    def charge_again(self, interval: int) -> Charge:
        """Return what publishing an interval, counted from 0, once more costs its day."""
        plan = self.plan
        column = np.array(plan.column[: interval + 1], np.int64)
        most = int(np.convolve(column, np.ones(self.per_day, np.int64))[: interval + 1].max())
        change = (plan.factor * most * self.sensitivity) >> plan.shift
        return Charge("gaussian", plan.sigma, change + (1 if plan.shift else 0), 1, self._slack)

    @property
    def _slack(self) -> float:
        return (1 + math.exp(self.guarantee.epsilon)) * gaussian_slack(SIGMA_MAX)

    def deviation(self, interval: int) -> float:
        """Return the standard deviation of the total up to an interval, in units of readings."""
        own = np.array(self.plan.column, np.float64) / 2**FACTOR_BITS
        rest = {"interval": np.ones(len(own)), "prefix": np.eye(1, len(own))[0]}
        spread = math.sqrt(float((rest.get(self.plan.way, own)[: interval + 1] ** 2).sum()))
        return self.plan.sigma * self.quantum * spread / self.scale

    def needs(self, interval: int) -> range:
        """Return the intervals whose readings the number of this one is made of."""
        return range(interval if self.plan.way == "interval" else 0, interval + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedRound:
    """All that is public about the round that publishes one interval.

    Attributes
    ----------
    interval : 0..intervals - 1
        Which one is published.
    places : (client,)
        Interval of each client's reading; one client is one source in one interval.
    lower, upper : (client,), steps
        Bounds, checked on shares.
    count_min
        Valid readings of the newest interval that are needed.
    """

    feed: Feed
    interval: int
    places: tuple[int, ...]
    lower: tuple[int, ...]
    upper: tuple[int, ...]
    count_min: int

    def layout(self) -> Layout:
        """Return what every client sends."""
        lower, upper = np.array(self.lower, np.int64), np.array(self.upper, np.int64)
        return Layout((Number("value", lower, upper),))

    def encode(self, steps: Integers) -> Integers:
        """Return inputs for readings in steps; out of bounds gives an invalid one."""
        return self.layout().encode({"value": steps})


def mailbox_of(asked: FeedRound) -> Callable[..., Mailbox]:
    """Return what makes a party's mailbox for this round."""
    layout = asked.layout()

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


def program_of(asked: FeedRound, mailbox: Mailbox) -> Program:
    """Return a party's program; it opens the next number of the feed and nothing else."""

    def program(mpc: Engine) -> Steps[dict[str, Any]]:
        invariant(isinstance(mailbox, BulkMailbox), "the mailbox is one for many clients")
        batch = yield from bulk_intake(mpc, mailbox, asked.count_min)  # type: ignore[arg-type]
        numbers = yield from released(mpc, asked, batch)
        return {
            "numbers": [str(number) for number in numbers],
            "counted": np.flatnonzero(batch.is_counted).tolist(),
            "flags": batch.flags,
        }

    return program


def released(mpc: Mpc, asked: FeedRound, batch: BulkBatch) -> Steps[list[int]]:
    """Open the number of the newest interval with its noise, in coarse steps."""
    places, value = np.array(asked.places, np.int64), batch.number("value")
    totals: list[Shares] = []
    for interval in range(asked.interval + 1):
        own = (places == interval).astype(np.int64)
        totals.append(value.weighted_sum(own) if own.any() else mpc.constant([0]))
    return (yield from publish(mpc, asked.feed.plan, concatenate(totals)))


def is_covered(asked: FeedRound) -> bool:
    """Return whether nobody's bounds are wider than the feed's noise was planned for."""
    widths = np.array(asked.upper, np.int64) - np.array(asked.lower, np.int64)
    return int(widths.max(initial=0)) <= asked.feed.sensitivity


def interval_values(totals: Sequence[float]) -> list[float]:
    """Return by how much each published total differs from the one before."""
    return [float(step) for step in np.diff(np.array([0.0, *totals]))]
