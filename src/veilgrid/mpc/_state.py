"""What changes while a party runs."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from nacl.public import PrivateKey

from veilgrid.mpc._courier import Errand
from veilgrid.mpc._round import Heard, Round, Steps
from veilgrid.mpc.engine import Engine
from veilgrid.mpc.message import Finding, Relay, Reproach, Said, Testimony
from veilgrid.mpc.prss import Keyring
from veilgrid.secret import Secret


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
    late
        How many counts of patience this party waited for whom.
    wanted
        By whose words: who asked for them before they were here.
    """

    said: dict[int, Said] = field(default_factory=dict)
    digests: dict[int, bytes] = field(default_factory=dict)
    heard: list[Heard] | None = None
    late: Counter[int] = field(default_factory=Counter)
    wanted: dict[int, set[int]] = field(default_factory=dict)


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
    tick: int = 0
    box: tuple[int, Secret[PrivateKey]] | None = None
    errands: dict[tuple[int, int], Errand] = field(default_factory=dict)
    reproaches: list[Reproach] = field(default_factory=list)
    failure: tuple[str, tuple[int, ...]] | None = None
    failed_at: int = -1
    alarms: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    evidence: list[Relay] = field(default_factory=list)
    testimonies: dict[int, Testimony] = field(default_factory=dict)
    findings: dict[int, dict[int, Finding]] = field(default_factory=dict)
    doubles: set[int] = field(default_factory=set)
    lacking: set[int] = field(default_factory=set)
    contradicted: tuple[int, set[int]] | None = None
    sighted: set[int] | None = None
    failing: int | None = None
    is_judging: bool = False
    is_started: bool = False
    is_over: bool = False
