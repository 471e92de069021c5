"""Factories of parties that deviate, to be run as processes."""

import random
from collections.abc import Mapping, Sequence

from committee_world import Liar

from veilgrid.cli._committee import MemberArguments, build_member
from veilgrid.machine import Machine, NodeId
from veilgrid.roles.rounds import Record
from veilgrid.secret import Randomness
from veilgrid.signature import Signs
from veilgrid.sim import Silent


def tampering(
    me: NodeId,
    arguments: MemberArguments,
    records: Sequence[Record],
    randomness: Randomness,
    signer: Signs,
    verify_keys: Mapping[NodeId, bytes],
) -> Machine:
    """A party that flips a bit of what it says in one round, and signs that."""
    member = build_member(me, arguments, records, randomness, signer, verify_keys)
    return Liar(member, member, random.Random(1), 5, two_faced=False)


def silent(
    me: NodeId,
    arguments: MemberArguments,
    records: Sequence[Record],
    randomness: Randomness,
    signer: Signs,
    verify_keys: Mapping[NodeId, bytes],
) -> Machine:
    """A party that hears everything and, after its first steps, says nothing."""
    return Silent(build_member(me, arguments, records, randomness, signer, verify_keys), 12)


def stalling(
    me: NodeId,
    arguments: MemberArguments,
    records: Sequence[Record],
    randomness: Randomness,
    signer: Signs,
    verify_keys: Mapping[NodeId, bytes],
) -> Machine:
    """An honest party whose first life hangs in the middle of the round, until it is killed."""
    member = build_member(me, arguments, records, randomness, signer, verify_keys)
    return member if records else Silent(member, 12)
