"""Names that people give to their objects."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from uuid import UUID

from clavier.core.errors import Invalid, quoted

MAX_NAME_CHARACTERS = 100
#: Control, format (bidi overrides, zero-width), surrogate, private, unassigned, line and paragraph separators.
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})

_NUMBERED = re.compile(r"\A(.+)@(\d{1,9})\Z", re.DOTALL)


def parse_display_name(text: str, *, field: str = "name") -> str:
    """A name in NFC without blanks around it, 1 to 100 visible characters. Raises Invalid (required, bad_name)."""
    name = unicodedata.normalize("NFC", text).strip()
    if not name:
        raise Invalid(f"{field} is empty. Give 1 to {MAX_NAME_CHARACTERS} characters.", code="required", field=field)
    bad = next((c for c in name if unicodedata.category(c) in _INVISIBLE or c in "/\\"), None)
    if bad is not None:
        raise Invalid(
            f"{field} {quoted(name)} has the character U+{ord(bad):04X}. Slashes, backslashes and invisible characters "
            "are not allowed.",
            code="bad_name",
            field=field,
        )
    if len(name) > MAX_NAME_CHARACTERS:
        raise Invalid(
            f"{field} {quoted(name)} has {len(name)} characters; {MAX_NAME_CHARACTERS} are allowed.",
            code="bad_name",
            field=field,
        )
    return name


def is_id(text: str) -> bool:
    """The text is a UUID rather than a name."""
    try:
        return bool(UUID(text))
    except ValueError:
        return False


def names_with_numbers(*texts: str) -> Iterator[tuple[str, int | None]]:
    """What each text can mean as the name of a series of versions: itself, and ``name@2`` as version 2 of ``name``."""
    for text in dict.fromkeys(unicodedata.normalize("NFC", text) for text in texts):
        yield text, None
        numbered = _NUMBERED.match(text)
        if numbered is not None:
            yield numbered[1], int(numbered[2])
