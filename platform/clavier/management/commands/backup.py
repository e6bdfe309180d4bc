"""``manage.py backup FOLDER|FILE.tar [--verify]``: database, files and outputs, while the platform runs."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from clavier.management.backup.make import make_backup
from clavier.management.backup.manifest import BackupError
from clavier.management.backup.progress import Counter
from clavier.management.backup.source import verify


class Command(BaseCommand):
    """Nothing has to be stopped for it. What rows name and the disk lacks is said, and does not keep it from ending."""

    help = "Back up everything: the database, users' files, data sets, outputs and checkpoints of runs, the secret."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("target", type=Path, help="a new folder, or a new file that ends in .tar")
        parser.add_argument("--verify", action="store_true", help="read it all again and compare hashes")

    def handle(self, *, target: Path, verify: bool, **options: Any) -> None:
        try:
            manifest = make_backup(target, Counter(self.stderr, "backup"))
            if verify:
                read_again(target, self.stderr)
        except (BackupError, OSError) as error:
            raise CommandError(str(error)) from error
        for path in manifest.missing[:20]:
            self.stderr.write(f"missing: {path}")
        words = f"{len(manifest.files):,} files, {manifest.size_bytes / 2**20:,.1f} MiB"
        self.stdout.write(f"{target}: {words}{', verified' if verify else ''}, {len(manifest.missing)} missing")


def read_again(target: Path, stream: Any) -> None:
    """Raises BackupError where the backup on the disk is not what was written."""
    verify(target, Counter(stream, "verify"))
