"""Texts that are almost the same, by MinHash and locality-sensitive hashing (Broder 1997; Leskovec et al., ch. 3).

Memory does not grow with the number of texts: what is remembered lies below a folder, about 920 bytes a text.
"""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy
from rensa import RMinHash

from runner.programs.lib.key_runs import KeyRuns

#: Texts of one block: so many are looked up in one pass over what lies on disk.
BLOCK_TEXTS = 4096
#: A block ends early at so many characters, for who holds the texts meanwhile.
BLOCK_CHARACTERS = 1 << 22
#: Texts that one band of a sketch leads to. Where more have it, as in rows of a template, the first represent the rest.
REPRESENTATIVES = 16
#: What a remembered text takes on disk at the most, half of it only while runs merge.
DISK_BYTES = 1400
_PERMUTATIONS = 128
_BANDS = 32
_SHINGLE_CHARACTERS = 5
_SHINGLES_AT_ONCE = 1 << 16
_PAIRS_AT_ONCE = 1 << 12

#: Which texts are remembered when looked up: ``different`` those like none before, ``new`` those equal to none.
Remember = Literal["different", "new", "none"]
_Any = TypeVar("_Any")
#: Similarity, number of the remembered text, whether the two count as equal.
_Found = tuple[float, int, bool]


@dataclass(frozen=True, slots=True)
class Text:
    """``label``: what a match is named by, such as its line; ``key``: equal (64 bits) for texts that count as equal."""

    label: int
    key: int
    text: str


@dataclass(frozen=True, slots=True)
class Match:
    """The remembered text that is most like another one."""

    label: int
    similarity: float
    is_equal: bool


