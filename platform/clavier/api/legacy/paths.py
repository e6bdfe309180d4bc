"""Paths as the document writes them: ``/lightgbm`` is a folder at the top of the user's own files."""

from __future__ import annotations

from clavier.api.legacy.errors import spoken
from clavier.api.legacy.words import say
from clavier.core.errors import Invalid, quoted
from clavier.files.names import parse_user_path
from clavier.runs.own_code import STORED

#: A path that starts like one of a server's own folders was hardly meant to be one of the user's.
_SYSTEM = frozenset(
    ("bin", "boot", "dev", "etc", "home", "lib", "lib64", "opt", "proc", "root", "run", "sbin", "sys", "usr", "var")
)


def own_path(text: str, *, field: str) -> str:
    """A path below the user's area, without the slash in front. Raises Invalid (``path_outside_root``...)."""
    relative = text.lstrip("/")
    if text.startswith("/") and relative.partition("/")[0] in _SYSTEM:
        message = say(
            f"{field} {quoted(text)} 是系统目录；请填写个人文件中的目录，例如 /data/train",
            f"{field} {quoted(text)} is a folder of the system; name one of your own files, such as /data/train.",
        )
        raise spoken(Invalid(message, code="path_outside_root", field=field))
    return "/".join(parse_user_path(relative, field=field))


def location_of(text: str, *, field: str) -> str:
    """A path as the services name it: ``private/lightgbm``, or ``public/...`` where it says so; empty for nothing."""
    if not text.strip("/"):
        return ""
    path = own_path(text, field=field)
    return path if path.startswith(("public/", "private/")) else f"private/{path}"


def place_of(text: str, *, field: str, is_in_store: bool = False) -> str:
    """The same, or a folder of an object store: ``s3://store/bucket/prefix``, as the text says or ``is_in_store``."""
    if text.startswith(STORED) or (is_in_store and text.strip("/")):
        return STORED + text.removeprefix(STORED).strip("/")
    return location_of(text, field=field)
