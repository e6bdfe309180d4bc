"""What can be done with tenants, users and keys."""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import cast
from uuid import UUID

from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.db.models import Max
from django.utils import timezone

from clavier.accounts.access import require_tenant_admin, require_write
from clavier.accounts.auth import KEY_PREFIX, key_digest
from clavier.accounts.models import ApiKey, Membership, Tenant, User, tenant_name_validator
from clavier.core.actor import ROLES, SCOPES, Actor, Role
from clavier.core.errors import Conflict, Forbidden, Invalid, NotFound, quoted

OPERATOR_NAME = "operator"
OPERATOR_TENANT = "operators"


def create_tenant(*, name: str, display_name: str = "") -> Tenant:
    """A new tenant. Raises Invalid (``bad_name``), Conflict (``already_exists``)."""
    try:
        tenant_name_validator(name)
    except ValidationError as error:
        raise Invalid(f"tenant {quoted(name)}: {error.messages[0]}", code="bad_name", field="tenant") from error
    with transaction.atomic():
        if Tenant.objects.filter(name=name).exists():
            raise Conflict(f"The tenant {quoted(name)} exists.", code="already_exists", field="tenant")
        return Tenant.objects.create(number=next_tenant_number(), name=name, display_name=display_name or name)


def create_user(
    *, username: str, tenant_name: str, password: str, role: Role | None = None, is_operator: bool = False
) -> tuple[User, Tenant]:
    """A new user in a tenant, which is made when new; its first user becomes the owner.

    Raises Conflict (``already_exists``), Invalid (``bad_name``, ``bad_password``).
    """
    check_username(username)
    with transaction.atomic():
        if User.objects.filter(username__iexact=username).exists():
            raise Conflict(
                f"The user {quoted(username)} exists. Choose another name, or change that user in the admin.",
                code="already_exists",
                field="username",
            )
        user = User(username=username, is_staff=is_operator, is_superuser=is_operator)
        check_password(password, user)
        user.set_password(password)
        user.save()
        tenant = Tenant.objects.filter(name=tenant_name).first() or create_tenant(name=tenant_name)
        first = not tenant.memberships.exists()
        add_membership(tenant=tenant, user=user, role=role or ("owner" if first else "member"), is_default=True)
    return user, tenant


def add_membership(*, tenant: Tenant, user: User, role: Role, is_default: bool = False) -> Membership:
    """Add a user to a tenant. Raises Conflict (``already_exists``), Invalid (``not_a_choice``)."""
    if role not in ROLES:
        raise Invalid(f"role {quoted(role)} is none of {', '.join(ROLES)}.", code="not_a_choice", field="role")
    try:
        with transaction.atomic():
            return Membership.objects.create(tenant=tenant, user=user, role=role, is_default=is_default)
    except IntegrityError as error:
        raise Conflict(
            f"{user.username} is a member of {tenant.name} already.", code="already_exists", field="username"
        ) from error


def invite_member(*, actor: Actor, username: str, role: Role) -> Membership:
    """Add an existing user to the actor's tenant. Raises Forbidden, NotFound, Conflict, Invalid."""
    require_tenant_admin(actor)
    require_grantable(actor, role)
    user = User.objects.filter(username__iexact=username, is_active=True).first()
    if user is None:
        raise NotFound(f"There is no user {quoted(username)}.", field="username")
    tenant = Tenant.objects.filter(pk=actor.tenant_id).first()
    if tenant is None:
        raise NotFound("The tenant is gone.")
    return add_membership(tenant=tenant, user=user, role=role)


def change_role(*, actor: Actor, username: str, role: Role) -> Membership:
    """Change a member's role; the last owner stays. Raises Forbidden, NotFound, Conflict, Invalid."""
    require_tenant_admin(actor)
    require_grantable(actor, role)
    with transaction.atomic():
        membership = member_of(actor, username)
        require_grantable(actor, cast(Role, membership.role))
        if membership.role == "owner" and role != "owner":
            require_other_owner(membership)
        membership.role = role
        membership.save(update_fields=["role"])
    return membership


def remove_member(*, actor: Actor, username: str) -> None:
    """Take a member out of the tenant and revoke its keys there. Raises Forbidden, NotFound, Conflict."""
    require_tenant_admin(actor)
    with transaction.atomic():
        membership = member_of(actor, username)
        require_grantable(actor, cast(Role, membership.role))
        if membership.role == "owner":
            require_other_owner(membership)
        for key in ApiKey.objects.filter(tenant=membership.tenant, user=membership.user, revoked_at=None):
            key.revoked_at = timezone.now()
            key.save(update_fields=["revoked_at"])  # one by one: the audit log tells of each
        membership.delete()


