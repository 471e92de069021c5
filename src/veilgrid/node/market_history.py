"""Rounds of a market and the weights of its participants, in SQLite [market 7].

A round is reserved before it starts; its result, flags, members and all new weights are written in
one transaction after it. Whatever happens in between, weights are those after some whole round.
"""

import json
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from veilgrid.errors import SetupError

_VERSION: Final = 4101
"""Other than that of histories of aggregation, so that neither takes the other's file."""

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS round (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    bids TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('reserved', 'done', 'failed')),
    result TEXT
);
CREATE TABLE IF NOT EXISTS weight (participant TEXT PRIMARY KEY, weight REAL NOT NULL);
CREATE TABLE IF NOT EXISTS member (participant TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS flag (
    round INTEGER NOT NULL REFERENCES round (number),
    participant TEXT NOT NULL, kind TEXT NOT NULL,
    PRIMARY KEY (round, participant, kind)
);
"""


class MarketHistory:
    """The memory of one market; use it as a context manager.

    Parameters
    ----------
    path
        A file; made if it does not exist. ``:memory:`` forgets.

    Raises
    ------
    SetupError
        It cannot be opened, or belongs to something else.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = path
        try:
            self._database = sqlite3.connect(path, isolation_level=None, timeout=10.0)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
            (tables,) = self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if version not in (0, _VERSION) or (version == 0 and tables):
                raise SetupError(f"{path} is not a history of a market; name another file")
            if version == 0:
                script = f"BEGIN IMMEDIATE;{_TABLES}PRAGMA user_version = {_VERSION};COMMIT;"
                self._database.executescript(script)
        except sqlite3.Error as error:
            raise SetupError(f"{path} cannot be used as a history: {error}") from None

    def __enter__(self) -> "MarketHistory":
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def weights(self) -> dict[str, float]:
        """Return everybody's weight after the last whole round; who is not there has one."""
        return dict(self._rows("SELECT participant, weight FROM weight"))

    def members(self) -> set[str]:
        """Return who took part in the last whole round."""
        return {name for (name,) in self._rows("SELECT participant FROM member")}

    def reserve(self, bids: str) -> int:
        """Remember, durably, that a round begins; return its number.

        A number is never used twice, also not after a crash.
        """
        statement = "INSERT INTO round (bids, state) VALUES (?, 'reserved')"
        return int(self._database.execute(statement, (bids,)).lastrowid or 0)

    def complete(
        self,
        number: int,
        result: Mapping[str, Any],
        members: Iterable[str],
        flags: Iterable[tuple[str, str]],
        weights: Mapping[str, float],
    ) -> None:
        """Write a round's result, members, flags and all new weights at once.

        A round that is not reserved any more is left as it is: nothing counts twice.
        """
        database = self._database
        database.execute("BEGIN IMMEDIATE")
        try:
            changed = database.execute(
                "UPDATE round SET state = 'done', result = ? "
                "WHERE number = ? AND state = 'reserved'",
                (json.dumps(result), number),
            ).rowcount
            if changed == 1:
                flagged = [(number, *one) for one in sorted(set(flags))]
                database.executemany("INSERT INTO flag VALUES (?, ?, ?)", flagged)
                database.execute("DELETE FROM member")
                named = [(name,) for name in sorted(set(members))]
                database.executemany("INSERT INTO member VALUES (?)", named)
                database.executemany(
                    "INSERT OR REPLACE INTO weight VALUES (?, ?)", list(weights.items())
                )
            database.execute("COMMIT")
        except BaseException:
            database.execute("ROLLBACK")
            raise

    def fail(self, number: int) -> None:
        """Remember that a round ended without a result."""
        statement = "UPDATE round SET state = 'failed' WHERE number = ? AND state = 'reserved'"
        self._database.execute(statement, (number,))

    def rounds(self) -> list[tuple[int, str, str]]:
        """Return number, name of the bids and state of all rounds, oldest first."""
        return self._rows("SELECT number, bids, state FROM round ORDER BY number")

    def flags(self) -> list[tuple[int, str, str]]:
        """Return round, participant and kind of all flags, oldest first."""
        return self._rows("SELECT round, participant, kind FROM flag ORDER BY round, participant")

    def _rows(self, statement: str) -> list[Any]:
        try:
            return self._database.execute(statement).fetchall()
        except sqlite3.DatabaseError as error:
            raise SetupError(f"{self._path} is damaged as a history: {error}") from None
