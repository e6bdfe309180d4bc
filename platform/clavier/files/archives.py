"""Archives of users, read entry by entry: zip, tar and tar.gz. What could write elsewhere or without end is refused."""

from __future__ import annotations

import gzip
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import IO, BinaryIO, Self, cast

from clavier.core.errors import Invalid, Unprocessable, quoted
from clavier.files.names import parse_file_name, parse_user_path

#: How the names of archives end that can be unpacked.
ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")
MAX_ENTRIES = 10_000
MAX_UNPACKED_BYTES = 10 * 2**30
MAX_RATIO = 500
#: Below this, text that repeats itself may well pack better than the ratio.
RATIO_COUNTS_FROM_BYTES = 64 * 2**20
#: Of a long name or a PAX record; the standard library reads one whole.
MAX_EXTRA_HEADER_BYTES = 2**20
#: 10,000 names of the longest kind are shorter.
MAX_ZIP_DIRECTORY_BYTES = 64 * 2**20
CHUNK_BYTES = 2**20
_EXTRA_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_ZIP_END, _ZIP64_END = b"PK\5\6", b"PK\6\6"
_ZIP_HEADER_BYTES = 30
_ZIP_TAIL_BYTES = 2**16 + 22 + 20 + 56


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of an archive: its path, and its bytes, to be read before the next entry is asked for."""

    parts: tuple[str, ...]
    chunks: Iterator[bytes]


def read_archive(stream: BinaryIO, *, name: str, size_bytes: int) -> Iterator[Entry]:
    """The files of an archive that has ``size_bytes``; folders without files are passed over.

    Raises Unprocessable: ``not_an_archive``, ``corrupt_archive``, ``encrypted_archive``, ``path_outside_root``,
    ``bad_name``, ``too_long``, ``link_not_allowed``, ``special_file_not_allowed``, ``duplicate_entry``,
    ``too_many_entries``, ``unpacked_too_large``.
    """
    limits = _Limits(name, size_bytes)
    head = stream.read(tarfile.BLOCKSIZE)
    stream.seek(0)
    with _in_words(name):
        if head.startswith((b"PK\3\4", _ZIP_END)):
            yield from _zip_entries(stream, limits)
        elif head.startswith(b"\x1f\x8b"):
            with gzip.GzipFile(fileobj=stream) as unpacked:
                yield from _tar_entries(cast(IO[bytes], unpacked), limits)
        elif head[257:262] == b"ustar":
            yield from _tar_entries(stream, limits)
        else:
            raise _not_an_archive(name)


class _Limits:
    """What has been seen of an archive so far."""

    def __init__(self, name: str, size_bytes: int) -> None:
        self._name, self._size_bytes = name, size_bytes
        self._entries = self._unpacked = 0
        self._paths: set[str] = set()

    def count_entry(self) -> None:
        self._entries += 1
        if self._entries > MAX_ENTRIES:
            raise too_many_entries()

    def claim_path(self, name: str) -> tuple[str, ...]:
        parts = _parsed(name)
        if not parts:
            raise Unprocessable(f"{quoted(name)} names no file.", code="bad_name")
        # Files that differ in case alone are one file on many a user's computer.
        key = unicodedata.normalize("NFC", "/".join(parts)).casefold()
        if key in self._paths:
            raise Unprocessable(f"{quoted(name)} comes twice in the archive.", code="duplicate_entry")
        self._paths.add(key)
        return parts

    def expect(self, size_bytes: int) -> None:
        if self._unpacked + size_bytes > MAX_UNPACKED_BYTES:
            raise _too_large(f"its unpacked size is over {MAX_UNPACKED_BYTES // 2**30} GiB")

    def bounded(self, source: IO[bytes]) -> Iterator[bytes]:
        while chunk := self._read(source):
            self.expect(len(chunk))
            self._unpacked += len(chunk)
            if self._unpacked > max(RATIO_COUNTS_FROM_BYTES, MAX_RATIO * self._size_bytes):
                raise _too_large(f"its unpacked size is over {MAX_RATIO} times its own")
            yield chunk

    def _read(self, source: IO[bytes]) -> bytes:
        # In the frame of whoever asks for the chunks, so outside of read_archive's own.
        with _in_words(self._name):
            return source.read(CHUNK_BYTES)


class _BoundedHeader(tarfile.TarInfo):
    """A header of which the standard library reads no more than is sensible."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Raises Unprocessable (``corrupt_archive``)."""
        header = super().frombuf(buf, encoding, errors)
        if header.type in _EXTRA_HEADERS and header.size > MAX_EXTRA_HEADER_BYTES:
            raise Unprocessable(
                f"A header of the archive has {header.size:,} bytes; {MAX_EXTRA_HEADER_BYTES:,} are allowed.",
                code="corrupt_archive",
            )
        return header


