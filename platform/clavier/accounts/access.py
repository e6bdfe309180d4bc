"""The doors: an actor's own object, or NotFound; a right, or Forbidden."""

from __future__ import annotations

from typing import TypeVar
from uuid import UUID

from django.core.exceptions import ObjectDoesNotExist
from django.db.models import QuerySet

from clavier.core.actor import Actor
from clavier.core.errors import Forbidden, NotFound, quoted
from clavier.core.models import TenantOwned

Owned = TypeVar("Owned", bound=TenantOwned)


def access_object(
    queryset: QuerySet[Owned], actor: Actor, object_id: UUID | str, *, noun: str, field: str | None = None
) -> Owned:
    """The object of the actor's tenant. Raises NotFound, the same whether a stranger's object has that id or not."""
    try:
        key = object_id if isinstance(object_id, UUID) else UUID(str(object_id))
    except ValueError:
        key = None
    found = queryset.filter(tenant_id=actor.tenant_id, pk=key).first() if key else None
    if found is None:
        raise NotFound(f"There is no {noun} {quoted(str(object_id))}.", field=field)
    return found


def lock_object(owned: TenantOwned, *, noun: str) -> None:
    """Read the row anew and hold it until the transaction ends: of two who change it at once one comes second.

    Raises NotFound when it was deleted.
    """
    try:
        owned.refresh_from_db(from_queryset=type(owned)._base_manager.select_for_update())
    except ObjectDoesNotExist as gone:
        raise NotFound(f"The {noun} was deleted.") from gone


def require_write(actor: Actor) -> None:
    """Raises Forbidden unless the actor may create objects in the tenant."""
    if "write" not in actor.scopes:
        raise Forbidden("This API key has no scope 'write'. Make a key with it under Settings.", code="scope_missing")
    if actor.role == "viewer":
        raise Forbidden(f"You are a viewer of {actor.tenant_name}. Ask its owner for the role member.")


def require_change(actor: Actor, owned: TenantOwned, *, noun: str) -> None:
    """Raises Forbidden unless the actor created the object or manages the tenant."""
    require_write(actor)
    if owned.created_by_id != actor.user_id and not actor.manages_tenant:
        raise Forbidden(
            f"This {noun} belongs to another member of {actor.tenant_name}; owners and admins may change it."
        )


def creator_of(owned: TenantOwned) -> Actor:
    """The object's creator as one who acts: what the platform does later on its behalf sees what it may see."""
    user, tenant = owned.created_by, owned.tenant
    return Actor(user.pk, user.username, tenant.pk, tenant.name, "member")


def require_tenant_admin(actor: Actor) -> None:
    """Raises Forbidden unless the actor is an owner or admin of the tenant."""
    require_write(actor)
    if not actor.manages_tenant:
        raise Forbidden(f"Only owners and admins of {actor.tenant_name} may do this.")


def require_operator(actor: Actor, *, to_write: bool = False) -> None:
    """Raises Forbidden unless the actor runs this installation and the credential has the scope that is needed."""
    if not actor.is_operator:
        raise Forbidden("Only operators of this installation may do this.", code="operators_only")
    if to_write and "write" not in actor.scopes:
        raise Forbidden("This API key has no scope 'write'. Make a key with it under Settings.", code="scope_missing")
