"""The Merkle tree against a naive one, written from RFC 9162's definitions, and against known roots."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.audit.chain import leaf_hash
from pipeline.audit.tree import EMPTY_ROOT, Frontier, Tree, is_consistent, is_included, roots_at

LEAVES = st.lists(st.binary(max_size=8), min_size=1, max_size=80, unique=True)
KNOWN = {
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}
"""Roots that implementations of Certificate Transparency are tested with."""
KNOWN_LEAVES = ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")


def naive(leaves: list[bytes]) -> bytes:
    """MTH of RFC 9162, 2.1.1."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    middle = 1
    while middle * 2 < len(leaves):
        middle *= 2
    return hashlib.sha256(b"\1" + naive(leaves[:middle]) + naive(leaves[middle:])).digest()


@pytest.mark.parametrize("size", KNOWN)
def test_known_roots(size: int) -> None:
    hashes = [leaf_hash(bytes.fromhex(text)) for text in KNOWN_LEAVES[:size]]
    assert Frontier(hashes).root.hex() == Tree(hashes).root().hex() == KNOWN[size]


def test_a_tree_without_leaves_has_the_hash_of_nothing() -> None:
    assert naive([]) == EMPTY_ROOT == Frontier().root == Tree([]).root()


@given(LEAVES)
def test_roots_are_those_of_the_definition_at_every_size(leaves: list[bytes]) -> None:
    hashes = [leaf_hash(leaf) for leaf in leaves]
    wanted = {size: naive(leaves[:size]) for size in range(len(leaves) + 1)}
    tree = Tree(hashes)
    assert {size: tree.root(size) for size in wanted} == wanted
    assert roots_at(hashes, wanted) == wanted


@given(LEAVES, st.data())
def test_an_inclusion_proof_proves_its_leaf_and_no_other(leaves: list[bytes], data: st.DataObject) -> None:
    hashes = [leaf_hash(leaf) for leaf in leaves]
    size = data.draw(st.integers(1, len(leaves)))
    index = data.draw(st.integers(0, size - 1))
    proof, root = Tree(hashes).inclusion(index, size), naive(leaves[:size])
    assert is_included(hashes[index], index, size, proof, root)
    assert not is_included(leaf_hash(b"another leaf"), index, size, proof, root)
    assert not is_included(hashes[index], index, size, [*proof, root], root)
    assert not is_included(hashes[index], index, size, proof, bytes(32))
    other = data.draw(st.integers(0, size - 1))
    assert is_included(hashes[index], other, size, proof, root) == (other == index)
    if proof:
        place = data.draw(st.integers(0, len(proof) - 1))
        changed = [*proof[:place], bytes(32), *proof[place + 1 :]]
        assert not is_included(hashes[index], index, size, changed, root)
        assert not is_included(hashes[index], index, size, proof[:-1], root)


@given(LEAVES, st.data())
def test_a_consistency_proof_proves_two_sizes_of_one_log_and_no_fork(leaves: list[bytes], data: st.DataObject) -> None:
    size = data.draw(st.integers(1, len(leaves)))
    old = data.draw(st.integers(1, size))
    proof = Tree([leaf_hash(leaf) for leaf in leaves]).consistency(old, size)
    old_root, root = naive(leaves[:old]), naive(leaves[:size])
    assert is_consistent(old, old_root, size, root, proof)
    place = data.draw(st.integers(0, old - 1))
    forked = [*leaves[:place], leaves[place] + b"!", *leaves[place + 1 :]]
    assert not is_consistent(old, naive(forked[:old]), size, root, proof)
    assert not is_consistent(old, old_root, size, naive(forked[:size]), proof)
    forked_proof = Tree([leaf_hash(leaf) for leaf in forked]).consistency(old, size)
    assert not is_consistent(old, old_root, size, naive(forked[:size]), forked_proof)


@pytest.mark.parametrize(("index", "size"), [(-1, 3), (3, 3), (0, 4)])
def test_there_is_no_proof_of_what_is_not_there(index: int, size: int) -> None:
    tree = Tree([leaf_hash(b"leaf")] * 3)
    with pytest.raises(ValueError, match="no such tree"):
        tree.inclusion(index, size)
    assert not is_included(leaf_hash(b"leaf"), index, size if index else 0, [], tree.root())


@pytest.mark.parametrize(("old", "size"), [(0, 3), (4, 3)])
def test_no_size_is_consistent_with_a_smaller_or_an_empty_one(old: int, size: int) -> None:
    tree = Tree([leaf_hash(b"leaf")] * 3)
    with pytest.raises(ValueError, match="no such tree"):
        tree.consistency(old, size)
    assert not is_consistent(old, tree.root(), size, tree.root(), [])
    assert not is_consistent(2, tree.root(2), 3, tree.root(), [])
