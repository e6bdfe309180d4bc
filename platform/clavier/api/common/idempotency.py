"""``Idempotency-Key``: a create that is sent twice happens once, and both copies get the same answer."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from functools import wraps
from typing import Any, TypeVar, cast

from django.core.files.uploadedfile import UploadedFile
from django.db import IntegrityError, transaction
from django.utils import timezone
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from clavier.api.common.models import IdempotentRequest
from clavier.core.actor import Actor
from clavier.core.errors import Conflict, Invalid, quoted

HEADER = "Idempotency-Key"
REPLAY_HEADER = "Idempotent-Replay"
KEPT_FOR = timedelta(hours=24)
#: A first copy that has not answered by now died with its process.
ABANDONED_AFTER = timedelta(minutes=10)
#: How long a copy waits for the first one before it is told to come back.
WAIT_S = 5.0
POLL_S = 0.05
SWEPT_AT_ONCE = 100
_KEY = re.compile(r"\A[\x21-\x7e]{1,255}\Z")

Handler = TypeVar("Handler", bound=Callable[..., Response])


def idempotent(*, atomic: bool = True, secrets: tuple[str, ...] = ()) -> Callable[[Handler], Handler]:
    """A POST handler that heeds the header. Raises Conflict (``idempotency_mismatch``, ``busy``), Invalid.

    ``atomic``: the handler and the storing of its answer are one transaction, so a crash leaves both or neither; off
    where the service needs the outermost transaction because it moves files. ``secrets``: fields of the answer that
    are never stored; a replay has null there.
    """

    def decorate(handler: Handler) -> Handler:
        @wraps(handler)
        def wrapped(view: Any, request: Request, *args: Any, **kwargs: Any) -> Response:
            key = request.headers.get(HEADER)
            if key is None:
                return handler(view, request, *args, **kwargs)
            claim, is_new = claimed(request, key)
            if not is_new:
                return Response(claim.response, status=claim.status, headers={REPLAY_HEADER: "true"})
            try:
                with transaction.atomic() if atomic else nullcontext():
                    response = handler(view, request, *args, **kwargs)
                    store(claim, response, secrets)
            except BaseException:
                # Nothing was created, so the same request may be tried again.
                claim.delete()
                raise
            return response

        wrapped.is_idempotent = True  # type: ignore[attr-defined]  # read by schema.operation
        return cast(Handler, wrapped)

    return decorate


def claimed(request: Request, key: str) -> tuple[IdempotentRequest, bool]:
    """The new claim of a first copy and True, or the answered request of a later copy and False."""
    if not _KEY.match(key):
        raise Invalid(
            f"{HEADER} {quoted(key)}: 1 to 255 visible ASCII characters are allowed, a UUID for example.",
            code="bad_header",
            field=HEADER,
        )
    route, digest = f"{request.method} {request.path}"[:300], body_digest(request)
    sweep()
    deadline = time.monotonic() + WAIT_S
    while True:
        claim, is_new = find_or_claim(cast(Actor, request.auth), key, route, digest)
        if is_new:
            return claim, True
        if (claim.route, claim.body_digest) != (route, digest):
            raise Conflict(
                f"{HEADER} {quoted(key)} was used for another request ({claim.route}). Use a new key.",
                code="idempotency_mismatch",
                field=HEADER,
            )
        if claim.status is not None:
            return claim, False
        if timezone.now() - claim.created_at > ABANDONED_AFTER:
            IdempotentRequest.objects.filter(pk=claim.pk, status=None).delete()
        elif time.monotonic() > deadline:
            raise Conflict(
                f"The first request with {HEADER} {quoted(key)} is still being worked on. Ask again in a moment.",
                code="busy",
                field=HEADER,
            )
        else:
            time.sleep(POLL_S)


def find_or_claim(actor: Actor, key: str, route: str, digest: str) -> tuple[IdempotentRequest, bool]:
    """The row of a key, and whether this call has made it."""
    rows = IdempotentRequest.objects.filter(tenant_id=actor.tenant_id, user_id=actor.user_id, key=key)
    rows.filter(created_at__lt=timezone.now() - KEPT_FOR).delete()
    found = rows.first()
    if found is not None:
        return found, False
    try:
        with transaction.atomic():
            return (
                IdempotentRequest.objects.create(
                    tenant_id=actor.tenant_id, user_id=actor.user_id, key=key, route=route, body_digest=digest
                ),
                True,
            )
    except IntegrityError:
        return find_or_claim(actor, key, route, digest)


def store(claim: IdempotentRequest, response: Response, secrets: tuple[str, ...]) -> None:
    """Keep the answer for later copies."""
    answer = json.loads(JSONRenderer().render(response.data) or b"null")
    if isinstance(answer, dict):
        answer |= {name: None for name in secrets if name in answer}
    claim.status, claim.response = response.status_code, answer
    claim.save(update_fields=["status", "response"])


def sweep() -> None:
    """Delete some of the rows whose time is over."""
    old = IdempotentRequest.objects.filter(created_at__lt=timezone.now() - KEPT_FOR).values_list("pk", flat=True)
    expired = list(old[:SWEPT_AT_ONCE])
    if expired:
        IdempotentRequest.objects.filter(pk__in=expired).delete()


def body_digest(request: Request) -> str:
    """sha256 over what the body means: JSON without its spacing and order, a form with the bytes of its files."""
    digest = hashlib.sha256()
    files: list[tuple[str, UploadedFile[bytes]]] = []
    data = request.data
    if hasattr(data, "lists"):
        fields = {name: [value for value in values if isinstance(value, str)] for name, values in data.lists()}
        files = [(name, upload) for name, uploads in sorted(request.FILES.lists()) for upload in uploads]
        data = fields
    digest.update(json.dumps(data, sort_keys=True, separators=(",", ":")).encode())
    for name, upload in files:
        content = hashlib.sha256()
        for chunk in upload.chunks():
            content.update(chunk)
        upload.seek(0)
        digest.update(f"\n{name} {upload.name} {content.hexdigest()}".encode())
    return digest.hexdigest()
