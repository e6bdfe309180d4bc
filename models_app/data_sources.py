"""Data fetched from elsewhere: an address of the web or an object store, by a run; its file then passes the gate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from django.conf import settings

from clavier.accounts.access import require_change
from clavier.core.actor import Actor
from clavier.core.errors import Invalid, quoted
from clavier.files.models import MIB
from clavier.files.names import parse_file_name
from datasets_app.formats import format_of
from datasets_app.labels import checked_labels
from datasets_app.mapping import checked_mapping
from datasets_app.models import Dataset, DataTask
from datasets_app.queries import access_dataset
from datasets_app.services import checked_purpose
from datasets_app.tasks import start_program
from models_app.object_stores import login_of, store_at

PROGRAM = "runner.programs.data.fetch"
SOURCES = ("url", "s3")
MAX_URL_CHARACTERS = 2000


def fetch_version(
    *,
    actor: Actor,
    dataset: Dataset,
    source: str,
    location: str,
    file_name: str = "",
    purpose: str = "",
    mapping: Mapping[str, str] | None = None,
    split: str = "",
    subset: str = "",
) -> DataTask:
    """A run that fetches one file, which becomes the next version of the data set once it passed the gate.

    ``location``: of a ``url`` its https address (what may be private, or without TLS, the operator says:
    DATA_HOSTS_ALLOWED), of ``s3`` the ``store/bucket/key`` of an object store of the tenant. ``file_name``: where the
    location does not end in the file's name. Raises NotFound, Forbidden, Invalid, Unprocessable.
    """
    found = access_dataset(actor, dataset.pk)
    require_change(actor, found, noun="data set")
    if source not in SOURCES:
        raise Invalid(f"source {quoted(source)} is none of {', '.join(SOURCES)}.", code="not_a_choice", field="source")
    parameters: dict[str, Any] = {"source": source, "max_bytes": settings.MAX_UPLOAD_MIB * MIB}
    login = None
    if source == "url":
        parameters |= {"location": checked_url(location), "allowed": settings.DATA_HOSTS_ALLOWED}
    else:
        store, path = store_at(actor, location)
        parameters |= {"location": path, "endpoint": store.endpoint_url, "region": store.region}
        login = login_of(store)
    name = checked_name(file_name or unquote(PurePosixPath(urlsplit(location).path).name))
    given: dict[str, Any] = {"purpose": checked_purpose(purpose), **checked_labels(split, subset)}
    given["mapping"] = None if mapping is None else checked_mapping(mapping)
    return start_program(
        actor,
        kind="fetch",
        dataset=found,
        program=PROGRAM,
        parameters={**parameters, "file_name": name},
        request={"source": source, "location": without_query(location), "file_name": name, **given},
        needs_network=True,
        login=login,
    )


def checked_url(text: str) -> str:
    """An address of the web. Where it leads is looked at when it is fetched. Raises Invalid."""
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    is_right = host and parts.scheme in ("http", "https") and parts.username is None and text.isprintable()
    if not is_right or len(text) > MAX_URL_CHARACTERS or " " in text:
        raise Invalid(
            f"location {quoted(text)} is no address such as https://host/file.jsonl (without a user in it).",
            code="bad_value",
            field="location",
        )
    return text


def checked_name(name: str) -> str:
    """The file's name, whose ending is its format. Raises Invalid."""
    parsed = parse_file_name(name, field="file_name")
    format_of(parsed)
    return parsed


def without_query(location: str) -> str:
    """What is kept and shown of an address: signatures and tokens stand in the query."""
    return location.partition("?")[0].partition("#")[0]
