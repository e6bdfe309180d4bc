"""Registries for tests: Debian's ``docker-registry`` on loopback, pushed to by hand, and one that misbehaves."""

from __future__ import annotations

import gzip
import http.server
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from tests.image_tars import HandMade, oci_manifest, sha256

PROGRAM = "/usr/bin/docker-registry"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"


@dataclass(frozen=True)
class RealRegistry:
    """A registry that runs; ``host`` is ``127.0.0.1:PORT``."""

    host: str
    login: tuple[str, str] | None = None

    @property
    def address(self) -> str:
        return f"http://{self.host}"

    def push(self, made: HandMade, repository: str, tag: str) -> str:
        """Push an image over the registry's API as ``docker push`` does; the digest of its manifest."""
        blobs = [gzip.compress(layer, mtime=0) for layer in made.layers]
        for blob in (*blobs, made.config):
            self.push_blob(repository, blob)
        return self.push_manifest(repository, tag, MANIFEST_TYPE, oci_manifest(made, blobs))

    def push_blob(self, repository: str, blob: bytes) -> None:
        started = requests.post(f"{self.address}/v2/{repository}/blobs/uploads/", auth=self.login, timeout=10)
        assert started.status_code == 202, started.text
        place = started.headers["Location"]
        joint = "&" if "?" in place else "?"
        done = requests.put(f"{place}{joint}digest={sha256(blob)}", data=blob, auth=self.login, timeout=10)
        assert done.status_code == 201, done.text

    def push_manifest(self, repository: str, tag: str, media_type: str, manifest: dict[str, Any]) -> str:
        content = json.dumps(manifest).encode()
        url, headers = f"{self.address}/v2/{repository}/manifests/{tag}", {"Content-Type": media_type}
        done = requests.put(url, data=content, headers=headers, auth=self.login, timeout=10)
        assert done.status_code == 201, done.text
        return sha256(content)


@contextmanager
def real_registry(folder: Path, htpasswd: str = "", login: tuple[str, str] | None = None) -> Iterator[RealRegistry]:
    """Start Debian's registry; with ``htpasswd`` (a line of that file) it wants the login."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    configuration: dict[str, Any] = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    if htpasswd:
        (folder / "htpasswd").write_text(f"{htpasswd}\n")
        configuration["auth"] = {"htpasswd": {"realm": "tests", "path": str(folder / "htpasswd")}}
    # JSON is YAML.
    (folder / "config.yml").write_text(json.dumps(configuration))
    with open(folder / "log.txt", "wb") as log:
        process = subprocess.Popen([PROGRAM, "serve", folder / "config.yml"], stdout=log, stderr=log)
    try:
        wait_until_open(port, process)
        yield RealRegistry(f"127.0.0.1:{port}", login)
    finally:
        process.terminate()
        process.wait(10)


@dataclass
class StubRegistry:
    """A registry whose faults are scripted, with token logins; it holds one image."""

    host: str = ""
    answers: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    token: str = ""
    login: str = ""
    breaks_at: int = 0
    knows_ranges: bool = True
    redirects: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"http://{self.host}"

    def hold(self, made: HandMade, tag: str, layer_blobs: list[bytes] | None = None) -> list[bytes]:
        """Answer for this image; the blobs of its layers."""
        blobs = layer_blobs or [gzip.compress(layer, mtime=0) for layer in made.layers]
        manifest = json.dumps(oci_manifest(made, blobs)).encode()
        self.answers[f"manifests/{tag}"] = (MANIFEST_TYPE, manifest)
        for blob in (*blobs, made.config):
            self.answers[f"blobs/{sha256(blob)}"] = ("application/octet-stream", blob)
        return blobs


@contextmanager
def stub_registry(tls: ssl.SSLContext | None = None) -> Iterator[StubRegistry]:
    """Start one on loopback, with TLS where a context is given."""
    stub = StubRegistry()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            stub.asked.append((self.path, dict(self.headers)))
            if self.path.startswith("/token"):
                good = not stub.login or self.headers.get("Authorization") == stub.login
                return self.answer(200 if good else 401, json.dumps({"token": stub.token}).encode())
            if stub.token and self.headers.get("Authorization") != f"Bearer {stub.token}":
                challenge = f'Bearer realm="{stub.address}/token",service="stub",scope="repository:team/app:pull"'
                return self.answer(401, b"", {"WWW-Authenticate": challenge})
            path = self.path.removeprefix("/v2/team/app/")
            if path in stub.redirects:
                return self.answer(307, b"", {"Location": stub.redirects[path]})
            if path not in stub.answers:
                return self.answer(404, b"{}")
            kind, body = stub.answers[path]
            return self.body(kind, body)

        def body(self, kind: str, body: bytes) -> None:
            start = 0
            if stub.knows_ranges and (asked := self.headers.get("Range")):
                start = int(asked.removeprefix("bytes=").rstrip("-"))
            rest = body[start:]
            if stub.breaks_at and len(rest) > stub.breaks_at and "blobs" in self.path:
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(rest)))
                self.end_headers()
                self.wfile.write(rest[: stub.breaks_at])
                self.close_connection = True
                return
            self.answer(206 if start else 200, rest, {"Content-Type": kind})

        def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    stub.host = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_open(port: int, process: subprocess.Popen[bytes], limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        assert process.poll() is None, "the registry ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"nothing listens on port {port}")
