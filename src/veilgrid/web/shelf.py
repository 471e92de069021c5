"""What lies in the served folder: found by walking it, never by a path that a caller sends.

An id is the path that the walk found. Whatever a caller asks for is looked up among these, so that
``..``, absolute paths and links lead nowhere.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from veilgrid.errors import Finding, InputError, VeilgridError
from veilgrid.report import page, words
from veilgrid.report.folders import bundled_scenarios
from veilgrid.report.plot import Picture
from veilgrid.report.results import MARKER, REPORT, SUMMARY, RunRecord, read_run
from veilgrid.report.results import SCENARIO as OWN_SCENARIO
from veilgrid.report.tables import COLUMNS
from veilgrid.web.model import (
    Card,
    Comparison,
    Figure,
    Listing,
    Overview,
    RoundEntry,
    RoundView,
    RunEntry,
    RunView,
    ScenarioEntry,
)

DEPTH_MAX = 4
FOLDERS_MAX = 5000
RESULT_OCTETS_MAX = 64 * 1024 * 1024
RECORDS_KEPT = 4
COMPARED_MAX = 12
COMPARE_PAGE = "compare.html"
ROUNDS = ("aggregate", "capacity", "market", "sensitivity")
"""Verbs whose ``--out`` folder holds ``VERB.json``."""


class Missing(Exception):
    """There is no such thing in the folder."""


class Shelf:
    """Read the runs, rounds and scenarios below one folder; safe from any thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._lock = threading.Lock()
        self._records: OrderedDict[tuple[str, int], RunRecord] = OrderedDict()

    # -- finding -----------------------------------------------------------------------

    def folders(self) -> tuple[dict[str, Path], bool]:
        """Return the folders that are looked at by id, and whether there were too many."""
        found: dict[str, Path] = {self.folder.name or "folder": self.folder}
        layer = [("", self.folder)]
        for _ in range(DEPTH_MAX):
            below: list[tuple[str, Path]] = []
            for prefix, parent in layer:
                for entry in _subfolders(parent):
                    if len(found) >= FOLDERS_MAX:
                        return found, True
                    name = f"{prefix}{entry.name}"
                    found[name] = entry
                    below.append((f"{name}/", entry))
            layer = below
        return found, False

    def overview(self) -> Overview:
        """List everything, the newest first."""
        folders, is_cut = self.folders()
        runs = [_run_entry(name, path) for name, path in folders.items() if _is_run(path)]
        rounds = [
            _round_entry(name, path, kind)
            for name, path in folders.items()
            if not _is_run(path) and (kind := _round_kind(path))
        ]
        return Overview(
            folder=self.folder.name,
            runs=sorted(runs, key=lambda run: run.written, reverse=True),
            rounds=sorted(rounds, key=lambda one: one.written, reverse=True),
            comparisons=[name for name, path in folders.items() if _is_file(path / COMPARE_PAGE)],
            is_cut=is_cut,
        )

    def scenarios(self) -> dict[str, tuple[ScenarioEntry, Path]]:
        """Return the scenarios that can be planned: bundled ones, then those in the folder."""
        known = {
            name: (ScenarioEntry(name, "bundled"), path)
            for name, path in bundled_scenarios().items()
        }
        for name, path in self.folders()[0].items():
            if _is_file(path / "scenario.toml") and name not in known:
                is_own = path.name == OWN_SCENARIO and _is_run(path.parent)
                known[name] = (ScenarioEntry(name, "of a run" if is_own else "folder"), path)
        return known

    def _folder(self, name: str) -> Path:
        path = self.folders()[0].get(name)
        if path is None:
            raise Missing(name)
        return path

    # -- runs --------------------------------------------------------------------------

    def record(self, name: str) -> RunRecord:
        """Read a run whole; a run that was read and not written since is remembered.

        Raises
        ------
        Missing
            There is no run of that id.
        InputError
            The run is damaged.
        """
        path = self._folder(name)
        if not _is_run(path):
            raise Missing(name)
        key = (name, (path / MARKER).stat().st_mtime_ns)
        with self._lock:
            if key in self._records:
                self._records.move_to_end(key)
                return self._records[key]
        record = read_run(path)
        with self._lock:
            self._records[key] = record
            while len(self._records) > RECORDS_KEPT:
                self._records.popitem(last=False)
        return record

    def run(self, name: str, *, with_figures: bool) -> RunView:
        """Return a run as its page shows it."""
        record = self.record(name)
        return _run_view(name, record, with_figures)

    def table(self, name: str, table: str) -> str:
        """Return a table of a run as CSV."""
        if table not in COLUMNS:
            raise Missing(table)
        text: str = self.record(name).tables.named()[table].to_csv(index=False, lineterminator="\n")
        return text

    def html(self, name: str) -> str:
        """Return the HTML report that a verb left in a folder."""
        path = self._folder(name)
        for file in (path / REPORT, path / COMPARE_PAGE):
            if _is_file(file):
                return file.read_text(encoding="utf-8")
        raise Missing(name)

    def comparison(self, names: Sequence[str], *, with_figures: bool) -> Comparison:
        """Set runs side by side.

        Raises
        ------
        InputError
            Fewer than two runs, or too many.
        """
        chosen = list(dict.fromkeys(names))
        if not 2 <= len(chosen) <= COMPARED_MAX:
            problem = f"{len(chosen)} runs were chosen, expected 2 to {COMPARED_MAX}"
            raise InputError([Finding("run", problem, "choose runs in the list")])
        records = {name: self.record(name) for name in chosen}
        return _comparison(records, with_figures)

    # -- rounds ------------------------------------------------------------------------

    def round(self, name: str) -> RoundView:
        """Return a round as its page shows it."""
        path = self._folder(name)
        kind = "" if _is_run(path) else _round_kind(path)
        if not kind:
            raise Missing(name)
        result = None if kind == "report" else _json(path / f"{kind}.json")
        facts: list[list[str]] = []
        listings: list[Listing] = []
        for key, value in (result or {}).items():
            _place(key, value, facts, listings)
        return RoundView(
            id=name,
            kind=kind,
            title=_round_title(kind, result or {}),
            facts=facts,
            listings=listings,
            has_report=_is_file(path / REPORT),
            result=result,
        )


