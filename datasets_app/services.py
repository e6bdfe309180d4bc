"""What can be done with data sets."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from django.conf import settings
from django.core.files.uploadedfile import UploadedFile
from django.db import IntegrityError, transaction
from django.db.models import Max, ProtectedError, Q, RestrictedError, Sum

from clavier.accounts.access import require_change, require_write
from clavier.accounts.queries import own_tenant
from clavier.core.actor import Actor
from clavier.core.errors import Conflict, FieldProblem, Invalid, InvalidFields, NotFound, quoted
from clavier.core.names import parse_display_name
from clavier.core.ownership import share_with_tenant
from clavier.core.references import in_use
from clavier.files.names import parse_file_name
from clavier.files.storage import (
    INCOMING,
    DiskChanges,
    disk_changes,
    fsync_folder,
    refuse_low_disk,
    shared_folder,
    stage,
)
from clavier.files.usage import charge, refuse_over_limit, release
from datasets_app.findings import LISTED, Findings
from datasets_app.formats import format_of
from datasets_app.gate import Report, examine
from datasets_app.labels import checked_labels
from datasets_app.mapping import checked_mapping
from datasets_app.models import Dataset, DatasetVersion
from datasets_app.queries import access_dataset, access_dataset_version
from datasets_app.storage import ROWS, footprint, original_name, version_folder
from datasets_app.tasks import forget_tasks
from datasets_app.validation import PURPOSES

MAX_DESCRIPTION_CHARACTERS = 20_000
MAX_WORDS = 50
MAX_WORD_CHARACTERS = 100


@dataclass(frozen=True, slots=True)
class Checked:
    """A file that passed the gate, in its future version's folder, not yet in place."""

    version_id: UUID
    folder: Path
    file_name: str
    file_format: str
    report: Report


def create_dataset(
    *,
    actor: Actor,
    name: str,
    description: str = "",
    languages: Sequence[str] = (),
    tags: Sequence[str] = (),
    license: str = "",
    task: str = "",
) -> Dataset:
    """A data set without versions. Raises Forbidden, Invalid, Conflict (``already_exists``)."""
    require_write(actor)
    values = _parsed(name=name, description=description, languages=languages, tags=tags, license=license, task=task)
    return _insert_dataset(actor, values)


def create_dataset_with_file(
    *,
    actor: Actor,
    name: str,
    upload: UploadedFile[Any],
    file_name: str,
    description: str = "",
    languages: Sequence[str] = (),
    tags: Sequence[str] = (),
    license: str = "",
    task: str = "",
    purpose: str = "",
    mapping: Mapping[str, str] | None = None,
    split: str = "",
    subset: str = "",
) -> DatasetVersion:
    """A data set and its first version, or neither. Raises as ``create_dataset`` and ``upload_version``."""
    with closing(upload):
        require_write(actor)
        labels = checked_labels(split, subset)
        values = _parsed(name=name, description=description, languages=languages, tags=tags, license=license, task=task)
        if Dataset.objects.filter(tenant_id=actor.tenant_id, name=values["name"]).exists():
            raise _name_taken(values["name"])
        with (
            _passed_gate(actor, upload, file_name, purpose, mapping) as checked,
            disk_changes(settings.CLAVIER_DATASETS) as disk,
            transaction.atomic(durable=True),
        ):
            return add_version(actor, _insert_dataset(actor, values), checked, disk, **labels)


def upload_version(
    *,
    actor: Actor,
    dataset: Dataset,
    upload: UploadedFile[Any],
    file_name: str,
    purpose: str = "",
    mapping: Mapping[str, str] | None = None,
    split: str = "",
    subset: str = "",
) -> DatasetVersion:
    """Check a file of any of FORMATS and keep it as the next version. The upload is used up either way.

    ``purpose`` (sft, preference, pretrain, classification) demands its columns; empty: what the columns look like.
    ``mapping``: the platform's column names -> the file's; None: guessed where the file's own names fit nothing.
    ``split``, ``subset``: see ``labels.py``.
    Raises NotFound, Forbidden, Invalid, InvalidFields with the first findings, TooLarge, StorageFull.
    """
    with closing(upload):
        found = access_dataset(actor, dataset.pk)
        require_change(actor, found, noun="data set")
        labels = checked_labels(split, subset)
        with (
            _passed_gate(actor, upload, file_name, purpose, mapping) as checked,
            disk_changes(settings.CLAVIER_DATASETS) as disk,
            transaction.atomic(durable=True),
        ):
            # Locked, so that two uploads at once get different numbers.
            locked = Dataset.objects.select_for_update().filter(pk=found.pk).first()
            if locked is None:
                raise NotFound(f"There is no data set {quoted(str(found.pk))}.")
            return add_version(actor, locked, checked, disk, **labels)


