"""What lists of models show."""

from __future__ import annotations

from typing import NoReturn
from uuid import UUID

from django.db.models import Count, Q, QuerySet

from clavier.accounts.access import access_object
from clavier.core.actor import Actor
from clavier.core.errors import Conflict, NotFound, quoted
from clavier.core.names import is_id, names_with_numbers
from clavier.files.names import parse_user_path
from clavier.files.storage import open_regular
from models_app.models import ModelVersion, RegisteredModel

DEPLOY_JSON = "deploy.json"
MAX_DEPLOY_JSON_BYTES = 65_536


def visible_models(actor: Actor, *, search: str = "") -> QuerySet[RegisteredModel]:
    """The tenant's models with the number of versions; ``search`` looks at name and description."""
    models = RegisteredModel.objects.filter(tenant_id=actor.tenant_id).annotate(num_versions=Count("versions"))
    if search:
        models = models.filter(Q(name__icontains=search) | Q(description__icontains=search))
    return models.select_related("created_by")


def visible_versions(actor: Actor) -> QuerySet[ModelVersion]:
    """The tenant's model versions."""
    return ModelVersion.objects.filter(tenant_id=actor.tenant_id).select_related(
        "model", "base_version__model", "dataset_version__dataset", "run", "created_by"
    )


def version_named(actor: Actor, model_id: UUID | str, version: str = "", *, field: str | None = None) -> ModelVersion:
    """A version of the tenant's model by its number or its client's name for it; the newest when none is named.

    Raises NotFound.
    """
    versions = visible_versions(actor).order_by("-number")
    model = access_object(RegisteredModel.objects.all(), actor, model_id, noun="model", field=field)
    for found in versions.filter(model=model):
        if version in ("", str(found.number), found.submitted.get("version")):
            return found
    raise NotFound(f"The model {quoted(model.name)} has no version {quoted(version)}.", field=field)


def version_called(actor: Actor, text: str, *, field: str) -> ModelVersion:
    """What a configuration calls a model: its name, ``name@2``, an id, a hub id, or the path of its folder.

    Of a path, ``models/qwen`` or ``checkpoints/qwen``, the place that a version was imported from counts first, then
    its last part as a name. The newest version that can be used counts.
    Raises NotFound, Invalid (``path_outside_root``).
    """
    parts = parse_user_path(text, field=field)
    versions = visible_versions(actor).order_by("-number")
    if is_id(text):
        found = versions.filter(Q(pk=UUID(text)) | Q(model__pk=UUID(text)))
        return _usable_first(found) or _nothing_called(text, field)
    path = "/".join(parts)
    for name, number in names_with_numbers(text, parts[-1] if parts else ""):
        named = versions.filter(model__name=name, **({"number": number} if number else {}))
        imported = versions.filter(location__in=(path, f"private/{path}", f"public/{path}")) if name == text else named
        found_one = _usable_first(named) or _usable_first(imported)
        if found_one is not None:
            return found_one
    return _nothing_called(text, field)


def _usable_first(versions: QuerySet[ModelVersion]) -> ModelVersion | None:
    return versions.filter(state="ready").exclude(format="gguf").first() or versions.first()


def _nothing_called(text: str, field: str) -> NoReturn:
    message = f"There is no model {quoted(text)}; give the name of a registered one, name@version, or its id."
    raise NotFound(message, field=field)


def deploy_json_of(version: ModelVersion) -> str:
    """The text of the deploy.json beside the weights; empty where there is none, or none that can be shown."""
    if not version.folder or version.state != "ready":
        return ""
    try:
        with open_regular(version.path, (DEPLOY_JSON,)) as stream:
            return text_of(stream.read(MAX_DEPLOY_JSON_BYTES + 1))
    except (NotFound, Conflict, FileNotFoundError):  # the last: its folder has gone
        return ""


def text_of(data: bytes) -> str:
    """UTF-8 of a size that is shown; empty for anything else."""
    try:
        return data.decode() if len(data) <= MAX_DEPLOY_JSON_BYTES else ""
    except UnicodeDecodeError:
        return ""


def lineage(version: ModelVersion) -> list[ModelVersion]:
    """The version and all it was made from, newest first."""
    chain: list[ModelVersion] = []
    current: ModelVersion | None = version
    while current is not None:
        chain.append(current)
        current = current.base_version
    return chain
