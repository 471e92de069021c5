"""The driver: effects in order, nothing leaves before it is durable, errors end the process."""

import asyncio
import selectors
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from node_machines import MESSAGES, RECORDS, Add, Added, Broken, Counter, Vote, triple

from veilgrid.errors import InvariantError, SetupError, Unreachable
from veilgrid.machine import (
    Compute,
    Computed,
    Decide,
    Effect,
    Event,
    NodeId,
    Persist,
    Received,
    Send,
    SetTimer,
    TimerFired,
)
from veilgrid.node.driver import Driver, run_guarded
from veilgrid.node.journal import Journal
from veilgrid.node.local import run_machines
from veilgrid.node.wire import Codec
from veilgrid.secret import SeededRandomness, SystemRandomness

ME, PEER = NodeId("me"), NodeId("peer")
RECEIPT = (bytes(16), 1)


class Wire:
    """A network that writes down what the driver asks of it."""

    def __init__(self, look: Callable[[], Any] = lambda: None) -> None:
        self.after_reading: Callable[[], None] = lambda: None
        self.calls: list[tuple[Any, ...]] = []
        self._look = look

    def send(self, to: NodeId, message: Any) -> None:
        self.calls.append(("send", to, message, self._look()))

    def flush(self) -> None:
        pass

    def acknowledge(self, peer: NodeId, receipt: tuple[bytes, int]) -> None:
        self.calls.append(("acknowledge", peer, receipt[1], self._look()))

    def pause(self) -> None:
        self.calls.append(("pause",))

    def resume(self) -> None:
        self.calls.append(("resume",))


class Scripted:
    """Answer each event with the effects that a function returns for it."""

    def __init__(self, script: Callable[[Event], list[Effect]]) -> None:
        self._script = script
        self.seen: list[Event] = []

    def handle(self, event: Event) -> list[Effect]:
        self.seen.append(event)
        return self._script(event)


