"""Clients with real API keys: Alice owns tenant one, Bob and a viewer are in it, Charlie is a stranger."""

from __future__ import annotations

import pytest
from rest_framework.test import APIClient

from clavier.accounts.models import Membership, User
from clavier.accounts.services import create_api_key, create_user
from clavier.quotas.services import ensure_local_node


def client_of(user: User, scopes: list[str] | None = None) -> APIClient:
    """A client that sends a new API key of the user's default tenant."""
    membership = Membership.objects.select_related("tenant").get(user=user, is_default=True)
    _, secret = create_api_key(user=user, tenant=membership.tenant, name="tests", scopes=scopes)
    client = APIClient(raise_request_exception=False)
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {secret}")
    return client


@pytest.fixture(autouse=True)
def _no_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue is only an alarm clock, and nobody sleeps here."""
    monkeypatch.setattr("clavier.runs.queue.enqueue", lambda *job: False)


@pytest.fixture
def node(db: None) -> None:
    """A node on which runs could start; no scheduler runs, so they stay PENDING."""
    ensure_local_node()


@pytest.fixture
def alice_client(alice_user: User) -> APIClient:
    """Owner of tenant one."""
    return client_of(alice_user)


@pytest.fixture
def bob_client(bob_user: User) -> APIClient:
    """Member of tenant one."""
    return client_of(bob_user)


@pytest.fixture
def viewer_client(alice_user: User) -> APIClient:
    """Viewer of tenant one."""
    return client_of(create_user(username="vera", tenant_name="one", password="vera-secret-4", role="viewer")[0])


@pytest.fixture
def charlie_client(charlie_user: User) -> APIClient:
    """Stranger: owner of tenant two."""
    return client_of(charlie_user)


@pytest.fixture
def operator_client(db: None) -> APIClient:
    """Who runs the installation, with a tenant of her own."""
    return client_of(create_user(username="olga", tenant_name="ops", password="olga-secret-5", is_operator=True)[0])


@pytest.fixture
def anonymous_client(db: None) -> APIClient:
    """Nobody."""
    return APIClient(raise_request_exception=False)
