"""Where a user's own program runs: its image, its options and its resources, checked together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from clavier.core.actor import Actor
from clavier.core.problems import Problems
from clavier.images.access import access_image_version
from clavier.images.models import ImageVersion
from clavier.runs.options import checked_options
from clavier.runs.own_code import require_allowed
from clavier.runs.services import checked_resources


@dataclass(frozen=True, slots=True)
class ProgramPlace:
    """``image``: None for the platform's own environment."""

    image: ImageVersion | None
    options: dict[str, Any]
    resources: dict[str, Any]

    def require_allowed(self) -> None:
        """Raises Unprocessable (``needs_container``) where such programs can not run."""
        require_allowed(has_image=self.image is not None, resource_group=self.options.get("resource_group", ""))


def checked_place(
    actor: Actor,
    problems: Problems,
    *,
    image: UUID | str | None,
    options: Mapping[str, Any] | None,
    resources: Mapping[str, Any] | None,
) -> ProgramPlace:
    """The place that was asked for; what is refused of it is added to ``problems``."""
    version = problems.check(access_image_version, actor, image, field="image") if image else None
    where = problems.check(checked_options, options or {}) or {}
    group = where.get("resource_group", "")
    wanted = problems.check(checked_resources, resources or {}, resource_group=group)
    return ProgramPlace(version, where, wanted or {})
