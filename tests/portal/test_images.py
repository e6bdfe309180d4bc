"""Pages of container images: forms, sharing, what a failed or foreign import shows."""

from __future__ import annotations

import json

import pytest

from clavier.images.models import ContainerImage, ImageVersion
from clavier.runs.models import Run
from clavier.runs.outputs import run_folder
from clavier.runs.services import transition
from clavier.runs.states import EndReason, RunState
from tests.portal.test_forms import errors_of
from tests.worlds import make_image_version

pytestmark = pytest.mark.django_db


@pytest.fixture
def image(alice):
    return make_image_version(alice, "team/train", layers=[{"diff_id": "sha256:1", "size_bytes": 1}]).image


def archive(alice, spooled, name="busybox.tar"):
    from clavier.files.services import upload_file

    return upload_file(actor=alice, area="private", folder="", name=name, upload=spooled(b"0123456789", name))


def test_an_image_is_registered(alice_browser):
    given = {"name": "dzq/45", "overview": "for training", "labels": "nlp，大模型"}
    answer = alice_browser.post("/images/new", given)
    image = ContainerImage.objects.get()
    assert answer["Location"] == f"/images/{image.pk}"
    assert image.labels == ["nlp", "大模型"]
    assert "No tags yet" in alice_browser.get(answer["Location"]).content.decode()
    assert "lower-case" in errors_of(alice_browser.post("/images/new", {"name": "Dzq"}))[0]


def test_a_tag_is_imported_from_an_upload_and_shows_its_progress(alice_browser, alice, node, spooled, image):
    file = archive(alice, spooled)
    page = alice_browser.get(f"/images/{image.pk}").content.decode()
    assert "private/busybox.tar · 10 B" in page
    given = {"archive-tag": "2", "archive-file": str(file.pk)}
    assert alice_browser.post(f"/images/{image.pk}/import-archive", given).status_code == 302
    version = ImageVersion.objects.get(tag="2")
    folder = run_folder(version.run_id)
    folder.mkdir(parents=True)
    events = [
        {"kind": "phase", "message": "reading busybox.tar"},
        {"kind": "progress", "step": 3, "total_steps": 10},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    shown = alice_browser.get(f"/images/{image.pk}/versions").content.decode()
    assert "reading busybox.tar" in shown
    assert '<progress max="10" value="3"' in shown
    assert 'hx-trigger="every 2s"' in shown
    alice_browser.post(f"/images/versions/{version.pk}/cancel")
    version.refresh_from_db()
    assert version.state == "failed"
    assert 'hx-trigger="every' not in alice_browser.get(f"/images/{image.pk}/versions").content.decode()


def test_a_refused_import_is_said_beside_the_field(alice_browser, alice, node, spooled, image):
    file = archive(alice, spooled)
    given = {"archive-tag": "1", "archive-file": str(file.pk)}
    answer = alice_browser.post(f"/images/{image.pk}/import-archive", given)
    assert answer.status_code == 409
    assert "always means one content" in errors_of(answer)[0]
    answer = alice_browser.post(f"/images/{image.pk}/import-archive", {"archive-tag": "a b", "archive-file": "x"})
    assert answer.status_code == 400
    assert len(errors_of(answer)) == 1


def test_a_tag_is_imported_from_a_registry_and_the_password_never_comes_back(alice_browser, node, image):
    given = {"registry-tag": "2", "registry-reference": "app", "registry-username": "r", "registry-password": "s3cret"}
    refused = alice_browser.post(f"/images/{image.pk}/import-registry", given)
    assert "names no registry" in errors_of(refused)[0]
    assert "s3cret" not in refused.content.decode()
    given["registry-reference"] = "hub.example/team/app:2"
    assert alice_browser.post(f"/images/{image.pk}/import-registry", given).status_code == 302
    assert ImageVersion.objects.get(tag="2").location == "hub.example/team/app:2"


def test_a_failed_import_says_why(alice_browser, node, image):
    given = {"registry-tag": "2", "registry-reference": "hub.example/a:1"}
    alice_browser.post(f"/images/{image.pk}/import-registry", given)
    assert transition(
        Run.objects.get(), RunState.FAILED, reason=EndReason.EXIT_NONZERO, message="There is no a:1 on https://hub."
    )
    assert "There is no a:1" in alice_browser.get(f"/images/{image.pk}").content.decode()


def test_an_operator_shares_an_image_and_strangers_see_but_do_not_change_it(
    alice_browser, alice_user, charlie_browser, image
):
    page = f"/images/{image.pk}"
    assert "Share with all" not in alice_browser.get(page).content.decode()
    assert alice_browser.post(f"{page}/share", {"is_public": "true"}).status_code == 403
    alice_user.is_staff = True
    alice_user.save()
    assert "Share with all" in alice_browser.get(page).content.decode()
    alice_browser.post(f"{page}/share", {"is_public": "true"})
    shown = charlie_browser.get(page).content.decode()
    assert "team/train:1" in shown
    assert "Import" not in shown.split("<main", 1)[1]
    assert charlie_browser.post(f"{page}/delete").status_code == 403
    assert "team/train" in charlie_browser.get("/images").content.decode()
