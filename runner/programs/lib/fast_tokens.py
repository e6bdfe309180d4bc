"""A byte-level BPE tokenizer's ids, many times as fast: the same tokenizer read by fastokens.

Only where the tokenizer's own description says that both do the same; whoever uses this keeps comparing samples and
goes the slow way at the first difference.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer

try:
    import fastokens
except ImportError:  # there are wheels for common machines only; elsewhere the tokenizer itself counts
    fastokens = None


class NotAlike(Exception):
    """Why a tokenizer has no fast twin."""


class FastTokens:
    """The fast twin of a tokenizer for plain text, whose special-token text stays text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises NotAlike."""
        _require(fastokens is not None, "fastokens is not installed (requirements-train.txt)")
        told = json.loads(tokenizer.to_str())
        model = told["model"]
        _require(model.get("type") == "BPE", "its model is no BPE")
        _require(not model.get("byte_fallback") and not model.get("dropout"), "its BPE has byte fallback or dropout")
        affixes = (model.get("continuing_subword_prefix"), model.get("end_of_word_suffix"), model.get("unk_token"))
        _require(not any(affixes), "its BPE marks parts of words")
        self._is_nfc = _is_nfc(told.get("normalizer"))
        _require_bytes(told.get("pre_tokenizer"))
        # Byte-level BPE writes every byte as one character.
        self.byte_lengths = {token_id: len(name) for name, token_id in model["vocab"].items()}
        self._apart = _cut_out(tokenizer)
        try:
            self._twin = fastokens.Tokenizer.from_json_str(json.dumps(told | {"truncation": None, "padding": None}))
        except ValueError as fault:
            raise NotAlike(f"fastokens can not read it: {fault}") from fault

    def can_encode(self, text: str) -> bool:
        """Whether a text has nothing in it that the tokenizer cuts out before its model sees it."""
        return self._apart is None or self._apart.search(text) is None

    def encode(self, text: str) -> list[int]:
        """Token ids of a text that ``can_encode``."""
        token_ids: list[int] = self._twin.encode(text, split_special_tokens=True).ids
        return token_ids

    def count(self, text: str) -> int:
        """How many tokens a text that ``can_encode`` has."""
        return len(self._twin.encode(text, split_special_tokens=True))

    def normalized(self, text: str) -> str:
        """The text that the model sees."""
        if not self._is_nfc or text.isascii() or unicodedata.is_normalized("NFC", text):
            return text
        return unicodedata.normalize("NFC", text)


def _require_bytes(pre_tokenizer: Any) -> None:
    """Words are cut by one regular expression and become bytes, each word for itself. Raises NotAlike."""
    parts = (pre_tokenizer or {}).get("pretokenizers") or [pre_tokenizer or {}]
    kinds = [part.get("type") for part in parts]
    _require(kinds in (["ByteLevel"], ["Split", "ByteLevel"]), f"it cuts words by {kinds}")
    last = parts[-1]
    _require(not last.get("add_prefix_space"), "it puts a space before texts")
    if kinds == ["ByteLevel"]:
        _require(bool(last.get("use_regex", True)), "it cuts no words")
        return
    split = parts[0]
    _require(not last.get("use_regex", True), "it cuts words twice")
    _require(split.get("behavior") == "Isolated" and not split.get("invert"), "it cuts words in another manner")
    _require(isinstance(split["pattern"].get("Regex"), str), "it cuts words by a text")


def _is_nfc(normalizer: Any) -> bool:
    _require(normalizer is None or normalizer.get("type") == "NFC", "it changes texts in another way than NFC")
    return normalizer is not None


def _cut_out(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    """Added tokens that are no special ones: they are cut out of any text."""
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values() if not token.special]
    longest_first: Iterable[str] = sorted(added, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if added else None


def _require(is_so: bool, reason: str) -> None:
    if not is_so:
        raise NotAlike(reason)