def _tar_entries(stream: IO[bytes], limits: _Limits) -> Iterator[Entry]:
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=_BoundedHeader) as archive:
        while (member := archive.next()) is not None:
            # The library would keep every header until the end.
            archive.members.clear()  # type: ignore[attr-defined]
            limits.count_entry()
            _refuse_kind(member)
            if member.isdir():
                _parsed(member.name)
                continue
            parts = limits.claim_path(member.name)
            limits.expect(member.size)
            source = archive.extractfile(member)
            assert source is not None
            yield Entry(parts, limits.bounded(source))


def _refuse_kind(member: tarfile.TarInfo) -> None:
    if member.issym() or member.islnk():
        message = f"{quoted(member.name)} is a link to {quoted(member.linkname)}; pack the file itself."
        raise Unprocessable(message, code="link_not_allowed")
    if not (member.isreg() or member.isdir()):
        kind = "fifo" if member.isfifo() else "device"
        message = f"{quoted(member.name)} is a {kind}; only files and folders are unpacked."
        raise Unprocessable(message, code="special_file_not_allowed")


def _zip_entries(stream: BinaryIO, limits: _Limits) -> Iterator[Entry]:
    _refuse_long_directory(stream)
    with zipfile.ZipFile(stream) as archive:
        members = archive.infolist()
        _refuse_overlap(members)
        for member in members:
            limits.count_entry()
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind == stat.S_IFLNK:
                raise Unprocessable(f"{quoted(member.filename)} is a link; pack the file.", code="link_not_allowed")
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                message = f"{quoted(member.filename)} is neither file nor folder."
                raise Unprocessable(message, code="special_file_not_allowed")
            if member.flag_bits & 1:
                message = f"{quoted(member.filename)} needs a password. Pack the files without one."
                raise Unprocessable(message, code="encrypted_archive")
            if member.is_dir():
                _parsed(member.orig_filename)
                continue
            parts = limits.claim_path(member.orig_filename)
            limits.expect(member.file_size)
            with archive.open(member) as source:
                yield Entry(parts, limits.bounded(source))


def _refuse_long_directory(stream: BinaryIO) -> None:
    """The library reads the directory whole, so its length is looked at first."""
    start = max(0, stream.seek(0, 2) - _ZIP_TAIL_BYTES)
    stream.seek(start)
    tail = stream.read()
    stream.seek(0)
    end = tail.rfind(_ZIP_END)
    if end < 0:
        raise Unprocessable("The archive is truncated: its directory is missing.", code="corrupt_archive")
    size = int.from_bytes(tail[end + 12 : end + 16], "little")
    wide = tail.rfind(_ZIP64_END, 0, end)
    if wide >= 0:
        size = int.from_bytes(tail[wide + 40 : wide + 48], "little")
    if size > MAX_ZIP_DIRECTORY_BYTES:
        raise too_many_entries()


def _refuse_overlap(members: list[zipfile.ZipInfo]) -> None:
    ordered = sorted(members, key=lambda member: member.header_offset)
    for member, following in pairwise(ordered):
        if member.header_offset + _ZIP_HEADER_BYTES + member.compress_size > following.header_offset:
            raise _too_large(f"entries overlap ({quoted(member.filename)}, {quoted(following.filename)})")


def _parsed(name: str) -> tuple[str, ...]:
    try:
        parts = parse_user_path(name, field="entry")
        if not parts:
            return ()
        parts = (*parts[:-1], parse_file_name(parts[-1], field="entry"))
    except Invalid as error:
        raise Unprocessable(error.message, code=error.code) from error
    return parts


@contextmanager
def _in_words(name: str) -> Iterator[None]:
    """What the standard library finds wrong becomes Unprocessable."""
    try:
        yield
    except EOFError as error:
        raise _corrupt(f"it is truncated ({error})") from error
    except tarfile.ReadError as error:
        if "end of data" in str(error):
            raise _corrupt(f"it is truncated ({error})") from error
        raise _not_an_archive(name) from error
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, gzip.BadGzipFile, NotImplementedError) as error:
        raise _corrupt(str(error)) from error


def _corrupt(why: str) -> Unprocessable:
    return Unprocessable(f"The archive can not be unpacked: {why}. Pack it again.", code="corrupt_archive")


def _not_an_archive(name: str) -> Unprocessable:
    return Unprocessable(f"{quoted(name)} is no zip, tar or tar.gz archive.", code="not_an_archive")


def too_many_entries() -> Unprocessable:
    """The refusal of too many entries."""
    message = f"The archive has more than {MAX_ENTRIES:,} entries. Part it into several."
    return Unprocessable(message, code="too_many_entries")


def _too_large(why: str) -> Unprocessable:
    return Unprocessable(f"The archive is not unpacked: {why}.", code="unpacked_too_large")
