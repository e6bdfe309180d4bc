"""Requests for scores: ``/pooling`` of vLLM's server with ``messages``, of one conversation or of several.

A request is JSON with ``model`` and ``messages``: a list of turns that ends with the assistant's, or a list of such
lists. The answer is vLLM's: ``data[i].data[0]`` is the score of conversation i. Errors have the form of OpenAI's.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from runner.programs.lib.data import Message, row_messages
from runner.programs.lib.events import ProgramError

MAX_CONVERSATIONS = 256
FIELDS = ("model", "messages", "encoding_format", "user")
_ERROR_TYPES = {401: "authentication_error", 404: "not_found_error"}


class Refusal(Exception):
    """Why there is no score: ``status`` of HTTP, a stable ``code``, words, and the field at fault."""

    def __init__(self, status: int, code: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.field = status, code, message, field

    def to_json(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = _ERROR_TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.field, "code": self.code}}


def conversations_of(body: bytes, served_name: str) -> list[list[Message]]:
    """The conversations of a request. Raises Refusal naming the field."""
    request = _object(body)
    if request.get("model") != served_name:
        message = f"The model {request.get('model')!r} is not served here; {served_name!r} is."
        raise Refusal(404, "model_not_found", message, "model")
    if "input" in request:
        message = "input is not taken: a score needs the turns of a conversation. Give them as messages."
        raise Refusal(400, "unknown_field", message, "input")
    for name in sorted(set(request) - set(FIELDS)):
        raise Refusal(400, "unknown_field", f"{name} is none of {', '.join(FIELDS)}.", name)
    if request.get("encoding_format") not in (None, "float"):
        message = f"encoding_format is {request['encoding_format']!r}; scores are sent as float."
        raise Refusal(400, "not_a_choice", message, "encoding_format")
    given = request.get("messages")
    if not isinstance(given, list) or not given:
        message = "messages is required: the turns of a conversation, or a list of conversations."
        raise Refusal(400, "required", message, "messages")
    if not isinstance(given[0], list):
        return [_conversation(given, "messages")]
    if len(given) > MAX_CONVERSATIONS:
        message = (
            f"messages has {len(given)} conversations; a request takes {MAX_CONVERSATIONS}. Send several requests."
        )
        raise Refusal(400, "too_many", message, "messages")
    return [_conversation(turns, f"messages[{number}]") for number, turns in enumerate(given)]


def require_fits(rows: Sequence[Sequence[int]], context_tokens: int, names: Sequence[str]) -> None:
    """Raises Refusal for a conversation that is longer than the server reads; it is never cut."""
    for row, name in zip(rows, names, strict=True):
        if len(row) > context_tokens:
            message = f"{name} has {len(row)} tokens; this service reads {context_tokens}. Shorten it."
            raise Refusal(400, "context_length_exceeded", message, name)


def names_of(conversations: Sequence[object]) -> list[str]:
    """What the conversations of a request are called in errors."""
    return ["messages"] if len(conversations) == 1 else [f"messages[{n}]" for n in range(len(conversations))]


def answer_of(scores: Sequence[float], num_tokens: int, served_name: str) -> dict[str, Any]:
    """The body of the answer. Raises Refusal where a score is no number, which JSON could not say either."""
    for number, score in enumerate(scores):
        if not math.isfinite(score):
            raise Refusal(500, "score_not_finite", f"The model's score of conversation {number} is {score}.")
    return {
        "id": f"pool-{uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": served_name,
        "data": [{"index": index, "object": "pooling", "data": [score]} for index, score in enumerate(scores)],
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens, "completion_tokens": 0},
    }


def _object(body: bytes) -> dict[str, Any]:
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "malformed_json", f"The body is not JSON: {error}.") from None
    if not isinstance(request, dict):
        raise Refusal(400, "wrong_type", "The body must be a JSON object.")
    return request


def _conversation(turns: Any, name: str) -> list[Message]:
    try:
        messages = row_messages({"messages": turns}, name)
    except ProgramError as error:
        raise Refusal(400, "bad_messages", error.message, name) from None
    if messages[-1]["role"] != "assistant" or len(messages) < 2:
        message = f"{name} must end with the assistant's reply to be scored, after at least one turn."
        raise Refusal(400, "bad_messages", message, name)
    return messages
