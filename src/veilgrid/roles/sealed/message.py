"""What sites and parties of a sealed day say to each other [sealed 4.1]."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from veilgrid.machine import NodeId
from veilgrid.mpc.message import Message as Inner
from veilgrid.mpc.message import Submission


class Notice(msgspec.Struct, frozen=True, tag=True):
    """A party's word on what a task opened; sites believe ``degree + 1`` equal ones.

    Attributes
    ----------
    task
        Its number.
    result
        What opened to all, encoded.
    own
        By bus of the receiver, what opened behind the pads of its site [sealed 3.4].
    """

    day: bytes
    task: int
    result: bytes
    own: dict[int, bytes] = {}
    attempt: int = 0


class Stopped(msgspec.Struct, frozen=True, tag=True):
    """A party ended a task without a result: the day stops, or is attempted again.

    Attributes
    ----------
    attempt
        In which attempt.
    is_lost
        Whether somebody was only silent: with all parties back, the day can be attempted again.
    is_silence
        Whether it is for somebody's silence; what was proved everybody finds out by itself.
    cause
        The word of another party for which this one stopped, encoded; empty if of its own accord.
    signature
        Of a party, over all of the above.
    """

    day: bytes
    task: int
    reason: str
    culprits: list[str]
    attempt: int = 0
    is_lost: bool = False
    is_silence: bool = False
    cause: bytes = b""
    signature: bytes = b""


class Again(msgspec.Struct, frozen=True, tag=True):
    """A party's word to sites that the day begins again; they believe ``degree + 1`` equal ones.

    Attributes
    ----------
    attempt
        The one that begins.
    is_from_bids
        Whether gate closure was not over yet.
    bids
        What gate closure opened, for sites that have started again; empty if it was not over.
    """

    day: bytes
    attempt: int
    is_from_bids: bool
    bids: bytes = b""


class Rejoined(msgspec.Struct, frozen=True, tag=True):
    """A process of sites has started again and asks for another attempt.

    Attributes
    ----------
    attempt
        The one in which its earlier life spoke.
    """

    day: bytes
    attempt: int


class Over(msgspec.Struct, frozen=True, tag=True):
    """A party's word to who comes back late: the day has ended, and this is what opened.

    Attributes
    ----------
    task
        The number after the last one's.
    own
        What opened in the task before, behind the pads of the receiver's sites.
    """

    day: bytes
    attempt: int
    task: int
    public: bytes
    own: dict[int, bytes] = {}


class Began(msgspec.Struct, frozen=True, tag=True):
    """Record of a party or of sites: they take part in an attempt from now on.

    Attributes
    ----------
    returned
        Processes of sites that had the day begin again, once for each time.
    bids
        Of sites: digest of each one's committed message, by bus.
    seeds
        Of sites: the seeds of each one's committed message, by bus. Secret.
    is_from_bids
        Of a party: gate closure begins anew, and what was committed to before does not count.
    """

    attempt: int
    returned: list[str] = []
    bids: dict[int, bytes] = {}
    seeds: dict[int, bytes] = {}
    is_from_bids: bool = False


class Collecting(msgspec.Struct, frozen=True, tag=True):
    """Record of the payer: its part of gate closure in an attempt.

    Attributes
    ----------
    seeds
        What its pads come from. Secret.
    submission
        What it sent; sent again after a restart, nobody can tell the difference.
    """

    attempt: int
    seeds: bytes
    submission: Submission


class Collected(msgspec.Struct, frozen=True, tag=True):
    """How a day ended for the payer.

    Attributes
    ----------
    payments : by bus, currency
        Positive: the site pays; negative: it is paid.
    public
        What the certificate opened to all.
    """

    payments: dict[int, float]
    public: dict[str, Any]


class Committed(msgspec.Struct, frozen=True, tag=True):
    """Record of a party: gate closure is over, and this is what sites committed to.

    Attributes
    ----------
    session
        Of the task in which they did.
    result
        What opened.
    """

    session: bytes
    submissions: list[Submission]
    result: bytes


class Wished(msgspec.Struct, frozen=True, tag=True):
    """Record of sites: where they stood, so that another attempt need not begin far off.

    Attributes
    ----------
    own
        Their buses.
    values : (active wish, reactive wish, active price, reactive price; site, interval)
        Octets of float64, per-unit and currency per per-unit. Secret, like the sites' data.
    """

    own: list[int]
    values: bytes


Message = Inner | Notice | Stopped | Again | Rejoined | Over


class DayEnded(msgspec.Struct, frozen=True, tag=True):
    """A party's last word: what opened over the whole day.

    Attributes
    ----------
    round_count
        Of secure computation.
    trip_count
        Messages that waited for one another: one a round, and one to and one from the sites of
        each task in which they speak.
    over
        What it tells who comes back late, of all sites.
    """

    public: dict[str, Any]
    round_count: int
    trip_count: int
    over: Over


Record = Began | Committed | DayEnded


@dataclass(frozen=True)
class Agreement:
    """Who takes part in a sealed day, and with which keys; public.

    Attributes
    ----------
    day
        Name of the day, unique for these participants.
    parties
        In the agreed order.
    degree
        Parties that may collude without learning anything.
    box_keys
        The parties' public encryption keys, in order.
    site_keys
        Public signature key of each bus's site.
    groups
        Where the site of a bus listens.
    payer, payer_key
        To whom all payments open, and its public signature key; ``None`` = to nobody but the sites.
    attempt
        From 0; with one more for each time that the coordination begins again after a loss.
    """

    day: bytes
    parties: tuple[NodeId, ...]
    degree: int
    box_keys: tuple[bytes, ...]
    site_keys: Mapping[int, bytes]
    groups: Mapping[int, NodeId]
    attempt: int = 0
    payer: NodeId | None = None
    payer_key: bytes = b""

    def session(self, task: int) -> bytes:
        """Return the session of a task: what is said in it counts in no other."""
        head = b"veilgrid sealed day %d:%s|%d" % (len(self.day), self.day, task)
        if self.attempt:
            head += b"|%d" % self.attempt
        return hashlib.sha256(head).digest()
