"""Downloads a model from an object store that speaks S3, bounded in size, with progress in bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runner.contract import exits
from runner.programs.lib.events import ProgramContext, ProgramError, Stopped
from runner.programs.models.model_files import is_model_file, refuse_without_safetensors

_PIECE_BYTES = 8 << 20


def download_s3(context: ProgramContext, location: str, endpoint: str, target: Path) -> None:
    """Download the model files directly below ``bucket/prefix`` into ``target``.

    Parameters: ``credentials`` (path of a JSON file with ``username`` and ``password``), ``region``, ``max_bytes``.
    Raises ProgramError, Stopped.
    """
    # Late: pulls in an HTTP client; imports of local folders need none.
    from botocore.exceptions import BotoCoreError
    from s3fs import S3FileSystem

    given = context.parameters
    login = json.loads(Path(given["credentials"]).read_text(encoding="utf-8"))
    store: Any = S3FileSystem(
        key=login["username"],
        secret=login["password"],
        endpoint_url=endpoint,
        client_kwargs={"region_name": given.get("region") or "us-east-1"},
        skip_instance_cache=True,
    )
    try:
        listed = store.ls(location, detail=True)
        files = {Path(entry["name"]).name: entry for entry in listed if entry["type"] == "file"}
        refuse_without_safetensors(sorted(files))
        wanted = {name: entry for name, entry in sorted(files.items()) if is_model_file(name)}
        total_bytes = sum(int(entry["size"]) for entry in wanted.values())
        if total_bytes > int(given["max_bytes"]):
            message = f"{location} holds {total_bytes:,} bytes; {int(given['max_bytes']):,} are allowed."
            raise ProgramError("file_too_large", message, field="location")
        context.report.phase("download", f"downloading {total_bytes / 2**20:.1f} MiB")
        done_bytes = 0
        for name, entry in wanted.items():
            with store.open(entry["name"], "rb") as reader, open(target / name, "wb") as writer:
                # Bounded by what was listed: an object that grows meanwhile fills no disk.
                left = int(entry["size"])
                while left > 0 and (piece := reader.read(min(_PIECE_BYTES, left))):
                    if context.should_stop:
                        raise Stopped(f"stopped after {done_bytes} of {total_bytes} bytes")
                    writer.write(piece)
                    left, done_bytes = left - len(piece), done_bytes + len(piece)
                    context.report.progress(done_bytes, total_bytes)
    except FileNotFoundError as error:
        raise ProgramError("model_not_found", f"There is nothing at {location}.", field="location") from error
    except PermissionError as error:
        message = f"The object store refuses the key for {location}: {error}."
        raise ProgramError("access_denied", message, field="location") from error
    except (BotoCoreError, OSError) as error:
        message = f"The object store {endpoint} can not be reached: {str(error)[:200]}."
        raise ProgramError("hub_unreachable", message, field="location", exit_code=exits.UNREACHABLE) from error
