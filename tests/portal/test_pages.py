"""Every page and feed, for the owner, a member, a stranger and nobody."""

from __future__ import annotations

from uuid import uuid4

import pytest
from django.urls import URLPattern, reverse

from clavier.portal.urls import urlpatterns
from finetune_app.models import HyperparameterSearch
from models_app.models import ObjectStore

LISTS = [
    "dashboard", "dashboard_body", "datasets", "dataset_new", "models", "model_rows", "model_new", "tasks", "task_rows",
    "task_new", "searches", "search_new", "own_task_new",
    "evaluations", "evaluation_rows", "evaluation_new", "own_evaluation_new", "services",
    "service_rows", "service_new", "files",
    "settings", "data_plugins", "data_plugin_new", "images", "image_rows", "image_new", "resources", "resources_body",
]  # fmt: skip
OBJECTS = {
    "dataset": lambda w: [w.data.dataset_id],
    "dataset_version_rows": lambda w: [w.data.pk],
    "dataset_version_download": lambda w: [w.data.pk],
    "dataset_work": lambda w: [w.data.dataset_id],
    "dataset_task_rows": lambda w: [w.data.dataset_id],
    "model": lambda w: [w.tuned.model_id],
    "model_versions": lambda w: [w.tuned.model_id],
    "model_version_download": lambda w: [w.tuned.pk],
    "image": lambda w: [w.image.image_id],
    "image_versions": lambda w: [w.image.image_id],
    "task": lambda w: [w.live.pk],
    "task_status": lambda w: [w.live.pk],
    "task_metrics": lambda w: [w.live.pk],
    "task_log": lambda w: [w.live.pk],
    "task_log_file": lambda w: [w.live.pk],
    "task_config_file": lambda w: [w.live.pk],
    "search": lambda w: [search_of(w).pk],
    "evaluation": lambda w: [w.evaluation.pk],
    "evaluation_status": lambda w: [w.evaluation.pk],
    "evaluation_log": lambda w: [w.evaluation.pk],
    "evaluation_log_file": lambda w: [w.evaluation.pk],
    "service": lambda w: [w.service.pk],
    "service_status": lambda w: [w.service.pk],
    "service_chat": lambda w: [w.service.pk],
    "service_log": lambda w: [w.service.pk, w.replica.pk],
    "service_log_file": lambda w: [w.service.pk, w.replica.pk],
    "file_download": lambda w: [w.file.pk],
}


def store_of(world):
    """An object store of Alice's."""
    columns = {"endpoint_url": "https://s3.example", "access_key": "k", "sealed_secret": "s"}
    owner = {"tenant": world.base.tenant, "created_by": world.base.created_by}
    return ObjectStore.objects.get_or_create(name="lake", **owner, defaults=columns)[0]


def search_of(world):
    """A search of Alice's."""
    columns = {"task": {}, "space": {}, "num_trials": 1}
    owner = {"tenant": world.base.tenant, "created_by": world.base.created_by}
    return HyperparameterSearch.objects.get_or_create(name="rates", **owner, defaults=columns)[0]


