"""Live progress on stderr, and a first Ctrl-C that ends a run with what it reached."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console
from rich.status import Status

from veilgrid.admm.outcome import Interrupted, Progress, ProgressSink

LINE_INTERVAL_S = 5.0
"""Where stderr is no terminal, a line is printed at most so often."""


@contextmanager
def shown(title: str) -> Iterator[ProgressSink]:
    """Show iterations as they come; Ctrl-C once raises :class:`Interrupted` at the next one."""
    console = Console(stderr=True)
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            signal.default_int_handler(number, frame)
        asked = True
        console.print("[yellow]stopping after this iteration; Ctrl-C again to drop the run[/]")

    status: Status | None = console.status(title) if console.is_terminal else None
    last = time.monotonic()

    def sink(entry: Progress) -> None:
        nonlocal last
        text = (
            f"{title}: iteration {entry.iteration}, primal {entry.primal:.1e}, "
            f"dual {entry.dual:.1e}, cost so far {entry.cost:,.2f}"
        )
        if status is not None:
            status.update(text)
        elif time.monotonic() - last > LINE_INTERVAL_S:
            last = time.monotonic()
            console.print(text, highlight=False)
        if asked:
            raise Interrupted

    previous = signal.signal(signal.SIGINT, ask)
    try:
        if status is not None:
            status.start()
        yield sink
    finally:
        if status is not None:
            status.stop()
        signal.signal(signal.SIGINT, previous)
