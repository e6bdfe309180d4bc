"""Container images made by hand: layers, a configuration, and the archives that tools save them in."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TAG = "library/hello:1"


def layer_of(files: dict[str, bytes]) -> bytes:
    """The tar of one layer."""
    return tar_of(files)


def tar_of(files: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    """A tar of regular files and symbolic links."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return stream.getvalue()


@dataclass(frozen=True)
class HandMade:
    """An image: its configuration as bytes and its layers as tars."""

    config: bytes
    layers: tuple[bytes, ...]

    @property
    def id(self) -> str:
        """What an engine calls it."""
        return sha256(self.config)


def image(*layers: bytes, runtime: dict[str, Any] | None = None, architecture: str = "amd64", **more: Any) -> HandMade:
    """An image of these layers (by default two); ``runtime``: its Env, Cmd and so on."""
    layers = layers or (layer_of({"bin/hello": b"#!/bin/sh\necho hello\n"}), layer_of({"etc/.wh.motd": b""}))
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/hello"], **(runtime or {})},
        "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]},
        **more,
    }
    return HandMade(json.dumps(config).encode(), layers)


def docker_archive(
    *images: HandMade,
    tags: list[list[str]] | None = None,
    change: Callable[[dict[str, bytes], list[dict[str, Any]]], None] | None = None,
) -> bytes:
    """What ``docker save`` writes; ``change`` may spoil the files and the manifest before they are packed."""
    files: dict[str, bytes] = {}
    manifest: list[dict[str, Any]] = []
    for number, made in enumerate(images):
        names = []
        for layer in made.layers:
            name = f"{sha256(b'folder' + layer)[7:]}/layer.tar"
            files[name] = layer
            names.append(name)
        config_name = f"{made.id[7:]}.json"
        files[config_name] = made.config
        own_tags = tags[number] if tags else [TAG]
        manifest.append({"Config": config_name, "RepoTags": own_tags, "Layers": names})
    if change is not None:
        change(files, manifest)
    files.setdefault("manifest.json", json.dumps(manifest).encode())
    return tar_of(files)


def oci_archive(made: HandMade, tag: str = "1", *, zipped: bool = True) -> bytes:
    """What ``skopeo copy ... oci-archive:`` and ``buildah push`` write: layers gzip-compressed, all blobs by digest."""
    blobs = [gzip.compress(layer, mtime=0) if zipped else layer for layer in made.layers]
    manifest = json.dumps(oci_manifest(made, blobs)).encode()
    index = {
        "schemaVersion": 2,
        "manifests": [
            {
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": sha256(manifest),
                "size": len(manifest),
                "annotations": {"org.opencontainers.image.ref.name": tag},
            }
        ],
    }
    files = {f"blobs/sha256/{sha256(blob)[7:]}": blob for blob in (*blobs, made.config, manifest)}
    return tar_of({"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": json.dumps(index).encode(), **files})


def oci_manifest(made: HandMade, blobs: list[bytes]) -> dict[str, Any]:
    """The manifest of an image whose layers are stored as ``blobs``."""
    return {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": sha256(made.config),
            "size": len(made.config),
        },
        "layers": [
            {
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": sha256(blob),
                "size": len(blob),
            }
            for blob in blobs
        ],
    }


def sha256(content: bytes) -> str:
    """``sha256:...``"""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
