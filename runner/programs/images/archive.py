"""Image archives as ``docker save``, ``podman save``, ``skopeo`` and ``buildah`` write them, read in one pass."""

from __future__ import annotations

import hashlib
import posixpath
import re
from dataclasses import dataclass, field
from typing import Any

from runner.programs.images.config import json_object, read_json
from runner.programs.images.layers import Layer, LayerArchive
from runner.programs.images.tar_stream import (
    BLOCK,
    GZIP_MAGIC,
    Entry,
    Gunzip,
    Read,
    TarReader,
    chained,
    looks_like_tar,
    read_fully,
)
from runner.programs.lib.events import ProgramError

MAX_ENTRIES = 10_000
#: Configurations and manifests; the largest seen in the wild have some hundred KiB.
MAX_DOCUMENT_BYTES = 4 << 20
MAX_DOCUMENTS_BYTES = 64 << 20
MANIFEST = "manifest.json"
INDEX = "index.json"
_SAVE_AGAIN = "Make the archive with 'docker save IMAGE:TAG -o image.tar'."
_HEX = re.compile(r"[0-9a-f]{64}")
_COMPRESSIONS = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}
_TAG_NOTES = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


@dataclass(slots=True)
class Contents:
    """What one pass has found, by member name: documents (small and no tar), layers, and links (name -> target)."""

    documents: dict[str, bytes] = field(default_factory=dict)
    layers: dict[str, Layer] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Chosen:
    """One image: its configuration, its layers in order, the tags it came with, and a registry's digest of it."""

    config: bytes
    layers: list[Layer]
    tags: list[str]
    digest: str = ""


def read_archive(read: Read, name: str, archive: LayerArchive) -> Contents:
    """Pass over an image archive (plain or gzip), its layers into ``archive``. ``name``: the file, for messages.

    Raises ProgramError: ``not_an_archive``, ``corrupt_archive``, ``path_outside_root``, ``link_not_allowed``,
    ``special_file_not_allowed``, ``duplicate_entry``, ``too_many_entries``, ``unpacked_too_large``.
    """
    contents, seen = Contents(), set[str]()
    members = TarReader(_unpacked(read, name), name, MAX_ENTRIES)
    for entry in members:
        path = _inside(entry.name, "the entry")
        if entry.kind == "folder":
            continue
        if path in seen:
            raise ProgramError("duplicate_entry", f"{name} has two entries {path!r}.")
        seen.add(path)
        if entry.kind == "link":
            contents.links[path] = _link_target(path, entry)
        elif entry.kind == "special" or entry.unpacked_size != entry.size:
            what = "device, fifo or socket" if entry.kind == "special" else "sparse file"
            raise ProgramError("special_file_not_allowed", f"{name} has the {what} {path!r}. {_SAVE_AGAIN}")
        else:
            _take_file(contents, members, entry, path, archive)
    return contents


def choose_image(contents: Contents, *, name: str, tag: str) -> Chosen:
    """The one image of the archive; of several the one that is tagged ``name:tag``, or else alone in having ``tag``.

    Raises ProgramError (``bad_image``, ``several_images``, ``path_outside_root``).
    """
    if MANIFEST in contents.documents:
        return _from_docker_manifest(contents, name, tag)
    if INDEX in contents.documents:
        return _from_oci_index(contents, name, tag)
    raise ProgramError("bad_image", f"The archive has neither manifest.json nor index.json. {_SAVE_AGAIN}")


def _unpacked(read: Read, name: str) -> Read:
    start = read_fully(read, BLOCK)
    source = chained(start, read)
    if start.startswith(GZIP_MAGIC):
        return Gunzip(source, name).read
    if looks_like_tar(start):
        return source
    known = next((word for magic, word in _COMPRESSIONS.items() if start.startswith(magic)), None)
    found = f"it is compressed with {known}; plain tar and gzip are read" if known else "it is no tar and no gzip"
    raise ProgramError("not_an_archive", f"{name} can not be read: {found}. {_SAVE_AGAIN}")


def _take_file(contents: Contents, members: TarReader, entry: Entry, path: str, archive: LayerArchive) -> None:
    """A tar is a layer, what is small is a document, and nothing else is looked at."""
    start = members.read(BLOCK)
    if start.startswith(GZIP_MAGIC) or looks_like_tar(start):
        contents.layers[path] = archive.add(chained(start, members.read), f"the layer {path!r}")
    elif entry.size <= MAX_DOCUMENT_BYTES:
        contents.documents[path] = start + read_fully(members.read, entry.size)
        if sum(map(len, contents.documents.values())) > MAX_DOCUMENTS_BYTES:
            raise ProgramError("bad_image", "The archive has more than 64 MiB of documents besides its layers.")


def _from_docker_manifest(contents: Contents, name: str, tag: str) -> Chosen:
    listed = read_json(contents.documents[MANIFEST], MANIFEST)
    if not isinstance(listed, list) or not listed or not all(isinstance(entry, dict) for entry in listed):
        raise ProgramError("bad_image", f"manifest.json is no list of images. {_SAVE_AGAIN}")
    tags = [_strings(entry.get("RepoTags") or [], "RepoTags") for entry in listed]
    place = _pick(tags, name, tag)
    config_path = _inside(str(listed[place].get("Config")), "Config")
    config = contents.documents.get(config_path)
    if config is None:
        raise ProgramError("bad_image", f"manifest.json names the Config {config_path!r}, which is not there.")
    _check_named_digest(config_path, config)
    paths = [_inside(path, "Layers") for path in _strings(listed[place].get("Layers"), "Layers")]
    return Chosen(config, [_layer_at(contents, path) for path in paths], tags[place])


