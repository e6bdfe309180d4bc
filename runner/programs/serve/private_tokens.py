"""Gives a served tokenizer private names for its special tokens, so that nobody can write them into a message.

llama.cpp, vLLM and transformers turn the text ``<|im_end|>`` inside a user's message into the real end-of-turn token:
a user could close their own turn and speak as the system. Our renderer keeps such text as text, and the model was
trained so. A server gets the same behaviour from a copy of the tokenizer whose special tokens keep their ids but are
named by a secret of this start; the chat template writes the secret names.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.contract.folder import write_json_durably
from runner.programs.lib.render import Renderer

#: Read by every version of transformers without looking at the model's configuration.
_PLAIN_CLASS = "PreTrainedTokenizerFast"


def write_private_tokenizer(model_folder: Path, target: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json (with the template) under secret special-token names.

    Token ids do not change. Raises ProgramError where the folder has no usable tokenizer.
    """
    spec = Renderer.from_folder(model_folder).render_spec
    tokenizer = json.loads((model_folder / "tokenizer.json").read_text(encoding="utf-8"))
    names = _private_names(tokenizer)
    config: dict[str, Any] = {
        **{name: names.get(text, text) for name, text in spec["named_tokens"].items()},
        "chat_template": _rename_in_template(spec["chat_template"], names),
        "tokenizer_class": _PLAIN_CLASS,
        "clean_up_tokenization_spaces": False,
    }
    target.mkdir(parents=True, exist_ok=True)
    write_json_durably(target / "tokenizer.json", _rename(tokenizer, names))
    write_json_durably(target / "tokenizer_config.json", config)


def _private_names(tokenizer: Mapping[str, Any]) -> dict[str, str]:
    """Secret name of each special token; tokens that are not special (``<tool_call>``) are ordinary text and stay."""
    secret = secrets.token_hex(16)
    special = [entry["content"] for entry in tokenizer.get("added_tokens", []) if entry["special"]]
    return {text: f"<|{secret}-{number}|>" for number, text in enumerate(special)}


def _rename_in_template(template: str, names: Mapping[str, str]) -> str:
    if not names:
        return template
    longest_first = sorted(names, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, longest_first)), lambda match: names[match[0]], template)


def _rename(value: Any, names: Mapping[str, str]) -> Any:
    """The same JSON with every string and key that is exactly a special token replaced by its secret name."""
    if isinstance(value, str):
        return names.get(value, value)
    if isinstance(value, list):
        return [_rename(item, names) for item in value]
    if isinstance(value, dict):
        return {names.get(key, key): _rename(item, names) for key, item in value.items()}
    return value
