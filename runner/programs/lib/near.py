"""Texts that are almost the same, by MinHash and locality-sensitive hashing (Broder 1997; Leskovec et al., ch. 3)."""

from __future__ import annotations

import re

from rensa import RMinHash, RMinHashLSH

_PERMUTATIONS = 128
_BANDS = 32
_SHINGLE_CHARACTERS = 5


class NearTexts:
    """An index of texts that finds the one which a new text is most like. Memory: about 1 KiB a text.

    ``threshold``: the estimated Jaccard similarity of the sets of 5-character shingles from which on two texts count
    as alike.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._index = RMinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS, num_bands=_BANDS)
        self._sketches: list[RMinHash] = []

    def __len__(self) -> int:
        return len(self._sketches)

    def add(self, sketch: RMinHash) -> int:
        """Remember a text by its sketch; its number, from 0."""
        number = len(self._sketches)
        self._index.insert(number, sketch)
        self._sketches.append(sketch)
        return number

    def most_like(self, sketch: RMinHash) -> tuple[int, float] | None:
        """Number and similarity of the remembered text that is most like this one; None where none is alike."""
        found = [(sketch.jaccard(self._sketches[number]), -number) for number in self._index.query(sketch)]
        similarity, number = max(found, default=(0.0, 0))
        return (-number, similarity) if found and similarity >= self._threshold else None


def sketch_of(text: str) -> RMinHash:
    """What two texts are compared by."""
    sketch = RMinHash(num_perm=_PERMUTATIONS, seed=42)
    sketch.update(shingles(text))
    return sketch


def shingles(text: str) -> list[str]:
    """Every run of five characters, without case and white space; a shorter text is its own."""
    plain = re.sub(r"\s+", "", text).casefold()
    if len(plain) <= _SHINGLE_CHARACTERS:
        return [plain]
    return [plain[start : start + _SHINGLE_CHARACTERS] for start in range(len(plain) - _SHINGLE_CHARACTERS + 1)]