def _from_oci_index(contents: Contents, name: str, tag: str) -> Chosen:
    listed = _oci_images(contents, json_object(contents.documents[INDEX], INDEX))
    if not listed:
        raise ProgramError("bad_image", f"index.json lists no image. {_SAVE_AGAIN}")
    manifest, tags = listed[_pick([tags for _, tags in listed], name, tag)]
    by_digest = {layer.digest: layer for layer in contents.layers.values()}
    layers = []
    for described in descriptors(manifest, "layers"):
        layer = by_digest.get(str(described.get("digest")))
        if layer is None:
            digest = str(described.get("digest"))[:80]
            raise ProgramError("bad_image", f"The layer {digest!r} is not in the archive, or its digest differs.")
        layers.append(layer)
    return Chosen(_blob(contents, manifest["config"]), layers, tags)


def _oci_images(contents: Contents, index: dict[str, Any], depth: int = 0) -> list[tuple[dict[str, Any], list[str]]]:
    """(manifest, tags) of each image of an index, through nested indexes. Attestations are no images."""
    found: list[tuple[dict[str, Any], list[str]]] = []
    for described in descriptors(index, "manifests"):
        system = described.get("platform")
        if isinstance(system, dict) and system.get("os") == "unknown":
            continue
        document = json_object(_blob(contents, described), "an image's manifest")
        notes = described.get("annotations")
        tags = [str(notes[key]) for key in _TAG_NOTES if notes.get(key)] if isinstance(notes, dict) else []
        if "manifests" in document and depth < 2:
            found += [(manifest, tags) for manifest, _ in _oci_images(contents, document, depth + 1)]
        elif "config" in document:
            found.append((document, tags))
    return found


def descriptors(document: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The descriptors that an index or manifest lists. Raises ProgramError (``bad_image``)."""
    found = document.get(key)
    if not isinstance(found, list) or not all(isinstance(described, dict) for described in found):
        raise ProgramError("bad_image", f"{key} of an index or manifest is no list of descriptors.")
    return found


def _blob(contents: Contents, described: Any) -> bytes:
    """The document that a descriptor names, its digest checked. Raises ProgramError (``bad_image``)."""
    digest = str(described.get("digest")) if isinstance(described, dict) else ""
    content = contents.documents.get(f"blobs/{digest.replace(':', '/', 1)}")
    if content is None:
        raise ProgramError("bad_image", f"The blob {digest[:80]!r} is not in the archive. {_SAVE_AGAIN}")
    if digest != f"sha256:{hashlib.sha256(content).hexdigest()}":
        raise ProgramError("bad_image", f"The digest of the blob {digest[:80]!r} does not match its content.")
    return content


def _pick(tags: list[list[str]], name: str, tag: str) -> int:
    """The place of the wanted image. Raises ProgramError (``several_images``) naming what is there."""
    if len(tags) == 1:
        return 0
    exact = [place for place, names in enumerate(tags) if f"{name}:{tag}" in names]
    alike = [place for place, names in enumerate(tags) if any(found.rpartition(":")[2] == tag for found in names)]
    for found in (exact, alike):
        if len(found) == 1:
            return found[0]
    listed = ", ".join(sorted(found for names in tags for found in names)[:10]) or "none has a tag"
    raise ProgramError(
        "several_images",
        f"The archive holds {len(tags)} images ({listed[:300]}), and the tag {tag!r} does not say which. Import under "
        "the tag of one of them, or save one alone.",
        field="tag",
    )


def _layer_at(contents: Contents, path: str) -> Layer:
    """``docker save`` links a layer that occurs twice to the first."""
    layer = contents.layers.get(path) or contents.layers.get(contents.links.get(path, ""))
    if layer is None:
        raise ProgramError("bad_image", f"manifest.json names in Layers {path!r}, which is not there or is no layer.")
    return layer


def _check_named_digest(path: str, content: bytes) -> None:
    stem = posixpath.basename(path).removesuffix(".json").removeprefix("sha256:")
    if _HEX.fullmatch(stem) and stem != hashlib.sha256(content).hexdigest():
        raise ProgramError(
            "bad_image", f"The digest of the configuration does not match its name {path!r}: it was changed afterwards."
        )


def _link_target(path: str, entry: Entry) -> str:
    """Where a link leads inside the archive (it is never followed on a disk). Raises ProgramError."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(path), entry.target))
    if entry.target.startswith("/") or target.startswith(".."):
        raise ProgramError(
            "link_not_allowed", f"The link {path!r} leads out of the archive, to {entry.target[:200]!r}."
        )
    return target


def _inside(path: str, what: str) -> str:
    """A member's path, normal. Raises ProgramError (``path_outside_root``)."""
    if path.startswith("/") or "\0" in path or ".." in path.split("/"):
        raise ProgramError("path_outside_root", f"{what} {path[:200]!r} leaves the archive. {_SAVE_AGAIN}")
    return posixpath.normpath(path)


def _strings(value: Any, what: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise ProgramError("bad_image", f"manifest.json: {what} is no list of texts. {_SAVE_AGAIN}")
    return value