def create_api_key(
    *, user: User, tenant: Tenant, name: str, scopes: list[str] | None = None, expires_at: datetime | None = None
) -> tuple[ApiKey, str]:
    """A new key and its secret, which is shown once and never stored. Raises Invalid."""
    unknown = sorted(set(scopes or []) - set(SCOPES))
    if unknown or scopes == []:
        raise Invalid(
            f"scopes {quoted(unknown or scopes)}: choose at least one of {', '.join(SCOPES)}.",
            code="not_a_choice",
            field="scopes",
        )
    if expires_at is not None and expires_at <= timezone.now():
        raise Invalid(f"expires_at {expires_at.isoformat()} is in the past.", code="out_of_range", field="expires_at")
    if not 1 <= len(name) <= 100:
        raise Invalid(f"name has {len(name)} characters; 1 to 100 are allowed.", code="bad_name", field="name")
    secret = KEY_PREFIX + secrets.token_urlsafe(32)
    key = ApiKey.objects.create(
        user=user,
        tenant=tenant,
        name=name,
        prefix=secret[:12],
        digest=key_digest(secret),
        scopes=scopes or list(SCOPES),
        expires_at=expires_at,
    )
    return key, secret


def create_own_api_key(
    *, actor: Actor, name: str, scopes: list[str] | None = None, expires_at: datetime | None = None
) -> tuple[ApiKey, str]:
    """A key of the actor's own; it never gets a scope that the actor's credential lacks. Raises Invalid, Forbidden."""
    if actor.role != "viewer":
        require_write(actor)
    wanted = scopes if scopes is not None else sorted(actor.scopes)
    beyond = sorted((set(wanted) & set(SCOPES)) - actor.scopes)
    if beyond:
        raise Forbidden(f"Your own credential has no scope {', '.join(beyond)}.", code="scope_missing", field="scopes")
    user = User.objects.filter(pk=actor.user_id).first()
    tenant = Tenant.objects.filter(pk=actor.tenant_id).first()
    if user is None or tenant is None:
        raise NotFound("The user or tenant is gone.")
    return create_api_key(user=user, tenant=tenant, name=name, scopes=wanted, expires_at=expires_at)


def revoke_own_api_key(*, actor: Actor, key_id: UUID) -> ApiKey:
    """Revoke a key of the actor's own, at once. Raises NotFound."""
    key = ApiKey.objects.filter(pk=key_id, user_id=actor.user_id, tenant_id=actor.tenant_id).first()
    if key is None:
        raise NotFound(f"There is no API key {quoted(str(key_id))}.")
    if key.revoked_at is None:
        key.revoked_at = timezone.now()
        key.save(update_fields=["revoked_at"])
    return key


def ensure_first_operator() -> str | None:
    """Make the first operator of a new installation; the random password, or None when operators exist."""
    with transaction.atomic():
        if User.objects.filter(is_staff=True).exists():
            return None
        password = secrets.token_urlsafe(12)
        create_user(username=OPERATOR_NAME, tenant_name=OPERATOR_TENANT, password=password, is_operator=True)
    return password


def next_tenant_number() -> int:
    """The number of a new tenant, from 1 on; numbers are not used twice while the highest one stays."""
    highest = Tenant.objects.aggregate(highest=Max("number"))["highest"]
    return int(highest or 0) + 1


def check_username(username: str) -> None:
    """Raises Invalid (``bad_name``)."""
    try:
        User.username_validator(username)
    except ValidationError as error:
        raise Invalid(f"username {quoted(username)}: {error.messages[0]}", code="bad_name", field="username") from error
    if not 1 <= len(username) <= 150:
        raise Invalid(
            f"username has {len(username)} characters; 1 to 150 are allowed.", code="bad_name", field="username"
        )


def check_password(password: str, user: User) -> None:
    """Raises Invalid (``bad_password``)."""
    try:
        validate_password(password, user)
    except ValidationError as error:
        raise Invalid(" ".join(error.messages), code="bad_password", field="password") from error


def require_grantable(actor: Actor, role: Role) -> None:
    """Only an owner grants or takes the role owner. Raises Forbidden."""
    if role == "owner" and actor.role != "owner":
        raise Forbidden(f"Only owners of {actor.tenant_name} may grant or take the role owner.")


def require_other_owner(membership: Membership) -> None:
    """Raises Conflict when the tenant would be left without an owner."""
    others = Membership.objects.filter(tenant=membership.tenant, role="owner").exclude(pk=membership.pk)
    if not others.exists():
        raise Conflict(f"{membership.tenant.name} needs an owner; make another member owner first.", code="last_owner")


def member_of(actor: Actor, username: str) -> Membership:
    """The membership of a user in the actor's tenant. Raises NotFound."""
    found = Membership.objects.filter(tenant_id=actor.tenant_id, user__username__iexact=username).first()
    if found is None:
        raise NotFound(f"{quoted(username)} is no member of {actor.tenant_name}.", field="username")
    return found
