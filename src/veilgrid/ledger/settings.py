"""How a replica paces itself [ledger 3.5, 4.1, 5.1]."""

from dataclasses import dataclass
from typing import Final

MILLISECOND_NS: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a replica paces itself; all replicas of a ledger must use the same first two.

    Attributes
    ----------
    interval
        Sequences between checkpoints.
    window_length
        Sequences between the watermarks.
    pipeline
        Batches that a primary has under way at a time.
    view_timeout_ns
        A request that waits longer starts a view change; doubles with each.
    status_ns
        A replica tells its peers so often where it stands.
    """

    interval: int = 64
    window_length: int = 128
    pipeline: int = 4
    view_timeout_ns: int = 1000 * MILLISECOND_NS
    status_ns: int = 200 * MILLISECOND_NS
