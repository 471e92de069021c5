"""The Merkle tree against published vectors and against the recursive definition."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veilgrid.ledger.merkle import (
    EMPTY_ROOT,
    MerkleTree,
    consistency_holds,
    inclusion_holds,
    leaf_hash,
)

# Entries, roots and proofs published with the reference implementation of Certificate Transparency.
ENTRIES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
PATH_OF_FIRST_OF_EIGHT = [
    "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
    "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
    "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
]
SIX_TO_EIGHT = [
    "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
    "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
]

entries = st.lists(st.binary(max_size=8), min_size=1, max_size=40)


def root_by_definition(leaves: list[bytes]) -> bytes:
    """MTH of RFC 9162, section 2.1.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    left, right = root_by_definition(leaves[:k]), root_by_definition(leaves[k:])
    return hashlib.sha256(b"\x01" + left + right).digest()


@pytest.mark.parametrize("size", range(1, 9))
def test_roots_are_the_published_ones(size: int) -> None:
    """Other people's verifiers must accept our roots."""
    assert MerkleTree(ENTRIES[:size]).root().hex() == ROOTS[size - 1]


def test_proofs_are_the_published_ones() -> None:
    """Other people's verifiers must accept our proofs."""
    tree = MerkleTree(ENTRIES)
    assert [node.hex() for node in tree.inclusion(0)] == PATH_OF_FIRST_OF_EIGHT
    assert [node.hex() for node in tree.consistency(6)] == SIX_TO_EIGHT
    assert MerkleTree().root() == EMPTY_ROOT


@given(entries)
def test_every_prefix_has_the_root_of_the_definition(leaves: list[bytes]) -> None:
    tree = MerkleTree(leaves)
    for size in range(len(leaves) + 1):
        assert tree.root(size) == root_by_definition(leaves[:size])


@given(entries, st.data())
def test_an_inclusion_proof_holds_for_its_entry_and_no_other_place(
    leaves: list[bytes], data: st.DataObject
) -> None:
    """A proof that fits elsewhere would let a record be moved."""
    tree = MerkleTree(leaves)
    index = data.draw(st.integers(0, len(leaves) - 1))
    path, root, leaf = tree.inclusion(index), tree.root(), leaf_hash(leaves[index])
    assert inclusion_holds(leaf, index, len(leaves), path, root)
    assert not inclusion_holds(leaf_hash(leaves[index] + b"x"), index, len(leaves), path, root)
    assert not inclusion_holds(leaf, index, len(leaves), [*path, root], root)
    assert not inclusion_holds(leaf, index + len(leaves), len(leaves), path, root)
    if path:
        assert not inclusion_holds(leaf, index, len(leaves), path[:-1], root)
        broken = [bytes(32), *path[1:]]
        assert not inclusion_holds(leaf, index, len(leaves), broken, root)


@given(entries, st.data())
def test_a_consistency_proof_holds_for_a_prefix_only(
    leaves: list[bytes], data: st.DataObject
) -> None:
    """A ledger that rewrote its past must not find a proof."""
    tree = MerkleTree(leaves)
    first = data.draw(st.integers(1, len(leaves)))
    path, root = tree.consistency(first), tree.root()
    assert consistency_holds(first, len(leaves), path, tree.root(first), root)
    other = MerkleTree([*leaves[: first - 1], b"rewritten"]).root()
    assert not consistency_holds(first, len(leaves), path, other, root)
    assert not consistency_holds(first, len(leaves), path, tree.root(first), bytes(32))
    assert not consistency_holds(0, len(leaves), path, tree.root(first), root)
    if path:
        assert not consistency_holds(first, len(leaves), path[:-1], tree.root(first), root)
