"""Who acts: always taken from the credential, never from a request's body."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from uuid import UUID

Role = Literal["owner", "admin", "member", "viewer"]
ROLES: tuple[Role, ...] = ("owner", "admin", "member", "viewer")
Scope = Literal["read", "write", "inference"]
SCOPES: tuple[Scope, ...] = ("read", "write", "inference")


@dataclass(frozen=True, slots=True)
class Actor:
    """One user in one tenant, with the role of the membership and the scopes of the credential."""

    user_id: UUID
    username: str
    tenant_id: UUID
    tenant_name: str
    role: Role
    scopes: frozenset[str] = frozenset(SCOPES)
    is_operator: bool = False
    api_key_id: UUID | None = None

    @property
    def manages_tenant(self) -> bool:
        """May change objects of the tenant that others created."""
        return self.role in ("owner", "admin")

    @property
    def may_write(self) -> bool:
        """May create anything at all."""
        return self.role != "viewer" and "write" in self.scopes
