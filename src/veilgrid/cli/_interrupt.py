"""Ctrl-C that reaches us whatever the solvers do.

OSQP installs its own handler of SIGINT while it solves and puts the former one back afterwards;
several at once put back each other's, and ours is lost for good. So the signal is blocked in all
threads, and one thread waits for it: then no handler matters.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def blocked() -> Iterator[None]:
    """Block SIGINT in this thread and in those that it starts; one that came is kept for later."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
