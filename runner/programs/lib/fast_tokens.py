"""A byte-level BPE tokenizer's ids, several times as fast: the same vocabulary in tiktoken.

Only where the tokenizer's own description says that both do the same; whoever uses this keeps comparing samples and
goes the slow way at the first difference.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import tiktoken
from tokenizers import Tokenizer

#: How ByteLevel cuts words by itself.
_GPT2_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


class NotAlike(Exception):
    """Why a tokenizer has no fast twin."""


class FastTokens:
    """The fast twin of a tokenizer for plain text, whose special-token text stays text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises NotAlike."""
        told = json.loads(tokenizer.to_str())
        model = told["model"]
        _require(model.get("type") == "BPE", "its model is no BPE")
        _require(not model.get("byte_fallback") and not model.get("dropout"), "its BPE has byte fallback or dropout")
        affixes = (model.get("continuing_subword_prefix"), model.get("end_of_word_suffix"), model.get("unk_token"))
        _require(not any(affixes), "its BPE marks parts of words")
        self._is_nfc = _is_nfc(told.get("normalizer"))
        words = _words_of(told.get("pre_tokenizer"))
        byte_of = _byte_of_character()
        vocabulary: Mapping[str, int] = model["vocab"]
        names = _names_in_order(model, byte_of)
        if not model.get("ignore_merges"):
            tokenize = tokenizer.model.tokenize
            odd = next((name for name in names if len(tokenize(name)) != 1), None)
            _require(odd is None, f"the token {odd!r} is never made by its merges")
        _require(all(name in vocabulary for name in names), "a merge makes a token that its vocabulary lacks")
        self._ids = [vocabulary[name] for name in names]
        # Only the order of what merges make counts; where ids have that order too, they are the ranks.
        made = self._ids[len(byte_of) :]
        self._is_same_id = all(first < second for first, second in pairwise(made))
        ranks = self._ids if self._is_same_id else range(len(names))
        pieces = [bytes(byte_of[character] for character in name) for name in names]
        self.byte_lengths = {token_id: len(piece) for token_id, piece in zip(self._ids, pieces, strict=True)}
        self._apart = _cut_out(tokenizer)
        try:
            self._encoding = tiktoken.Encoding(
                "twin", pat_str=words, mergeable_ranks=dict(zip(pieces, ranks, strict=True)),
                special_tokens={},
            )  # fmt: skip
        except Exception as fault:  # the regular expression's engine has no exception class of its own
            raise NotAlike(f"its way of cutting words can not be taken over: {fault}") from fault

    def can_encode(self, text: str) -> bool:
        """Whether a text has nothing in it that the tokenizer cuts out before its model sees it."""
        return self._apart is None or self._apart.search(text) is None

    def encode(self, text: str) -> list[int]:
        """Token ids of a text that ``can_encode``."""
        ranks = self._encoding.encode_ordinary(self.normalized(text))
        return ranks if self._is_same_id else [self._ids[rank] for rank in ranks]

    def count(self, text: str) -> int:
        """How many tokens a text that ``can_encode`` has."""
        return len(self._encoding.encode_ordinary(self.normalized(text)))

    def normalized(self, text: str) -> str:
        """The text that the model sees."""
        if not self._is_nfc or text.isascii() or unicodedata.is_normalized("NFC", text):
            return text
        return unicodedata.normalize("NFC", text)


def _names_in_order(model: Mapping[str, Any], byte_of: Mapping[str, int]) -> list[str]:
    """Single bytes, then what each merge makes, in the order of the merges."""
    names = sorted(byte_of, key=byte_of.__getitem__)
    seen = set(names)
    for merge in model["merges"]:
        name = "".join(merge.split(" ", 1) if isinstance(merge, str) else merge)
        if name not in seen:
            seen.add(name)
            names.append(name)
    _require(all(set(name) <= byte_of.keys() for name in names), "its tokens are no bytes")
    unreachable = len(model["vocab"].keys() - seen)
    _require(not model.get("ignore_merges") or not unreachable, f"{unreachable} of its tokens come of no merge")
    return names


def _words_of(pre_tokenizer: Any) -> str:
    """The regular expression by which words are cut."""
    parts = (pre_tokenizer or {}).get("pretokenizers") or [pre_tokenizer or {}]
    kinds = [part.get("type") for part in parts]
    _require(kinds in (["ByteLevel"], ["Split", "ByteLevel"]), f"it cuts words by {kinds}")
    last = parts[-1]
    _require(not last.get("add_prefix_space"), "it puts a space before texts")
    if kinds == ["ByteLevel"]:
        _require(bool(last.get("use_regex", True)), "it cuts no words")
        return _GPT2_WORDS
    split = parts[0]
    _require(not last.get("use_regex", True), "it cuts words twice")
    _require(split.get("behavior") == "Isolated" and not split.get("invert"), "it cuts words in another manner")
    words = split["pattern"].get("Regex")
    _require(isinstance(words, str), "it cuts words by a text")
    return str(words)


def _is_nfc(normalizer: Any) -> bool:
    _require(normalizer is None or normalizer.get("type") == "NFC", "it changes texts in another way than NFC")
    return normalizer is not None


def _cut_out(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    """Added tokens that are no special ones: they are cut out of any text."""
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values() if not token.special]
    longest_first: Iterable[str] = sorted(added, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if added else None


def _byte_of_character() -> dict[str, int]:
    """The characters by which byte-level BPE writes bytes (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _require(is_so: bool, reason: str) -> None:
    if not is_so:
        raise NotAlike(reason)