class JumpingSelector(selectors.DefaultSelector):
    """Waits for nothing: when nobody is ready, virtual time jumps to the next timer."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout is not None:
            self.now += timeout
        return ready


def run_in_virtual_time(main: Coroutine[Any, Any, None]) -> None:
    selector = JumpingSelector()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main)


def test_effects_are_carried_out_in_order_and_then_the_message_is_acknowledged() -> None:
    async def main() -> None:
        wire, outcomes = Wire(), []
        machine = Scripted(
            lambda _: [Send(PEER, Vote(1, 1)), Decide("done"), Send(PEER, Vote(1, 2))]
        )
        driver = Driver(ME, machine, wire, on_decide=outcomes.append)
        driver.on_message(PEER, Vote(0, 0), RECEIPT)
        assert wire.calls == [], "effects wait until the burst of events is over"
        wire.after_reading()
        assert [call[:3] for call in wire.calls] == [
            ("send", PEER, Vote(1, 1)),
            ("send", PEER, Vote(1, 2)),
            ("acknowledge", PEER, 1),
        ]
        assert outcomes == ["done"]
        driver.stop()
        await driver.run()

    asyncio.run(main())


def test_nothing_leaves_before_the_record_before_it_is_on_disk(tmp_path: Path) -> None:
    """A vote that is sent and then forgotten in a crash is a second vote."""
    path = tmp_path / "journal"

    async def main() -> None:
        def on_disk() -> int:
            copy = tmp_path / "copy"
            copy.write_bytes(path.read_bytes())
            journal = Journal.open(copy, Codec(RECORDS))
            journal.close()
            return len(journal.records)

        wire = Wire(on_disk)
        journal = Journal.open(path, Codec(RECORDS))
        driver = Driver(ME, Counter(), wire, on_decide=lambda _: None, journal=journal)
        for number in range(1, 21):
            driver.on_message(PEER, Add(number, number), (bytes(16), number))
            if number % 5 == 0:
                wire.after_reading()
                await asyncio.sleep(0)
        while len(wire.calls) < 40:
            await asyncio.sleep(0)
        for kind, _, what, records in wire.calls:
            number = what.number if kind == "send" else what
            assert records >= number
        driver.stop()
        await driver.run()

    asyncio.run(main())
    journal = Journal.open(path, Codec(RECORDS))
    journal.close()
    assert Counter(journal.records).handle(TimerFired("start")) == [Decide(210)]


def test_a_machine_that_persists_needs_a_journal() -> None:
    async def main() -> None:
        driver = Driver(ME, Counter(), Wire(), on_decide=lambda _: None)
        driver.post(Received(PEER, Add(1, 1)))
        await driver.run()

    with pytest.raises(SetupError, match="given no journal"):
        asyncio.run(main())


def test_a_later_timer_of_the_same_name_replaces_the_earlier_one() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        fired: list[tuple[str, float]] = []

        def script(event: Event) -> list[Effect]:
            match event:
                case TimerFired("start"):
                    return [
                        SetTimer("a", 10**9),
                        SetTimer("b", 2 * 10**9),
                        SetTimer("a", 3 * 10**9),
                    ]
                case TimerFired(name):
                    fired.append((name, round(loop.time(), 6)))
            return []

        driver = Driver(ME, Scripted(script), Wire(), on_decide=print, compute_threads=0)
        driver.start()
        loop.call_later(5, driver.stop)
        await driver.run()
        assert fired == [("b", 2.0), ("a", 3.0)]

    run_in_virtual_time(main())


@pytest.mark.parametrize("compute_threads", [0, 2])
def test_a_kernel_runs_elsewhere_and_its_value_comes_back(compute_threads: int) -> None:
    async def main() -> None:
        threads: list[str] = []

        def kernel(value: int) -> int:
            threads.append(threading.current_thread().name)
            return triple(value)

        def script(event: Event) -> list[Effect]:
            match event:
                case TimerFired():
                    return [Compute(("job", 1), kernel, (14,))]
                case Computed(("job", 1), value):
                    return [Decide(value)]
            return []

        outcomes: list[int] = []
        driver = Driver(
            ME,
            Scripted(script),
            Wire(),
            on_decide=lambda value: (outcomes.append(value), driver.stop()),
            compute_threads=compute_threads,
        )
        driver.start()
        await driver.run()
        assert outcomes == [42]
        assert threads[0].startswith("veilgrid-compute") == bool(compute_threads)

    asyncio.run(main())


def test_a_message_to_oneself_comes_back_without_a_network() -> None:
    async def main() -> None:
        machine = Scripted(
            lambda event: [Send(ME, Vote(1, 1))] if isinstance(event, TimerFired) else []
        )
        wire = Wire()
        driver = Driver(ME, machine, wire, on_decide=print)
        driver.start()
        assert machine.seen[-1] == Received(ME, Vote(1, 1))
        assert wire.calls == []
        driver.stop()
        await driver.run()

    asyncio.run(main())


def test_seeded_randomness_is_refused() -> None:
    """Whoever knows the seed of a node knows its shares."""

    class Party:
        def __init__(self, randomness: Any) -> None:
            self._randomness = randomness

        def handle(self, _: Event) -> list[Effect]:
            return []

    async def main(randomness: Any) -> None:
        driver = Driver(ME, Party(randomness), Wire(), on_decide=print)
        driver.stop()
        await driver.run()

    asyncio.run(main(SystemRandomness()))
    with pytest.raises(SetupError, match="seeded randomness"):
        asyncio.run(main(SeededRandomness(1)))


def ended_by(script: Callable[[Event], list[Effect]]) -> Coroutine[Any, Any, int]:
    async def main() -> int:
        driver = Driver(ME, Scripted(script), Wire(), on_decide=print)
        driver.start()
        await driver.run()
        return 0

    return main()


def test_a_bug_ends_the_process_with_70_and_a_known_error_with_its_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def unreachable(_: Event) -> list[Effect]:
        raise Unreachable("p2 does not answer")

    assert run_guarded(ended_by(Broken().handle)) == 70
    assert "this machine never starts" in capsys.readouterr().err
    assert run_guarded(ended_by(unreachable)) == 4
    assert capsys.readouterr().err == "error: p2 does not answer\n"
    assert run_guarded(ended_by(lambda _: ["no effect"])) == 70


def test_what_a_bug_worked_on_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """Texts of foreign exceptions quote values; a share in a log is a share given away."""

    def kernel(text: str) -> int:
        return int(text)

    assert run_guarded(ended_by(lambda _: [Compute(1, kernel, ("canary-7734",))])) == 70
    err = capsys.readouterr().err
    assert "ValueError" in err
    assert "test_driver.py" in err
    assert "canary" not in err


def test_an_error_in_a_kernel_is_an_error_of_the_process() -> None:
    def kernel() -> None:
        raise InvariantError("violated: kernels do not fail")

    async def main() -> None:
        machine = Scripted(lambda _: [Compute(1, kernel)])
        driver = Driver(ME, machine, Wire(), on_decide=print)
        driver.start()
        await driver.run()

    with pytest.raises(InvariantError):
        asyncio.run(main())


def test_the_driver_stops_reading_while_effects_pile_up(tmp_path: Path) -> None:
    """A disk slower than the network must not fill the memory."""

    async def main() -> None:
        wire = Wire()
        journal = Journal.open(tmp_path / "j", Codec(RECORDS))
        add = Persist(Add(1, 1))
        machine = Scripted(lambda _: [add, *[Send(PEER, Added(1, 1))] * 60_000])
        driver = Driver(ME, machine, wire, on_decide=print, journal=journal)
        for number in (1, 2):
            driver.on_message(PEER, Vote(0, 0), (bytes(16), number))
        wire.after_reading()
        assert wire.calls == [("pause",)]
        while wire.calls[-1] != ("resume",):
            await asyncio.sleep(0)
        driver.stop()
        await driver.run()

    asyncio.run(main())


def test_machines_in_one_process_wait_for_time_only_when_nothing_else_is_left() -> None:
    order: list[Any] = []

    def script(event: Event) -> list[Effect]:
        order.append(event)
        match event:
            case TimerFired("start"):
                return [SetTimer("late", 10**18), SetTimer("early", 1), Send(ME, Vote(1, 1))]
            case TimerFired("late"):
                return [Decide(len(order))]
        return []

    [result] = run_machines({ME: Scripted(script)}, codecs={ME: Codec(MESSAGES)})
    assert [event.name for event in order if isinstance(event, TimerFired)] == [
        "start",
        "early",
        "late",
    ]
    assert order[1] == Received(ME, Vote(1, 1))
    assert result.outcomes == [4]
    assert result.frames_sent == 1


def test_starting_a_node_does_not_load_what_only_others_need() -> None:
    """The start of a process is paid for by everybody who waits for a command."""
    code = (
        "import sys, veilgrid.node.process\n"
        "print([m for m in ('numpy', 'numba', 'cryptography', 'nacl', 'click') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("[]", "['numpy']")
