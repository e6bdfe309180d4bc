"""4.5, 5.5, 8. What is left of resources and storage."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from auditlog.models import LogEntry
from rest_framework.test import APIClient

from clavier.accounts.models import User
from clavier.core.actor import Actor
from clavier.files.usage import set_storage_limits
from clavier.quotas.models import QuotaWindow
from clavier.quotas.services import set_cap
from tests.api.legacy.conftest import ENGLISH, failure, form, payload

REMAIN, QUOTA = "/system/config/getRemainResource", "/resource/configRemake/getQuotaRemainResource"


def ask(client: APIClient, route: str, **body: Any) -> Any:
    """The payload of a JSON request."""
    return payload(client.post(route, body, format="json"))


@pytest.mark.parametrize("route", [REMAIN, f"/api{REMAIN}"])
def test_what_is_left_is_the_least_of_all_caps(alice_client: APIClient, alice: Actor, node: None, route: str) -> None:
    assert ask(alice_client, route, userId="alice")["isInitConfig"] is True
    set_cap(scope="tenant", scope_id=alice.tenant_id, resource="cpu_milli", cap=1500)
    set_cap(scope="user", scope_id=alice.user_id, resource="memory_mib", cap=512)
    set_cap(scope="user", scope_id=alice.user_id, resource="running_runs", cap=3)
    found = ask(alice_client, route, userId=str(alice.user_id))
    assert (found["remainCpu"], found["remainMemory"], found["remainMerory"]) == (1, 0.5, 0.5)
    assert (found["remainJobNum"], found["remainGpu"], found["isInitConfig"]) == (3, 0, False)
    assert (found["startTime"], found["endTime"]) == (None, None)


def test_the_window_of_the_quota_is_shown(alice_client: APIClient, alice: Actor) -> None:
    QuotaWindow.objects.create(
        scope="tenant", scope_id=alice.tenant_id, valid_from=datetime(2023, 10, 23, tzinfo=UTC),
        valid_until=datetime(2023, 11, 30, 23, 59, 59, tzinfo=UTC),
    )  # fmt: skip
    found = ask(alice_client, REMAIN)
    assert (found["startTime"], found["endTime"]) == ("2023-10-23 00:00:00", "2023-11-30 23:59:59")
    assert ask(alice_client, QUOTA)["endTime"] == "2023-11-30 23:59:59"


@pytest.mark.parametrize("spelling", ["uid", "uId"])
def test_storage_is_told_in_texts(alice_client: APIClient, spelling: str) -> None:
    payload(alice_client.post("/api/file/file/uploadFolder", **form(currentPath="data")))
    found = ask(alice_client, QUOTA, userId="alice", **{spelling: 2004})
    assert (found["inodeQuota"], found["inodeUsed"], found["inodeRemain"]) == ("1000000", "2", "999998")
    assert (found["blockQuota"], found["blockUsed"]) == ("100.00GiB", "0.00GiB")
    assert (found["startTime"], found["endTime"], found["initConfig"]) == ("无限制", "无限制", True)


def test_a_limit_of_the_tenant_counts_and_is_told_of(alice_client: APIClient, alice: Actor) -> None:
    set_storage_limits(tenant_id=alice.tenant_id, bytes_limit=3 << 29, inodes_limit=7)
    found = ask(alice_client, QUOTA)
    assert (found["inodeRemain"], found["blockRemain"], found["initConfig"]) == ("7", "1.50GiB", False)
    told = LogEntry.objects.get(additional_data__event="set_quota")
    assert told.changes == {"bytes_limit": ["None", str(3 << 29)], "inodes_limit": ["None", "7"]}


def test_messages_are_those_of_the_document(alice_client: APIClient) -> None:
    assert alice_client.post(REMAIN).json()["message"] == "获取剩余资源成功"
    assert alice_client.post(QUOTA).json()["message"] == "查询成功"
    assert "left" in alice_client.post(REMAIN, **ENGLISH).json()["message"]


def test_charlie_learns_nothing_of_alice(charlie_client: APIClient, alice_user: User) -> None:
    for route in (REMAIN, QUOTA):
        real = charlie_client.post(route, {"userId": str(alice_user.pk)}, format="json")
        message = failure(real, 403, "identity_mismatch", "userId")
        unknown = charlie_client.post(route, {"userId": "7"}, format="json")
        assert failure(unknown, 403, "identity_mismatch", "userId") == message
