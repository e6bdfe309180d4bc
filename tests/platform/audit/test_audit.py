"""The audit log: who created, changed, deleted, started and stopped what; sign-ins; what operators did."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
from auditlog.diff import model_instance_diff
from auditlog.models import LogEntry
from django.test import Client
from rest_framework.test import APIClient

from clavier.accounts.models import User
from clavier.accounts.services import create_user
from clavier.core.actor import Actor
from clavier.quotas.services import ensure_local_node
from clavier.runs.models import Run
from finetune_app.models import FineTuneTask
from finetune_app.services import create_fine_tune_task, stop_fine_tune_task
from tests.api.conftest import client_of
from tests.api.native.conftest import make_dataset, make_model

pytestmark = pytest.mark.django_db


@pytest.fixture
def operator_user(db: None) -> User:
    """An operator of the platform."""
    return create_user(username="olga", tenant_name="operators", password="olga-secret-55", is_operator=True)[0]


@pytest.fixture
def alice_client(alice_user: User) -> APIClient:
    """Alice with a key."""
    return client_of(alice_user)


def entries(model: str, **filters: Any) -> list[LogEntry]:
    """Entries of a model, oldest first."""
    return list(LogEntry.objects.filter(content_type__model=model, **filters).order_by("pk"))


def events(name: str) -> list[LogEntry]:
    """Entries of a verb."""
    return [entry for entry in LogEntry.objects.order_by("pk") if (entry.additional_data or {}).get("event") == name]


def test_a_create_a_change_and_a_delete_name_the_user_of_the_key(alice_client: APIClient, alice_user: User) -> None:
    made = alice_client.post("/api/v1/datasets", {"name": "faq"}, format="json")
    url = f"/api/v1/datasets/{made.json()['id']}"
    alice_client.patch(url, {"license": "MIT"}, format="json")
    alice_client.delete(url)
    created, changed, deleted = entries("dataset")
    assert [entry.actor for entry in (created, changed, deleted)] == [alice_user] * 3
    assert [entry.action for entry in (created, changed, deleted)] == [0, 1, 2]
    assert changed.changes == {"license": ["", "MIT"]}
    assert created.cid == made["X-Request-Id"]


def test_the_address_is_the_sockets_and_no_header_of_the_client(alice_client: APIClient) -> None:
    headers = {"HTTP_X_FORWARDED_FOR": "10.9.8.7", "HTTP_X_REAL_IP": "10.9.8.7", "HTTP_X_FORWARDED_USER": "admin"}
    alice_client.post("/api/v1/datasets", {"name": "faq"}, format="json", **headers)
    assert entries("dataset")[0].remote_addr == "127.0.0.1"


def test_a_sign_in_is_an_entry(alice_user: User) -> None:
    Client().post("/accounts/login", {"username": "alice", "password": "alice-secret-1"})
    (entry,) = events("login")
    assert (entry.actor, entry.object_repr) == (alice_user, "alice")


def test_starting_and_stopping_are_entries(alice: Any) -> None:
    ensure_local_node()
    base, data = make_model(alice), make_dataset(alice)
    task = create_fine_tune_task(
        actor=alice, name="tune", recipe="sft", method="lora", base_model=base.pk, train_dataset=data.pk
    )
    stop_fine_tune_task(actor=alice, task=task)
    assert [entry.action for entry in entries("run")] == [0, 1]
    (stopped,) = events("stop")
    assert stopped.changes == {"state": ["PENDING", "STOPPED"]}


def test_every_use_of_an_operators_key_is_an_entry_and_nobody_elses(
    operator_user: User, alice_client: APIClient
) -> None:
    client_of(operator_user).get("/api/v1/datasets")
    alice_client.get("/api/v1/datasets")
    (entry,) = events("key_use")
    assert entry.actor == operator_user
    assert (entry.additional_data["path"], entry.additional_data["method"]) == ("/api/v1/datasets", "GET")


def test_what_an_operator_does_for_a_user_says_both_names(operator_user: User, alice_user: User, settings: Any) -> None:
    client = client_of(operator_user)
    body = {"file": io.BytesIO(b"x")}
    client.post("/api/file/file/uploadFolder", body, HTTP_X_ACT_AS="alice")
    (said,) = events("act_for")
    (stored,) = entries("storedfile")
    assert (said.actor, said.object_repr) == (operator_user, "alice")
    assert (stored.actor, stored.additional_data) == (operator_user, {"acting_for": "alice"})
    client.post("/kernel/fineTune/listLlmFineTuneTask", {"userId": "alice"}, format="json")
    (refused,) = events("identity_mismatch")
    assert refused.actor == operator_user


def test_no_secret_is_in_the_log(operator_user: User, alice_user: User) -> None:
    client_of(alice_user)
    alice_user.set_password("another-secret-77")
    alice_user.save()
    text = json.dumps([[entry.changes, entry.additional_data] for entry in LogEntry.objects.all()])
    (changed,) = [entry for entry in entries("user", action=1) if entry.object_pk == str(alice_user.pk)]
    assert changed.changes == {"password": ["***", "***"]}
    assert "digest" in text
    assert "md5$" not in text


def test_operators_see_the_log_and_take_it_away_as_csv(operator_user: User, alice_client: APIClient) -> None:
    alice_client.post("/api/v1/datasets", {"name": "客服", "description": "=1+1"}, format="json")
    admin = Client()
    admin.force_login(operator_user)
    page = admin.get("/admin/auditlog/logentry/")
    assert page.status_code == 200
    assert "客服" in page.content.decode()
    export = admin.get("/admin/auditlog/logentry/export/")
    assert export["Content-Disposition"] == 'attachment; filename="audit.csv"'
    rows = list(csv.DictReader(io.StringIO(b"".join(export.streaming_content).decode("utf-8-sig"))))
    made = next(row for row in rows if row["object"] == "客服")
    assert (made["user"], made["action"], made["object type"]) == ("alice", "create", "Datasets | data set")


def test_nobody_but_operators_sees_the_log(alice_user: User) -> None:
    client = Client()
    client.force_login(alice_user)
    assert client.get("/admin/auditlog/logentry/").status_code == 302
    assert client.get("/admin/auditlog/logentry/export/").status_code in (302, 403)


def test_the_secret_of_an_object_store_is_not_in_the_log(alice_client: APIClient, settings: Any) -> None:
    settings.OBJECT_STORE_HOSTS = ["s3.example"]
    body = {"name": "store", "endpoint_url": "https://s3.example", "access_key": "AKIA1", "secret_key": "s3cret-value"}
    made = alice_client.post("/api/v1/object-stores", body, format="json")
    assert made.status_code == 201, made.content
    (entry,) = entries("objectstore")
    assert (entry.changes["access_key"][1], entry.changes["sealed_secret"][1]) == ("***", "***")
    assert "s3cret" not in json.dumps(entry.changes)


def test_an_entry_asks_for_no_row_that_points_at_its_own(alice: Actor, django_assert_num_queries: Any) -> None:
    ensure_local_node()
    task = create_fine_tune_task(
        actor=alice, name="tune", recipe="sft", method="lora", base_model=make_model(alice).pk,
        train_dataset=make_dataset(alice).pk,
    )  # fmt: skip
    with django_assert_num_queries(0):
        changes = [model_instance_diff(None, FineTuneTask(pk=task.pk)), model_instance_diff(None, Run(pk=task.run_id))]
    assert all(changed and not {"search_trial", "folder", "model_version"} & set(changed) for changed in changes)
