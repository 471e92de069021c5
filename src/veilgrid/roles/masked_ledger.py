"""Schemes ``ledger`` and ``neighbour-ledger``: everything in plain text, recorded and verified.

``ledger``: bids are recorded; a worker solves the whole problem and signs its plan; each of
``2f + 1`` validators computes the certificate of the plan anew from the recorded bids, and a plan
that they refuse goes to the next worker. ``neighbour-ledger``: neighbours plan as without a ledger,
and every iterate is recorded [masking 6].

Validators recompute one after the other in this process, each by itself. Where asked, bids by
digest, plans or iterates, and votes go on a ledger [masking 4.1]; ``messages`` and ``bytes`` count
what a deployment would send.
"""

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec
import numpy as np

from veilgrid.admm._neighbour_sweep import Agreement, NeighbourSettings, Steps, plan_sweep
from veilgrid.admm.certify import certify
from veilgrid.admm.neighbour import NeighbourState, plan_neighbour
from veilgrid.admm.outcome import Coordination, Progress, ProgressSink, RunStatus
from veilgrid.admm.reference import central, least_violation
from veilgrid.admm.site_step import SiteAnswer, SiteSteps
from veilgrid.errors import RunAborted
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits
from veilgrid.grid.network import Floats
from veilgrid.grid.site import Site
from veilgrid.qp.mask import QUANTUM
from veilgrid.roles.masked_chain import Chain, digest_of_records
from veilgrid.roles.masked_task import Council, Verdict
from veilgrid.roles.masked_traffic import Traffic
from veilgrid.secret import Randomness, Secret
from veilgrid.signature import Signer, verify

PLAN_DOMAIN: Final = "masked/1/plan"


class SignedPlan(msgspec.Struct, frozen=True, tag=True):
    """A worker's plan of the whole day.

    Attributes
    ----------
    bids
        Digest of all recorded bids.
    setpoints
        Whole multiples of 1e-9, int64, one array a site.
    price_p, price_q
        (bus, interval) doubles.
    """

    bids: bytes
    setpoints: tuple[bytes, ...]
    price_p: bytes
    price_q: bytes
    worker: str
    signature: bytes = b""

    @property
    def signed(self) -> bytes:
        """The octets under the signature."""
        return msgspec.msgpack.encode(msgspec.structs.replace(self, signature=b""))


def bid_octets(site: Site) -> bytes:
    """Write a site's whole bid as it is recorded in plain text."""
    rows = site.matrix.tocsr()
    parts = (
        site.quadratic,
        site.linear,
        site.lower,
        site.upper,
        rows.data,
        rows.indices,
        rows.indptr,
        site.row_lower,
        site.row_upper,
        site.inject_p.tocsr().data,
        site.inject_q.tocsr().data,
        site.load_p,
        site.load_q,
    )
    body = b"".join(np.ascontiguousarray(part, dtype="<f8").tobytes() for part in parts)
    return str(site.name).encode() + b"\x00" + body


def bids_digest(day: Day) -> bytes:
    """Return the digest of all recorded bids."""
    found = hashlib.sha256(b"plain bids 1")
    for site in day.sites:
        found.update(hashlib.sha256(bid_octets(site)).digest())
    return found.digest()


def signed_plan(day: Day, outcome: Coordination, worker: str, signer: Signer) -> SignedPlan:
    """Quantise and sign a plan."""
    plan = SignedPlan(
        bids=bids_digest(day),
        setpoints=tuple(np.rint(x / QUANTUM).astype("<i8").tobytes() for x in outcome.setpoints),
        price_p=np.ascontiguousarray(outcome.price_p, dtype="<f8").tobytes(),
        price_q=np.ascontiguousarray(outcome.price_q, dtype="<f8").tobytes(),
        worker=worker,
    )
    return msgspec.structs.replace(plan, signature=signer.sign(PLAN_DOMAIN, plan.signed))


def opened_plan(day: Day, plan: SignedPlan, outcome: Coordination) -> Coordination:
    """Read set-points and prices back; what was hashed is what is done."""
    shape = (len(day.sites), day.interval_count)
    return replace(
        outcome,
        setpoints=[
            np.clip(np.frombuffer(part, dtype="<i8") * QUANTUM, site.lower, site.upper)
            for site, part in zip(day.sites, plan.setpoints, strict=True)
        ],
        price_p=np.frombuffer(plan.price_p, dtype="<f8").reshape(shape).copy(),
        price_q=np.frombuffer(plan.price_q, dtype="<f8").reshape(shape).copy(),
    )


