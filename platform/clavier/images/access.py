"""Who may see, use and change which image."""

from __future__ import annotations

from uuid import UUID

from django.db.models import Q, QuerySet

from clavier.accounts.access import require_change
from clavier.core.actor import Actor
from clavier.core.errors import Conflict, Forbidden, NotFound, quoted
from clavier.images.models import ContainerImage, ImageVersion
from runner.contract.run_spec import Image


def usable_images(actor: Actor) -> QuerySet[ContainerImage]:
    """The tenant's images, and those that an operator shares with everybody."""
    return ContainerImage.objects.filter(Q(tenant_id=actor.tenant_id) | Q(is_public=True))


def usable_versions(actor: Actor) -> QuerySet[ImageVersion]:
    """Versions of the images that the actor may use."""
    return ImageVersion.objects.filter(Q(tenant_id=actor.tenant_id) | Q(image__is_public=True)).select_related(
        "image", "run", "created_by"
    )


def access_image(actor: Actor, image_id: UUID | str, *, field: str | None = None) -> ContainerImage:
    """The tenant's own image or a public one. Raises NotFound."""
    key = parse_id(image_id)
    found = usable_images(actor).select_related("created_by").filter(pk=key).first() if key else None
    if found is None:
        raise NotFound(f"There is no image {quoted(str(image_id))}.", field=field)
    return found


def access_own_image(actor: Actor, image_id: UUID | str) -> ContainerImage:
    """An image that the actor may change. Raises NotFound, Forbidden."""
    image = access_image(actor, image_id)
    require_image_change(actor, image)
    return image


def access_image_version(actor: Actor, version_id: UUID | str, *, field: str | None = "image_version") -> ImageVersion:
    """A version of the tenant's own image or of a public one. Raises NotFound."""
    key = parse_id(version_id)
    found = usable_versions(actor).filter(pk=key).first() if key else None
    if found is None:
        raise NotFound(f"There is no image version {quoted(str(version_id))}.", field=field)
    return found


def find_image_version(actor: Actor, reference: str, *, field: str | None = "image") -> ImageVersion:
    """The version that ``name:tag`` means to the actor: its tenant's own image before a public one. Raises NotFound.

    Without a tag it is ``latest``.
    """
    name, _, tag = reference.partition(":")
    found = usable_versions(actor).filter(image__name=name, tag=tag or "latest")
    own = [version for version in found if version.tenant_id == actor.tenant_id]
    version = next(iter(own or found), None)
    if version is None:
        raise NotFound(f"There is no image {quoted(reference)}. Images are named name:tag.", field=field)
    return version


def image_of_run(version: ImageVersion, *, field: str = "image_version") -> Image:
    """What a RunSpec says of a version. Raises Conflict (``not_ready``)."""
    if not version.is_usable:
        raise Conflict(
            f"The image {version} is {version.state}. {version.message or 'Wait until its import has ended.'}",
            code="not_ready",
            field=field,
        )
    return Image(version.content_id, str(version.archive))


def require_image_change(actor: Actor, owned: ContainerImage | ImageVersion) -> None:
    """Raises Forbidden unless the actor created it or manages its tenant; a public one belongs to its tenant."""
    if owned.tenant_id != actor.tenant_id:
        raise Forbidden("This image is shared with all tenants; only its own tenant may change it.")
    require_change(actor, owned, noun="image")


def parse_id(given: UUID | str) -> UUID | None:
    """None for what is no id at all, which is as good as one that does not exist."""
    try:
        return given if isinstance(given, UUID) else UUID(str(given))
    except ValueError:
        return None
