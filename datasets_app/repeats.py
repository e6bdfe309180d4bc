"""Which rows of a file repeat an earlier one: hashes of rows, remembered in two arrays instead of a dictionary."""

from __future__ import annotations

from typing import Any

import numpy

Hashes = Any  # numpy.ndarray of uint64
Lines = Any  # numpy.ndarray of int64

_LEAST_SLOTS = 1 << 12
#: A full slot's number, for a slot holds 0 while it is free.
_INSTEAD_OF_ZERO = 1


class FirstLines:
    """Hash -> the first line that has it: open addressing, linear probing, at most half full.

    16 bytes a slot; ``limit`` rows are remembered, those after them only looked up.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._count = 0
        self._make(_LEAST_SLOTS)

    def __len__(self) -> int:
        return self._count

    def of(self, key: int, line: int) -> int | None:
        """The earlier line with this hash; None where this one is the first, which is remembered."""
        key = key or _INSTEAD_OF_ZERO
        slot = key & self._mask
        while (found := int(self._keys[slot])) != 0:
            if found == key:
                return int(self._lines[slot])
            slot = (slot + 1) & self._mask
        if self._count < self.limit:
            self._keys[slot], self._lines[slot] = key, line
            self._count += 1
            self._grow_for(0)
        return None

    def add_all(self, hashes: Hashes, line: int) -> bool:
        """Remember rows, the first of them on this line. False: some repeat others; nothing was added."""
        keys = _without_zero(hashes)
        if _has_equal(keys):
            return False
        few = keys[: max(0, self.limit - self._count)]
        self._grow_for(len(few))
        slots = self._slots_of(keys)
        if (self._keys[slots] == keys).any():
            return False
        self._insert(few, numpy.arange(line, line + len(few)), slots[: len(few)])
        self._count += len(few)
        return True

    def repeated(self, hashes: Hashes) -> list[int]:
        """Which of some rows repeat an earlier one, by their numbers among them. Nothing is added."""
        keys = _without_zero(hashes)
        _, first = numpy.unique(keys, return_index=True)
        is_repeated = numpy.ones(len(keys), dtype=bool)
        is_repeated[first] = False
        is_repeated |= self._keys[self._slots_of(keys)] == keys
        found: list[int] = numpy.flatnonzero(is_repeated).tolist()
        return found

    def _slots_of(self, keys: Hashes) -> Any:
        """For each hash the slot that holds it, else the first free one that it may take."""
        slots, waiting = self._first_slots_of(keys), numpy.arange(len(keys))
        while len(waiting):
            held = self._keys[slots[waiting]]
            waiting = waiting[(held != 0) & (held != keys[waiting])]
            slots[waiting] = (slots[waiting] + 1) & self._mask
        return slots

    def _insert(self, keys: Hashes, lines: Lines, slots: Any) -> None:
        """Of hashes that all differ, from each one's slot on. Who finds a slot taken by another goes to the next."""
        while len(keys):
            free = self._keys[slots] == 0
            self._keys[slots[free]] = keys[free]
            is_there = self._keys[slots] == keys
            self._lines[slots[is_there]] = lines[is_there]
            keys, lines, slots = keys[~is_there], lines[~is_there], (slots[~is_there] + 1) & self._mask

    def _first_slots_of(self, keys: Hashes) -> Any:
        return (keys & numpy.uint64(self._mask)).astype(numpy.int64)

    def _grow_for(self, more: int) -> None:
        slots = self._mask + 1
        while 2 * (self._count + more) >= slots:
            slots *= 4
        if slots > self._mask + 1:
            taken = numpy.flatnonzero(self._keys)
            keys, lines = self._keys[taken], self._lines[taken]
            self._make(slots)
            self._insert(keys, lines, self._first_slots_of(keys))

    def _make(self, slots: int) -> None:
        self._mask = slots - 1
        self._keys = numpy.zeros(slots, dtype=numpy.uint64)
        self._lines = numpy.zeros(slots, dtype=numpy.int64)


def _without_zero(hashes: Hashes) -> Hashes:
    return numpy.maximum(hashes, numpy.uint64(_INSTEAD_OF_ZERO))


def _has_equal(keys: Hashes) -> bool:
    ordered = numpy.sort(keys)
    return bool((ordered[1:] == ordered[:-1]).any())
