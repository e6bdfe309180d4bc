"""`manage.py collect_images`: only what nothing names goes, on the disk and on engines."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, field
from uuid import uuid4

import pytest
from django.core.management import call_command

from clavier.images.access import image_of_run
from clavier.images.logins import RegistryLogin, write_login
from clavier.images.services import delete_image_version
from clavier.management.commands import collect_images
from clavier.quotas.models import Node
from clavier.runs.models import Run
from clavier.runs.outputs import run_folder
from clavier.runs.services import stop_run
from runner.contract.run_spec import Image, Mount
from runner.executors.base import ExecutorError, StoredImage
from runner.worker.engines import Engine
from tests.engine import make_engine
from tests.worlds import make_image_version

pytestmark = pytest.mark.django_db(transaction=True)


@dataclass
class Store:
    """An engine with images."""

    ids: list[str] = field(default_factory=list)
    is_down: bool = False

    def images(self):
        if self.is_down:
            raise ExecutorError("the engine does not answer")
        return [StoredImage(image_id, 2**20) for image_id in self.ids]

    def remove_image(self, image_id):
        self.ids.remove(image_id)


@pytest.fixture
def store(monkeypatch, home):
    made = Store()
    monkeypatch.setattr(collect_images, "executor", lambda engine: made if isinstance(engine, Engine) else None)
    return made


def collect(*options):
    out, err = io.StringIO(), io.StringIO()
    call_command("collect_images", *options, stdout=out, stderr=err)
    return out.getvalue().splitlines(), err.getvalue()


def old(path):
    os.utime(path, (1, 1))
    return path


def test_only_what_nothing_names_goes(alice, store, monkeypatch):
    make_engine(monkeypatch)
    Node.objects.update(executor="docker_engine")
    kept, gone = make_image_version(alice, tag="1"), make_image_version(alice, tag="2")
    archive = old(gone.archive)
    store.ids = [kept.content_id, gone.content_id, "sha256:f"]
    delete_image_version(actor=alice, version=gone)
    said, _ = collect("--dry-run")
    assert said == [
        f"would delete archive {archive.name} (0.0 MiB)",
        f"would delete image {gone.content_id} on docker_engine (1.0 MiB)",
        "would delete image sha256:f on docker_engine (1.0 MiB)",
    ]
    assert archive.exists()
    assert len(store.ids) == 3
    collect()
    assert not archive.exists()
    assert kept.archive.exists()
    assert store.ids == [kept.content_id]
    assert collect() == ([], "")


def test_what_an_unfinished_run_may_still_load_stays(alice, store, monkeypatch):
    engine = make_engine(monkeypatch)
    version = make_image_version(alice)
    archive, image = old(version.archive), image_of_run(version)
    run = engine.submit(alice, image=Image(image.id, image.archive))
    version.delete()
    assert collect()[0] == []
    Run.objects.filter(pk=run.pk).delete()
    assert len(collect()[0]) == 1
    assert not archive.exists()


def test_logins_of_imports_that_never_began_go(alice, store):
    login = old(write_login(uuid4(), RegistryLogin("robot", "s3cret"), 1))
    young = write_login(uuid4(), RegistryLogin("robot", "s3cret"), 1)
    assert collect()[0] == [f"deleted login {login.name}"]
    assert (login.exists(), young.exists()) == (False, True)


def test_the_login_of_a_run_that_waits_stays_and_goes_with_its_end(alice, store, monkeypatch):
    login = old(write_login(uuid4(), RegistryLogin("robot", "s3cret"), 1))
    run = make_engine(monkeypatch).submit(alice, mounts=(Mount(str(login)),))
    assert collect()[0] == []
    stop_run(run=run, actor_name="alice")
    assert collect()[0] == [f"deleted login {login.name}"]


def test_an_archive_that_a_restore_did_not_bring_is_linked_again(alice, store, monkeypatch):
    engine = make_engine(monkeypatch)
    run = engine.submit(alice)
    version = make_image_version(alice, run=run)
    output = run_folder(run.pk) / "output"
    output.mkdir(parents=True)
    version.archive.rename(output / "image.tar")
    assert collect("--dry-run")[0] == ["would link the archive of dzq/45:1 again"]
    collect()
    assert version.archive.read_bytes() == b"image"
    assert collect()[0] == []


def test_an_engine_that_is_away_is_named_and_the_rest_is_collected(alice, store, monkeypatch):
    make_engine(monkeypatch)
    Node.objects.update(executor="docker_engine")
    archive = old(make_image_version(alice).archive)
    delete_image_version(actor=alice, version=make_image_version(alice, tag="x"))
    store.is_down = True
    _, wrong = collect()
    assert "does not answer" in wrong
    assert archive.exists()
