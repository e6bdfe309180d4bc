"""Pages of datasets."""

from __future__ import annotations

from uuid import UUID

from django.forms import Form
from django.http import FileResponse, HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import ngettext

from clavier.core.errors import DomainError
from clavier.portal.contexts import datasets as contexts
from clavier.portal.forms.datasets import CleanForm, DatasetForm, SplitForm, VersionForm
from clavier.portal.listing import listing
from clavier.portal.pages import PortalRequest, add_problems, page, show
from datasets_app import queries, services
from datasets_app.derive import derive_version, split_version
from datasets_app.models import DatasetVersion


@page("GET")
def dataset_list(request: PortalRequest) -> HttpResponse:
    """All datasets, with search."""
    found = listing(request, queries.search(request.actor, request.GET.get("search", "")))
    return show(request, "portal/dataset_list.html", contexts.dataset_list(found))


@page("GET", "POST")
def dataset_new(request: PortalRequest) -> HttpResponse:
    """The upload form of a new dataset, and what it creates."""
    form = DatasetForm(request.POST or None, request.FILES or None)
    findings: list[str] = []
    status = 200
    if request.method == "POST":
        status = 400
        if form.is_valid():
            upload = form.cleaned_data["file"]
            purpose = form.cleaned_data["purpose"]
            try:
                version = services.create_dataset_with_file(
                    actor=request.actor, upload=upload, file_name=upload.name, purpose=purpose, **form.columns()
                )
                return redirect("portal:dataset", version.dataset_id)
            except DomainError as error:
                findings, status = _refused(form, error), error.status
    return show(request, "portal/dataset_form.html", contexts.DatasetForms(form, findings), status=status)


@page("GET", "POST")
def dataset_detail(request: PortalRequest, dataset_id: UUID) -> HttpResponse:
    """One dataset: versions, fields, findings, preview; a POST uploads a further version."""
    dataset = queries.access_dataset(request.actor, dataset_id)
    form = VersionForm(request.POST or None, request.FILES or None)
    findings: list[str] = []
    status = 200
    if request.method == "POST":
        status = 400
        if form.is_valid():
            upload = form.cleaned_data["file"]
            try:
                services.upload_version(
                    actor=request.actor,
                    dataset=dataset,
                    upload=upload,
                    file_name=upload.name,
                    **{name: form.cleaned_data[name] for name in ("purpose", "split", "subset")},
                )
                return redirect("portal:dataset", dataset_id)
            except DomainError as error:
                findings, status = _refused(form, error), error.status
    context = contexts.dataset_detail(request, request.actor, dataset, form, findings)
    return show(request, "portal/dataset_detail.html", context, status=status)


@page("POST")
def dataset_delete(request: PortalRequest, dataset_id: UUID) -> HttpResponseRedirect:
    """Delete a dataset with its versions."""
    services.delete_dataset(actor=request.actor, dataset=queries.access_dataset(request.actor, dataset_id))
    return redirect("portal:datasets")


@page("GET")
def version_rows(request: PortalRequest, version_id: UUID) -> HttpResponse:
    """Other rows of the preview."""
    version = queries.access_dataset_version(request.actor, version_id)
    return show(request, "portal/_preview.html", contexts.preview(request, version))


@page("GET")
def version_download(request: PortalRequest, version_id: UUID) -> FileResponse:
    """The file as it was uploaded."""
    version = queries.access_dataset_version(request.actor, version_id)
    path = services.original_path(version)
    return FileResponse(open(path, "rb"), as_attachment=True, filename=version.file_name)


@page("POST")
def version_delete(request: PortalRequest, version_id: UUID) -> HttpResponseRedirect:
    """Delete one version."""
    version: DatasetVersion = queries.access_dataset_version(request.actor, version_id)
    services.delete_version(actor=request.actor, version=version)
    return redirect(reverse("portal:dataset", args=[version.dataset_id]))


@page("POST")
def version_clean(request: PortalRequest, version_id: UUID) -> HttpResponseRedirect:
    """Make the next version without repeated rows or personal data."""
    version = queries.access_dataset_version(request.actor, version_id)
    form = CleanForm(request.POST)
    made = derive_version(actor=request.actor, version=version, steps=form.steps() if form.is_valid() else [])
    return _to_version(made)


@page("POST")
def version_split(request: PortalRequest, version_id: UUID) -> HttpResponseRedirect:
    """Make a version of each split."""
    version = queries.access_dataset_version(request.actor, version_id)
    form = SplitForm(request.POST)
    made = split_version(actor=request.actor, version=version, splits=form.splits() if form.is_valid() else {})
    return _to_version(made["train"])


def _to_version(version: DatasetVersion) -> HttpResponseRedirect:
    return redirect(f"{reverse('portal:dataset', args=[version.dataset_id])}?version={version.number}")


def _refused(form: Form, error: DomainError) -> list[str]:
    """What was wrong with the file, line by line; everything else goes to its field."""
    findings = [problem.message for problem in error.problems if problem.field == "file"]
    if findings:
        found = ngettext(
            "%(number)s finding, listed below. Nothing was stored.",
            "%(number)s findings, listed below. Nothing was stored.",
            len(findings),
        )
        form.add_error("file", found % {"number": len(findings)})
    else:
        add_problems(form, error)
    return findings
