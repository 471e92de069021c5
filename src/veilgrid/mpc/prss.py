"""Shared randomness without communication, from keys that sets of parties hold [mpc 3].

For every set of ``n - degree`` parties there is one key that exactly its members know, and for
every two parties one more. Whatever set of ``degree`` parties is corrupt, the key of all the
others is unknown to it.
"""

import hashlib
from collections.abc import Mapping
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from veilgrid.errors import invariant
from veilgrid.mpc import _binary
from veilgrid.mpc._points import key_sets, octal_spike, spike
from veilgrid.mpc.field import Field, Words

Members = tuple[int, ...]

_BLOCK: Final = 1 << 16
_ZEROS: Final = bytes(_BLOCK)


class Stream:
    """Words from a key, in order: AES-128 in counter mode.

    Parameters
    ----------
    key : octets
        Any length; hashed together with ``label``.
    """

    __slots__ = ("_ahead", "_encryptor")

    def __init__(self, key: bytes, label: bytes) -> None:
        seed = hashlib.sha256(b"veilgrid mpc stream 1" + label + b"|" + key).digest()[:16]
        self._encryptor = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor()
        self._ahead = np.empty(0, np.uint64)

    def words(self, count: int) -> Words:
        """Return the next ``count`` words."""
        if count <= self._ahead.size:
            taken, self._ahead = self._ahead[:count], self._ahead[count:]
            return taken
        out = np.empty(count, np.uint64)
        filled = self._ahead.size
        out[:filled] = self._ahead
        step = _BLOCK // 8
        while count - filled >= step:
            self._fill(out[filled : filled + step])
            filled += step
        ahead = np.empty(step, np.uint64)
        self._fill(ahead)
        rest = count - filled
        out[filled:] = ahead[:rest]
        self._ahead = ahead[rest:]
        return out

    def _fill(self, block: Words) -> None:
        self._encryptor.update_into(_ZEROS[: block.nbytes], block.view(np.uint8).data)


def client_words(seed: bytes, members: Members, count: int, purpose: bytes = b"") -> Words:
    """Return the words that a client's seed for one set stands for.

    They are the first of :class:`Stream` with the label ``client``, the members and a purpose,
    without working ahead: there are many clients, and each is read once. Without a purpose they
    are the client's input; any other purpose has words of its own.
    """
    label = b"client" + bytes(members) + purpose
    key = hashlib.sha256(b"veilgrid mpc stream 1" + label + b"|" + seed).digest()[:16]
    encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(encryptor.update(bytes(8 * count)), "<u8").astype(np.uint64, copy=False)


