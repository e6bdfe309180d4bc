"""What a backup says of itself: every file with size and hash, every folder, the database, and what was missing."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from runner.contract.folder import write_json_durably

MANIFEST = "manifest.json"
#: Below it lies what CLAVIER_HOME held; the database's file lies beside it.
HOME = "home"
FORMAT = 1
CHUNK_BYTES = 2**20


class BackupError(Exception):
    """Why there is no backup, or why it can not be used; the message is for the operator."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file or folder; ``path`` is relative to the backup. Folders have no size and no hash."""

    path: str
    mode: int
    uid: int
    gid: int
    size: int = 0
    sha256: str = ""


@dataclass(slots=True)
class Manifest:
    """The whole description. ``missing``: what rows name and the disk did not have when the backup was made."""

    made_at: str
    home: str
    vendor: str
    migrations: list[list[str]]
    files: list[Entry] = field(default_factory=list)
    folders: list[Entry] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    format: int = FORMAT

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files)

    def write(self, folder: Path) -> None:
        """Durably, as the last file of a backup."""
        write_json_durably(folder / MANIFEST, asdict(self))


def read_manifest(text: bytes, where: Path) -> Manifest:
    """The manifest of a backup. Raises BackupError."""
    try:
        value: dict[str, Any] = json.loads(text)
        if value["format"] != FORMAT:
            raise BackupError(f"{where} has format {value['format']}; this Clavier reads format {FORMAT}.")
        value["files"] = [checked(Entry(**entry)) for entry in value["files"]]
        value["folders"] = [checked(Entry(**entry)) for entry in value["folders"]]
        return Manifest(**value)
    except (ValueError, KeyError, TypeError) as error:
        raise BackupError(f"{where} is no manifest of a backup: {error}.") from error


def checked(entry: Entry) -> Entry:
    """The entry if its path stays inside the backup. Raises BackupError."""
    path = PurePosixPath(entry.path)
    if path.is_absolute() or ".." in path.parts or "\0" in entry.path or not path.parts:
        raise BackupError(f"The manifest names {entry.path!r}, which lies outside of the backup.")
    return entry


def copy_hashed(source: IO[bytes], target: IO[bytes]) -> tuple[int, str]:
    """Copy to the end and make it durable; size and sha256 of what was copied."""
    digest, size = hashlib.sha256(), 0
    while chunk := source.read(CHUNK_BYTES):
        target.write(chunk)
        digest.update(chunk)
        size += len(chunk)
    target.flush()
    os.fsync(target.fileno())
    return size, digest.hexdigest()


def hash_of(path: Path) -> tuple[int, str]:
    """Size and sha256 of a file."""
    with open(path, "rb") as stream:
        return os.fstat(stream.fileno()).st_size, hashlib.file_digest(stream, "sha256").hexdigest()
