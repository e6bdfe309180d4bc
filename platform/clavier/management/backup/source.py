"""Read a backup, a folder or one tar: everything that its manifest names, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from clavier.management.backup.manifest import CHUNK_BYTES, MANIFEST, BackupError, Entry, Manifest, read_manifest
from clavier.management.backup.tree import Progress


def verify(source: Path, progress: Progress) -> Manifest:
    """Compare every size and hash. Raises BackupError naming the first damaged files."""
    manifest = load_manifest(source)
    damaged, size_bytes = [], 0
    for number, (entry, stream) in enumerate(contents(source, manifest), 1):
        if stream is None or not is_as_named(stream, entry):
            damaged.append(entry.path)
        size_bytes += entry.size
        progress(number, size_bytes)
    raise_if_damaged(source, damaged)
    return manifest


def load_manifest(source: Path) -> Manifest:
    """The manifest of a backup. Raises BackupError."""
    try:
        if source.is_dir():
            return read_manifest((source / MANIFEST).read_bytes(), source / MANIFEST)
        with tarfile.open(source, "r:") as tar:
            first = tar.next()
            stream = tar.extractfile(first) if first is not None and first.name == MANIFEST else None
            if stream is not None:
                return read_manifest(stream.read(), source)
    except (OSError, tarfile.TarError) as error:
        raise BackupError(f"{source} is no backup: {error}.") from error
    raise BackupError(f"{source} is no backup: it does not begin with {MANIFEST}.")


def contents(source: Path, manifest: Manifest) -> Iterator[tuple[Entry, IO[bytes] | None]]:
    """Each file that the manifest names, once, opened for reading; None where it is missing. Others are passed over."""
    if source.is_dir():
        yield from _of_folder(source, manifest)
    else:
        yield from _of_tar(source, manifest)


def raise_if_damaged(source: Path, damaged: list[str]) -> None:
    """Raises BackupError with the names of the first damaged files."""
    if damaged:
        more = f" and {len(damaged) - 5} more" if len(damaged) > 5 else ""
        raise BackupError(f"{source} is damaged: {', '.join(damaged[:5])}{more}. Nothing was changed here.")


def is_as_named(stream: IO[bytes], entry: Entry) -> bool:
    """Size and hash are those of the manifest."""
    digest, size = hashlib.sha256(), 0
    try:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    except tarfile.TarError:  # the file ends in the middle
        return False
    return (size, digest.hexdigest()) == (entry.size, entry.sha256)


def _of_folder(source: Path, manifest: Manifest) -> Iterator[tuple[Entry, IO[bytes] | None]]:
    for entry in manifest.files:
        try:
            descriptor = os.open(source / entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            yield entry, None
            continue
        with open(descriptor, "rb") as stream:
            yield entry, stream


def _of_tar(source: Path, manifest: Manifest) -> Iterator[tuple[Entry, IO[bytes] | None]]:
    left = {entry.path: entry for entry in manifest.files}
    try:
        with tarfile.open(source, "r:") as tar:
            for member in tar:
                entry = left.pop(member.name, None) if member.isreg() else None
                if entry is not None:
                    yield entry, tar.extractfile(member)
    except tarfile.TarError as error:
        raise BackupError(f"{source} is damaged: {error}. Nothing was changed here.") from error
    for entry in left.values():
        yield entry, None
