"""Which headers pass the front, and which it writes itself."""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from typing import Any

from multidict import CIMultiDict

Scope = MutableMapping[str, Any]

#: Belong to one connection, not to the message (RFC 9110, 7.6.1); Expect is answered by our own server.
HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer transfer-encoding "
    b"upgrade expect".split()
)
#: What the web process believes, so no client may say it. `_` and `-` are one letter in a WSGI environment.
UNTRUSTED = re.compile(rb"x-forwarded-|x-real-ip$|x-clavier-|forwarded$|.*_")


def headers_to_web(scope: Scope, data: object) -> CIMultiDict[str]:
    """The client's end-to-end headers without what only we may say, and then what we say: the peer and the scheme."""
    headers = CIMultiDict(
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in end_to_end(scope["headers"])
        if not UNTRUSTED.match(name)
    )
    client = scope.get("client")
    if client:
        headers["X-Forwarded-For"] = client[0]
    headers["X-Forwarded-Proto"] = scope["scheme"]
    if isinstance(data, bytes):
        headers["Content-Length"] = str(len(data))
    return headers


def end_to_end(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Headers in lower case without the hop-by-hop ones, the ones that Connection names included."""
    lowered = [(name.lower(), value) for name, value in headers]
    named = {word.strip().lower() for name, value in lowered if name == b"connection" for word in value.split(b",")}
    return [(name, value) for name, value in lowered if name not in HOP_BY_HOP and name not in named]
