"""``manage.py set_quota tenant|user NAME [--cpu CORES] [--gpus N] ... [--until 2026-12-31]``"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from clavier.core.errors import DomainError
from clavier.quotas.limits import Window, caps_of, set_quota

NONE = "none"
UNITS = {"running_runs": 1, "cpu_milli": 1000, "memory_mib": 1024, "gpus": 1, "vgpus": 1, "mig_devices": 1}
OPTIONS = {
    "running_runs": "runs at a time",
    "cpu_milli": "CPU cores",
    "memory_mib": "memory in GiB",
    "gpus": "whole GPUs",
    "vgpus": "shares of GPUs",
    "mig_devices": "MIG devices",
}
WORDS = {"running_runs": "runs", "cpu_milli": "cpu", "memory_mib": "memory-gib"}


class Command(BaseCommand):
    """Changes what is named and leaves the rest. Limits below the present use stop new runs and files only."""

    help = "Set the caps, the validity and the storage limits of a tenant or user."

    def add_arguments(self, parser: CommandParser) -> None:
        """One option for each cap."""
        parser.add_argument("scope", choices=["tenant", "user"])
        parser.add_argument("name")
        for resource, words in OPTIONS.items():
            name = WORDS.get(resource, resource.replace("_", "-"))
            parser.add_argument(f"--{name}", dest=resource, metavar="N", help=f"Cap of {words}; '{NONE}': no cap.")
        parser.add_argument("--storage-gib", type=float, help="Storage in GiB.")
        parser.add_argument("--storage-files", type=int, help="Files and folders.")
        parser.add_argument("--from", dest="valid_from", help=f"Date or time (UTC) from when it is valid; '{NONE}'.")
        parser.add_argument("--until", dest="valid_until", help=f"Date or time (UTC) until when; '{NONE}'.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Set and show. Raises CommandError in words."""
        caps = {name: read_cap(name, options[name]) for name in OPTIONS if options[name] is not None}
        window = Window()
        if options["valid_from"] is not None:
            window["valid_from"] = read_time("from", options["valid_from"])
        if options["valid_until"] is not None:
            window["valid_until"] = read_time("until", options["valid_until"])
        storage = options["storage_gib"]
        try:
            owner = set_quota(
                scope=options["scope"],
                name=options["name"],
                caps=caps,
                window=window,
                bytes_limit=None if storage is None else int(storage * 2**30),
                inodes_limit=options["storage_files"],
            )
        except DomainError as error:
            raise CommandError(error.message) from error
        for resource, cap in sorted(caps_of(options["scope"], owner).items()):
            self.stdout.write(f"{OPTIONS[resource]:16} {cap / UNITS[resource]:g}")


def read_cap(resource: str, text: str) -> int | None:
    """A cap in the option's unit, or None for no cap. Raises CommandError."""
    if text == NONE:
        return None
    try:
        return round(float(text) * UNITS[resource])
    except (ValueError, OverflowError) as error:
        raise CommandError(f"{OPTIONS[resource]}: {text!r} is no number and not {NONE!r}.") from error


def read_time(option: str, text: str) -> datetime | None:
    """A date or time in UTC, or None. Raises CommandError."""
    if text == NONE:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise CommandError(f"--{option}: {text!r} is no date such as 2026-12-31 or 2026-12-31T18:00.") from error
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time
