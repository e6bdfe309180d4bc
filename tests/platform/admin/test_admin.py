"""The operators' admin: every list loads without a COUNT, actions go through the services, nobody else gets in."""

from __future__ import annotations

import pytest
from django.apps import apps
from django.contrib import admin
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from clavier.accounts.services import create_user
from clavier.images.models import ContainerImage
from clavier.runs.models import Run
from finetune_app.services import create_fine_tune_task
from inference_app.services import create_service
from tests.engine import make_engine
from tests.worlds import make_dataset, make_image_version, make_model_version, output_of

pytestmark = pytest.mark.django_db(transaction=True)

OURS = {"accounts", "files", "quotas", "runs", "api_native", "datasets_app", "models_app", "finetune_app",
        "evaluation_app", "inference_app", "images"}  # fmt: skip
MODELS = [model for model in apps.get_models() if model._meta.app_label in OURS]


@pytest.fixture
def engine(monkeypatch, home):
    made = make_engine(monkeypatch)
    made.will(runs_for_s=None)
    return made


@pytest.fixture
def operator(db):
    user, _ = create_user(username="olga", tenant_name="ops", password="olga-secret-1", is_operator=True)
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def task(engine, alice, spooled):
    base = make_model_version(alice)
    made = create_fine_tune_task(
        actor=alice, name="task", recipe="sft", method="lora", base_model=base.pk,
        train_dataset=make_dataset(alice, spooled).pk,
    )  # fmt: skip
    create_service(actor=alice, name="helper", model_version=base.pk, start=False)
    engine.step()
    return made


def address(model, page: str = "changelist", *words: object) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{page}", args=words)


def test_every_model_is_in_the_admin():
    reverse("admin:index")  # the pages are imported with the addresses
    assert [model._meta.label for model in MODELS if model not in admin.site._registry] == []


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m._meta.label)
def test_every_list_loads_searches_and_never_counts(task, operator, model):
    for query in ("", "?q=task"):
        with CaptureQueriesContext(connection) as queries:
            page = operator.get(address(model) + query)
        assert page.status_code == 200
        table = model._meta.db_table
        counted = [q["sql"] for q in queries if "COUNT(" in q["sql"].upper() and f'FROM "{table}"' in q["sql"]]
        assert counted == []
    for row in model.objects.all()[:1]:
        assert operator.get(address(model, "change", row.pk)).status_code == 200


@pytest.mark.parametrize("name", ["alice_user", "bob_user", "charlie_user", None])
def test_who_is_no_operator_does_not_get_in(request, task, name):
    client = Client()
    if name:
        client.force_login(request.getfixturevalue(name))
    for model in (Run, type(task)):
        page = client.get(address(model))
        assert page.status_code == 302
        assert "login" in page["Location"]


def test_an_operator_stops_a_run_and_the_event_names_her(engine, task, operator):
    run = Run.objects.get(kind="fine_tune")
    page = operator.post(address(Run), {"action": "stop", "_selected_action": [str(run.pk)]}, follow=True)
    assert page.status_code == 200
    engine.step(2)
    run.refresh_from_db()
    assert (run.state, run.end_reason) == ("STOPPED", "STOPPED_BY_OPERATOR")
    assert run.message == "Stopped by olga."


def test_an_operator_stops_and_retries_a_task_of_a_tenant(engine, task, operator):
    operator.post(address(type(task)), {"action": "stop", "_selected_action": [str(task.pk)]})
    engine.step(2)
    assert Run.objects.get(kind="fine_tune").state == "STOPPED"
    engine.will(files=output_of())
    operator.post(address(type(task)), {"action": "retry", "_selected_action": [str(task.pk)]})
    engine.step(2)
    runs = Run.objects.filter(kind="fine_tune").order_by("created_at")
    assert [run.state for run in runs] == ["STOPPED", "COMPLETED"]
    assert runs[1].tenant_id == task.tenant_id


def test_rows_of_services_can_not_be_edited_by_hand(task, operator):
    run = Run.objects.get(kind="fine_tune")
    operator.post(address(Run, "change", run.pk), {"state": "COMPLETED"})
    operator.post(address(Run, "delete", run.pk), {"post": "yes"})
    run.refresh_from_db()
    assert run.state == "RUNNING"


def test_an_operator_shares_images_and_stops_sharing_them(operator, alice):
    image = make_image_version(alice).image
    for action, expected in (("share", True), ("unshare", False)):
        given = {"action": action, "_selected_action": [str(image.pk)]}
        assert operator.post(address(ContainerImage), given).status_code == 302
        image.refresh_from_db()
        assert image.is_public is expected
