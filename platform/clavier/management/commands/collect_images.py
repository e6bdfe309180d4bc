"""`manage.py collect_images`: archives and engines' images that no version and no unfinished run names any more."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from clavier.images.collection import abandoned_logins, is_wanted, lost_archives
from clavier.images.store import abandoned_archives, discard_archive, place_archive
from clavier.quotas.models import Node
from runner.executors.base import ExecutorError
from runner.worker.engines import Engine, engine_of, executor


class Command(BaseCommand):
    """Say what nothing names any more and delete it; safe at any time, also while imports run."""

    help = "Delete image archives, images on engines and registry logins that nothing names; link lost archives again."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="say what would be deleted, and delete nothing")

    def handle(self, *, dry_run: bool, **_: Any) -> None:
        self._verb = "would delete" if dry_run else "deleted"
        self._link_lost_archives(dry_run)
        self._collect_archives(dry_run)
        for engine in sorted(set(map(engine_of, Node.objects.filter(executor__in=settings.CONTAINER_EXECUTORS)))):
            try:
                self._collect_engine(engine, dry_run)
            except ExecutorError as error:
                # An engine that is away is asked the next time; the others need not wait.
                self.stderr.write(f"engine {engine}: {error}")

    def _link_lost_archives(self, dry_run: bool) -> None:
        for version in list(lost_archives()):
            if not dry_run and version.run_id:
                place_archive(version.run_id, version.content_id)
            self.stdout.write(f"{'would link' if dry_run else 'linked'} the archive of {version} again")

    def _collect_archives(self, dry_run: bool) -> None:
        for path in list(abandoned_archives(is_wanted)):
            size_bytes = path.stat().st_size
            if dry_run or discard_archive(path):
                self.stdout.write(f"{self._verb} archive {path.name} ({size_bytes / 2**20:,.1f} MiB)")
        for path in list(abandoned_logins()):
            if not dry_run:
                path.unlink(missing_ok=True)
            self.stdout.write(f"{self._verb} login {path.name}")

    def _collect_engine(self, engine: Engine, dry_run: bool) -> None:
        store: Any = executor(engine)  # CONTAINER_EXECUTORS are ImageStores too
        for image in store.images():
            if is_wanted(image.id):
                continue
            if not dry_run:
                store.remove_image(image.id)
            self.stdout.write(f"{self._verb} image {image.id} on {engine} ({image.size_bytes / 2**20:,.1f} MiB)")
