"""Operators set caps and windows by name in the admin, and mistakes are told in words."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from clavier.accounts.services import create_user
from clavier.core.actor import Actor
from clavier.quotas.models import Gpu, Node, QuotaWindow, Usage
from clavier.quotas.services import count_devices, ensure_local_node

pytestmark = pytest.mark.django_db

ADD_CAP, ADD_WINDOW = "admin:quotas_usage_add", "admin:quotas_quotawindow_add"


@pytest.fixture
def operator(home: object) -> Client:
    user, _ = create_user(username="olga", tenant_name="ops", password="olga-secret-1", is_operator=True)
    client = Client()
    client.force_login(user, backend="django.contrib.auth.backends.ModelBackend")
    return client


def test_a_cap_is_set_by_the_name_of_its_owner_and_again(operator: Client, alice: Actor) -> None:
    form = {"scope": "tenant", "name": "one", "resource": "gpus", "cap": "4"}
    assert operator.post(reverse(ADD_CAP), form).status_code == 302
    row = Usage.objects.get(scope="tenant")
    assert (row.scope_id, row.resource, row.cap) == (alice.tenant_id, "gpus", 4)
    assert operator.post(reverse(ADD_CAP), form | {"cap": "5"}).status_code == 302, "the same cap, set anew"
    change = reverse("admin:quotas_usage_change", args=[row.pk])
    page = operator.get(change).content.decode()
    assert "one" in page
    assert operator.post(change, {"cap": "6", "scope": "user", "name": "alice"}).status_code == 302
    row.refresh_from_db()
    assert (row.scope, row.cap) == ("tenant", 6), "whose it is does not change"


def test_an_owner_who_is_not_there_is_told(operator: Client, alice: Actor) -> None:
    page = operator.post(reverse(ADD_CAP), {"scope": "user", "name": "nobody", "resource": "gpus", "cap": "4"})
    assert page.status_code == 200
    assert "There is no user" in page.content.decode()
    assert not Usage.objects.filter(scope="user").exists()


def test_a_window_is_set_and_replaced_and_has_to_be_in_order(operator: Client, alice: Actor) -> None:
    def window(start: str, end: str) -> dict[str, str]:
        return {"scope": "user", "name": "alice", "valid_from_0": start, "valid_from_1": "00:00:00",
                "valid_until_0": end, "valid_until_1": "00:00:00"}  # fmt: skip

    assert operator.post(reverse(ADD_WINDOW), window("2026-01-01", "2026-02-01")).status_code == 302
    assert operator.post(reverse(ADD_WINDOW), window("2026-03-01", "2026-04-01")).status_code == 302
    assert QuotaWindow.objects.get().valid_until.month == 4
    page = operator.post(reverse(ADD_WINDOW), window("2026-04-01", "2026-03-01"))
    assert "not after the start" in page.content.decode()


def test_a_gpu_that_is_switched_off_is_no_longer_counted(operator: Client) -> None:
    node = ensure_local_node()
    gpu = Gpu.objects.create(uuid="GPU-0", node=node, memory_mib=80_000)
    count_devices(node)
    operator.post(reverse("admin:quotas_gpu_change", args=[gpu.pk]), {"allows_sharing": "on"})
    assert not Gpu.objects.get().is_healthy
    assert Usage.objects.get(scope="node", resource="gpus").cap == 0


def test_a_new_node_has_no_gpus_and_not_any_number_of_them(operator: Client) -> None:
    group = ensure_local_node().resource_group
    form = {"name": "n2", "resource_group": str(group.pk), "executor": "fake", "is_schedulable": "on"}
    assert operator.post(reverse("admin:quotas_node_add"), form).status_code == 302
    assert Usage.objects.get(scope_id=Node.objects.get(name="n2").pk, resource="gpus").cap == 0
