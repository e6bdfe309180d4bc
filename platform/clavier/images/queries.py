"""What lists of images are made from."""

from __future__ import annotations

from typing import Any

from django.db.models import Count, Q, QuerySet, Sum

from clavier.core.actor import Actor
from clavier.images.access import usable_images, usable_versions
from clavier.images.models import ContainerImage, ImageVersion
from clavier.runs.models import Run
from clavier.runs.states import LIVE_STATES


def visible_images(actor: Actor, *, search: str = "") -> QuerySet[ContainerImage]:
    """The actor's images and public ones with the number of versions; ``search`` looks at name, overview, labels."""
    images = usable_images(actor).annotate(num_versions=Count("versions"))
    if search:
        images = images.filter(
            Q(name__icontains=search) | Q(overview__icontains=search) | Q(description__icontains=search)
        )
    return images.select_related("created_by")


def visible_versions(actor: Actor, image: ContainerImage) -> QuerySet[ImageVersion]:
    """The versions of an image that the actor may use, newest first."""
    return usable_versions(actor).filter(image=image)


def ready_versions(actor: Actor) -> QuerySet[ImageVersion]:
    """Versions that runs can be started with, for choices in forms."""
    return usable_versions(actor).filter(state="ready").order_by("image__name", "-created_at")


def live_runs_with(image_id: str) -> QuerySet[Run]:
    """Runs, of any tenant, that have not ended and may still load the image."""
    return Run.objects.filter(state__in=LIVE_STATES, spec__image__id=image_id)


def stored_images() -> QuerySet[Any, Any]:
    """Rows of (tenant, user, bytes, inodes): what image archives are charged with."""
    return (
        ImageVersion.objects.filter(state="ready")
        .order_by()
        .values("tenant_id", "created_by_id")
        .annotate(size=Sum("size_bytes"), inodes=Count("pk"))
        .values_list("tenant_id", "created_by_id", "size", "inodes")
    )
