"""Run one machine for real: carry out its effects in order [node 1].

The driver owns the queue of effects. Machines step as events come in; their effects are carried
out when the burst of events is over, so that one sync of the journal serves all of them and small
messages to one peer share a TLS record.
"""

import asyncio
import contextlib
import logging
import sys
import traceback
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, Protocol

from veilgrid.errors import InvariantError, SetupError, VeilgridError, invariant
from veilgrid.machine import (
    START,
    Compute,
    Computed,
    Decide,
    Effect,
    Event,
    Machine,
    NodeId,
    Persist,
    Received,
    Send,
    SetTimer,
    TimerFired,
)
from veilgrid.node.journal import Journal

_log = logging.getLogger("veilgrid.node.driver")

EXIT_BUG: Final = 70
_OUTBOX_MAX: Final = 100_000


class Network(Protocol):
    """What a driver needs of a transport; :class:`~veilgrid.node.transport.Endpoint` is one."""

    after_reading: Callable[[], None]

    def send(self, to: NodeId, message: Any) -> None:
        """Queue a message."""
        ...

    def flush(self) -> None:
        """Write what was queued."""
        ...

    def acknowledge(self, peer: NodeId, receipt: tuple[bytes, int]) -> None:
        """Take note that the step of a received message is carried out."""
        ...

    def pause(self) -> None:
        """Stop delivering."""
        ...

    def resume(self) -> None:
        """Deliver again."""
        ...


class _Done:
    """Marks in the queue of effects where the step of one received message ends."""

    __slots__ = ("peer", "receipt")

    def __init__(self, peer: NodeId, receipt: tuple[bytes, int]) -> None:
        self.peer, self.receipt = peer, receipt


def refuse_seeded(what: str, owner: object) -> None:
    """Raise :class:`SetupError` if ``owner`` is or holds a deterministic source of randomness.

    A simulation may replay; a real node whose randomness can be replayed has no secrets.
    """
    held = [owner, *getattr(owner, "__dict__", {}).values()]
    held += [getattr(owner, name, None) for name in getattr(type(owner), "__slots__", ())]
    if any(getattr(value, "is_deterministic", False) is True for value in held):
        raise SetupError(
            f"{what} was given seeded randomness, which is for simulations; "
            "pass SystemRandomness() to a real process"
        )


