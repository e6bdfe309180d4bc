"""How many tokens a row becomes, and which are learned: the renderer's answer, by the fast twin where it can."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from tokenizers import Tokenizer

from runner.programs.lib.data import row_messages, row_preference, row_prompt
from runner.programs.lib.fast_tokens import FastTokens, NotAlike
from runner.programs.lib.marks import Message
from runner.programs.lib.render import Renderer

#: Keys of a turn without tools.
PLAIN = {"role", "content"}


@dataclass(frozen=True, slots=True)
class Counted:
    """One sample: its tokens, and the spans of token positions that are learned, in ascending order."""

    num_tokens: int
    spans: tuple[tuple[int, int], ...]


class TokenCounter:
    """Counts as training would render. ``why_slow``: why the fast twin is not used, or nothing."""

    def __init__(self, renderer: Renderer, tokenizer: Tokenizer, *, is_fast: bool = True) -> None:
        self._renderer = renderer
        self._tokenizer = tokenizer
        self._fast: FastTokens | None = None
        self.why_slow = "" if is_fast else "it was not asked for"
        if is_fast:
            try:
                self._fast = FastTokens(tokenizer)
                self._specials = _Specials(tokenizer, renderer.stop_token_ids)
            except NotAlike as reason:
                self._fast, self.why_slow = None, str(reason)

    @property
    def is_fast(self) -> bool:
        """The fast twin is in use."""
        return self._fast is not None

    def go_slow(self, reason: str) -> None:
        """From now on the renderer itself."""
        self._fast, self.why_slow = None, reason

    def samples(self, row: Mapping[str, Any], where: str) -> list[Counted]:
        """What training would make of a row. Raises ProgramError where that is nothing."""
        if "text" in row and "messages" not in row:
            return [self._text(str(row["text"]), is_learned="label" not in row)]
        if "chosen" in row or "responses" in row:
            pair = row_preference(row, where)
            return [self.conversation([*pair.prompt, reply]) for reply in (pair.chosen, pair.rejected)]
        if set(row) & {"prompt"} and "completion" not in row:
            size = len(self._renderer.encode_prompt(row_prompt(row, where)))
            return [Counted(size, ())]
        return [self.conversation(row_messages(row, where))]

    def conversation(self, messages: Sequence[Message]) -> Counted:
        """A conversation, answers learned."""
        if self._fast is not None and all(message.keys() <= PLAIN for message in messages):
            counted = self._fast_conversation(self._fast, messages)
            if counted is not None:
                return counted
        rendered = self._renderer.encode_conversation(messages)
        return Counted(len(rendered.token_ids), _spans(rendered.is_label))

    def _text(self, text: str, *, is_learned: bool) -> Counted:
        fast = self._fast
        is_fast = fast is not None and fast.can_encode(text)
        size = fast.count(text) if fast and is_fast else len(self._renderer.encode_text(text))
        size += is_learned  # the token that ends a text
        return Counted(size, ((0, size),) if is_learned else ())

    def _fast_conversation(self, fast: FastTokens, messages: Sequence[Message]) -> Counted | None:
        """None: this one has something in it that only the renderer's own way can tell."""
        text, restore, answers = self._renderer.with_answers(messages)
        if not all(fast.can_encode(message["content"]) for message in messages) or not fast.can_encode(text):
            return None
        bounds = sorted({place for span in answers for place in span})
        token_of: dict[int, tuple[int, int]] = {}
        stops: list[int] = []
        tokens = characters = 0
        for piece, special_id in self._specials.cut(text):
            inside = [place for place in bounds if characters <= place < characters + len(piece)]
            if special_id is not None:
                token_of |= {place: (tokens, tokens + (place > characters)) for place in inside}
                if special_id in self._specials.stop_ids:
                    stops.append(tokens)
                tokens += 1
            else:
                whole = restore(piece)
                if inside and fast.normalized(whole) != whole:
                    return None  # the places of its characters would be others
                ids = fast.encode(whole)
                sizes = [len(restore(piece[: place - characters]).encode()) for place in inside]
                token_of |= {
                    place: _around(fast.byte_lengths, ids, size, tokens)
                    for place, size in zip(inside, sizes, strict=True)
                }
                tokens += len(ids)
            characters += len(piece)
        token_of |= {place: (tokens, tokens) for place in bounds if place >= characters}
        spans = []
        for start, end in answers:
            first, last = token_of[start][0], token_of[end][1]
            stop = next((place for place in stops if first <= place < last), None)
            last = last if stop is None else stop + 1
            if start < end and first < last:
                spans.append((first, last))
        return Counted(tokens, tuple(spans))


class _Specials:
    """Where a template's special tokens are in a text, as the tokenizer itself cuts it."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: Sequence[int]) -> None:
        """Raises NotAlike."""
        added = {i: token for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        if any(token.lstrip or token.rstrip or token.single_word for token in added.values()):
            raise NotAlike("its special tokens take the space around them")
        self._ids = {token.content: i for i, token in added.items()}
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if added else None
        self.stop_ids = frozenset(stop_ids)

    def cut(self, text: str) -> list[tuple[str, int | None]]:
        """Pieces in order; a special token with its id."""
        pieces = self._pattern.split(text) if self._pattern else [text]
        return [(piece, self._ids.get(piece) if number % 2 else None) for number, piece in enumerate(pieces) if piece]


def _around(byte_lengths: Mapping[int, int], ids: Sequence[int], size: int, tokens: int) -> tuple[int, int]:
    """For a place ``size`` bytes into a piece: the first token that ends after it, and the first that begins there."""
    position = 0
    for number, token_id in enumerate(ids):
        if position >= size:
            return tokens + number, tokens + number
        position += byte_lengths[token_id]
        if position > size:
            return tokens + number, tokens + number + 1
    return tokens + len(ids), tokens + len(ids)


def _spans(is_label: Sequence[bool]) -> tuple[tuple[int, int], ...]:
    spans, position = [], 0
    for is_learned, group in groupby(is_label):
        size = sum(1 for _ in group)
        if is_learned:
            spans.append((position, position + size))
        position += size
    return tuple(spans)