def update_dataset(*, actor: Actor, dataset: Dataset, **changes: Any) -> Dataset:
    """Change name, description, languages, tags, license or task. Raises NotFound, Forbidden, Invalid, Conflict."""
    found = access_dataset(actor, dataset.pk)
    require_change(actor, found, noun="data set")
    values = _parsed(**changes)
    for field, value in values.items():
        setattr(found, field, value)
    try:
        with transaction.atomic():
            found.save(update_fields=[*values, "updated_at"])
    except IntegrityError as error:
        raise _name_taken(found.name) from error
    return found


def delete_version(*, actor: Actor, version: DatasetVersion) -> None:
    """Delete a version and its files. Raises NotFound, Forbidden, Conflict (``in_use``, naming what refers)."""
    found = access_dataset_version(actor, version.pk)
    require_change(actor, found, noun="data set version")
    with disk_changes(settings.CLAVIER_DATASETS) as disk, transaction.atomic(durable=True):
        forget_tasks(Q(version=found))
        _remove_versions([found], f"version {found.number} of data set {quoted(found.dataset.name)}", disk)


def delete_dataset(*, actor: Actor, dataset: Dataset) -> None:
    """Delete a data set with all of its versions. Raises NotFound, Forbidden, Conflict (``in_use``)."""
    found = access_dataset(actor, dataset.pk)
    require_change(actor, found, noun="data set")
    with disk_changes(settings.CLAVIER_DATASETS) as disk, transaction.atomic(durable=True):
        forget_tasks(Q(dataset=found) | Q(version__dataset=found))
        versions = list(DatasetVersion.objects.select_for_update().filter(dataset=found))
        _remove_versions(versions, f"data set {quoted(found.name)}", disk)
        found.delete()


def rows_path(version: DatasetVersion) -> Path:
    """The canonical rows, one JSON object a line in UTF-8."""
    return version_folder(version.tenant_id, version.pk) / ROWS


def original_path(version: DatasetVersion) -> Path:
    """The file as it was uploaded."""
    return version_folder(version.tenant_id, version.pk) / original_name(version.format)


def checked_purpose(purpose: str) -> str:
    """What rows are for, as it was given. Raises Invalid."""
    if purpose and purpose not in PURPOSES:
        allowed = ", ".join(PURPOSES)
        raise Invalid(f"purpose {quoted(purpose)} is none of {allowed}.", code="not_a_choice", field="purpose")
    return purpose


@contextmanager
def _passed_gate(
    actor: Actor, upload: UploadedFile[Any], file_name: str, purpose: str, mapping: Mapping[str, str] | None
) -> Iterator[Checked]:
    """A checked file in a folder of its own, which is gone after the block unless it was put into place."""
    checked_purpose(purpose)
    if mapping is not None:
        mapping = checked_mapping(mapping)
    name = parse_file_name(file_name, field="file_name")
    file_format = format_of(name)
    root: Path = settings.CLAVIER_DATASETS
    # Everything but clean JSONL is written a second time, as rows.
    staged = stage(upload, root, field="file", extra_bytes=0 if file_format == "jsonl" else int(upload.size or 0))
    try:
        with examined(
            actor, lambda original: os.rename(staged.path, original), name, purpose=purpose, mapping=mapping
        ) as checked:
            yield checked
    finally:
        staged.discard()


@contextmanager
def examined(
    actor: Actor,
    write: Callable[[Path], None],
    file_name: str,
    *,
    purpose: str = "",
    mapping: Mapping[str, str] | None = None,
) -> Iterator[Checked]:
    """The file that ``write`` puts under a path, through the gate; its folder is gone after the block unless placed.

    Raises InvalidFields with the first findings.
    """
    file_format = format_of(file_name)
    version_id = uuid.uuid4()
    folder = settings.CLAVIER_DATASETS / INCOMING / str(version_id)
    try:
        folder.mkdir(mode=0o700, parents=True)
        original = folder / original_name(file_format)
        write(original)
        report = examine(
            original,
            folder,
            file_format=file_format,
            purpose=purpose,
            mapping=mapping,
            ask_for_room=lambda size: _refuse_without_room(actor, original, size),
        )
        if not report.is_usable:
            raise refusal(report.findings)
        _share(folder, own_tenant(actor).number)
        yield Checked(version_id, folder, file_name, file_format, report)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def refusal(findings: Findings) -> InvalidFields:
    """The 400 for a file with errors: the first of them, and how many there are."""
    problems = [
        FieldProblem("file", item.code, f"{item.message} Found: {item.sample}" if item.sample else item.message)
        for item in findings.listed_errors()
    ]
    if findings.errors > LISTED:
        message = f"{findings.errors:,} errors in all; the first {LISTED} are listed. Nothing was stored."
        problems.append(FieldProblem("file", problems[0].code, message))
    return InvalidFields(problems)


