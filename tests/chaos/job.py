"""A program that proves from outside what happened to it: ``python job.py FOLDER STEPS STEP_S [wait]``.

FOLDER lies outside of the platform. Its ``journal`` gets one durable line for each thing done, its locks are held while
the program lives, as is one for each GPU that it was given: who finds one held says so. A step is done once its
checkpoint is sealed in the run folder. Standard library only.
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
#: Of a run with several ranks each attempt has a port of its own to meet at.
RANK, ATTEMPT = os.environ.get("RANK", "0"), os.environ.get("MASTER_PORT", "only")
MANIFEST = "MANIFEST.json"


def main(folder: Path, steps: int, step_s: float, waits: bool = False) -> int:
    """Go on from the newest sealed checkpoint to the end; a further rank only waits for rank 0.

    ``waits``: the last step is done once the file ``go`` lies in FOLDER.
    """
    run_folder = Path.cwd().parent
    checkpoints, output = run_folder / "checkpoints", run_folder / "output"
    if not hold(folder / f"lock.{RANK}.{ATTEMPT}") or other_attempts(folder):
        write(folder, "overlap")
        return OVERLAPPED
    gpus = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if taken := [name for name in gpus if not hold(folder.parent / "gpus" / name)]:
        write(folder, "gpu_overlap", gpus=taken)
        return OVERLAPPED
    done = newest(checkpoints) if RANK == "0" else 0
    write(folder, "start", step=done, gpus=gpus)
    if RANK != "0":
        wait_for(output / MANIFEST)
        write(folder, "end", step=0)
        return 0
    for step in range(done + 1, steps + 1):
        time.sleep(step_s)
        if waits and step == steps:
            wait_for(folder / "go")
        seal(checkpoints / f"step-{step:08d}", f"{step}\n")
        write(folder, "sealed", step=step)
    answer = "".join(f"{step}\n" for step in range(1, steps + 1))
    fill(output, "answer.txt", answer)
    write(folder, "end", step=steps)
    return 0


def hold(path: Path) -> bool:
    """Lock a file as long as this program lives; False when somebody else does. Those of GPUs are read-only."""
    lock = os.open(path, os.O_RDONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_held(path: Path) -> bool:
    """Somebody holds it; those who only ask do not disturb each other."""
    lock = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def other_attempts(folder: Path) -> bool:
    """A program of another attempt of this run still lives, on whatever rank."""
    return any(is_held(path) for path in folder.glob("lock.*") if not path.name.endswith(f".{ATTEMPT}"))


def wait_for(path: Path) -> None:
    """Until somebody has put it there."""
    while not path.exists():
        time.sleep(0.1)


def journal_name(rank: str) -> str:
    """Each rank writes its own."""
    return "journal" if rank == "0" else f"journal.{rank}"


def write(folder: Path, event: str, **facts: object) -> None:
    """One whole line, on the disk before this returns."""
    line = json.dumps({"event": event, "who": ME, "at": time.time(), **facts}) + "\n"
    descriptor = os.open(folder / journal_name(RANK), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
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
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), waits="wait" in sys.argv[4:]))
