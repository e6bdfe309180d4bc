"""Characters that no text for training should have."""

from __future__ import annotations

import re

#: Control characters, other than tab, line feed, form feed and carriage return.
CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f]")


def without_controls(text: str) -> str:
    """The text without its control characters."""
    return CONTROL.sub("", text)
