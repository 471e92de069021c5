"""Clients: one sealed message in, a sealed share of a result from every party out [mpc 7.4].

A client chooses one seed for each set of parties. What the seeds expand to, plus a correction
that all may see, is its input; so a sharing is of the right degree whatever the client does.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox

from veilgrid.errors import Finding, InputError
from veilgrid.mpc._points import key_sets
from veilgrid.mpc.field import PRIME_FIELD, Words, decode, encode, octets_of, words_of
from veilgrid.mpc.form import NOTHING, Form
from veilgrid.mpc.message import Output, Submission
from veilgrid.mpc.prss import Members, client_words
from veilgrid.mpc.shamir import open_shares
from veilgrid.secret import Randomness, Secret
from veilgrid.signature import Signs, verify

DOMAIN: Final = "mpc/1/submission"
_SEED: Final = 16


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A client that the parties know.

    Attributes
    ----------
    verify_key
        Of its signatures.
    form
        What it may send; left out where all send alike (:mod:`veilgrid.mpc.bulk`).
    fallback
        Values used when its input is missing or invalid; None leaves it out.
    box_key
        Public key for results that open to it alone; empty if none do.
    """

    verify_key: bytes
    form: Form = NOTHING
    fallback: tuple[int, ...] | None = None
    box_key: bytes = b""


def commitment(session: bytes, client: str, members: Members, seed: bytes) -> bytes:
    """Return what a client commits to a seed of one set by."""
    head = b"veilgrid mpc seed %d:%s%d:%s" % (
        len(session),
        session,
        len(client.encode()),
        client.encode(),
    )
    return hashlib.sha256(head + bytes([len(members), *members]) + seed).digest()


def _payload(submission: Submission) -> bytes:
    return msgspec.msgpack.encode(msgspec.structs.replace(submission, signature=b""))


def digest_of(submission: Submission) -> bytes:
    """Return what identifies a submission between parties."""
    return hashlib.sha256(msgspec.msgpack.encode(submission)).digest()


def submit(
    session: bytes,
    client: str,
    bits: Sequence[int],
    *,
    degree: int,
    box_keys: Sequence[bytes],
    signer: Signs,
    randomness: Randomness,
) -> Submission:
    """Make a client's one message.

    Parameters
    ----------
    session
        Of the computation; a message for another one is refused.
    client
        Own name.
    bits : 0 or 1 each
        The input in its form.
    degree
        Of the sharings.
    box_keys
        Public encryption key of each party, in order.
    signer
        Own signature key.
    randomness
        Where seeds come from.
    """
    return submit_with_seeds(
        session,
        client,
        bits,
        degree=degree,
        box_keys=box_keys,
        signer=signer,
        randomness=randomness,
    )[0]


@dataclass(frozen=True, slots=True)
class Seeds:
    """What a client chose for its message: only it knows all of them [mpc 7.9].

    Attributes
    ----------
    n, degree
        The committee.
    octets
        One seed for each set of parties, in order.
    """

    n: int
    degree: int
    octets: Secret[bytes]

    def words(self, count: int, purpose: bytes = b"") -> Words:
        """Return what all of them stand for together: ``count`` uniform elements a purpose."""
        octets, total = self.octets.reveal_to("own pads"), PRIME_FIELD.zeros(count)
        for number, members in enumerate(key_sets(self.n, self.degree)):
            seed = octets[_SEED * number : _SEED * (number + 1)]
            words = client_words(seed, members, 2 * count, purpose)
            total = PRIME_FIELD.add(total, PRIME_FIELD.from_words(words))
        return total

    def unpadded(self, octets: bytes, purpose: bytes) -> list[int]:
        """Return what opened to this client alone, from what opened to all behind its pads."""
        opened = PRIME_FIELD.from_words(words_of(octets))
        return decode(PRIME_FIELD.subtract(opened, self.words(len(opened), purpose)))


def submit_with_pad(
    session: bytes,
    client: str,
    bits: Sequence[int],
    *,
    degree: int,
    box_keys: Sequence[bytes],
    signer: Signs,
    randomness: Randomness,
) -> tuple[Submission, Secret[int]]:
    """Make a client's one message, and keep the number that hides what opens to it [mpc 7.9].

    The pad is what the seeds expand to behind the input, so it takes no octet of the message.
    """
    submission, seeds = submit_with_seeds(
        session,
        client,
        bits,
        degree=degree,
        box_keys=box_keys,
        signer=signer,
        randomness=randomness,
    )
    return submission, Secret(PRIME_FIELD.numbers(seeds.words(len(bits) + 1)[-1:])[0])


