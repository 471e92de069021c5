"""``veilgrid aggregate --feed``: a running total, published interval by interval [privacy 5].

The budget file is the memory: what the feed costs is durable before its first number is computed,
each number before it is told, and who asks again gets the same numbers.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import numpy as np

from veilgrid.cli._committee import Committee, Task, secure_round
from veilgrid.cli._private import REASONS, Privacy, Where
from veilgrid.cli._readings import Readings
from veilgrid.errors import Finding, InputError
from veilgrid.mpc.form import NOTHING
from veilgrid.node.budget import BudgetFile, open_budget
from veilgrid.risk.aggregate import Question
from veilgrid.risk.feed_round import (
    PER_DAY,
    Feed,
    FeedRound,
    interval_values,
    is_covered,
    mailbox_of,
    program_of,
)
from veilgrid.risk.privacy import (
    DEVICES_MIN,
    ERROR_WARNED,
    Guarantee,
    delta_default,
    predicted_error,
)
from veilgrid.risk.privacy_feed import plan_feed, running_totals

_STEPS_BITS: Final = 24
_STEPS_MAX: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What was asked of a feed.

    Attributes
    ----------
    privacy
        Promise and ledger; epsilon and delta are for all that a device sends in a day.
    intervals
        Length of the feed.
    per_day
        Intervals that a day has.
    """

    privacy: Privacy
    intervals: int
    per_day: int = PER_DAY

    @property
    def day(self) -> str:
        """Return the first day of the feed."""
        return self.privacy.day or datetime.now(UTC).date().isoformat()

    @property
    def head(self) -> str:
        """Return what tells this feed from others in the same ledger."""
        privacy = self.privacy
        told = ("feed", self.day, privacy.epsilon, privacy.delta, self.intervals, self.per_day)
        return json.dumps(told)

    def day_of(self, interval: int) -> str:
        """Return the day that an interval, counted from 0, belongs to."""
        later = interval // self.per_day
        return (date.fromisoformat(self.day) + timedelta(days=later)).isoformat()


def feed_of(options: Mapping[str, Any], privacy: Privacy | None) -> Asked | None:
    """Return what was asked of a feed; None if none was.

    Raises
    ------
    InputError
        Options that make no sense together, all at once.
    """
    count, per_day = options["feed"], options["per_day"]
    findings = []
    if count is None:
        if per_day is not None:
            findings.append(Finding("--per-day", "needs --feed", "add it, or leave this out"))
            raise InputError(findings)
        return None
    if privacy is None or privacy.budget is None:
        missing = "--epsilon" if privacy is None else "--budget"
        findings.append(Finding("--feed", f"needs {missing}", "the budget remembers the feed"))
    if options["function"] != "sum":
        problem = f"found {options['function']}, a feed publishes a running sum"
        findings.append(Finding("--function", problem, "use sum"))
    for name, usual in (("noise", "committee"), ("releases", 1), ("regions", None)):
        if options[name] not in (None, usual):
            findings.append(Finding(f"--{name}", "is not offered with --feed", "leave it out"))
    if options["rating"] is not None:
        findings.append(Finding("--rating", "is not compared with a running total"))
    if per_day is not None and per_day < 1:
        findings.append(Finding("--per-day", f"found {per_day}, expected 1 or more"))
    if privacy is not None and privacy.day is not None:
        try:
            date.fromisoformat(privacy.day)
        except ValueError:
            problem = f"found {privacy.day}, expected a date such as 2026-06-15"
            findings.append(Finding("--day", problem))
    if findings or privacy is None:
        raise InputError(findings)
    return Asked(privacy=privacy, intervals=count, per_day=per_day or PER_DAY)


