"""Pages of container images."""

from __future__ import annotations

from uuid import UUID

from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect

from clavier.core.errors import DomainError
from clavier.images import services
from clavier.images.access import access_image, access_image_version, access_own_image
from clavier.images.logins import RegistryLogin
from clavier.portal.contexts import images as contexts
from clavier.portal.forms.images import ArchiveForm, ImageForm, RegistryForm
from clavier.portal.listing import listing
from clavier.portal.pages import PortalRequest, add_problems, page, show


@page("GET")
def image_list(request: PortalRequest) -> HttpResponse:
    """All images, with search."""
    return show(request, "portal/image_list.html", _list(request))


@page("GET")
def image_rows(request: PortalRequest) -> HttpResponse:
    """The rows of the list as they are now."""
    return show(request, "portal/_image_rows.html", _list(request))


@page("GET", "POST")
def image_new(request: PortalRequest) -> HttpResponse:
    """The form that registers an image, and what it creates."""
    form = ImageForm(request.POST or None)
    status = 200
    if request.method == "POST":
        status = 400
        if form.is_valid():
            texts = {name: form.cleaned_data[name] for name in ("name", "overview", "description")}
            try:
                image = services.register_image(actor=request.actor, labels=form.label_list(), **texts)
                return redirect("portal:image", image.pk)
            except DomainError as error:
                add_problems(form, error)
                status = error.status
    return show(request, "portal/image_form.html", contexts.ImageNew(form), status=status)


@page("GET")
def image_detail(request: PortalRequest, image_id: UUID) -> HttpResponse:
    """One image: its versions and their imports."""
    image = access_image(request.actor, image_id)
    return show(request, "portal/image_detail.html", contexts.image_detail(request.actor, image))


@page("GET")
def image_versions(request: PortalRequest, image_id: UUID) -> HttpResponse:
    """The versions of an image as they are now."""
    image = access_image(request.actor, image_id)
    return show(request, "portal/_image_versions.html", contexts.image_detail(request.actor, image))


@page("POST")
def import_archive(request: PortalRequest, image_id: UUID) -> HttpResponse:
    """Import a tag from an uploaded archive."""
    image = access_own_image(request.actor, image_id)
    form = ArchiveForm(request.POST)
    status = 400
    if form.is_valid():
        try:
            services.import_image_archive(actor=request.actor, image=image, **form.cleaned_data)
            return redirect("portal:image", image.pk)
        except DomainError as error:
            add_problems(form, error)
            status = error.status
    context = contexts.image_detail(request.actor, image, archive_form=form)
    return show(request, "portal/image_detail.html", context, status=status)


@page("POST")
def import_from_registry(request: PortalRequest, image_id: UUID) -> HttpResponse:
    """Import a tag from a registry."""
    image = access_own_image(request.actor, image_id)
    form = RegistryForm(request.POST)
    status = 400
    if form.is_valid():
        given = form.cleaned_data
        has_login = given["username"] or given["password"]
        try:
            services.import_image_from_registry(
                actor=request.actor,
                image=image,
                tag=given["tag"],
                reference=given["reference"],
                login=RegistryLogin(given["username"], given["password"]) if has_login else None,
            )
            return redirect("portal:image", image.pk)
        except DomainError as error:
            add_problems(form, error)
            status = error.status
    context = contexts.image_detail(request.actor, image, registry_form=form)
    return show(request, "portal/image_detail.html", context, status=status)


@page("POST")
def image_share(request: PortalRequest, image_id: UUID) -> HttpResponseRedirect:
    """Share an image with all tenants, or no longer."""
    image = access_image(request.actor, image_id)
    services.share_image(actor=request.actor, image=image, is_public=request.POST.get("is_public") == "true")
    return redirect("portal:image", image.pk)


@page("POST")
def image_delete(request: PortalRequest, image_id: UUID) -> HttpResponseRedirect:
    """Delete an image with its versions."""
    services.delete_image(actor=request.actor, image=access_image(request.actor, image_id))
    return redirect("portal:images")


@page("POST")
def version_cancel(request: PortalRequest, version_id: UUID) -> HttpResponseRedirect:
    """Stop an import."""
    version = access_image_version(request.actor, version_id)
    services.cancel_image_import(actor=request.actor, version=version)
    return redirect("portal:image", version.image_id)


@page("POST")
def version_delete(request: PortalRequest, version_id: UUID) -> HttpResponseRedirect:
    """Delete one tag."""
    version = access_image_version(request.actor, version_id)
    services.delete_image_version(actor=request.actor, version=version)
    return redirect("portal:image", version.image_id)


def _list(request: PortalRequest) -> contexts.ImageList:
    found = listing(request, contexts.with_versions(request.actor, request.GET.get("search", "")))
    return contexts.image_list(request.actor, found)
