"""Object stores: sealed secrets, allowed hosts, and a real import from an S3 server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from clavier.core.errors import Conflict, Invalid, NotFound, Unprocessable
from clavier.core.secrets import seal, unseal
from models_app.models import ObjectStore
from models_app.object_stores import access_object_store, create_object_store, delete_object_store
from models_app.services import register_model
from runner.contract.folder import SPEC
from tests.engine import make_real_engine
from tests.object_stores import SECRET, fill, s3_server
from tests.programs.tiny_models import write_tiny_model

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def server(settings) -> Iterator[str]:
    """An S3 server on loopback, which the operator has allowed."""
    with s3_server() as (endpoint, host):
        settings.OBJECT_STORE_HOSTS = [host]
        yield endpoint


def test_a_model_is_imported_and_the_secret_lies_nowhere(server, alice, monkeypatch, home, tmp_path):
    engine = make_real_engine(monkeypatch, home)
    fill(server, write_tiny_model(tmp_path / "tiny", "qwen2"), "team/qwen")
    create_object_store(actor=alice, name="lake", endpoint_url=server, access_key="key", secret_key=SECRET)
    version = register_model(actor=alice, name="from-s3", source="s3", location="lake/models/team/qwen")
    run = engine.finish(version.run, 120)
    version.refresh_from_db()
    assert (run.state, version.state) == ("COMPLETED", "ready"), run.message
    assert (version.path / "model.safetensors").is_file()
    assert SECRET not in ObjectStore.objects.get().sealed_secret
    assert SECRET not in (home / "runs" / str(run.pk) / SPEC).read_text()
    assert SECRET not in str(run.spec)
    assert not list((home / "secrets").iterdir())


def test_what_is_not_there_is_named_and_the_version_fails(server, alice, monkeypatch, home, tmp_path):
    engine = make_real_engine(monkeypatch, home)
    (tmp_path / "empty").mkdir()
    fill(server, tmp_path / "empty", "x")
    create_object_store(actor=alice, name="lake", endpoint_url=server, access_key="key", secret_key=SECRET)
    version = register_model(actor=alice, name="none", source="s3", location="lake/models/nothing")
    run = engine.finish(version.run, 120)
    assert run.state == "FAILED"
    assert "models/nothing" in run.message
    assert not list((home / "secrets").iterdir())


@pytest.mark.parametrize(
    ("url", "error", "code"),
    [
        ("http://169.254.169.254/latest", Unprocessable, "host_not_allowed"),
        ("https://127.0.0.1", Unprocessable, "host_not_allowed"),
        ("http://allowed.example@127.0.0.1/", Invalid, "bad_value"),
        ("file:///etc/passwd", Invalid, "bad_value"),
        ("s3.example", Invalid, "bad_value"),
        ("http://s3.example:99999999", Invalid, "bad_value"),
    ],
)
def test_only_hosts_that_the_operator_allows_are_asked(alice, settings, url, error, code):
    settings.OBJECT_STORE_HOSTS = ["s3.example"]
    with pytest.raises(error) as refusal:
        create_object_store(actor=alice, name="lake", endpoint_url=url, access_key="key", secret_key=SECRET)
    assert (refusal.value.code, refusal.value.field) == (code, "endpoint_url")
    assert not ObjectStore.objects.exists()


def test_charlie_neither_sees_nor_uses_the_store_of_alice(alice, charlie, settings):
    settings.OBJECT_STORE_HOSTS = ["s3.example"]
    asked = {"name": "lake", "endpoint_url": "https://s3.example", "access_key": "key", "secret_key": SECRET}
    store = create_object_store(actor=alice, **asked)
    with pytest.raises(Conflict):
        create_object_store(actor=alice, **asked)
    with pytest.raises(NotFound):
        access_object_store(charlie, store.pk)
    for location in ("lake/models/x", "lake/../x", "lake", ""):
        with pytest.raises(Invalid):
            register_model(actor=charlie, name="x", source="s3", location=location)
    delete_object_store(actor=alice, store=store)


def test_a_secret_is_lost_with_the_key_that_sealed_it(settings):
    sealed = seal(SECRET)
    assert unseal(sealed) == SECRET
    settings.SECRET_KEY = "another"
    with pytest.raises(Conflict, match="Enter it again") as refusal:
        unseal(sealed)
    assert refusal.value.code == "secret_lost"
