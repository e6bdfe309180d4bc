"""Registration by a run, lineage, deletion, the tar of a version."""

from __future__ import annotations

import io
import tarfile

import pytest

from clavier.core.errors import Conflict, Forbidden, Invalid, NotFound
from clavier.files.services import create_folder
from clavier.runs.models import Run
from clavier.runs.outputs import run_folder
from models_app.exports import tar_of_version
from models_app.models import ModelVersion, RegisteredModel
from models_app.queries import lineage
from models_app.services import access_model_version, delete_model, delete_model_version, register_model, require_usable
from tests.engine import make_engine
from tests.worlds import make_dataset, make_model_version, output_of, spec_on_disk

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def engine(monkeypatch, home):
    made = make_engine(monkeypatch)
    made.will(files=output_of())
    return made


def test_a_folder_of_the_users_files_becomes_a_version(engine, alice):
    create_folder(actor=alice, area="private", folder="", name="qwen")
    version = register_model(actor=alice, name="qwen", source="folder", location="private/qwen")
    with pytest.raises(Conflict, match="importing"):
        require_usable(version)
    engine.step(2)
    version = access_model_version(alice, version.pk)
    assert (version.state, version.num_parameters, version.format) == ("ready", 10, "full")
    given = spec_on_disk(version.run.pk)["parameters"]["location"]
    assert given.endswith(f"{alice.user_id}/private/qwen")


def test_a_second_registration_under_the_name_is_the_next_version(engine, alice, bob):
    create_folder(actor=alice, area="private", folder="", name="qwen")
    numbers = [
        register_model(actor=alice, name="qwen", source="folder", location="private/qwen").number for _ in range(2)
    ]
    assert numbers == [1, 2]
    with pytest.raises(Forbidden):
        register_model(actor=bob, name="qwen", source="huggingface", location="Qwen/Qwen2")


def test_a_failed_import_says_why_and_can_be_deleted(engine, alice):
    error = '{"kind": "error", "message": "The hub could not be reached. Set HF_ENDPOINT."}\n'
    engine.will(exit_code=69, files={"metrics.jsonl": error})
    version = register_model(actor=alice, name="qwen", source="huggingface", location="Qwen/Qwen2-7B")
    with pytest.raises(Conflict, match="stop the import first"):
        delete_model_version(actor=alice, version=version)
    engine.step(2)
    version = access_model_version(alice, version.pk)
    assert (version.state, version.message) == ("failed", "The hub could not be reached. Set HF_ENDPOINT.")
    place = run_folder(version.run.pk)
    delete_model(actor=alice, model=version.model)
    assert not place.exists()
    assert not Run.objects.exists()


def test_only_folders_below_an_allowed_path_of_the_server_are_taken(engine, alice, settings, tmp_path):
    allowed, secret = tmp_path / "models", tmp_path / "secret"
    for place in (allowed / "qwen", secret):
        place.mkdir(parents=True)
    (allowed / "way-out").symlink_to(secret)
    settings.MODEL_PATHS = [allowed]
    for location in (
        str(secret),
        str(allowed / "way-out"),
        str(allowed / ".." / "secret"),
        "qwen",
        str(allowed / "none"),
    ):
        with pytest.raises(Invalid) as refusal:
            register_model(actor=alice, name="m", source="path", location=location)
        assert refusal.value.code == "path_outside_root"
    version = register_model(actor=alice, name="m", source="path", location=str(allowed / "qwen"))
    engine.will(files=output_of({"format": "full", "in_place": True, "size_bytes": 7}))
    engine.step(2)
    version = access_model_version(alice, version.pk)
    assert (version.path, version.size_bytes) == (allowed / "qwen", 7)


@pytest.mark.parametrize("location", ["../../etc", "Qwen", "a/b/c", "https://hub/x", "a/b\n", ""])
def test_a_hub_id_is_checked_before_anything_runs(engine, alice, location):
    with pytest.raises(Invalid) as refusal:
        register_model(actor=alice, name="m", source="huggingface", location=location)
    assert refusal.value.field == "location"
    assert not RegisteredModel.objects.exists()


def test_charlie_does_not_reach_the_files_or_versions_of_alice(engine, alice, charlie):
    create_folder(actor=alice, area="private", folder="", name="qwen")
    with pytest.raises(NotFound):
        register_model(actor=charlie, name="m", source="folder", location="private/qwen")
    version = make_model_version(alice)
    with pytest.raises(NotFound):
        access_model_version(charlie, version.pk)


def test_a_version_with_descendants_stays(engine, alice, spooled):
    base = make_model_version(alice)
    tuned = make_model_version(alice, "tuned", base_version=base, dataset_version=make_dataset(alice, spooled))
    assert lineage(tuned) == [tuned, base]
    with pytest.raises(Conflict, match=r"tuned@1") as refusal:
        delete_model_version(actor=alice, version=base)
    assert refusal.value.code == "in_use"
    delete_model_version(actor=alice, version=tuned)
    delete_model_version(actor=alice, version=base)
    assert not ModelVersion.objects.exists()


def test_the_tar_holds_every_file_and_is_as_long_as_it_says(engine, alice, home):
    folder = home / "weights"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "权重.safetensors").write_bytes(b"w" * 3_000_001)
    (folder / "link").symlink_to("/etc/passwd")
    version = make_model_version(alice, folder="weights")
    chunks, size = tar_of_version(version)
    data = b"".join(chunks)
    assert len(data) == size
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == ["base-1/config.json", "base-1/sub/权重.safetensors"]
        assert tar.extractfile("base-1/sub/权重.safetensors").read() == b"w" * 3_000_001
