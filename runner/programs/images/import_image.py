"""Takes a container image over: ``python -m runner.programs.images.import_image RUN_FOLDER``.

Parameters: ``source``, ``name`` and ``tag`` (what it will be called, and which image to take where an archive holds
several), ``os`` and ``architectures`` (what the engines run), ``max_bytes`` (of the image, unpacked);
for ``source`` ``tar``: ``location`` (the archive's path);
for ``registry``: ``address`` (``https://host:port``), ``repository``, ``reference`` (a tag or digest), ``credentials``
(a file with ``username`` and ``password``, or null), ``allowed`` (places that may be private, for ``lib.outbound``).
Writes ``output/image.tar`` (for ``docker load``, under a tag of its own) and a manifest of kind ``image``.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.contract import folder
from runner.contract.folder import write_json_durably
from runner.contract.images import engine_tag
from runner.programs.images.archive import Chosen, choose_image, read_archive
from runner.programs.images.config import ImageConfig, check_config
from runner.programs.images.layers import Bounds, LayerArchive, layer_name
from runner.programs.lib.events import ProgramContext, ProgramError, Stopped, require, run_program

SOURCES = ("tar", "registry")
_PROGRESS_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Request:
    """The checked parameters."""

    source: str
    name: str
    tag: str
    system: str
    architectures: list[str]
    max_bytes: int

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Request:
        """Raises ProgramError naming the parameter that is missing or wrong."""
        source = str(require(parameters, "source"))
        if source not in SOURCES:
            raise ProgramError("source_unknown", f"source is {source!r}; allowed: {', '.join(SOURCES)}.", "source")
        return cls(
            source=source,
            name=str(require(parameters, "name")),
            tag=str(require(parameters, "tag")),
            system=str(require(parameters, "os")),
            architectures=[str(word) for word in require(parameters, "architectures")],
            max_bytes=int(require(parameters, "max_bytes")),
        )


def main(context: ProgramContext) -> None:
    """Read, check, write the image's own archive, describe it."""
    request = Request.from_parameters(context.parameters)
    target = context.output / folder.IMAGE
    bounds = Bounds(request.max_bytes)
    with LayerArchive(target, bounds) as archive:
        take = _read_tar if request.source == "tar" else _pull
        chosen = take(context, request, archive, bounds)
        context.report.phase("check", "checking the image")
        config = check_config(chosen.config, system=request.system, architectures=request.architectures)
        _check_layers(chosen, config)
        archive.finish(config.diff_ids, _documents(chosen, config))
    warnings = _foreign_tags(request, chosen) + config.warnings
    for warning in warnings:
        context.report.warning(warning, code="image")
    facts = {
        **config.facts,
        "image_id": config.id,
        "layers": [{"diff_id": layer.diff_id, "size_bytes": layer.size} for layer in chosen.layers],
        "original_tags": chosen.tags,
        "digest": chosen.digest,
        "warnings": warnings,
        "size_bytes": target.stat().st_size,
    }
    context.report.phase("save", "hashing the archive")
    _write_manifest(context.output, target, facts)
    context.report.artifact(f"{folder.OUTPUT}/{folder.IMAGE}", "image", facts["size_bytes"])
    context.report.summary({"layers": len(chosen.layers), "size_bytes": facts["size_bytes"]})


def _read_tar(context: ProgramContext, request: Request, archive: LayerArchive, bounds: Bounds) -> Chosen:
    path = Path(str(require(context.parameters, "location")))
    total_bytes = path.stat().st_size
    context.report.phase("read", f"reading {path.name}, {total_bytes / 2**20:.1f} MiB")
    progress = _ByteProgress(context, total_bytes)
    with open(path, "rb") as stream:

        def read(count: int) -> bytes:
            piece = stream.read(count)
            bounds.taken_in += len(piece)
            progress.advance(len(piece))
            return piece

        contents = read_archive(read, path.name, archive)
    context.report.progress(total_bytes, total_bytes)
    return choose_image(contents, name=request.name, tag=request.tag)


def _pull(context: ProgramContext, request: Request, archive: LayerArchive, bounds: Bounds) -> Chosen:
    # Late: pulls in an HTTP client; archives need none.
    from runner.programs.images.registry import Registry, Source, pull, read_credentials
    from runner.programs.lib.outbound import Outbound

    given = context.parameters
    source = Source(*(str(require(given, name)) for name in ("address", "repository", "reference")))
    context.report.phase("read", f"pulling {source}")
    registry = Registry(Outbound(require(given, "allowed")), source, read_credentials(given.get("credentials")))
    progress = _ByteProgress(context, 0)

    def on_bytes(count: int, total_bytes: int) -> None:
        progress.total_bytes = total_bytes
        progress.advance(count)

    return pull(
        registry,
        source,
        system=request.system,
        architectures=request.architectures,
        archive=archive,
        bounds=bounds,
        on_bytes=on_bytes,
    )


class _ByteProgress:
    """Reports bytes taken in, at most every half second."""

    def __init__(self, context: ProgramContext, total_bytes: int) -> None:
        self._context = context
        self.total_bytes = total_bytes
        self._done_bytes = 0
        self._reported_at = 0.0

    def advance(self, count: int) -> None:
        """Raises Stopped once SIGTERM came."""
        if self._context.should_stop:
            raise Stopped(f"stopped after {self._done_bytes} of {self.total_bytes} bytes")
        self._done_bytes += count
        now = time.monotonic()
        if now - self._reported_at >= _PROGRESS_EVERY_S:
            self._reported_at = now
            self._context.report.progress(self._done_bytes, self.total_bytes)


def _check_layers(chosen: Chosen, config: ImageConfig) -> None:
    """Each layer is what the configuration says, in the same order. Raises ProgramError (``bad_image``)."""
    if len(chosen.layers) != len(config.diff_ids):
        raise ProgramError(
            "bad_image",
            f"The image has {len(chosen.layers)} layers, its configuration {len(config.diff_ids)} diff_ids.",
        )
    for number, (layer, diff_id) in enumerate(zip(chosen.layers, config.diff_ids, strict=True), start=1):
        if layer.diff_id != diff_id:
            raise ProgramError(
                "bad_image",
                f"The digest of layer {number} is {layer.diff_id}, the configuration says {diff_id}: the archive is "
                "damaged or was changed. Save it again and upload it again.",
            )


def _documents(chosen: Chosen, config: ImageConfig) -> dict[str, bytes]:
    """Configuration and manifest of the new archive: one image, under a tag that names its id and nothing else."""
    config_name = f"{config.id.removeprefix('sha256:')}.json"
    layers = [layer_name(diff_id) for diff_id in config.diff_ids]
    manifest = [{"Config": config_name, "RepoTags": [engine_tag(config.id)], "Layers": layers}]
    return {config_name: chosen.config, "manifest.json": json.dumps(manifest).encode()}


def _foreign_tags(request: Request, chosen: Chosen) -> list[str]:
    """Tags that the archive would have set in an engine."""
    own = f"{request.name}:{request.tag}"
    foreign = ", ".join(tag for tag in chosen.tags if tag not in (request.tag, own))[:300]
    return [f"The archive's own tags are not used: {foreign}. The image is {own}."] if foreign else []


def _write_manifest(output: Path, image: Path, facts: dict[str, Any]) -> None:
    with open(image, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    files = [{"path": image.name, "size": image.stat().st_size, "sha256": digest}]
    write_json_durably(output / folder.MANIFEST, {"files": files, "kind": "image", "facts": facts, "metrics": {}})


if __name__ == "__main__":
    run_program(main)
