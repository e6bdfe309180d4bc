"""What users may call files and folders: stricter than the disk, so that no reader of the path is misled later."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import unquote

from clavier.core.errors import Invalid, quoted
from clavier.core.paths import MAX_COMPONENT_BYTES, parse_name, parse_path

_HOME = re.compile(r"\A~[\w.-]*\Z")
#: The deepest path that fits a column and a system call.
MAX_PATH_BYTES = 4000


def parse_user_path(text: str, *, field: str) -> tuple[str, ...]:
    """The components of a path relative to an area; ``""`` and ``"/"`` are its top.

    Raises Invalid: ``path_outside_root`` for everything that some reader could take for a way out (``..`` in any
    spelling, ``/etc``, ``~user/``), ``bad_path``, ``bad_name``, ``too_long``.
    """
    if "\0" in text:
        raise Invalid(f"{field} {quoted(text)} has a NUL character.", code="bad_path", field=field)
    # Percent signs may be part of a name; what they spell is only looked at, never used.
    for spelling in {text, unquote(text), unquote(unquote(text))}:
        refuse_way_out(spelling, text, field)
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if len("/".join(parts).encode("utf-8", "surrogatepass")) > MAX_PATH_BYTES:
        raise Invalid(f"{field} is longer than {MAX_PATH_BYTES} bytes.", code="too_long", field=field)
    for part in parts:
        refuse_long(part, field)
    return parse_path("/".join(parts), field=field)


def parse_file_name(name: str, *, field: str) -> str:
    """One name in NFC. Raises Invalid (``required``, ``too_long``, ``bad_name``)."""
    if not name.strip():
        raise Invalid(f"{field} is empty. Give the file a name.", code="required", field=field)
    refuse_long(name, field)
    name = parse_name(name, field=field)
    if ".." in folded(name).split("/"):
        raise Invalid(f"{field} {quoted(name)} is no file name.", code="bad_name", field=field)
    return name


def refuse_way_out(spelling: str, text: str, field: str) -> None:
    """Raises Invalid (``path_outside_root``)."""
    parts = [part for part in folded(spelling).split("/") if part]
    climbs = any(len(part) > 1 and not part.strip(".") for part in parts)
    absolute = folded(spelling).startswith("/") and bool(parts)
    home = len(parts) > 1 and _HOME.match(parts[0]) is not None
    if climbs or absolute or home:
        raise Invalid(
            f"{field} {quoted(text)} leaves your files. Use a path relative to them, such as 'data/train', without "
            "'..', a leading '/' or '~'.",
            code="path_outside_root",
            field=field,
        )


def refuse_long(name: str, field: str) -> None:
    """Raises Invalid (``too_long``)."""
    size = len(unicodedata.normalize("NFC", name).encode("utf-8", "surrogatepass"))
    if size > MAX_COMPONENT_BYTES:
        raise Invalid(
            f"{field} {quoted(name, 60)} is {size} bytes long; {MAX_COMPONENT_BYTES} are allowed.",
            code="too_long",
            field=field,
        )


def folded(text: str) -> str:
    """The text with look-alikes of dots and slashes turned into them."""
    return unicodedata.normalize("NFKC", text).replace("\\", "/")
