"""Submissions of many clients as rows of arrays [risk 2]."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from veilgrid.mpc._points import key_sets, spike
from veilgrid.mpc.client import Received
from veilgrid.mpc.field import PRIME_FIELD, Words, words_of
from veilgrid.mpc.message import Submission
from veilgrid.mpc.prss import Members, client_words

if TYPE_CHECKING:
    from veilgrid.mpc.bulk import BulkMailbox

_SEED: Final = 16
_DIGEST: Final = 32


class Rows:
    """Submissions as rows of arrays, which read like a mapping from name to submission."""

    def __init__(self, mailbox: "BulkMailbox") -> None:
        self._mailbox = mailbox
        self.place = {name: row for row, name in enumerate(mailbox.clients)}
        count, size = len(self.place), mailbox.layout.size
        self._sets = key_sets(mailbox.n, mailbox.degree)
        self._own = [members for members in self._sets if mailbox.party in members]
        self.is_present = np.zeros(count, bool)
        self.corrections = np.zeros((count, size, 2), np.uint64)
        self.shares = np.zeros((count, size, 2), np.uint64)
        self.pads = np.zeros((count, 2), np.uint64)
        self._digests = np.zeros((count, _DIGEST), np.uint8)
        self._seeds = np.zeros((count, len(self._own), _SEED), np.uint8)
        self._has_seed = np.zeros((count, len(self._own)), bool)
        self._commitments = np.zeros((count, len(self._sets), _DIGEST), np.uint8)
        self._boxes = np.zeros((count, mailbox.n, mailbox.box_octets), np.uint8)
        self._signatures = np.zeros((count, mailbox.signature_octets), np.uint8)
        points = [spike(PRIME_FIELD, mailbox.n, members, mailbox.party) for members in self._own]
        self._factors = [PRIME_FIELD.vector([point]) for point in points]

    def __len__(self) -> int:
        return int(self.is_present.sum())

    def __iter__(self) -> Iterator[str]:
        return (name for name, row in self.place.items() if self.is_present[row])

    def __contains__(self, name: str) -> bool:
        row = self.place.get(name)
        return row is not None and bool(self.is_present[row])

    def __setitem__(self, name: str, received: Received) -> None:
        row, said = self.place[name], received.submission
        self.corrections[row] = words_of(said.correction).reshape(-1, 2)
        self._digests[row] = np.frombuffer(received.digest, np.uint8)
        self._commitments[row] = np.frombuffer(b"".join(said.commitments), np.uint8).reshape(
            -1, _DIGEST
        )
        boxes = np.frombuffer(b"".join(said.boxes), np.uint8)
        self._boxes[row] = boxes.reshape(self._boxes.shape[1:])
        self._signatures[row] = np.frombuffer(said.signature, np.uint8)
        for place, members in enumerate(self._own):
            seed = received.seeds.get(members)
            self._has_seed[row, place] = seed is not None
            self._seeds[row, place] = np.frombuffer(seed or bytes(_SEED), np.uint8)
        self.is_present[row] = True
        if self._has_seed[row].all():
            own = self._share(row)
            self.shares[row], self.pads[row] = own[:-1], own[-1]

    def _share(self, row: int) -> Words:
        """Return the own share of an input: what the own seeds expand to, and the correction.

        One element more, without a correction, is the client's pad [mpc 7.9].
        """
        total = PRIME_FIELD.from_words(with_pad(self.corrections[row]))
        for place, members in enumerate(self._own):
            words = client_words(self._seeds[row, place].tobytes(), members, total.size)
            part = PRIME_FIELD.scale(self._factors[place], PRIME_FIELD.from_words(words))
            total = PRIME_FIELD.add(total, part)
        return total

    def __getitem__(self, name: str) -> Received:
        row, mailbox = self.place[name], self._mailbox
        said = Submission(
            mailbox.session,
            name,
            mailbox.label(name),
            self.corrections[row].tobytes(),
            [one.tobytes() for one in self._commitments[row]],
            [one.tobytes() for one in self._boxes[row]],
            self._signatures[row].tobytes(),
        )
        return Received(said, self._digests[row].tobytes(), self.seeds(row))

    def seeds(self, row: int) -> dict[Members, bytes]:
        """Return the own seeds that match their commitments."""
        return {
            members: self._seeds[row, place].tobytes()
            for place, members in enumerate(self._own)
            if self._has_seed[row, place]
        }

    def get(self, name: str) -> Received | None:
        """Return what a client sent, or None."""
        return self[name] if self.__contains__(name) else None

    def pop(self, name: str, default: None = None) -> None:  # noqa: ARG002 - as of a dict
        """Forget what a client sent."""
        row = self.place[name]
        self.is_present[row] = False
        self.corrections[row] = self.shares[row] = self.pads[row] = 0
        self._digests[row] = 0

    def mark(self) -> None:
        """Note that every client sent something that can be read."""
        self._digests[:] = 1
        self._has_seed[:] = True

    def roster(self) -> Words:
        """Return for each client the digest of its submission and which own seeds are bad."""
        digests = np.ascontiguousarray(self._digests).view("<u8")
        bad = np.zeros(len(self.place), np.uint64)
        for place, members in enumerate(self._own):
            bit = np.uint64(1 << self._sets.index(members))
            bad |= np.where(self._has_seed[:, place] | ~self.is_present, np.uint64(0), bit)
        return np.concatenate([digests, bad[:, np.newaxis]], axis=1).reshape(-1)


class Seeds(Mapping[str, Mapping[Members, bytes]]):
    """The own seeds of the clients whose inputs are used, read where they are needed."""

    def __init__(self, rows: Rows, names: Sequence[str]) -> None:
        self._rows, self._names = rows, dict.fromkeys(names)

    def __getitem__(self, name: str) -> Mapping[Members, bytes]:
        if name not in self._names:
            raise KeyError(name)
        return self._rows.seeds(self._rows.place[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def with_pad(correction: Words) -> Words:
    """Return a correction as a flat array of words, and zero for the pad."""
    return np.concatenate([correction.reshape(-1), np.zeros(2, np.uint64)])
