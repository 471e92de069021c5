"""Rounds of aggregation and the standing of their sources, in SQLite [risk 3.3].

A round is reserved before it starts; its result and all new standings are written in one
transaction after it. Whatever happens in between, the standings are those after some whole round.
"""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from veilgrid.errors import SetupError
from veilgrid.risk.trust import Conduct, Standing

_VERSION: Final = 1
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS round (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    function TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('reserved', 'done', 'failed')),
    result TEXT
);
CREATE TABLE IF NOT EXISTS standing (
    source TEXT PRIMARY KEY,
    good REAL NOT NULL, bad REAL NOT NULL, variance REAL NOT NULL,
    brier REAL NOT NULL, crps REAL NOT NULL, rounds INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS conduct (
    round INTEGER NOT NULL REFERENCES round (number),
    source TEXT NOT NULL, conduct INTEGER NOT NULL, share REAL NOT NULL,
    PRIMARY KEY (round, source)
);
"""


@dataclass(frozen=True, slots=True)
class PastRound:
    """One round as it was remembered.

    Attributes
    ----------
    shares
        By source, its part of the whole weight in that round.
    """

    number: int
    function: str
    state: str
    result: dict[str, Any] | None
    shares: dict[str, float]
    conducts: dict[str, Conduct]


class RoundHistory:
    """The memory of one aggregation; use it as a context manager.

    Parameters
    ----------
    path
        A file; made if it does not exist.

    Raises
    ------
    SetupError
        It cannot be opened, or belongs to something else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._database = sqlite3.connect(path, isolation_level=None, timeout=10.0)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
            (tables,) = self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if version not in (0, _VERSION) or (version == 0 and tables):
                raise SetupError(f"{path} is not a history of rounds; name another file")
            if version == 0:
                script = f"BEGIN IMMEDIATE;{_TABLES}PRAGMA user_version = {_VERSION};COMMIT;"
                self._database.executescript(script)
        except sqlite3.Error as error:
            raise SetupError(f"{path} cannot be used as a history: {error}") from None

    def __enter__(self) -> "RoundHistory":
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def standings(self) -> dict[str, Standing]:
        """Return everybody's standing after the last whole round."""
        rows = self._rows("SELECT source, good, bad, variance, brier, crps, rounds FROM standing")
        return {
            source: Standing(
                good=good, bad=bad, variance=variance, brier=brier, crps=crps, rounds=rounds
            )
            for source, good, bad, variance, brier, crps, rounds in rows
        }

    def reserve(self, function: str) -> int:
        """Remember, durably, that a round begins; return its number.

        A number is never used twice, also not after a crash.
        """
        statement = "INSERT INTO round (function, state) VALUES (?, 'reserved')"
        number = self._database.execute(statement, (function,)).lastrowid
        return int(number or 0)

    def complete(
        self,
        number: int,
        result: Mapping[str, Any],
        conducts: Mapping[str, Conduct],
        shares: Mapping[str, float],
        standings: Mapping[str, Standing],
    ) -> None:
        """Write a round's result, its conducts and all new standings at once.

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
                database.executemany(
                    "INSERT INTO conduct VALUES (?, ?, ?, ?)",
                    [
                        (number, source, int(conduct), shares.get(source, 0.0))
                        for source, conduct in conducts.items()
                    ],
                )
                database.executemany(
                    "INSERT OR REPLACE INTO standing VALUES (?, ?, ?, ?, ?, ?, ?)",
                    [
                        (
                            source,
                            one.good,
                            one.bad,
                            one.variance,
                            one.brier,
                            one.crps,
                            one.rounds,
                        )
                        for source, one in standings.items()
                    ],
                )
            database.execute("COMMIT")
        except BaseException:
            database.execute("ROLLBACK")
            raise

    def fail(self, number: int) -> None:
        """Remember that a round ended without a result."""
        statement = "UPDATE round SET state = 'failed' WHERE number = ? AND state = 'reserved'"
        self._database.execute(statement, (number,))

    def rounds(self) -> list[PastRound]:
        """Return all rounds, oldest first."""
        conducts: dict[int, dict[str, Conduct]] = {}
        shares: dict[int, dict[str, float]] = {}
        listed = "SELECT round, source, conduct, share FROM conduct"
        for number, source, conduct, share in self._rows(listed):
            conducts.setdefault(number, {})[source] = Conduct(conduct)
            shares.setdefault(number, {})[source] = share
        kept = "SELECT number, function, state, result FROM round ORDER BY number"
        return [
            PastRound(
                number,
                function,
                state,
                None if result is None else json.loads(result),
                shares.get(number, {}),
                conducts.get(number, {}),
            )
            for number, function, state, result in self._rows(kept)
        ]

    def _rows(self, statement: str) -> list[Any]:
        try:
            return self._database.execute(statement).fetchall()
        except sqlite3.DatabaseError as error:
            raise SetupError(f"{self._path} is damaged as a history: {error}") from None
