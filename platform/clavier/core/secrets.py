"""Secrets at rest: sealed with a key that is made from SECRET_KEY, so that the database alone tells nothing."""

from __future__ import annotations

import base64
import hashlib

from cryptography.fernet import Fernet, InvalidToken
from django.conf import settings

from clavier.core.errors import Conflict


def seal(text: str) -> str:
    """The text, unreadable without this installation's SECRET_KEY."""
    return _cipher().encrypt(text.encode()).decode()


def unseal(sealed: str) -> str:
    """The text of ``seal``. Raises Conflict (``secret_lost``) when SECRET_KEY has changed since."""
    try:
        return _cipher().decrypt(sealed.encode()).decode()
    except InvalidToken as error:
        message = "The secret can no longer be read, because SECRET_KEY has changed. Enter it again."
        raise Conflict(message, code="secret_lost") from error


def _cipher() -> Fernet:
    digest = hashlib.sha256(b"clavier sealed secrets\0" + settings.SECRET_KEY.encode()).digest()
    return Fernet(base64.urlsafe_b64encode(digest))
