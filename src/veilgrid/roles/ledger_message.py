"""What the participants of a masked day on the ledger tell each other beside it [day 3].

The ledger orders digests; data travel here and are believed only by digest, by signature, or, of
the operator, as far as validators and sites can check them.
"""

from typing import Final

import msgspec
import numpy as np

from veilgrid.grid.network import Floats
from veilgrid.ledger.journalled import RECORDS as LEDGER_RECORDS
from veilgrid.ledger.journalled import Answered, Asked
from veilgrid.ledger.message import MESSAGES as LEDGER_MESSAGES
from veilgrid.ledger.message import digest_of, encode
from veilgrid.roles.masked_task import Claim

NEAR: Final = "near"
CHEAPEST: Final = "cheapest"
VOID: Final = "void"
"""Kind of a step whose answers are not used, because a site was excluded meanwhile."""


class Bulletin(msgspec.Struct, frozen=True, tag=True):
    """Executed records from a position on, as one validator has them."""

    first: int
    records: tuple[bytes, ...]


class FetchRecords(msgspec.Struct, frozen=True, tag=True):
    """A follower asks for records from this position on."""

    first: int


class Book(msgspec.Struct, frozen=True, tag=True):
    """A site's bid by digests; its own digest is what is bid on the ledger.

    Attributes
    ----------
    near, cheapest
        Digests of H', G', h' with and without penalty; empty for a site without choice.
    linear, rows
        Digests of the registered c' and of the recovery rows.
    """

    site: str
    near: bytes = b""
    cheapest: bytes = b""
    linear: bytes = b""
    rows: bytes = b""

    @property
    def digest(self) -> bytes:
        """What is bid."""
        return digest_of("bid", encode(self))


class Declared(msgspec.Struct, frozen=True, tag=True):
    """What the operator needs of a site: its demand without choice, and its recovery rows.

    Attributes
    ----------
    demand_p, demand_q : (interval,) doubles
        Of a site without choice; of others what they do uncontrolled.
    rows, offset : (coupling, masked) and (coupling,) doubles
    near, cheapest : (masked,) doubles
        c' of the devices alone, under both quadratic costs.
    """

    book: Book
    demand_p: bytes
    demand_q: bytes
    rows: bytes = b""
    offset: bytes = b""
    near: bytes = b""
    cheapest: bytes = b""


class FetchDeclared(msgspec.Struct, frozen=True, tag=True):
    """The operator misses what a site declares."""

    site: str


class FetchBook(msgspec.Struct, frozen=True, tag=True):
    """A validator misses the book of a site."""

    site: str


class Offered(msgspec.Struct, frozen=True, tag=True):
    """Prices and targets of one site, (interval,) doubles, and the c' that follows from them."""

    step: int
    kind: str
    site: str
    price_p: bytes
    price_q: bytes
    target_p: bytes
    target_q: bytes
    linear: bytes


class Tasked(msgspec.Struct, frozen=True, tag=True):
    """The c' of one task for workers and validators; ``base`` is the digest of the rest."""

    step: int
    kind: str
    site: str
    base: bytes
    linear: bytes


class FetchTask(msgspec.Struct, frozen=True, tag=True):
    """Somebody misses the c' of a task."""

    step: int
    site: str


class FetchProblem(msgspec.Struct, frozen=True, tag=True):
    """Somebody misses the H', G', h' with this digest."""

    site: str
    digest: bytes


class ProblemData(msgspec.Struct, frozen=True, tag=True):
    """H', G', h' as doubles; believed by their digest."""

    digest: bytes
    rows: int
    width: int
    octets: bytes


class Solved(msgspec.Struct, frozen=True, tag=True):
    """A worker's signed claim with the solution that it names."""

    site: str
    step: int
    claim: Claim
    variables: bytes
    multipliers: bytes


class FetchSolved(msgspec.Struct, frozen=True, tag=True):
    """Somebody misses the solution of a task."""

    step: int
    site: str


class Report(msgspec.Struct, frozen=True, tag=True):
    """What a step came to; its digest is what validators approve.

    Attributes
    ----------
    demand_p, demand_q, target_p, target_q : (member, interval) doubles
    price_p, price_q, total_p, total_q : (bus, interval) doubles
        Of the last step: prices and net demands of all buses.
    multiplier : (interval,), strengths : (row, interval) doubles, rows
        Of the last step: the energy price, and the strengths of the rows named.
    """

    step: int
    kind: str
    members: tuple[str, ...]
    demand_p: bytes = b""
    demand_q: bytes = b""
    target_p: bytes = b""
    target_q: bytes = b""
    price_p: bytes = b""
    price_q: bytes = b""
    total_p: bytes = b""
    total_q: bytes = b""
    rent: float = 0.0
    is_last: bool = False

    @property
    def digest(self) -> bytes:
        """What the ledger holds of it."""
        return digest_of("report", encode(self))


