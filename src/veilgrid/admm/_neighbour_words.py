"""What neighbours say in the default form: commands go down the tree, sums come back up.

Arrays travel as raw little-endian doubles and 64-bit integers. :class:`SweepCount` counts messages
and octets exactly as machines send them.
"""

import msgspec
import numpy as np

from veilgrid.admm._neighbour_message import packed


class Opened(msgspec.Struct, frozen=True, tag=True):
    """Up, once: first wishes of the subtree, and what its loads draw in sum of magnitudes."""

    wishes: bytes
    load: bytes


class Wishes(msgspec.Struct, frozen=True, tag=True):
    """Up: flow that the wishes of the sender's subtree add up to, (flow=2, interval)."""

    iteration: int
    wishes: bytes


class Level(msgspec.Struct, frozen=True, tag=True):
    """Down: the sender's squared voltage if wishes came true, (interval,)."""

    iteration: int
    voltage: bytes


class Exceeded(msgspec.Struct, frozen=True, tag=True):
    """Up: by how much wishes exceed the rows in play; zero for rows outside the subtree."""

    iteration: int
    wished: bytes


class Announced(msgspec.Struct, frozen=True, tag=True):
    """Down: price at the substation, strengths of all rows in play, and which rows are new."""

    iteration: int
    pass_: int
    price: bytes
    strengths: bytes
    numbers: bytes
    intervals: bytes
    inner: float


class Candidates(msgspec.Struct, frozen=True, tag=True):
    """Up: the most exceeded row of the subtree in each interval that is not in play."""

    iteration: int
    pass_: int
    number: bytes
    excess: bytes
    wished: bytes


class Go(msgspec.Struct, frozen=True, tag=True):
    """Down: no row is exceeded; the prices announced last stand."""

    iteration: int


class Answered(msgspec.Struct, frozen=True, tag=True):
    """Up: net demand of the subtree, what it lacks to its targets, and sums for the decision."""

    iteration: int
    demand: bytes
    lack: bytes
    steps: tuple[float, ...]
    strides: tuple[float, ...]
    cost: float
    paid: float
    apart: float
    price_moved: float
    target_moved: float


class Check(msgspec.Struct, frozen=True, tag=True):
    """Down: how far are you from your cheapest answer? With the sender's squared voltage."""

    iteration: int
    voltage: bytes


class Found(msgspec.Struct, frozen=True, tag=True):
    """Up: largest excess and voltage difference of the subtree, sum of its regrets."""

    iteration: int
    excess: float
    apart: float
    regret: float


class Move(msgspec.Struct, frozen=True, tag=True):
    """Down: make the next wishes like this; ``iteration`` is the one that begins."""

    iteration: int
    weights: tuple[float, ...]
    reach: float
    stretch: float
    is_retreat: bool
    factor: float


class Closed(msgspec.Struct, frozen=True, tag=True):
    """Down: the run is over."""

    iteration: int
    status: str


Reply = Opened | Wishes | Exceeded | Candidates | Answered | Found
Command = Level | Announced | Go | Check | Move | Closed


class SweepCount:
    """Counts what machines send; a pair of calls is one sweep down and up all edges."""

    def __init__(self, edge_count: int, interval_count: int, *, has_limits: bool) -> None:
        self._edges, self._count, self._has_limits = edge_count, interval_count, has_limits
        self._messages = self._octets = 0
        self._rows = self._pass = 0
        self.iteration = 1
        self._say(Opened(self._blank(2), self._blank(1)))

    def _blank(self, rows: int) -> bytes:
        return packed(np.zeros((rows, self._count)))

    def _say(self, *messages: Reply | Command) -> None:
        self._messages += self._edges * len(messages)
        self._octets += self._edges * sum(len(msgspec.msgpack.encode(m)) for m in messages)

    def level(self) -> None:
        """Send voltages of wishes down, excesses of the rows in play up."""
        self._pass = 0
        self._say(
            Level(self.iteration, self._blank(1)), Exceeded(self.iteration, bytes(8 * self._rows))
        )

    def announce(self, rows: int) -> None:
        """Send prices down and, with limits, candidates up; ``rows`` are now in play."""
        self._pass += 1
        if not self._has_limits:
            self._pass = 1
        new, self._rows = rows - self._rows, rows
        one = self._blank(1)
        self._say(
            Announced(
                self.iteration,
                self._pass,
                one,
                bytes(8 * rows),
                bytes(8 * new),
                bytes(8 * new),
                0.0,
            )
        )
        if self._has_limits:
            self._say(Candidates(self.iteration, self._pass, one, one, one))

    def answer(self, past: int) -> None:
        """Send answers up, with ``past`` inner products of each kind."""
        if self._has_limits:
            self._say(Go(self.iteration))
        two, row = self._blank(2), (0.0,) * past
        self._say(Answered(self.iteration, two, two, row, row, 0.0, 0.0, 0.0, 0.0, 0.0))

    def check(self) -> None:
        """Check the answer."""
        self._say(Check(self.iteration, self._blank(1)), Found(self.iteration, 0.0, 0.0, 0.0))

    def move(self, weights: int) -> None:
        """Begin the next iteration."""
        self.iteration += 1
        self._say(
            Move(self.iteration, (0.0,) * weights, 1.0, 0.0, False, 1.0),
            Wishes(self.iteration, self._blank(2)),
        )

    def total(self, status: str) -> tuple[int, int]:
        """Close the run; return messages and octets."""
        self._say(Closed(self.iteration, status))
        return self._messages, self._octets
