"""What goes wrong in a simulated day: a TOML file, checked as a whole [day 6]."""

from collections.abc import Collection, Iterator
from typing import Final, Literal

import msgspec

from veilgrid.errors import ConfigError, Finding
from veilgrid.sim.world import MILLISECOND_NS, Weather

ValidatorLie = Literal["silent", "wrong-verdicts", "replaying", "twins"]
WorkerLie = Literal["silent", "infeasible", "suboptimal", "stale", "unsigned", "replaying"]
SiteLie = Literal["silent", "falsifying", "no-bid"]
_LIES: Final[dict[str, tuple[str, ...]]] = {
    "validator": ("silent", "wrong-verdicts", "replaying", "twins"),
    "worker": ("silent", "infeasible", "suboptimal", "stale", "unsigned", "replaying"),
    "site": ("silent", "falsifying", "no-bid"),
}
EVIDENCE: Final = ("forged", "expired", "replayed", "foreign", "another-program", "none")
_SHARES: Final = ("loss", "repeat", "reorder", "clock_skew", "partition", "crash", "step_crash")


class WeatherFaults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[weather]``: probabilities, but ``clock_skew``, a share, and what has a unit."""

    loss: float = 0.0
    repeat: float = 0.0
    reorder: float = 0.0
    clock_skew: float = 0.0
    partition: float = 0.0
    crash: float = 0.0
    step_crash: float = 0.0
    delay_max_ms: float = 1.0
    crashed_max: int = 1
    down_max_ms: float = 1000.0


class Crash(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[[crash]]``: a process that surely crashes once.

    Attributes
    ----------
    at_step
        Step of the ledger at which it crashes.
    down_ms
        It restarts from its journal after this time.
    """

    node: str
    at_step: int = 2
    down_ms: float = 500.0


class Liar(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[[liar]]``: who departs from the protocol, and how.

    Attributes
    ----------
    node
        ``validator-1`` …, ``worker-1`` …, or ``site:BUS``.
    since
        Step from which a silent one is silent.
    """

    node: str
    kind: str
    since: int = 2


class WrongEvidence(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[[evidence]]``: whose evidence of attestation is wrong, and how.

    Attributes
    ----------
    node
        A process that is asked: ``validator-1`` …, ``worker-1`` …, ``site-1`` … with all its sites.
    """

    node: str
    kind: str


class Faults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file.

    Attributes
    ----------
    storm_steps
        After so many events the weather is calm, so that a day can end.
    attested
        Whether evidence of attestation is asked for [attestation 8].
    """

    validators: int = 4
    workers: int = 3
    site_processes: int = 2
    storm_steps: int = 150_000
    weather: WeatherFaults = WeatherFaults()
    crash: tuple[Crash, ...] = ()
    liar: tuple[Liar, ...] = ()
    attested: bool = False
    evidence: tuple[WrongEvidence, ...] = ()

    @property
    def world_weather(self) -> Weather:
        """As the simulated world takes it."""
        own = self.weather
        return Weather(
            loss_probability=own.loss,
            repeat_probability=own.repeat,
            reorder_probability=own.reorder,
            delay_max_ns=int(own.delay_max_ms * MILLISECOND_NS),
            clock_skew=own.clock_skew,
            partition_probability=own.partition,
            crash_probability=own.crash,
            step_crash_probability=own.step_crash,
            crashed_max=own.crashed_max,
            down_max_ns=int(own.down_max_ms * MILLISECOND_NS),
        )


def check_faults(faults: Faults, nodes: Collection[str], buses: Collection[str], path: str) -> None:
    """Refuse faults that cannot be played, all findings at once.

    Parameters
    ----------
    faults
        As read from the file.
    nodes, buses
        Processes and sites of the day.
    path
        The file, for findings.
    """
    findings = [*_counts(faults, path), *_weather(faults.weather, path)]
    for number, crash in enumerate(faults.crash, 1):
        where = f"{path}, crash {number}"
        if crash.node not in nodes:
            advice = f"one of {', '.join(sorted(nodes))}"
            findings.append(Finding(f"{where}, key node", f"{crash.node!r} is no process", advice))
        if crash.at_step < 1:
            findings.append(Finding(f"{where}, key at_step", f"is {crash.at_step}", "1 or more"))
        if not crash.down_ms > 0:
            findings.append(Finding(f"{where}, key down_ms", f"is {crash.down_ms}", "above 0"))
    for number, liar in enumerate(faults.liar, 1):
        findings += _liar(liar, nodes, buses, f"{path}, liar {number}")
    for number, wrong in enumerate(faults.evidence, 1):
        findings += _evidence(wrong, faults, nodes, f"{path}, evidence {number}")
    if findings:
        raise ConfigError(findings)


def _counts(faults: Faults, path: str) -> Iterator[Finding]:
    if faults.validators < 4 or faults.validators % 3 != 1:
        problem = f"is {faults.validators}; 3f + 1 are needed to bear f liars"
        yield Finding(f"{path}, key validators", problem, "take 4")
    for key in ("workers", "site_processes", "storm_steps"):
        if getattr(faults, key) < 1:
            yield Finding(f"{path}, key {key}", f"is {getattr(faults, key)}", "1 or more")


def _weather(weather: WeatherFaults, path: str) -> Iterator[Finding]:
    where = f"{path}, weather"
    for key in _SHARES:
        value = getattr(weather, key)
        if not 0.0 <= value <= 0.9:
            yield Finding(f"{where}, key {key}", f"is {value}", "0 to 0.9")
    for key in ("delay_max_ms", "down_max_ms"):
        if not 0.2 <= getattr(weather, key) <= 60_000:
            yield Finding(f"{where}, key {key}", f"is {getattr(weather, key)}", "0.2 to 60000")
    if weather.crashed_max < 0:
        yield Finding(f"{where}, key crashed_max", f"is {weather.crashed_max}", "0 or more")


def _evidence(
    wrong: WrongEvidence, faults: Faults, nodes: Collection[str], where: str
) -> Iterator[Finding]:
    if not faults.attested:
        yield Finding(where, "nobody asks for evidence", "put attested = true above it")
    if wrong.node not in nodes or wrong.node == "operator":
        problem = f"{wrong.node!r} is no process that is asked for evidence"
        advice = f"one of {', '.join(sorted({*nodes} - {'operator'}))}"
        yield Finding(f"{where}, key node", problem, advice)
    if wrong.kind not in EVIDENCE:
        advice = f"one of {', '.join(EVIDENCE)}"
        yield Finding(f"{where}, key kind", f"{wrong.kind!r} is no wrong evidence", advice)


def _liar(
    liar: Liar, nodes: Collection[str], buses: Collection[str], where: str
) -> Iterator[Finding]:
    role = liar.node.partition(":")[0] if liar.node.startswith("site:") else liar.node.split("-")[0]
    is_site = role == "site" and liar.node.removeprefix("site:") in buses
    if not is_site and (liar.node not in nodes or role not in ("validator", "worker")):
        problem = f"{liar.node!r} is neither a validator, nor a worker, nor site:BUS"
        yield Finding(f"{where}, key node", problem, "names stand in docs/protocol/day.md 6")
    elif liar.kind not in _LIES[role]:
        problem = f"a {role} cannot be {liar.kind!r}"
        yield Finding(f"{where}, key kind", problem, f"one of {', '.join(_LIES[role])}")
    if liar.since < 1:
        yield Finding(f"{where}, key since", f"is {liar.since}", "1 or more")
