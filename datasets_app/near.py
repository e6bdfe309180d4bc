"""Texts that are almost the same, by MinHash and locality-sensitive hashing (Broder 1997; Leskovec et al., ch. 3)."""

from __future__ import annotations

import re

from rensa import RMinHash, RMinHashLSH

_PERMUTATIONS = 128
_BANDS = 32
_SHINGLE_CHARACTERS = 5


class NearDuplicates:
    """Remembers texts and tells whether a new one is like an earlier one.

    ``threshold``: the estimated Jaccard similarity of the sets of 5-character shingles from which on two texts count
    as alike. Memory: about 1 KiB a text.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._index = RMinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS, num_bands=_BANDS)
        self._hashes: list[RMinHash] = []

    def has_like(self, text: str) -> bool:
        """Whether an earlier text is alike; a text that is not is remembered."""
        sketch = RMinHash(num_perm=_PERMUTATIONS, seed=42)
        sketch.update(shingles(text))
        if any(sketch.jaccard(self._hashes[key]) >= self._threshold for key in self._index.query(sketch)):
            return True
        self._index.insert(len(self._hashes), sketch)
        self._hashes.append(sketch)
        return False


def shingles(text: str) -> list[str]:
    """Every run of five characters, without case and white space; a shorter text is its own."""
    plain = re.sub(r"\s+", "", text).casefold()
    if len(plain) <= _SHINGLE_CHARACTERS:
        return [plain]
    return [plain[start : start + _SHINGLE_CHARACTERS] for start in range(len(plain) - _SHINGLE_CHARACTERS + 1)]
