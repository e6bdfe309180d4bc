"""``manage.py restore FOLDER|FILE.tar [--force] [--verify]``: a backup into this home and database."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from clavier.management.backup.manifest import BackupError
from clavier.management.backup.progress import Counter
from clavier.management.backup.restore import Restored, restore
from clavier.management.backup.source import verify as verify_backup
from runner.worker.invariants import check_everything


class Command(BaseCommand):
    """Everything is read and compared before anything is replaced. Exit code 1 when an invariant is broken after it."""

    help = "Restore a backup into CLAVIER_HOME and the configured database; the platform must not run."
    requires_migrations_checks = False

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("source", type=Path, help="what manage.py backup has made")
        parser.add_argument("--force", action="store_true", help="set aside what is there")
        parser.add_argument("--verify", action="store_true", help="only read the backup and compare hashes")

    def handle(self, *, source: Path, force: bool, verify: bool, **options: Any) -> None:
        try:
            if verify:
                manifest = verify_backup(source, Counter(self.stderr, "verify"))
                self.stdout.write(f"{source} of {manifest.made_at} is whole: {len(manifest.files):,} files")
                return
            done = restore(source, Counter(self.stderr, "restore"), force=force)
        except (BackupError, OSError) as error:
            raise CommandError(str(error)) from error
        self._tell(done)
        report = check_everything()
        for finding in report.findings:
            self.stderr.write(str(finding))
        if report.findings:
            raise CommandError(f"{len(report.findings)} invariants do not hold; see above.")
        self.stdout.write("I1 to I10 hold. Start the platform: manage.py up")

    def _tell(self, done: Restored) -> None:
        self.stdout.write(f"restored the backup of {done.manifest.made_at}: {len(done.manifest.files):,} files")
        for words, items in (
            ("tried again", done.retried),
            ("failed, no retry was left", done.ended),
            ("set aside; delete it when you no longer need it", done.kept),
            ("look at this", done.warnings),
        ):
            for item in items:
                self.stdout.write(f"  {words}: {item}")
