"""``manage.py check_invariants [--json] [--install]``: is everything as it must always be?"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand

from clavier.management.installation import installation_findings
from runner.worker.invariants import check_everything


class Command(BaseCommand):
    """Exit code 0 when nothing was found, 1 otherwise. An executor that does not answer is said, and is no finding."""

    help = "Check I1 to I10 of docs/chaos.md over rows, files and executors."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON line")
        parser.add_argument(
            "--install", action="store_true", help="also look at the installation: migrations, trigger, folders, disk"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        report = check_everything()
        findings = [asdict(finding) for finding in report.findings]
        if options["install"]:
            findings += [{"invariant": "install", "message": message} for message in installation_findings()]
        if options["json"]:
            self.stdout.write(json.dumps({"findings": findings, "silent": report.silent}, ensure_ascii=False))
        else:
            self._tell(findings, report.silent)
        if findings:
            sys.exit(1)

    def _tell(self, findings: list[dict[str, str]], silent: list[str]) -> None:
        for finding in findings:
            self.stdout.write(f"{finding['invariant']:8}{finding['message']}")
        for name in silent:
            self.stdout.write(f"unknown  {name}")
        if not findings:
            self.stdout.write("I1 to I10 hold." if not silent else "Nothing found; of what is unknown nothing is said.")
