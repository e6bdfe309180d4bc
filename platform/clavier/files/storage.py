"""Everything that files do on the disk. Paths are walked component by component; no link is ever followed."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from uuid import UUID

from django.conf import settings
from django.core.files.uploadedfile import UploadedFile

from clavier.core.errors import Conflict, NotFound, StorageFull, TooLarge
from clavier.core.ownership import FOLDER_MODE, share_with_tenant
from clavier.core.paths import open_beneath

MIB = 2**20
CHUNK_BYTES = 4 * MIB
TRASH = ".trash"
INCOMING = ".incoming"
#: Longer than the gate needs for the largest upload.
ABANDONED_AFTER_S = 6 * 3600
_KINDS = {stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket", stat.S_IFDIR: "folder"}


@dataclass(frozen=True, slots=True)
class Staged:
    """An upload's bytes on the file system of their destination, durable, not yet in place."""

    path: Path
    size_bytes: int

    def discard(self) -> None:
        """Remove what was not put into place."""
        self.path.unlink(missing_ok=True)


class DiskChanges:
    """Changes to the tree which are undone together when the transaction around them fails."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._undo: list[Callable[[], object]] = []
        self._trash: list[Path] = []

    def place(self, source: Path, area: Path, parts: tuple[str, ...]) -> None:
        """Rename a staged file or folder to ``area/parts``; what lies there is set aside."""
        self.set_aside(area, parts)
        with folder_of(area, parts) as descriptor:
            os.rename(source, parts[-1], dst_dir_fd=descriptor)
            self._undo.append(lambda: os.rename(area.joinpath(*parts), source))
            os.fsync(descriptor)

    def make_folder(self, area: Path, parts: tuple[str, ...], tenant_number: int) -> None:
        """Make the folder ``area/parts``; what lies there without a row is set aside."""
        self.set_aside(area, parts)
        with folder_of(area, parts) as descriptor:
            os.mkdir(parts[-1], FOLDER_MODE, dir_fd=descriptor)
            self._undo.append(lambda: area.joinpath(*parts).rmdir())
            os.fsync(descriptor)
        share_with_tenant(area.joinpath(*parts), tenant_number)

    def move(self, source_area: Path, source: tuple[str, ...], area: Path, parts: tuple[str, ...]) -> None:
        """Rename a file or folder; what lies at the target without a row is set aside. Raises NotFound."""
        with folder_of(source_area, source) as descriptor:
            if _kind_at(descriptor, source[-1]) is None:
                raise NotFound(f"{'/'.join(source)} is gone from the disk.")
            self.set_aside(area, parts)
            with folder_of(area, parts) as target:
                os.rename(source[-1], parts[-1], src_dir_fd=descriptor, dst_dir_fd=target)
                back, there = source_area.joinpath(*source), area.joinpath(*parts)
                self._undo.append(lambda: os.rename(there, back))
                os.fsync(target)
            os.fsync(descriptor)

    def set_aside(self, area: Path, parts: tuple[str, ...]) -> None:
        """Take what lies at ``area/parts`` out of the tree; it is deleted after the commit."""
        try:
            with folder_of(area, parts) as descriptor:
                if _kind_at(descriptor, parts[-1]) is None:
                    return
                trash = self._root / TRASH / uuid.uuid4().hex
                trash.parent.mkdir(mode=0o700, exist_ok=True)
                os.rename(parts[-1], trash, src_dir_fd=descriptor)
                self._undo.append(lambda: os.rename(trash, area.joinpath(*parts)))
                self._trash.append(trash)
                os.fsync(descriptor)
        except NotFound:
            return

    def undo(self) -> None:
        """Put everything back, newest first."""
        for step in reversed(self._undo):
            with suppress(FileNotFoundError):
                step()

    def finish(self) -> None:
        """Delete what was set aside, here and by processes that died before they could."""
        for path in self._trash:
            _remove(path)
        sweep(self._root)


@contextmanager
def disk_changes(root: Path) -> Iterator[DiskChanges]:
    """Changes beneath ``root`` that stay only when the block, and so the transaction in it, ends well."""
    changes = DiskChanges(root)
    try:
        yield changes
    except BaseException:
        changes.undo()
        raise
    changes.finish()


def area_folder(tenant_id: UUID, user_id: UUID, area: str, tenant_number: int) -> Path:
    """The folder of a user's area, made on first use."""
    return shared_folder(settings.CLAVIER_FILES, (str(tenant_id), str(user_id), area), tenant_number)


