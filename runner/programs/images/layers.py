"""The layers of an image on their way into the new archive: unpacked, hashed and counted in one pass."""

from __future__ import annotations

import hashlib
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from runner.programs.images.tar_stream import (
    BLOCK,
    GZIP_MAGIC,
    PIECE_BYTES,
    Gunzip,
    Read,
    TarReader,
    chained,
    read_fully,
)
from runner.programs.lib.events import ProgramError

MAX_LAYER_ENTRIES = 5_000_000
#: Deflate reaches 1,032 to 1; what people mean stays far below, except small files full of zeros.
MAX_RATIO = 500
RATIO_COUNTS_FROM_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Layer:
    """``diff_id``: sha256 of the unpacked tar; ``digest``: of the bytes as they came; ``size``: bytes unpacked."""

    diff_id: str
    digest: str
    size: int


class Bounds:
    """How much an image may unpack to; one for all its layers. Raises ProgramError (``unpacked_too_large``)."""

    def __init__(self, max_bytes: int) -> None:
        self.taken_in = 0  # bytes of the archive as it came
        self._max_bytes = max_bytes
        self._stored = 0
        self._unpacked = 0

    def announce(self, count: int) -> None:
        """Refuse early what says itself that it is too large. Raises ProgramError (``file_too_large``)."""
        if count > self._max_bytes:
            raise ProgramError(
                "file_too_large", f"The image has {_gib(count)} compressed; {_gib(self._max_bytes)} are allowed."
            )

    def store(self, count: int) -> None:
        """Count bytes of unpacked layers."""
        self._stored += count
        if self._stored > self._max_bytes:
            raise self._too_large(f"the layers have more than {_gib(self._max_bytes)}")
        if self._stored > RATIO_COUNTS_FROM_BYTES and self._stored > MAX_RATIO * max(self.taken_in, 1):
            raise self._too_large(f"it unpacks to more than {MAX_RATIO} times its size")

    def unpack(self, count: int) -> None:
        """Count bytes that the files in the layers would take on a disk."""
        self._unpacked += count
        if self._unpacked > self._max_bytes:
            raise self._too_large(f"the files in its layers have more than {_gib(self._max_bytes)}")

    def _too_large(self, fault: str) -> ProgramError:
        return ProgramError(
            "unpacked_too_large", f"The image is too large when unpacked: {fault}. Ask the operator to raise the limit."
        )


class LayerArchive:
    """A tar that is written while its members' names are not known yet: each layer once, under its diff id."""

    def __init__(self, path: Path, bounds: Bounds) -> None:
        self._path = path
        self._bounds = bounds
        self._file: BinaryIO = open(path, "w+b")  # noqa: SIM115  closed by __exit__
        self._places: dict[str, int] = {}
        self._sizes: dict[str, int] = {}

    def __enter__(self) -> LayerArchive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, read: Read, what: str) -> Layer:
        """Take one layer in, plain or gzip. Raises ProgramError (``corrupt_archive``, ``unpacked_too_large``)."""
        place = self._file.seek(0, os.SEEK_END)
        self._file.write(bytes(BLOCK))
        taking = _Taking(read, self._file, self._bounds, what)
        for entry in TarReader(taking.read, what, MAX_LAYER_ENTRIES):
            self._bounds.unpack(entry.unpacked_size)
        taking.drain()
        layer = taking.layer()
        if layer.diff_id in self._places:
            self._file.truncate(place)
            return layer
        self._places[layer.diff_id], self._sizes[layer.diff_id] = place, layer.size
        self._file.write(bytes(-layer.size % BLOCK))
        self._file.seek(place)
        self._file.write(_header(layer_name(layer.diff_id), layer.size))
        return layer

    def finish(self, diff_ids: list[str], documents: dict[str, bytes]) -> None:
        """Leave only these layers, add the documents and the end; durable afterwards."""
        if set(self._places) - set(diff_ids):
            self._keep_only(list(dict.fromkeys(diff_ids)))
        self._file.seek(0, os.SEEK_END)
        for name, content in documents.items():
            self._file.write(_header(name, len(content)) + content + bytes(-len(content) % BLOCK))
        self._file.write(bytes(2 * BLOCK))
        self._file.flush()
        os.fsync(self._file.fileno())

    def _keep_only(self, diff_ids: list[str]) -> None:
        """Copy the wanted layers to a new file: the archive held further images."""
        self._file.flush()
        smaller = self._path.with_name(f".tmp-{self._path.name}")
        with open(smaller, "wb") as target:
            for diff_id in diff_ids:
                place, left = self._places[diff_id], BLOCK + self._sizes[diff_id] + -self._sizes[diff_id] % BLOCK
                while left:
                    count = os.sendfile(target.fileno(), self._file.fileno(), place, left)
                    place, left = place + count, left - count
        self._file.close()
        os.replace(smaller, self._path)
        self._file = open(self._path, "r+b")  # noqa: SIM115  closed by __exit__


class _Taking:
    """Reads a layer, and on the way writes, counts and hashes it."""

    def __init__(self, read: Read, target: BinaryIO, bounds: Bounds, what: str) -> None:
        start = read_fully(read, len(GZIP_MAGIC))
        self._source, self._target, self._bounds = chained(start, read), target, bounds
        self._hash = self._raw_hash = hashlib.sha256()
        self._unpacked, self._size = self._source, 0
        if start == GZIP_MAGIC:
            self._raw_hash = hashlib.sha256()
            self._unpacked = Gunzip(self._read_raw, what).read

    def read(self, count: int) -> bytes:
        """Bytes of the unpacked layer: as many as asked for while there are so many."""
        piece = read_fully(self._unpacked, count)
        self._bounds.store(len(piece))
        self._hash.update(piece)
        self._target.write(piece)
        self._size += len(piece)
        return piece

    def drain(self) -> None:
        """What follows the end of the archive belongs to the layer's hash too."""
        while self.read(PIECE_BYTES):
            pass

    def layer(self) -> Layer:
        """What was read."""
        return Layer(f"sha256:{self._hash.hexdigest()}", f"sha256:{self._raw_hash.hexdigest()}", self._size)

    def _read_raw(self, count: int) -> bytes:
        piece = self._source(count)
        self._raw_hash.update(piece)
        return piece


def layer_name(diff_id: str) -> str:
    """The member that holds a layer."""
    return f"{diff_id.removeprefix('sha256:')}.tar"


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


def _gib(count: int) -> str:
    return f"{count / 2**30:.4g} GiB"
