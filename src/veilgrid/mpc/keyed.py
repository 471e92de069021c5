"""Clients that registered keys: a round's message without public-key work [risk 2.5].

Once, say each morning, a client seals a master seed for each set of parties and one code key for
each party, and signs. From then on a message is its correction, commitments to seeds that follow
from masters and session, and one authentication code a party. Who can read a message alone cannot
forge one for another party, and a code shows nothing to third ones; so a message counts once
``n - degree`` parties hold it, of whom one at least is honest and found its own code right.
"""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox

from veilgrid.errors import invariant
from veilgrid.mpc._points import key_sets
from veilgrid.mpc.bulk import BulkMailbox
from veilgrid.mpc.client import Enrolled, Received, commitment, digest_of
from veilgrid.mpc.field import PRIME_FIELD, encode, octets_of
from veilgrid.mpc.layout import Integers, Layout
from veilgrid.mpc.message import Submission
from veilgrid.mpc.prss import Members, client_words
from veilgrid.secret import Randomness, Secret
from veilgrid.signature import Signs, verify

DOMAIN: Final = "mpc/1/registration"
_SEED: Final = 16
_CODE: Final = 16


class Registration(msgspec.Struct, frozen=True, tag=True):
    """What a client says once, the same for every party.

    Attributes
    ----------
    scope
        For which committee and time it holds; one of another scope is refused.
    boxes
        For each party the masters of its sets and its code key, sealed.
    """

    scope: bytes
    client: str
    boxes: list[bytes]
    signature: bytes


@dataclass(frozen=True, slots=True)
class ClientKeys:
    """What a client keeps: a master seed a set, and a code key a party, in order."""

    masters: Secret[dict[Members, bytes]]
    codes: Secret[list[bytes]]


@dataclass(frozen=True, slots=True)
class PartyKeys:
    """What one party keeps of one client: masters of its own sets, and its code key."""

    masters: Secret[dict[Members, bytes]]
    code: Secret[bytes]


def _statement(registration: Registration) -> bytes:
    return msgspec.msgpack.encode(msgspec.structs.replace(registration, signature=b""))


def register(
    scope: bytes,
    client: str,
    *,
    degree: int,
    box_keys: Sequence[bytes],
    signer: Signs,
    randomness: Randomness,
) -> tuple[Registration, ClientKeys]:
    """Make a client's registration, and what the client keeps.

    Parameters
    ----------
    scope
        For which committee and time.
    client
        Own name.
    degree
        Of the sharings; less than half of the parties may be corrupt.
    box_keys
        Public encryption key of each party, in order.
    signer, randomness
        Own signature key, and where keys come from.
    """
    n = len(box_keys)
    invariant(2 * degree < n, "a majority is honest, so that one who holds a message is")
    masters = {members: randomness.octets(_SEED) for members in key_sets(n, degree)}
    codes = [randomness.octets(_CODE) for _ in range(n)]
    boxes = []
    for party, key in enumerate(box_keys, 1):
        own = [master for members, master in masters.items() if party in members]
        boxes.append(SealedBox(PublicKey(key)).encrypt(b"".join([*own, codes[party - 1]])))
    plain = Registration(scope, client, boxes, b"")
    signed = msgspec.structs.replace(plain, signature=signer.sign(DOMAIN, _statement(plain)))
    return signed, ClientKeys(Secret(masters), Secret(codes))


def admit(
    registration: Registration,
    scope: bytes,
    enrolled: Enrolled,
    party: int,
    n: int,
    degree: int,
    box_key: Secret[bytes],
) -> PartyKeys | None:
    """Return a party's keys of a client; None where it is forged, of another scope or unreadable.

    A client that gives members of a set different masters is found out in its first round,
    whose commitments then do not fit.

    Parameters
    ----------
    registration, scope
        What the client sent, and which scope is meant.
    enrolled
        Its signature key.
    party, n, degree, box_key
        Own number, the committee, and the own decryption key.
    """
    own = [members for members in key_sets(n, degree) if party in members]
    if registration.scope != scope or len(registration.boxes) != n or 2 * degree >= n:
        return None
    said = _statement(registration)
    if not verify(enrolled.verify_key, DOMAIN, said, registration.signature):
        return None
    box = SealedBox(PrivateKey(box_key.reveal_to("decryption")))
    try:
        octets = box.decrypt(registration.boxes[party - 1])
    except CryptoError:
        return None
    if len(octets) != _SEED * len(own) + _CODE:
        return None
    masters = {one: octets[_SEED * k : _SEED * (k + 1)] for k, one in enumerate(own)}
    return PartyKeys(Secret(masters), Secret(octets[-_CODE:]))


