"""The privacy ledger on disk: reserve, compute, remember, answer [privacy 4].

One file, a journal (``node/journal.py``). What a release costs is durable before anything is
computed, and its answer is durable before anybody is told. So a crash at any moment never lets the
ledger count less than what was computed, and who asks again gets the same answer.
"""

import fcntl
import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from veilgrid.errors import Finding, InputError, SetupError
from veilgrid.node.journal import Journal
from veilgrid.node.wire import Codec
from veilgrid.risk.accountant import Charge
from veilgrid.risk.privacy import Budget, Record, Released, Terms

WAIT_S: Final = 600.0
_POLL_S: Final = 0.02


class BudgetFile:
    """A ledger that this process holds alone; open it with :func:`open_budget`.

    Attributes
    ----------
    budget
        What was reserved and answered so far.
    """

    def __init__(self, journal: Journal, budget: Budget) -> None:
        self._journal, self.budget = journal, budget

    def release(
        self,
        day: str,
        question: bytes,
        charges: Sequence[Charge],
        compute: Callable[[], bytes],
        again: Sequence[Charge] | None = None,
    ) -> tuple[bytes, bool]:
        """Answer a question once, and the same way ever after.

        Parameters
        ----------
        day
            Whose budget pays; the day of the readings.
        question
            Everything that determines the answer but noise: function, parameters, readings. Only
            a keyed hash of it is stored.
        charges
            What the release costs.
        compute
            Returns the noisy answer; called at most once, when the cost is durable.
        again
            What it costs if it was begun before and not answered; the same if not given.

        Returns
        -------
        answer, is_repeated
            Whether the answer was given before, at no further cost.

        Raises
        ------
        InputError
            The budget does not allow it; nothing was computed.
        """
        key = self.keyed(question)
        known = self.budget.answer(key)
        if known is not None:
            return known, True
        is_begun = again is not None and self.budget.attempts(key) > 0
        reserved = self.budget.reserve(day, key, again or () if is_begun else charges)
        self._write(reserved)
        answer = compute()
        self._write(Released(reserved.number, answer))
        return answer, False

    def keyed(self, question: bytes) -> bytes:
        """Return the keyed hash by which a question, or anything else, is remembered."""
        return hmac.new(self.budget.terms.salt, question, hashlib.sha256).digest()

    def _write(self, record: Record) -> None:
        self._journal.append(record)
        self._journal.sync()
        self.budget.apply(record)


@contextmanager
def open_budget(
    path: Path, epsilon: float | None, delta: float, wait_s: float = WAIT_S
) -> Iterator[BudgetFile]:
    """Open or create a ledger and hold it until the block ends.

    Other processes wait: two releases from one budget never run at the same time.

    Parameters
    ----------
    path
        Of the file; a lock file lies beside it.
    epsilon, delta
        What a new ledger allows a day. None, or what the file says already, for an old one.
    wait_s : s
        How long to wait for another process.

    Raises
    ------
    InputError
        The file was made with another epsilon.
    SetupError
        The file cannot be used, or another process holds it for too long.
    JournalCorrupt
        A record that was durable once is damaged.
    """
    with _locked(path, wait_s):
        journal = Journal.open(path, Codec(Record))
        try:
            yield BudgetFile(journal, _budget(journal, path, epsilon, delta))
        finally:
            journal.close()


def _budget(journal: Journal, path: Path, epsilon: float | None, delta: float) -> Budget:
    from veilgrid.risk.privacy import EPSILON_DAY

    records = journal.records
    if not records:
        terms = Terms(EPSILON_DAY if epsilon is None else epsilon, delta, secrets.token_bytes(32))
        budget = Budget(terms)
        journal.append(terms)
        journal.sync()
        return budget
    terms, *rest = records
    if not isinstance(terms, Terms):
        raise SetupError(f"{path} is a journal, but not of a privacy budget")
    if epsilon is not None and epsilon != terms.epsilon:
        problem = f"{path.name} allows epsilon {terms.epsilon:g} a day, found {epsilon:g}"
        advice = "leave the option out, or name a new file"
        raise InputError([Finding("--daily-epsilon", problem, advice)])
    budget = Budget(terms)
    for record in rest:
        budget.apply(record)
    return budget


@contextmanager
def _locked(path: Path, wait_s: float) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise SetupError(f"budget {path} cannot be opened ({error.strerror})") from None
    try:
        until = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > until:
                    raise SetupError(f"budget {path} is in use by another process") from None
                time.sleep(_POLL_S)
        yield
    finally:
        os.close(lock)
