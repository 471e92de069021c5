"""Compute again, from what was said, one linear part of every share [mpc 8.2].

A sharing is a sum of summands, each derived from the key of one set. The same function, run on
the summands of one set and fed with the recorded rounds, says what the set's summand of every
opened share was; run with a pair's zero shares, with one party's messages or with the opened
values in place of results, it applies the check's combination to those.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from veilgrid.errors import InvariantError
from veilgrid.mpc._round import Heard, Round, Steps
from veilgrid.mpc.engine import CheckFailed, Engine
from veilgrid.mpc.field import PRIME_FIELD, Field, Words
from veilgrid.mpc.prss import Members, Stream, client_words

if TYPE_CHECKING:
    from veilgrid.mpc.party import Program


class Replayed:
    """A source that knows nothing; the kinds below know one thing each."""

    def __init__(self, n: int, degree: int) -> None:
        self.me, self.n, self.degree = 1, n, degree
        self.sets: list[Members] = []

    def known(self, field: Field, members: Members, vector: Words) -> Words:  # noqa: ARG002
        return field.zeros(vector.shape[0])

    def known_octal(self, members: Members, planes: Words) -> Words:  # noqa: ARG002
        return np.zeros((*planes.shape, 3), np.uint64)

    def constant(self, vector: Words) -> Words:
        return np.zeros_like(vector)

    def raw(self, members: Members, count: int) -> Words:  # noqa: ARG002
        return np.zeros(count, np.uint64)

    def random(self, field: Field, count: int) -> Words:
        return field.zeros(count)

    def zero(self, field: Field, count: int) -> Words:
        return field.zeros(count)

    def octal_random(self, count: int) -> Words:
        return np.zeros((count, 3), np.uint64)

    def octal_zero(self, count: int) -> Words:
        return np.zeros((count, 3), np.uint64)

    def client_words(
        self,
        client: str,  # noqa: ARG002
        members: Members,  # noqa: ARG002
        count: int,
        purpose: bytes = b"",  # noqa: ARG002
    ) -> Words:
        return np.zeros(count, np.uint64)

    def learn(self, client: str, seeds: Mapping[Members, bytes]) -> None:
        """Learn nothing: what is needed was given."""

    def learn_all(self, seeds: Mapping[str, Mapping[Members, bytes]]) -> None:
        """Learn nothing: what is needed was given."""

    def result(self, opened: Words, mask: Words, zero: Words, said: Sequence[Words]) -> Words:  # noqa: ARG002 - one shape for all kinds
        """Return what stands for the result of a multiplication."""
        raise InvariantError("violated: only kinds that stand for results are asked for one")


def _stripped(field: Field, words: Words, count: int) -> Words:
    """Read random elements as the keyring does: the top bit is dropped."""
    out = words.reshape(field.zeros(count).shape).copy()
    if field.words == 2:
        out[:, 1] &= np.uint64(2**63 - 1)
        return field.from_words(out.reshape(-1))
    return field.from_words(out)


class SetSummand(Replayed):
    """The summand that belongs to one set's key."""

    def __init__(
        self,
        n: int,
        degree: int,
        members: Members,
        key: bytes,
        session: bytes,
        seeds: Mapping[str, bytes],
    ) -> None:
        super().__init__(n, degree)
        self.sets, self.me = [members], members[0]
        self._stream = Stream(key, b"set" + bytes(members) + session)
        self._seeds = seeds

    def known(self, field: Field, members: Members, vector: Words) -> Words:
        return vector if members == self.sets[0] else field.zeros(vector.shape[0])

    def known_octal(self, members: Members, planes: Words) -> Words:
        out = np.zeros((*planes.shape, 3), np.uint64)
        if members == self.sets[0]:
            out[..., 0] = planes
        return out

    def raw(self, members: Members, count: int) -> Words:  # noqa: ARG002
        return self._stream.words(count)

    def random(self, field: Field, count: int) -> Words:
        return _stripped(field, self._stream.words(count * field.words), count)

    def octal_random(self, count: int) -> Words:
        return self._stream.words(3 * count).reshape(count, 3)

    def client_words(
        self, client: str, members: Members, count: int, purpose: bytes = b""
    ) -> Words:
        return client_words(self._seeds[client], members, count, purpose)


class PairZeros(Replayed):
    """The zero shares that belong to one pair's key, with the sign of its first party."""

    def __init__(self, n: int, degree: int, pair: Members, key: bytes, session: bytes) -> None:
        super().__init__(n, degree)
        self._stream = Stream(key, b"pair" + bytes(pair) + session)

    def zero(self, field: Field, count: int) -> Words:
        return _stripped(field, self._stream.words(count * field.words), count)

    def octal_zero(self, count: int) -> Words:
        return self._stream.words(3 * count).reshape(count, 3)

    def result(self, opened: Words, mask: Words, zero: Words, said: Sequence[Words]) -> Words:  # noqa: ARG002
        return zero


