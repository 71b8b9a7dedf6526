"""The Merkle tree over a log's lines: roots and proofs of RFC 9162, section 2.1. Pure.

A leaf is given by its hash (`chain.leaf_hash`). Whoever checks a proof needs the root, the proof and nothing else.
"""

import hashlib
from collections.abc import Iterable, Sequence
from itertools import pairwise

EMPTY_ROOT = hashlib.sha256(b"").digest()
"""Of a tree without leaves (RFC 9162, 2.1.1)."""


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash two subtrees into one (RFC 9162, 2.1.1)."""
    return hashlib.sha256(b"\1" + left + right).digest()


class Frontier:
    """The tree so far, as the roots of its whole subtrees: all that is needed to go on, and to give the root."""

    def __init__(self, leaves: Iterable[bytes] = ()) -> None:
        self.size = 0
        self._roots: list[bytes] = []
        """The largest subtree first; as many as `size` has bits that are one."""
        for leaf in leaves:
            self.add(leaf)

    def add(self, leaf: bytes) -> None:
        """Add a leaf, by its hash."""
        size, root = self.size, leaf
        while size & 1:
            root = node_hash(self._roots.pop(), root)
            size >>= 1
        self._roots.append(root)
        self.size += 1

    @property
    def root(self) -> bytes:
        """Root of the tree so far."""
        if not self._roots:
            return EMPTY_ROOT
        root = self._roots[-1]
        for left in reversed(self._roots[:-1]):
            root = node_hash(left, root)
        return root


class Tree:
    """A tree that proofs are made from. Keeps every level, so that each proof costs its own length."""

    def __init__(self, leaves: Iterable[bytes]) -> None:
        self._levels: list[list[bytes]] = [list(leaves)]
        while len(self._levels[-1]) > 1:
            below = self._levels[-1]
            self._levels.append([node_hash(below[at], below[at + 1]) for at in range(0, len(below) - 1, 2)])

    @property
    def size(self) -> int:
        """How many leaves there are."""
        return len(self._levels[0])

    def root(self, size: int | None = None) -> bytes:
        """Root of the tree that the first `size` leaves make, or all."""
        return self._root(0, self.size if size is None else size)

    def inclusion(self, index: int, size: int) -> list[bytes]:
        """Prove that a leaf is in the tree of that size (RFC 9162, 2.1.3.1)."""
        _check(0 <= index < size <= self.size)
        return self._path(index, 0, size)

    def consistency(self, old: int, size: int) -> list[bytes]:
        """Prove that the tree of `old` leaves is the beginning of the one of that size (RFC 9162, 2.1.4.1)."""
        _check(0 < old <= size <= self.size)
        return self._subproof(old, 0, size, is_known=True)

    def _root(self, start: int, end: int) -> bytes:
        size = end - start
        if size == 0:
            return EMPTY_ROOT
        level = size.bit_length() - 1
        if size == 1 << level and start % size == 0:
            return self._levels[level][start >> level]
        middle = start + _split(size)
        return node_hash(self._root(start, middle), self._root(middle, end))

    def _path(self, index: int, start: int, end: int) -> list[bytes]:
        if end - start == 1:
            return []
        middle = start + _split(end - start)
        if index < middle:
            return [*self._path(index, start, middle), self._root(middle, end)]
        return [*self._path(index, middle, end), self._root(start, middle)]

    def _subproof(self, old: int, start: int, end: int, *, is_known: bool) -> list[bytes]:
        if old == end:
            return [] if is_known else [self._root(start, end)]
        middle = start + _split(end - start)
        if old <= middle:
            return [*self._subproof(old, start, middle, is_known=is_known), self._root(middle, end)]
        return [*self._subproof(old, middle, end, is_known=False), self._root(start, middle)]


def is_included(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Check an inclusion proof (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    first, last, found = index, size - 1, leaf
    for each in proof:
        if last == 0:
            return False
        if first & 1 or first == last:
            found = node_hash(each, found)
            while not first & 1 and first:
                first, last = first >> 1, last >> 1
        else:
            found = node_hash(found, each)
        first, last = first >> 1, last >> 1
    return last == 0 and found == root


def is_consistent(old: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]) -> bool:
    """Check a consistency proof (RFC 9162, 2.1.4.2)."""
    if not 0 < old <= size:
        return False
    if old == size:
        return not proof and old_root == root
    path = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    if not path:
        return False
    first, last = old - 1, size - 1
    while first & 1:
        first, last = first >> 1, last >> 1
    small = large = path[0]
    for each in path[1:]:
        if last == 0:
            return False
        if first & 1 or first == last:
            small, large = node_hash(each, small), node_hash(each, large)
            while not first & 1 and first:
                first, last = first >> 1, last >> 1
        else:
            large = node_hash(large, each)
        first, last = first >> 1, last >> 1
    return last == 0 and small == old_root and large == root


def roots_at(leaves: Iterable[bytes], sizes: Iterable[int]) -> dict[int, bytes]:
    """Give the roots that a growing tree had at these sizes, as far as it got."""
    wanted, frontier = sorted({0, *sizes}), Frontier()
    found, rest = {0: frontier.root}, iter(leaves)
    for before, size in pairwise(wanted):
        for _ in range(size - before):
            leaf = next(rest, None)
            if leaf is None:
                return found
            frontier.add(leaf)
        found[size] = frontier.root
    return found


def _split(size: int) -> int:
    """Give the largest power of two below a size."""
    return 1 << (size - 1).bit_length() - 1


def _check(is_right: bool) -> None:
    if not is_right:
        raise ValueError("there is no such tree")
