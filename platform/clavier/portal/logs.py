"""Logs for the pages' log view: by byte offset, and whole."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

from django.http import HttpResponse, StreamingHttpResponse

from clavier.portal.listing import whole_number
from clavier.portal.pages import PortalRequest
from clavier.runs.outputs import Chunk, read_log

#: As much as the log view takes in at once.
CHUNK_BYTES = 256 * 1024


def log_chunk(request: PortalRequest, run_id: UUID | None) -> HttpResponse:
    """Whole lines from ``?offset=`` on as text; ``X-Next-Offset`` says where to go on, ``X-Size`` how long it is.

    ``?rank=``: of which container.
    """
    offset, rank = whole_number(request, "offset", 0, least=-(2**30)), whole_number(request, "rank", 0)
    chunk = read_log(run_id, offset, CHUNK_BYTES, rank=rank) if run_id else Chunk(b"", 0, 0)
    headers = {"X-Next-Offset": str(chunk.next_offset), "X-Size": str(chunk.size), "Cache-Control": "no-store"}
    return HttpResponse(chunk.data, content_type="text/plain; charset=utf-8", headers=headers)


def whole_log(run_id: UUID | None, name: str, rank: int = 0) -> StreamingHttpResponse:
    """The log of a container as a download, read as it is sent."""
    response = StreamingHttpResponse(_chunks(run_id, rank), content_type="text/plain; charset=utf-8")
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in name)
    response["Content-Disposition"] = f'attachment; filename="{safe}.log"'
    return response


def _chunks(run_id: UUID | None, rank: int) -> Iterator[bytes]:
    offset = 0
    while run_id is not None:
        chunk = read_log(run_id, offset, rank=rank)
        if not chunk.data:
            return
        yield chunk.data
        offset = chunk.next_offset
