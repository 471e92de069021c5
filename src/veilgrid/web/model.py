"""What the HTTP interface returns; each page renders the structure that its JSON route returns."""

from typing import Any

import msgspec


class Version(msgspec.Struct, frozen=True):
    """Which veilgrid answers."""

    name: str
    version: str


class Health(msgspec.Struct, frozen=True):
    """Whether the server does its work."""

    status: str
    jobs_waiting: int
    streams: int


class RunEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A run folder in the list.

    Attributes
    ----------
    id
        Its path below the served folder, with ``/``.
    problem
        Why it cannot be shown; empty if it can.
    written
        UTC, ISO 8601.
    """

    id: str
    scenario: str = ""
    scheme: str = ""
    status: str = ""
    cost: float | None = None
    currency: str = ""
    saving_percent: float | None = None
    certificate_accepted: bool | None = None
    ac_passed: bool | None = None
    individually_rational: bool | None = None
    iterations: int | None = None
    seconds: float | None = None
    written: str = ""
    problem: str = ""


class RoundEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A folder that ``aggregate``, ``capacity``, ``market`` or ``sensitivity`` wrote."""

    id: str
    kind: str
    title: str = ""
    written: str = ""
    has_report: bool = False
    problem: str = ""


class ScenarioEntry(msgspec.Struct, frozen=True):
    """A scenario that can be planned."""

    id: str
    origin: str


class Overview(msgspec.Struct, frozen=True):
    """Everything in the served folder."""

    folder: str
    runs: list[RunEntry]
    rounds: list[RoundEntry]
    comparisons: list[str]
    is_cut: bool


class Scenarios(msgspec.Struct, frozen=True):
    """What can be planned, and how."""

    scenarios: list[ScenarioEntry]
    schemes: list[str]
    can_start: bool


class Card(msgspec.Struct, frozen=True):
    """A figure with its label; ``verdict`` is ``good``, ``bad`` or empty."""

    label: str
    value: str
    detail: str
    verdict: str


class Figure(msgspec.Struct, frozen=True):
    """A plotly figure with its message; ``figure`` is None where it was not asked for."""

    name: str
    title: str
    caption: str
    height: int
    figure: dict[str, Any] | None


class RunView(msgspec.Struct, frozen=True, kw_only=True):
    """A run as its page shows it.

    Attributes
    ----------
    summary
        The JSON object of ``veilgrid run --json``.
    settlement
        Rows of the table of that name, who saves most first.
    """

    id: str
    title: str
    over: str
    headline: str
    scheme: str
    scheme_words: str
    description: str
    currency: str
    facts: list[Card]
    verdicts: list[Card]
    obstacles: list[str]
    exposed: str
    checks: list[Card]
    settlement: list[dict[str, Any]]
    tables: list[str]
    pictures: list[Figure]
    summary: dict[str, Any]


class Listing(msgspec.Struct, frozen=True):
    """A table of a round: columns and rows of text."""

    title: str
    columns: list[str]
    rows: list[list[str]]


class RoundView(msgspec.Struct, frozen=True, kw_only=True):
    """A round as its page shows it; ``result`` is the JSON object that the verb wrote."""

    id: str
    kind: str
    title: str
    facts: list[list[str]]
    listings: list[Listing]
    has_report: bool
    result: dict[str, Any] | None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Runs side by side.

    Attributes
    ----------
    remarks
        What makes them hard to compare, such as different scenarios.
    """

    title: str
    currency: str
    runs: list[str]
    rows: list[dict[str, Any]]
    remarks: list[str]
    pictures: list[Figure]