def add_version(actor: Actor, dataset: Dataset, checked: Checked, disk: DiskChanges, **origin: Any) -> DatasetVersion:
    """Charge, insert and rename; ``origin``: parent, steps, changes, split, subset. In the data set's transaction."""
    report = checked.report
    stored_bytes, stored_inodes = footprint(checked.folder)
    original = checked.folder / original_name(checked.file_format)
    charge(
        tenant_id=actor.tenant_id, user_id=actor.user_id, size_bytes=stored_bytes, inodes=stored_inodes, field="file"
    )
    newest = DatasetVersion.objects.filter(dataset=dataset).aggregate(number=Max("number"))["number"] or 0
    version = DatasetVersion.objects.create(
        id=checked.version_id,
        tenant_id=actor.tenant_id,
        created_by_id=actor.user_id,
        dataset=dataset,
        number=newest + 1,
        format=checked.file_format,
        file_name=checked.file_name,
        size_bytes=original.stat().st_size,
        sha256=report.sha256,
        num_samples=report.num_samples,
        fields=report.fields,
        kind=report.kind,
        findings=report.findings.as_json(),
        statistics=report.statistics,
        mapping=report.mapping,
        stored_bytes=stored_bytes,
        stored_inodes=stored_inodes,
        **origin,
    )
    tenant = str(actor.tenant_id)
    shared_folder(settings.CLAVIER_DATASETS, (tenant,), own_tenant(actor).number)
    disk.place(checked.folder, settings.CLAVIER_DATASETS, (tenant, str(version.pk)))
    return version


def _refuse_without_room(actor: Actor, original: Path, size_bytes: int) -> None:
    """Raises StorageFull where a file and so many bytes of rows beside it are too much for the limits or the disk."""
    together = original.stat().st_size + size_bytes
    refuse_over_limit(tenant_id=actor.tenant_id, user_id=actor.user_id, size_bytes=together, inodes=0, field="file")
    refuse_low_disk(settings.CLAVIER_DATASETS, 0, "file")


def _remove_versions(versions: list[DatasetVersion], what: str, disk: DiskChanges) -> None:
    rows = DatasetVersion.objects.filter(pk__in=[version.pk for version in versions])
    held = list(
        rows.order_by()
        .values("created_by_id", "tenant_id")
        .annotate(size=Sum("stored_bytes"), inodes=Sum("stored_inodes"))
    )
    try:
        rows.delete()
    except (ProtectedError, RestrictedError) as error:
        raise in_use(error, what) from error
    for part in held:
        release(
            tenant_id=part["tenant_id"], user_id=part["created_by_id"], size_bytes=part["size"], inodes=part["inodes"]
        )
    for version in versions:
        disk.set_aside(settings.CLAVIER_DATASETS, (str(version.tenant_id), str(version.pk)))


def _insert_dataset(actor: Actor, values: dict[str, Any]) -> Dataset:
    try:
        with transaction.atomic():
            return Dataset.objects.create(tenant_id=actor.tenant_id, created_by_id=actor.user_id, **values)
    except IntegrityError as error:
        raise _name_taken(values["name"]) from error


def _parsed(**values: Any) -> dict[str, Any]:
    """The given fields, checked. Raises Invalid."""
    parsers: dict[str, Callable[[Any], Any]] = {
        "name": parse_display_name,
        "description": lambda text: _text(text, "description", MAX_DESCRIPTION_CHARACTERS),
        "languages": lambda words: _words(words, "languages"),
        "tags": lambda words: _words(words, "tags"),
        "license": lambda text: _text(text, "license", MAX_WORD_CHARACTERS),
        "task": lambda text: _text(text, "task", MAX_WORD_CHARACTERS),
    }
    unknown = sorted(values.keys() - parsers.keys())
    if unknown:
        raise Invalid(f"{unknown[0]} can not be set; {', '.join(parsers)} can.", code="unknown_field", field=unknown[0])
    return {field: parsers[field](value) for field, value in values.items()}


def _text(text: str, field: str, most: int) -> str:
    if len(text) > most or "\0" in text:
        raise Invalid(
            f"{field} has {len(text):,} characters; {most:,} without NUL are allowed.", code="too_long", field=field
        )
    return text


def _words(words: Sequence[str], field: str) -> list[str]:
    if isinstance(words, str) or len(words) > MAX_WORDS:
        raise Invalid(f"{field} must be a list of at most {MAX_WORDS} words.", code="out_of_range", field=field)
    return list(dict.fromkeys(parse_display_name(word, field=field) for word in words))


def _share(folder: Path, tenant_number: int) -> None:
    for path in (*folder.iterdir(), folder):
        share_with_tenant(path, tenant_number)
    fsync_folder(folder)


def _name_taken(name: str) -> Conflict:
    return Conflict(
        f"A data set named {quoted(name)} exists. Choose another name, or upload a new version to it.",
        code="already_exists",
        field="name",
    )
