"""Object stores (S3) from which models are imported. Their secrets are sealed and never shown."""

from __future__ import annotations

import re
from urllib.parse import urlsplit
from uuid import UUID

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import QuerySet

from clavier.accounts.access import access_object, require_change, require_write
from clavier.core.actor import Actor
from clavier.core.errors import Conflict, Invalid, Unprocessable, quoted
from clavier.core.names import parse_display_name
from clavier.core.secrets import seal, unseal
from clavier.images.logins import RegistryLogin
from models_app.models import ObjectStore

#: ``store/bucket/prefix``
_LOCATION = re.compile(r"(?P<store>[^/]{1,100})/(?P<path>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](?:/[^\x00-\x1f]{1,900})?)")


def create_object_store(
    *, actor: Actor, name: str, endpoint_url: str, access_key: str, secret_key: str, region: str = ""
) -> ObjectStore:
    """A store under a name. Raises Invalid, Conflict (``already_exists``), Unprocessable (``host_not_allowed``)."""
    require_write(actor)
    name = parse_display_name(name)
    for field, value in (("access_key", access_key), ("secret_key", secret_key)):
        if not value or len(value) > 1000 or not value.isprintable():
            raise Invalid(f"{field} is empty, too long or has control characters.", code="bad_value", field=field)
    check_endpoint(endpoint_url)
    try:
        with transaction.atomic():
            return ObjectStore.objects.create(
                tenant_id=actor.tenant_id,
                created_by_id=actor.user_id,
                name=name,
                endpoint_url=endpoint_url.rstrip("/"),
                region=region,
                access_key=access_key,
                sealed_secret=seal(secret_key),
            )
    except IntegrityError as error:
        raise Conflict(f"An object store {quoted(name)} exists.", code="already_exists", field="name") from error


def delete_object_store(*, actor: Actor, store: ObjectStore) -> None:
    """Forget a store; what was imported from it stays. Raises Forbidden."""
    require_change(actor, store, noun="object store")
    store.delete()


def visible_stores(actor: Actor) -> QuerySet[ObjectStore]:
    """The tenant's object stores."""
    return ObjectStore.objects.filter(tenant_id=actor.tenant_id).select_related("created_by")


def access_object_store(actor: Actor, store_id: UUID | str) -> ObjectStore:
    """The tenant's object store. Raises NotFound."""
    return access_object(visible_stores(actor), actor, store_id, noun="object store")


def store_at(actor: Actor, location: str, *, field: str = "location") -> tuple[ObjectStore, str]:
    """The store and the ``bucket/prefix`` of ``store/bucket/prefix``. Raises Invalid."""
    found = _LOCATION.fullmatch(location.strip("/"))
    store = visible_stores(actor).filter(name=found["store"]).first() if found else None
    if found is None or store is None or ".." in location.split("/"):
        raise Invalid(
            f"{field} {quoted(location)} is no 'store/bucket/prefix' of an object store of yours.",
            code="bad_value",
            field=field,
        )
    check_endpoint(store.endpoint_url)
    return store, found["path"]


def login_of(store: ObjectStore) -> RegistryLogin:
    """What an import signs in with. Raises Conflict (``secret_lost``)."""
    return RegistryLogin(store.access_key, unseal(store.sealed_secret))


def check_endpoint(url: str) -> None:
    """Raises Invalid for what is no address, Unprocessable for a host that the operator has not allowed."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        host = ""
    if not host or parts.scheme not in ("http", "https") or parts.username or parts.query or parts.fragment:
        message = f"endpoint_url {quoted(url)} is no address such as 'https://s3.example'."
        raise Invalid(message, code="bad_value", field="endpoint_url")
    if f"{host}{port}" not in settings.OBJECT_STORE_HOSTS:
        allowed = ", ".join(settings.OBJECT_STORE_HOSTS) or "none"
        raise Unprocessable(
            f"endpoint_url: the host {quoted(host + port)} is not allowed here. Allowed: {allowed} "
            "(OBJECT_STORE_HOSTS, which the operator sets).",
            code="host_not_allowed",
            field="endpoint_url",
        )
