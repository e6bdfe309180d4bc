"""Tools in a conversation: what a row offers to the model, and the calls in its answers, as templates take them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

#: Where a conversation keeps what the model may call: with its first turn.
TOOLS = "tools"
CALLS = "tool_calls"
#: Other keys that a turn of a tool may have: whose answer it is.
OF_ANSWERS = ("name", "tool_call_id")


class BadTools(ValueError):
    """What is wrong, to be said after the row's name."""


def offered(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The ``tools`` of a row, a list of JSON schemas or the text of one; empty where it has none. Raises BadTools."""
    tools = _parsed(row.get(TOOLS), TOOLS) or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadTools("needs a list of JSON schemas under 'tools'")
    return tools


def called(message: Mapping[str, Any], number: int) -> dict[str, Any]:
    """What a turn has besides role and content that has to do with tools. Raises BadTools."""
    kept: dict[str, Any] = {}
    calls = message.get(CALLS)
    if calls:
        if message.get("role") != "assistant" or not isinstance(calls, list):
            raise BadTools(f"message {number}: 'tool_calls' is a list in a turn of the assistant")
        kept[CALLS] = [_call(call, number) for call in calls]
    if message.get("role") == "tool":
        kept |= {key: message[key] for key in OF_ANSWERS if isinstance(message.get(key), str)}
    return kept


def has_tools(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether more than texts is in a conversation."""
    return any(message.get(TOOLS) or message.get(CALLS) for message in messages)


def without(messages: Sequence[Mapping[str, Any]], key: str) -> list[dict[str, Any]]:
    """The turns without one of their keys."""
    return [{name: value for name, value in message.items() if name != key} for message in messages]


def _call(call: Any, number: int) -> dict[str, Any]:
    """A call as templates take it: arguments are an object, which OpenAI's own data has as JSON text."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadTools(f"message {number}: each of 'tool_calls' needs a function with a name")
    arguments = _parsed(function.get("arguments") or {}, "arguments")
    if not isinstance(arguments, dict):
        raise BadTools(f"message {number}: the arguments of {function['name']} must be an object")
    return {**call, "type": "function", "function": {**function, "arguments": arguments}}


def _parsed(value: Any, name: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise BadTools(f"has {name!r} that are no JSON: {error.msg}") from None
