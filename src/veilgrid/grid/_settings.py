"""``scenario.toml`` of a scenario folder: known keys, types and ranges."""

import re
import tomllib
from dataclasses import dataclass
from typing import Any

from veilgrid.grid._table import Notes, decoded, meant

FILE = "scenario.toml"
INTERVAL_COUNT_MAX = 100_000
START = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)")


@dataclass(frozen=True, slots=True)
class _Number:
    """Range of a number, both ends included, and what to check if a value is outside."""

    low: float
    high: float
    advice: str
    is_whole: bool = False
    is_required: bool = True


_PER_UNIT = "per-unit: 1.0 is nominal, so 10.3 kV on a base of 10 kV is 1.03"
NUMBERS = {
    "interval_minutes": _Number(1, 1440, "whole minutes, e.g. 15", is_whole=True),
    "interval_count": _Number(1, INTERVAL_COUNT_MAX, "a day of 15 minutes has 96", is_whole=True),
    "base_kv": _Number(0.05, 1500.0, "in kV, not V"),
    "base_mva": _Number(1e-4, 1e4, "in MVA, not kVA; 1.0 is usual"),
    "slack_voltage_pu": _Number(0.5, 1.5, _PER_UNIT),
    "voltage_min_pu": _Number(0.5, 1.5, _PER_UNIT, is_required=False),
    "voltage_max_pu": _Number(0.5, 1.5, _PER_UNIT, is_required=False),
    "voltage_margin_pu": _Number(0.0, 0.5, "0.002 is usual", is_required=False),
}
TEXTS = {
    "name": "names the scenario in reports",
    "description": "one line for people",
    "start": 'e.g. "2016-07-18T00:00:00+02:00"',
    "currency": 'of all prices, e.g. "EUR"',
    "slack_bus": "the substation's bus",
}
KEYS = (*TEXTS, *NUMBERS)


def read_settings(data: bytes, notes: Notes) -> dict[str, Any]:
    """Return the values of all keys that are sound; the rest is noted."""
    raw = _parsed(data, notes)
    if raw is None:
        return {}
    for key in raw:
        if key not in KEYS:
            known = f"known keys: {', '.join(KEYS)}"
            notes.fault(f"{FILE} key {key}", "is unknown", meant(key, KEYS) or known)
    settings: dict[str, Any] = {}
    for key in KEYS:
        rule = NUMBERS.get(key)
        if key in raw:
            settings |= _value(key, raw[key], notes)
        elif rule is None or rule.is_required:
            advice = rule.advice if rule else TEXTS[key]
            notes.fault(f"{FILE} key {key}", "is missing", advice)
    _check_voltages(settings, notes)
    return settings


def _parsed(data: bytes, notes: Notes) -> dict[str, Any] | None:
    text = decoded(FILE, data, notes)
    if text is None:
        return None
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        notes.fault(FILE, f"is not valid TOML: {error}", "texts stand in double quotes")
        return None


def _value(key: str, raw: object, notes: Notes) -> dict[str, Any]:
    here = f"{FILE} key {key}"
    rule = NUMBERS.get(key)
    if rule is not None:
        return _number(here, key, raw, rule, notes)
    if key == "start":
        return _start(here, raw, notes)
    if key == "slack_bus" and isinstance(raw, int) and not isinstance(raw, bool):
        raw = str(raw)
    if not isinstance(raw, str) or not (raw.strip() or key == "description"):
        notes.fault(here, f"is {str(raw)[:40]!r}, a text is needed")
        return {}
    return {key: raw.strip() if key in ("slack_bus", "name", "currency") else raw}


def _number(here: str, key: str, raw: object, rule: _Number, notes: Notes) -> dict[str, Any]:
    kinds = (int,) if rule.is_whole else (int, float)
    if isinstance(raw, bool) or not isinstance(raw, kinds):
        kind = "a whole number" if rule.is_whole else "a number"
        notes.fault(here, f"is {str(raw)[:40]!r}, {kind} is needed", rule.advice)
        return {}
    if not rule.low <= raw <= rule.high:
        shown = str(raw)[:24]
        notes.fault(here, f"is {shown}, must be in {rule.low:g} … {rule.high:g}", rule.advice)
        return {}
    return {key: raw if rule.is_whole else float(raw)}


def _start(here: str, raw: object, notes: Notes) -> dict[str, Any]:
    """Accept a TOML date-time or a text, if it is a real moment with an offset."""
    written = getattr(raw, "isoformat", lambda: raw)()
    if not isinstance(written, str) or START.fullmatch(written) is None:
        notes.fault(
            here,
            f"is {str(written)[:40]!r}, ISO 8601 with an offset from UTC is needed",
            TEXTS["start"],
        )
        return {}
    seconds = "" if START.fullmatch(written)[1] else ":00"  # type: ignore[index]
    try:
        tomllib.loads(f"start = {written[:16]}{seconds}{written[16:]}")
    except ValueError:
        notes.fault(here, f"is {written!r}, no such date or time exists")
        return {}
    return {"start": written}


def _check_voltages(settings: dict[str, Any], notes: Notes) -> None:
    low, high = settings.get("voltage_min_pu"), settings.get("voltage_max_pu")
    margin = settings.get("voltage_margin_pu", 0.0)
    if low is not None and high is not None:
        if low >= high:
            notes.fault(f"{FILE} key voltage_min_pu", f"is {low}, not below voltage_max_pu {high}")
        elif low + margin >= high - margin:
            notes.fault(
                f"{FILE} key voltage_margin_pu",
                f"is {margin}, so wide that nothing is left between {low} and {high}",
            )
    slack = settings.get("slack_voltage_pu")
    here = f"{FILE} key slack_voltage_pu"
    if slack is not None and low is not None and slack < low:
        notes.remark(here, f"is {slack}, below voltage_min_pu {low}")
    if slack is not None and high is not None and slack > high:
        notes.remark(here, f"is {slack}, above voltage_max_pu {high}")
