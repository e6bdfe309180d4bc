"""Register, import, share and delete container images."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import ProtectedError, RestrictedError
from django.utils import timezone

from clavier.accounts.access import require_write
from clavier.accounts.queries import own_tenant
from clavier.core.actor import Actor
from clavier.core.errors import Conflict, Forbidden, Invalid, TooLarge, quoted
from clavier.core.names import parse_display_name
from clavier.core.references import in_use
from clavier.files.access import access_file
from clavier.files.models import MIB, StoredFile
from clavier.files.storage import area_folder
from clavier.files.usage import charge, refuse_over_limit, release
from clavier.images.access import require_image_change
from clavier.images.logins import RegistryLogin, forget_login, write_login
from clavier.images.models import ContainerImage, ImageVersion
from clavier.images.queries import live_runs_with
from clavier.images.references import IMAGE_ID_PATTERN, check_image_name, check_tag, parse_reference
from clavier.images.store import place_archive
from clavier.runs.models import Run
from clavier.runs.outputs import check_manifest
from clavier.runs.queries import progress
from clavier.runs.services import delete_run, stop_run, submit_run
from clavier.runs.states import RunState
from runner.contract.run_spec import Limits, Mount, Resources, RunSpec

MAX_LABELS = 50
IMPORT_PROGRAM = "runner.programs.images.import_image"
#: Columns that say what an import has found; a new import of the tag begins without them.
FACTS = ("architecture", "os", "user", "entrypoint", "cmd", "env_names", "exposed_ports", "layers", "warnings")


def register_image(
    *,
    actor: Actor,
    name: str,
    icon: str = "",
    overview: str = "",
    description: str = "",
    labels: list[str] | None = None,
) -> ContainerImage:
    """A named image, to which tags are imported. Raises Invalid (``bad_name``), Conflict (``already_exists``)."""
    require_write(actor)
    check_image_name(name)
    with transaction.atomic():
        image, created = ContainerImage.objects.get_or_create(
            tenant_id=actor.tenant_id,
            name=name,
            defaults={
                "created_by_id": actor.user_id,
                "icon": icon,
                "overview": overview,
                "description": description,
                "labels": checked_labels(labels or []),
            },
        )
    if not created:
        raise Conflict(f"An image {quoted(name)} exists. Import a tag into it.", code="already_exists", field="name")
    return image


def import_image_archive(*, actor: Actor, image: ContainerImage, tag: str, file: StoredFile | UUID) -> ImageVersion:
    """Take an uploaded archive (or its id) over as ``image:tag``, by a run. A failed import's tag may be used again.

    Raises Invalid, Forbidden, NotFound, Conflict (``already_exists``), TooLarge, StorageFull.
    """
    require_image_change(actor, image)
    check_tag(tag)
    file = access_file(actor, file.pk if isinstance(file, StoredFile) else file, field="file")
    if file.is_folder:
        raise Invalid(f"{file} is a folder; name the archive in it.", code="bad_value", field="file")
    if file.size_bytes > settings.IMAGE_MAX_MIB * MIB:
        raise TooLarge(
            f"{file} has {file.size_bytes / 2**30:,.1f} GiB; images of up to {settings.IMAGE_MAX_MIB / 1024:g} GiB are "
            "taken.",
            code="file_too_large",
            field="file",
        )
    refuse_over_limit(
        tenant_id=actor.tenant_id, user_id=actor.user_id, size_bytes=file.size_bytes, inodes=1, field="file"
    )
    root = area_folder(file.tenant_id, file.created_by_id, file.area, own_tenant(actor).number)
    location = str(root.joinpath(*file.path.split("/")))
    return start_import(
        actor, image, tag, source="tar", location=str(file), parameters={"location": location}, mounts=(location,)
    )


def import_image_from_registry(
    *, actor: Actor, image: ContainerImage, tag: str, reference: str, login: RegistryLogin | None = None
) -> ImageVersion:
    """Pull ``reference`` (``host/team/name:tag`` or ``...@sha256:...``) as ``image:tag``, by a run with a network.

    The login lies in a file of its own until the run has ended; no row and no spec holds it.
    Raises Invalid, Forbidden, Conflict (``already_exists``).
    """
    require_image_change(actor, image)
    check_tag(tag)
    place = parse_reference(reference)
    version_id = uuid4()
    parameters = {
        "address": place.address,
        "repository": place.repository,
        "reference": place.reference,
        "allowed": settings.IMAGE_REGISTRIES_ALLOWED,
        "credentials": None,
    }
    mounts: tuple[str, ...] = ()
    if login is not None:
        path = str(write_login(version_id, login, own_tenant(actor).number))
        parameters["credentials"], mounts = path, (path,)
    try:
        return start_import(
            actor, image, tag, source="registry", location=reference, parameters=parameters, mounts=mounts,
            version_id=version_id,
        )  # fmt: skip
    except BaseException:
        forget_login(version_id)
        raise


def on_run_finished(run: Run) -> None:
    """The import has ended: the version is ready and its archive in the store, or failed with the reason.

    Raises Invalid (``bad_output``), StorageFull.
    """
    version = ImageVersion.objects.filter(run=run).select_related("image").first()
    if version is None:
        return
    transaction.on_commit(lambda: forget_login(version.pk))
    if run.state != RunState.COMPLETED:
        version.state, version.message = "failed", run.message
        version.error = str(progress(run.pk).get("error", {}).get("code", ""))[:60] or run.end_reason
        version.save(update_fields=["state", "message", "error", "updated_at"])
        return
    facts = image_facts(run)
    for column in FACTS:
        setattr(version, column, facts.get(column) or type(getattr(version, column))())
    version.state, version.content_id, version.size_bytes = "ready", facts["image_id"], facts["size_bytes"]
    version.digest = facts.get("digest") or ""
    charge(tenant_id=version.tenant_id, user_id=version.created_by_id, size_bytes=version.size_bytes, inodes=1)
    version.save()
    place_archive(run.pk, version.content_id)


def update_image(*, actor: Actor, image: ContainerImage, **changes: Any) -> ContainerImage:
    """Change name, icon, overview, description or labels. Raises Forbidden, Invalid, Conflict."""
    require_image_change(actor, image)
    if "name" in changes:
        check_image_name(changes["name"])
        taken = ContainerImage.objects.filter(tenant_id=image.tenant_id, name=changes["name"]).exclude(pk=image.pk)
        if taken.exists():
            raise Conflict(f"An image {quoted(changes['name'])} exists.", code="already_exists", field="name")
    if "labels" in changes:
        changes["labels"] = checked_labels(changes["labels"])
    for column in ("name", "icon", "overview", "description", "labels"):
        if column in changes:
            setattr(image, column, changes[column])
    image.save()
    return image


def share_image(*, actor: Actor, image: ContainerImage, is_public: bool) -> ContainerImage:
    """Let all tenants use an image, or no longer. What uses it already keeps it. Raises Forbidden."""
    require_write(actor)
    if not actor.is_operator:
        raise Forbidden("Only operators share images with all tenants.", field="is_public")
    return set_public(image, is_public)


def set_public(image: ContainerImage, is_public: bool) -> ContainerImage:
    """What ``share_image`` and the operators' admin do."""
    image.is_public = is_public
    if is_public and image.first_shared_at is None:
        image.first_shared_at = timezone.now()
    image.save(update_fields=["is_public", "first_shared_at", "updated_at"])
    return image


