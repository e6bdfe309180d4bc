"""Register, import, derive and delete models."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Max, ProtectedError, RestrictedError

from clavier.accounts.access import access_object, require_change, require_write
from clavier.accounts.queries import own_tenant
from clavier.core.actor import Actor
from clavier.core.errors import Conflict, Invalid, quoted
from clavier.core.references import in_use
from clavier.files.folders import disk_path, own_folder
from clavier.files.models import MIB
from clavier.files.queries import storage_left
from clavier.images.access import access_image_version, image_of_run
from clavier.images.logins import RegistryLogin, forget_login, login_path, write_login
from clavier.runs.models import Run
from clavier.runs.outputs import check_manifest
from clavier.runs.services import delete_run, stop_run, submit_run
from clavier.runs.states import RunState
from datasets_app.models import DatasetVersion
from models_app.declarations import checked_declarations
from models_app.models import SOURCES, TASKS, ModelVersion, ObjectStore, RegisteredModel
from models_app.object_stores import login_of, store_at
from runner.contract import folder
from runner.contract.run_spec import Limits, Mount, Resources, RunSpec

NAME_PATTERN = re.compile(r"\A[\w][\w .()+-]{0,99}\Z")
HUB_ID_PATTERN = re.compile(r"\A[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*\Z")
IMPORT_SOURCES = tuple(source for source in SOURCES if source not in ("fine_tune", "export"))
IMPORT_PROGRAM = "runner.programs.models.import_model"


def register_model(
    *,
    actor: Actor,
    name: str,
    source: str,
    location: str,
    revision: str = "",
    description: str = "",
    license: str = "",
    tags: list[str] | None = None,
    declarations: Sequence[Mapping[str, Any]] | None = None,
    submitted: Mapping[str, Any] | None = None,
    model_submitted: Mapping[str, Any] | None = None,
) -> ModelVersion:
    """A base model whose first version is imported by a run. A known name gets a further version.

    ``location``: for ``folder`` a folder of the user's files (``private/models/qwen``), for ``path`` a folder of the
    server below MODEL_PATHS (used in place), for ``image`` the id of an image version, which is ready at once, for
    ``s3`` the ``store/bucket/prefix`` of an object store, else a hub id (``Qwen/Qwen2.5-0.5B-Instruct``).
    ``declarations``: what may be set of it later (``declarations.py``).
    ``submitted``: what the client wrote of the version; ``model_submitted``: of the model, kept when it is new.
    Raises Invalid, NotFound, Forbidden.
    """
    require_write(actor)
    check_model_name(name)
    if source not in IMPORT_SOURCES:
        raise Invalid(
            f"source {quoted(source)} is none of {', '.join(IMPORT_SOURCES)}.", code="not_a_choice", field="source"
        )
    about = {
        "description": description,
        "license": license,
        "tags": tags or [],
        "submitted": dict(model_submitted or {}),
    }
    columns: dict[str, Any] = {
        "source": source,
        "location": location,
        "revision": revision,
        "declarations": checked_declarations(declarations or []),
        "submitted": dict(submitted or {}),
    }
    if source == "image":
        image = access_image_version(actor, location, field="location")
        image_of_run(image, field="location")
        columns |= {"image_version": image, "location": str(image), "format": "image", "state": "ready"}
        with transaction.atomic():
            return add_version(actor, name, about, columns)
    if source == "s3":
        store, path = store_at(actor, location)
        parameters = s3_parameters(store, path)
        return start_import(actor, name, about, columns, parameters, login=login_of(store))
    return start_import(actor, name, about, columns, import_parameters(actor, source, location, revision))


def s3_parameters(store: ObjectStore, path: str) -> dict[str, Any]:
    """The import program's input for a model in an object store."""
    return {
        "source": "s3",
        "location": path,
        "revision": None,
        "in_place": False,
        "endpoint": store.endpoint_url,
        "region": store.region,
        "max_bytes": settings.MAX_UPLOAD_MIB * MIB,
    }


def start_import(
    actor: Actor,
    name: str,
    about: dict[str, Any],
    columns: dict[str, Any],
    parameters: dict[str, Any],
    login: RegistryLogin | None = None,
) -> ModelVersion:
    """A version of the model of that name, with the run that imports it.

    ``about``: columns of the model where it is new; ``columns``: of the version; ``parameters``: of the program;
    ``login``: lies in a file that only this import can read, until it has ended.
    """
    is_local = parameters["source"] in ("folder", "path")
    folders = [parameters["location"]] + ([parameters["base_model"]] if parameters.get("base_model") else [])
    with transaction.atomic():
        version = add_version(actor, name, about, columns)
        if login is not None:
            place = str(login_path(version.pk))
            parameters, folders = {**parameters, "credentials": place}, [place]
        spec = RunSpec(
            kind="model_import",
            program=IMPORT_PROGRAM,
            parameters=parameters,
            mounts=tuple(Mount(path) for path in folders) if is_local or login else (),
            resources=Resources(cpu_milli=500, memory_mib=1024),
            limits=Limits(time_limit_s=24 * 3600),
            needs_network=not is_local,
        )
        version.run = submit_run(
            actor=actor, kind="model_import", name=f"import {version}", subject_id=version.pk, spec=spec
        )
        version.save(update_fields=["run"])
        if login is not None:  # last: a run that is refused leaves no key behind
            write_login(version.pk, login, own_tenant(actor).number)
    return version