class Driver:
    """Drive one machine until :meth:`stop` or an error.

    Parameters
    ----------
    network
        Anything with the methods of :class:`Network`; connect its ``deliver`` to
        :meth:`on_message`.
    on_decide
        Called with each outcome, in order, after everything before it is carried out.
    journal
        Where records go. A machine that persists without a journal is refused at its first record.
    compute_threads
        Threads for ``Compute``; 0 runs kernels in place, which is faster when each takes less than
        about 0.1 ms.
    """

    def __init__(
        self,
        me: NodeId,
        machine: Machine,
        network: Network,
        *,
        on_decide: Callable[[Any], None],
        journal: Journal | None = None,
        compute_threads: int = 1,
    ) -> None:
        refuse_seeded(f"the machine of {me}", machine)
        self.me = me
        self._machine = machine
        self._network = network
        self._on_decide = on_decide
        self._journal = journal
        self._loop = asyncio.get_running_loop()
        self._outbox: deque[Effect | _Done] = deque()
        self._inbox: deque[Event] = deque()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._pool = (
            ThreadPoolExecutor(compute_threads, "veilgrid-compute") if compute_threads else None
        )
        self._disk = ThreadPoolExecutor(1, "veilgrid-journal") if journal is not None else None
        self._is_syncing = False
        self._is_paused = False
        self._is_draining = False
        self._ended: asyncio.Future[None] = self._loop.create_future()
        network.after_reading = self._guarded_drain

    # -- events ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Let the machine begin."""
        self.post(TimerFired(START))

    def post(self, event: Event) -> None:
        """Step the machine with one event and carry out what follows."""
        self._step(event, None)
        self._guarded_drain()

    def on_message(self, peer: NodeId, message: Any, receipt: tuple[bytes, int]) -> None:
        """Step the machine with a message; its effects follow when the burst is over."""
        self._step(Received(peer, message), _Done(peer, receipt))

    def _step(self, event: Event, done: _Done | None) -> None:
        if self._ended.done():
            return
        try:
            self._outbox.extend(self._machine.handle(event))
        except BaseException as error:  # noqa: BLE001 - handed to run(), the top level
            self.fail(error)
            return
        if done is not None:
            self._outbox.append(done)

    def _guarded_drain(self) -> None:
        if self._is_draining or self._ended.done():
            return
        self._is_draining = True
        try:
            self._drain()
        except BaseException as error:  # noqa: BLE001 - handed to run(), the top level
            self.fail(error)
        finally:
            self._is_draining = False

    # -- effects ---------------------------------------------------------------------------------

    def _drain(self) -> None:
        outbox = self._outbox
        while True:
            while outbox and not self._is_syncing:
                if type(outbox[0]) is Persist:
                    self._sync()
                else:
                    self._carry_out(outbox.popleft())
            if self._is_syncing or not self._inbox:
                break
            self._step(self._inbox.popleft(), None)
        self._network.flush()
        is_behind = len(outbox) > _OUTBOX_MAX
        if is_behind != self._is_paused:
            self._is_paused = is_behind
            (self._network.pause if is_behind else self._network.resume)()

    def _carry_out(self, effect: Effect | _Done) -> None:
        kind = type(effect)
        if kind is Send:
            if effect.to == self.me:  # type: ignore[union-attr]
                self._inbox.append(Received(self.me, effect.message))  # type: ignore[union-attr]
            else:
                self._network.send(effect.to, effect.message)  # type: ignore[union-attr]
            return
        match effect:
            case _Done(peer=peer, receipt=receipt):
                self._network.acknowledge(peer, receipt)
            case SetTimer(name, delay_ns):
                self._set_timer(name, delay_ns)
            case Compute():
                self._compute(effect)
            case Decide(outcome):
                self._on_decide(outcome)
            case _:
                invariant(False, f"{kind.__name__} is an effect that a driver knows")

    def _sync(self) -> None:
        """Start to make every record in the queue durable; the queue waits for it."""
        if self._journal is None:
            raise SetupError(f"{self.me} must persist a record but was given no journal")
        kept: deque[Effect | _Done] = deque()
        for effect in self._outbox:
            if type(effect) is Persist:
                self._journal.append(effect.record)
            else:
                kept.append(effect)
        self._outbox.clear()
        self._outbox.extend(kept)
        self._is_syncing = True
        invariant(self._disk is not None, "a journal has its thread")
        future = self._disk.submit(self._journal.write, self._journal.take())  # type: ignore[union-attr]
        future.add_done_callback(lambda done: self._call_back(self._synced, done))

    def _synced(self, done: "Future[None]") -> None:
        self._is_syncing = False
        if (error := done.exception()) is not None:
            self.fail(error)
            return
        self._guarded_drain()

    def _set_timer(self, name: str, delay_ns: int) -> None:
        if (former := self._timers.pop(name, None)) is not None:
            former.cancel()
        self._timers[name] = self._loop.call_later(delay_ns / 1e9, self._fire, name)

    def _fire(self, name: str) -> None:
        del self._timers[name]
        self.post(TimerFired(name))

    def _compute(self, effect: Compute) -> None:
        if self._pool is None:
            self._inbox.append(Computed(effect.job, effect.kernel(*effect.arguments)))
            return
        future = self._pool.submit(effect.kernel, *effect.arguments)
        future.add_done_callback(lambda done: self._call_back(self._computed, effect, done))

    def _computed(self, effect: Compute, done: "Future[Any]") -> None:
        if done.cancelled():
            return
        if (error := done.exception()) is not None:
            self.fail(error)
            return
        self.post(Computed(effect.job, done.result()))

    def _call_back(self, function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # The loop is closed: nobody waits any more.
            self._loop.call_soon_threadsafe(function, *arguments)

    # -- the end ---------------------------------------------------------------------------------

    def fail(self, error: BaseException) -> None:
        """End :meth:`run` with ``error``."""
        if not self._ended.done():
            self._ended.set_exception(error)

    def stop(self) -> None:
        """End :meth:`run` after what is queued is carried out."""
        if not self._ended.done():
            self._ended.set_result(None)

    async def run(self) -> None:
        """Wait until :meth:`stop`; raise what the machine, a kernel or the disk raised."""
        try:
            await self._ended
        finally:
            await self._close()

    async def _close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        if self._disk is not None and self._journal is not None:
            await self._loop.run_in_executor(None, self._disk.shutdown)
            self._journal.close()


def run_guarded(main: Coroutine[Any, Any, int]) -> int:
    """Run a process to its end and return its exit code: the top level of every node.

    A bug ends with 70, a known error with its own code. What is printed never holds a value that
    the process worked on: known errors speak for themselves, others show type and place only.
    """
    try:
        return asyncio.run(main)
    except InvariantError as error:
        print(f"bug: {error}\n{_places(error)}", file=sys.stderr)
        return EXIT_BUG
    except VeilgridError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - the top level
        print(f"bug: {type(error).__name__}\n{_places(error)}", file=sys.stderr)
        return EXIT_BUG


def _places(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return "\n".join(f"  {frame.filename}:{frame.lineno} in {frame.name}" for frame in frames)