class Keyring:
    """The keys that one party holds in one session.

    Parameters
    ----------
    set_keys, pair_keys
        Key of each set and of each pair that contains ``me``.
    """

    def __init__(
        self,
        me: int,
        n: int,
        degree: int,
        set_keys: Mapping[Members, bytes],
        pair_keys: Mapping[Members, bytes],
        session: bytes,
    ) -> None:
        self.me, self.n, self.degree = me, n, degree
        self.sets = [members for members in key_sets(n, degree) if me in members]
        invariant(set(set_keys) == set(self.sets), "a party holds the keys of its own sets")
        self._sets = {
            members: Stream(set_keys[members], b"set" + bytes(members) + session)
            for members in self.sets
        }
        self._pairs = {
            pair: Stream(key, b"pair" + bytes(pair) + session) for pair, key in pair_keys.items()
        }
        invariant(len(self._pairs) == n - 1, "a party shares one key with each other party")
        self._learned: dict[str, Mapping[Members, bytes]] = {}
        self.seeds: Mapping[str, Mapping[Members, bytes]] = self._learned
        self.contributions: dict[int, list[bytes]] = {}

    def known(self, field: Field, members: Members, vector: Words) -> Words:
        """Return this party's share of what exactly ``members`` know; others pass anything."""
        if self.me not in members:
            return field.zeros(vector.shape[0])
        factor = field.vector([spike(field, self.n, members, self.me)])
        return field.scale(factor, vector)

    def known_octal(self, members: Members, planes: Words) -> Words:
        """Return this party's bit-sliced share of packed bits that exactly ``members`` know."""
        out = np.zeros((*planes.shape, 3), np.uint64)
        if self.me in members:
            factor = octal_spike(self.n, members, self.me)
            for place in range(3):
                if factor >> place & 1:
                    out[..., place] = planes
        return out

    def constant(self, vector: Words) -> Words:
        """Return this party's share of something public."""
        return vector

    def raw(self, members: Members, count: int) -> Words:
        """Return the next ``count`` words of the key of ``members``."""
        return self._sets[members].words(count)

    def client_words(
        self, client: str, members: Members, count: int, purpose: bytes = b""
    ) -> Words:
        """Return the words that a client chose for one set, which must contain ``me``."""
        return client_words(self.seeds[client][members], members, count, purpose)

    def learn(self, client: str, seeds: Mapping[Members, bytes]) -> None:
        """Remember a client's seeds of the own sets."""
        self._learned[client] = {members: seeds[members] for members in self.sets}
        self.seeds = self._learned

    def learn_all(self, seeds: Mapping[str, Mapping[Members, bytes]]) -> None:
        """Remember all clients' seeds of the own sets at once, in place of any before."""
        self.seeds = seeds

    def random(self, field: Field, count: int) -> Words:
        """Return shares of ``count`` uniform elements that nobody knows."""
        out = field.zeros(count)
        for members in self.sets:
            factor = field.vector([spike(field, self.n, members, self.me)])
            words = self._sets[members].words(count * field.words)
            field.accumulate(out, factor, words.reshape(out.shape))
        return out

    def zero(self, field: Field, count: int) -> Words:
        """Return this party's part of vectors that add up to zero over all parties."""
        out = field.zeros(count)
        for pair, stream in self._pairs.items():
            sign = 1 if self.me == pair[0] else field.minus(0, 1)
            words = stream.words(count * field.words)
            field.accumulate(out, field.vector([sign]), words.reshape(out.shape))
        return out

    def octal_random(self, count: int) -> Words:
        """Return bit-sliced shares of ``64 count`` uniform elements of GF(8)."""
        out = np.zeros((count, 3), np.uint64)
        for members in self.sets:
            factor = octal_spike(self.n, members, self.me)
            _binary.octal_accumulate(
                out, factor, self._sets[members].words(3 * count).reshape(count, 3)
            )
        return out

    def octal_zero(self, count: int) -> Words:
        """Return bit-sliced parts that add up to zero over all parties."""
        out = np.zeros((count, 3), np.uint64)
        for stream in self._pairs.values():
            out ^= stream.words(3 * count).reshape(count, 3)
        return out


def derive_keys(
    n: int, degree: int, seed: bytes
) -> tuple[dict[Members, bytes], dict[Members, bytes]]:
    """Return all set keys and pair keys from one seed: for tests and one-process work only."""
    sets = {
        members: hashlib.sha256(b"set key" + bytes(members) + seed).digest()
        for members in key_sets(n, degree)
    }
    pairs: dict[Members, bytes] = {
        (i, j): hashlib.sha256(b"pair key" + bytes((i, j)) + seed).digest()
        for i in range(1, n + 1)
        for j in range(i + 1, n + 1)
    }
    return sets, pairs


def keyring_of(
    me: int,
    n: int,
    degree: int,
    keys: tuple[Mapping[Members, bytes], Mapping[Members, bytes]],
    session: bytes,
) -> Keyring:
    """Return the keyring of one party out of all keys."""
    sets, pairs = keys
    return Keyring(
        me,
        n,
        degree,
        {members: key for members, key in sets.items() if me in members},
        {pair: key for pair, key in pairs.items() if me in pair},
        session,
    )
