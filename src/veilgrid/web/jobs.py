"""Plans made in the background: a short queue, one at a time, each in a process of its own.

A process keeps the listener answering while a solver works, can be ended whatever it does, and
takes nothing along when it crashes. It writes events to its standard output, one JSON object a
line (see :mod:`veilgrid.web.feed`), and ends when its standard input closes, so that none outlives
the server.
"""

import asyncio
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from veilgrid.errors import Finding, InputError
from veilgrid.web.feed import Event, Feed
from veilgrid.web.guard import Bounds

KEEP_COUNT = 100
"""So many ended jobs are remembered."""
END_S = 3.0
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
Status = str
OVER = frozenset({"done", "unwanted", "failed", "cancelled"})
LINE_OCTETS_MAX = 65_536

Command = Callable[[Path, str, Path], Sequence[str]]
"""Scenario folder, scheme, folder to write -> the process to start."""


class Order(msgspec.Struct, frozen=True):
    """What to plan: a scenario that the dashboard lists, a scheme, the name of the run's folder."""

    scenario: str
    scheme: str
    name: str


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A plan that waits, is being made, or was made.

    Attributes
    ----------
    status
        ``queued``, ``running``, ``done`` (as wanted), ``unwanted`` (ran without the wanted
        outcome), ``failed``, ``cancelled``.
    run
        Of the written run, None if nothing was written.
    """

    id: int
    order: Order
    status: Status = "queued"
    iteration: int | None = None
    cost: float | None = None
    text: str = ""
    run: str | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens."""
        return self.status in OVER


class JobList(msgspec.Struct, frozen=True):
    """All remembered jobs, the newest first."""

    jobs: list[Job]


class QueueFull(Exception):
    """So many jobs wait that another is refused."""


def order_of(
    given: object,
    scenarios: Mapping[str, Path],
    schemes: Sequence[str],
    folder: Path,
    taken: Collection[str] = (),
) -> Order:
    """Read an order strictly.

    Raises
    ------
    InputError
        Every broken rule at once.
    """
    if not isinstance(given, dict):
        raise InputError([Finding("body", "is no JSON object", 'e.g. {"scenario": "six-bus"}')])
    findings = [
        Finding(f"key {_short(key)}", "is unknown", "known keys: scenario, scheme, name")
        for key in given
        if key not in ("scenario", "scheme", "name")
    ]
    scenario = given.get("scenario")
    if not isinstance(scenario, str) or scenario not in scenarios:
        problem = "is missing" if scenario is None else f"is no known scenario: {_short(scenario)}"
        findings.append(Finding("key scenario", problem, "GET /api/scenarios lists them"))
    scheme = given.get("scheme", "exchange")
    if not isinstance(scheme, str) or scheme not in schemes:
        problem = f"is no scheme: {_short(scheme)}"
        findings.append(Finding("key scheme", problem, f"one of {', '.join(schemes)}"))
    name = given.get("name")
    if name is None and not findings:
        name = _free(f"{scenario}-{scheme}", folder, taken)
    elif name is not None and (not isinstance(name, str) or not NAME.fullmatch(name)):
        advice = "up to 64 of a-z, 0-9 and -, beginning with a letter or digit"
        findings.append(Finding("key name", "cannot name a folder", advice))
    elif name is not None and (folder / str(name)).exists():
        findings.append(Finding("key name", "exists already", "choose another one"))
    if findings:
        raise InputError(findings)
    return Order(str(scenario), str(scheme), str(name))


def _short(value: object) -> str:
    return repr(value)[:80]


def _free(text: str, folder: Path, taken: Collection[str]) -> str:
    """Make a folder's name that is not taken."""
    stem = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:56] or "run"
    number = 1
    while (name := f"{stem}-{number}") in taken or (folder / name).exists():
        number += 1
    return name


