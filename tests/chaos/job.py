"""A program that proves from outside what happened to it: ``python job.py FOLDER STEPS STEP_S``. Standard library only.

FOLDER lies outside of the platform. Its ``journal`` gets one durable line for each thing done, its ``lock`` is held
while the program lives: who finds it held says so. A step is done once its checkpoint is sealed in the run folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
import time
import uuid
from pathlib import Path

OVERLAPPED = 70
ME = uuid.uuid4().hex
MANIFEST = "MANIFEST.json"


def main(folder: Path, steps: int, step_s: float) -> int:
    """Go on from the newest sealed checkpoint to the end."""
    run_folder = Path.cwd().parent
    checkpoints, output = run_folder / "checkpoints", run_folder / "output"
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        write(folder, "overlap")
        return OVERLAPPED
    done = newest(checkpoints)
    write(folder, "start", step=done)
    for step in range(done + 1, steps + 1):
        time.sleep(step_s)
        seal(checkpoints / f"step-{step:08d}", f"{step}\n")
        write(folder, "sealed", step=step)
    answer = "".join(f"{step}\n" for step in range(1, steps + 1))
    fill(output, "answer.txt", answer)
    write(folder, "end", step=steps)
    return 0


def write(folder: Path, event: str, **facts: object) -> None:
    """One whole line, on the disk before this returns."""
    line = json.dumps({"event": event, "who": ME, "at": time.time(), **facts}) + "\n"
    descriptor = os.open(folder / "journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, line.encode())
    os.fsync(descriptor)
    os.close(descriptor)


def newest(checkpoints: Path) -> int:
    """The step of the newest checkpoint whose manifest is true, 0 without one."""
    for path in sorted(checkpoints.glob("step-*"), reverse=True):
        try:
            (entry,) = json.loads((path / MANIFEST).read_text())["files"]
            content = (path / entry["path"]).read_bytes()
        except (OSError, ValueError, KeyError):
            continue
        if hashlib.sha256(content).hexdigest() == entry["sha256"]:
            return int(content)
    return 0


def seal(target: Path, text: str) -> None:
    """Temporary folder, fsync, rename, fsync."""
    temporary = target.with_name(f".tmp-{target.name}-{ME}")
    temporary.mkdir()
    fill(temporary, "state", text)
    if target.exists():  # an earlier start renamed it and died before it could say so
        return
    os.rename(temporary, target)
    sync_folder(target.parent)


def fill(folder: Path, name: str, text: str) -> None:
    """A file and then the manifest over it."""
    content = text.encode()
    put(folder / name, content)
    entry = {"path": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    put(folder / MANIFEST, json.dumps({"files": [entry], "kind": "model", "facts": {}, "metrics": {}}).encode())
    sync_folder(folder)


def put(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".tmp-{ME}")
    with open(temporary, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.rename(temporary, path)


def sync_folder(folder: Path) -> None:
    """Make renames durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
