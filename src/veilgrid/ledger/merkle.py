"""The Merkle tree of confirmed records and its two proofs [RFC 9162; ledger 6.1].

A leaf is SHA-256(0x00 | entry), a node SHA-256(0x01 | left | right). The tree of n > 1 entries
splits at the largest power of two below n [RFC 9162, section 2.1]. Hashes of complete subtrees are
kept by level, so appending costs O(1) on average and a root or a proof O(log n).
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

from veilgrid.errors import invariant

EMPTY_ROOT: Final = hashlib.sha256(b"").digest()


def leaf_hash(entry: bytes) -> bytes:
    """Return the hash of one entry."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of two subtrees."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class MerkleTree:
    """An append-only tree.

    Parameters
    ----------
    entries
        What it holds from the start.
    """

    __slots__ = ("_levels",)

    def __init__(self, entries: Iterable[bytes] = ()) -> None:
        self._levels: list[list[bytes]] = [[]]
        for entry in entries:
            self.append(entry)

    def __len__(self) -> int:
        return len(self._levels[0])

    def append(self, entry: bytes) -> None:
        """Add an entry at the end."""
        current, level = leaf_hash(entry), 0
        self._levels[0].append(current)
        while len(self._levels[level]) % 2 == 0:
            row = self._levels[level]
            current = node_hash(row[-2], row[-1])
            level += 1
            if level == len(self._levels):
                self._levels.append([])
            self._levels[level].append(current)

    def root(self, size: int | None = None) -> bytes:
        """Return the root of the first ``size`` entries; None means all."""
        size = len(self) if size is None else size
        invariant(0 <= size <= len(self), "a root is of entries that are there")
        return self._hash(0, size) if size else EMPTY_ROOT

    def inclusion(self, index: int, size: int | None = None) -> list[bytes]:
        """Return the audit path of entry ``index`` in the tree of the first ``size`` entries.

        Hashes from the leaf's sibling upwards [RFC 9162, section 2.1.3].
        """
        size = len(self) if size is None else size
        invariant(0 <= index < size <= len(self), "the entry is in the tree")
        path: list[bytes] = []
        start, stop = 0, size
        while stop - start > 1:
            middle = start + _split(stop - start)
            if index < middle:
                path.append(self._hash(middle, stop))
                stop = middle
            else:
                path.append(self._hash(start, middle))
                start = middle
        return path[::-1]

    def consistency(self, first: int, second: int | None = None) -> list[bytes]:
        """Return the proof that the tree of ``second`` entries begins with that of ``first``.

        [RFC 9162, section 2.1.4].
        """
        second = len(self) if second is None else second
        invariant(0 < first <= second <= len(self), "the smaller tree comes first")
        path: list[bytes] = []
        start, stop, is_whole = 0, second, True
        while first != stop - start:
            middle = _split(stop - start)
            if first <= middle:
                path.append(self._hash(start + middle, stop))
                stop = start + middle
            else:
                path.append(self._hash(start, start + middle))
                start += middle
                first -= middle
                is_whole = False
        if not is_whole:
            path.append(self._hash(start, stop))
        return path[::-1]

    def _hash(self, start: int, stop: int) -> bytes:
        size = stop - start
        level = size.bit_length() - 1
        if size == 1 << level and start % size == 0:
            return self._levels[level][start >> level]
        middle = start + _split(size)
        return node_hash(self._hash(start, middle), self._hash(middle, stop))


def _split(size: int) -> int:
    """Return the largest power of two smaller than ``size``."""
    return 1 << (size - 1).bit_length() - 1


def inclusion_holds(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Return whether ``path`` leads from a leaf hash to ``root`` [RFC 9162, section 2.1.3.2]."""
    if not 0 <= index < size:
        return False
    fn, sn, current = index, size - 1, leaf
    for sibling in path:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            current = node_hash(sibling, current)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            current = node_hash(current, sibling)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and current == root


def consistency_holds(
    first: int, second: int, path: Sequence[bytes], first_root: bytes, second_root: bytes
) -> bool:
    """Return whether the second tree begins with the first [RFC 9162, section 2.1.4.2]."""
    if not 0 < first <= second:
        return False
    if first == second:
        return not path and first_root == second_root
    hashes = list(path)
    if first & (first - 1) == 0:
        hashes.insert(0, first_root)
    if not hashes:
        return False
    fn, sn = first - 1, second - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    old = new = hashes[0]
    for sibling in hashes[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            new = node_hash(new, sibling)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and old == first_root and new == second_root
