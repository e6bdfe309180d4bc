"""Writes a byte-level BPE tokenizer and its chat template into a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.programs.lib.events import ProgramError

if TYPE_CHECKING:
    from gguf import GGUFWriter

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

#: The splitting rule in tokenizer.json -> llama.cpp's name for the same rule.
SPLIT_RULES = {
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST: "qwen2",
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST: "llama-bpe",
}

_STOP_NAMES = ("eos", "eot", "eom")

#: llama.cpp does not normalize text; NFC is the identity on composed text, which is what keyboards and files hold.
_HARMLESS_NORMALIZERS = (None, "NFC")


def add_tokenizer(writer: GGUFWriter, folder: Path, vocabulary_size: int, stop_token_ids: Sequence[int]) -> None:
    """Add vocabulary, merges, splitting rule, special tokens, stop tokens and chat template of a tokenizer folder.

    ``vocabulary_size``: rows of the embedding; rows without a token become unused tokens.
    Raises ProgramError (code ``unsupported_tokenizer``) for anything but byte-level BPE with a known rule.
    """
    from gguf import SpecialVocab

    description = _read_tokenizer(folder)
    tokens, kinds = _vocabulary(description, vocabulary_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer_name(description))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    special = SpecialVocab(folder, load_merges=True, n_vocab=vocabulary_size)
    # The template writes every special token itself; llama.cpp must not add one of its own (some rules imply a bos).
    special.add_special_token.update(bos=False, eos=False)
    special.special_token_ids.update(_stop_tokens(stop_token_ids))
    special.add_to_gguf(writer, quiet=True)


def _stop_tokens(stop_token_ids: Sequence[int]) -> dict[str, int]:
    """llama.cpp ends an answer at its end of sequence, end of turn and end of message tokens: three names for ids."""
    if len(stop_token_ids) > len(_STOP_NAMES):
        raise _unsupported(f"it has {len(stop_token_ids)} stop tokens, the CPU server knows {len(_STOP_NAMES)}")
    return dict(zip(_STOP_NAMES, stop_token_ids, strict=False))


def _read_tokenizer(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise _unsupported("the folder holds no tokenizer.json")
    description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    model = description["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback") or not _is_byte_level(description):
        raise _unsupported(f"its tokenizer is {model.get('type')} without byte-level splitting")
    normalizer = description.get("normalizer")
    if normalizer is not None and normalizer.get("type") not in _HARMLESS_NORMALIZERS:
        raise _unsupported(f"its tokenizer normalizes text ({normalizer.get('type')})")
    return description


def _is_byte_level(description: dict[str, Any]) -> bool:
    return any(step["type"] == "ByteLevel" for step in _steps(description))


def _steps(description: dict[str, Any]) -> list[dict[str, Any]]:
    pre_tokenizer = description.get("pre_tokenizer") or {"type": "Sequence", "pretokenizers": []}
    if pre_tokenizer["type"] == "Sequence":
        return list(pre_tokenizer["pretokenizers"])
    return [pre_tokenizer]


def _pre_tokenizer_name(description: dict[str, Any]) -> str:
    steps = _steps(description)
    if any(step.get("add_prefix_space") for step in steps):
        raise _unsupported("its tokenizer puts a space before the text (add_prefix_space)")
    match [step["type"] for step in steps]:
        case ["ByteLevel"] if steps[0].get("use_regex", True):
            return "gpt-2"
        case ["Digits", "ByteLevel"] if steps[0].get("individual_digits") and steps[1].get("use_regex", True):
            return "smollm"
        case ["Split", "ByteLevel"] if not steps[1].get("use_regex", True):
            rule = str(steps[0]["pattern"].get("Regex"))
            if rule in SPLIT_RULES and steps[0]["behavior"] == "Isolated" and not steps[0].get("invert"):
                return SPLIT_RULES[rule]
            raise _unsupported(f"its tokenizer splits text by the rule {rule!r}")
    raise _unsupported(f"its tokenizer splits text by {[step['type'] for step in steps]}")


def _vocabulary(description: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Tokens by id and their kinds, both of length ``size``."""
    from gguf import TokenType

    tokens = [f"[PAD{index}]" for index in range(size)]
    kinds = [int(TokenType.UNUSED)] * size
    added = {entry["content"]: entry for entry in description.get("added_tokens", [])}
    vocabulary = {**description["model"]["vocab"], **{text: entry["id"] for text, entry in added.items()}}
    highest = max(vocabulary.values())
    if highest >= size:
        raise _unsupported(f"its tokenizer has token {highest} but the model has {size} rows (vocab_size)")
    for text, index in vocabulary.items():
        tokens[index] = text
        if text not in added:
            kinds[index] = int(TokenType.NORMAL)
        else:
            kinds[index] = int(TokenType.CONTROL if added[text]["special"] else TokenType.USER_DEFINED)
    return tokens, kinds


def _unsupported(reason: str) -> ProgramError:
    return ProgramError(
        "unsupported_tokenizer",
        f"The CPU server can not serve this model: {reason}. It serves byte-level BPE with the rules of GPT-2, "
        "SmolLM, Llama 3 and Qwen2. Serve this model with vLLM on a GPU instead (server: vllm).",
        field="model",
    )
