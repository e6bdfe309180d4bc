"""What people call an image on a registry: ``host:port/team/name:tag`` or ``...@sha256:...``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from django.conf import settings

from clavier.core.errors import Invalid, quoted

#: What registries and engines take: lower-case parts, separated by slashes.
_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
NAME_PATTERN = re.compile(rf"{_PART}(?:/{_PART})*")
TAG_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
IMAGE_ID_PATTERN = re.compile(r"sha256:[0-9a-f]{64}")
MAX_NAME_CHARACTERS = 200
_HOST = re.compile(r"(?=.*[.:]|localhost$)[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class Reference:
    """A place on a registry; ``reference`` is a tag or a digest."""

    address: str
    repository: str
    reference: str


def parse_reference(text: str, *, field: str = "reference") -> Reference:
    """The place that a reference names; without a host it is on IMAGE_DEFAULT_REGISTRY, without a tag ``latest``.

    Raises Invalid (``bad_value``).
    """
    rest, at, digest = text.strip().partition("@")
    host, slash, path = rest.partition("/")
    if not slash or not _HOST.fullmatch(host):
        host, path = settings.IMAGE_DEFAULT_REGISTRY, rest if slash else f"library/{rest}"
    repository, colon, tag = path.partition(":")
    tag = tag if colon else "latest"
    is_known = TAG_PATTERN.fullmatch(tag) and (IMAGE_ID_PATTERN.fullmatch(digest) or not at)
    if not is_known or len(repository) > MAX_NAME_CHARACTERS or not NAME_PATTERN.fullmatch(repository):
        raise Invalid(
            f"{field} {quoted(text)} is no image on a registry: write host/team/name:tag or host/team/name@sha256:...",
            code="bad_value",
            field=field,
        )
    if not host:
        raise Invalid(
            f"{field} {quoted(text)} names no registry: write host/name:tag (the operator has set no default).",
            code="bad_value",
            field=field,
        )
    return Reference(registry_address(host), repository, digest if at else tag)


def registry_address(host: str) -> str:
    """``https://host``; ``http://`` where an operator has allowed just that."""
    plain = f"http://{host}"
    return plain if plain in settings.IMAGE_REGISTRIES_ALLOWED else f"https://{host}"


def check_image_name(name: str, *, field: str = "name") -> None:
    """Raises Invalid (``bad_name``)."""
    if len(name) > MAX_NAME_CHARACTERS or not NAME_PATTERN.fullmatch(name):
        raise Invalid(
            f"{field} {quoted(name)}: 1 to {MAX_NAME_CHARACTERS} lower-case letters, digits and . _ - between them, in "
            "parts separated by '/', such as 'dzq/45'.",
            code="bad_name",
            field=field,
        )


def check_tag(tag: str, *, field: str = "tag") -> None:
    """Raises Invalid (``bad_name``)."""
    if not TAG_PATTERN.fullmatch(tag):
        raise Invalid(
            f"{field} {quoted(tag)}: 1 to 128 letters, digits and . _ - are allowed, no . or - first.",
            code="bad_name",
            field=field,
        )