def submit_with_seeds(
    session: bytes,
    client: str,
    bits: Sequence[int],
    *,
    degree: int,
    box_keys: Sequence[bytes],
    signer: Signs,
    randomness: Randomness,
) -> tuple[Submission, Seeds]:
    """Make a client's one message, and keep its seeds: pads come from them [mpc 7.9]."""
    sets, n = key_sets(len(box_keys), degree), len(box_keys)
    drawn = [randomness.octets(_SEED) for _ in sets]
    seeds = Seeds(n, degree, Secret(b"".join(drawn)))
    rest = PRIME_FIELD.subtract(encode(bits), seeds.words(len(bits)))
    boxes = [
        SealedBox(PublicKey(key)).encrypt(
            b"".join(seed for members, seed in zip(sets, drawn, strict=True) if party in members)
        )
        for party, key in enumerate(box_keys, 1)
    ]
    plain = Submission(
        session,
        client,
        f"bits {len(bits)}",
        bytes(octets_of(PRIME_FIELD.flat(PRIME_FIELD.from_words(PRIME_FIELD.flat(rest))))),
        [
            commitment(session, client, members, seed)
            for members, seed in zip(sets, drawn, strict=True)
        ],
        boxes,
        b"",
    )
    return (
        msgspec.structs.replace(plain, signature=signer.sign(DOMAIN, _payload(plain))),
        seeds,
    )


@dataclass(slots=True)
class Received:
    """A submission that one party could check for itself.

    Attributes
    ----------
    seeds
        The own sets' seeds that match their commitments.
    """

    submission: Submission
    digest: bytes
    seeds: dict[Members, bytes]


class Mailbox:
    """One party's submissions of one session.

    Parameters
    ----------
    party, n, degree
        Own number, and the committee.
    clients
        Who may send, and what.
    box_key
        The own decryption key, 32 octets.
    """

    def __init__(
        self,
        party: int,
        n: int,
        degree: int,
        session: bytes,
        clients: Mapping[str, Enrolled],
        box_key: Secret[bytes],
    ) -> None:
        self.party, self.n, self.degree, self.session = party, n, degree, session
        self.clients = dict(clients)
        self._box = SealedBox(PrivateKey(box_key.reveal_to("decryption")))
        self.received: dict[str, Received] = {}

    def accept(self, submission: Submission) -> str:
        """Take a submission; return why it was refused, or an empty text.

        The first genuine one counts. A second, another session's or a forged one is refused.
        """
        enrolled = self.clients.get(submission.client)
        if enrolled is None:
            return "unknown client"
        if submission.session != self.session:
            return "other session"
        if not self._is_shaped(submission):
            return "wrong shape"
        key = enrolled.verify_key
        if not verify(key, DOMAIN, _payload(submission), submission.signature):
            return "forged"
        if submission.client in self.received:
            return "repeated"
        seeds = self._opened(submission)
        self.received[submission.client] = Received(submission, digest_of(submission), seeds)
        return ""

    def accept_vouched(self, submission: Submission) -> str:
        """Take a submission that ``n - degree`` parties hold; return why it was refused."""
        return self.accept(submission)

    def size(self, client: str) -> int:
        """Return how many elements a client sends."""
        return self.clients[client].form.bit_count

    def label(self, client: str) -> str:
        """Return how a client's message names its shape."""
        return f"bits {self.size(client)}"

    def _is_shaped(self, submission: Submission) -> bool:
        sets = key_sets(self.n, self.degree)
        own = sum(1 in members for members in sets)
        return (
            len(submission.correction) == 16 * self.size(submission.client)
            and submission.form == self.label(submission.client)
            and [len(one) for one in submission.commitments] == [32] * len(sets)
            and [len(box) for box in submission.boxes] == [_SEED * own + 48] * self.n
        )

    def _opened(self, submission: Submission) -> dict[Members, bytes]:
        try:
            octets = self._box.decrypt(submission.boxes[self.party - 1])
        except CryptoError:
            return {}
        own = [members for members in key_sets(self.n, self.degree) if self.party in members]
        if len(octets) != _SEED * len(own):
            return {}
        seeds = {
            members: octets[_SEED * place : _SEED * (place + 1)]
            for place, members in enumerate(own)
        }
        return {
            members: seed
            for members, seed in seeds.items()
            if self.is_committed(submission, members, seed)
        }

    def is_committed(self, submission: Submission, members: Members, seed: bytes) -> bool:
        """Return whether the client committed to this seed of this set."""
        place = key_sets(self.n, self.degree).index(members)
        right = commitment(submission.session, submission.client, members, seed)
        return submission.commitments[place] == right


def seal_output(session: bytes, label: str, octets: bytes, box_key: bytes) -> Output:
    """Return a share of a result, sealed for one client."""
    return Output(session, label, SealedBox(PublicKey(box_key)).encrypt(octets))


def read_output(
    outputs: Sequence[Output], degree: int, box_key: Secret[bytes]
) -> tuple[list[int], tuple[int, ...]]:
    """Open a result from all parties' sealed shares, in the order of the parties.

    Returns
    -------
    values, cheaters
        The integers, and the parties whose shares were corrected.

    Raises
    ------
    InputError
        The shares contradict each other and too few are right to tell which ones.
    """
    box = SealedBox(PrivateKey(box_key.reveal_to("decryption")))
    shares = [PRIME_FIELD.from_words(words_of(box.decrypt(output.box))) for output in outputs]
    opening = open_shares(PRIME_FIELD, shares, degree)
    if opening.values is None:
        raise InputError([Finding("result", "the parties' shares contradict each other")])
    return decode(opening.values), opening.cheaters
