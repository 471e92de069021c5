"""What neighbouring sites send each other; arrays travel as raw little-endian doubles."""

import msgspec
import numpy as np

from veilgrid.grid.network import Floats


class Opening(msgspec.Struct, frozen=True, tag=True):
    """Up, once: net demand of the sender's subtree, each site answering the tariff alone."""

    demand: bytes


class Level(msgspec.Struct, frozen=True, tag=True):
    """Down, once: the sender's squared voltage that these demands cause."""

    voltage: bytes


class Sum(msgspec.Struct, frozen=True, tag=True):
    """Up, each iteration: what the sender's subtree pulls the averages towards.

    ``plan`` is the subtree's net demand as its sites would now have it.
    """

    iteration: int
    pull: bytes
    plan: bytes


class Average(msgspec.Struct, frozen=True, tag=True):
    """Down, each iteration: the averages of the edge between sender and receiver.

    ``average`` is the deviation from the opening, ``voltage`` the sender's squared voltage if all
    sites did as they now would.
    """

    iteration: int
    average: bytes
    voltage: bytes


class Overlap(msgspec.Struct, frozen=True, tag=True):
    """Up, each iteration: inner products with past residuals, and what the stop rule looks at.

    ``row`` is summed over the subtree; ``worst`` holds, over the subtree, the primal residual of
    flows and of voltages, the change of their averages, and the largest excess over a limit.
    """

    iteration: int
    row: tuple[float, ...]
    worst: tuple[float, float, float, float, float]


class Weights(msgspec.Struct, frozen=True, tag=True):
    """Down, each iteration: how to mix past iterates, or how the run ended.

    No weights = take the last step back.
    """

    iteration: int
    weights: tuple[float, ...]
    status: str = ""


class Copies(msgspec.Struct, frozen=True, tag=True):
    """Both ways, each iteration of the published form: the sender's copies of the shared edge."""

    iteration: int
    copies: bytes


class Judged(msgspec.Struct, frozen=True, tag=True):
    """Up, each iteration of the published form: what mixing and stop rule need of the subtree.

    ``row`` holds inner products with past residuals, ``apart`` the largest difference of two
    copies, ``moved`` the largest change of an average.
    """

    iteration: int
    row: tuple[float, ...]
    apart: float
    moved: float


Message = Opening | Level | Sum | Average | Overlap | Weights | Copies | Judged


def packed(values: Floats) -> bytes:
    """Array to bytes."""
    return np.ascontiguousarray(values, dtype="<f8").tobytes()


def unpacked(content: bytes, rows: int, count: int) -> Floats | None:
    """Bytes to a finite (rows, count) array; ``None`` if they are no such array."""
    if len(content) != 8 * rows * count:
        return None
    values = np.frombuffer(content, dtype="<f8").reshape(rows, count).astype(np.float64)
    return values if bool(np.isfinite(values).all()) else None


def traffic(
    edge_count: int, interval_count: int, iteration_count: int, memory: int
) -> tuple[int, int]:
    """Count messages and bytes of a run: messages of these sizes, encoded by msgspec."""
    blank = np.zeros((3, interval_count))
    once: tuple[Message, ...] = (Opening(packed(blank[:2])), Level(packed(blank[0])))
    still = (0.0, 0.0, 0.0, 0.0, 0.0)
    messages, size = edge_count * len(once), edge_count * _size(once)
    for iteration in range(1, iteration_count + 1):
        row = (0.0,) * min(iteration, memory)
        each: tuple[Message, ...] = (
            Sum(iteration, packed(blank), packed(blank[:2])),
            Average(iteration, packed(blank), packed(blank[0])),
            Overlap(iteration, row, still),
            Weights(iteration, row),
        )
        messages += edge_count * len(each)
        size += edge_count * _size(each)
    return messages, size


def edge_traffic(
    edge_count: int, interval_count: int, rows: list[tuple[int, int]], status: str
) -> tuple[int, int]:
    """Count messages and bytes of a run in the published form, as machines send them.

    ``rows`` holds, for each iteration, how many inner products go up and how many weights come
    down; the last iteration's weights are replaced by ``status``, empty = the run did not end.
    """
    blank = packed(np.zeros((3, interval_count)))
    messages = size = 0
    for iteration, (row, weights) in enumerate(rows, start=1):
        is_last = iteration == len(rows) and bool(status)
        each: tuple[Message, ...] = (
            Copies(iteration, blank),
            Copies(iteration, blank),
            Judged(iteration, (0.0,) * row, 0.0, 0.0),
            Weights(iteration, () if is_last else (0.0,) * weights, status if is_last else ""),
        )
        messages += edge_count * len(each)
        size += edge_count * _size(each)
    return messages, size


def _size(messages: tuple[Message, ...]) -> int:
    return sum(len(msgspec.msgpack.encode(message)) for message in messages)