def cancel_image_import(*, actor: Actor, version: ImageVersion) -> None:
    """Stop a running import. Raises Conflict, Forbidden."""
    require_image_change(actor, version)
    if version.run is None:
        raise Conflict("The import has ended already.", code="already_ended")
    stop_run(run=version.run, actor_name=actor.username)


def delete_image(*, actor: Actor, image: ContainerImage) -> None:
    """Delete an image with all its tags. Raises Conflict (``in_use``), Forbidden."""
    require_image_change(actor, image)
    with transaction.atomic():
        for version in image.versions.select_related("run", "image"):
            delete_version_rows(version)
        image.delete()


def delete_image_version(*, actor: Actor, version: ImageVersion) -> None:
    """Delete a tag and give its storage back; ``collect_images`` removes what no tag names. Raises Conflict, Forbidden.

    Refused (``in_use``) while tasks, services or unfinished runs refer to it.
    """
    require_image_change(actor, version)
    with transaction.atomic():
        delete_version_rows(version)


def start_import(
    actor: Actor,
    image: ContainerImage,
    tag: str,
    *,
    source: str,
    location: str,
    parameters: dict[str, Any],
    mounts: tuple[str, ...] = (),
    version_id: UUID | None = None,
) -> ImageVersion:
    """The version of a tag, importing, with its run. Raises Conflict (``already_exists``)."""
    spec = RunSpec(
        kind="image_import",
        program=IMPORT_PROGRAM,
        parameters={
            "source": source,
            "name": image.name,
            "tag": tag,
            "os": "linux",
            "architectures": settings.IMAGE_ARCHITECTURES,
            "max_bytes": settings.IMAGE_MAX_MIB * MIB,
            **parameters,
        },
        mounts=tuple(Mount(mount) for mount in mounts),
        resources=Resources(cpu_milli=500, memory_mib=512),
        limits=Limits(time_limit_s=24 * 3600),
        needs_network=source == "registry",
    )
    with transaction.atomic():
        drop_failed(image, tag)
        version = ImageVersion(
            id=version_id or uuid4(),
            tenant_id=image.tenant_id,
            created_by_id=actor.user_id,
            image=image,
            tag=tag,
            source=source,
            location=location,
        )
        insert_version(version)
        version.run = submit_run(
            actor=actor, kind="image_import", name=f"import {version}", subject_id=version.pk, spec=spec
        )
        version.save(update_fields=["run"])
    return version


