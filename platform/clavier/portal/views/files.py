"""The file browser."""

from __future__ import annotations

from urllib.parse import urlencode
from uuid import UUID

from django.http import FileResponse, HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect
from django.urls import reverse

from clavier.core.errors import DomainError, Forbidden
from clavier.files import services
from clavier.files.access import access_file
from clavier.files.extraction import extract_archive
from clavier.portal.contexts import files as contexts
from clavier.portal.pages import PortalRequest, page, show


@page("GET")
def browse(request: PortalRequest) -> HttpResponse:
    """A folder of the private or public area."""
    area, folder = request.GET.get("area", "private"), request.GET.get("folder", "")
    return show(request, "portal/file_list.html", contexts.browser(request.actor, area, folder))


@page("POST")
def upload(request: PortalRequest) -> HttpResponse:
    """Store files in a folder; a name that is taken is refused unless it is to be overwritten."""
    area, folder = _place(request)
    try:
        services.upload_files(
            actor=request.actor,
            area=area,
            folder=folder,
            uploads=[(file.name or "", file) for file in request.FILES.getlist("file")],
            overwrite="overwrite" in request.POST,
        )
    except DomainError as error:
        return _refused(request, area, folder, error)
    return redirect(_address(area, folder))


@page("POST")
def create_folder(request: PortalRequest) -> HttpResponse:
    """Make a folder."""
    area, folder = _place(request)
    try:
        services.create_folder(actor=request.actor, area=area, folder=folder, name=request.POST.get("name", ""))
    except DomainError as error:
        return _refused(request, area, folder, error)
    return redirect(_address(area, folder))


@page("GET")
def download(request: PortalRequest, file_id: UUID) -> FileResponse:
    """The bytes of a file."""
    file = access_file(request.actor, file_id)
    return FileResponse(
        services.open_stored_file(actor=request.actor, file=file), as_attachment=True, filename=file.name
    )


@page("POST")
def extract(request: PortalRequest, file_id: UUID) -> HttpResponse:
    """Unpack an archive beside itself: every file of it or none."""
    file = access_file(request.actor, file_id)
    overwrite = "overwrite" in request.POST
    try:
        extract_archive(actor=request.actor, file=file, area=file.area, folder=file.parent, overwrite=overwrite)
    except DomainError as error:
        return _refused(request, file.area, file.parent, error)
    return redirect(_address(file.area, file.parent))


@page("POST")
def delete(request: PortalRequest, file_id: UUID) -> HttpResponseRedirect:
    """Delete a file, or a folder with everything in it."""
    file = access_file(request.actor, file_id)
    services.delete_file(actor=request.actor, file=file)
    return redirect(_address(file.area, file.parent))


def _place(request: PortalRequest) -> tuple[str, str]:
    return request.POST.get("area", "private"), request.POST.get("folder", "")


def _refused(request: PortalRequest, area: str, folder: str, error: DomainError) -> HttpResponse:
    """The folder with what was wrong; an error page when not even the folder can be shown."""
    if isinstance(error, Forbidden):
        raise error
    context = contexts.browser(request.actor, area, folder, error.message)
    return show(request, "portal/file_list.html", context, status=error.status)


def _address(area: str, folder: str) -> str:
    return f"{reverse('portal:files')}?{urlencode({'area': area, 'folder': folder})}"