def plan_refusal(
    day: Day, limits: Limits, plan: SignedPlan, assigned: str, verify_key: bytes
) -> str:
    """Judge a plan from the recorded bids alone; empty = accepted.

    Parameters
    ----------
    day, limits
        The recorded bids and the public network.
    plan
        What arrived.
    assigned, verify_key
        Who was to solve, and its key.
    """
    if plan.worker != assigned:
        return "from a worker that the task is not assigned to"
    if not verify(verify_key, PLAN_DOMAIN, plan.signed, plan.signature):
        return "without a valid signature of its worker"
    if plan.bids != bids_digest(day):
        return "about other bids"
    lengths = [8 * len(site.linear) for site in day.sites]
    grid = 8 * len(day.sites) * day.interval_count
    if [len(part) for part in plan.setpoints] != lengths or not (
        len(plan.price_p) == len(plan.price_q) == grid
    ):
        return "of the wrong shape"
    blank = Coordination(
        status=RunStatus.CONVERGED, setpoints=[], price_p=np.zeros(0), price_q=np.zeros(0)
    )
    found = opened_plan(day, plan, blank)
    if not (np.isfinite(found.price_p).all() and np.isfinite(found.price_q).all()):
        return "of the wrong shape"
    judged = certify(day, limits, found.setpoints, found.price_p, found.price_q).certificate
    if judged.is_accepted:
        return ""
    return f"primal {judged.primal:.1e} or gap {judged.gap:.1e} beyond what is accepted"


def plain_chain(day: Day, council: Council, randomness: Randomness) -> Chain:
    """Open a day without tasks on a ledger, all bids by digest."""
    bids = {str(site.name): hashlib.sha256(bid_octets(site)).digest() for site in day.sites}
    return Chain(day.name, bids, (), {}, council.names, randomness)


Solver = Callable[[Day, Limits], Coordination]


@dataclass(kw_only=True)
class LedgerRun:
    """One day in the scheme ``ledger``.

    Attributes
    ----------
    solvers
        What dishonest workers, by name, solve instead.
    is_recorded
        Whether bids, plans and votes go on a ledger; else votes are only counted.
    refused
        Plans that validators refused: worker, reason.
    """

    randomness: Randomness
    worker_count: int = 2
    council: Council = field(default_factory=Council)
    is_recorded: bool = False
    solvers: Mapping[str, Solver] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)

    def run(self, day: Day, limits: Limits) -> Coordination:
        """Record bids, let workers solve until validators accept a plan."""
        traffic = Traffic(len(self.council.names))
        for site in day.sites:
            traffic.order(len(bid_octets(site)))
        traffic.batch()
        chain = plain_chain(day, self.council, self.randomness) if self.is_recorded else None
        for number in range(self.worker_count):
            worker = f"worker-{number}"
            signer = Signer(Secret(self.randomness.octets(32)))
            outcome = self.solvers.get(worker, central)(day, limits)
            if not outcome.setpoints:
                return replace(outcome, message_count=traffic.messages, byte_count=traffic.octets)
            plan = signed_plan(day, outcome, worker, signer)
            traffic.order(len(msgspec.msgpack.encode(plan)))
            verdicts = self._verdicts(day, limits, plan, worker, signer.verify_key, traffic)
            traffic.batch()
            is_accepted = bool(self.council.outcome(verdicts))
            if chain is not None:
                digest = hashlib.sha256(plan.signed).digest()
                primal = outcome.history[-1].primal if outcome.history else 0.0
                chain.close_step(digest, primal, 0.0, is_last=True, is_accepted=is_accepted)
            if is_accepted:
                return replace(
                    opened_plan(day, plan, outcome),
                    message_count=traffic.messages,
                    byte_count=traffic.octets,
                    record=chain,
                )
            self.refused.append((worker, verdicts[0].reason))
        raise RunAborted(
            "no worker delivered an acceptable plan", ", ".join(name for name, _ in self.refused)
        )

    def _verdicts(
        self,
        day: Day,
        limits: Limits,
        plan: SignedPlan,
        worker: str,
        verify_key: bytes,
        traffic: Traffic,
    ) -> list[Verdict]:
        digest = hashlib.sha256(plan.signed).digest()
        given = []
        for name in self.council.names[: self.council.quorum]:
            reason = plan_refusal(day, limits, plan, worker, verify_key)
            verdict = Verdict(
                task=plan.bids,
                solution=digest,
                validator=name,
                is_accepted=not reason,
                reason=reason,
            )
            traffic.order(len(msgspec.msgpack.encode(verdict)))
            given.append(verdict)
        return given


