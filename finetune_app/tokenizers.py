"""The tokenizer that a user brings to a pretraining: a file or folder of the user's own."""

from __future__ import annotations

from pathlib import Path

import msgspec

from clavier.accounts.access import creator_of
from clavier.core.actor import Actor
from clavier.core.errors import DomainError, Invalid, quoted
from clavier.files.folders import disk_path, named_file
from clavier.files.models import StoredFile
from clavier.files.storage import open_regular, sha256_of
from finetune_app.models import FineTuneTask
from models_app.models import ModelVersion
from runner.contract.protobuf import fields_of

MAX_TOKENIZER_MIB = 64
#: What a folder must hold one of, the first that is there counts; and the endings of single files.
NAMES = ("tokenizer.json", "tokenizer.model")
ENDINGS = (".json", ".model")
#: Number of the field of a SentencePiece model that holds its pieces, one each.
PIECES = 1


class _Added(msgspec.Struct):
    content: str


class _Model(msgspec.Struct):
    vocab: dict[str, int] | list[tuple[str, float]]


class _Tokenizer(msgspec.Struct):
    """Of a tokenizer.json what names tokens."""

    model: _Model
    added_tokens: list[_Added] = []


def checked_tokenizer(actor: Actor, path: str, recipe: str, base: ModelVersion | None) -> str:
    """Where the tokenizer lies, ``private/configs/tokenizer.model``; empty for none, and for the base model's own.

    Its content is looked at by the run. Raises NotFound, Invalid.
    """
    if not path:
        return ""
    if recipe != "pretrain":
        message = f"tokenizer: the recipe {recipe} keeps the tokenizer of its base model; leave it out."
        raise Invalid(message, code="unknown_field", field="tokenizer")
    row = named_file(actor, path, field="tokenizer")
    file = chief_file(row, path)
    if file.size_bytes > MAX_TOKENIZER_MIB * 2**20:
        message = f"tokenizer {quoted(path)} has {file.size_bytes:,} bytes; {MAX_TOKENIZER_MIB} MiB are allowed."
        raise Invalid(message, code="too_large", field="tokenizer")
    if base is None:
        return f"{row.area}/{row.path}"
    if file.sha256 != sha256_or_none(base.path / f"tokenizer{Path(file.name).suffix}"):
        raise Invalid(
            f"tokenizer {quoted(path)} is not that of the base model {base}, whose weights go with its own tokens. "
            "Leave it out, or make a new model.",
            code="conflicting_fields",
            field="tokenizer",
        )
    return ""


def chief_file(row: StoredFile, path: str) -> StoredFile:
    """The file with the vocabulary. Raises Invalid."""
    if not row.is_folder and row.name.endswith(ENDINGS):
        return row
    inside = StoredFile.objects.filter(
        tenant_id=row.tenant_id, created_by_id=row.created_by_id, area=row.area, parent=row.path, is_folder=False
    )
    found = {file.name: file for file in inside.filter(name__in=NAMES)} if row.is_folder else {}
    for name in NAMES:
        if name in found:
            return found[name]
    raise Invalid(
        f"tokenizer {quoted(path)}: give a tokenizer.json, a SentencePiece tokenizer.model, or a folder with one.",
        code="bad_value",
        field="tokenizer",
    )


def tokenizer_path(task: FineTuneTask) -> str | None:
    """Where the task's own tokenizer lies on the disk. Raises NotFound where its owner has removed it."""
    if not task.tokenizer:
        return None
    owner = creator_of(task)
    return str(disk_path(owner, named_file(owner, task.tokenizer, field="tokenizer")))


def sha256_or_none(path: Path) -> str | None:
    """Of a file that may not be there."""
    return sha256_of(path) if path.is_file() else None


def vocabulary_size(owner: Actor, location: str) -> int | None:
    """Tokens of a tokenizer, added ones included; None where it can not be read, which its run will say.

    Raises NotFound where its owner has removed it.
    """
    row = named_file(owner, location, field="tokenizer")
    try:
        file = chief_file(row, location)
        with open_regular(disk_path(owner, file).parent, (file.name,)) as stream:
            data = stream.read(MAX_TOKENIZER_MIB * 2**20)
        if file.name.endswith(".model"):
            return sum(number == PIECES for number, _ in fields_of(data)) or None
        found = msgspec.json.decode(data, type=_Tokenizer)
    except (DomainError, OSError, ValueError, IndexError, RecursionError):
        return None
    words = found.model.vocab
    names = set(words) if isinstance(words, dict) else {text for text, _ in words}
    return len(names | {token.content for token in found.added_tokens}) or None
