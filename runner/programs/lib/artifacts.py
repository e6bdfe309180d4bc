"""Files that outlive a run: manifests, sealed checkpoints and what they are (hashes, facts). Written so that a crash
at any point leaves the last whole version."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from runner.contract.folder import MANIFEST, fsync_folder, write_json_durably
from runner.programs.lib.events import ProgramContext, ProgramError
from runner.programs.lib.render import Renderer

QUARANTINE = "quarantine"
#: What decides how a model behaves; cards and notes beside it do not change its fingerprint.
BEHAVIOUR_SUFFIXES = (".safetensors", ".json", ".model", ".txt", ".jinja", ".gguf")
NOT_BEHAVIOUR = (MANIFEST, "bundle.json")


def write_manifest(
    output_folder: Path, kind: str, facts: Mapping[str, Any], metrics: Mapping[str, Any]
) -> dict[str, Any]:
    """Write ``MANIFEST.json`` over every file below a finished folder, durable, and return it.

    ``kind``: ``model``, ``evaluation`` or ``checkpoint``. The manifest is the last file written: its presence says
    that the folder is whole.
    """
    files = []
    for path in _files(output_folder):
        _fsync_file(path)
        relative = path.relative_to(output_folder).as_posix()
        files.append({"path": relative, "size": path.stat().st_size, "sha256": hash_file(path)})
    for below in [p for p in output_folder.rglob("*") if p.is_dir()]:
        fsync_folder(below)
    manifest = {"files": files, "kind": kind, "facts": dict(facts), "metrics": dict(metrics)}
    write_json_durably(output_folder / MANIFEST, manifest)
    return manifest


def seal_checkpoint(
    checkpoints_folder: Path, step: int, write: Callable[[Path], None], metrics: Mapping[str, float]
) -> Path:
    """Let ``write`` fill a temporary folder, seal it with a manifest and give it its name ``step-00000120``."""
    target = checkpoints_folder / f"step-{step:08d}"
    temporary = checkpoints_folder / f".tmp-{target.name}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write(temporary)
    write_manifest(temporary, "checkpoint", {"step": step}, metrics)
    if target.exists():  # an earlier start sealed this step: the new one takes its place
        shutil.rmtree(target)
    os.rename(temporary, target)
    fsync_folder(checkpoints_folder)
    return target


def newest_sealed(checkpoints_folder: Path) -> Path | None:
    """The newest checkpoint whose files are all as its manifest says; partial ones are moved to ``quarantine/``."""
    if not checkpoints_folder.is_dir():
        return None
    for partial in checkpoints_folder.glob(".tmp-*"):
        _quarantine(checkpoints_folder, partial)
    for candidate in sorted(checkpoints_folder.glob("step-*"), reverse=True):
        if is_whole(candidate):
            return candidate
        _quarantine(checkpoints_folder, candidate)
    return None


def starting_point(context: ProgramContext) -> Path | None:
    """The newest sealed checkpoint of a run; where it has none yet, that of ``resume_from``, copied with its best one.

    ``resume_from``, a parameter: the folder of checkpoints of a run that did the same. It is only read.
    """
    checkpoints_folder, earlier = context.checkpoints, context.parameters.get("resume_from")
    own = newest_sealed(checkpoints_folder)
    if own is not None or not earlier:
        return own
    found = next((step for step in sorted(Path(earlier).glob("step-*"), reverse=True) if is_whole(step)), None)
    if found is None:
        return None
    best = json.loads((found / "state.json").read_text(encoding="utf-8"))["progress"]["best_step"]
    kept = found.with_name(f"step-{best or 0:08d}")
    for step in [kept, found] if kept != found and is_whole(kept) else [found]:
        copy = checkpoints_folder / f".tmp-{step.name}-{os.getpid()}"
        shutil.copytree(step, copy)
        os.rename(copy, checkpoints_folder / step.name)
    fsync_folder(checkpoints_folder)
    return checkpoints_folder / found.name


def prune_checkpoints(checkpoints_folder: Path, keep: int, protected: Path | None = None) -> None:
    """Remove all but the newest ``keep`` checkpoints (at least 2 stay) and the protected one (the best)."""
    sealed = sorted(checkpoints_folder.glob("step-*"))
    for old in sealed[: -max(2, keep)]:
        if old != protected:
            shutil.rmtree(old)


def is_whole(folder: Path) -> bool:
    """Whether a folder has a manifest and every file in it has the size and hash that the manifest names."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return all(
            (folder / entry["path"]).stat().st_size == entry["size"]
            and hash_file(folder / entry["path"]) == entry["sha256"]
            for entry in manifest["files"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def hash_file(path: Path) -> str:
    """sha256 of a file, in hex."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_folder(folder: Path) -> str:
    """The fingerprint of a model folder: sha256 over names and hashes of the files that decide its behaviour."""
    digest = hashlib.sha256()
    for path in _files(folder):
        if path.suffix in BEHAVIOUR_SUFFIXES and path.name not in NOT_BEHAVIOUR:
            digest.update(f"{path.relative_to(folder).as_posix()}\0{hash_file(path)}\n".encode())
    return digest.hexdigest()


def model_facts(folder: Path) -> dict[str, Any]:
    """What a model folder holds: format, task, architecture, num_parameters, dtype, context_tokens, render_hash,
    fingerprint.

    An adapter's ``num_parameters`` are its own; its ``context_tokens`` are its base model's and thus None here.
    Raises ProgramError where the folder is neither a model nor an adapter.
    """
    is_adapter = (folder / "adapter_config.json").is_file()
    weights = [path for path in _files(folder) if path.suffix == ".safetensors"]
    if not weights or not (is_adapter or (folder / "config.json").is_file()):
        raise ProgramError(
            "model_invalid", f"{folder} needs config.json (or adapter_config.json) and weights in safetensors"
        )
    config = json.loads((folder / ("adapter_config.json" if is_adapter else "config.json")).read_text("utf-8"))
    num_parameters, dtype = _tensor_facts(weights)
    return {
        "format": "adapter" if is_adapter else "full",
        "task": _task_of(config),
        "architecture": config.get("peft_type", "LORA") if is_adapter else (config.get("architectures") or [None])[0],
        "num_parameters": num_parameters,
        "dtype": dtype,
        "context_tokens": None if is_adapter else config.get("max_position_embeddings"),
        "render_hash": Renderer.from_folder(folder).render_hash,
        "fingerprint": hash_folder(folder),
    }


def _task_of(config: Mapping[str, Any]) -> str:
    """What a model does, by its configuration or its adapter's: generation, classification or seq2seq."""
    kind = str(config.get("task_type") or (config.get("architectures") or [""])[0])
    if kind == "SEQ_CLS" or kind.endswith("ForSequenceClassification"):
        return "classification"
    return "seq2seq" if kind == "SEQ_2_SEQ_LM" or kind.endswith("ForConditionalGeneration") else "generation"


def _tensor_facts(weights: list[Path]) -> tuple[int, str]:
    """Number of parameters and the dtype of most of them, from the headers alone."""
    parameters_of: dict[str, int] = {}
    for path in weights:
        with open(path, "rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                count = 1
                for length in tensor["shape"]:
                    count *= length
                parameters_of[tensor["dtype"]] = parameters_of.get(tensor["dtype"], 0) + count
    dtype = max(parameters_of, key=lambda name: parameters_of[name])
    return sum(parameters_of.values()), {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}.get(dtype, dtype)


def _files(folder: Path) -> list[Path]:
    """The files below a folder by path; hidden ones and the manifest itself left out."""
    found = []
    for path in folder.rglob("*"):
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not is_hidden and path.name != MANIFEST:
            found.append(path)
    return sorted(found)


def _quarantine(checkpoints_folder: Path, partial: Path) -> None:
    """Move a partial checkpoint aside: it is evidence, never a place to resume from."""
    quarantine = checkpoints_folder / QUARANTINE
    quarantine.mkdir(exist_ok=True)
    number = sum(1 for _ in quarantine.iterdir())
    os.rename(partial, quarantine / f"{number:03d}-{partial.name.lstrip('.')}")


def _fsync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
