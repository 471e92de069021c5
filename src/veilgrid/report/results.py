"""The results folder of a run: written whole or not at all, read back exactly.

run.json             the JSON object that ``veilgrid run --json`` prints
folder.json          format, version and digests of what is read back
scenario/            the scenario folder that was planned
<table>.parquet      the six tables of :class:`veilgrid.report.tables.Tables`
<table>.csv          those of a few rows: substation, iterations, settlement
report.html          the report for people
ledger.json          what its ledger recorded, under a scheme with one
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow

from veilgrid.errors import Finding, InputError, SetupError, invariant
from veilgrid.grid.scenario import Scenario
from veilgrid.report import page
from veilgrid.report.tables import COLUMNS, Tables, starts_of

FORMAT = "veilgrid run folder"
VERSION = 1
MARKER = "folder.json"
SUMMARY = "run.json"
REPORT = "report.html"
LEDGER = "ledger.json"
SCENARIO = "scenario"
CSV_TABLES = ("substation", "iterations", "settlement")
OWN_FILES = (
    MARKER,
    SUMMARY,
    REPORT,
    LEDGER,
    *(f"{name}.parquet" for name in COLUMNS),
    *(f"{name}.csv" for name in CSV_TABLES),
)
ANOTHER = "name another one"
RUN_AGAIN = "write the run again with `veilgrid run --out`"


@dataclass(frozen=True, kw_only=True, eq=False)
class RunRecord:
    """A finished run.

    Attributes
    ----------
    summary
        Exactly the JSON object of ``veilgrid run --json``.
    scenario
        What was planned.
    tables
        Results by bus, branch, device, interval, iteration and site.
    """

    summary: dict[str, Any]
    scenario: Scenario
    tables: Tables = field(repr=False)


def write_run(path: Path, record: RunRecord) -> Path:
    """Write a run with its report; an earlier run folder at ``path`` is replaced.

    Everything is written into a sibling folder and renamed at the end, so that a failure leaves
    what was there before.

    Returns
    -------
    Path
        Of the report.

    Raises
    ------
    InputError
        ``path`` holds something else than a run of ours.
    SetupError
        It cannot be written.
    """
    path = Path(path).resolve()
    check_target(path)
    with _built_aside(path) as fresh:
        _write_files(fresh, record)
    return path / REPORT


def write_report(path: Path) -> Path:
    """Render the report of an existing run folder anew.

    Raises
    ------
    InputError
        ``path`` is not a complete run folder.
    """
    record = read_run(path)
    target = Path(path) / REPORT
    write_page(target, page.render(record.summary, record.scenario, record.tables))
    return target


def write_page(target: Path, text: str) -> None:
    """Write one file whole or not at all.

    Raises
    ------
    SetupError
        It cannot be written.
    """
    aside = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text, encoding="utf-8")
        aside.replace(target)
    except OSError as error:
        raise _not_writable(target, error) from error
    finally:
        aside.unlink(missing_ok=True)


def read_run(path: Path) -> RunRecord:
    """Read back what :func:`write_run` wrote.

    Raises
    ------
    InputError
        Every file that is missing, changed or unreadable.
    """
    path = Path(path)
    try:
        manifest = _manifest(path)
        findings = list(_damage(path, manifest["digests"]))
    except OSError as error:
        problem = f"cannot be read: {error.strerror or error}"
        raise InputError([Finding(str(error.filename or path), problem)]) from error
    if findings:
        raise InputError(findings)
    tables: dict[str, pd.DataFrame] = {}
    for name in COLUMNS:
        try:
            tables[name] = pd.read_parquet(path / f"{name}.parquet")
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            findings.append(Finding(f"{name}.parquet", f"cannot be read: {error}", RUN_AGAIN))
            continue
        if tuple(tables[name].columns) != COLUMNS[name]:
            findings.append(Finding(f"{name}.parquet", "has other columns", RUN_AGAIN))
    if findings:
        raise InputError(findings)
    scenario = Scenario.read(path / SCENARIO)
    zone = starts_of(scenario)[0].tzinfo
    for table in tables.values():
        if "start" in table and len(table):
            table["start"] = table["start"].dt.tz_convert(zone)
    return RunRecord(
        summary=json.loads((path / SUMMARY).read_text(encoding="utf-8")),
        scenario=scenario,
        tables=Tables(**tables),
    )


def check_target(path: Path) -> None:
    """Raise unless ``path`` is free, empty, or a run of ours with nothing of others in it.

    Raises
    ------
    InputError
        It holds something else, or a file stands in its place.
    SetupError
        Nothing can be written there.
    """
    try:
        _check_target(Path(path).absolute())
    except OSError as error:
        raise _not_writable(path, error) from error


def _check_target(path: Path) -> None:
    for above in path.parents:
        if above.exists():
            code = errno.EACCES if above.is_dir() else errno.ENOTDIR
            if code == errno.ENOTDIR or not os.access(above, os.W_OK | os.X_OK):
                raise OSError(code, os.strerror(code))
            break
    if not path.exists():
        return
    if not path.is_dir():
        raise InputError([Finding(str(path), "is a file, a folder is needed", ANOTHER)])
    entries = sorted(entry.name for entry in path.iterdir())
    if not entries:
        return
    if MARKER not in entries:
        shown = ", ".join(entries[:4]) + (" ..." if len(entries) > 4 else "")
        problem = f"holds something else than a run of ours: {shown}"
        raise InputError([Finding(str(path), problem, "name a new or an empty folder")])
    foreign = [name for name in entries if name not in (*OWN_FILES, SCENARIO)]
    if foreign:
        advice = "replacing the run would delete it; move it away or name another folder"
        raise InputError([Finding(str(path / name), "is not ours", advice) for name in foreign])


@contextmanager
def _built_aside(path: Path) -> Iterator[Path]:
    """Yield a fresh sibling folder; rename it to ``path`` at the end, remove it on failure."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    old = path.with_name(f".{path.name}.{secrets.token_hex(4)}.old")
    try:
        fresh.mkdir(parents=True)
        yield fresh
        if path.exists():
            path.rename(old)
        try:
            fresh.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    except OSError as error:
        raise _not_writable(path, error) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _not_writable(path: Path, error: OSError) -> SetupError:
    reason = error.strerror or type(error).__name__
    return SetupError(f"{path} cannot be written: {reason}; name another place with --out")


