"""How settings are read: environment variables of few kinds, and secrets that an installation makes for itself."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import tempfile
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured


def env_choice(name: str, default: str, choices: set[str]) -> str:
    """An environment variable that is one of a few words; anything else stops the start with the words allowed."""
    value = os.environ.get(name, default)
    if value not in choices:
        raise ImproperlyConfigured(f"{name}={value!r} is not one of {', '.join(sorted(choices))}.")
    return value


def env_int(name: str, default: int, minimum: int, maximum: int) -> int:
    """A whole number within bounds; anything else stops the start with the bounds."""
    text = os.environ.get(name, str(default))
    number = int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None
    if number is None or not minimum <= number <= maximum:
        raise ImproperlyConfigured(f"{name}={text!r} is not a whole number from {minimum} to {maximum}.")
    return number


def env_bool(name: str, default: bool) -> bool:
    """true/false, 1/0, yes/no, on/off; anything else stops the start."""
    text = os.environ.get(name, "").strip().lower()
    if not text:
        return default
    if text in {"1", "true", "yes", "on"}:
        return True
    if text in {"0", "false", "no", "off"}:
        return False
    raise ImproperlyConfigured(f"{name}={text!r} is not true or false.")


def env_list(name: str, default: list[str]) -> list[str]:
    """Words separated by commas."""
    text = os.environ.get(name)
    return default if text is None else [word.strip() for word in text.split(",") if word.strip()]


def stored_secret(path: Path) -> str:
    """The installation's own secret, made at the first start and kept in a file that only its user reads."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(secrets.token_urlsafe(50))
        temporary.chmod(0o600)
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    return path.read_text().strip()


def socket_folder(home: Path) -> Path:
    """A private folder for Unix sockets; their paths end at 107 bytes, so a deep home gets a short one."""
    folder = home / "run"
    if len(str(folder)) > 80:
        folder = Path(tempfile.gettempdir()) / f"clavier-{hashlib.sha256(str(home).encode()).hexdigest()[:12]}"
    return folder
