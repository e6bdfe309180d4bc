"""Put a backup in the place of an installation: read it whole first, then rename, then settle what was live."""

from __future__ import annotations

import os
import secrets
import shutil
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from django.conf import settings
from django.core.management import call_command
from django.db import connection, connections
from django.utils import timezone

from clavier.core.supervise import AlreadyRunning, only_one
from clavier.management.backup import databases
from clavier.management.backup.manifest import HOME, BackupError, Entry, Manifest, copy_hashed
from clavier.management.backup.source import contents, load_manifest, raise_if_damaged
from clavier.management.backup.tree import LEFT_OUT, TOP_FILES, Progress
from clavier.quotas.models import Node
from clavier.runs.models import Attempt, Lease, Outbox, Run
from clavier.runs.services import finish_attempt
from clavier.runs.states import LIVE_STATES, EndReason
from runner.contract import folder as names
from runner.contract.run_spec import RunSpec
from runner.executors.base import Executor, ExecutorError
from runner.worker.engines import engines_of, executor

#: What any management command makes in a home by itself. The install id is never restored: a copy of an installation
#: must not take the containers of the original for its own.
MADE_BY_COMMANDS = frozenset({"secret_key", "install_id", "uploads", "run", "static", "logs", "up.lock", "queue"})
PROGRAMS_END_WITHIN_S = 30.0


@dataclass(slots=True)
class Restored:
    """What was done. ``kept``: where what was there before lies now. ``warnings``: for the operator to look at."""

    manifest: Manifest
    kept: list[str] = field(default_factory=list)
    retried: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def restore(source: Path, progress: Progress, *, force: bool) -> Restored:
    """Restore into the configured home and database. Raises BackupError; until the renames nothing is changed."""
    source = source.absolute()
    home = Path(settings.CLAVIER_HOME)
    home.mkdir(parents=True, exist_ok=True)
    try:
        with only_one(home / "up.lock"):
            manifest = load_manifest(source)
            refuse_foreign(manifest)
            is_empty = databases.is_empty() and not occupied(home)
            if not is_empty and not force:
                raise BackupError(
                    f"{home} or its database holds data already. Restore into an empty CLAVIER_HOME (and database), "
                    "or say --force: what is there is then set aside, not deleted."
                )
            stage = home / f".restore-{secrets.token_hex(4)}"
            try:
                fill(stage, source, manifest, progress)
                done = Restored(manifest)
                if not is_empty:
                    end_programs(done)
                replace(home, stage, done)
            finally:
                shutil.rmtree(stage, ignore_errors=True)
            call_command("migrate", interactive=False, verbosity=0)
            settle(done)
    except AlreadyRunning as error:
        raise BackupError(str(error)) from error
    return done


def refuse_foreign(manifest: Manifest) -> None:
    """Raises BackupError for a backup of another kind of database or of a newer Clavier."""
    if manifest.vendor != connection.vendor:
        raise BackupError(
            f"The backup holds a {manifest.vendor} database, DATABASE_URL names a {connection.vendor} one. "
            "Set DATABASE_URL to an empty database of the same kind."
        )
    if unknown := databases.unknown_migrations(manifest.migrations):
        raise BackupError(f"The backup is of a newer Clavier: {unknown[0]} is not known here. Update Clavier first.")


def occupied(home: Path) -> list[str]:
    """What lies in a home and is somebody's."""
    return sorted(
        path.name
        for path in home.iterdir()
        if not path.name.startswith(".")
        and path.name not in MADE_BY_COMMANDS
        and (path.is_file() or any(path.rglob("*")))
    )


def fill(stage: Path, source: Path, manifest: Manifest, progress: Progress) -> None:
    """Copy everything beside the home's data, comparing sizes and hashes. Raises BackupError, OSError."""
    stage.mkdir(mode=0o700)
    for folder in manifest.folders:
        (stage / folder.path).mkdir(mode=0o700, parents=True, exist_ok=True)
    damaged, size_bytes = [], 0
    written: dict[tuple[Path, str], Path] = {}
    for number, (entry, stream) in enumerate(contents(source, manifest), 1):
        target = stage / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        if not is_whole(entry, stream, target):
            damaged.append(entry.path)
        elif entry.path.startswith(f"{HOME}/datasets/"):  # rows and original of a version may be one file
            twin = written.setdefault((target.parent, entry.sha256), target)
            if twin != target:
                target.unlink()
                os.link(twin, target)
        size_bytes += entry.size
        progress(number, size_bytes)
    raise_if_damaged(source, damaged)
    for entry in [*manifest.files, *sorted(manifest.folders, key=lambda folder: -len(folder.path))]:
        if os.geteuid() == 0:
            os.chown(stage / entry.path, entry.uid, entry.gid)
        os.chmod(stage / entry.path, entry.mode)


