"""What lists of data sets are made from, and the doors to them."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID

from django.db.models import Count, Max, Q, QuerySet, Sum, TextField
from django.db.models.functions import Cast

from clavier.accounts.access import access_object
from clavier.core.actor import Actor
from clavier.core.errors import Invalid, NotFound, quoted
from clavier.core.names import is_id, names_with_numbers
from clavier.files.names import parse_user_path
from datasets_app.models import Dataset, DatasetVersion

#: What every page and answer about a version names.
_SHOWN = ("dataset", "created_by", "parent__dataset")


def access_dataset(actor: Actor, dataset_id: UUID | str, *, field: str | None = None) -> Dataset:
    """A data set of the actor's tenant. Raises NotFound."""
    datasets = Dataset.objects.select_related("created_by")
    return access_object(datasets, actor, dataset_id, noun="data set", field=field)


def access_dataset_version(actor: Actor, version_id: UUID | str, *, field: str | None = None) -> DatasetVersion:
    """A version of a data set of the actor's tenant. Raises NotFound."""
    versions = DatasetVersion.objects.select_related(*_SHOWN)
    return access_object(versions, actor, version_id, noun="data set version", field=field)


def access_rows_of(actor: Actor, version_id: UUID | str) -> DatasetVersion:
    """A version for reading its rows: without the other columns, which cost more than the rows. Raises NotFound."""
    versions = DatasetVersion.objects.only("tenant_id", "num_samples").order_by("pk")
    return access_object(versions, actor, version_id, noun="data set version")


def newest_version_named(actor: Actor, name: str, *, field: str | None = None) -> DatasetVersion:
    """The newest version of the tenant's data set of that name. Raises NotFound."""
    versions = DatasetVersion.objects.select_related("dataset", "created_by")
    found = versions.filter(tenant_id=actor.tenant_id, dataset__name=name).order_by("-number").first()
    if found is None:
        raise NotFound(f"There is no data set {quoted(name)} with a version.", field=field)
    return found


def version_called(actor: Actor, text: str, *, field: str) -> DatasetVersion:
    """What a configuration calls a data set: its name, ``name@2``, an id, or the path of its file.

    Of a path, ``datasets/faq.jsonl``, the folder ``datasets`` means nothing, and the rest is the name of a data set
    (with or without the ending) or of a file that was uploaded; the newest version counts.
    Raises NotFound, Invalid (``path_outside_root``, ``ambiguous``).
    """
    if is_id(text):
        return version_or_newest(actor, text, field=field)
    versions = DatasetVersion.objects.filter(tenant_id=actor.tenant_id).select_related(*_SHOWN).order_by("-number")
    parts = parse_user_path(text, field=field)
    rest = "/".join(parts[1:] if parts[:1] == ("datasets",) else parts)
    stem = PurePosixPath(rest).stem
    for name, number in names_with_numbers(text, rest, stem):
        named = versions.filter(dataset__name=name, **({"number": number} if number else {})).first()
        if named is not None:
            return named
    uploaded = versions.filter(file_name=rest.rpartition("/")[2])
    holders = sorted(set(uploaded.order_by().values_list("dataset__name", flat=True)))
    if len(holders) > 1:
        message = f"{field} {quoted(text)} was uploaded to the data sets {', '.join(holders)}; name one of them."
        raise Invalid(message, code="ambiguous", field=field)
    found = uploaded.first()
    if found is None:
        raise NotFound(f"There is no data set {quoted(text)}; upload it first, or give the name of one.", field=field)
    return found


def version_or_newest(actor: Actor, object_id: UUID | str, *, field: str | None = None) -> DatasetVersion:
    """The version of that id, or the newest one of the data set of that id. Raises NotFound."""
    try:
        return access_dataset_version(actor, object_id, field=field)
    except NotFound:
        newest = versions_of(access_dataset(actor, object_id, field=field)).first()
        if newest is None:
            raise
        return newest


def search(actor: Actor, text: str = "", *, tag: str = "") -> QuerySet[Dataset]:
    """The tenant's data sets whose name, description or a tag has the text, newest first; ``tag``: with exactly that.

    Each with ``num_versions`` and ``newest_number`` (None before the first version).
    """
    found = Dataset.objects.filter(tenant_id=actor.tenant_id).alias(tags_text=Cast("tags", TextField()))
    # SQLite keeps JSON with \\u escapes, PostgreSQL without.
    if text:
        in_tags = Q(tags_text__icontains=text) | Q(tags_text__icontains=json.dumps(text)[1:-1])
        found = found.filter(Q(name__icontains=text) | Q(description__icontains=text) | in_tags)
    if tag:
        spelled = (json.dumps(tag), json.dumps(tag, ensure_ascii=False))
        found = found.filter(Q(tags_text__contains=spelled[0]) | Q(tags_text__contains=spelled[1]))
    return (
        found.select_related("created_by")
        .annotate(num_versions=Count("versions"), newest_number=Max("versions__number"))
        .order_by("-created_at", "id")
    )


def versions_of(dataset: Dataset) -> QuerySet[DatasetVersion]:
    """The versions of a data set, newest first."""
    return (
        DatasetVersion.objects.filter(dataset=dataset)
        .select_related("dataset", "created_by", "parent__dataset")
        .order_by("-number")
    )


def statistics(actor: Actor) -> dict[str, Any]:
    """What the tenant has: ``{datasets, versions, num_samples, size_bytes, kinds: {kind: versions}}``."""
    versions = DatasetVersion.objects.filter(tenant_id=actor.tenant_id)
    sums = versions.aggregate(versions=Count("pk"), num_samples=Sum("num_samples"), size_bytes=Sum("size_bytes"))
    kinds = versions.order_by("kind").values_list("kind").annotate(count=Count("pk"))
    return {
        "datasets": Dataset.objects.filter(tenant_id=actor.tenant_id).count(),
        "versions": sums["versions"],
        "num_samples": sums["num_samples"] or 0,
        "size_bytes": sums["size_bytes"] or 0,
        "kinds": dict(kinds),
    }


def stored_versions() -> QuerySet[Any, Any]:
    """Rows of (tenant, user, bytes, inodes): what data set versions are charged with."""
    return (
        DatasetVersion.objects.order_by()
        .values("tenant_id", "created_by_id")
        .annotate(size=Sum("stored_bytes"), inodes=Sum("stored_inodes"))
        .values_list("tenant_id", "created_by_id", "size", "inodes")
    )
