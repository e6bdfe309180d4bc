"""Takes a base model over: ``python -m runner.programs.models.import_model RUN_FOLDER``.

Parameters: ``source`` (``folder`` or ``path``: a local folder; ``huggingface``, ``modelscope``: a hub;
``s3``: an object store, with the further parameters of ``object_storage.download_s3``), ``location``
(the folder, or the repository on the hub), ``revision`` (or null), ``in_place`` (check only, copy nothing),
``endpoint`` (another address of the hub, or null), ``base_model`` (of an adapter: the folder whose tokenizer it gets
where it brings none; or null), ``max_bytes`` (of a hub or store: more is not downloaded; or null).
Writes ``output/model/`` (not when in place), ``output/source.json`` and a manifest of kind ``model``.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runner.contract.folder import write_json_durably
from runner.programs.lib.artifacts import model_facts, write_manifest
from runner.programs.lib.events import ProgramContext, ProgramError, Stopped, require, run_program
from runner.programs.lib.render import Renderer
from runner.programs.models.hubs import download_huggingface, download_modelscope
from runner.programs.models.model_files import (
    TOKENIZER_FILES,
    check_model_folder,
    is_adapter,
    model_files,
    pickle_names,
)
from runner.programs.models.object_storage import download_s3

LOCAL_SOURCES = ("folder", "path")
HUBS = {"huggingface": download_huggingface, "modelscope": download_modelscope}
_PIECE_BYTES = 16 << 20
_PROGRESS_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Request:
    """The checked parameters."""

    source: str
    location: str
    revision: str | None
    in_place: bool
    endpoint: str | None
    base_model: str | None = None

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Request:
        """Raises ProgramError naming the parameter that is missing or wrong."""
        source, allowed = str(require(parameters, "source")), (*LOCAL_SOURCES, *HUBS, "s3")
        if source not in allowed:
            raise ProgramError("source_unknown", f"source is {source!r}; allowed are {', '.join(allowed)}.", "source")
        in_place = bool(parameters.get("in_place"))
        if in_place and source not in LOCAL_SOURCES:
            raise ProgramError("in_place_invalid", f"in_place needs a local folder, source is {source!r}.", "in_place")
        location = str(require(parameters, "location"))
        given = {name: parameters.get(name) for name in ("revision", "endpoint", "base_model")}
        return cls(source=source, location=location, in_place=in_place, **given)


def main(context: ProgramContext) -> None:
    """Fetch, check, copy, describe."""
    request = Request.from_parameters(context.parameters)
    folder, revision = _fetch(context, request)
    context.report.phase("check", f"checking {folder.name}")
    check_model_folder(folder, allow_pickles_beside=not request.in_place)
    if request.in_place:
        model = folder
        template = "model" if _has_template(folder) else "default_not_written"
    else:
        model = _take_over(context, folder, move=request.source not in LOCAL_SOURCES)
        if is_adapter(model) and request.base_model:
            _lend_tokenizer(Path(request.base_model), model)
        # The source may have changed while it was copied; the copy is what everybody will use.
        check_model_folder(model, allow_pickles_beside=False)
        template = _ensure_template(context, model)
    source = {**asdict(request), "revision": revision, "chat_template": template}
    write_json_durably(context.output / "source.json", source)
    facts = {**model_facts(model), **source}
    manifest = write_manifest(context.output, "model", facts, {})
    size_bytes = sum(path.stat().st_size for path in model_files(model))
    if not request.in_place:
        context.report.artifact("output/model", "full_model", sum(entry["size"] for entry in manifest["files"]))
    context.report.summary({"num_parameters": facts["num_parameters"], "size_bytes": size_bytes})


def _fetch(context: ProgramContext, request: Request) -> tuple[Path, str | None]:
    """The folder to take the model from, and its exact revision."""
    if request.source in LOCAL_SOURCES:
        return Path(request.location), request.revision
    target = context.work / "download"
    # An earlier attempt's files stay: the hubs' libraries go on where they ended.
    target.mkdir(exist_ok=True)
    if request.source == "s3":
        download_s3(context, request.location, str(request.endpoint), target)
        return target, None
    revision = HUBS[request.source](context, request.location, request.revision, request.endpoint, target)
    return target, revision


def _lend_tokenizer(base: Path, adapter: Path) -> None:
    """Give an adapter what it lacks of its base's tokenizer, so that both render conversations alike."""
    if (adapter / "tokenizer.json").is_file():
        return
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, adapter / name)


def _take_over(context: ProgramContext, folder: Path, move: bool) -> Path:
    """Copy (or move what was downloaded) the model files to ``output/model``, progress in bytes. Raises Stopped."""
    target = context.output / "model"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    files = model_files(folder)
    left_behind = pickle_names([path.name for path in folder.iterdir()])
    if left_behind:
        context.report.warning(
            f"left behind, because pickles run code: {', '.join(left_behind)}", code="pickle_ignored"
        )
    total_bytes = sum(path.stat().st_size for path in files)
    context.report.phase("copy", f"taking over {len(files)} files, {total_bytes / 2**20:.1f} MiB")
    progress = _ByteProgress(context, total_bytes)
    for path in files:
        if move:
            path.rename(target / path.name)
        else:
            _copy_file(path, target / path.name, progress)
    return target


class _ByteProgress:
    """Reports copied bytes, at most every half second; the progress unit is bytes."""

    def __init__(self, context: ProgramContext, total_bytes: int) -> None:
        self._context = context
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self._reported_at = 0.0

    def advance(self, count: int) -> None:
        """Raises Stopped once SIGTERM came."""
        if self._context.should_stop:
            raise Stopped(f"stopped after {self._done_bytes} of {self._total_bytes} bytes")
        self._done_bytes += count
        now = time.monotonic()
        if self._done_bytes == self._total_bytes or now - self._reported_at >= _PROGRESS_EVERY_S:
            self._reported_at = now
            self._context.report.progress(self._done_bytes, self._total_bytes)


def _copy_file(source: Path, target: Path, progress: _ByteProgress) -> None:
    with open(source, "rb") as reader, open(target, "wb") as writer:
        while True:
            # The kernel copies the file without passing it through this process.
            count = os.sendfile(writer.fileno(), reader.fileno(), None, _PIECE_BYTES)
            if count == 0:
                return
            progress.advance(count)


def _ensure_template(context: ProgramContext, model: Path) -> str:
    """Write the default chat template into the copied tokenizer's configuration where there is none."""
    if _has_template(model):
        return "model"
    config_path = model / "tokenizer_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8")) if config_path.is_file() else {}
    template = Renderer.from_folder(model).render_spec["chat_template"]
    write_json_durably(config_path, {**config, "chat_template": template})
    context.report.warning("the model has no chat template; the default (ChatML) was written", code="template_default")
    return "default_written"


def _has_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    path = folder / "tokenizer_config.json"
    return path.is_file() and bool(json.loads(path.read_text(encoding="utf-8")).get("chat_template"))


if __name__ == "__main__":
    run_program(main)
