"""Workers and validators of masked days: problems in, accepted solutions out [masking 4].

Who coordinates, and what the problems mean, does not matter here: a problem goes to the worker of
its site, the validators judge what comes back, and a worker that was refused gets no further task.
"""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np

from veilgrid.errors import RunAborted, invariant
from veilgrid.grid.day import Day
from veilgrid.ledger.operation import (
    Announce,
    Assigned,
    Operation,
    Result,
    Settled,
    Solve,
    Verdict,
    is_digest,
)
from veilgrid.qp.mask import MaskedProblem, linear_digest
from veilgrid.roles.masked_chain import Chain, client_of, digest_of_records
from veilgrid.roles.masked_record import Misconduct, Record
from veilgrid.roles.masked_task import Council, Task, Worker, assign
from veilgrid.roles.masked_traffic import Traffic
from veilgrid.secret import Randomness, Secret
from veilgrid.signature import Signer


def _digest(said: bytes) -> bytes:
    """Return what a worker names its solution by, whatever a cheat put there."""
    return said if is_digest(said) else hashlib.sha256(said).digest()


class Workshop:
    """Workers with their factors and keys, and the validators.

    Parameters
    ----------
    worker_count : >= 1
    fault_max : >= 0
        f of ``3f + 1`` validators.
    randomness
        Of the workers' keys.
    pool
        Workers run in it, side by side.
    misconduct
        Which workers cheat.
    day
        Whose tasks, claims and verdicts a ledger records; ``None`` = votes are only counted.
    """

    def __init__(
        self,
        worker_count: int,
        fault_max: int,
        randomness: Randomness,
        pool: ThreadPoolExecutor,
        misconduct: Misconduct,
        day: Day | None = None,
    ) -> None:
        self._pool, self._misconduct = pool, misconduct
        self._day, self._randomness = day, randomness
        self.chain: Chain | None = None
        self._open_step: bytes | None = None
        self.residuals = (np.inf, np.inf)
        """Primal and dual, of the step under way: what its record says."""
        self.council = Council(fault_max=fault_max)
        self.workers = {
            name: Worker(name, Signer(Secret(randomness.octets(32))))
            for name in (f"worker-{k}" for k in range(worker_count))
        }
        self.traffic = Traffic(len(self.council.names))
        self.refused: list[tuple[Task, str, str]] = []
        self.barred: set[str] = set()
        self.assigned: dict[int, str] = {}
        self._names: dict[int, str] = {}
        self._weight: dict[int, float] = {}
        self._beacon = b""

    @property
    def readers(self) -> int:
        """How many read what lies beside the ledger: one worker and all validators."""
        return 1 + len(self.council.names)

    def assign(self, names: Mapping[int, str], problems: Mapping[int, MaskedProblem]) -> None:
        """Give each site a worker for the day, by work to do; ties by a beacon of all bids.

        Parameters
        ----------
        names, problems
            Of the sites, by index.
        """
        self._names = dict(names)
        if self._day is not None and self.chain is None:
            self.chain = self._opened(self._day, names, problems)
        self._weight = {i: float(p.matrix.size + p.quadratic.size) for i, p in problems.items()}
        self._beacon = hashlib.sha256(b"".join(p.digest for p in problems.values())).digest()
        self.assigned = self._shared()

    def _shared(self) -> dict[int, str]:
        names = [name for name in self.workers if name not in self.barred]
        if not names:
            raise RunAborted("no worker is left that delivers acceptable solutions")
        first = int.from_bytes(self._beacon[:8], "big") % len(names)
        load = dict.fromkeys(names[first:] + names[:first], 0.0)
        chosen = {}
        for index in sorted(self._weight, key=lambda i: -self._weight[i]):
            name = min(load, key=lambda worker: load[worker])
            chosen[index] = name
            load[name] += self._weight[index]
        return chosen

    def settle(
        self, kind: str, iteration: int, problems: Mapping[int, MaskedProblem]
    ) -> dict[int, Record]:
        """Get an accepted solution for each site's problem; replace workers that fail."""
        if self.chain is not None:
            return self._settle_recorded(self.chain, kind, iteration, problems)
        done: dict[int, Record] = {}
        open_tasks = dict(problems)
        while open_tasks:
            mine: dict[str, list[int]] = {}
            for index in open_tasks:
                mine.setdefault(self.assigned[index], []).append(index)
            jobs = [
                self._pool.submit(self._work, kind, iteration, name, sites, open_tasks)
                for name, sites in mine.items()
            ]
            for job in jobs:
                for index, record in job.result():
                    self._count(open_tasks[index], record)
                    if self.council.outcome(record.verdicts):
                        done[index] = record
                    else:
                        self._refuse(index, record)
            for _ in range(3):  # tasks, claims, verdicts
                self.traffic.batch()
            open_tasks = {i: p for i, p in open_tasks.items() if i not in done}
        return done

    def _opened(
        self, day: Day, names: Mapping[int, str], problems: Mapping[int, MaskedProblem]
    ) -> Chain:
        """Open the day on a ledger; sites without tasks bind themselves to what they declare."""
        bids = {}
        for index, site in enumerate(day.sites):
            declared = hashlib.sha256(
                b"declared 1 " + site.load_p.tobytes() + site.load_q.tobytes()
            )
            own = problems[index].digest if index in problems else declared.digest()
            bids[names.get(index, str(site.name))] = own
        rigid = [str(site.name) for i, site in enumerate(day.sites) if i not in problems]
        signers = {name: worker.signer for name, worker in self.workers.items()}
        return Chain(day.name, bids, rigid, signers, self.council.names, self._randomness)

    def _settle_recorded(
        self, chain: Chain, kind: str, iteration: int, problems: Mapping[int, MaskedProblem]
    ) -> dict[int, Record]:
        """Do the same on the ledger: it draws workers, and its quorum accepts or replaces."""
        self.finish(is_last=False)
        day, names = chain.day, {i: client_of(self._names[i]) for i in problems}
        data = {i: linear_digest(p.digest, p.linear) for i, p in problems.items()}
        drawn = chain.write({names[i]: [Announce(day, chain.step, data[i])] for i in problems})
        for index, name in names.items():
            self._draw(index, drawn[name][0])
        done: dict[int, Record] = {}
        said: dict[int, bytes] = {}
        while left := [i for i in problems if i not in done]:
            mine: dict[str, list[int]] = {}
            for index in left:
                mine.setdefault(self.assigned[index], []).append(index)
            jobs = [
                self._pool.submit(self._work, kind, iteration, name, sites, problems)
                for name, sites in mine.items()
            ]
            found = {index: record for job in jobs for index, record in job.result()}
            said = {i: _digest(record.submission.claim.solution) for i, record in found.items()}
            chain.write(
                {
                    worker: [Solve(day, chain.step, names[i], data[i], said[i]) for i in sites]
                    for worker, sites in mine.items()
                }
            )
            for index, result in self._voted(chain, names, found, said).items():
                self._count(problems[index], found[index])
                if result.is_accepted:
                    done[index] = found[index]
                    continue
                task = found[index].task
                self.refused.append((task, task.worker, found[index].verdicts[0].reason))
                self.barred.add(task.worker)
                self._draw(index, result)
            for _ in range(3):  # tasks, claims, verdicts
                self.traffic.batch()
        self._open_step = digest_of_records([*data.values(), *said.values()])
        return done

    def _draw(self, index: int, result: Result) -> None:
        """Take the worker that the ledger drew."""
        workers = result.workers if isinstance(result, Assigned | Settled) else ()
        if not workers:
            raise RunAborted("no worker is left that delivers acceptable solutions")
        self.assigned[index] = workers[0]

    def _voted(
        self,
        chain: Chain,
        names: Mapping[int, str],
        found: Mapping[int, Record],
        said: Mapping[int, bytes],
    ) -> dict[int, Settled]:
        """Record verdicts; return how the ledger settled each claim."""
        ballots: dict[str, list[Operation]] = {name: [] for name in chain.voters}
        for index, record in found.items():
            for given in record.verdicts:
                ballots[given.validator].append(
                    Verdict(
                        chain.day,
                        chain.step,
                        names[index],
                        record.task.worker,
                        said[index],
                        given.is_accepted,
                    )
                )
        results = chain.write(ballots)
        settled: dict[int, Settled] = {}
        for place, index in enumerate(found):
            for own in results.values():
                result = own[place]
                if isinstance(result, Settled):
                    invariant(index not in settled, "a quorum settles a claim once")
                    settled[index] = result
        invariant(len(settled) == len(found), "a quorum voted on every claim")
        return settled

    def finish(self, *, is_last: bool = True) -> None:
        """Record what the step under way came to; the last one ends the day's tasks."""
        if self.chain is not None and self._open_step is not None:
            self.chain.close_step(self._open_step, *self.residuals, is_last=is_last)
            self._open_step = None

    def exclude(self, site: str) -> None:
        """Record that a site is silent."""
        if self.chain is not None:
            self.finish(is_last=False)
            self.chain.exclude(site)

    def _work(
        self,
        kind: str,
        iteration: int,
        worker: str,
        sites: list[int],
        problems: Mapping[int, MaskedProblem],
    ) -> list[tuple[int, Record]]:
        """Let one worker solve its tasks, and the validators judge them."""
        found, own = [], self.workers[worker]
        tamper = self._misconduct.workers.get(worker)
        for index in sites:
            problem = problems[index]
            task = assign(problem, self._names[index], iteration, kind, worker)
            submission = own.solve(task, problem)
            if tamper is not None:
                submission = tamper(task, problem, submission)
            verdicts = self.council.verdicts(task, problem, submission, own.signer.verify_key)
            found.append((index, Record(task, submission, tuple(verdicts))))
        return found

    def _refuse(self, index: int, record: Record) -> None:
        """Bar a worker whose claim was refused and give its sites to others."""
        reason = record.verdicts[0].reason
        self.refused.append((record.task, record.task.worker, reason))
        self.barred.add(record.task.worker)
        self.assigned = self._shared()
        invariant(self.assigned[index] not in self.barred, "a barred worker gets no task")

    def _count(self, problem: MaskedProblem, record: Record) -> None:
        traffic, claim = self.traffic, len(msgspec.msgpack.encode(record.submission.claim))
        linear = 8 * len(problem.linear)
        traffic.send(linear)
        traffic.send(linear, self.readers)
        traffic.order(len(msgspec.msgpack.encode(record.task)))
        solution = len(record.submission.solution.octets)
        traffic.send(solution)
        traffic.send(solution, len(self.council.names))
        traffic.send(8 * len(problem.linear))  # y, to whoever holds the recovery rows
        traffic.order(claim)
        for verdict in record.verdicts:
            traffic.order(len(msgspec.msgpack.encode(verdict)))

    def forget(self, problem: bytes) -> None:
        """Let all workers drop the factors of a problem that will not come again."""
        for worker in self.workers.values():
            worker.forget(problem)
