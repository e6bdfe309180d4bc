"""What the file browser shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clavier.core.actor import Actor
from clavier.files.models import AREAS, StoredFile
from clavier.files.queries import list_folder, storage_usage

MAX_SHOWN = 1000


@dataclass(frozen=True, slots=True)
class Browser:
    """One folder of one area, folders first. ``trail``: (name, path) of each folder above."""

    area: str
    areas: tuple[str, ...]
    folder: str
    trail: list[tuple[str, str]]
    rows: list[StoredFile]
    is_cut: bool
    max_shown: int
    usage: dict[str, Any]
    problem: str


def browser(actor: Actor, area: str, folder: str, problem: str = "") -> Browser:
    """A folder of the actor's own files. Raises Invalid, NotFound."""
    rows = list(list_folder(actor=actor, area=area, folder=folder).order_by("-is_folder", "name")[: MAX_SHOWN + 1])
    parts = [part for part in folder.split("/") if part]
    return Browser(
        area=area,
        areas=AREAS,
        folder="/".join(parts),
        trail=[(part, "/".join(parts[: depth + 1])) for depth, part in enumerate(parts)],
        rows=rows[:MAX_SHOWN],
        is_cut=len(rows) > MAX_SHOWN,
        max_shown=MAX_SHOWN,
        usage=storage_usage(actor),
        problem=problem,
    )
