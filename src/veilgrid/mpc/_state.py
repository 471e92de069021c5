"""What changes while a party runs."""

from dataclasses import dataclass, field
from typing import Any

from veilgrid.mpc._round import Heard, Round, Steps
from veilgrid.mpc.engine import Engine
from veilgrid.mpc.message import Alarm, Finding, Said, Testimony
from veilgrid.mpc.prss import Keyring


@dataclass(slots=True)
class Heading:
    """A round as it was heard.

    Attributes
    ----------
    said
        What each party said, own included, by 1-based number.
    digests
        Of their shared words.
    heard
        The same as words, once complete.
    """

    said: dict[int, Said] = field(default_factory=dict)
    digests: dict[int, bytes] = field(default_factory=dict)
    heard: list[Heard] | None = None


@dataclass(slots=True)
class State:
    """What changes while a party runs."""

    steps: Steps[Any] | None = None
    engine: Engine | None = None
    keyring: Keyring | None = None
    first: int = -1
    heads: list[bytes] = field(default_factory=list)
    current: Round | None = None
    round: int = -1
    rounds: list[Heading] = field(default_factory=list)
    early: dict[int, Heading] = field(default_factory=dict)
    last_digest: bytes = b""
    outbox: dict[int, dict[int, Said]] = field(default_factory=dict)
    spoken: list[Round] = field(default_factory=list)
    head: bytes = b""
    octets_sent: int = 0
    patience_left: int = 0
    failure: tuple[str, tuple[int, ...]] | None = None
    alarms: dict[int, int] = field(default_factory=dict)
    alarm_messages: list[Alarm] = field(default_factory=list)
    testimonies: dict[int, Testimony] = field(default_factory=dict)
    findings: dict[int, dict[int, Finding]] = field(default_factory=dict)
    doubles: set[int] = field(default_factory=set)
    is_judging: bool = False
    is_started: bool = False
    is_over: bool = False