def publish_feed(
    readings: Readings,
    question: Question,
    asked: Asked,
    where: Where,
    tell: Callable[[str], None] = lambda text: click.echo(text, err=True),
) -> dict[str, Any]:
    """Publish every interval of the readings that was not published yet; return all so far.

    Parameters
    ----------
    readings
        With their intervals, counted from 1.
    question
        Whose minimum of readings an interval needs.
    asked, where
        What was asked, and who computes.
    tell
        Called with the predicted error and warnings before anything is computed.

    Raises
    ------
    InputError
        The series has a gap, changed after it was published, or the budget does not allow it.
    RunAborted
        The parties ended without a result; what was published before stays.
    """
    series = _Series(readings)
    wanted = _planned(series, asked)
    privacy = asked.privacy
    path = privacy.budget or Path()
    usual = delta_default(series.devices)
    with open_budget(path, privacy.daily_epsilon, usual) as ledger:
        head = f"{asked.head} head 0".encode()
        known = ledger.budget.answer(ledger.keyed(head))
        feed = wanted if known is None else msgspec.json.decode(known, type=Feed)
        told = _before(feed, series, where)
        for text in told:
            tell(text)
        log = _Log(ledger, asked, feed)
        series.check(log, asked)
        for interval in range(series.last + 1):
            if log.known(interval) is None:
                log.publish(interval, series, where, question.count_min)
        numbers = [log.known(interval) or {} for interval in range(series.last + 1)]
        budget = _budget(ledger, asked, series.last)
    error = _relative(feed, series, series.last) / (series.last + 1)
    return _report(feed, asked, question, where, numbers, budget, (error, told[1:]))


class _Series:
    """Readings by interval, counted from 0."""

    def __init__(self, readings: Readings) -> None:
        self.readings = readings
        self.rows: dict[int, list[int]] = {}
        for row, interval in enumerate(readings.intervals):
            self.rows.setdefault(interval - 1, []).append(row)
        if not self.rows:
            problem = "--feed needs the column interval, counted from 1"
            raise InputError([Finding("readings", problem, "add it to the file")])
        self.last = max(self.rows)
        self.devices = max(len(rows) for rows in self.rows.values())

    def told(self, interval: int) -> str:
        """Return all that determines an interval's total."""
        listed, values = self.readings.sources, self.readings.values
        rows = [
            (listed[row].name, listed[row].lower, listed[row].upper, values[row])
            for row in self.rows[interval]
        ]
        return json.dumps(sorted(rows, key=lambda one: one[0]))

    def check(self, log: "_Log", asked: Asked) -> None:
        """Refuse gaps, intervals that changed after they were published, and too many."""
        findings = []
        if self.last >= asked.intervals:
            problem = f"found {self.last + 1}, the feed was planned for {asked.intervals}"
            findings.append(Finding("column interval", problem, "start a new feed"))
        for interval in range(self.last + 1):
            known = log.known(interval)
            if interval in self.rows:
                if known is not None and known["rows"] != log.digest(self.told(interval)):
                    problem = "its readings are not those that were published"
                    advice = "leave the interval out of the file; what was published stays"
                    findings.append(Finding(f"interval {interval + 1}", problem, advice))
            elif known is None or interval in log.feed.needs(self.last):
                findings.append(Finding(f"interval {interval + 1}", "has no readings"))
        if findings:
            raise InputError(findings)