def insert_version(version: ImageVersion) -> None:
    """The new row of a tag. Raises Conflict (``already_exists``) when somebody else was faster."""
    try:
        with transaction.atomic():
            version.save(force_insert=True)
    except IntegrityError as error:
        raise Conflict(
            f"{version} is being imported already. Take another tag.", code="already_exists", field="tag"
        ) from error


def drop_failed(image: ContainerImage, tag: str) -> None:
    """Make room for a tag whose last import failed. Raises Conflict (``already_exists``) for any other."""
    there = image.versions.select_for_update().filter(tag=tag).select_related("image").first()
    if there is None:
        return
    if there.state != "failed":
        raise Conflict(
            f"{there} exists ({there.state}). Delete it first, or take another tag: a tag always means one content.",
            code="already_exists",
            field="tag",
        )
    delete_version_rows(there)


def delete_version_rows(version: ImageVersion) -> None:
    """Delete the row, give the storage back, then the import's run with its files. Raises Conflict (``in_use``)."""
    run = version.run
    if run is not None and not run.is_final:
        raise Conflict(f"{version} is being imported; stop the import first.", code="in_use")
    if version.is_usable:
        refuse_live_runs(version)
    try:
        version.delete()
    except (ProtectedError, RestrictedError) as error:
        raise in_use(error, f"image {quoted(str(version))}") from error
    if version.is_usable:
        release(tenant_id=version.tenant_id, user_id=version.created_by_id, size_bytes=version.size_bytes, inodes=1)
    if run is not None:
        delete_run(run=run)


def refuse_live_runs(version: ImageVersion) -> None:
    """Raises Conflict (``in_use``) naming the tenant's own runs that may still load the image."""
    live = list(live_runs_with(version.content_id)[:100])
    if not live:
        return
    own = sorted({f"run {quoted(run.name)}" for run in live if run.tenant_id == version.tenant_id})[:5]
    others = sum(run.tenant_id != version.tenant_id for run in live)
    users = own + ([f"{others} runs of other tenants"] if others else [])
    raise Conflict(
        f"image {quoted(str(version))} is used by {', '.join(users)}. Stop them first, or wait until they have ended.",
        code="in_use",
    )


def image_facts(run: Run) -> dict[str, Any]:
    """What the import's manifest says. Raises Invalid (``bad_output``)."""
    manifest, wrong = check_manifest(run.pk)
    facts = manifest.get("facts") if manifest else None
    if not isinstance(facts, dict) or not IMAGE_ID_PATTERN.fullmatch(str(facts.get("image_id"))):
        raise Invalid(wrong or "The manifest does not name the image's id.", code="bad_output")
    if not isinstance(facts.get("size_bytes"), int):
        raise Invalid("The manifest does not say how large the image is.", code="bad_output")
    return facts


def checked_labels(labels: list[str]) -> list[str]:
    """The labels without blanks around and without doubles. Raises Invalid."""
    found = list(dict.fromkeys(parse_display_name(label, field="labels") for label in labels))
    if len(found) > MAX_LABELS:
        raise Invalid(f"labels has {len(found)} labels; {MAX_LABELS} are allowed.", code="too_long", field="labels")
    return found
