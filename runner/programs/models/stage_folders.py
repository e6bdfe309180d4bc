"""Fetches what a run is to read from object stores: ``python -m runner.programs.models.stage_folders RUN_FOLDER``.

Parameters: ``folders``: for each folder its ``name`` (below ``output/``), ``location`` (``bucket/prefix``),
``endpoint``, ``region``, ``credentials`` (path of a JSON file with ``username`` and ``password``) and ``inside`` (what
must lie in it and nothing else, or empty: anything); ``max_bytes`` and ``max_files``: of all folders together.
Writes ``output/<name>/...`` and a manifest of kind ``folders``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from runner.programs.lib.artifacts import write_manifest
from runner.programs.lib.events import ProgramContext, ProgramError, require, run_program
from runner.programs.models.object_storage import StoredObject, fetch, in_words, open_store, refuse_too_large

_LONGEST_NAME_BYTES = 255


def main(context: ProgramContext) -> None:
    """List, check all of it, fetch."""
    wanted: list[tuple[Any, StoredObject]] = []
    max_bytes, max_files = (int(require(context.parameters, name)) for name in ("max_bytes", "max_files"))
    folders = require(context.parameters, "folders")
    for folder in folders:
        with in_words(folder["endpoint"], folder["location"]):
            store = open_store(Path(folder["credentials"]), folder["endpoint"], folder["region"])
            listed = store.find(folder["location"], detail=True)
        found = objects_of(listed, folder, context.output / folder["name"])
        context.report.phase("list", f"{folder['location']}: {len(found)} files")
        wanted += [(store, one) for one in found]
    places = ", ".join(folder["location"] for folder in folders)
    if len(wanted) > max_files:
        message = f"{places} holds {len(wanted):,} files; {max_files:,} are allowed."
        raise ProgramError("too_many_files", message, field="location")
    refuse_too_large([one for _, one in wanted], max_bytes, places)
    for _, one in wanted:
        one.target.parent.mkdir(parents=True, exist_ok=True)
    with in_words(", ".join(sorted({folder["endpoint"] for folder in folders})), places):
        fetch(context, wanted)
    write_manifest(context.output, "folders", {"locations": [folder["location"] for folder in folders]}, {})
    context.report.summary({"num_files": len(wanted), "size_bytes": sum(one.size_bytes for _, one in wanted)})


def objects_of(listed: Mapping[str, Mapping[str, Any]], folder: Mapping[str, Any], target: Path) -> list[StoredObject]:
    """The files below a prefix, and where each is to lie. Raises ProgramError where there is none, or no such place."""
    prefix, found = PurePosixPath(folder["location"]), []
    for key, entry in sorted(listed.items()):
        if key.endswith("/") or entry["type"] != "file":  # some clients store an empty object for each folder
            continue
        found.append(StoredObject(key, int(entry["size"]), target.joinpath(*parts_below(key, prefix))))
    if not found:
        raise ProgramError("not_found", f"There is nothing below {prefix}/.", field="location")
    refuse_other_layout(found, target, folder["inside"], str(prefix))
    return found


def parts_below(key: str, prefix: PurePosixPath) -> tuple[str, ...]:
    """The components of a key below a prefix. Raises ProgramError for a key that is no path of a file."""
    parts = tuple(key.removeprefix(f"{prefix}/").split("/"))
    is_bad = any(
        part in ("", ".", "..") or "\0" in part or len(part.encode("utf-8", "replace")) > _LONGEST_NAME_BYTES
        for part in parts
    )
    if key == str(prefix) or is_bad:
        message = f"{key!r} is no file below the folder {prefix}; only keys that are paths of files can be fetched."
        raise ProgramError("bad_path", message, field="location")
    return parts


def refuse_other_layout(found: Sequence[StoredObject], target: Path, inside: Sequence[str], where: str) -> None:
    """Raises ProgramError (``bad_layout``) unless the folder holds what it must, and each file has its own place."""
    places = {one.target for one in found}
    clash = next((parent for one in found for parent in one.target.parents if parent in places), None)
    if clash is not None:
        message = f"{where}: {clash.relative_to(target)} is a file and a folder at once, which no disk can hold."
        raise ProgramError("bad_layout", message, field="location")
    there = {one.target.relative_to(target).parts[0] for one in found}
    if inside and there != set(inside):
        message = f"{where} must hold the folders {', '.join(inside)} and nothing else; it holds {sorted(there)[:10]}."
        raise ProgramError("bad_layout", message, field="location")


if __name__ == "__main__":
    run_program(main)
