"""The four envelopes of the document; each operation answers in its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Envelope:
    """Where an answer has its payload and its code. ``bad_request_code`` stands for HTTP 400 in the body."""

    payload: str
    codes: tuple[str, ...]
    success_code: int = 200
    bad_request_code: int = 400

    def success(self, data: Any, message: str) -> dict[str, Any]:
        """The body of HTTP 200."""
        return {"success": True, **dict.fromkeys(self.codes, self.success_code), "message": message, self.payload: data}

    def failure(self, status: int, message: str, details: dict[str, Any]) -> dict[str, Any]:
        """The body of a failure; ``details``: error, field, request_id and where there are several problems."""
        code = self.bad_request_code if status == 400 else status
        codes = dict.fromkeys(self.codes, code)
        return {"success": False, **codes, "message": message, self.payload: None, **details}


FILES = Envelope("result", ("errorCode",))
IMAGES = Envelope("result", ("errorCode",), bad_request_code=701)
RESOURCES = Envelope("result", ("errorCode",))
MODELS = Envelope("data", ("code",))
TUNING = Envelope("data", ("returnCode",), success_code=0)
EVALUATION = Envelope("data", ("state", "status", "code"))
