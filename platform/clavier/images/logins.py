"""Logins at registries: a file that only one import can read, gone when the import has ended."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import UUID

from django.conf import settings

from clavier.core.ownership import share_with_tenant
from clavier.files.storage import make_root
from runner.contract.folder import write_json_durably


@dataclass(frozen=True, slots=True)
class RegistryLogin:
    """A user (or robot account) of a registry."""

    username: str
    password: str

    def __repr__(self) -> str:
        """Without the password: errors and logs may show it."""
        return f"RegistryLogin({self.username!r})"


def write_login(version_id: UUID, login: RegistryLogin, tenant_number: int) -> Path:
    """The file that the import of a version is given."""
    path = login_path(version_id)
    make_root(path.parent)
    mask = os.umask(0o077)
    try:
        write_json_durably(path, asdict(login))
    finally:
        os.umask(mask)
    share_with_tenant(path, tenant_number)
    return path


def forget_login(version_id: UUID) -> None:
    """Delete the file, if there is one."""
    login_path(version_id).unlink(missing_ok=True)


def login_path(version_id: UUID) -> Path:
    """Where the login of an import lies while it runs."""
    return Path(settings.CLAVIER_SECRETS) / f"{version_id}.json"