class FetchReport(msgspec.Struct, frozen=True, tag=True):
    """A validator misses the report of a step."""

    step: int


class Costs(msgspec.Struct, frozen=True, tag=True):
    """What a site's devices cost in the plan, and the site alone, currency."""

    site: str
    own: float
    alone: float


class FetchCosts(msgspec.Struct, frozen=True, tag=True):
    """The operator misses the costs of a site."""

    site: str


class Challenge(msgspec.Struct, frozen=True, tag=True):
    """A validator asks for evidence of attestation; the nonce is its own."""

    who: str
    nonce: bytes


class Shown(msgspec.Struct, frozen=True, tag=True):
    """Evidence of a process for ``who``, bound to its key and to the validator's nonce."""

    who: str
    nonce: bytes
    evidence: bytes


BESIDE = (
    Bulletin
    | FetchRecords
    | Book
    | Declared
    | FetchDeclared
    | FetchBook
    | Offered
    | Tasked
    | FetchTask
    | FetchProblem
    | ProblemData
    | Solved
    | FetchSolved
    | Report
    | FetchReport
    | Costs
    | FetchCosts
    | Challenge
    | Shown
)
MESSAGES = LEDGER_MESSAGES | BESIDE
"""The union that crosses the wire of a day."""


# -- records --------------------------------------------------------------------------------------


class Seated(msgspec.Struct, frozen=True, tag=True):
    """A record of one of the ledger clients that a process holds."""

    client: str
    record: Asked | Answered


class Keyed(msgspec.Struct, frozen=True, tag=True):
    """The seed from which a site's mask follows; journals are encrypted."""

    site: str
    seed: bytes


class Known(msgspec.Struct, frozen=True, tag=True):
    """The operator has what a site declares."""

    declared: Declared


class Begun(msgspec.Struct, frozen=True, tag=True):
    """The operator began to coordinate without these sites."""

    excluded: tuple[str, ...]


class Taken(msgspec.Struct, frozen=True, tag=True):
    """The operator has the answers of a step.

    Attributes
    ----------
    variables : (masked,) doubles
        The accepted masked solutions near targets, by site.
    regret
        Of the cheapest answers: what they would save, currency.
    excluded
        Sites excluded during the step: the answers are not used.
    """

    step: int
    kind: str
    variables: dict[str, bytes] = {}
    regret: float = 0.0
    excluded: tuple[str, ...] = ()


RECORDS = LEDGER_RECORDS | Seated | Keyed | Known | Begun | Taken | Solved
"""The union that journals of a day hold."""


# -- outcomes -------------------------------------------------------------------------------------


class StepEnded(msgspec.Struct, frozen=True, tag=True):
    """A step was approved: what the operator says of it, for a dashboard."""

    step: int
    kind: str
    primal: float
    dual: float


class DayResult(msgspec.Struct, frozen=True, tag=True):
    """How the operator's day ended.

    Attributes
    ----------
    status
        ``converged``, ``iteration_limit`` or ``refused``.
    cost
        Currency; None if a site did not say what its devices cost.
    steps, iterations
        On the ledger, and of the coordination.
    payments
        By bus, micro-units.
    demand_p, demand_q : (bus, interval) doubles
    """

    status: str
    cost: float | None
    steps: int
    iterations: int
    excluded: tuple[str, ...]
    payments: tuple[tuple[str, int], ...]
    costs: tuple[Costs, ...]
    demand_p: bytes
    demand_q: bytes
    is_ac_passed: bool
    vm_min_pu: float
    vm_max_pu: float
    loading_max: float | None
    dropped_workers: tuple[str, ...] = ()


class Closed(msgspec.Struct, frozen=True, tag=True):
    """A participant has seen the day closed."""

    iteration: int
    settlement: bytes


def octets_of(values: Floats) -> bytes:
    """Write an array as little-endian doubles."""
    return np.ascontiguousarray(values, dtype="<f8").tobytes()


def floats_of(octets: bytes, *shape: int) -> Floats | None:
    """Read an array of this shape, None if it is none; -1 stands for one unknown length."""
    if len(octets) % 8:
        return None
    flat = np.frombuffer(octets, dtype="<f8")
    known = int(np.prod([length for length in shape if length >= 0]))
    if -1 in shape:
        if known == 0 or len(flat) % known:
            return None
    elif len(flat) != known:
        return None
    if not bool(np.isfinite(flat).all()):
        return None
    return flat.reshape(shape).copy()
