"""A factory of a party of a sealed day that deviates, to be run as a process."""

from collections.abc import Mapping, Sequence

from veilgrid.machine import NodeId
from veilgrid.roles.sealed.attack import DeviantParty
from veilgrid.roles.sealed.deployment import PartyArguments, build_party
from veilgrid.roles.sealed.message import Record
from veilgrid.roles.sealed.party import SealedParty
from veilgrid.secret import Randomness
from veilgrid.signature import Signs


def build_liar(
    me: NodeId,
    arguments: PartyArguments,
    records: Sequence[Record],
    randomness: Randomness,
    signer: Signs,
    verify_keys: Mapping[NodeId, bytes],
) -> SealedParty:
    """A party that flips a bit of what it says in one round of the third task, and signs that."""
    party = build_party(me, arguments, records, randomness, signer, verify_keys)
    party.__class__ = DeviantParty
    party.task_number, party.round_number = 3, 4  # type: ignore[attr-defined]
    return party
