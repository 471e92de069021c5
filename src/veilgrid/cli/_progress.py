"""Live progress on stderr, and a first Ctrl-C that ends a run with what it reached."""

import _thread
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status

from veilgrid.admm.outcome import Interrupted, Progress, ProgressSink
from veilgrid.cli._interrupt import blocked

LINE_INTERVAL_S = 5.0
"""Where stderr is no terminal, a line is printed at most so often."""


@contextmanager
def shown(title: str) -> Iterator[ProgressSink]:
    """Show iterations as they come; Ctrl-C once raises :class:`Interrupted` at the next one."""
    console = Console(stderr=True)
    asked = False
    is_over = threading.Event()

    def watch() -> None:
        nonlocal asked
        while signal.sigwait({signal.SIGINT}) and not is_over.is_set():
            if asked:
                _thread.interrupt_main()
            else:
                asked = True
                message = "[yellow]stopping after this iteration; Ctrl-C again to drop the run[/]"
                console.print(message)

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

    watcher = threading.Thread(target=watch, name="Ctrl-C", daemon=True)
    with blocked():
        watcher.start()
        try:
            if status is not None:
                status.start()
            yield sink
        finally:
            if status is not None:
                status.stop()
            is_over.set()
            if watcher.ident is not None:
                signal.pthread_kill(watcher.ident, signal.SIGINT)
            watcher.join()
