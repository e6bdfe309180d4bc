"""`manage.py prepare`: what has to be done once before the processes of an installation start (compose.yaml)."""

from __future__ import annotations

import os
import shutil
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from clavier.management.commands.up import prepare


class Command(BaseCommand):
    """Migrate, make the first operator, collect static files; ``--wrapper`` puts that program where engines see it."""

    requires_system_checks = []  # what they look for is made here
    help = "Prepare an installation whose processes are started by something else than `manage.py up`."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--wrapper", type=Path, help="a ready container wrapper, copied to DOCKER_WRAPPER")

    def handle(self, *, wrapper: Path | None, **_: Any) -> None:
        settings.CLAVIER_HOME.mkdir(parents=True, exist_ok=True)
        prepare(self.stdout)
        target = settings.EXECUTOR_OPTIONS["docker_engine"]["wrapper"]
        if wrapper is not None and target:
            new = Path(f"{target}.new")
            shutil.copyfile(wrapper, new)
            new.chmod(0o755)
            os.replace(new, target)
        self.stdout.write("Prepared.")
