"""Live events of runs and processes, handed out as server-sent events [docs/web.md 3].

A runner in the same process publishes, from any thread:

    feed = Feed()
    app = create_app(folder, feed)
    feed.publish(Event(kind="iteration", source="today", iteration=3, cost=1204.5))
    feed.publish({"kind": "process", "source": "party-1", "status": "ready"})

A runner elsewhere appends the same objects to a file, one JSON object a line, which
:func:`follow` reads. An event has the fields of :class:`Event` and no others, so that nothing
comes through which was not meant to be shown: an unknown key is refused.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from veilgrid.errors import Finding, InputError, invariant

KEEP_COUNT = 1000
"""So many events are remembered for whoever connects late."""
SOURCES_MAX = 500
TEXT_LENGTH_MAX = 500
LINE_OCTETS_MAX = 8192
FOLLOW_INTERVAL_S = 0.5
HEARTBEAT_S = 15.0


class Event(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing that happened.

    Attributes
    ----------
    kind
        ``iteration`` (of a plan), ``job`` (queued, started, ended), ``process`` (of a
        deployment), ``note``; others are shown as they are.
    source
        Which job, run or process.
    status
        What it is now: ``queued``, ``running``, ``ready``, ``converged``, ``failed``, ...
    text
        For people; no values of sites.
    iteration, primal, dual, cost
        As in :class:`veilgrid.admm.outcome.Progress`.
    time
        UTC, ISO 8601; filled in on publication.
    """

    kind: str
    source: str = ""
    status: str = ""
    text: str = ""
    iteration: int | None = None
    primal: float | None = None
    dual: float | None = None
    cost: float | None = None
    time: str = ""


class Numbered(msgspec.Struct, frozen=True):
    """An event with its place in the feed, counted from 1."""

    number: int
    event: Event


class Live(msgspec.Struct, frozen=True):
    """What the live page shows: the latest event of each source, and the last ones of all."""

    latest: list[Numbered]
    recent: list[Numbered]


class Feed:
    """Remember the last events and wake whoever waits for the next; safe from any thread."""

    def __init__(self, keep_count: int = KEEP_COUNT) -> None:
        invariant(keep_count > 0, "a feed keeps at least one event")
        self._lock = threading.RLock()  # A signal may close the feed while it is published to.
        self._events: deque[Numbered] = deque(maxlen=keep_count)
        self._latest: dict[tuple[str, str], Numbered] = {}
        self._count = 0
        self._waiting: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self._is_closed = False

    def publish(self, event: Event | Mapping[str, Any]) -> int:
        """Hand an event to all who listen; return its number.

        Raises
        ------
        InputError
            It has an unknown key, a wrong type, or no kind.
        """
        made = _checked(event)
        with self._lock:
            self._count += 1
            entry = Numbered(self._count, made)
            self._events.append(entry)
            self._latest.pop((made.kind, made.source), None)
            self._latest[made.kind, made.source] = entry
            if len(self._latest) > SOURCES_MAX:
                del self._latest[next(iter(self._latest))]
            waiting = list(self._waiting)
        _wake(waiting)
        return entry.number

    def close(self) -> None:
        """End all streams."""
        with self._lock:
            self._is_closed = True
            waiting = list(self._waiting)
        _wake(waiting)

    def since(self, number: int) -> list[Numbered]:
        """Return the remembered events after ``number``, oldest first."""
        with self._lock:
            return [entry for entry in self._events if entry.number > number]

    def live(self, recent_count: int = 50) -> Live:
        """Return what is known now, the newest first."""
        with self._lock:
            recent = list(self._events)[-recent_count:]
            return Live(list(reversed(self._latest.values())), recent[::-1])

    async def stream(self, after: int, heartbeat_s: float = HEARTBEAT_S) -> AsyncIterator[bytes]:
        """Yield server-sent events after ``after``, and a comment when nothing happens.

        Who reads too slowly misses what was forgotten meanwhile; numbers show the hole.
        """
        woken = asyncio.Event()
        place = (asyncio.get_running_loop(), woken)
        with self._lock:
            self._waiting.add(place)
        try:
            yield b"retry: 2000\n\n"
            while True:
                woken.clear()
                for entry in self.since(after):
                    after = entry.number
                    yield encoded(entry)
                if self._is_closed:
                    return
                try:
                    await asyncio.wait_for(woken.wait(), heartbeat_s)
                except TimeoutError:
                    yield b": still here\n\n"
        finally:
            with self._lock:
                self._waiting.discard(place)


def encoded(entry: Numbered) -> bytes:
    """Write one server-sent event; JSON holds no line breaks, so one data line is enough."""
    data = msgspec.json.encode(entry.event)
    return b"id: %d\nevent: veilgrid\ndata: %b\n\n" % (entry.number, data)


async def follow(path: Path, feed: Feed, interval_s: float = FOLLOW_INTERVAL_S) -> None:
    """Publish every line that is appended to a file of events, from its beginning, until cancelled.

    A line that is no event is told as a note with its number, not its content. A file that
    became shorter is read anew.
    """
    offset, number, rest, is_skipping = 0, 0, b"", False
    while True:
        fresh, was_cut = await asyncio.to_thread(_read_on, path, offset)
        if was_cut:
            offset, number, rest, is_skipping = 0, 0, b"", False
            continue
        offset += len(fresh)
        *lines, rest = (rest + fresh).split(b"\n")
        for line in lines:
            number += 1
            _publish_line(b"!" if is_skipping else line, number, path.name, feed)
            is_skipping = False
        if len(rest) > LINE_OCTETS_MAX:
            rest, is_skipping = b"", True
        if not fresh:
            await asyncio.sleep(interval_s)


def _read_on(path: Path, offset: int) -> tuple[bytes, bool]:
    """Return up to 64 KiB after ``offset``, and whether the file is shorter than that."""
    try:
        with path.open("rb") as file:
            if file.seek(0, 2) < offset:
                return b"", True
            file.seek(offset)
            return file.read(65_536), False
    except OSError:
        return b"", offset > 0


def _publish_line(line: bytes, number: int, name: str, feed: Feed) -> None:
    if not line.strip():
        return
    try:
        short = line if len(line) <= LINE_OCTETS_MAX else b"!"
        feed.publish(msgspec.json.decode(short, type=dict[str, Any]))
    except (msgspec.MsgspecError, InputError, UnicodeDecodeError):
        text = f"line {number} is no event"
        feed.publish(Event(kind="note", source=name, status="unreadable", text=text))


def _checked(event: Event | Mapping[str, Any]) -> Event:
    try:
        known = msgspec.to_builtins(event) if isinstance(event, Event) else dict(event)
        made = msgspec.convert(known, Event)
    except (msgspec.ValidationError, TypeError) as error:
        # The message of msgspec names keys and types, never values.
        raise InputError([Finding("event", str(error))]) from None
    if not made.kind:
        raise InputError([Finding("event, key kind", "is empty")])
    cut = {
        name: getattr(made, name)[:TEXT_LENGTH_MAX] for name in ("kind", "source", "status", "text")
    }
    numbers = {name: _finite(getattr(made, name)) for name in ("primal", "dual", "cost")}
    moment = made.time[:40] or datetime.now(UTC).isoformat(timespec="milliseconds")
    return msgspec.structs.replace(made, time=moment, **cut, **numbers)


def _finite(value: float | None) -> float | None:
    return value if value is not None and abs(value) < float("inf") else None


def _wake(waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]]) -> None:
    for loop, woken in waiting:
        with suppress(RuntimeError):  # That loop is closed: nobody listens there any more.
            loop.call_soon_threadsafe(woken.set)