ACTIONS = {
    "dataset_delete": lambda w: [w.data.dataset_id],
    "dataset_version_clean": lambda w: [w.data.pk],
    "dataset_version_split": lambda w: [w.data.pk],
    "dataset_version_delete": lambda w: [w.data.pk],
    "dataset_fetch": lambda w: [w.data.dataset_id],
    "dataset_generate": lambda w: [w.data.dataset_id],
    "dataset_version_tokens": lambda w: [w.data.pk],
    "dataset_version_overlap": lambda w: [w.data.pk],
    "data_task_stop": lambda w: [w.data_task.pk],
    "data_task_delete": lambda w: [w.data_task.pk],
    "data_plugin_delete": lambda w: [w.plugin.pk],
    "model_delete": lambda w: [w.base.model_id],
    "model_version_export": lambda w: [w.base.pk],
    "model_version_cancel": lambda w: [w.base.pk],
    "model_version_delete": lambda w: [w.base.pk],
    "image_import_archive": lambda w: [w.image.image_id],
    "image_import_registry": lambda w: [w.image.image_id],
    "image_share": lambda w: [w.image.image_id],
    "image_version_cancel": lambda w: [w.image.pk],
    "image_version_delete": lambda w: [w.image.pk],
    "image_delete": lambda w: [w.image.image_id],
    "task_start": lambda w: [w.waiting.pk],
    "task_stop": lambda w: [w.live.pk],
    "task_remedy": lambda w: [w.done.pk],
    "task_retry": lambda w: [w.done.pk],
    "task_delete": lambda w: [w.done.pk],
    "search_stop": lambda w: [search_of(w).pk],
    "search_delete": lambda w: [search_of(w).pk],
    "evaluation_stop": lambda w: [w.evaluation.pk],
    "evaluation_retry": lambda w: [w.evaluation.pk],
    "evaluation_delete": lambda w: [w.evaluation.pk],
    "service_start": lambda w: [w.service.pk],
    "service_stop": lambda w: [w.service.pk],
    "service_delete": lambda w: [w.service.pk],
    "file_extract": lambda w: [w.file.pk],
    "file_delete": lambda w: [w.file.pk],
    "store_delete": lambda w: [store_of(w).pk],
    "key_revoke": lambda w: [uuid4()],
    "member_role": lambda w: ["nobody"],
    "member_remove": lambda w: ["nobody"],
}
FORMS = ["task_config", "task_estimate", "file_upload", "folder_new", "key_new", "store_new", "member_new"]
NAMES = ["tune-live", "faq-bot", "faq-judge", "笔记", "faq v1"]


def url(name, world=None):
    return reverse(f"portal:{name}", args=(OBJECTS | ACTIONS)[name](world) if name in OBJECTS | ACTIONS else [])


def test_every_address_of_the_portal_is_in_these_tests():
    known = {pattern.name for pattern in urlpatterns if isinstance(pattern, URLPattern)}
    assert known == {*LISTS, *OBJECTS, *ACTIONS, *FORMS, "login", "logout"}


def test_alice_and_bob_see_every_page_of_their_tenant(alice_browser, bob_browser, world):
    shared = [name for name in [*LISTS, *OBJECTS] if name != "file_download"]
    for browser, names in ((alice_browser, [*LISTS, *OBJECTS]), (bob_browser, shared)):
        for name in names:
            response = browser.get(url(name, world))
            expected = 204 if name.endswith("_status") else 200
            assert response.status_code == expected, (name, getattr(response, "content", b"")[-800:])


def test_bob_can_not_open_the_private_file_of_alice(bob_browser, world):
    assert bob_browser.get(url("file_download", world)).status_code == 404


def test_charlie_sees_empty_lists_and_no_object_of_alice(charlie_browser, world):
    for name in LISTS:
        response = charlie_browser.get(url(name))
        assert response.status_code == 200, name
        assert not [word for word in NAMES if word in response.content.decode()], name
    for name in OBJECTS:
        assert charlie_browser.get(url(name, world)).status_code == 404, name


def test_charlie_can_not_act_on_any_object_of_alice(charlie_browser, world):
    for name in ACTIONS:
        assert charlie_browser.post(url(name, world)).status_code == 404, name


def test_vera_the_viewer_sees_everything_and_may_change_nothing(vera_browser, world):
    for name in LISTS:
        assert vera_browser.get(url(name)).status_code == 200, name
    for name in set(ACTIONS) - {"file_delete", "file_extract", "key_revoke"}:
        assert vera_browser.post(url(name, world)).status_code == 403, name
    page = vera_browser.get(url("task", world)).content.decode()
    assert url("task_stop", world) not in page


def test_nobody_is_sent_to_the_sign_in(anonymous, world):
    for name in [*LISTS, *OBJECTS]:
        response = anonymous.get(url(name, world))
        if name in ("task_metrics", "task_log", "evaluation_log", "service_log"):
            assert response.status_code == 401, name
        else:
            assert (response.status_code, response["Location"].split("?")[0]) == (302, "/accounts/login"), name
    for name in ACTIONS:
        assert anonymous.post(url(name, world))["Location"].startswith("/accounts/login"), name


