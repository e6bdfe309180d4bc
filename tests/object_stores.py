"""An S3 server on loopback, and what is put into it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from botocore.session import Session
from moto.server import ThreadedMotoServer

SECRET = "the-secret-of-the-store"


@contextmanager
def s3_server() -> Iterator[tuple[str, str]]:
    """Its address, and its host with the port, as OBJECT_STORE_HOSTS names it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    moto.start()
    try:
        yield f"http://127.0.0.1:{port}", f"127.0.0.1:{port}"
    finally:
        moto.stop()


def fill(endpoint: str, folder: Path, prefix: str) -> None:
    """Put what a folder holds into the bucket ``models``."""
    client = Session().create_client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key=SECRET
    )
    client.create_bucket(Bucket="models")
    for path in (path for path in folder.rglob("*") if path.is_file()):
        client.put_object(Bucket="models", Key=f"{prefix}/{path.relative_to(folder)}", Body=path.read_bytes())
