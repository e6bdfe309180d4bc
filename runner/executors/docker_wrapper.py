"""Builds the wrapper that runs inside every container: a small static program, made once by the system's compiler."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from runner.executors.base import ExecutorError

SOURCE = Path(__file__).with_name("container_wrapper.c")
_FLAGS = ("-static", "-O2", "-s", "-Wall", "-Wextra")
_COMPILE_TIMEOUT_S = 120.0


def ensure_wrapper(folder: Path) -> Path:
    """The wrapper for the machine's own architecture, compiled into ``folder`` unless it is there.

    Raises ExecutorError where there is no compiler, or it fails.
    """
    source = SOURCE.read_bytes()
    path = folder / f"wrapper-{os.uname().machine}-{hashlib.sha256(source).hexdigest()[:16]}"
    if path.exists():
        return path
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    with open(folder / ".lock", "a", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            _compile(path)
    return path


def _compile(path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise ExecutorError(
            "There is no C compiler to build the wrapper that runs in containers. Install gcc and libc6-dev, or name "
            f"a ready one in DOCKER_WRAPPER (made elsewhere by: cc {' '.join(_FLAGS)} -o wrapper {SOURCE})."
        )
    new = path.with_name(f".new-{os.getpid()}")
    command = [compiler, *_FLAGS, "-o", str(new), str(SOURCE)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S, check=False)
        if done.returncode != 0:
            raise ExecutorError(f"The wrapper of containers can not be built ({' '.join(command)}): {done.stderr}")
        new.chmod(0o755)
        new.rename(path)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ExecutorError(f"The wrapper of containers can not be built: {error}") from error
    finally:
        new.unlink(missing_ok=True)
