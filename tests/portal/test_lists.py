"""Lists: how many queries they cost however long they are, search, filters, pages, polling."""

from __future__ import annotations

import pytest

from clavier.portal.templatetags import portal_format
from datasets_app.models import Dataset
from models_app.models import ModelVersion, RegisteredModel
from tests.portal.conftest import make_task

#: Session, user and membership come first.
SIGN_IN = 3


@pytest.mark.parametrize(
    ("path", "queries"),
    [
        ("/datasets", SIGN_IN + 2),
        ("/models", SIGN_IN + 2),
        ("/images", SIGN_IN + 2),
        ("/tasks", SIGN_IN + 1),
        ("/tasks/searches", SIGN_IN + 1),
        ("/evaluations", SIGN_IN + 2),
        ("/services", SIGN_IN + 3),
        ("/files", SIGN_IN + 2),
        ("/settings", SIGN_IN + 5),
    ],
)
def test_a_list_costs_the_same_queries_however_long_it_is(
    alice_browser, alice, world, django_assert_num_queries, path, queries
):
    with django_assert_num_queries(queries):
        alice_browser.get(path)
    for number in range(4):
        make_task(alice, world.base, world.data, f"more-{number}")
        model = RegisteredModel.objects.create(
            tenant_id=alice.tenant_id, created_by_id=alice.user_id, name=f"m{number}"
        )
        ModelVersion.objects.create(
            tenant_id=alice.tenant_id, created_by_id=alice.user_id, model=model, number=1, state="ready", source="path"
        )
    with django_assert_num_queries(queries):
        alice_browser.get(path)


def test_tasks_are_found_by_state_and_by_words(alice_browser, world):
    def found(query):
        html = alice_browser.get(f"/tasks?{query}").content.decode()
        return [name for name in ("tune-done", "tune-live", "tune-waiting") if name in html]

    assert found("") == ["tune-done", "tune-live", "tune-waiting"]
    assert found("state=RUNNING") == ["tune-live"]
    assert found("search=waiting") == ["tune-waiting"]
    assert found("search=nothing-like-it") == []


def test_a_long_list_has_pages_that_keep_the_filter(alice_browser, alice, world):
    for number in range(30):
        make_task(alice, world.base, world.data, f"many-{number:02}", start=False)
    first = alice_browser.get("/tasks?search=many").content.decode()
    assert first.count("/tasks/") >= 25
    assert "?search=many&amp;page=2" in first
    second = alice_browser.get("/tasks?search=many&page=2").content.decode()
    assert "many-04" in second
    assert "many-05" not in second
    assert "?search=many&amp;page=1" in second


def test_rows_are_polled_only_while_something_is_live(alice_browser, world):
    assert "hx-trigger" in alice_browser.get("/tasks").content.decode()
    assert "hx-trigger" not in alice_browser.get("/tasks?state=COMPLETED").content.decode()


def test_a_page_number_that_is_none_shows_the_first_page(alice_browser, world):
    for number in ("x", "-4", "0", "9" * 40, "²"):
        assert alice_browser.get("/tasks", {"page": number}).status_code == 200


def test_an_empty_tenant_is_told_what_to_do_first(charlie_browser):
    assert "No datasets yet" in charlie_browser.get("/datasets").content.decode()
    assert "No models yet" in charlie_browser.get("/models").content.decode()
    assert "No tasks yet" in charlie_browser.get("/tasks").content.decode()
    assert "No evaluations yet" in charlie_browser.get("/evaluations").content.decode()
    assert "No services yet" in charlie_browser.get("/services").content.decode()


def test_what_has_no_version_yet_is_listed_and_shown(alice_browser, alice):
    owned = {"tenant_id": alice.tenant_id, "created_by_id": alice.user_id}
    dataset = Dataset.objects.create(name="bare-data", **owned)
    model = RegisteredModel.objects.create(name="bare-model", **owned)
    for path in ("/datasets", f"/datasets/{dataset.pk}", "/models", f"/models/{model.pk}"):
        response = alice_browser.get(path)
        assert response.status_code == 200, path
        assert "bare-" in response.content.decode()


def test_numbers_are_written_as_people_read_them():
    assert [portal_format.count(number) for number in (0, 7.5, 12099, 18730.4, None, "")] == [
        "0", "7.5", "12,099", "18,730", "–", "–",
    ]  # fmt: skip
    assert [portal_format.score(number) for number in (0.98, 7.884, 92.9393, "")] == ["0.9800", "7.8840", "92.94", "–"]
    assert [portal_format.signed(number) for number in (0.5, -92.9393, "")] == ["+0.5000", "-92.94", "–"]
