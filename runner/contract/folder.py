"""File names inside a run folder: the whole interface between the platform and a program.

In: ``spec.json``. Out: ``log.txt``, ``metrics.jsonl``, ``checkpoints/``, ``output/``, ``result.json``,
and for programs that serve ``work/ready.json`` (a program may create files in its own folders only).
The platform opens what lies in a program's own folders with O_NOFOLLOW: the program decides what is there.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

SPEC = "spec.json"
LOG = "log.txt"
METRICS = "metrics.jsonl"
RESULT = "result.json"
READY = "work/ready.json"
#: Where a user's own server is reached; a container has no network.
SOCKET = "work/server.sock"
CHECKPOINTS = "checkpoints"
OUTPUT = "output"
WORK = "work"
MANIFEST = "MANIFEST.json"
#: In the output of an image's import: what an engine loads.
IMAGE = "image.tar"

#: What the program's own user may write to; everything else in a run folder belongs to the platform.
PROGRAM_FOLDERS = (CHECKPOINTS, OUTPUT, WORK)


def log_name(rank: int) -> str:
    """The log of one container: ``log.txt``, and ``log-1.txt`` and so on for further ranks of a multi-node run."""
    return LOG if rank == 0 else f"log-{rank}.txt"


def result_name(rank: int) -> str:
    """How one container ended: ``result.json``, ``result-1.json`` and so on."""
    return RESULT if rank == 0 else f"result-{rank}.json"


def write_json_durably(path: Path, value: Any) -> None:
    """Write JSON so that a crash leaves either the old file or the whole new one (tmp, fsync, rename, fsync)."""
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    with open(temporary, "w", encoding="utf-8") as stream:
        json.dump(value, stream, ensure_ascii=False, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make renames inside a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
