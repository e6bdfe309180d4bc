"""Reading a tar that may be hostile, front to back: every header is bounded, nothing is unpacked."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from runner.programs.lib.events import ProgramError

Read = Callable[[int], bytes]
Kind = Literal["file", "folder", "link", "special"]

BLOCK = tarfile.BLOCKSIZE
PIECE_BYTES = 1 << 20
#: Long names and PAX records of one entry; Linux's own paths end at 4 KiB.
MAX_HEADER_BYTES = 1 << 20
GZIP_MAGIC = b"\x1f\x8b"
_HEADERS_ONLY: dict[bytes, Kind] = {
    tarfile.LNKTYPE: "link",
    tarfile.SYMTYPE: "link",
    tarfile.DIRTYPE: "folder",
    tarfile.CHRTYPE: "special",
    tarfile.BLKTYPE: "special",
    tarfile.FIFOTYPE: "special",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One member. ``size``: bytes that follow in the stream; ``unpacked_size``: bytes on a disk (more when sparse)."""

    name: str
    kind: Kind
    size: int
    unpacked_size: int
    target: str = ""


class TarReader:
    """The members of a tar in their order; ``read`` gives the current one's bytes, what is left is passed over.

    ``what``: how messages call the archive. Every method raises ProgramError (``corrupt_archive``,
    ``too_many_entries``).
    """

    def __init__(self, read: Read, what: str, max_entries: int) -> None:
        self._read = read
        self._what = what
        self._max_entries = max_entries
        self._left = 0
        self._padding = 0

    def __iter__(self) -> Iterator[Entry]:
        number = 0
        while True:
            self._skip(self._left + self._padding)
            self._left = self._padding = 0
            entry = self._next_entry()
            if entry is None:
                return
            number += 1
            if number > self._max_entries:
                raise ProgramError("too_many_entries", f"{self._what} has more than {self._max_entries:,} entries.")
            self._left, self._padding = entry.size, -entry.size % BLOCK
            yield entry

    def read(self, count: int) -> bytes:
        """At most ``count`` bytes of the current member; empty at its end."""
        piece = self._exactly(min(count, self._left)) if self._left else b""
        self._left -= len(piece)
        return piece

    def _next_entry(self) -> Entry | None:
        """The next real member with what its extension headers say; None at the end of the archive."""
        said: dict[str, str] = {}
        while True:
            block = self._read(BLOCK)
            if not block or block.count(0) == BLOCK:
                return None
            header = self._header(block)
            if header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                said |= self._pax_records(self._extension(header))
            elif header.type == tarfile.XGLTYPE:
                self._extension(header)
            elif header.type == tarfile.GNUTYPE_LONGNAME:
                said["path"] = _text(self._extension(header).split(b"\0", 1)[0])
            elif header.type == tarfile.GNUTYPE_LONGLINK:
                said["linkpath"] = _text(self._extension(header).split(b"\0", 1)[0])
            else:
                return self._entry(header, block, said)

    def _entry(self, header: tarfile.TarInfo, block: bytes, said: dict[str, str]) -> Entry:
        name = said.get("GNU.sparse.name") or said.get("path") or header.name
        size = self._number(said["size"]) if "size" in said else header.size
        kind = _HEADERS_ONLY.get(header.type)
        if kind is not None:
            return Entry(name, kind, 0, 0, said.get("linkpath") or header.linkname)
        unpacked = size
        if header.type == tarfile.GNUTYPE_SPARSE:
            unpacked = self._old_sparse_size(block)
        for key in ("GNU.sparse.size", "GNU.sparse.realsize"):
            unpacked = self._number(said[key]) if key in said else unpacked
        if header.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and header.name.endswith("/"):
            return Entry(name, "folder", size, 0)
        return Entry(name, "file", size, max(size, unpacked))

    def _header(self, block: bytes) -> tarfile.TarInfo:
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise self._corrupt(f"a broken header ({error})" if len(block) == BLOCK else "truncated") from None
        if header.size < 0:
            raise self._corrupt(f"the entry {header.name!r} has a negative size")
        return header

    def _extension(self, header: tarfile.TarInfo) -> bytes:
        if header.size > MAX_HEADER_BYTES:
            raise self._corrupt(f"an extension header of {header.size:,} bytes; {MAX_HEADER_BYTES:,} are allowed")
        return self._exactly(header.size + -header.size % BLOCK)[: header.size]

    def _pax_records(self, data: bytes) -> dict[str, str]:
        """``b"30 mtime=1350244992.02396\\n..."`` as a dict."""
        records: dict[str, str] = {}
        while data.strip(b"\0"):
            digits, space, _ = data.partition(b" ")
            length = int(digits) if space and digits.isdigit() and len(digits) < 8 else 0
            record = data[len(digits) + 1 : length - 1]
            key, equals, value = record.partition(b"=")
            if length > len(data) or not equals:
                raise self._corrupt("a broken PAX header")
            records[_text(key)] = _text(value)
            data = data[length:]
        return records

    def _old_sparse_size(self, block: bytes) -> int:
        """The size after unpacking of a GNU sparse entry; passes over its further map blocks."""
        is_extended = block[482]
        while is_extended:
            is_extended = self._exactly(BLOCK)[504]
        try:
            return int(tarfile.nti(block[483:495]))  # type: ignore[attr-defined]
        except tarfile.HeaderError:
            raise self._corrupt("a sparse entry without a size") from None

    def _number(self, text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise self._corrupt(f"the size {text[:40]!r} is no number")
        return int(text)

    def _skip(self, count: int) -> None:
        while count:
            count -= len(self._exactly(min(count, PIECE_BYTES)))

    def _exactly(self, count: int) -> bytes:
        pieces = []
        while count:
            piece = self._read(min(count, PIECE_BYTES))
            if not piece:
                raise self._corrupt("truncated: it ends inside an entry")
            pieces.append(piece)
            count -= len(piece)
        return b"".join(pieces)

    def _corrupt(self, fault: str) -> ProgramError:
        return ProgramError("corrupt_archive", f"{self._what}: {fault}. Save it again and upload it again.")


class Gunzip:
    """Decompresses what ``read`` gives, never more than asked for at once. Raises ProgramError (corrupt_archive)."""

    def __init__(self, read: Read, what: str) -> None:
        self._source = read
        self._what = what
        self._decoder = zlib.decompressobj(wbits=31)
        self._pending = b""

    def read(self, count: int) -> bytes:
        """1 to ``count`` bytes; empty at the end."""
        while True:
            if self._decoder.eof and not self._next_member():
                return b""
            data = self._pending or self._source(PIECE_BYTES)
            try:
                piece = self._decoder.decompress(data, count)
            except zlib.error as error:
                raise self._corrupt(str(error)) from None
            self._pending = self._decoder.unconsumed_tail or self._decoder.unused_data
            if piece:
                return piece
            if not data and not self._decoder.eof:
                raise self._corrupt("the gzip stream is truncated")

    def _next_member(self) -> bool:
        """Begin the gzip member that follows; False at the end, which zeros may pad."""
        while data := self._pending or self._source(PIECE_BYTES):
            self._pending = data.lstrip(b"\0")
            if self._pending:
                self._decoder = zlib.decompressobj(wbits=31)
                return True
        return False

    def _corrupt(self, fault: str) -> ProgramError:
        return ProgramError("corrupt_archive", f"{self._what}: {fault}. Save it again and upload it again.")


def looks_like_tar(start: bytes) -> bool:
    """Whether the first 512 bytes are a header, or the zeros that end an empty archive."""
    if len(start) < BLOCK:
        return False
    if start[:BLOCK].count(0) == BLOCK:
        return True
    try:
        tarfile.TarInfo.frombuf(start[:BLOCK], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def read_fully(read: Read, count: int) -> bytes:
    """``count`` bytes, or all there are."""
    pieces, left = [], count
    while left and (piece := read(left)):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def chained(start: bytes, read: Read) -> Read:
    """``start`` put back in front of what ``read`` gives."""
    pending = start

    def take(count: int) -> bytes:
        nonlocal pending
        if not pending:
            return read(count)
        piece, pending = pending[:count], pending[count:]
        return piece

    return take


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
