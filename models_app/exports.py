"""A model version as a tar stream: nothing is written, memory stays flat."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from clavier.core.errors import NotFound
from models_app.models import ModelVersion

CHUNK_BYTES = 1024 * 1024


def tar_of_version(version: ModelVersion) -> tuple[Iterator[bytes], int]:
    """The bytes of an uncompressed tar, and how many they are. Raises NotFound when the files are gone."""
    root = version.path
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    if not files:
        raise NotFound(f"The files of {version} are gone.")
    prefix = f"{version.model.name}-{version.number}"
    headers = [(path, header_of(path, f"{prefix}/{path.relative_to(root)}")) for path in files]
    size = sum(len(header) + padded(path.stat().st_size) for path, header in headers)
    return stream(headers), size + 2 * tarfile.BLOCKSIZE


def stream(headers: list[tuple[Path, bytes]]) -> Iterator[bytes]:
    """Header, content, padding for each file, then the two empty blocks of the end."""
    for path, header in headers:
        yield header
        with open(path, "rb") as source:
            size = os.fstat(source.fileno()).st_size
            while chunk := source.read(CHUNK_BYTES):
                yield chunk
        yield b"\0" * (padded(size) - size)
    yield b"\0" * (2 * tarfile.BLOCKSIZE)


def header_of(path: Path, name: str) -> bytes:
    """The tar header of one file, owned by nobody."""
    info = tarfile.TarInfo(name)
    status = path.stat()
    info.size, info.mtime, info.mode = status.st_size, int(status.st_mtime), 0o644
    return info.tobuf(format=tarfile.PAX_FORMAT)


def padded(size: int) -> int:
    """Bytes rounded up to whole tar blocks."""
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
