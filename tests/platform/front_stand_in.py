"""What tests and the benchmark put around the front: an application for granian, and a gateway that echoes."""

from __future__ import annotations

import os
from pathlib import Path

from clavier.core.front import Front, Receive, Send
from clavier.core.proxy_headers import Scope


async def echoing_gateway(scope: Scope, receive: Receive, send: Send) -> None:
    """Says that it is the gateway and which path it was asked for."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"gateway " + scope["path"].encode()})


front = Front(web_socket=Path(os.environ["STAND_IN_WEB_SOCKET"]), gateway=echoing_gateway)
