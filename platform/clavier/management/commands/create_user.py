"""``manage.py create_user NAME --tenant TENANT --password P [--operator] --json``"""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from clavier.accounts.services import create_api_key, create_user
from clavier.core.errors import DomainError


class Command(BaseCommand):
    """A user with an API key, in a tenant that is made when new."""

    help = "Create a user, its tenant when new, and an API key."

    def add_arguments(self, parser: CommandParser) -> None:
        """The names that others script against."""
        parser.add_argument("username")
        parser.add_argument("--tenant", required=True, help="Made when new; its first user is the owner.")
        parser.add_argument("--password", required=True)
        parser.add_argument("--role", choices=["owner", "admin", "member", "viewer"])
        parser.add_argument("--operator", action="store_true", help="May use the admin.")
        parser.add_argument("--json", action="store_true", help="Print one JSON line.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Print ``{"user_id", "username", "tenant", "api_key"}``. Raises CommandError."""
        try:
            with transaction.atomic():
                user, tenant = create_user(
                    username=options["username"],
                    tenant_name=options["tenant"],
                    password=options["password"],
                    role=options["role"],
                    is_operator=options["operator"],
                )
                _, secret = create_api_key(user=user, tenant=tenant, name="create_user")
        except DomainError as error:
            raise CommandError(error.message) from error
        facts = {"user_id": str(user.pk), "username": user.username, "tenant": tenant.name, "api_key": secret}
        if options["json"]:
            self.stdout.write(json.dumps(facts, ensure_ascii=False))
        else:
            for name, value in facts.items():
                self.stdout.write(f"{name:9} {value}")
            self.stdout.write("The API key is shown this once.")