def test_a_poll_after_the_session_ended_loads_the_page_again(anonymous, world):
    response = anonymous.get(url("task_rows"), headers={"HX-Request": "true"})
    assert (response.status_code, response["HX-Refresh"]) == (204, "true")


def test_actions_answer_post_only(alice_browser, world):
    for name in [*ACTIONS, *FORMS]:
        assert alice_browser.get(url(name, world)).status_code == 405, name


def test_forms_need_the_csrf_token(alice_user, world):
    from django.test import Client

    client = Client(enforce_csrf_checks=True)
    client.force_login(alice_user, backend="django.contrib.auth.backends.ModelBackend")
    response = client.post(url("task_stop", world))
    assert response.status_code == 403
    assert "out of date" in response.content.decode()


@pytest.mark.parametrize("path", ["/", "/tasks", "/tasks/new", "/datasets/new", "/settings"])
def test_pages_bring_no_script_or_style_of_their_own(alice_browser, path, world):
    response = alice_browser.get(path)
    html = response.content.decode()
    assert "default-src 'self'" in response["Content-Security-Policy"]
    assert "unsafe" not in response["Content-Security-Policy"]
    assert " style=" not in html
    assert "<style" not in html
    assert " onclick=" not in html
    assert html.count("<script") == html.count("<script src=") + html.count('<script type="module" src=')


def test_an_error_page_says_what_is_wrong_with_the_request_id(alice_browser, world):
    response = alice_browser.post(url("task_delete", world), headers={"Referer": "http://testserver/tasks"})
    html = response.content.decode()
    assert response.status_code == 409
    assert "made the model version" in html
    assert response["X-Request-Id"] in html


def test_chinese_readers_get_chinese_pages(alice_browser, world):
    alice_browser.post("/i18n/setlang/", {"language": "zh-hans"})
    html = alice_browser.get("/tasks").content.decode()
    assert "训练任务" in html
    assert "已完成" in html
    assert 'lang="zh-hans"' in html


def test_the_catalogue_is_compiled_and_complete():
    import gettext
    import re
    from pathlib import Path

    folder = Path(__file__).parents[2] / "templates/locale/zh_Hans/LC_MESSAGES"
    text = (folder / "django.po").read_text(encoding="utf-8")
    assert "fuzzy" not in text
    with open(folder / "django.mo", "rb") as stream:
        compiled = gettext.GNUTranslations(stream)
    entries = re.findall(r'^msgid "(.+)"\n(?:msgid_plural .*\n)?msgstr(?:\[0\])? "(.*)"', text, re.M)
    assert len(entries) > 300
    for source, translated in entries:
        if "\\" not in source:
            assert translated == (compiled.gettext(source) if "warning" not in source else translated) != ""


def test_the_sign_in_leads_on_and_locks_after_too_many_wrong_passwords(anonymous, alice_user, settings):
    settings.AXES_FAILURE_LIMIT = 3
    right = {"username": "alice", "password": "alice-secret-1", "next": "/tasks"}
    assert anonymous.post("/accounts/login", right)["Location"] == "/tasks"
    anonymous.post("/accounts/logout")
    wrong = right | {"password": "guess"}
    assert "wrong" in anonymous.post("/accounts/login", wrong).content.decode()
    anonymous.post("/accounts/login", wrong)
    locked = anonymous.post("/accounts/login", wrong)
    assert locked.status_code == 429
    assert "Too many wrong passwords" in locked.content.decode()


def test_the_sign_in_never_leads_to_another_site(anonymous, alice_user):
    data = {"username": "alice", "password": "alice-secret-1", "next": "https://evil.example/"}
    assert anonymous.post("/accounts/login", data)["Location"] == "/"


def test_a_user_without_a_tenant_is_told_so(db, home):
    from clavier.accounts.models import User
    from tests.portal.conftest import browser_of

    response = browser_of(User.objects.create_user("loner", password="x")).get("/")
    assert response.status_code == 403
    assert "no active tenant" in response.content.decode()
