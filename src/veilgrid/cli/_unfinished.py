"""What ``veilgrid run`` leaves of a sealed day that is cut short, and how ``--resume`` goes on.

Beside the folder of results, ``DIR.unfinished`` has an encrypted journal and its key, both for
their owner only: everybody's keys, the committed bids and where the sites stood. It is gone once
the results are written.
"""

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click

from veilgrid.cli._summary import Summary
from veilgrid.errors import Finding, InputError, SetupError
from veilgrid.grid.scenario import Scenario
from veilgrid.machine import NodeId
from veilgrid.node.journal import KEY_LENGTH, Journal
from veilgrid.node.wire import Codec
from veilgrid.report.results import MARKER, read_run
from veilgrid.roles.sealed.day import Life
from veilgrid.roles.sealed.keeping import Kept, Opened, Told, bid_count, bids_kept
from veilgrid.roles.sealed.message import Committed
from veilgrid.secret import Randomness, Secret

_JOURNAL: Final = "journal"
_KEY: Final = "key"
_OWN: Final = frozenset({_JOURNAL, f"{_JOURNAL}.new", _KEY})


def folder_of(target: Path) -> Path:
    """Return where a run that writes to ``target`` keeps what it needs to go on."""
    path = target.absolute()
    return path.with_name(path.name + ".unfinished")


def finished(
    target: Path, scenario: Scenario, scheme: str, coordination: str | None
) -> Summary | None:
    """Return the summary of the same day under the same scheme, if ``target`` has it whole."""
    if not (target / MARKER).is_file():
        return None
    record = read_run(target)
    summary: Summary = record.summary
    is_same = summary.get("scheme") == scheme and record.scenario.files() == scenario.files()
    is_same = is_same and coordination in (None, summary.get("coordination"))
    return summary if is_same and summary.get("status") != "aborted" else None


def check_kept(target: Path) -> None:
    """Refuse a folder of others where a run would keep what it needs to go on."""
    folder = folder_of(target)
    found = {one.name for one in folder.iterdir()} if folder.is_dir() else set()
    if found - _OWN or (folder.exists() and not folder.is_dir()):
        raise InputError([Finding(str(folder), "holds something else", "move it away")])


def drop(target: Path) -> None:
    """Remove what was kept: the results are written, or it is not wanted any more."""
    folder = folder_of(target)
    if folder.is_dir():
        check_kept(target)
        shutil.rmtree(folder)


@contextmanager
def kept(
    target: Path, scenario: Scenario, randomness: Randomness, *, is_resumed: bool
) -> Iterator[Life]:
    """Open what a sealed day needs to go on after it was cut short; tell on stderr what that is.

    Raises
    ------
    InputError
        What is there belongs to another scenario, or to somebody else.
    SetupError
        It cannot be written or read, or another run uses it.
    """
    check_kept(target)
    folder = folder_of(target)
    if not is_resumed and folder.is_dir():
        drop(target)
        click.echo("what an unfinished run left was dropped; --resume goes on from it", err=True)
    digest = _digest(scenario)
    journal = Journal.open(folder / _JOURNAL, Codec(Kept), _key(folder))
    try:
        opened, told = _read(journal.records, digest, folder)
        count = bids_kept(journal.records)
        if opened is None or not count:
            if is_resumed:
                click.echo(
                    f"{scenario.name} begins anew: no committed bids to go on with", err=True
                )
            opened, told = Opened.drawn(digest, len(scenario.network.buses), randomness), []
            journal.compact([opened])
        else:
            click.echo(
                f"{scenario.name} goes on: bids of {count} sites were committed and stand; "
                "sites begin from their last kept wishes",
                err=True,
            )
        keeper = _Keeper(journal, folder, len(opened.boxes))
        try:
            yield opened.life(told, keeper)
        except KeyboardInterrupt:
            click.echo(left_behind(target), err=True)
            raise
    finally:
        journal.close()


def left_behind(target: Path) -> str:
    """Say what a run that was cut short leaves."""
    return f"kept in {folder_of(target)}: the same command with --resume goes on from there"


class _Keeper:
    """Appends records to the journal, and says once when the bids are safe."""

    def __init__(self, journal: Journal, folder: Path, party_count: int) -> None:
        self._journal, self._folder, self._missing = journal, folder, party_count

    def __call__(self, node: NodeId, record: Any) -> None:
        self._journal.append(Told(str(node), record))
        self._journal.sync()
        if isinstance(record, Committed):
            self._missing -= 1
            if self._missing == 0:
                text = f"bids of {bid_count(record)} sites are committed and kept"
                text += f" in {self._folder}; if this run is cut short, --resume goes on"
                click.echo(text, err=True)


def _digest(scenario: Scenario) -> bytes:
    parts = (f"{name} {len(octets)}\n".encode() + octets for name, octets in _files(scenario))
    return hashlib.sha256(b"".join(parts)).digest()


def _files(scenario: Scenario) -> list[tuple[str, bytes]]:
    return sorted(scenario.files().items())


def _key(folder: Path) -> Secret[bytes]:
    """Return the journal's key, a new one where there is none."""
    path = folder / _KEY
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.is_file():
        (folder / _JOURNAL).unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEY_LENGTH))
            file.flush()
            os.fsync(file.fileno())
    octets = path.read_bytes()
    if len(octets) != KEY_LENGTH:
        raise SetupError(f"{path} is no key; remove {folder} and run without --resume")
    return Secret(octets)


def _read(
    records: tuple[Any, ...], digest: bytes, folder: Path
) -> tuple[Opened | None, list[Told]]:
    opened = next((one for one in records if isinstance(one, Opened)), None)
    if opened is not None and opened.digest != digest:
        advice = "run without --resume to begin anew"
        raise InputError([Finding(str(folder), "is of another scenario", advice)])
    return opened, [one for one in records if isinstance(one, Told)]
