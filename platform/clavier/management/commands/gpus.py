"""``manage.py gpus scan | list | declare NODE UUID --memory-mib N [--mig 1g.10gb] ... | forget UUID``"""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from clavier.core.errors import DomainError
from clavier.quotas.inventory import declare_gpu, forget_gpu, scan_gpus
from clavier.quotas.models import Gpu, Node
from clavier.quotas.nvidia import Device


class Command(BaseCommand):
    """The GPUs that runs can be given. Those of other machines are declared here by hand or by a script."""

    help = "List, read, declare or forget GPUs and MIG devices."

    def add_arguments(self, parser: CommandParser) -> None:
        """One word for each thing to do."""
        verbs = parser.add_subparsers(dest="verb", required=True)
        scan = verbs.add_parser("scan", help="Read the devices of this machine with nvidia-smi.")
        scan.add_argument("--node", default="local", help="The node that this machine is.")
        listing = verbs.add_parser("list", help="All devices and what is booked of them.")
        listing.add_argument("--json", action="store_true", help="One JSON line for each.")
        declare = verbs.add_parser("declare", help="Add a device of any node, or change it.")
        declare.add_argument("node")
        declare.add_argument("uuid", help="GPU-... or MIG-..., as nvidia-smi -L prints it there.")
        declare.add_argument("--memory-mib", type=int, required=True)
        declare.add_argument("--mig", default="", metavar="PROFILE", help="It is a MIG device, such as 1g.10gb.")
        declare.add_argument("--parent", default="", help="Of a MIG device: the UUID of the GPU that it is cut from.")
        declare.add_argument("--index", type=int, default=0)
        declare.add_argument("--name", default="")
        declare.add_argument("--shared", action="store_true", default=None, help="Shares of it may be booked.")
        forget = verbs.add_parser("forget", help="Take a device out.")
        forget.add_argument("uuid")

    def handle(self, *args: Any, **options: Any) -> None:
        """Do the one thing. Raises CommandError in words."""
        try:
            getattr(self, options["verb"])(options)
        except DomainError as error:
            raise CommandError(error.message) from error

    def scan(self, options: dict[str, Any]) -> None:
        """Say what changed."""
        said = scan_gpus(node=self.node(options["node"]))
        for sentence in said or ["Nothing changed."]:
            self.stdout.write(sentence)

    def list(self, options: dict[str, Any]) -> None:
        """A line for each device."""
        rows = list(Gpu.objects.select_related("node"))
        parents = {gpu.parent_uuid for gpu in rows}
        for gpu in rows:
            if options["json"]:
                facts = {name: getattr(gpu, name) for name in ("uuid", "index", "name", "memory_mib", "mig_profile",
                         "parent_uuid", "allows_sharing", "is_healthy", "is_present", "cores_used",
                         "memory_used_mib")}  # fmt: skip
                self.stdout.write(json.dumps({"node": gpu.node.name, **facts}, ensure_ascii=False))
                continue
            kind = gpu.mig_profile or ("cut" if gpu.uuid in parents else "shared" if gpu.allows_sharing else "whole")
            state = (
                ""
                if gpu.is_healthy and gpu.is_present
                else "  not booked: " + ("switched off" if gpu.is_present else "no longer listed")
            )
            used = f"{gpu.cores_used} % and {gpu.memory_used_mib} of {gpu.memory_mib} MiB held"
            self.stdout.write(f"{gpu.node.name:12} {gpu.index:3} {kind:8} {gpu.uuid}  {used}  {gpu.name}{state}")

    def declare(self, options: dict[str, Any]) -> None:
        """Add or change one device."""
        device = Device(options["uuid"], options["index"], options["name"], options["memory_mib"], options["mig"],
                        options["parent"])  # fmt: skip
        gpu = declare_gpu(node=self.node(options["node"]), device=device, allows_sharing=options["shared"])
        self.stdout.write(f"{gpu.uuid} is declared on {gpu.node.name}.")

    def forget(self, options: dict[str, Any]) -> None:
        """Take one device out."""
        forget_gpu(uuid=options["uuid"])
        self.stdout.write(f"{options['uuid']} is forgotten.")

    def node(self, name: str) -> Node:
        """The node of that name. Raises CommandError."""
        found = Node.objects.filter(name=name).first()
        if found is None:
            known = ", ".join(Node.objects.values_list("name", flat=True)) or "none"
            raise CommandError(f"There is no node {name!r}; there are: {known}.")
        return found
