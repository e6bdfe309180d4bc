"""Special-token text that somebody wrote into a conversation: marks stand for it, so that it never becomes a token."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]


class Restore:
    """Puts special-token text back where private characters stand for it."""

    def __init__(self, text_of_mark: Mapping[str, str]) -> None:
        self._text_of_mark = dict(text_of_mark)
        self.is_needed = bool(text_of_mark)

    def __call__(self, text: str) -> str:
        for mark, original in self._text_of_mark.items():  # marks are characters that no content has
            text = text.replace(mark, original)
        return text


def protected(messages: Sequence[Message], specials: Iterable[str]) -> tuple[list[dict[str, Any]], Restore]:
    """Messages whose special-token text is replaced by private characters, and the way back."""
    contents = "".join(text for message in messages for text in _texts(message))
    written = sorted((text for text in specials if text in contents), key=len, reverse=True)
    unused = (chr(code) for code in range(0x10F000, 0x10FFFE) if chr(code) not in contents)
    mark_of = dict(zip(written, unused, strict=False))

    def marked(text: str) -> str:
        for original, mark in mark_of.items():
            text = text.replace(original, mark)
        return text

    safe = [_mapped(message, marked) if mark_of else dict(message) for message in messages]
    return safe, Restore({mark: text for text, mark in mark_of.items()})


def _texts(value: Any) -> Iterator[str]:
    """Every text in a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from (key, *_texts(inner))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """A value of JSON with every text changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key): _mapped(inner, change) for key, inner in value.items()}
    return [_mapped(inner, change) for inner in value] if isinstance(value, list) else value
