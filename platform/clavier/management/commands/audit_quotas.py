"""``manage.py audit_quotas [--repair]``: is what is used the sum of what is held?"""

from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from clavier.files.usage import audit_storage, repair_storage
from clavier.quotas.audit import audit_holders, audit_usage, repair_usage


class Command(BaseCommand):
    """Exit code 0 when all adds up, 1 when something drifted, also when it was repaired: somebody should know why."""

    help = "Compare caps, GPUs and storage with the rows that they count."

    def add_arguments(self, parser: CommandParser) -> None:
        """Repairing has to be asked for."""
        parser.add_argument("--repair", action="store_true", help="Set what drifted to the sum of its rows.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Tell each drift, and repair when asked."""
        drift = [*audit_usage(), *(f"I3: {sentence}" for sentence in audit_holders()), *audit_storage()]
        for sentence in drift:
            self.stdout.write(sentence)
        if not drift:
            self.stdout.write("All that is used adds up.")
            return
        if options["repair"]:
            self.stdout.write(f"Repaired: {repair_usage() + repair_storage()}. Two holders of one GPU stay: stop one.")
        sys.exit(1)