class _Log:
    """The intervals of one feed in its ledger."""

    def __init__(self, ledger: BudgetFile, asked: Asked, feed: Feed) -> None:
        self._ledger, self._asked, self.feed = ledger, asked, feed

    def _question(self, interval: int) -> bytes:
        return f"{self._asked.head} interval {interval}".encode()

    def digest(self, text: str) -> str:
        """Return a keyed hash, from which readings cannot be guessed."""
        return self._ledger.keyed(text.encode()).hex()

    def known(self, interval: int) -> dict[str, Any] | None:
        """Return what was published for an interval, or None."""
        answer = self._ledger.budget.answer(self._ledger.keyed(self._question(interval)))
        return None if answer is None else json.loads(answer)

    def publish(self, interval: int, series: _Series, where: Where, count_min: int) -> None:
        """Pay, compute and remember; what was begun before costs once more."""
        ledger, asked, feed = self._ledger, self._asked, self.feed
        for day in range(interval // asked.per_day + 1):
            self._release(f"{asked.head} head {day}", day, feed)
        question = self._question(interval)
        begun = ledger.budget.attempts(ledger.keyed(question))
        again = [feed.charge_again(interval)]
        if begun and feed.plan.way != "interval":
            for day in range(interval // asked.per_day):  # The number is made of their days too.
                name = f"{asked.head} interval {interval} again {begun} for {day}"
                date_of = asked.day_of(day * asked.per_day)
                ledger.release(date_of, name.encode(), again, lambda: b"{}")

        def compute() -> bytes:
            found = _round(feed, interval, series, where, count_min)
            return json.dumps(found | {"rows": self.digest(series.told(interval))}).encode()

        ledger.release(asked.day_of(interval), question, [], compute, again)

    def _release(self, name: str, day: int, feed: Feed) -> None:
        date_of = self._asked.day_of(day * self._asked.per_day)
        self._ledger.release(
            date_of, name.encode(), [feed.charge()], lambda: msgspec.json.encode(feed)
        )


def _planned(series: _Series, asked: Asked) -> Feed:
    """Return the feed as it would start now."""
    listed, privacy = series.readings.sources, asked.privacy
    largest = max(max(abs(one.lower), abs(one.upper)) for one in listed)
    scale = float(_STEPS_MAX)
    while largest * scale >= 2**_STEPS_BITS:
        scale /= 10
    reach = max(round(one.upper * scale) - round(one.lower * scale) for one in listed)
    delta = delta_default(series.devices) if privacy.delta is None else privacy.delta
    guarantee = Guarantee(privacy.epsilon, delta)
    plan = plan_feed(guarantee, asked.intervals, max(reach, 1), block=asked.per_day)
    return Feed(
        plan=plan,
        guarantee=guarantee,
        per_day=asked.per_day,
        sensitivity=max(reach, 1),
        scale=scale,
    )


def _before(feed: Feed, series: _Series, where: Where) -> list[str]:
    """Return what a person must know before the next number is released."""
    last = feed.plan.intervals - 1
    scale = feed.scale
    others = ", ".join(f"{way} {error / scale:.4g}" for way, error in feed.plan.errors.items())
    a_slot = _relative(feed, series, 0)
    told = [
        f"noise: standard deviation {feed.deviation(0):.4g} after one interval, "
        f"{feed.deviation(last):.4g} after {last + 1}; predicted error of an interval "
        f"{a_slot:.2%} of a fleet in the middle of its bounds; way {feed.plan.way} (mean errors: "
        f"{others})"
    ]
    if series.devices < DEVICES_MIN:
        told.append(
            f"warning: only {series.devices} devices; a public feed needs {DEVICES_MIN} or more"
        )
    if a_slot > ERROR_WARNED:
        told.append(f"warning: the predicted error of {a_slot:.1%} is above {ERROR_WARNED:.0%}")
    if where.seed is not None:
        told.append("warning: a seed replays the noise; this feed is not private")
    return told


def _relative(feed: Feed, series: _Series, interval: int) -> float:
    """Return noise relative to one interval of a fleet in the middle of its bounds."""
    rows = series.rows[series.last]
    sources = [series.readings.sources[row] for row in rows]
    ranges = [one.upper - one.lower for one in sources]
    return predicted_error(feed.deviation(interval), ranges) if sum(ranges) else 0.0


def _round(
    feed: Feed, interval: int, series: _Series, where: Where, count_min: int
) -> dict[str, Any]:
    """Let the committee publish one interval; each source sends one message an interval."""
    listed, values = series.readings.sources, series.readings.values
    rows = [(at, row) for at in feed.needs(interval) for row in series.rows[at]]
    asked = FeedRound(
        feed=feed,
        interval=interval,
        places=tuple(at for at, _ in rows),
        lower=tuple(round(listed[row].lower * feed.scale) for _, row in rows),
        upper=tuple(round(listed[row].upper * feed.scale) for _, row in rows),
        count_min=count_min,
    )
    if not is_covered(asked):
        problem = "has bounds further apart than the noise of the feed was planned for"
        raise InputError([Finding(f"interval {interval + 1}", problem, "start a new feed")])
    given = np.array([values[row] or 0.0 for _, row in rows], np.float64)
    steps = np.clip(np.rint(given * feed.scale), -(2.0**52), 2.0**52).astype(np.int64)
    names = [f"{at + 1}/{listed[row].name}" for at, row in rows]
    inputs = {
        name: None if values[row] is None else line.tolist()
        for name, (_, row), line in zip(names, rows, asked.encode(steps), strict=True)
    }
    committee = Committee.fresh(where.parties, where.degree, b"feed", where.seed)
    done = secure_round(
        committee,
        dict.fromkeys(names, NOTHING),
        inputs,
        Task(program_of, asked, mailbox_of),
        processes=where.processes,
    )
    own, flags = f"{interval + 1}/", done.result["flags"]
    return {
        "opened": int(done.result["numbers"][0]),
        "accepted": sum(rows[place][0] == interval for place in done.result["counted"]),
        "rejected": [
            {"source": name.removeprefix(own), "reason": REASONS[flags[name]]}
            for name in names
            if name in flags and name.startswith(own)
        ],
        "seconds": done.seconds,
        "bytes": done.octets,
        "mode": done.mode,
        "excluded": done.excluded,
    }


def _budget(ledger: BudgetFile, asked: Asked, last: int) -> dict[str, Any]:
    day, terms = asked.day_of(last), ledger.budget.terms
    return {
        "file": str(asked.privacy.budget),
        "day": day,
        "allowed_epsilon": terms.epsilon,
        "allowed_delta": terms.delta,
        "spent_epsilon": ledger.budget.loss(day).epsilon(terms.delta),
        "course": ledger.budget.course(day),
        "releases": ledger.budget.count(day),
        "repeated": False,
    }


def _report(
    feed: Feed,
    asked: Asked,
    question: Question,
    where: Where,
    numbers: Sequence[Mapping[str, Any]],
    budget: Mapping[str, Any],
    said: tuple[float, Sequence[str]],
) -> dict[str, Any]:
    """Return the JSON object: the newest total, and all that were published."""
    from scipy import special

    opened = np.array([one["opened"] for one in numbers], np.int64)
    totals = (running_totals(feed.plan, opened) / feed.scale).tolist()
    errors = [feed.deviation(interval) for interval in range(len(numbers))]
    half = float(special.ndtri((1 + question.confidence) / 2)) * errors[-1]
    interval = [totals[-1] - half, totals[-1] + half]
    newest = numbers[-1]
    each = [
        {
            "interval": place + 1,
            "total": total,
            "noise_sd": error,
            "value": value,
            "accepted": one["accepted"],
        }
        for place, (total, error, value, one) in enumerate(
            zip(totals, errors, interval_values(totals), numbers, strict=True)
        )
    ]
    return {
        "function": "sum",
        "value": totals[-1],
        "risk_adjusted": interval[1 if question.side == "upper" else 0],
        "confidence": question.confidence,
        "side": question.side,
        "confidence_interval": interval,
        "accepted": newest["accepted"],
        "rejected": newest["rejected"],
        "method": f"running total, noise by {feed.plan.way}",
        "influence": 1 / max(newest["accepted"], 1),
        "privacy": {
            "epsilon": feed.guarantee.epsilon,
            "delta": feed.guarantee.delta,
            "noise_sd": errors[-1],
            "noise_unit": "as the value",
            "predicted_error": said[0],
            "noise": "committee",
            "releases": asked.intervals,
            "mechanism": "discrete gaussian",
            "sensitivity": feed.sensitivity / feed.scale,
            "warnings": [one.removeprefix("warning: ") for one in said[1]],
            "silent_parties": [],
            "budget": dict(budget),
        },
        "feed": {
            "intervals": asked.intervals,
            "per_day": asked.per_day,
            "first_day": asked.day,
            "way": feed.plan.way,
            "errors": {way: error / feed.scale for way, error in feed.plan.errors.items()},
            "each": each,
        },
        "parties": where.parties,
        "degree": where.degree,
        "seconds": newest["seconds"],
        "bytes": newest["bytes"],
        "mode": newest["mode"],
        "excluded": newest["excluded"],
    }
