"""What lies in a run's ``work/`` before its program starts: copies of the user's code, links to inputs, small files."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from clavier.core.ownership import TENANT_ID_BASE
from clavier.core.paths import parse_path
from runner.contract.run_spec import WorkItem
from runner.executors.base import LaunchRefused

#: What may be copied for one run: code is small, data is mounted. An RQ job must end within a minute.
MAX_COPIED_MIB = 1024
MAX_COPIED_FILES = 20_000


def lay_out(work: Path, items: Iterable[WorkItem], tenant_number: int) -> None:
    """Make ``work`` anew with its items, owned by the tenant's programs. Call before any program has run in it.

    Raises LaunchRefused where a folder to copy is gone or too large, OSError.
    """
    if work.is_dir() and not work.is_symlink():
        shutil.rmtree(work)
    work.mkdir(mode=0o755)
    for item in items:
        target = work.joinpath(*parse_path(item.path))
        target.parent.mkdir(parents=True, exist_ok=True)
        if item.copy_of is not None:
            copy_folder(Path(item.copy_of), target)
        elif item.link_to is not None:
            target.symlink_to(item.link_to)
        elif item.text is not None:
            target.write_text(item.text, encoding="utf-8")
        else:
            target.mkdir(exist_ok=True)
    give_to_tenant(work, tenant_number)


def copy_folder(source: Path, target: Path) -> None:
    """Copy regular files and folders; whatever else lies there is left out. Raises LaunchRefused, OSError."""
    if not source.is_dir():
        raise LaunchRefused(f"The folder {source.name!r} that the run starts in does not exist any more.")
    num_files = copied_bytes = 0
    target.mkdir()
    for folder, name, status in walk_regular(source):
        num_files, copied_bytes = num_files + 1, copied_bytes + status.st_size
        if num_files > MAX_COPIED_FILES or copied_bytes > MAX_COPIED_MIB << 20:
            raise LaunchRefused(
                f"The folder {source.name!r} has more than {MAX_COPIED_FILES:,} files or {MAX_COPIED_MIB:,} MiB. "
                "Keep only code in it; give data and models their own folders."
            )
        place = target / os.path.relpath(folder, source)
        place.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(os.path.join(folder, name), place / name, follow_symlinks=False)
        if is_script(place / name):
            (place / name).chmod(0o755)


def walk_regular(source: Path) -> Iterator[tuple[str, str, os.stat_result]]:
    """(folder, name, status) of each regular file beneath a folder; links are not followed."""
    for folder, _, names in os.walk(source):
        for name in names:
            status = os.lstat(os.path.join(folder, name))
            if stat.S_ISREG(status.st_mode):
                yield folder, name, status


def is_script(path: Path) -> bool:
    """A file that says by which program it is run. Uploads carry no execute bit, so this stands for it."""
    with open(path, "rb") as stream:
        return stream.read(2) == b"#!"


def give_to_tenant(work: Path, tenant_number: int) -> None:
    """Let the tenant's programs change everything in ``work``; only root can."""
    if os.geteuid() != 0:
        return
    owner = TENANT_ID_BASE + tenant_number
    for folder, folders, names in os.walk(work):
        for name in folders + names:
            os.lchown(os.path.join(folder, name), owner, owner)
