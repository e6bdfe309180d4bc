"""What the pages of container images show."""

from __future__ import annotations

from dataclasses import dataclass

from django.db.models import Prefetch, Q, QuerySet

from clavier.core.actor import Actor
from clavier.files.access import visible_files
from clavier.images.models import ContainerImage, ImageVersion
from clavier.images.queries import visible_images, visible_versions
from clavier.portal.contexts.choices import MOST_CHOICES, Option
from clavier.portal.forms.images import ArchiveForm, ImageForm, RegistryForm
from clavier.portal.listing import Listing
from clavier.portal.templatetags.portal_format import size
from clavier.runs.queries import progress
from clavier.runs.states import LIVE_STATES
from clavier.runs.waiting import explain

ARCHIVE_SUFFIXES = (".tar", ".tgz", ".gz")


@dataclass(frozen=True, slots=True)
class ImageRow:
    """An image in a list with its newest version."""

    image: ContainerImage
    newest: ImageVersion | None
    is_live: bool
    is_foreign: bool


@dataclass(frozen=True, slots=True)
class ImageList:
    """The list of images."""

    listing: Listing[ContainerImage]
    rows: list[ImageRow]
    is_live: bool


@dataclass(frozen=True, slots=True)
class ImageNew:
    """The form of a new image."""

    form: ImageForm


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A version, and how far its import is."""

    version: ImageVersion
    is_live: bool
    phase: str
    step: int | None
    total_steps: int | None


@dataclass(frozen=True, slots=True)
class ImageDetail:
    """An image, its versions, and the forms that import further ones."""

    image: ContainerImage
    versions: list[VersionRow]
    is_live: bool
    may_change: bool
    may_share: bool
    archive_form: ArchiveForm
    registry_form: RegistryForm
    archives: list[Option]


def with_versions(actor: Actor, search: str) -> QuerySet[ContainerImage]:
    """The images of a list; their versions come in one more query."""
    versions = Prefetch("versions", ImageVersion.objects.order_by("-created_at"))
    return visible_images(actor, search=search).prefetch_related(versions)


def image_list(actor: Actor, listing: Listing[ContainerImage]) -> ImageList:
    """Images with their newest versions."""
    rows = [image_row(actor, image) for image in listing.rows]
    return ImageList(listing, rows, any(row.is_live for row in rows))


def image_row(actor: Actor, image: ContainerImage) -> ImageRow:
    """One row of the list."""
    versions = list(image.versions.all())
    return ImageRow(
        image=image,
        newest=versions[0] if versions else None,
        is_live=any(version.state == "importing" for version in versions),
        is_foreign=image.tenant_id != actor.tenant_id,
    )


def image_detail(
    actor: Actor,
    image: ContainerImage,
    archive_form: ArchiveForm | None = None,
    registry_form: RegistryForm | None = None,
) -> ImageDetail:
    """All versions of an image, newest first."""
    rows = [version_row(version) for version in visible_versions(actor, image)]
    is_own = image.tenant_id == actor.tenant_id
    may_change = is_own and actor.may_write and (actor.manages_tenant or image.created_by_id == actor.user_id)
    return ImageDetail(
        image=image,
        versions=rows,
        is_live=any(row.is_live for row in rows),
        may_change=may_change,
        may_share=actor.is_operator and actor.may_write,
        archive_form=archive_form or ArchiveForm(),
        registry_form=registry_form or RegistryForm(),
        archives=archive_options(actor) if may_change else [],
    )


def version_row(version: ImageVersion) -> VersionRow:
    """One version."""
    run = version.run
    is_live = version.state == "importing" and run is not None and run.state in LIVE_STATES
    found = progress(run.pk) if run is not None and is_live else {}
    return VersionRow(
        version=version,
        is_live=is_live,
        phase=found.get("phase", {}).get("message", "") or explain(run).why,
        step=found.get("progress", {}).get("step"),
        total_steps=found.get("progress", {}).get("total_steps"),
    )


def archive_options(actor: Actor) -> list[Option]:
    """Files that may be archives, the newest first."""
    named = Q()
    for suffix in ARCHIVE_SUFFIXES:
        named |= Q(name__iendswith=suffix)
    files = visible_files(actor).filter(named, is_folder=False).order_by("-created_at")[:MOST_CHOICES]
    return [Option(str(file.pk), f"{file} · {size(file.size_bytes)}", {}) for file in files]
