"""What the pages of datasets show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.forms import Form
from django.http import HttpRequest

from clavier.core.actor import Actor
from clavier.core.errors import DomainError
from clavier.portal.forms.datasets import CleanForm, SplitForm
from clavier.portal.listing import Listing, whole_number
from datasets_app.models import Dataset, DatasetVersion
from datasets_app.preview import read_rows
from datasets_app.queries import versions_of

PREVIEW_ROWS = 20
PREVIEW_COUNTS = (10, 20, 50, 100)
MOST_PREVIEW_ROWS = 200
MAX_SHOWN_COLUMNS = 30


@dataclass(frozen=True, slots=True)
class DatasetList:
    """The list of datasets; each with its newest version when it has one."""

    listing: Listing[Dataset]
    rows: list[tuple[Dataset, DatasetVersion | None]]


@dataclass(frozen=True, slots=True)
class DatasetForms:
    """An upload form, and what was wrong with the last file."""

    form: Form
    findings: list[str]


@dataclass(frozen=True, slots=True)
class Preview:
    """Some rows as a table; rows are numbered from 1."""

    version: DatasetVersion
    columns: list[str]
    rows: list[tuple[int, list[Any]]]
    count: int
    counts: tuple[int, ...]
    first: int
    last: int
    previous_row: int | None
    next_row: int | None
    problem: str


@dataclass(frozen=True, slots=True)
class DatasetDetail:
    """A dataset, its versions, and the preview of one of them."""

    dataset: Dataset
    versions: list[DatasetVersion]
    version: DatasetVersion | None
    warnings: list[dict[str, Any]]
    preview: Preview | None
    form: Form
    findings: list[str]
    may_change: bool
    clean: CleanForm
    split: SplitForm


def dataset_list(listing: Listing[Dataset]) -> DatasetList:
    """Datasets with their newest versions, in two queries."""
    rows = DatasetVersion.objects.filter(dataset__in=listing.rows).defer("findings", "statistics").order_by("number")
    newest = {version.dataset_id: version for version in rows}
    return DatasetList(listing, [(dataset, newest.get(dataset.pk)) for dataset in listing.rows])


def dataset_detail(
    request: HttpRequest, actor: Actor, dataset: Dataset, form: Form, findings: list[str] | None = None
) -> DatasetDetail:
    """The page of a dataset with the version that ``?version=`` names, else the newest."""
    versions = list(versions_of(dataset))
    wanted = whole_number(request, "version", 0)
    version = next((v for v in versions if v.number == wanted), versions[0] if versions else None)
    return DatasetDetail(
        dataset=dataset,
        versions=versions,
        version=version,
        warnings=version.findings.get("items", []) if version else [],
        preview=preview(request, version) if version else None,
        form=form,
        findings=findings or [],
        clean=CleanForm(auto_id="clean_%s"),
        split=SplitForm(auto_id="split_%s"),
        may_change=actor.may_write and (actor.manages_tenant or dataset.created_by_id == actor.user_id),
    )


def preview(request: HttpRequest, version: DatasetVersion) -> Preview:
    """The rows that ``?row=`` (from 1) and ``?count=`` ask for."""
    count = whole_number(request, "count", PREVIEW_ROWS, least=1, most=MOST_PREVIEW_ROWS)
    start = whole_number(request, "row", 1, least=1, most=max(1, version.num_samples)) - 1
    try:
        rows, problem = read_rows(version, start, count), ""
    except DomainError as error:
        rows, problem = [], error.message
    columns = [field["name"] for field in version.fields][:MAX_SHOWN_COLUMNS]
    end = start + len(rows)
    return Preview(
        version=version,
        columns=columns,
        rows=[(start + number, [row.get(name) for name in columns]) for number, row in enumerate(rows, start=1)],
        count=count,
        counts=tuple(sorted({*PREVIEW_COUNTS, count})),
        first=start + 1 if rows else 0,
        last=end,
        previous_row=max(1, start + 1 - count) if start else None,
        next_row=end + 1 if rows and end < version.num_samples else None,
        problem=problem,
    )
