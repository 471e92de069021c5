"""One process of a deployment on disk: its files, links, machine and its end [node 13]."""

import asyncio
import contextlib
import gc
import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from veilgrid.errors import Unreachable
from veilgrid.machine import Machine, NodeId
from veilgrid.node.journal import Journal
from veilgrid.node.member import Member, alarm
from veilgrid.node.settings import Settings
from veilgrid.node.signing import AuditLog
from veilgrid.node.wire import Codec

_LOOK_S: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one process of a deployment does on one day.

    Attributes
    ----------
    day
        Names its journal: each day has its own.
    messages, records
        The unions that cross its links and that its journal holds.
    build
        Makes its machine from the journal's records.
    peers
        Roles of the processes that it talks to.
    quorum
        Roles and how many processes of them must be there; with fewer nothing can come of the day.
    needed
        Roles of which everybody must be there at first.
    is_end
        Whether an outcome is how the day ended for this process.
    is_stop
        Whether an outcome is that it ended without a result.
    is_over
        Whether records say that it has ended, so that there is nobody to wait for.
    """

    day: str
    messages: Any
    records: Any
    build: Callable[[Sequence[Any]], Machine]
    peers: frozenset[str]
    quorum: tuple[str, int]
    needed: frozenset[str]
    is_end: Callable[[Any], bool]
    is_stop: Callable[[Any], bool] = lambda _: False
    is_over: Callable[[Sequence[Any]], bool] = lambda _: False


@dataclass(frozen=True, slots=True, kw_only=True)
class Manners:
    """How a process waits, what it tells, and whether it stays.

    Attributes
    ----------
    wait_s
        For its peers.
    linger_s
        It serves its peers so long after the day has ended: they hear from it how.
    stays
        Whether it serves them until it is stopped, if the day had a result.
    tell
        Called with a line for its owner.
    on_outcome
        Called with each outcome.
    """

    wait_s: float
    linger_s: float
    stays: bool
    tell: Callable[[str], None]
    on_outcome: Callable[[Any], None]


def journal_path(settings: Settings, day: str) -> Path:
    """Return the file of a day's journal."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "_", day)[:80]
    return settings.journal_path.parent / f"{slug}.journal"


async def serve(settings: Settings, part: Part, manners: Manners) -> bool:
    """Run one process until it is stopped or has done its part; return whether the day ended.

    Raises
    ------
    SetupError
        A key cannot be read, the port is taken, or the journal is in use.
    TransportError
        Too few peers could be reached in time.
    """
    ended, leaving = asyncio.Event(), asyncio.Event()

    def decided(outcome: Any) -> None:
        manners.on_outcome(outcome)
        if part.is_end(outcome) or part.is_stop(outcome):
            ended.set()
            if part.is_stop(outcome) or not manners.stays:
                leaving.set()

    settings.journal_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = journal_path(settings, part.day)
    journal = Journal.open(path, Codec(part.records), settings.journal_key())
    member = Member(
        settings.node,
        codec=Codec(part.messages),
        credentials=settings.credentials,
        build=part.build,
        on_decide=decided,
        journal=journal,
        audit=AuditLog(settings.audit_path, alarm),
    )
    try:
        is_over = part.is_over(journal.records)
        await _meet(settings, part, manners, member, is_over=is_over)
        member.build()
        gc.freeze()  # Modules and kernels stay: looking at them is in vain.
        manners.tell("the day begins" if not member.record_count else "the day goes on")
        end = asyncio.get_running_loop().create_task(_leave(member, leaving, manners.linger_s))
        try:
            await member.run((signal.SIGTERM, signal.SIGINT))
        finally:
            end.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await end
    finally:
        await member.close()
    return ended.is_set()


async def _leave(member: Member, leaving: asyncio.Event, linger_s: float) -> None:
    await leaving.wait()
    await asyncio.sleep(linger_s)
    await member.stop()


async def _meet(
    settings: Settings, part: Part, manners: Manners, member: Member, *, is_over: bool
) -> None:
    """Listen, and wait for the peers: all of them at first, for enough of them later."""
    peers = settings.peers(part.peers)
    if settings.me.port is not None:
        port = member.listen(settings.listen_host, settings.me.port)
        manners.tell(f"{settings.node} listens on {settings.listen_host} port {port}")
    member.update_peers(peers)
    if is_over:
        return
    role, count = part.quorum
    able = {peer.node for peer in peers if peer.role == role}
    needed = max(count - (settings.me.role == role), 0)
    is_resumed = member.record_count > 0

    def has_quorum() -> bool:
        return len(able - set(member.missing)) >= needed

    loop = asyncio.get_running_loop()
    deadline, shown = loop.time() + manners.wait_s, list[NodeId]()
    while missing := sorted(member.missing):
        if is_resumed and has_quorum():
            return
        if loop.time() >= deadline:
            break
        if missing != shown:
            manners.tell(f"waiting for {', '.join(missing)}")
            shown = missing
        await asyncio.sleep(_LOOK_S)
    if not missing:
        return
    must = {peer.node for peer in peers if peer.role in part.needed and not is_resumed}
    if not has_quorum() or must & set(missing):
        await member.connected(0.0, missing)
        raise Unreachable(f"no connection to {', '.join(missing)}")
    manners.tell(f"going on without {', '.join(missing)}")