def add_version(actor: Actor, name: str, about: dict[str, Any], columns: dict[str, Any]) -> ModelVersion:
    """The next version of the tenant's model of that name. Raises Forbidden."""
    model = find_or_create_model(actor, name, **about)
    return ModelVersion.objects.create(
        tenant_id=actor.tenant_id, created_by_id=actor.user_id, model=model, number=next_number(model), **columns
    )


def on_run_finished(run: Run) -> None:
    """The import has ended: the version is ready, or failed with the reason."""
    version = ModelVersion.objects.filter(run=run).select_related("model").first()
    if version is None:
        return
    forget_login(version.pk)
    if run.state != RunState.COMPLETED:
        version.state, version.message = "failed", run.message
        version.save(update_fields=["state", "message", "updated_at"])
        return
    manifest = fill_from_manifest(version, run)
    if manifest["facts"].get("in_place"):
        version.folder = run.spec["parameters"]["location"]
    version.save()


def create_version_from_run(
    *, run: Run, model_name: str, base_version: ModelVersion | None, dataset_version: DatasetVersion | None
) -> ModelVersion:
    """The version that a completed fine-tune has made. Call in the transaction that ends the run."""
    model, _ = RegisteredModel.objects.get_or_create(
        tenant_id=run.tenant_id, name=model_name, defaults={"created_by_id": run.created_by_id}
    )
    version = ModelVersion(
        tenant_id=run.tenant_id,
        created_by_id=run.created_by_id,
        model=model,
        number=next_number(model),
        source="fine_tune",
        run=run,
        base_version=base_version,
        dataset_version=dataset_version,
    )
    fill_from_manifest(version, run)
    version.save(force_insert=True)
    return version


def access_model(actor: Actor, model_id: UUID | str) -> RegisteredModel:
    """The actor's tenant's model. Raises NotFound."""
    return access_object(RegisteredModel.objects.all(), actor, model_id, noun="model", field="model")


def access_model_version(actor: Actor, version_id: UUID | str, *, field: str = "model_version") -> ModelVersion:
    """The actor's tenant's model version. Raises NotFound."""
    queryset = ModelVersion.objects.select_related("model", "base_version__model", "run")
    return access_object(queryset, actor, version_id, noun="model version", field=field)


def require_usable(
    version: ModelVersion, *, field: str = "model_version", needs_files: bool = True, for_download: bool = False
) -> None:
    """Raises Conflict (``not_ready``, ``no_files``, ``download_only``) unless the version's files are of use here.

    ``needs_files`` False: an image that brings its own model will do. ``for_download``: so will a GGUF file.
    """
    if not version.is_usable:
        raise Conflict(
            f"The model version {version} is {version.state}. {version.message or 'Wait until its import has ended.'}",
            code="not_ready",
            field=field,
        )
    if needs_files and version.format == "image":
        raise Conflict(
            f"The model version {version} lies in the image {version.location} and has no files of its own.",
            code="no_files",
            field=field,
        )
    if version.format == "gguf" and not for_download:
        raise Conflict(
            f"{version} is a GGUF file to be downloaded. Use the version that it was made from: {version.location}.",
            code="download_only",
            field=field,
        )


def require_task(version: ModelVersion, *tasks: str, purpose: str, field: str = "model_version") -> None:
    """Raises Invalid (``wrong_task``) unless the version does one of the tasks, which ``purpose`` needs."""
    if version.task not in tasks:
        raise Invalid(
            f"{field} {version} is a model for {version.task}; {purpose} needs one for {' or '.join(tasks)}.",
            code="wrong_task",
            field=field,
        )


def update_model(*, actor: Actor, model: RegisteredModel, **changes: Any) -> RegisteredModel:
    """Change name, description, license or tags. Raises Forbidden, Invalid, Conflict."""
    require_change(actor, model, noun="model")
    if "name" in changes:
        check_model_name(changes["name"])
        taken = RegisteredModel.objects.filter(tenant_id=model.tenant_id, name=changes["name"]).exclude(pk=model.pk)
        if taken.exists():
            raise Conflict(f"A model {quoted(changes['name'])} exists.", code="already_exists", field="name")
    for column in ("name", "description", "license", "tags"):
        if column in changes:
            setattr(model, column, changes[column])
    model.save()
    return model


def delete_model(*, actor: Actor, model: RegisteredModel) -> None:
    """Delete a model with all its versions and their files. Raises Conflict (``in_use``), Forbidden."""
    require_change(actor, model, noun="model")
    with transaction.atomic():
        for version in model.versions.select_related("run").order_by("-number"):
            delete_version_rows(version)
        delete_row(model, f"model {quoted(model.name)}")


