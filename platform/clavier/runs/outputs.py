"""What programs wrote: log and metrics by byte offset, manifest, artifacts. Links are never followed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from django.conf import settings

from clavier.core.errors import NotFound, Unprocessable
from clavier.core.ownership import share_with_tenant
from clavier.core.paths import open_beneath, parse_path
from clavier.runs.printed import events_of
from runner.contract import folder, trees

MAX_READ_BYTES = 1024 * 1024
#: How far before a part of a log its last progress bar is looked for.
CONTEXT_BYTES = 4096
MAX_JSON_BYTES = 64 * 1024 * 1024
#: A manifest made by the platform names no more than these.
MAX_LISTED_FILES = 100_000
#: What reads an output later (copies, exports, archives) must get along with its paths.
MAX_OUTPUT_DEPTH, MAX_OUTPUT_PATH_BYTES = 128, 3000


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes of a growing file. ``next_offset``: where to go on. ``size``: the file's bytes now."""

    data: bytes
    next_offset: int
    size: int


def run_folder(run_id: UUID) -> Path:
    """Where a run's files lie."""
    return Path(settings.CLAVIER_RUNS) / str(run_id)


def read_log(
    run_id: UUID, offset: int = 0, limit: int = MAX_READ_BYTES, *, to_end: bool = False, rank: int = 0
) -> Chunk:
    """The log from a byte offset on; a negative offset counts from the end. Whole lines unless a line is too long.

    ``to_end``: the run has ended, so a last line without a newline is whole too. ``rank``: which container's log.
    """
    return read_lines(run_id, folder.log_name(rank), offset, limit, to_end=to_end)


def read_metrics(run_id: UUID, offset: int = 0, limit: int = MAX_READ_BYTES) -> tuple[list[dict[str, Any]], int]:
    """Events of the program from a byte offset on, and the next offset. What is no JSON object is passed over.

    A user's own command writes no events; those that its log shows stand for them, by the offsets of the log.
    """
    if is_own_command(run_id):
        return read_printed(run_id, offset, limit)
    return read_objects(run_id, folder.METRICS, offset, limit)


def read_printed(run_id: UUID, offset: int, limit: int) -> tuple[list[dict[str, Any]], int]:
    """Events that the log shows from a byte offset on, and the next offset; a bar that is drawn again ends a line."""
    chunk = read_lines(run_id, folder.LOG, offset, limit, breaks=(b"\n", b"\r"))
    start = chunk.next_offset - len(chunk.data)
    before = b""
    if start > 0 and chunk.data:
        before = read_lines(run_id, folder.LOG, max(0, start - CONTEXT_BYTES), min(start, CONTEXT_BYTES)).data
    return events_of(chunk.data.decode(errors="replace"), before=before.decode(errors="replace")), chunk.next_offset


def is_own_command(run_id: UUID) -> bool:
    """The run is a user's own command, not one of the platform's programs."""
    spec = read_json(run_id, folder.SPEC)
    return spec is not None and spec.get("program") is None


def read_objects(
    run_id: UUID, name: str, offset: int = 0, limit: int = MAX_READ_BYTES
) -> tuple[list[dict[str, Any]], int]:
    """The JSON objects of a file of lines from a byte offset on, and the next offset."""
    chunk = read_lines(run_id, name, offset, limit)
    events = []
    for line in chunk.data.splitlines():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict):
            events.append(event)
    return events, chunk.next_offset


