"""Images through the services: import by a run, sharing, deletion, storage, and what strangers see."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile

from clavier.core.errors import Conflict, Forbidden, Invalid, NotFound, StorageFull, TooLarge
from clavier.files.models import StorageUsage
from clavier.files.queries import storage_usage
from clavier.files.services import create_folder, upload_file
from clavier.images import services
from clavier.images.access import access_image, access_image_version, find_image_version, image_of_run
from clavier.images.logins import RegistryLogin, login_path
from clavier.images.models import ContainerImage, ImageVersion
from clavier.images.references import parse_reference
from clavier.images.services import (
    cancel_image_import,
    delete_image,
    delete_image_version,
    import_image_archive,
    import_image_from_registry,
    register_image,
    share_image,
    update_image,
)
from clavier.images.store import abandoned_archives, discard_archive, place_archive, store_folder
from clavier.runs import invariants
from clavier.runs.models import Run, RunFolder
from clavier.runs.outputs import run_folder
from runner.contract.run_spec import Image
from tests.engine import make_engine
from tests.worlds import make_image_version, make_model_version, spec_on_disk

pytestmark = pytest.mark.django_db(transaction=True)

ID = f"sha256:{'a' * 64}"
CONTENT = "what an engine loads"


def imported(**facts: Any) -> dict[str, str]:
    """What a good import leaves behind."""
    given = {"image_id": ID, "size_bytes": len(CONTENT), "architecture": "amd64", "os": "linux", "cmd": ["/bin/sh"]}
    files = [{"path": "image.tar", "size": len(CONTENT)}]
    manifest = {"files": files, "kind": "image", "facts": {**given, **facts}, "metrics": {}}
    return {"output/image.tar": CONTENT, "output/MANIFEST.json": json.dumps(manifest)}


@pytest.fixture
def engine(monkeypatch, home):
    made = make_engine(monkeypatch)
    made.will(files=imported())
    return made


def upload(actor, name="busybox.tar", size=10, area="private"):
    content = SimpleUploadedFile(name, bytes(size))
    return upload_file(actor=actor, area=area, folder="", name=name, upload=content, overwrite=True)


def begin(actor, name="dzq/45", tag="1"):
    image = ContainerImage.objects.filter(name=name).first() or register_image(actor=actor, name=name)
    return import_image_archive(actor=actor, image=image, tag=tag, file=upload(actor))


def ready(engine, actor, **names):
    version = begin(actor, **names)
    engine.step(2)
    version.refresh_from_db()
    assert version.state == "ready", version.message
    return version


def test_an_uploaded_archive_becomes_a_version_that_runs_can_use(engine, alice):
    version = begin(alice)
    assert version.state == "importing"
    with pytest.raises(Conflict, match="importing"):
        image_of_run(version)
    engine.step(2)
    version = access_image_version(alice, version.pk)
    assert (version.state, str(version), version.content_id, version.cmd) == ("ready", "dzq/45:1", ID, ["/bin/sh"])
    assert version.archive.read_text() == CONTENT
    assert image_of_run(version) == Image(ID, str(version.archive))
    given = spec_on_disk(version.run.pk)
    assert given["parameters"]["location"].endswith(f"{alice.user_id}/private/busybox.tar")
    (mount,) = given["mounts"]
    assert (mount["source"], mount["writable"]) == (given["parameters"]["location"], False)
    assert given["needs_network"] is False


def test_a_failed_import_says_why_and_the_tag_can_be_used_again(engine, alice):
    error = '{"kind": "error", "code": "volume_not_allowed", "message": "The image declares VOLUME /big."}\n'
    engine.will(exit_code=64, files={"metrics.jsonl": error})
    failed = begin(alice)
    engine.step(2)
    failed.refresh_from_db()
    assert (failed.state, failed.error, failed.message) == (
        "failed", "volume_not_allowed", "The image declares VOLUME /big.",
    )  # fmt: skip
    engine.will(files=imported())
    assert ready(engine, alice).pk != failed.pk
    assert ImageVersion.objects.count() == Run.objects.count() == 1
    with pytest.raises(Conflict, match="always means one content") as refusal:
        begin(alice)
    assert refusal.value.code == "already_exists"


def test_storage_is_charged_to_who_imported_and_given_back(engine, alice):
    file_bytes = storage_usage(alice)["bytes_used"] + 10
    version = ready(engine, alice)
    left = RunFolder.objects.get(run=version.run).size_bytes
    assert storage_usage(alice)["bytes_used"] == file_bytes + len(CONTENT) + left
    delete_image_version(actor=alice, version=version)
    assert storage_usage(alice)["bytes_used"] == file_bytes
    assert not run_folder(version.run_id).exists()


def test_an_image_that_does_not_fit_the_storage_is_refused_early_and_late(engine, alice):
    image, file = register_image(actor=alice, name="a"), upload(alice, size=100)
    StorageUsage.objects.update(bytes_limit=150)
    with pytest.raises(StorageFull) as refusal:
        import_image_archive(actor=alice, image=image, tag="1", file=file)
    assert refusal.value.code == "quota_exceeded"
    StorageUsage.objects.update(bytes_limit=200 + len(CONTENT) - 1)
    engine.will(files=imported(size_bytes=len(CONTENT) + 100))
    version = import_image_archive(actor=alice, image=image, tag="1", file=file)
    engine.step(2)
    version.refresh_from_db()
    assert version.state == "failed"
    assert "MiB of storage left" in version.message
    assert list(store_folder().iterdir()) == []


def test_archives_over_the_limit_and_folders_are_refused(engine, alice, settings):
    image = register_image(actor=alice, name="a")
    folder = create_folder(actor=alice, area="private", folder="", name="dzq")
    with pytest.raises(Invalid, match="folder"):
        import_image_archive(actor=alice, image=image, tag="1", file=folder)
    settings.IMAGE_MAX_MIB = 0
    with pytest.raises(TooLarge) as refusal:
        import_image_archive(actor=alice, image=image, tag="1", file=upload(alice))
    assert (refusal.value.code, refusal.value.field) == ("file_too_large", "file")


@pytest.mark.parametrize("name", ["", "Dzq/45:../x", "/a", "a//b", "a:1", "a/", "a b", "á", "a" * 201, "a\n"])
def test_names_are_those_that_registries_take(alice, name):
    with pytest.raises(Invalid) as refusal:
        register_image(actor=alice, name=name)
    assert (refusal.value.code, refusal.value.field) == ("bad_name", "name")


@pytest.mark.parametrize("tag", ["", "1.0 latest", ".1", "-1", "a/b", "a" * 129, "1\n"])
def test_tags_are_those_that_registries_take(engine, alice, tag):
    with pytest.raises(Invalid) as refusal:
        begin(alice, tag=tag)
    assert (refusal.value.code, refusal.value.field) == ("bad_name", "tag")
    assert not Run.objects.exists()


def test_names_are_unique_in_a_tenant_only(alice, bob, charlie):
    image = register_image(actor=alice, name="dzq/45", labels=[" nlp ", "nlp", "大模型"])
    assert image.labels == ["nlp", "大模型"]
    with pytest.raises(Conflict) as refusal:
        register_image(actor=bob, name="dzq/45")
    assert refusal.value.code == "already_exists"
    assert register_image(actor=charlie, name="dzq/45").name == "dzq/45"


def test_charlie_reaches_neither_image_nor_version_nor_file_of_alice(engine, alice, charlie):
    version = ready(engine, alice)
    for look in (
        lambda: access_image(charlie, version.image_id),
        lambda: access_image_version(charlie, version.pk),
        lambda: access_image_version(charlie, "no id"),
        lambda: find_image_version(charlie, "dzq/45:1"),
    ):
        with pytest.raises(NotFound):
            look()
    own = register_image(actor=charlie, name="mine")
    with pytest.raises(NotFound):
        import_image_archive(actor=charlie, image=own, tag="1", file=upload(alice, area="public"))


def test_bob_uses_the_images_of_alice_but_does_not_change_them(engine, alice, bob):
    version = ready(engine, alice)
    assert access_image_version(bob, version.pk) == version
    for act in (
        lambda: delete_image_version(actor=bob, version=version),
        lambda: delete_image(actor=bob, image=version.image),
        lambda: update_image(actor=bob, image=version.image, overview="x"),
        lambda: import_image_archive(actor=bob, image=version.image, tag="2", file=upload(bob)),
    ):
        with pytest.raises(Forbidden):
            act()


def test_an_operator_shares_an_image_with_all_tenants(engine, alice, charlie):
    version = ready(engine, alice)
    with pytest.raises(Forbidden):
        share_image(actor=alice, image=version.image, is_public=True)
    operator = dataclasses.replace(alice, is_operator=True)
    share_image(actor=operator, image=version.image, is_public=True)
    assert find_image_version(charlie, "dzq/45:1") == version
    with pytest.raises(Forbidden, match="only its own tenant"):
        delete_image_version(actor=charlie, version=version)
    share_image(actor=operator, image=version.image, is_public=False)
    with pytest.raises(NotFound):
        access_image(charlie, version.image_id)


def test_only_an_image_that_was_shared_may_be_named_by_rows_of_other_tenants(alice, charlie):
    version = make_image_version(alice)
    make_model_version(charlie, image_version=version)
    (finding,) = invariants.tenants(None)
    assert "refers by image_version" in finding
    operator = dataclasses.replace(alice, is_operator=True)
    for is_public in (True, False):
        share_image(actor=operator, image=version.image, is_public=is_public)
        assert list(invariants.tenants(None)) == []


def test_of_two_imports_of_a_tag_at_once_one_is_refused_in_words(engine, alice, monkeypatch):
    image, file = register_image(actor=alice, name="a"), upload(alice)
    import_image_archive(actor=alice, image=image, tag="1", file=file)
    monkeypatch.setattr(services, "drop_failed", lambda *_: None)
    with pytest.raises(Conflict) as refusal:
        import_image_archive(actor=alice, image=image, tag="1", file=file)
    assert (refusal.value.code, refusal.value.field) == ("already_exists", "tag")
    assert Run.objects.count() == 1


def test_of_two_images_of_a_name_the_own_one_is_meant(engine, alice, charlie):
    public, own = ready(engine, alice), None
    share_image(actor=dataclasses.replace(alice, is_operator=True), image=public.image, is_public=True)
    image = register_image(actor=charlie, name="dzq/45")
    own = import_image_archive(actor=charlie, image=image, tag="1", file=upload(charlie))
    assert find_image_version(charlie, "dzq/45:1") == own
    assert find_image_version(alice, "dzq/45:1") == public


def test_an_image_stays_while_a_run_may_load_it(engine, alice, charlie):
    version = ready(engine, alice)
    engine.will(runs_for_s=None)
    run = engine.submit(alice, image=image_of_run(version))
    with pytest.raises(Conflict, match="used by run 'a run'") as refusal:
        delete_image(actor=alice, image=version.image)
    assert refusal.value.code == "in_use"
    stranger = engine.submit(charlie, image=image_of_run(version))
    Run.objects.filter(pk=run.pk).delete()
    with pytest.raises(Conflict, match="1 runs of other tenants"):
        delete_image_version(actor=alice, version=version)
    Run.objects.filter(pk=stranger.pk).delete()
    delete_image(actor=alice, image=version.image)
    assert not ContainerImage.objects.exists()


def test_a_running_import_is_stopped_before_it_is_deleted(engine, alice):
    engine.will(runs_for_s=None)
    version = begin(alice)
    engine.step(2)
    with pytest.raises(Conflict, match="stop the import first"):
        delete_image(actor=alice, image=version.image)
    cancel_image_import(actor=alice, version=version)
    engine.step(3)
    version.refresh_from_db()
    assert (version.state, version.error) == ("failed", "STOPPED_BY_USER")
    delete_image(actor=alice, image=version.image)


def test_two_tags_of_one_content_share_the_archive(engine, alice):
    first, second = ready(engine, alice, tag="1"), ready(engine, alice, tag="2")
    assert first.archive == second.archive
    assert [path.name for path in store_folder().iterdir()] == [f"{'a' * 64}.tar"]


def test_an_archive_that_nothing_names_is_collected_when_it_is_old(engine, alice):
    version = ready(engine, alice)
    archive = version.archive
    assert list(abandoned_archives(lambda _: False)) == []
    os.utime(archive, (1, 1))
    assert list(abandoned_archives(lambda _: True)) == []
    assert list(abandoned_archives(lambda _: False)) == [archive]
    assert discard_archive(archive)
    assert not discard_archive(archive)
    place_archive(version.run_id, ID)
    assert not discard_archive(archive)
    assert archive.read_text() == CONTENT


def test_a_registry_is_asked_with_a_login_that_no_row_holds(engine, alice):
    image = register_image(actor=alice, name="a")
    login = RegistryLogin("robot", "s3cret-of-the-registry")
    version = import_image_from_registry(
        actor=alice, image=image, tag="1", reference="hub.example:5000/team/app:2", login=login
    )
    given = version.run.spec["parameters"]
    assert (given["address"], given["repository"], given["reference"]) == ("https://hub.example:5000", "team/app", "2")
    assert version.run.spec["needs_network"]
    assert [mount["source"] for mount in version.run.spec["mounts"]] == [given["credentials"]]
    assert json.loads(login_path(version.pk).read_text()) == {"username": "robot", "password": login.password}
    assert login_path(version.pk).stat().st_mode & 0o007 == 0
    assert login.password not in json.dumps(version.run.spec) + repr(login)
    engine.step(2)
    assert access_image_version(alice, version.pk).state == "ready"
    assert not login_path(version.pk).exists()


def test_a_login_is_forgotten_when_the_import_can_not_begin(engine, alice):
    version = ready(engine, alice)
    login = RegistryLogin("robot", "s3cret")
    with pytest.raises(Conflict):
        import_image_from_registry(
            actor=alice, image=version.image, tag="1", reference="hub.example/team/app:1", login=login
        )
    assert list(login_path(version.pk).parent.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("hub.example/app", ("https://hub.example", "app", "latest")),
        ("hub.example:5000/a/b:1", ("https://hub.example:5000", "a/b", "1")),
        (f"localhost/a/b@{ID}", ("https://localhost", "a/b", ID)),
        (f"hub.example/a:1@{ID}", ("https://hub.example", "a", ID)),
        ("plain.example:80/a", ("http://plain.example:80", "a", "latest")),
        ("app", ("https://default.example", "library/app", "latest")),
        ("team/app:2", ("https://default.example", "team/app", "2")),
    ],
)
def test_references_name_a_place_on_a_registry(settings, text, place):
    settings.IMAGE_DEFAULT_REGISTRY = "default.example"
    settings.IMAGE_REGISTRIES_ALLOWED = ["http://plain.example:80"]
    found = parse_reference(text)
    assert (found.address, found.repository, found.reference) == place


@pytest.mark.parametrize(
    "text",
    ["", "app", "a b", "https://hub.example/a", "hub.example/", "hub.example/A", "hub.example/a:", "hub.example/a@x",
     "hub.example/../a", "u@hub.example/a", "hub.example/a:1:2"],
)  # fmt: skip
def test_what_names_no_place_is_refused(text):
    with pytest.raises(Invalid) as refusal:
        parse_reference(text)
    assert refusal.value.field == "reference"
