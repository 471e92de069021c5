"""The ledger of a planned day: replicas and clients as machines in this process [masking 4.1].

The replicas are those of a deployment; what is missing is the network between them: each message is
handed over as soon as it is sent, no clock runs, and nobody fails. What is recorded, counted and
proved is the same, so an outsider can check the export.
"""

import hashlib
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

from veilgrid.errors import RunAborted, invariant
from veilgrid.ledger.application import Coordination
from veilgrid.ledger.client import Client
from veilgrid.ledger.export import Archive
from veilgrid.ledger.message import (
    OPERATION_COUNT_MAX,
    Answer,
    Configuration,
    Member,
    Notary,
    encode,
    keys_of,
)
from veilgrid.ledger.operation import (
    MONEY_MAX,
    REVEAL_LENGTH,
    Absent,
    Approve,
    Bid,
    CloseBids,
    CloseDay,
    OpenDay,
    Operation,
    ProposeIteration,
    ProposeSettlement,
    Refused,
    Result,
    RevealBeacon,
    SealBeacon,
    Settled,
    decode_result,
    seal_of,
    subject_of,
)
from veilgrid.ledger.replica import Replica
from veilgrid.ledger.service import CHECKPOINT_OPERATION
from veilgrid.ledger.settings import Settings
from veilgrid.ledger.state import Roles
from veilgrid.machine import Decide, Event, Machine, NodeId, Received, Send
from veilgrid.secret import Randomness, Secret
from veilgrid.signature import Signer

OPERATOR: Final = "operator"

ONE_AT_A_TIME: Final = Settings(pipeline=1)
"""What waits while a batch is under way goes into one batch: fewer of them to sign."""


def client_of(site: str) -> str:
    """Return the name under which a site's edge device writes."""
    return f"site:{site}"


def residual_of(value: float) -> int:
    """Return a residual in units of 1e-9 per unit, as records have it."""
    return int(min(max(value, 0.0) * 1e9, float(MONEY_MAX)))


