"""What lists of models show."""

from __future__ import annotations

from django.db.models import Count, Q, QuerySet

from clavier.core.actor import Actor
from models_app.models import ModelVersion, RegisteredModel


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


def lineage(version: ModelVersion) -> list[ModelVersion]:
    """The version and all it was made from, newest first."""
    chain: list[ModelVersion] = []
    current: ModelVersion | None = version
    while current is not None:
        chain.append(current)
        current = current.base_version
    return chain
