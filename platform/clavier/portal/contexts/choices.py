"""What select boxes offer: the newest usable versions of the tenant."""

from __future__ import annotations

from dataclasses import dataclass

from clavier.core.actor import Actor
from clavier.images.queries import ready_versions
from clavier.portal import labels
from datasets_app.models import DatasetVersion
from models_app.models import ModelVersion
from models_app.queries import visible_versions

MOST_CHOICES = 200


@dataclass(frozen=True, slots=True)
class Option:
    """One choice. ``facts``: what the page's script looks at, as data attributes."""

    value: str
    text: str
    facts: dict[str, str]


def base_model_options(actor: Actor) -> list[Option]:
    """Versions that can be tuned: ready and whole."""
    versions = visible_versions(actor).filter(state="ready", format="full").exclude(task="reward")[:MOST_CHOICES]
    return [Option(str(version.pk), str(version), {}) for version in versions]


def model_options(actor: Actor, *tasks: str) -> list[Option]:
    """Versions that our own programs judge or serve: those for the tasks."""
    versions = visible_versions(actor).filter(state="ready", task__in=tasks).exclude(format="gguf")[:MOST_CHOICES]
    return [Option(str(version.pk), str(version), {"name": version.model.name}) for version in versions]


def any_model_options(actor: Actor) -> list[Option]:
    """Ready versions with files, whatever they do: own programs know what they take."""
    versions = visible_versions(actor).filter(state="ready").exclude(format="image")[:MOST_CHOICES]
    return [Option(str(version.pk), str(version), {}) for version in versions]


def image_options(actor: Actor) -> list[Option]:
    """Container images that runs can be started with."""
    return [Option(str(version.pk), str(version), {}) for version in ready_versions(actor)[:MOST_CHOICES]]


def reward_model_options(actor: Actor) -> list[Option]:
    """Versions that score answers, those that are deployed with the names of their services."""
    versions = visible_versions(actor).filter(state="ready", task="reward")
    versions = versions.prefetch_related("service_versions__service")[:MOST_CHOICES]
    return [Option(str(version.pk), with_services(version), {}) for version in versions]


def with_services(version: ModelVersion) -> str:
    """A version's name, and the services that serve it: ``scorer@1 (judge)``."""
    names = sorted({served.service.name for served in version.service_versions.all()})
    return f"{version} ({', '.join(names)})" if names else str(version)


def dataset_options(actor: Actor, *kinds: str) -> list[Option]:
    """Usable dataset versions of some kinds; of all when none is named."""
    versions = DatasetVersion.objects.filter(tenant_id=actor.tenant_id, is_usable=True).select_related("dataset")
    if kinds:
        versions = versions.filter(kind__in=kinds)
    return [
        Option(
            str(version.pk),
            f"{version} · {version.num_samples:,} · {labels.KINDS.get(version.kind, version.kind)}",
            {"samples": str(version.num_samples), "kind": version.kind},
        )
        for version in versions[:MOST_CHOICES]
    ]
