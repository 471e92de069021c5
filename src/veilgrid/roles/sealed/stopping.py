"""What a party's word that it stopped says: whose it is, for what, and whom to blame [sealed 4.5].

Such words are signed, so that who stops because another did can show why: whoever hears of both
judges the first one's reason by what it heard itself.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from veilgrid.machine import NodeId
from veilgrid.mpc import Party
from veilgrid.roles.sealed.message import Agreement, Stopped
from veilgrid.signature import Signs, verify

_DOMAIN: Final = "sealed/1/stopped"


def _payload(stopped: Stopped) -> bytes:
    return msgspec.msgpack.encode(msgspec.structs.replace(stopped, signature=b""))


def signed(stopped: Stopped, signer: Signs) -> Stopped:
    """Return a party's own word, signed."""
    signature = signer.sign(_DOMAIN, _payload(stopped))
    return msgspec.structs.replace(stopped, signature=signature)


def author_of(
    stopped: Stopped, parties: tuple[NodeId, ...], keys: Mapping[NodeId, bytes]
) -> NodeId | None:
    """Return which party signed this, or None."""
    payload = _payload(stopped)
    return next((p for p in parties if verify(keys[p], _DOMAIN, payload, stopped.signature)), None)


def first_of(
    author: NodeId, stopped: Stopped, agreement: Agreement, keys: Mapping[NodeId, bytes]
) -> tuple[NodeId, Stopped]:
    """Return the word that came first, and whose it is: who stopped for it shows it."""
    try:
        cause = msgspec.msgpack.decode(stopped.cause, type=Stopped)
    except msgspec.DecodeError:
        return author, stopped
    first = author_of(cause, agreement.parties, keys)
    is_of_now = (cause.day, cause.attempt) == (agreement.day, agreement.attempt)
    is_reason = is_of_now and not cause.cause and (cause.is_lost or cause.is_silence)
    return (first, cause) if first is not None and is_reason else (author, stopped)


def to_blame(author: NodeId, stopped: Stopped, inner: Party | None) -> list[str]:
    """Return whom to blame for what somebody stopped for; nobody if that cannot be told.

    ``inner`` is the computation in which it stopped, as this party knows it.
    """
    if stopped.culprits == [str(author)]:
        return [str(author)]
    return [] if inner is None else inner.to_blame(author, stopped.culprits)


def disputed(author: NodeId, stopped: Stopped) -> str:
    """Say that two parties accuse each other."""
    others = " or ".join(stopped.culprits)
    return f"{stopped.reason}: whether {author} or {others} is to blame could not be told"