def read_lines(
    run_id: UUID,
    name: str,
    offset: int,
    limit: int,
    *,
    to_end: bool = False,
    breaks: tuple[bytes, ...] = (b"\n",),
) -> Chunk:
    """Whole lines of a file of the run folder, ended by one of ``breaks``; an absent file is empty."""
    try:
        descriptor = open_regular(run_id, parse_path(name))
    except NotFound:
        return Chunk(b"", max(0, offset), 0)
    with open(descriptor, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        start = max(0, size + offset) if offset < 0 else min(offset, size)
        stream.seek(start)
        most = max(1, min(limit, MAX_READ_BYTES))
        data = stream.read(most)
    if offset < 0 and start > 0:
        cut = data.find(b"\n") + 1
        data, start = data[cut:], start + cut
    end = max(data.rfind(mark) for mark in breaks) + 1
    is_whole = to_end and start + len(data) == size
    if not is_whole and (end or len(data) < most):
        data = data[:end]
    return Chunk(data, start + len(data), size)


def read_json(run_id: UUID, path: str) -> dict[str, Any] | None:
    """A JSON object that a program wrote, None when absent or broken."""
    try:
        descriptor = open_regular(run_id, parse_path(path))
    except NotFound:
        return None
    with open(descriptor, "rb") as stream:
        if os.fstat(stream.fileno()).st_size > MAX_JSON_BYTES:
            return None
        try:
            value = json.load(stream)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def check_manifest(run_id: UUID) -> tuple[dict[str, Any] | None, str]:
    """The manifest of ``output/`` and ``""``, or None and what is wrong: each listed file exists with its size."""
    path = f"{folder.OUTPUT}/{folder.MANIFEST}"
    manifest = read_json(run_id, path)
    if manifest is None:
        return None, f"The program ended without {path}."
    files = manifest.get("files")
    if not isinstance(files, list) or not files:
        return None, f"{path} lists no files."
    for entry in files:
        try:
            descriptor = open_regular(run_id, (folder.OUTPUT, *parse_path(str(entry["path"]))))
        except (NotFound, KeyError, TypeError):
            return None, f"{path} lists {entry!r}, which is not there."
        with open(descriptor, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
        if size != entry.get("size"):
            return None, f"{entry['path']} has {size} bytes, {path} says {entry.get('size')}."
    return manifest, ""


def make_manifest(run_id: UUID) -> bool:
    """List what a user's own program left in its sealed ``output/``, unless it did so itself; False: it left nothing.

    Raises OSError.
    """
    root = run_folder(run_id) / folder.OUTPUT
    if root.is_symlink() or not root.is_dir():
        return False
    if (root / folder.MANIFEST).exists():
        return True
    files = [{"path": path, "size": size} for path, size in listed(root)]
    if files:
        folder.write_json_durably(root / folder.MANIFEST, {"kind": "files", "files": files, "facts": {}})
    return bool(files)


def list_output(run_id: UUID, limit: int) -> list[tuple[str, int]]:
    """(path below ``output/``, bytes) of regular files, those nearest to the top first; at most ``limit``."""
    found = listed(run_folder(run_id) / folder.OUTPUT)
    return sorted(found, key=lambda file: (file[0].count("/"), file[0]))[:limit]


def listed(output: Path) -> Iterator[tuple[str, int]]:
    """(path, bytes) of the first regular files by path, as deep as an output may be. Raises OSError."""
    num_files = 0
    for entry in trees.walk(output, deepest=MAX_OUTPUT_DEPTH):
        if entry.is_regular():
            num_files += 1
            yield entry.path, entry.status().st_size
            if num_files == MAX_LISTED_FILES:
                return


def has_sealed_since(run_id: UUID, moment: float) -> bool:
    """Whether a checkpoint was sealed at or after a moment (epoch seconds): it has its name, so also its manifest."""
    for entry in trees.walk(run_folder(run_id) / folder.CHECKPOINTS, deepest=1):
        if entry.name == folder.MANIFEST and entry.above and not entry.above[0].startswith("."):
            with suppress(FileNotFoundError):
                if entry.status().st_mtime >= moment:
                    return True
    return False


def read_output(run_id: UUID, path: str, limit: int) -> bytes:
    """The first bytes of a file below ``output/``. Raises NotFound."""
    with open(open_regular(run_id, (folder.OUTPUT, *parse_path(path))), "rb") as stream:
        return stream.read(limit)


def seal_output(run_id: UUID, tenant_number: int) -> None:
    """Take the output of a completed run over: later programs of the tenant may read it, never change it.

    Raises OSError, Unprocessable (``nested_too_deeply``).
    """
    root = run_folder(run_id) / folder.OUTPUT
    if root.is_symlink() or not root.is_dir():
        return
    share_with_tenant(root, tenant_number)
    for entry in trees.walk(root):
        if entry.depth > MAX_OUTPUT_DEPTH or len(os.fsencode(entry.path)) > MAX_OUTPUT_PATH_BYTES:
            raise Unprocessable(
                f"The output is nested too deeply at {entry.path[:60]}...: {MAX_OUTPUT_DEPTH} folders and paths of "
                f"{MAX_OUTPUT_PATH_BYTES:,} bytes are allowed. Have the program write a flatter one.",
                code="nested_too_deeply",
            )
        if entry.is_folder or entry.is_regular():
            share_with_tenant(entry.name, tenant_number, dir_fd=entry.folder)


def open_regular(run_id: UUID, parts: tuple[str, ...]) -> int:
    """A descriptor of a regular file in the run folder. Raises NotFound."""
    root = run_folder(run_id)
    if not root.is_dir():
        raise NotFound("The run has no folder yet.")
    descriptor = open_beneath(root, parts)
    if not os.path.isfile(f"/proc/self/fd/{descriptor}"):
        os.close(descriptor)
        raise NotFound(f"{'/'.join(parts)} is no regular file.")
    return descriptor
