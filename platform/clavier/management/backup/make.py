"""Make a backup while the platform runs."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

from django.conf import settings
from django.db import connection
from django.utils import timezone

from clavier.files.models import StoredFile
from clavier.management.backup.databases import FILE_OF, applied_migrations, dumped
from clavier.management.backup.manifest import HOME, MANIFEST, BackupError, Entry, Manifest, hash_of
from clavier.management.backup.tree import Progress, Tree
from clavier.runs.models import Run
from clavier.runs.states import FINAL_STATES, RunState
from datasets_app.models import DatasetVersion
from models_app.models import ModelVersion
from runner.contract import folder as names

TRIES = 3


def make_backup(target: Path, progress: Progress) -> Manifest:
    """A backup as the folder ``target``, or as one file when it ends in ``.tar``. Raises BackupError."""
    target = target.absolute()
    if target.exists():
        raise BackupError(f"{target} exists; give a name that is new.")
    if target.is_relative_to(settings.CLAVIER_HOME):
        raise BackupError(f"{target} lies inside of {settings.CLAVIER_HOME}, which is backed up; give another place.")
    if not target.parent.is_dir():
        raise BackupError(f"{target.parent} is no folder.")
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        for last in (*[False] * (TRIES - 1), True):
            shutil.rmtree(partial, ignore_errors=True)
            manifest = collect(partial, progress)
            if not manifest.missing or last:
                break
        manifest.write(partial)
        if target.suffix == ".tar":
            pack(partial, target)
        else:
            partial.rename(target)
        names.fsync_folder(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def collect(folder: Path, progress: Progress) -> Manifest:
    """One try. What a row names was on the disk at the moment of the dump, so it is taken before it or after it."""
    folder.mkdir(mode=0o700)
    home = Path(settings.CLAVIER_HOME)
    tree = Tree(home, folder, progress)
    ended = set(Run.objects.filter(state__in=FINAL_STATES).values_list("pk", flat=True))
    for root in tree.data_folders():
        tree.add_immutable(root)
    for pk in ended:
        tree.add_run(home / "runs" / str(pk), is_ended=True)
    with dumped(folder) as alias:
        tree.add_top_files()
        for root in tree.data_folders():
            tree.add_immutable(root)
        for pk, state in Run.objects.using(alias).values_list("pk", "state").iterator():
            if pk not in ended:
                tree.add_run(home / "runs" / str(pk), is_ended=state in FINAL_STATES)
        missing = sorted(missing_files(alias, tree))
        migrations = applied_migrations()
    dump = folder / FILE_OF[connection.vendor]
    size, sha256 = hash_of(dump)
    files = [Entry(dump.name, 0o600, os.getuid(), os.getgid(), size, sha256), *tree.files.values()]
    return Manifest(
        made_at=timezone.now().isoformat(timespec="seconds"),
        home=str(home),
        vendor=connection.vendor,
        migrations=migrations,
        files=files,
        folders=list(tree.folders.values()),
        missing=missing,
    )


def missing_files(alias: str, tree: Tree) -> Iterator[str]:
    """What the dumped rows name and the backup does not have."""
    for row in StoredFile.objects.using(alias).iterator():
        path = f"{HOME}/files/{row.tenant_id}/{row.created_by_id}/{row.area}/{row.path}"
        if path not in (tree.folders if row.is_folder else tree.files):
            yield path
    kept = {path.rsplit("/", 1)[0] for path in tree.files}
    for tenant_id, pk in DatasetVersion.objects.using(alias).values_list("tenant_id", "pk").iterator():
        if (path := f"{HOME}/datasets/{tenant_id}/{pk}") not in kept:
            yield path
    completed = Run.objects.using(alias).filter(state=RunState.COMPLETED)
    for pk in completed.values_list("pk", flat=True).iterator():
        yield from missing_outputs(f"{HOME}/runs/{pk}/{names.OUTPUT}", tree)
    for version in ModelVersion.objects.using(alias).filter(state="ready").iterator():
        path = f"{HOME}/{version.folder}"
        is_inside = version.folder and not os.path.isabs(version.folder)
        if is_inside and path not in tree.folders:
            yield path


def missing_outputs(output: str, tree: Tree) -> Iterator[str]:
    """What the manifest of a completed run names and the backup does not have, or has with another size."""
    manifest = f"{output}/{names.MANIFEST}"
    if manifest not in tree.files:
        yield manifest
        return
    value = json.loads((tree.folder.parent / manifest).read_text(encoding="utf-8"))
    for entry in value["files"]:
        kept = tree.files.get(f"{output}/{entry['path']}")
        if kept is None or kept.size != entry["size"]:
            yield f"{output}/{entry['path']}"


def pack(folder: Path, target: Path) -> None:
    """The folder as one tar, its manifest first; it appears whole or not at all."""
    partial = target.with_name(f".{target.name}.partial")
    try:
        with open(partial, "wb") as stream:
            # Two names of one file are two files here: dereference says so.
            with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT, dereference=True) as tar:
                tar.add(folder / MANIFEST, MANIFEST)
                for path in sorted(folder.iterdir()):
                    if path.name != MANIFEST:
                        tar.add(path, path.name)
            stream.flush()
            os.fsync(stream.fileno())
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)
