"""Paths that users name: parsed to components once, opened beneath a root without following any link."""

from __future__ import annotations

import errno
import os
import unicodedata
from pathlib import Path

from clavier.core.errors import Invalid, NotFound, quoted

MAX_COMPONENT_BYTES = 255
MAX_DEPTH = 32


def parse_path(text: str, *, field: str = "path") -> tuple[str, ...]:
    """The components of a user's path in NFC; ``""`` and ``"/"`` are the root ``()``.

    Raises Invalid (``path_outside_root`` for ``..``, ``bad_name`` for the rest).
    """
    parts = [part for part in unicodedata.normalize("NFC", text).split("/") if part not in ("", ".")]
    if ".." in parts:
        raise Invalid(
            f"{field} {quoted(text)} leaves its root. Use a path without '..'.", code="path_outside_root", field=field
        )
    if len(parts) > MAX_DEPTH:
        raise Invalid(f"{field} has {len(parts)} levels; {MAX_DEPTH} are allowed.", code="bad_name", field=field)
    return tuple(parse_name(part, field=field) for part in parts)


def parse_name(name: str, *, field: str = "name") -> str:
    """One file or folder name in NFC. Raises Invalid (``bad_name``)."""
    name = unicodedata.normalize("NFC", name)
    if (
        name in ("", ".", "..")
        or "/" in name
        or "\\" in name
        or any(unicodedata.category(c) in ("Cc", "Cs") for c in name)
    ):
        raise Invalid(
            f"{field} {quoted(name)} is no file name. Slashes, backslashes and control characters are not allowed.",
            code="bad_name",
            field=field,
        )
    if len(name.encode()) > MAX_COMPONENT_BYTES:
        raise Invalid(
            f"{field} {quoted(name)} is {len(name.encode())} bytes long; {MAX_COMPONENT_BYTES} are allowed.",
            code="bad_name",
            field=field,
        )
    return name


def open_beneath(root: Path, parts: tuple[str, ...], flags: int = os.O_RDONLY, mode: int = 0o640) -> int:
    """A descriptor of ``root/parts...``; no component may be a symbolic link. Raises NotFound."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            deeper = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = deeper
        if not parts:
            return os.dup(folder)
        return os.open(parts[-1], flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, mode, dir_fd=folder)
    except (FileNotFoundError, NotADirectoryError) as missing:
        raise NotFound(f"{'/'.join(parts)} does not exist.") from missing
    except OSError as refused:
        if refused.errno == errno.ELOOP:
            raise NotFound(f"{'/'.join(parts)} is a link; links are not followed.") from refused
        raise
    finally:
        os.close(folder)