class Chain:
    """A day on the ledger.

    Parameters
    ----------
    day
        Its name.
    bids
        Digest of each site's registered bid, by site name.
    rigid
        Sites without choice: they bid and are paid, and have no tasks.
    workers
        Keys by name; without any the day has no tasks.
    validators
        Names, 3f + 1.
    randomness
        Of all other keys and of the beacon.
    """

    def __init__(
        self,
        day: str,
        bids: Mapping[str, bytes],
        rigid: Sequence[str],
        workers: Mapping[str, Signer],
        validators: Sequence[str],
        randomness: Randomness,
    ) -> None:
        self.day, self.step = day, 1
        self._validators = tuple(validators)
        clients = [OPERATOR, *(client_of(site) for site in bids)]
        drawn = {n: Signer(Secret(randomness.octets(32))) for n in (*validators, *clients)}
        signers = {**drawn, **workers}

        def members(names: Sequence[str]) -> tuple[Member, ...]:
            return tuple(Member(name, signers[name].verify_key) for name in names)

        genesis = Configuration(0, members(validators), members([*clients, *workers]))
        notary, keys = Notary(genesis.digest()), keys_of(genesis.replicas)
        self._roles = Roles(OPERATOR, self._validators, tuple(workers))
        self._machines: dict[str, Machine] = {}
        self._writers: dict[str, Client] = {}
        for name in validators:
            application = Coordination(self._roles, notary, keys)
            self._machines[name] = Replica(
                NodeId(name), genesis, signers[name], application, settings=ONE_AT_A_TIME
            )
        for name in (*validators, *clients, *workers):
            self._writers[name] = Client(NodeId(name), genesis, signers[name])
        self._archive = Archive(genesis)
        self._answers: dict[str, list[tuple[bytes, ...]]] = {}
        self._open(bids, rigid, 1 if workers else 0, randomness)

    @property
    def quorum(self) -> int:
        """Votes that decide."""
        return self._roles.quorum

    @property
    def voters(self) -> tuple[str, ...]:
        """A quorum of validators: the others' votes would come too late to count."""
        return self._validators[: self.quorum]

    def _open(
        self, bids: Mapping[str, bytes], rigid: Sequence[str], redundancy: int, draw: Randomness
    ) -> None:
        sites = tuple(client_of(site) for site in bids)
        still = tuple(client_of(site) for site in rigid)
        day, values = self.day, {name: draw.octets(REVEAL_LENGTH) for name in self._validators}
        self.write({OPERATOR: [OpenDay(day, sites, redundancy, still)]})
        self.write({client_of(site): [Bid(day, digest)] for site, digest in bids.items()})
        self.write({n: [SealBeacon(day, seal_of(v, n, day))] for n, v in values.items()})
        self.write({OPERATOR: [CloseBids(day)]})
        self.write({n: [RevealBeacon(day, v)] for n, v in values.items()})

    def write(self, said: Mapping[str, Sequence[Operation]]) -> dict[str, list[Result]]:
        """Have operations of several writers ordered and executed; return results by writer.

        Raises
        ------
        RunAborted
            The ledger refused one.
        """
        found = self._ordered({n: [encode(one) for one in own] for n, own in said.items() if own})
        results = {name: [decode_result(one) for one in own] for name, own in found.items()}
        for name, own in results.items():
            for result in own:
                if isinstance(result, Refused):
                    raise RunAborted(f"the ledger refused what {name} wrote: {result.reason}")
        return results

    def _ordered(self, said: Mapping[str, Sequence[bytes]]) -> dict[str, list[bytes]]:
        """Hand messages over until nothing is left to say."""
        queue: deque[tuple[str, Event]] = deque()
        self._answers = {name: [] for name in said}
        for name, own in said.items():
            for first in range(0, len(own), OPERATION_COUNT_MAX):
                part = tuple(own[first : first + OPERATION_COUNT_MAX])
                self._carry_out(name, self._writers[name].submit(part), queue)
        while queue:
            to, event = queue.popleft()
            if to in self._machines:
                self._carry_out(to, self._machines[to].handle(event), queue)
            if to in self._writers:
                self._carry_out(to, self._writers[to].handle(event), queue)
        found = {name: [one for part in own for one in part] for name, own in self._answers.items()}
        is_complete = all(len(found[name]) == len(own) for name, own in said.items())
        invariant(is_complete, "every operation of a day without failures is answered")
        return found

    def _carry_out(
        self, name: str, effects: Sequence[Any], queue: deque[tuple[str, Event]]
    ) -> None:
        for effect in effects:
            match effect:
                case Send(to, message):
                    queue.append((str(to), Received(NodeId(name), message)))
                case Decide(Answer(_, results)):
                    self._answers[name].append(tuple(results))
                case Decide(outcome) if name == self._validators[0]:
                    self._archive.add(outcome)

    def exclude(self, site: str) -> None:
        """Record that a site is absent; the others go on."""
        self.write({name: [Absent(self.day, client_of(site))] for name in self.voters})

    def close_step(
        self, digest: bytes, primal: float, dual: float, *, is_last: bool, is_accepted: bool = True
    ) -> bool:
        """Record what a step came to; return whether validators accepted it."""
        proposal = ProposeIteration(
            self.day, self.step, digest, residual_of(primal), residual_of(dual), is_last
        )
        is_taken = self._decided(proposal, is_accepted=is_accepted)
        self.step += int(is_taken)
        return is_taken

    def _decided(
        self, proposal: ProposeIteration | ProposeSettlement, *, is_accepted: bool
    ) -> bool:
        self.write({OPERATOR: [proposal]})
        vote = Approve(self.day, subject_of(proposal), is_accepted)
        results = self.write({name: [vote] for name in self.voters})
        settled = [one for own in results.values() for one in own if isinstance(one, Settled)]
        invariant(len(settled) == 1, "a quorum settles a proposal once")
        return settled[0].is_accepted

    def settle(self, payments: Mapping[str, int]) -> None:
        """Record all payments, micro-units by site; the operator takes what is left."""
        named = [(client_of(site), amount) for site, amount in payments.items()]
        named.append((OPERATOR, -sum(payments.values())))
        self._decided(ProposeSettlement(self.day, tuple(named)), is_accepted=True)
        self.write({OPERATOR: [CloseDay(self.day)]})

    def export(self) -> bytes:
        """Return the certified records as a file that ``veilgrid verify`` checks."""
        self._ordered({OPERATOR: [CHECKPOINT_OPERATION]})
        exported = self._archive.export()
        invariant(exported is not None, "a checkpoint is certified when it was asked for")
        return exported or b""


def digest_of_records(parts: Sequence[bytes]) -> bytes:
    """Return one digest of several."""
    return hashlib.sha256(b"masked step 1 " + b"".join(parts)).digest()
