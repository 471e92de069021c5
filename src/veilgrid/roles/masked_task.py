"""Tasks, claims and verdicts: how a masked solution gets accepted without trusting its worker.

A task is named by the digest of its data. A worker signs the digests of task and solution; each
validator looks at signature, digests and the certificate that it recomputes from the masked data,
and gives its verdict. ``2f + 1`` verdicts of ``3f + 1`` validators accept or refuse [masking 4].
Who may hand in what is in [docs/threat-model.md 3].
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, NamedTuple

import msgspec
import numpy as np

from veilgrid.qp.dense import (
    DUAL_MAX,
    GAP_MAX,
    PRIMAL_MAX,
    DenseSolution,
    DenseSolver,
    certificate,
)
from veilgrid.qp.mask import MaskedProblem, linear_digest
from veilgrid.qp.problem import Floats
from veilgrid.signature import Signer, Signs, verify

CLAIM_DOMAIN: Final = "masked/1/solution"


class Registration(msgspec.Struct, frozen=True, tag=True):
    """A bid by digest: the masked problem near a target, the one without penalty, recovery rows.

    The first two include the c' of the devices alone, from which every later c' follows.
    """

    site: str
    near: bytes
    cheapest: bytes
    rows: bytes


class Task(msgspec.Struct, frozen=True, tag=True):
    """One solve: whose, in which iteration, of which data, by which worker.

    ``kind`` is ``near`` or ``cheapest``; ``data`` the digest of the problem with its c'.
    """

    site: str
    iteration: int
    kind: str
    data: bytes
    worker: str

    @property
    def digest(self) -> bytes:
        """Name of the task."""
        return hashlib.sha256(b"masked assignment 1 " + msgspec.msgpack.encode(self)).digest()


class Claim(msgspec.Struct, frozen=True, tag=True):
    """What a worker signs: this solution solves this task."""

    task: bytes
    solution: bytes
    worker: str
    signature: bytes = b""

    @property
    def signed(self) -> bytes:
        """The octets under the signature."""
        return msgspec.msgpack.encode(replace_signature(self, b""))


def replace_signature(claim: Claim, signature: bytes) -> Claim:
    """Return a claim with another signature."""
    return msgspec.structs.replace(claim, signature=signature)


class Verdict(msgspec.Struct, frozen=True, tag=True):
    """One validator's word on a claim; ``reason`` is empty where it accepts."""

    task: bytes
    solution: bytes
    validator: str
    is_accepted: bool
    reason: str


class Refusal(StrEnum):
    """Why a validator refuses a claim."""

    OTHER_WORKER = "from a worker that the task is not assigned to"
    UNSIGNED = "without a valid signature of its worker"
    OTHER_TASK = "about another task"
    OTHER_SOLUTION = "its digest is not that of the solution"
    MALFORMED = "solution of the wrong shape"
    INFEASIBLE = "solution breaks a row"
    SUBOPTIMAL = "solution is not optimal"


class Submission(NamedTuple):
    """A claim and the solution that lies beside the ledger under its digest."""

    claim: Claim
    solution: DenseSolution


def assign(problem: MaskedProblem, site: str, iteration: int, kind: str, worker: str) -> Task:
    """Make the task of one masked problem."""
    data = linear_digest(problem.digest, problem.linear)
    return Task(site=site, iteration=iteration, kind=kind, data=data, worker=worker)


def claimed(task: Task, solution: DenseSolution, worker: str, signer: Signs) -> Submission:
    """Sign a solution of a task."""
    digest = hashlib.sha256(b"masked solution 1 " + solution.octets).digest()
    claim = Claim(task=task.digest, solution=digest, worker=worker)
    return Submission(replace_signature(claim, signer.sign(CLAIM_DOMAIN, claim.signed)), solution)


