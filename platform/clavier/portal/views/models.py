"""Pages of models."""

from __future__ import annotations

from uuid import UUID

from django.http import HttpResponse, HttpResponseRedirect, StreamingHttpResponse
from django.shortcuts import redirect

from clavier.core.errors import DomainError
from clavier.images.queries import ready_versions
from clavier.portal.contexts import models as contexts
from clavier.portal.forms.models import ModelForm
from clavier.portal.listing import listing
from clavier.portal.pages import PortalRequest, add_problems, page, show
from models_app import services
from models_app.exports import tar_of_version
from models_app.standalone import export_version

#: Images in a choice.
MAX_CHOICES = 500


@page("GET")
def model_list(request: PortalRequest) -> HttpResponse:
    """All models, with search."""
    return show(request, "portal/model_list.html", _list(request))


@page("GET")
def model_rows(request: PortalRequest) -> HttpResponse:
    """The rows of the list as they are now."""
    return show(request, "portal/_model_rows.html", _list(request))


@page("GET", "POST")
def model_new(request: PortalRequest) -> HttpResponse:
    """The form that registers a base model, and what it creates."""
    form = ModelForm(
        request.POST or None, initial={"source": "huggingface"}, images=ready_versions(request.actor)[:MAX_CHOICES]
    )
    status = 200
    if request.method == "POST":
        status = 400
        if form.is_valid():
            try:
                version = services.register_model(actor=request.actor, **form.arguments())
                return redirect("portal:model", version.model_id)
            except DomainError as error:
                add_problems(form, error)
                status = error.status
    return show(request, "portal/model_form.html", contexts.model_new(form), status=status)


@page("GET")
def model_detail(request: PortalRequest, model_id: UUID) -> HttpResponse:
    """One model: versions, lineage, next steps."""
    model = services.access_model(request.actor, model_id)
    return show(request, "portal/model_detail.html", contexts.model_detail(request.actor, model))


@page("GET")
def model_versions(request: PortalRequest, model_id: UUID) -> HttpResponse:
    """The versions of a model as they are now."""
    model = services.access_model(request.actor, model_id)
    return show(request, "portal/_model_versions.html", contexts.model_detail(request.actor, model))


@page("POST")
def model_delete(request: PortalRequest, model_id: UUID) -> HttpResponseRedirect:
    """Delete a model with its versions."""
    services.delete_model(actor=request.actor, model=services.access_model(request.actor, model_id))
    return redirect("portal:models")


@page("GET")
def version_download(request: PortalRequest, version_id: UUID) -> StreamingHttpResponse:
    """A version's files as a tar stream."""
    version = services.access_model_version(request.actor, version_id)
    services.require_usable(version, for_download=True)
    chunks, size = tar_of_version(version)
    response = StreamingHttpResponse(chunks, content_type="application/x-tar")
    response["Content-Length"] = str(size)
    response["Content-Disposition"] = f'attachment; filename="model-{version.pk}.tar"'
    return response


@page("POST")
def version_export(request: PortalRequest, version_id: UUID) -> HttpResponseRedirect:
    """Merge an adapter, or make a GGUF file, as a new version."""
    version = services.access_model_version(request.actor, version_id)
    made = export_version(actor=request.actor, version=version, form=request.POST.get("form", ""))
    return redirect("portal:model", made.model_id)


@page("POST")
def version_cancel(request: PortalRequest, version_id: UUID) -> HttpResponseRedirect:
    """Stop an import."""
    version = services.access_model_version(request.actor, version_id)
    services.cancel_import(actor=request.actor, version=version)
    return redirect("portal:model", version.model_id)


@page("POST")
def version_delete(request: PortalRequest, version_id: UUID) -> HttpResponseRedirect:
    """Delete one version."""
    version = services.access_model_version(request.actor, version_id)
    services.delete_model_version(actor=request.actor, version=version)
    return redirect("portal:model", version.model_id)


def _list(request: PortalRequest) -> contexts.ModelList:
    return contexts.model_list(listing(request, contexts.with_versions(request.actor, request.GET.get("search", ""))))
