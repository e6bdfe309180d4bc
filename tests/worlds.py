"""Things that tests of several apps need: usable data and model versions without training anything."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from django.conf import settings

from clavier.core.actor import Actor
from clavier.files.services import upload_files
from clavier.files.usage import charge
from clavier.images.models import ContainerImage, ImageVersion
from clavier.runs.outputs import run_folder
from datasets_app.models import DatasetVersion
from datasets_app.services import create_dataset_with_file
from models_app.models import ModelVersion, RegisteredModel
from runner.contract import folder

FACTS = {
    "format": "full",
    "architecture": "Qwen2ForCausalLM",
    "num_parameters": 10,
    "render_hash": "r",
    "fingerprint": "f",
}


def make_dataset(
    actor: Actor, spooled: Any, rows: list[dict[str, Any]] | None = None, name: str = "faq"
) -> DatasetVersion:
    """A data set version through the real gate."""
    rows = rows or [{"question": f"How many is {n}?", "answer": f"It is {n}."} for n in range(5)]
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    made = create_dataset_with_file(actor=actor, name=name, upload=spooled(content, "d.jsonl"), file_name="d.jsonl")
    return made if isinstance(made, DatasetVersion) else DatasetVersion.objects.get(dataset=made)


def make_model_version(actor: Actor, name: str = "base", **columns: Any) -> ModelVersion:
    """A version that is ready, with an empty folder."""
    model, _ = RegisteredModel.objects.get_or_create(
        tenant_id=actor.tenant_id, name=name, defaults={"created_by_id": actor.user_id}
    )
    columns = {"state": "ready", "source": "folder", "folder": f"weights/{name}", "fingerprint": "f", **columns}
    (settings.CLAVIER_HOME / columns["folder"]).mkdir(parents=True, exist_ok=True)
    return ModelVersion.objects.create(
        tenant_id=actor.tenant_id,
        created_by_id=actor.user_id,
        model=model,
        number=model.versions.count() + 1,
        **columns,
    )


def make_image_version(actor: Actor, name: str = "dzq/45", tag: str = "1", **columns: Any) -> ImageVersion:
    """A version of an image that is ready; its archive is a few bytes."""
    image, _ = ContainerImage.objects.get_or_create(
        tenant_id=actor.tenant_id, name=name, defaults={"created_by_id": actor.user_id}
    )
    content_id = f"sha256:{hashlib.sha256(f'{name}:{tag}'.encode()).hexdigest()}"
    columns = {"state": "ready", "source": "tar", "content_id": content_id, "size_bytes": 5, **columns}
    version = ImageVersion.objects.create(
        tenant_id=actor.tenant_id, created_by_id=actor.user_id, image=image, tag=tag, **columns
    )
    if version.is_usable:
        charge(tenant_id=version.tenant_id, user_id=version.created_by_id, size_bytes=version.size_bytes, inodes=1)
        version.archive.parent.mkdir(parents=True, exist_ok=True)
        version.archive.write_bytes(b"image")
    return version


def output_of(facts: dict[str, Any] | None = None, **files: str) -> dict[str, str]:
    """What a good program leaves behind: the files and their manifest."""
    files = files or {"model/config.json": "{}"}
    manifest = {
        "files": [{"path": path, "size": len(text.encode())} for path, text in files.items()],
        "kind": "model",
        "facts": facts if facts is not None else FACTS,
        "metrics": {"train/loss": 0.1},
    }
    return {f"{folder.OUTPUT}/{path}": text for path, text in files.items()} | {
        f"{folder.OUTPUT}/{folder.MANIFEST}": json.dumps(manifest)
    }


def spec_on_disk(run_id: Any) -> dict[str, Any]:
    """What the program was given."""
    value: dict[str, Any] = json.loads((run_folder(run_id) / folder.SPEC).read_text())
    return value


def put_tree(actor: Actor, spooled: Any, files: dict[str, str | bytes], area: str = "private") -> None:
    """Upload files with the folders of their paths into the actor's files."""
    uploads = [
        (path, spooled(content.encode() if isinstance(content, str) else content)) for path, content in files.items()
    ]
    upload_files(actor=actor, area=area, folder="", uploads=uploads, overwrite=True)