class Worker:
    """A third party that solves masked problems and keeps their factors.

    Parameters
    ----------
    name
        As tasks name it.
    signer
        Its key.
    """

    def __init__(self, name: str, signer: Signer) -> None:
        self.name, self.signer = name, signer
        self._solvers: dict[bytes, DenseSolver] = {}
        self._last: dict[tuple[str, str], DenseSolver] = {}

    def solve(self, task: Task, problem: MaskedProblem) -> Submission:
        """Solve a task and claim it."""
        solver = self._solvers.get(problem.digest)
        if solver is None:
            solver = self._solvers[problem.digest] = DenseSolver(problem)
            last = self._last.get((task.site, task.kind))
            if last is not None and last.active is not None and last.has_rows_of(problem):
                solver.begin(last.active)
        self._last[task.site, task.kind] = solver
        return claimed(task, solver.solve(problem.linear), self.name, self.signer)

    def forget(self, problem: bytes) -> None:
        """Drop the factors of a problem that will not come again."""
        self._solvers.pop(problem, None)


def refusal(
    task: Task, problem: MaskedProblem, submission: Submission, verify_key: bytes
) -> Refusal | None:
    """Judge a submission from the masked data alone; ``None`` = accepted.

    Parameters
    ----------
    task
        The assignment as the ledger has it.
    problem
        The data under the task's digest.
    submission
        What arrived.
    verify_key
        Of the worker that the task is assigned to.
    """
    claim, solution = submission
    if claim.worker != task.worker:
        return Refusal.OTHER_WORKER
    if not verify(verify_key, CLAIM_DOMAIN, claim.signed, claim.signature):
        return Refusal.UNSIGNED
    if claim.task != task.digest or linear_digest(problem.digest, problem.linear) != task.data:
        return Refusal.OTHER_TASK
    if hashlib.sha256(b"masked solution 1 " + solution.octets).digest() != claim.solution:
        return Refusal.OTHER_SOLUTION
    found = certificate(problem, solution)
    if not np.isfinite(found.primal):
        return Refusal.MALFORMED
    if not found.primal <= PRIMAL_MAX:
        return Refusal.INFEASIBLE
    if not (found.dual <= DUAL_MAX and abs(found.gap) <= GAP_MAX):
        return Refusal.SUBOPTIMAL
    return None


@dataclass(frozen=True, kw_only=True)
class Council:
    """``3f + 1`` validators that recompute every certificate by themselves.

    Attributes
    ----------
    fault_max
        f: so many may lie or be silent.
    """

    fault_max: int = 1
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        names = tuple(f"validator-{k}" for k in range(3 * self.fault_max + 1))
        object.__setattr__(self, "names", names)

    @property
    def quorum(self) -> int:
        """Verdicts that settle a claim."""
        return 2 * self.fault_max + 1

    def verdicts(
        self, task: Task, problem: MaskedProblem, submission: Submission, verify_key: bytes
    ) -> list[Verdict]:
        """Let validators judge independently until a quorum agrees."""
        given: list[Verdict] = []
        for name in self.names[: self.quorum]:
            reason = refusal(task, problem, submission, verify_key)
            given.append(
                Verdict(
                    task=submission.claim.task,
                    solution=submission.claim.solution,
                    validator=name,
                    is_accepted=reason is None,
                    reason=reason or "",
                )
            )
        return given

    def outcome(self, verdicts: Sequence[Verdict]) -> bool | None:
        """Count verdicts of different validators: accepted, refused, or ``None`` = not yet."""
        known = {
            verdict.validator: verdict.is_accepted
            for verdict in verdicts
            if verdict.validator in self.names
        }
        yes = sum(known.values())
        if yes >= self.quorum:
            return True
        return False if len(known) - yes >= self.quorum else None


def with_linear(problem: MaskedProblem, linear: Floats) -> MaskedProblem:
    """Return the same problem with another c'; what follows from the rest alone is kept."""
    after = replace(problem, linear=linear)
    for name in ("octets", "digest", "lengths"):
        after.__dict__[name] = getattr(problem, name)
    return after