def _write_files(folder: Path, record: RunRecord) -> None:
    """Write everything; the marker comes last, so that a half-written folder is not ours."""
    for name, table in record.tables.named().items():
        invariant(tuple(table.columns) == COLUMNS[name], f"{name} has its declared columns")
        table.to_parquet(folder / f"{name}.parquet", index=False)
        if name in CSV_TABLES:
            table.to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")
    summary = json.dumps(record.summary, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / SUMMARY).write_text(summary + "\n", encoding="utf-8")
    (folder / SCENARIO).mkdir()
    record.scenario.write(folder / SCENARIO)
    (folder / REPORT).write_text(
        page.render(record.summary, record.scenario, record.tables), encoding="utf-8"
    )
    manifest = {"format": FORMAT, "version": VERSION, "digests": _digests(folder)}
    (folder / MARKER).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that is read back, by its path in the folder."""
    files = [folder / SUMMARY, *(folder / f"{name}.parquet" for name in COLUMNS)]
    files += sorted((folder / SCENARIO).iterdir())
    return {file.relative_to(folder).as_posix(): _digest(file) for file in files}


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _manifest(path: Path) -> dict[str, Any]:
    """Read the marker of a run folder."""
    advice = "name the folder that `veilgrid run --out` wrote"
    if not path.is_dir():
        problem = "is not a folder" if path.exists() else "does not exist"
        raise InputError([Finding(str(path), problem, advice)])
    marker = path / MARKER
    if not marker.is_file():
        raise InputError([Finding(str(path), f"is not a run folder: {MARKER} is missing", advice)])
    try:
        manifest = json.loads(marker.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError([Finding(str(marker), f"cannot be read: {error}", RUN_AGAIN)]) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError([Finding(str(marker), "does not belong to a run folder", advice)])
    if manifest.get("version") != VERSION or not isinstance(manifest.get("digests"), dict):
        found = manifest.get("version")
        problem = f"has format version {found}, this veilgrid reads {VERSION}"
        raise InputError([Finding(str(marker), problem, RUN_AGAIN)])
    return manifest


def _damage(path: Path, digests: dict[str, str]) -> Iterator[Finding]:
    """Yield every file that is missing or not as it was written."""
    needed = {SUMMARY, *(f"{name}.parquet" for name in COLUMNS)}
    for name in sorted(needed | set(digests)):
        file = path / name
        if not file.is_file():
            yield Finding(str(file), "is missing", RUN_AGAIN)
        elif _digest(file) != digests.get(name):
            yield Finding(str(file), "was changed after the run was written", RUN_AGAIN)