class Iterates:
    """What neighbours answer, recorded iteration by iteration, and checked against the bids.

    Parameters
    ----------
    day
        The registered bids.
    chain
        Where iterates are recorded.
    pool
        Sites solve in it.
    """

    def __init__(self, day: Day, limits: Limits, chain: Chain, pool: ThreadPoolExecutor) -> None:
        agreement = Agreement.of(day, limits, NeighbourSettings())
        self._sites = [day.sites[i] for i in day.flexible]
        members = list(day.flexible)
        self._penalty_p = agreement.penalty_p[members]
        self._penalty_q = agreement.penalty_q[members]
        self._chain, self._pool = chain, pool
        self._said: SiteAnswer | None = None
        self._entry: Progress | None = None

    def at(self, scale: float) -> Steps:
        """Return the sites under penalties multiplied by a number; 0 = without penalty.

        Answers near targets are the iterates; cheapest ones only serve the certificate.
        """
        penalties = scale * self._penalty_p, scale * self._penalty_q
        steps = SiteSteps(self._sites, *penalties, self._pool)
        return _Recorded(self, steps) if scale > 0.0 else steps

    def take(self, said: SiteAnswer) -> None:
        """Take note of what sites said last."""
        if self._entry is not None:
            self.close(is_last=False)
        self._said = said

    def note(self, entry: Progress) -> None:
        """Take note of the iteration that this was."""
        self._entry = entry

    def close(self, *, is_last: bool) -> None:
        """Record the iteration under way.

        Raises
        ------
        RunAborted
            Validators refused it: what a site said is not what its bid makes of its set-points.
        """
        said, entry = self._said, self._entry
        if said is None or entry is None:
            return
        wrong = [
            str(site.name)
            for site, x, demand in zip(self._sites, said.setpoints, said.demand_p, strict=True)
            if float(np.max(np.abs(site.demand_p(x) - demand))) > BALANCE_MAX
        ]
        octets = [np.ascontiguousarray(x, dtype="<f8").tobytes() for x in said.setpoints]
        digest = digest_of_records([*octets, said.demand_p.tobytes(), said.demand_q.tobytes()])
        is_taken = self._chain.close_step(
            digest, entry.primal, entry.dual, is_last=is_last, is_accepted=not wrong
        )
        if not is_taken:
            raise RunAborted("validators refused an iterate", ", ".join(wrong))
        self._said = self._entry = None


class _Recorded:
    """The sites' answers at one scale of the penalties, recorded as they come."""

    def __init__(self, iterates: Iterates, steps: SiteSteps) -> None:
        self._iterates, self._steps = iterates, steps

    def answer(
        self, price_p: Floats, price_q: Floats, target_p: Floats, target_q: Floats
    ) -> SiteAnswer:
        """Let all sites answer."""
        found = self._steps.answer(price_p, price_q, target_p, target_q)
        self._iterates.take(found)
        return found


def _planned(
    day: Day,
    limits: Limits,
    state: NeighbourState | None,
    progress: ProgressSink | None,
    randomness: Randomness | None,
) -> Coordination:
    """Let neighbours agree, on a ledger if there is randomness for its keys."""
    if randomness is None or len(day.sites) == 1:
        return plan_neighbour(day, limits, start=state, progress=progress)
    chain = plain_chain(day, Council(), randomness)
    with ThreadPoolExecutor() as pool:
        iterates = Iterates(day, limits, chain, pool)

        def noted(entry: Progress) -> None:
            """Note an iteration, then show it."""
            iterates.note(entry)
            if progress is not None:
                progress(entry)

        outcome = plan_sweep(day, limits, NeighbourSettings(), state, noted, iterates.at)
        iterates.close(is_last=True)
    return replace(outcome, record=chain)


def plan_neighbour_ledger(
    day: Day,
    limits: Limits,
    start: object = None,
    progress: ProgressSink | None = None,
    randomness: Randomness | None = None,
) -> Coordination:
    """Let neighbours agree, and record every iterate in plain text.

    Parameters
    ----------
    day, limits
        What to plan and within which limits.
    start
        ``warm`` of the last day's outcome; anything else starts from the tariff.
    progress
        Called after each iteration.
    randomness
        Of the ledger's keys; ``None`` = nothing is recorded, messages are only counted.
    """
    state = start if isinstance(start, NeighbourState) else None
    outcome = _planned(day, limits, state, progress, randomness)
    traffic = Traffic(len(Council().names))
    for site in day.sites:
        traffic.order(len(bid_octets(site)))
    per_iteration = outcome.byte_count // max(1, outcome.iteration_count * len(day.sites))
    for _ in range(outcome.iteration_count):
        for _ in day.sites:
            traffic.order(per_iteration + RECORD_OCTETS)
        traffic.batch()
    outcome = replace(
        outcome,
        message_count=outcome.message_count + traffic.messages,
        byte_count=outcome.byte_count + traffic.octets,
    )
    if outcome.status in (RunStatus.ITERATION_LIMIT, RunStatus.INFEASIBLE):
        violations = least_violation(day, limits)
        if violations:
            none = replace(outcome, status=RunStatus.INFEASIBLE, setpoints=[])
            return replace(none, violations=violations)
    return outcome


BALANCE_MAX: Final = 1e-6
"""By so much, per-unit, a recorded net demand may miss what the bid makes of the set-points."""

RECORD_OCTETS = 160
"""Name, iteration, digest and signature of one recorded iterate."""