class Jobs:
    """A queue that one task empties."""

    def __init__(self, folder: Path, feed: Feed, bounds: Bounds, command: Command) -> None:
        self._folder, self._feed, self._bounds, self._command = folder, feed, bounds, command
        self._jobs: dict[int, Job] = {}
        self._waiting: list[tuple[int, Path]] = []
        self._count = 0
        self._worker: asyncio.Task[None] | None = None
        self._process: tuple[int, asyncio.subprocess.Process] | None = None

    def all(self) -> JobList:
        """Return all jobs, the newest first."""
        return JobList(list(self._jobs.values())[::-1])

    def get(self, number: int) -> Job | None:
        """Return a job by its number."""
        return self._jobs.get(number)

    def names(self) -> frozenset[str]:
        """Return names of folders that are promised to a job that is not over."""
        return frozenset(job.order.name for job in self._jobs.values() if not job.is_over)

    def submit(self, order: Order, scenario: Path) -> Job:
        """Put an order at the end of the queue.

        Raises
        ------
        QueueFull
            The queue has as many as it may.
        InputError
            Another job is going to write that folder.
        """
        if len(self._waiting) >= self._bounds.queue_count:
            raise QueueFull
        if order.name in self.names():
            raise InputError([Finding("key name", "is taken by a job", "choose another one")])
        self._count += 1
        job = Job(id=self._count, order=order)
        self._jobs[job.id] = job
        self._waiting.append((job.id, scenario))
        self._tell(job)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return job

    async def cancel(self, number: int) -> Job | None:
        """Take a job off the queue or end its process; what is over stays as it is."""
        job = self._jobs.get(number)
        if job is None or job.is_over:
            return job
        self._waiting = [entry for entry in self._waiting if entry[0] != number]
        cancelled = self._set(number, status="cancelled", text="cancelled on request")
        if self._process is not None and self._process[0] == number:
            await _end(self._process[1])
        return cancelled

    async def close(self) -> None:
        """End everything."""
        self._waiting.clear()
        for job in list(self._jobs.values()):
            await self.cancel(job.id)
        if self._worker is not None:
            self._worker.cancel()
            with suppress(asyncio.CancelledError):
                await self._worker

    async def _work(self) -> None:
        while self._waiting:
            number, scenario = self._waiting.pop(0)
            self._set(number, status="running")
            try:
                await self._run(self._jobs[number], scenario)
            except OSError as error:
                self._end(number, "failed", f"cannot be started: {error.strerror}")
            self._forget()

    async def _run(self, job: Job, scenario: Path) -> None:
        target = self._folder / job.order.name
        process = await asyncio.create_subprocess_exec(
            *self._command(scenario, job.order.scheme, target),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=None,  # A traceback goes where the server's own would.
            limit=LINE_OCTETS_MAX,
        )
        self._process = (job.id, process)
        try:
            if self._jobs[job.id].is_over:  # Cancelled while the process was being made.
                return
            await asyncio.wait_for(self._listen(job.id, process), self._bounds.job_s)
        except TimeoutError:
            self._end(job.id, "failed", f"took longer than {self._bounds.job_s:g} s")
        finally:
            await _end(process)
            self._process = None
        words = {0: "done", 1: "unwanted"}
        written = job.order.name if target.is_dir() else None
        status = words.get(process.returncode or 0, "failed") if written else "failed"
        self._end(job.id, status, "", written)

    async def _listen(self, number: int, process: asyncio.subprocess.Process) -> None:
        """Pass on what a process tells until it ends."""
        while process.stdout is not None:
            try:
                line = await process.stdout.readline()
            except ValueError:  # Longer than any event: skipped.
                continue
            if not line:
                break
            with suppress(msgspec.MsgspecError):
                event = msgspec.json.decode(line, type=Event)
                self._hear(number, event)
        await process.wait()

    def _hear(self, number: int, event: Event) -> None:
        if self._jobs[number].is_over:
            return
        told = {"iteration": event.iteration, "cost": event.cost, "text": event.text or None}
        known = {key: value for key, value in told.items() if value is not None}
        self._jobs[number] = msgspec.structs.replace(self._jobs[number], **known)
        shown = msgspec.structs.replace(event, source=_source(number), status="running")
        self._feed.publish(shown)

    def _end(self, number: int, status: str, text: str, run: str | None = None) -> None:
        """Note how a job ended unless that is known already."""
        if not self._jobs[number].is_over:
            told = text or self._jobs[number].text
            self._set(number, status=status, text=told, run=run)

    def _set(self, number: int, **changes: Any) -> Job:
        job = msgspec.structs.replace(self._jobs[number], **changes)
        self._jobs[number] = job
        self._tell(job)
        return job

    def _tell(self, job: Job) -> None:
        event = Event(
            kind="job",
            source=_source(job.id),
            status=job.status,
            text=job.text or f"{job.order.scenario}, {job.order.scheme}",
            iteration=job.iteration,
            cost=job.cost,
        )
        self._feed.publish(event)

    def _forget(self) -> None:
        over = [number for number, job in self._jobs.items() if job.is_over]
        for number in over[:-KEEP_COUNT]:
            del self._jobs[number]


def _source(number: int) -> str:
    return f"job {number}"


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ask a process to end, then make it."""
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), END_S)
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
