"""What replicas and clients write to their journals, and before what [ledger 3.2]."""

import msgspec

from veilgrid.ledger.message import (
    Batch,
    Certificate,
    Checkpoint,
    Confirmation,
    Lineage,
    NewView,
    Prepared,
    PrePrepare,
    Request,
    ViewChange,
)


class Accepted(msgspec.Struct, frozen=True, tag=True):
    """Durable before the replica proposes or prepares this."""

    proposal: PrePrepare


class Locked(msgspec.Struct, frozen=True, tag=True):
    """Durable before the replica commits."""

    prepared: Prepared


class Committed(msgspec.Struct, frozen=True, tag=True):
    """Durable before the replica tells its own process that a sequence is confirmed.

    The batch is left out where an earlier record holds it.
    """

    proof: Confirmation
    batch: Batch | None


class Vouched(msgspec.Struct, frozen=True, tag=True):
    """Durable before the replica signs a checkpoint."""

    checkpoint: Checkpoint


class Left(msgspec.Struct, frozen=True, tag=True):
    """Durable before the replica sends a view change."""

    view_change: ViewChange


class Entered(msgspec.Struct, frozen=True, tag=True):
    """Durable before the replica votes in a new view."""

    new_view: NewView


class Stable(msgspec.Struct, frozen=True, tag=True):
    """A certificate of a checkpoint was complete."""

    certificate: Certificate


class Installed(msgspec.Struct, frozen=True, tag=True):
    """A snapshot was fetched, checked and taken over."""

    lineage: Lineage
    snapshot: bytes


class Asked(msgspec.Struct, frozen=True, tag=True):
    """Durable before a client sends a request."""

    request: Request


class Answered(msgspec.Struct, frozen=True, tag=True):
    """A client has f + 1 equal replies."""

    number: int
    results: tuple[bytes, ...]


RECORDS = (
    Accepted | Locked | Committed | Vouched | Left | Entered | Stable | Installed | Asked | Answered
)
"""The union that a journal holds."""
