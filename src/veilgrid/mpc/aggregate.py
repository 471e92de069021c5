"""One aggregate over clients' numbers: the first user of the engine [mpc 7.7]."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from veilgrid.errors import Finding, InputError
from veilgrid.machine import START, Decide, Effect, Event, NodeId, Send, TimerFired
from veilgrid.mpc._round import Steps
from veilgrid.mpc._shares import concatenate
from veilgrid.mpc.client import Mailbox
from veilgrid.mpc.engine import Engine
from veilgrid.mpc.intake import Batch, intake
from veilgrid.mpc.message import Submission
from veilgrid.mpc.party import Program
from veilgrid.mpc.statistics import quantiles, spread, total

FUNCTIONS = ("sum", "mean", "variance", "median", "quantile")
_NORMAL = 1.959963984540054  # two-sided 95 per cent


@dataclass(frozen=True, slots=True)
class Question:
    """What is computed.

    Attributes
    ----------
    function
        One of :data:`FUNCTIONS`.
    level : 0..1
        Of the quantile.
    count_min
        Valid inputs needed before anything opens.
    lower
        Least value any input may have, in steps.
    """

    function: str
    level: float = 0.5
    count_min: int = 2
    lower: int = 0

    def __post_init__(self) -> None:
        """Refuse what is not offered."""
        findings = []
        if self.function not in FUNCTIONS:
            offered = ", ".join(FUNCTIONS)
            problem = f"{self.function} is not offered yet; offered are {offered}"
            findings.append(Finding("--function", problem))
        if not 0 <= self.level <= 1:
            findings.append(Finding("--level", f"found {self.level}, expected 0..1"))
        if findings:
            raise InputError(findings)


def program_of(question: Question, mailbox: Mailbox) -> Program:
    """Return the computation of one party: take inputs, check them, answer.

    Its result maps ``numbers`` to the opened integers (as text: they may be large), ``clients``
    to who counted and ``flags`` to why others did not.
    """

    def program(mpc: Engine) -> Steps[dict[str, object]]:
        batch = yield from intake(mpc, mailbox, question.count_min)
        numbers = yield from _answer(mpc, question, batch)
        return {
            "numbers": [str(value) for value in numbers],
            "clients": batch.clients,
            "flags": batch.flags,
            "replaced": list(batch.replaced),
        }

    return program


def _answer(mpc: Engine, question: Question, batch: Batch) -> Steps[list[int]]:
    values = concatenate(batch.values.values())
    match question.function:
        case "sum":
            return (yield from total(mpc, values))
        case "mean" | "variance":
            sums = yield from total(mpc, values)
            return [*sums, *(yield from spread(mpc, values))]
        case _:
            levels = interval_levels(question, len(batch.clients))
            return (yield from quantiles(mpc, values, levels, question.lower))


def interval_levels(question: Question, count: int) -> list[float]:
    """Return the level asked for and those of a 95 per cent confidence interval by ranks."""
    level = 0.5 if question.function == "median" else question.level
    half = _NORMAL * math.sqrt(level * (1 - level) / count)
    return [level, max(level - half, 0.0), min(level + half, 1.0)]


def answer_of(
    question: Question, numbers: Sequence[int], count: int, scale: int
) -> tuple[float, list[float] | None]:
    """Return the value and its 95 per cent confidence interval from the opened integers."""
    match question.function:
        case "sum":
            return numbers[0] / scale, None
        case "mean" | "variance":
            mean = numbers[0] / scale / count
            variance = numbers[1] / scale**2 / (count * max(count - 1, 1))
            if question.function == "variance":
                return variance, None
            half = _NORMAL * math.sqrt(variance / count)
            return mean, [mean - half, mean + half]
        case _:
            value, low, high = (number / scale for number in numbers)
            return value, [low, high]


class Sender:
    """A client: sends its one message to every party and is done."""

    def __init__(self, parties: Sequence[NodeId], submission: Submission | None) -> None:
        self._parties, self._submission = tuple(parties), submission

    def handle(self, event: Event) -> list[Effect]:
        """Send at the start."""
        match event:
            case TimerFired(name) if name == START and self._submission is not None:
                sent: list[Effect] = [Send(party, self._submission) for party in self._parties]
                return [*sent, Decide("sent")]
            case TimerFired(name) if name == START:
                return [Decide("nothing to send")]
            case _:
                return []