def delete_model_version(*, actor: Actor, version: ModelVersion) -> None:
    """Delete a version and its files. Raises Conflict (``in_use``), Forbidden."""
    require_change(actor, version, noun="model version")
    with transaction.atomic():
        delete_version_rows(version)


def cancel_import(*, actor: Actor, version: ModelVersion) -> None:
    """Stop a running import. Raises Conflict, Forbidden."""
    require_change(actor, version, noun="model version")
    if version.run is None or version.source == "fine_tune":
        raise Conflict("This version was not imported.", code="already_ended")
    stop_run(run=version.run, actor_name=actor.username)


def delete_version_rows(version: ModelVersion) -> None:
    """Delete the row, then the import's run with its files. A fine-tune's run stays with its task."""
    run = version.run
    if version.state == "importing" and run is not None and not run.is_final:
        raise Conflict(f"{version} is being imported; stop the import first.", code="in_use")
    delete_row(version, f"model version {quoted(str(version))}")
    if run is not None and run.kind == "model_import":
        delete_run(run=run)


def delete_row(row: RegisteredModel | ModelVersion, what: str) -> None:
    """Delete a row. Raises Conflict (``in_use``) naming what refers to it."""
    try:
        row.delete()
    except (ProtectedError, RestrictedError) as error:
        raise in_use(error, what) from error


def fill_from_manifest(version: ModelVersion, run: Run) -> dict[str, Any]:
    """Take the facts of a completed run's manifest into the version. Raises Invalid (``bad_output``)."""
    manifest, wrong = check_manifest(run.pk)
    facts = manifest.get("facts") if manifest else None
    if manifest is None or not isinstance(facts, dict) or facts.get("format") not in ("full", "adapter", "gguf"):
        raise Invalid(wrong or "The manifest does not say whether it is a model or an adapter.", code="bad_output")
    version.state = "ready"
    version.folder = f"runs/{run.pk}/{folder.OUTPUT}/model"
    version.format = facts["format"]
    version.task = facts.get("task", "generation") if facts.get("task") in TASKS else "generation"
    version.architecture = facts.get("architecture") or ""
    version.num_parameters = facts.get("num_parameters")
    version.fingerprint = facts.get("fingerprint") or ""
    version.render_hash = facts.get("render_hash") or ""
    version.size_bytes = facts.get("size_bytes") or sum(entry["size"] for entry in manifest["files"])
    version.facts = facts
    version.metrics = manifest.get("metrics") or {}
    return manifest


def import_parameters(actor: Actor, source: str, location: str, revision: str) -> dict[str, Any]:
    """The import program's input. Raises Invalid, NotFound."""
    endpoint = None
    if source == "folder":
        location = str(disk_path(actor, own_folder(actor, location, field="location")))
    elif source == "path":
        location = str(server_path(location))
    elif not HUB_ID_PATTERN.match(location):
        raise Invalid(
            f"location {quoted(location)} is no hub id such as 'Qwen/Qwen2.5-0.5B-Instruct'.",
            code="bad_value",
            field="location",
        )
    if source == "huggingface":
        endpoint = settings.HF_ENDPOINT
    return {
        "source": source,
        "location": location,
        "revision": revision or None,
        "in_place": source == "path",
        "endpoint": endpoint,
        "max_bytes": storage_left(actor)["bytes"],
    }


def server_path(location: str) -> Path:
    """A folder of the server below an allowed root, with links resolved. Raises Invalid (``path_outside_root``)."""
    path = Path(location)
    resolved = path.resolve() if path.is_absolute() else None
    allowed = settings.MODEL_PATHS
    if resolved is None or not any(resolved.is_relative_to(root) for root in allowed) or not resolved.is_dir():
        roots = ", ".join(str(root) for root in allowed) or "none (the operator sets MODEL_PATHS)"
        raise Invalid(
            f"location {quoted(location)} is no folder below an allowed path. Allowed: {roots}.",
            code="path_outside_root",
            field="location",
        )
    return resolved


def find_or_create_model(actor: Actor, name: str, **columns: Any) -> RegisteredModel:
    """The tenant's model of that name. Raises Forbidden when another member's model is to get a version."""
    model, created = RegisteredModel.objects.get_or_create(
        tenant_id=actor.tenant_id, name=name, defaults={"created_by_id": actor.user_id, **columns}
    )
    if not created:
        require_change(actor, model, noun="model")
    return model


def next_number(model: RegisteredModel) -> int:
    """The number of the model's next version, from 1 on."""
    highest = model.versions.aggregate(highest=Max("number"))["highest"]
    return int(highest or 0) + 1


def check_model_name(name: str, *, field: str = "name") -> None:
    """Raises Invalid (``required``, ``bad_name``)."""
    if not name.strip():
        raise Invalid(f"{field} is empty. Give a name.", code="required", field=field)
    if not NAME_PATTERN.match(name):
        raise Invalid(
            f"{field} {quoted(name)}: 1 to 100 letters, digits, spaces or _.()+- are allowed, a letter or digit first.",
            code="bad_name",
            field=field,
        )
