"""All machines of a deployment in one process, without sockets [node 7]."""

import heapq
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from veilgrid.errors import RunAborted
from veilgrid.machine import (
    START,
    Compute,
    Computed,
    Decide,
    Effect,
    Event,
    Machine,
    NodeId,
    Persist,
    Received,
    Send,
    SetTimer,
    TimerFired,
)
from veilgrid.node.wire import HEADER_LENGTH, Codec


class InProcess:
    """All machines, one queue, no weather; time moves only when nothing else is left."""

    def __init__(
        self,
        machines: Mapping[NodeId, Machine],
        codecs: Mapping[NodeId, Codec],
        counts: Mapping[NodeId, int],
    ) -> None:
        self._machines = machines
        self._codecs = codecs
        self._open = {node: counts.get(node, 1) for node in machines}
        self.outcomes: dict[NodeId, list[Any]] = {node: [] for node in machines}
        self.seconds = dict.fromkeys(machines, 0.0)
        self.sent = dict.fromkeys(machines, 0)
        self.received = dict.fromkeys(machines, 0)
        self.frames = dict.fromkeys(machines, 0)
        self._queue: deque[tuple[NodeId, Event]] = deque()
        self._timers: list[tuple[int, int, NodeId, str]] = []
        self._current: dict[tuple[NodeId, str], int] = {}
        self._number = 0
        self._now_ns = 0
        self._began = time.perf_counter()

    def run(self, step_max: int) -> None:
        """Step until every machine has decided or nothing is left to do."""
        for node in self._machines:
            self._queue.append((node, TimerFired(START)))
        for _ in range(step_max):
            if not self._queue and (not self._pending() or not self._fire()):
                break
            node, event = self._queue.popleft()
            for effect in self._machines[node].handle(event):
                self._carry_out(node, effect)
        else:
            raise RunAborted(f"no end after {step_max} steps")

    def _pending(self) -> bool:
        return any(left > 0 for left in self._open.values())

    def _fire(self) -> bool:
        while self._timers:
            due, number, node, name = heapq.heappop(self._timers)
            if self._current.get((node, name)) == number:
                del self._current[node, name]
                self._now_ns = due
                self._queue.append((node, TimerFired(name)))
                return True
        return False

    def _carry_out(self, node: NodeId, effect: Effect) -> None:
        match effect:
            case Send(to, message):
                if to in self._machines:
                    self._queue.append((to, Received(node, self._passed(node, to, message))))
            case SetTimer(name, delay_ns):
                self._number += 1
                self._current[node, name] = self._number
                heapq.heappush(self._timers, (self._now_ns + delay_ns, self._number, node, name))
            case Compute(job, kernel, arguments):
                self._queue.append((node, Computed(job, kernel(*arguments))))
            case Decide(outcome):
                self.outcomes[node].append(outcome)
                self._open[node] -= 1
                self.seconds[node] = time.perf_counter() - self._began
            case Persist():
                pass  # Nothing outlives this process; a crash is the simulator's subject.

    def _passed(self, node: NodeId, to: NodeId, message: Any) -> Any:
        codec = self._codecs.get(node)
        if codec is None:
            return message
        body = codec.encode(message)
        octets = len(body) + HEADER_LENGTH
        self.sent[node] += octets
        self.received[to] += octets
        self.frames[node] += 1
        return self._codecs[to].decode(body)