def _subfolders(parent: Path) -> list[Path]:
    """Return folders in a folder, hidden ones and links left out."""
    try:
        return sorted(
            entry
            for entry in parent.iterdir()
            if not entry.name.startswith(".") and not entry.is_symlink() and entry.is_dir()
        )
    except OSError:
        return []


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _is_run(path: Path) -> bool:
    return _is_file(path / MARKER) and _is_file(path / SUMMARY)


def _round_kind(path: Path) -> str:
    for kind in ROUNDS:
        if _is_file(path / f"{kind}.json"):
            return kind
    return "report" if _is_file(path / REPORT) else ""


def _written(path: Path) -> str:
    moment = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return moment.isoformat(timespec="seconds")


def _json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    InputError
        It is too large or no object.
    """
    try:
        if path.stat().st_size > RESULT_OCTETS_MAX:
            raise InputError([Finding(path.name, "is larger than 64 MiB")])
        found = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError([Finding(path.name, f"cannot be read: {type(error).__name__}")]) from error
    if not isinstance(found, dict):
        raise InputError([Finding(path.name, "holds no JSON object")])
    return found


def _run_entry(name: str, path: Path) -> RunEntry:
    try:
        found = _json(path / SUMMARY)
        written = _written(path / MARKER)
    except (VeilgridError, OSError) as error:
        return RunEntry(id=name, problem=str(error))
    known = {
        "scenario": found.get("scenario"),
        "scheme": found.get("scheme"),
        "status": found.get("status"),
        "cost": found.get("cost"),
        "currency": found.get("currency"),
        "saving_percent": found.get("saving_percent"),
        "certificate_accepted": words.part(found, "certificate").get("accepted"),
        "ac_passed": words.part(found, "ac_check").get("passed"),
        "individually_rational": words.part(found, "settlement").get("individually_rational"),
        "iterations": found.get("iterations"),
        "seconds": found.get("seconds"),
    }
    told = {key: value for key, value in known.items() if value is not None}
    try:
        return msgspec.convert({"id": name, "written": written, **told}, RunEntry)
    except msgspec.ValidationError as error:
        return RunEntry(id=name, written=written, problem=f"{SUMMARY}: {error}")


def _round_entry(name: str, path: Path, kind: str) -> RoundEntry:
    file = path / (REPORT if kind == "report" else f"{kind}.json")
    try:
        found = {} if kind == "report" else _json(file)
        written = _written(file)
    except (VeilgridError, OSError) as error:
        return RoundEntry(id=name, kind=kind, problem=str(error))
    return RoundEntry(
        id=name,
        kind=kind,
        title=_round_title(kind, found),
        written=written,
        has_report=_is_file(path / REPORT),
    )


def _run_view(name: str, record: RunRecord, with_figures: bool) -> RunView:
    summary, scenario = record.summary, record.scenario
    horizon, network = scenario.horizon, scenario.network
    scheme = str(summary.get("scheme"))
    period = "day" if horizon.hours * horizon.interval_count == 24.0 else "horizon"
    verdicts = (
        words.certificate(summary),
        words.ac_check(summary, network.voltage_min_pu, network.voltage_max_pu),
    )
    checks = words.settlement_checks(summary, record.tables.settlement, scenario.currency)
    ordered = record.tables.settlement.sort_values("saving", ascending=False, kind="stable")
    return RunView(
        id=name,
        title=f"{scenario.name}: {scheme}",
        over=(
            f"{scenario.name} · {horizon.start[:10]} · {horizon.interval_count} intervals of "
            f"{horizon.interval_minutes} min · {len(network.buses)} buses, "
            f"{len(scenario.devices)} devices"
        ),
        headline=words.headline(summary, scenario.currency, period),
        scheme=scheme,
        scheme_words=words.SCHEMES.get(scheme, ""),
        description=scenario.description.rstrip("."),
        currency=scenario.currency,
        facts=_cards(words.facts(summary, scenario.currency, period)),
        verdicts=_cards([fact for fact in verdicts if fact is not None]),
        obstacles=words.obstacles(summary),
        exposed=words.EXPOSED.get(scheme, ""),
        checks=_cards(checks) if len(ordered) else [],
        settlement=[{str(key): row[key] for key in row} for row in ordered.to_dict("records")],
        tables=list(COLUMNS),
        pictures=_figures(page.run_pictures(scheme, scenario, record.tables), with_figures),
        summary=summary,
    )


def _cards(facts: Sequence[words.Fact]) -> list[Card]:
    return [Card(fact.label, fact.value, fact.detail, fact.verdict) for fact in facts]


def _figures(pictures: Sequence[Picture], with_figures: bool) -> list[Figure]:
    return [
        Figure(one.name, one.title, one.caption, one.height, one.figure if with_figures else None)
        for one in pictures
    ]


def _comparison(records: Mapping[str, RunRecord], with_figures: bool) -> Comparison:
    summaries = [record.summary for record in records.values()]
    best = [
        float(one["cost"]) for one in summaries if one.get("scheme") == "central" and one["cost"]
    ]
    scenarios = {str(one.get("scenario")) for one in summaries}
    currencies = {str(one.get("currency", "")) for one in summaries}
    remarks = []
    if len(scenarios) > 1:
        remarks.append("The runs planned different scenarios: costs do not tell which is better.")
    if len(currencies) > 1:
        remarks.append("The runs count in different currencies.")
    can_gap = len(scenarios) == 1 and bool(best)
    entries = []
    for name, one in zip(records, summaries, strict=True):
        gap = None
        if can_gap and one.get("cost") is not None:
            gap = 100.0 * (one["cost"] - best[0]) / abs(best[0])
        entries.append({"gap_percent": gap, **one, "scheme": one.get("scheme"), "run": name})
    rows = page.compare_rows({"schemes": entries})
    for name, row in zip(records, rows, strict=True):
        row["run"] = name
        row["scenario"] = str(records[name].summary.get("scenario"))
    drawn = page.compare_pictures([{**row, "scheme": row["run"]} for row in rows])
    return Comparison(
        title=f"{len(rows)} runs side by side",
        currency=", ".join(sorted(currencies)),
        runs=list(records),
        rows=rows,
        remarks=remarks,
        pictures=_figures(drawn, with_figures),
    )


def _round_title(kind: str, result: Mapping[str, Any]) -> str:
    """Say what came out of a round in one line."""
    number = words.number
    if kind == "capacity" and (power := number(result.get("capacity_kw"))) is not None:
        sure = number(result.get("confidence")) or 0.0
        return f"{power:,.1f} kW can be relied on with {100 * sure:g} %"
    if kind == "market":
        price = number(result.get("price"))
        volume = number(result.get("volume")) or 0.0
        return "Nobody trades" if price is None else f"{volume:g} trade at {price:g}"
    if kind == "aggregate" and "function" in result:
        value = number(result.get("value"))
        shown = "withheld" if value is None else f"{value:.6g}"
        return f"{result['function']}: {shown}"
    if kind == "sensitivity":
        return "Sensitivity of the weighting"
    return kind


def _place(key: str, value: object, facts: list[list[str]], listings: list[Listing]) -> None:
    """Put one entry of a result among the facts or make a table of it."""
    label = key.replace("_", " ")
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _place(f"{key}, {name}", inner, facts, listings)
    elif isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        columns = list(dict.fromkeys(str(name) for one in value for name in one))
        rows = [[_text(one.get(name)) for name in columns] for one in value]
        listings.append(Listing(label, [name.replace("_", " ") for name in columns], rows))
    else:
        facts.append([label, _text(value)])


def _text(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, list):
        return ", ".join(_text(one) for one in value) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(inner)}" for key, inner in value.items())
    return str(value)