def is_whole(entry: Entry, stream: IO[bytes] | None, target: Path) -> bool:
    """Copy one file; whether it is there and as the manifest says."""
    if stream is None:
        return False
    with open(target, "xb") as copy:
        try:
            return copy_hashed(stream, copy) == (entry.size, entry.sha256)
        except tarfile.TarError:  # the file ends in the middle
            return False


def end_programs(done: Restored) -> None:
    """End what the replaced installation still runs: its runs may be started anew, and two at once must never be."""
    has_rows = not databases.is_empty() and "runs_attempt" in connection.introspection.table_names()
    nodes = Node.objects.filter(attempts__ended_at=None, attempts__isnull=False) if has_rows else Node.objects.none()
    for engine in engines_of(nodes):
        try:
            end_programs_of(executor(engine))
        except ExecutorError as error:
            done.warnings.append(f"executor {engine} does not answer ({error}); end its programs yourself")


def end_programs_of(engine: Executor) -> None:
    """Stop all of an executor and wait. Raises ExecutorError when something lives on."""
    deadline = time.monotonic() + PROGRAMS_END_WITHIN_S
    while alive := [seen.name for seen in engine.list() if seen.state != "exited"]:
        if time.monotonic() > deadline:
            raise ExecutorError(f"{', '.join(alive[:5])} did not end within {PROGRAMS_END_WITHIN_S:g} s")
        for name in alive:
            engine.stop(name, 0)
        time.sleep(0.2)


def replace(home: Path, stage: Path, done: Restored) -> None:
    """Set the old aside, put the new into its place; on an error everything goes back."""
    aside = f"replaced-{timezone.now():%Y%m%d-%H%M%S}"
    undo: list[Callable[[], object]] = []
    try:
        for name in sorted({*occupied(home), *TOP_FILES} - LEFT_OUT | {"executors"}):
            path = home / name
            if path.exists() and not is_database(path):
                (home / f".{aside}").mkdir(mode=0o700, exist_ok=True)
                move(path, home / f".{aside}" / name, undo)
        for path in sorted((stage / HOME).iterdir()):
            move(path, home / path.name, undo)
        old = databases.restore(stage / databases.FILE_OF[connection.vendor], aside)
    except BaseException:
        for step in reversed(undo):
            step()
        raise
    done.kept += [str(home / f".{aside}")] if (home / f".{aside}").exists() else []
    done.kept += [old] if old else []


def move(source: Path, target: Path, undo: list[Callable[[], object]]) -> None:
    """A rename that can be taken back."""
    os.rename(source, target)
    undo.append(lambda: os.rename(target, source))


def is_database(path: Path) -> bool:
    """The SQLite file or its journals: the database's own part of a restore moves them."""
    return connection.vendor == "sqlite" and path.name.startswith(Path(str(connection.settings_dict["NAME"])).name)


def settle(done: Restored) -> None:
    """What was live when the backup was made is tried again or fails: whether it still ran nobody knows."""
    connections.close_all()
    executor.cache_clear()  # its folder was set aside
    Lease.objects.all().delete()
    Outbox.objects.update(created_at=timezone.now())  # they were made long ago and wait since now
    move_paths(done.manifest.home, str(settings.CLAVIER_HOME))
    message = (
        f"The platform was restored from a backup of {done.manifest.made_at}; what this attempt did since is lost."
    )
    for attempt in Attempt.objects.filter(ended_at=None).select_related("run"):
        finish_attempt(attempt=attempt, reason=EndReason.EXECUTOR_LOST, message=message)
        run = Run.objects.get(pk=attempt.run_id)
        (done.ended if run.is_final else done.retried).append(f"{run.kind} {run.name!r} ({run.pk})")
    if done.manifest.missing:
        done.warnings.append(f"{len(done.manifest.missing)} files were missing already when the backup was made")


def move_paths(old: str, new: str) -> None:
    """The specs of live runs name files below the home as it was called when they were submitted."""
    if old == new:
        return
    for run in Run.objects.filter(state__in=LIVE_STATES):
        spec = RunSpec.from_json(moved(run.spec, old, new))
        Run.objects.filter(pk=run.pk).update(spec=spec.to_json(), spec_digest=spec.digest())
        (Path(settings.CLAVIER_RUNS) / str(run.pk) / names.SPEC).unlink(missing_ok=True)  # the launch writes it anew


def moved(value: Any, old: str, new: str) -> Any:
    """Plain data with each path below ``old`` moved below ``new``."""
    if isinstance(value, str):
        return new + value[len(old) :] if value == old or value.startswith(f"{old}/") else value
    if isinstance(value, dict):
        return {key: moved(item, old, new) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [moved(item, old, new) for item in value]
    return value
