"""Which form an answer has."""

from __future__ import annotations

from typing import Any

from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.request import Request


class AlwaysJson(DefaultContentNegotiation):
    """Answers are JSON or a file, whatever Accept says: a download must not fail for asking for its own type."""

    def select_renderer(self, request: Request, renderers: Any, format_suffix: str | None = None) -> Any:
        """The one renderer there is."""
        return renderers[0], renderers[0].media_type
