"""What sites and parties of a sealed day say to each other [sealed 4.1]."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from veilgrid.machine import NodeId
from veilgrid.mpc.message import Message as Inner
from veilgrid.mpc.message import Output


class Notice(msgspec.Struct, frozen=True, tag=True):
    """A party's word on what a task opened; sites believe ``degree + 1`` equal ones.

    Attributes
    ----------
    task
        Its number.
    result
        What opened, encoded.
    """

    day: bytes
    task: int
    result: bytes


class Parcel(msgspec.Struct, frozen=True, tag=True):
    """A party's sealed share of what opens to one bus's site only."""

    day: bytes
    task: int
    bus: int
    output: Output


class Stopped(msgspec.Struct, frozen=True, tag=True):
    """The parties ended a task without a result; the day stops."""

    day: bytes
    task: int
    reason: str
    culprits: list[str]


Message = Inner | Notice | Parcel | Stopped


class DayEnded(msgspec.Struct, frozen=True, tag=True):
    """A party's last word: what opened over the whole day, and in how many rounds."""

    public: dict[str, Any]
    round_count: int


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
    site_keys, site_boxes
        Public signature and encryption key of each bus's site.
    groups
        Where the site of a bus listens.
    """

    day: bytes
    parties: tuple[NodeId, ...]
    degree: int
    box_keys: tuple[bytes, ...]
    site_keys: Mapping[int, bytes]
    site_boxes: Mapping[int, bytes]
    groups: Mapping[int, NodeId]

    def session(self, task: int) -> bytes:
        """Return the session of a task: what is said in it counts in no other."""
        head = b"veilgrid sealed day %d:%s|%d" % (len(self.day), self.day, task)
        return hashlib.sha256(head).digest()
