"""What neighbours send each other in the published form; arrays are raw little-endian doubles."""

import msgspec
import numpy as np

from veilgrid.grid.network import Floats


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


Message = Weights | Copies | Judged


def packed(values: Floats) -> bytes:
    """Array to bytes."""
    return np.ascontiguousarray(values, dtype="<f8").tobytes()


def unpacked(content: bytes, rows: int, count: int) -> Floats | None:
    """Bytes to a finite (rows, count) array; ``None`` if they are no such array."""
    if len(content) != 8 * rows * count:
        return None
    values = np.frombuffer(content, dtype="<f8").reshape(rows, count).astype(np.float64)
    return values if bool(np.isfinite(values).all()) else None


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
