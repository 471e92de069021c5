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

    ``plan`` is the subtree's net demand as its sites would now have it; ``worst`` holds, over the
    subtree and of the iteration before, the primal residual of flows and of voltages, the change
    of the averages of flows and of voltages, and the largest excess over a limit.
    """

    iteration: int
    pull: bytes
    plan: bytes
    worst: tuple[float, float, float, float, float]


class Average(msgspec.Struct, frozen=True, tag=True):
    """Down, each iteration: the averages of the edge between sender and receiver.

    ``average`` is the deviation from the opening, ``voltage`` the sender's squared voltage if all
    sites did as they now would. A ``status`` ends the run with the iteration before; the arrays are
    empty then.
    """

    iteration: int
    average: bytes
    voltage: bytes
    status: str = ""


Message = Opening | Level | Sum | Average


def packed(values: Floats) -> bytes:
    """Array to bytes."""
    return np.ascontiguousarray(values, dtype="<f8").tobytes()


def unpacked(content: bytes, rows: int, count: int) -> Floats | None:
    """Bytes to a finite (rows, count) array; ``None`` if they are no such array."""
    if len(content) != 8 * rows * count:
        return None
    values = np.frombuffer(content, dtype="<f8").reshape(rows, count).astype(np.float64)
    return values if bool(np.isfinite(values).all()) else None


def traffic(edge_count: int, interval_count: int, iteration_count: int) -> tuple[int, int]:
    """Count messages and bytes of a run: real messages of these sizes, encoded by msgspec."""
    blank = np.zeros((3, interval_count))
    once: tuple[Message, ...] = (Opening(packed(blank[:2])), Level(packed(blank[0])))
    worst = (0.0, 0.0, 0.0, 0.0, 0.0)
    each: tuple[Message, ...] = (
        Sum(iteration_count, packed(blank), packed(blank[:2]), worst),
        Average(iteration_count, packed(blank), packed(blank[0])),
    )
    size_once = sum(len(msgspec.msgpack.encode(message)) for message in once)
    size_each = sum(len(msgspec.msgpack.encode(message)) for message in each)
    # The stop rule is known one pass up and down after the iteration that meets it.
    passes = iteration_count + 1
    return edge_count * 2 * (1 + passes), edge_count * (size_once + passes * size_each)
