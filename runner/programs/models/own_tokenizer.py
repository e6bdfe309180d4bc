"""A user's own tokenizer for a new model: checked, copied into the run, made one that every loader reads."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from tokenizers import Tokenizer

from runner.contract.folder import write_json_durably
from runner.programs.lib.events import ProgramError
from runner.programs.lib.render import DEFAULT_TEMPLATE, Renderer, distrusted
from runner.programs.models.model_files import TOKENIZER_FILES, refuse_code
from runner.programs.models.sentencepiece_model import end_token, read_pieces, refused, tokenizer_of, unknown_token

MAX_TOKENIZER_BYTES = 64 << 20
#: Tokens that end a text or turn in well-known vocabularies; for a tokenizer.json without its configuration.
KNOWN_ENDS = ("<|im_end|>", "<|endoftext|>", "</s>", "<|end_of_text|>", "<|eot_id|>", "<eos>", "[SEP]")


def take_tokenizer(source: Path, target: Path, context_tokens: int) -> None:
    """Copy a tokenizer.json, a SentencePiece tokenizer.model or a folder of both kinds into ``target``, whole.

    ``context_tokens``: of the new model. Raises ProgramError (field ``tokenizer``) for what can not be read, is too
    large, runs code, or has no token that ends a text.
    """
    target.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        for name in TOKENIZER_FILES:
            if os.path.lexists(source / name) and name != "generation_config.json":
                copy_file(source / name, target / name)
    else:
        copy_file(source, target / ("tokenizer.json" if source.suffix == ".json" else "tokenizer.model"))
    try:
        refuse_code(target)
        if not (target / "tokenizer.json").is_file():
            from_sentencepiece(target, context_tokens)
        elif not (target / "tokenizer_config.json").is_file():
            name_the_end(target, context_tokens)
        with distrusted():
            Renderer.from_folder(target).try_template()
    except ProgramError as error:
        raise ProgramError(error.code, f"tokenizer: {error.message.removeprefix('tokenizer: ')}", "tokenizer") from None
    except Exception as error:  # the tokenizers library has no exception class of its own
        raise refused(f"tokenizer.json can not be read: {error}") from None


def copy_file(source: Path, target: Path) -> None:
    """One regular file of a bounded size; a link is not followed. Raises ProgramError."""
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise ProgramError("tokenizer_missing", f"tokenizer: {source.name}: {error.strerror}", "tokenizer") from None
    with open(descriptor, "rb") as stream:
        facts = os.fstat(stream.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise refused(f"{source.name} is no regular file")
        if facts.st_size > MAX_TOKENIZER_BYTES:
            raise refused(f"{source.name} has {facts.st_size:,} bytes; at most {MAX_TOKENIZER_BYTES:,} are read")
        with open(target, "wb") as copy:
            shutil.copyfileobj(stream, copy)


def from_sentencepiece(folder: Path, context_tokens: int) -> None:
    """Write the tokenizer.json of a folder that has a tokenizer.model only. Raises ProgramError."""
    path = folder / "tokenizer.model"
    if not path.is_file():
        raise ProgramError("tokenizer_missing", "it holds neither tokenizer.json nor tokenizer.model")
    found = read_pieces(path.read_bytes())
    end = end_token(found)
    if end is None:
        raise refused("it has no piece that ends a text (eos_id); train it with one")
    tokenizer_of(found).save(str(folder / "tokenizer.json"))
    if not (folder / "tokenizer_config.json").is_file():
        write_config(folder, end, context_tokens, unknown_token(found))


def name_the_end(folder: Path, context_tokens: int) -> None:
    """Write the configuration of a tokenizer.json that came alone. Raises ProgramError."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    end = next((text for text in KNOWN_ENDS if tokenizer.token_to_id(text) is not None), None)
    if end is None:
        raise refused("no token ends a text; give the folder with the tokenizer_config.json that names eos_token")
    write_config(folder, end, context_tokens)


def write_config(folder: Path, end: str, context_tokens: int, unknown: str | None = None) -> None:
    """A configuration with the end of a text, and the template that ends each turn with it."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": end,
        "pad_token": end,
        "unk_token": unknown,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_tokens,
        "chat_template": DEFAULT_TEMPLATE.replace("<|im_end|>", end),
    }
    write_json_durably(folder / "tokenizer_config.json", config)