class NearTexts:
    """An index of texts that finds the one which a new text is most like; the same answers for any size of blocks.

    ``threshold``: the estimated Jaccard similarity of the sets of 5-character shingles from which on two texts count
    as alike. ``folder``: is made, and is gone after the ``with`` block.
    ``comparisons``: pairs of sketches compared. ``remembered``: texts. ``crowded``: those of them that some band does
    not lead to, because it had its representatives already: what is like them is found through their other bands.
    """

    def __init__(self, threshold: float, folder: Path, *, block_texts: int = BLOCK_TEXTS) -> None:
        self.comparisons = self.remembered = self.crowded = 0
        self.block_texts = block_texts
        self._threshold = threshold
        self._folder = folder
        self._sketches, self._labels = folder / "sketches", folder / "labels"
        self._runs = KeyRuns(folder)

    def __enter__(self) -> NearTexts:
        shutil.rmtree(self._folder, ignore_errors=True)  # of a start that was killed
        self._folder.mkdir(parents=True)
        self._sketches.touch()
        self._labels.touch()
        return self

    def __exit__(self, *_error: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def look_up(self, texts: Sequence[Text], *, remember: Remember) -> list[Match | None]:
        """For each text, in order, what is most like it among those remembered, also of this call; None: nothing is."""
        return [
            match
            for start in range(0, len(texts), self.block_texts)
            for match in self._look_up(texts[start : start + self.block_texts], remember)
        ]

    def _look_up(self, texts: Sequence[Text], remember: Remember) -> list[Match | None]:
        block = _Block(texts)
        best = self._matches_on_disk(block)
        if remember != "none":
            self._matches_within(block, best, remember)
            self._store(block, texts)
        labels = self._labels_of(best)
        return [None if found is None else Match(labels[found[1]], found[0], found[2]) for found in best]

    def _matches_on_disk(self, block: _Block) -> list[_Found | None]:
        """(similarity, number, equal) for each text of the block; fills ``block.taken``."""
        best: list[_Found | None] = [None] * block.size
        order = numpy.argsort(block.keys.ravel(), kind="stable")
        taken = block.taken.ravel()
        pairs = [numpy.empty(0, numpy.uint64)]
        for places, numbers in self._runs.find(block.keys.ravel()[order]):
            needles = order[places]
            numpy.add.at(taken, needles, 1)
            is_key = needles % (_BANDS + 1) == _BANDS
            for needle, number in zip(needles[is_key].tolist(), numbers[is_key].tolist(), strict=True):
                best[needle // (_BANDS + 1)] = (1.0, number, True)
            texts = (needles[~is_key] // (_BANDS + 1)).astype(numpy.uint64)
            pairs.append(_once(texts << numpy.uint64(32) | numbers[~is_key]))
        found = _once(numpy.concatenate(pairs))
        for start in range(0, len(found), _PAIRS_AT_ONCE):
            self._compare(block, found[start : start + _PAIRS_AT_ONCE], best)
        return best

    def _compare(self, block: _Block, pairs: Any, best: list[_Found | None]) -> None:
        """Compare texts of the block with remembered ones; ``pairs``: text and number of 32 bits each, ascending."""
        texts, numbers = (pairs >> numpy.uint64(32)).astype(numpy.int64), pairs & numpy.uint64(2**32 - 1)
        sketches = numpy.memmap(self._sketches, numpy.uint32, "r").reshape(-1, _PERMUTATIONS)  # mapped while we look
        similar = _similarity(sketches[numbers], block.sketches[texts])
        self.comparisons += len(pairs)
        for place in numpy.flatnonzero(similar >= self._threshold).tolist():
            text, value = int(texts[place]), float(similar[place])
            known = best[text]
            if known is None or (not known[2] and value > known[0]):
                best[text] = (value, int(numbers[place]), False)

    def _matches_within(self, block: _Block, best: list[_Found | None], remember: Remember) -> None:
        """Compare each text with those of the block that are remembered before it, and number it if it is too."""
        buckets: dict[int, list[int]] = defaultdict(list)
        for text, keys in enumerate(block.shared_keys()):
            match = best[text]
            if match is None or not match[2]:
                match = best[text] = self._best_within(block, text, keys, buckets, match) or match
            if match is not None and (match[2] or remember == "different"):
                continue
            block.numbers[text] = self.remembered
            self.remembered += 1
            for band, key in keys:
                if len(buckets[key]) + int(block.taken[text, band]) < REPRESENTATIVES:
                    buckets[key].append(text)
                else:
                    block.is_listed[text, band] = False

    def _best_within(
        self, block: _Block, text: int, keys: list[tuple[int, int]], buckets: dict[int, list[int]], known: _Found | None
    ) -> _Found | None:
        """What a text is most like among the earlier ones of its block, if it is more like it than ``known``."""
        if keys and keys[-1][0] == _BANDS and (equal := buckets.get(keys[-1][1])):
            return 1.0, int(block.numbers[equal[0]]), True
        others = sorted({other for band, key in keys if band < _BANDS for other in buckets.get(key, ())})
        if not others:
            return None
        similar = _similarity(block.sketches[others], block.sketches[text])
        self.comparisons += len(others)
        place = int(similar.argmax())
        value = float(similar[place])
        if value < self._threshold or (known is not None and value <= known[0]):
            return None
        return value, int(block.numbers[others[place]]), False

    def _store(self, block: _Block, texts: Sequence[Text]) -> None:
        """Put what is remembered of a block to the rest."""
        kept = numpy.flatnonzero(block.numbers >= 0)
        listed = block.is_listed[kept]
        self.crowded += int((~listed.all(axis=1)).sum())
        numbers = numpy.repeat(block.numbers[kept], _BANDS + 1).reshape(listed.shape)
        self._runs.add(block.keys[kept][listed], numbers[listed].astype(numpy.uint32))
        with open(self._sketches, "ab") as sketches, open(self._labels, "ab") as labels:
            block.sketches[kept].tofile(sketches)
            numpy.array([texts[text].label for text in kept.tolist()], numpy.uint64).tofile(labels)

    def _labels_of(self, found: list[_Found | None]) -> dict[int, int]:
        """The label of each number found."""
        numbers = [match[1] for match in found if match is not None]
        if not numbers:
            return {}
        labels = numpy.memmap(self._labels, numpy.uint64, "r")  # mapped while we look
        return dict(zip(numbers, labels[numbers].tolist(), strict=True))


class _Block:
    """Texts that are looked up together. All arrays: (texts, bands and, last, the key of what is equal)."""

    def __init__(self, texts: Sequence[Text]) -> None:
        self.size = len(texts)
        self.sketches = numpy.array([sketch_of(text.text) for text in texts], numpy.uint32)
        self.keys = numpy.empty((self.size, _BANDS + 1), numpy.uint64)
        self.keys[:, :_BANDS] = _band_keys(self.sketches)
        self.keys[:, _BANDS] = _mixed(numpy.array([text.key for text in texts], numpy.uint64))
        #: How many remembered texts each key leads to before this block.
        self.taken = numpy.zeros(self.keys.shape, numpy.uint8)
        #: The number of each text that is remembered; -1: it is not.
        self.numbers = numpy.full(self.size, -1, numpy.int64)
        self.is_listed = numpy.empty(0, bool)

    def shared_keys(self) -> Iterator[list[tuple[int, int]]]:
        """For each text its (band, key) that another one of the block has too: few, but for texts that are alike."""
        self.is_listed = self.taken < REPRESENTATIVES
        _, place, counts = numpy.unique(self.keys, return_inverse=True, return_counts=True)
        is_shared = (counts > 1)[place].reshape(self.keys.shape)
        for keys, shared in zip(self.keys, is_shared, strict=True):
            bands = numpy.flatnonzero(shared)
            yield list(zip(bands.tolist(), keys[bands].tolist(), strict=True))


def in_blocks(texts: Iterable[_Any], size_of: Callable[[_Any], int]) -> Iterator[list[_Any]]:
    """What to look up together: as many as make a block; ``size_of``: characters of one."""
    block: list[_Any] = []
    size = 0
    for text in texts:
        block.append(text)
        size += size_of(text)
        if len(block) == BLOCK_TEXTS or size >= BLOCK_CHARACTERS:
            yield block
            block, size = [], 0
    if block:
        yield block


def sketch_of(text: str) -> list[int]:
    """The 128 smallest hashes of the text's shingles, 32 bits each."""
    sketch = RMinHash(num_perm=_PERMUTATIONS, seed=42)
    plain = re.sub(r"\s+", "", text).casefold()
    last = max(1, len(plain) - _SHINGLE_CHARACTERS + 1)
    for start in range(0, last, _SHINGLES_AT_ONCE):
        end = min(last, start + _SHINGLES_AT_ONCE)
        sketch.update([plain[place : place + _SHINGLE_CHARACTERS] for place in range(start, end)])
    digest: list[int] = sketch.digest()
    return digest


def _once(values: Any) -> Any:
    """Each value once, in order. ``numpy.unique`` makes a hash table, several times as large as the values."""
    values.sort()
    is_first = numpy.ones(len(values), bool)
    is_first[1:] = values[1:] != values[:-1]
    return values[is_first]


def _similarity(some: Any, others: Any) -> Any:
    """The estimated Jaccard similarity of sketches, row by row."""
    return (some == others).sum(axis=1) / _PERMUTATIONS


def _band_keys(sketches: Any) -> Any:
    """(texts, bands): what texts have in common whose sketches are equal in a band."""
    halves = numpy.ascontiguousarray(sketches).view(numpy.uint64).reshape(len(sketches), _BANDS, -1)
    keys = numpy.broadcast_to(numpy.arange(1, _BANDS + 1, dtype=numpy.uint64), halves.shape[:2])
    for part in range(halves.shape[2]):
        keys = _mixed(keys + halves[:, :, part])
    return keys


def _mixed(values: Any) -> Any:
    """The bits of each value spread over the whole of it (splitmix64, Steele et al. 2014)."""
    values = values + numpy.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
    return values ^ (values >> numpy.uint64(31))