class Told(Replayed):
    """What one party said as its summands of masked products."""

    def __init__(self, n: int, degree: int, party: int) -> None:
        super().__init__(n, degree)
        self._party = party

    def result(self, opened: Words, mask: Words, zero: Words, said: Sequence[Words]) -> Words:  # noqa: ARG002
        return said[self._party - 1]


class Opened(Replayed):
    """What is public: constants, and the opened masked products."""

    def constant(self, vector: Words) -> Words:
        return vector

    def result(self, opened: Words, mask: Words, zero: Words, said: Sequence[Words]) -> Words:  # noqa: ARG002
        return opened


class ReplayEngine(Engine):
    """An engine whose results of multiplications come from the record."""

    def __init__(self, source: Replayed, digest: Callable[[], bytes]) -> None:
        super().__init__(source, digest)
        self._replayed = source

    def summed(self, field: Field, local: Words) -> Steps[Words]:
        """Return the stand-in for shares of products."""
        count = local.shape[0]
        mask, zero = self.source.random(field, count), self.source.zero(field, count)
        parts = yield from self._parts(field.flat(field.zeros(count)), field.words)
        said = [field.from_words(part) for part in parts]
        opened = self._total(field, said)
        if isinstance(self._replayed, SetSummand):
            return field.subtract(field.zeros(count), mask)
        return self._replayed.result(opened, mask, zero, said)

    def both(self, a: Words, b: Words) -> Steps[Words]:
        """Return the stand-in for shares of conjunctions."""
        left = np.ascontiguousarray(a).reshape(-1, 3)
        right = np.ascontiguousarray(b).reshape(-1, 3)
        mask = self.source.octal_random(left.shape[0])
        zero = self.source.octal_zero(left.shape[0])
        parts = yield from self._parts(np.zeros(left.size, np.uint64), 3)
        said = [part.reshape(-1, 3) for part in parts]
        opened = np.bitwise_xor.reduce(np.stack(said))
        if isinstance(self._replayed, SetSummand):
            result = mask
        else:
            result = self._replayed.result(opened, mask, zero, said)
        self.gates.append((left, right, result))
        yield from self._checked_in_time("gates", 64 * left.shape[0])
        return result.reshape(a.shape)

    def _parts(self, flat: Words, width: int) -> Steps[list[Words]]:
        """Return what every party said as its summand, whichever way it travelled.

        In a recorded round with kings, column ``k`` of the private words of a party is what it
        said to king ``k``.
        """
        heard: list[Heard]
        if not self.by_kings(flat.size):
            heard = yield Round(flat, label="product")
            return [one.shared for one in heard]
        private = self.slices(flat, width)
        size = private[0].size
        to_kings = yield Round(flat[:0], private=private, private_length=size, label="to kings")
        heard = yield Round(private[0], label="from kings")
        columns = [np.array(one.private).reshape(size, self.n) for one in to_kings]
        for king in range(self.n):
            others = [columns[i][:, king].copy() for i in range(self.n) if i != king]
            columns[king][:, king] = self._left_over(heard[king].shared, others, width)
        return [column.T.reshape(-1)[: flat.size] for column in columns]

    @staticmethod
    def _left_over(total: Words, others: Sequence[Words], width: int) -> Words:
        """Return what a king must have added itself to come to its total."""
        if width != PRIME_FIELD.words:
            added: Words = np.bitwise_xor.reduce(np.stack([total, *others]))
            return added
        rest = PRIME_FIELD.from_words(total)
        for one in others:
            rest = PRIME_FIELD.subtract(rest, PRIME_FIELD.from_words(one))
        return PRIME_FIELD.flat(rest)


@dataclass(frozen=True, slots=True)
class Record:
    """The rounds of the function, without the set-up, as one party heard them.

    Attributes
    ----------
    rounds
        What each party said; the last one is the round in which a check failed.
    heads
        Digest of all that was said before each round.
    """

    rounds: list[list[Heard]]
    heads: list[bytes]


def replay(program: "Program", source: Replayed, record: Record) -> Words:
    """Return what a party with this source would have said to all in the last recorded round."""
    at = 0
    engine = ReplayEngine(source, lambda: record.heads[at])
    steps = program(engine)
    try:
        spoken = next(steps)
        for heard in record.rounds[:-1]:
            at += 1
            spoken = steps.send(heard)
    except (StopIteration, CheckFailed):
        return np.empty(0, np.uint64)
    return spoken.shared