def shared_folder(root: Path, names: tuple[str, ...], tenant_number: int) -> Path:
    """A folder beneath a data root, made on first use; the tenant's programs may read it and no others."""
    make_root(root)
    folder = root
    for name in names:
        folder = folder / name
        if not folder.is_dir():
            with suppress(FileExistsError):
                folder.mkdir(FOLDER_MODE)
            share_with_tenant(folder, tenant_number)
    return folder


def make_root(root: Path) -> None:
    """A data folder that tenants' programs may pass through but not list."""
    if not root.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        root.chmod(0o711)


def stage(upload: UploadedFile[Any], root: Path, *, field: str, extra_bytes: int = 0) -> Staged:
    """Bring an upload onto the file system of ``root`` (a spooled one stays where it is) and make it durable.

    Raises TooLarge (``file_too_large``), StorageFull when the disk would get too full.
    """
    size = int(upload.size or 0)
    if size > settings.MAX_UPLOAD_MIB * MIB:
        raise TooLarge(
            f"{field} has {size / MIB:,.0f} MiB; {settings.MAX_UPLOAD_MIB:,} MiB are allowed.",
            code="file_too_large",
            field=field,
        )
    make_root(root)
    spooled = _spooled_path(upload, root)
    refuse_low_disk(root, (0 if spooled else size) + extra_bytes, field)
    path = spooled or _copied(upload, root)
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())
        return Staged(path, os.fstat(stream.fileno()).st_size)


def refuse_low_disk(root: Path, size_bytes: int, field: str | None) -> None:
    """Raises StorageFull when ``size_bytes`` more would leave less than the reserve free."""
    disk = os.statvfs(root)
    free_mib, reserve_mib = disk.f_bavail * disk.f_frsize / MIB, settings.DISK_RESERVE_MIB
    if free_mib < reserve_mib + size_bytes / MIB:
        raise StorageFull(
            f"The platform's disk has {free_mib:,.0f} MiB free, of which {reserve_mib:,} MiB are kept back; "
            f"{size_bytes / MIB:,.1f} MiB more do not fit. Delete what is no longer needed or tell the operator.",
            field=field,
        )


def sha256_of(path: Path) -> str:
    """The hexadecimal sha256 of a file, read once."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def open_regular(area: Path, parts: tuple[str, ...]) -> BinaryIO:
    """A regular file beneath a folder, opened for reading. Raises NotFound, Conflict (``not_a_regular_file``)."""
    with folder_of(area, parts) as descriptor:
        kind = _kind_at(descriptor, parts[-1])
        if kind is None:
            raise NotFound(f"{'/'.join(parts)} does not exist.")
        if not stat.S_ISREG(kind):
            raise _not_regular(parts, kind)
        try:
            opened = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=descriptor)
        except OSError as error:
            # Swapped between the look and the opening.
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise _not_regular(parts, stat.S_IFLNK) from error
            raise
    stream = os.fdopen(opened, "rb")
    mode = os.fstat(opened).st_mode
    if not stat.S_ISREG(mode):
        stream.close()
        raise _not_regular(parts, mode)
    return stream


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def folder_of(area: Path, parts: tuple[str, ...]) -> Iterator[int]:
    """A descriptor of the folder that holds ``area/parts``. Raises NotFound, also where a link is in the way."""
    descriptor = open_beneath(area, parts[:-1], os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def sweep(root: Path) -> None:
    """Delete what crashed processes left in the trash and among the incoming of ``root``."""
    oldest = time.time() - ABANDONED_AFTER_S
    for folder in (root / TRASH, root / INCOMING):
        for path in folder.iterdir() if folder.is_dir() else ():
            with suppress(FileNotFoundError):
                if path.lstat().st_ctime < oldest:
                    _remove(path)


def _spooled_path(upload: UploadedFile[Any], root: Path) -> Path | None:
    """Where Django spooled the upload, when a rename can take it over."""
    find: Callable[[], Any] | None = getattr(upload, "temporary_file_path", None)
    if find is None:
        return None
    upload.flush()
    path = Path(find())
    return path if path.stat().st_dev == root.stat().st_dev else None


def _copied(upload: UploadedFile[Any], root: Path) -> Path:
    incoming = root / INCOMING
    incoming.mkdir(mode=0o700, exist_ok=True)
    path = incoming / uuid.uuid4().hex
    try:
        with open(path, "xb") as stream:
            for chunk in upload.chunks(CHUNK_BYTES):
                stream.write(chunk)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def _kind_at(descriptor: int, name: str) -> int | None:
    try:
        return os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None


def _not_regular(parts: tuple[str, ...], mode: int) -> Conflict:
    kind = _KINDS.get(stat.S_IFMT(mode), "device")
    return Conflict(f"{'/'.join(parts)} is a {kind}; only regular files are opened.", code="not_a_regular_file")


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        if stat.S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path)
        else:
            path.unlink()
