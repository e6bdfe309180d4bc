"""An index of 64-bit keys on disk: sorted runs, merged as they become many (O'Neil et al. 1996, LSM-tree).

Whoever asks does so for thousands of keys at once, so that a run is read from its beginning to its end, in pieces;
nothing is kept, and the memory does not depend on how much is indexed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

#: So many runs of one level become one of the next.
MERGED_RUNS = 4
#: Entries of a run in memory at once: 1 MiB of keys.
PIECE_ENTRIES = 1 << 17
#: Keys that were found and whose numbers are handed on together.
FOUND_AT_ONCE = 1 << 13


@dataclass(frozen=True, slots=True)
class _Run:
    """``PATH.keys`` (uint64, ascending) and ``PATH.numbers`` (uint32), equally long."""

    path: Path
    size: int
    level: int

    @property
    def keys(self) -> Path:
        return self.path.with_suffix(".keys")

    @property
    def numbers(self) -> Path:
        return self.path.with_suffix(".numbers")

    def mapped_keys(self) -> Any:
        """For a few looks into a long run."""
        return numpy.memmap(self.keys, numpy.uint64, "r", shape=(self.size,))

    def piece(self, start: int, end: int) -> tuple[Any, Any]:
        """Keys and numbers of some entries."""
        keys = numpy.fromfile(self.keys, numpy.uint64, end - start, offset=8 * start)
        return keys, numpy.fromfile(self.numbers, numpy.uint32, end - start, offset=4 * start)


class KeyRuns:
    """The runs below one folder. A key may have several numbers; 12 bytes an entry, twice that while runs merge."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runs: list[_Run] = []
        self._made = 0

    def add(self, keys: Any, numbers: Any) -> None:
        """Entries, in any order: ``keys`` uint64, ``numbers`` uint32."""
        if not len(keys):
            return
        order = numpy.argsort(keys, kind="stable")
        run = self._new_run(len(keys), 0)
        keys[order].tofile(run.keys)
        numbers[order].tofile(run.numbers)
        self._runs.append(run)
        self._merge()

    def find(self, keys: Any) -> Iterator[tuple[Any, Any]]:
        """For ascending ``keys`` pairs of (places in ``keys``, numbers found there), piece by piece."""
        for run in self._runs:
            for start in range(0, run.size, PIECE_ENTRIES):
                yield from _find(keys, *run.piece(start, min(start + PIECE_ENTRIES, run.size)))

    def _merge(self) -> None:
        while len(self._runs) >= MERGED_RUNS and self._runs[-MERGED_RUNS].level == self._runs[-1].level:
            old = self._runs[-MERGED_RUNS:]
            merged = self._new_run(sum(run.size for run in old), old[0].level + 1)
            with open(merged.keys, "wb") as keys, open(merged.numbers, "wb") as numbers:
                for some_keys, some_numbers in _merged(old):
                    some_keys.tofile(keys)
                    some_numbers.tofile(numbers)
            self._runs[-MERGED_RUNS:] = [merged]
            for run in old:
                run.keys.unlink()
                run.numbers.unlink()

    def _new_run(self, size: int, level: int) -> _Run:
        self._made += 1
        return _Run(self._folder / f"run-{self._made}", size, level)


def _find(wanted: Any, keys: Any, numbers: Any) -> Iterator[tuple[Any, Any]]:
    """Places in ``wanted`` and the numbers found, for one piece of a run."""
    first, end = wanted.searchsorted(keys[0], "left"), wanted.searchsorted(keys[-1], "right")
    part = wanted[first:end]
    low = keys.searchsorted(part, "left")
    counts = keys.searchsorted(part, "right") - low
    found = numpy.flatnonzero(counts)
    for start in range(0, len(found), FOUND_AT_ONCE):
        places = found[start : start + FOUND_AT_ONCE]
        sizes = counts[places]
        within = numpy.arange(sizes.sum()) - numpy.repeat(numpy.cumsum(sizes) - sizes, sizes)
        yield numpy.repeat(places + first, sizes), numbers[numpy.repeat(low[places], sizes) + within]


def _merged(runs: list[_Run]) -> Iterator[tuple[Any, Any]]:
    """All entries in the order of their keys, in pieces that end at keys of the longest run."""
    mapped = [run.mapped_keys() for run in runs]
    longest = max(mapped, key=len)
    ends = [[*keys.searchsorted(longest[PIECE_ENTRIES::PIECE_ENTRIES]).tolist(), len(keys)] for keys in mapped]
    starts = [0] * len(runs)
    for now in zip(*ends, strict=True):
        pieces = [run.piece(*bounds) for run, *bounds in zip(runs, starts, now, strict=True)]
        keys, numbers = (numpy.concatenate(column) for column in zip(*pieces, strict=True))
        order = numpy.argsort(keys, kind="stable")
        yield keys[order], numbers[order]
        starts = list(now)
