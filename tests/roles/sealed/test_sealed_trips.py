"""How many messages of a sealed day wait for one another: what the model of latency counts."""

import heapq
from itertools import count
from typing import Any

import pytest

from roles.sealed.sealed_days import cast_for, small
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits
from veilgrid.machine import START, Compute, Computed, Decide, Received, Send, TimerFired
from veilgrid.roles.sealed.keys import PAYER_NODE, SITES
from veilgrid.roles.sealed.message import DayEnded, Stopped

DAYS = {
    "converged": small(2).day(),
    "infeasible": small(4, rating=0.05, low=0.99).day(),
}


def journey(day: Day, party_count: int) -> tuple[int, DayEnded]:
    """Run a day on which computing takes no time and every message one unit.

    Returns
    -------
    When the sites had their result, and the last word of the party that was last to say one.
    """
    cast = cast_for(day, Limits.of(day.network), party_count=party_count)
    order, words, ended = count(), [], {}
    queue: list[tuple[int, int, Any, Any]] = [
        (0, next(order), name, TimerFired(START)) for name in cast.machines
    ]
    with cast.pool:
        while queue:
            now, _, name, event = heapq.heappop(queue)
            for effect in cast.machines[name].handle(event):
                match effect:
                    case Send(to, message):
                        arrival = (now + 1, next(order), to, Received(name, message))
                        heapq.heappush(queue, arrival)
                    case Compute(job, kernel, arguments):
                        done = Computed(job, kernel(*arguments))
                        heapq.heappush(queue, (now, next(order), name, done))
                    case Decide(DayEnded() as word):
                        words.append(word)
                    case Decide(outcome):
                        assert not isinstance(outcome, Stopped), outcome
                        ended[name] = now
    assert len(words) == party_count
    assert ended.keys() == {SITES, PAYER_NODE}
    assert ended[PAYER_NODE] == ended[SITES], "nobody waits for the payer"
    return ended[SITES], words[-1]


@pytest.mark.parametrize(("status", "party_count"), [("converged", 5), ("infeasible", 3)])
def test_a_party_counts_every_message_that_waits_for_another(status: str, party_count: int) -> None:
    """Else the model says a wrong time for a day over a distance."""
    at, word = journey(DAYS[status], party_count)
    assert word.public["status"] == status
    assert word.trip_count == at
    assert word.round_count < at
