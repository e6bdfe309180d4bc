"""The one way out: requests to addresses that users name, which must not reach into the operator's own network.

A name is resolved once, its address is checked and then used (so that a second answer of the DNS changes nothing), TLS
still proves the name, and every redirect goes through the same check.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

import urllib3

from runner.contract import exits
from runner.programs.lib.events import ProgramError

MAX_REDIRECTS = 5
DOCUMENT_BYTES = 4 << 20
_TIMEOUT = urllib3.Timeout(connect=10, read=60)
_PORTS = {"http": 80, "https": 443}
_MOST_ADDRESSES = 4
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
#: Ranges that carry an IPv4 address inside an IPv6 one: NAT64 and its local form.
_NAT64 = tuple(ipaddress.ip_network(text) for text in ("64:ff9b::/96", "64:ff9b:1::/48"))


@dataclass(frozen=True, slots=True)
class Place:
    """A scheme, a host and a port."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Outbound:
    """Sends requests to public addresses, and to the places that an operator has allowed.

    ``allowed``: ``host``, ``host:port`` (TLS) or ``http://host:port``; only these may be private, or without TLS.
    """

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        self._allowed = frozenset(place_of(entry if "://" in entry else f"https://{entry}") for entry in allowed)

    def get(self, url: str, headers: Mapping[str, str] | None = None) -> urllib3.BaseHTTPResponse:
        """Open a GET, following redirects; the body is not read yet, and the caller closes it.

        ``Authorization`` goes to the first place only. Raises ProgramError (``address_not_allowed``,
        ``host_unreachable``).
        """
        first, sent = place_of(url), dict(headers or {})
        for _ in range(MAX_REDIRECTS + 1):
            place = place_of(url)
            if place != first:
                sent.pop("Authorization", None)
            answer = self._request(place, url, sent)
            location = answer.headers.get("Location")
            if answer.status not in _REDIRECTS or not location:
                return answer
            answer.close()
            url = urljoin(url, location)
        raise ProgramError("host_unreachable", f"{first} redirects more than {MAX_REDIRECTS} times.")

    def _request(self, place: Place, url: str, headers: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        addresses = self._checked_addresses(place)
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        host = f"[{place.host}]" if ":" in place.host else place.host
        is_default = _PORTS[place.scheme] == place.port
        sent = {"User-Agent": "clavier", **headers, "Host": host if is_default else f"{host}:{place.port}"}
        for address in addresses:
            try:
                return _pool(place, address).urlopen(
                    "GET", target, headers=sent, redirect=False, retries=False,
                    preload_content=False, decode_content=False,
                )  # fmt: skip
            except (urllib3.exceptions.HTTPError, OSError) as error:
                failure = error
        raise unreachable(place, failure) from failure

    def _checked_addresses(self, place: Place) -> list[str]:
        """The addresses to connect to, the best first. Raises ProgramError where no operator has allowed it."""
        is_allowed = place in self._allowed
        if place.scheme != "https" and not is_allowed:
            raise _refused(place, "it is asked for without TLS")
        try:
            found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise unreachable(place, error) from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))[:_MOST_ADDRESSES]
        private = next((address for address in addresses if not is_public(address)), None)
        if private is not None and not is_allowed:
            raise _refused(place, f"it is the address {private}, which is not public")
        return addresses


def _pool(place: Place, address: str) -> urllib3.HTTPConnectionPool:
    """Connections to a checked address, on which TLS proves the name that was asked for."""
    if place.scheme == "http":
        return urllib3.HTTPConnectionPool(address, place.port, timeout=_TIMEOUT)
    return urllib3.HTTPSConnectionPool(
        address,
        place.port,
        timeout=_TIMEOUT,
        ssl_context=ssl.create_default_context(),
        server_hostname=place.host,
        assert_hostname=place.host,
    )


def is_public(address: str) -> bool:
    """Whether an address is one of the internet, also when it wraps an IPv4 address."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        wrapped = found.ipv4_mapped or found.sixtofour
        if any(found in network for network in _NAT64):
            wrapped = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if wrapped is not None and not is_public(str(wrapped)):
            return False
    return found.is_global and not found.is_multicast


def place_of(url: str) -> Place:
    """Raises ProgramError (``address_not_allowed``) for what is no address of the web."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.scheme not in _PORTS or parts.username is not None:
        raise ProgramError("address_not_allowed", f"{url[:200]!r} is no address such as https://host/path.")
    return Place(parts.scheme, host, port or _PORTS[parts.scheme])


def read_document(answer: urllib3.BaseHTTPResponse, what: str, max_bytes: int = DOCUMENT_BYTES) -> bytes:
    """A whole small body. Raises ProgramError (``answer_too_large``, ``host_unreachable``)."""
    try:
        content: bytes = answer.read(max_bytes + 1)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise ProgramError("host_unreachable", f"{what} broke off: {error}.", exit_code=exits.UNREACHABLE) from error
    finally:
        answer.close()
    if len(content) > max_bytes:
        raise ProgramError("answer_too_large", f"{what} has more than {max_bytes:,} bytes.")
    return content


def read_object(answer: urllib3.BaseHTTPResponse, what: str) -> dict[str, Any]:
    """A small JSON object. Raises ProgramError (``bad_answer``)."""
    try:
        value = json.loads(read_document(answer, what))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ProgramError("bad_answer", f"{what} is no JSON object.")
    return value


def unreachable(place: Place, error: BaseException) -> ProgramError:
    """The refusal for a host that does not answer."""
    reason = str(error).split("\n")[0][:200]
    return ProgramError(
        "host_unreachable",
        f"{place} can not be reached from this machine ({reason}). Check the name, or ask the operator.",
        exit_code=exits.UNREACHABLE,
    )


def _refused(place: Place, reason: str) -> ProgramError:
    return ProgramError(
        "address_not_allowed",
        f"{place.scheme}://{place} is not allowed: {reason}. Ask the operator to allow this host and port.",
    )