def _seed(session: bytes, members: Members, master: bytes) -> bytes:
    """Return the seed of a set in one session."""
    head = b"veilgrid mpc session seed %d:" % len(session)
    return hmac.digest(master, head + session + bytes(members), "sha256")[:_SEED]


def _code(key: bytes, submission: Submission) -> bytes:
    """Return the authentication code of a message for one party."""
    digest = hashlib.blake2b(
        msgspec.msgpack.encode((submission.session, submission.client, submission.form)),
        key=key,
        digest_size=_CODE,
        person=b"veilgrid mpc 1",
    )
    digest.update(submission.correction)
    for one in submission.commitments:
        digest.update(one)
    return digest.digest()


def submit_keyed(session: bytes, client: str, bits: Sequence[int], keys: ClientKeys) -> Submission:
    """Make a registered client's one message of a session.

    Parameters
    ----------
    session
        Of the computation; never sent to twice, for the seeds would be the same.
    client
        Own name.
    bits
        The input, as elements of its layout.
    keys
        Of :func:`register`.
    """
    masters = keys.masters.reveal_to("session seeds")
    seeds = {members: _seed(session, members, master) for members, master in masters.items()}
    rest = encode(bits)
    for members, seed in seeds.items():
        words = client_words(seed, members, 2 * len(bits))
        rest = PRIME_FIELD.subtract(rest, PRIME_FIELD.from_words(words))
    plain = Submission(
        session,
        client,
        f"keyed {len(bits)}",
        bytes(octets_of(PRIME_FIELD.flat(PRIME_FIELD.from_words(PRIME_FIELD.flat(rest))))),
        [commitment(session, client, members, seed) for members, seed in seeds.items()],
        [],
        b"",
    )
    codes = [_code(key, plain) for key in keys.codes.reveal_to("authentication")]
    return msgspec.structs.replace(plain, boxes=codes)


class KeyedMailbox(BulkMailbox):
    """One party's messages of registered clients, all of one layout.

    Parameters
    ----------
    party, n, degree, session, clients, box_key, layout, fallback
        As of :class:`~veilgrid.mpc.bulk.BulkMailbox`.
    keys
        Of :func:`admit`; who is not in it is refused until it has registered.
    """

    signature_octets = 0

    def __init__(
        self,
        party: int,
        n: int,
        degree: int,
        session: bytes,
        clients: Mapping[str, Enrolled],
        box_key: Secret[bytes],
        layout: Layout,
        keys: Mapping[str, PartyKeys],
        fallback: Integers | None = None,
    ) -> None:
        invariant(2 * degree < n, "a majority is honest, so that one who holds a message is")
        super().__init__(party, n, degree, session, clients, box_key, layout, fallback)
        self._keys = dict(keys)
        self._label = f"keyed {layout.size}"
        self._sets = key_sets(n, degree)

    @property
    def box_octets(self) -> int:
        """Return how long an authentication code is."""
        return _CODE

    def accept(self, submission: Submission) -> str:
        """Take a message; return why it was refused, or an empty text."""
        keys = self._keys.get(submission.client)
        if keys is None or submission.client not in self.clients:
            return "unknown client"
        refused = self._refusal(submission)
        if refused:
            return refused
        own = _code(keys.code.reveal_to("authentication"), submission)
        if not hmac.compare_digest(own, submission.boxes[self.party - 1]):
            return "forged"
        return self._take(submission, keys)

    def accept_vouched(self, submission: Submission) -> str:
        """Take a message that ``n - degree`` parties hold, whatever its code for this one says.

        One of them is honest and found its own code right, so the client did send it.
        """
        keys = self._keys.get(submission.client)
        if keys is None or submission.client not in self.clients:
            return "unknown client"
        return self._refusal(submission) or self._take(submission, keys)

    def _refusal(self, submission: Submission) -> str:
        if submission.session != self.session:
            return "other session"
        is_shaped = (
            len(submission.correction) == 16 * self.size(submission.client)
            and submission.form == self._label
            and [len(one) for one in submission.commitments] == [32] * len(self._sets)
            and [len(one) for one in submission.boxes] == [_CODE] * self.n
            and not submission.signature
        )
        if not is_shaped:
            return "wrong shape"
        return "repeated" if submission.client in self.received else ""

    def _take(self, submission: Submission, keys: PartyKeys) -> str:
        masters = keys.masters.reveal_to("session seeds")
        seeds = {
            members: seed
            for members, master in masters.items()
            if self.is_committed(submission, members, seed := _seed(self.session, members, master))
        }
        self.received[submission.client] = Received(submission, digest_of(submission), seeds)
        return ""
