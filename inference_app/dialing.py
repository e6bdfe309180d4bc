"""How the gateway reaches a replica: its own socket in its own run folder and nothing else.

A replica is a tenant's program in the end. What it leaves under its socket's name is not trusted: no link is followed,
only a socket that its own user made is dialled, and the process that answers must be that user's.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Callable
from typing import Any, cast
from uuid import UUID

import aiohttp
from aiohttp.client_exceptions import UnixClientConnectorError
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from aiohttp.tracing import Trace
from django.conf import settings

from clavier.core.errors import NotFound
from clavier.core.ownership import TENANT_ID_BASE
from clavier.core.paths import open_beneath
from clavier.runs.outputs import run_folder
from runner.contract import folder

_CREDENTIALS = struct.Struct("3i")
_SOCKET_PARTS = tuple(folder.SOCKET.split("/"))


def owners_of(tenant_number: int) -> frozenset[int]:
    """Users whose sockets a replica of the tenant may have: its own, and outside of containers the platform's,
    where the host lets it give programs no user of their own.
    """
    mine = os.geteuid()
    is_shared = mine != 0 or settings.CLAVIER_EXECUTOR not in settings.CONTAINER_EXECUTORS
    return frozenset({TENANT_ID_BASE + tenant_number} | ({mine} if is_shared else set()))


def open_socket(run_id: UUID, owners: frozenset[int]) -> int:
    """A descriptor (O_PATH) of the replica's socket. Raises OSError for anything else under its name."""
    try:
        descriptor = open_beneath(run_folder(run_id), _SOCKET_PARTS, os.O_PATH)
    except NotFound as missing:
        raise FileNotFoundError(str(missing)) from missing
    found = os.fstat(descriptor)
    if stat.S_ISSOCK(found.st_mode) and found.st_uid in owners:
        return descriptor
    os.close(descriptor)
    raise PermissionError(f"{folder.SOCKET} of run {run_id} is no socket of the replica's own user")


def has_socket(run_id: UUID, owners: frozenset[int]) -> bool:
    """There is a socket that may be dialled."""
    try:
        os.close(open_socket(run_id, owners))
    except OSError:
        return False
    return True


class ReplicaConnector(aiohttp.BaseConnector):
    """Connections to one replica's socket, looked at anew for each of them."""

    def __init__(self, run_id: UUID, owners: frozenset[int]) -> None:
        super().__init__(limit=0)
        self._run_id = run_id
        self._owners = owners

    async def _create_connection(
        self, req: ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> ResponseHandler:
        where = f"run {self._run_id}"
        try:
            descriptor = open_socket(self._run_id, self._owners)
            try:
                path = f"/proc/self/fd/{descriptor}"
                factory = cast("Callable[[], ResponseHandler]", self._factory)
                transport, protocol = await self._loop.create_unix_connection(factory, path)
            finally:
                os.close(descriptor)
            peer = peer_user(transport.get_extra_info("socket"))
            if peer not in self._owners:
                transport.close()
                raise PermissionError(f"user {peer} answers for {where}")
        except OSError as error:
            raise UnixClientConnectorError(where, req.connection_key, error) from error
        return protocol


def peer_user(connection: Any) -> int:
    """The user of the process that listens (it counts from when the socket began to listen)."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(raw)[1])
