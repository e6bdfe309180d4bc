"""An object store that speaks S3: its files are listed, bounded in size, and fetched with progress in bytes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.contract import exits
from runner.programs.lib.events import ProgramContext, ProgramError, Stopped
from runner.programs.models.model_files import is_model_file, refuse_without_safetensors

_PIECE_BYTES = 8 << 20
#: A file is asked for so often before the store counts as out of reach; what arrived of it is kept.
TRIES = 5
FIRST_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A file of a store: its key with the bucket in front, its size as listed, and where it is to lie."""

    key: str
    size_bytes: int
    target: Path


def download_s3(context: ProgramContext, location: str, endpoint: str, target: Path) -> None:
    """Download the model files directly below ``bucket/prefix`` into ``target``.

    Parameters: ``credentials`` (path of a JSON file with ``username`` and ``password``), ``region``, ``max_bytes``.
    Raises ProgramError, Stopped.
    """
    given = context.parameters
    with in_words(endpoint, location):
        store = open_store(Path(given["credentials"]), endpoint, given.get("region") or "")
        listed = store.ls(location, detail=True)
        files = {Path(entry["name"]).name: entry for entry in listed if entry["type"] == "file"}
        refuse_without_safetensors(sorted(files))
        wanted = [
            StoredObject(entry["name"], int(entry["size"]), target / name)
            for name, entry in sorted(files.items())
            if is_model_file(name)
        ]
        refuse_too_large(wanted, int(given["max_bytes"]), location)
        fetch(context, [(store, one) for one in wanted])


def open_store(credentials: Path, endpoint: str, region: str) -> Any:
    """The file system of a store, signed in with a file of ``username`` and ``password``."""
    # Late: pulls in an HTTP client; imports of local folders need none.
    from s3fs import S3FileSystem

    login = json.loads(credentials.read_text(encoding="utf-8"))
    return S3FileSystem(
        key=login["username"],
        secret=login["password"],
        endpoint_url=endpoint,
        client_kwargs={"region_name": region or "us-east-1"},
        skip_instance_cache=True,
    )


def refuse_too_large(wanted: list[StoredObject], max_bytes: int, location: str) -> None:
    """Raises ProgramError before the first byte is fetched of more than is allowed."""
    total_bytes = sum(one.size_bytes for one in wanted)
    if total_bytes > max_bytes:
        message = f"{location} holds {total_bytes:,} bytes; {max_bytes:,} are allowed."
        raise ProgramError("file_too_large", message, field="location")


def fetch(context: ProgramContext, wanted: list[tuple[Any, StoredObject]]) -> None:
    """Fetch each file from its store. Raises Stopped, and what the last try of a file raised."""
    total_bytes, done_bytes = sum(one.size_bytes for _, one in wanted), 0
    context.report.phase("download", f"downloading {total_bytes / 2**20:.1f} MiB")

    def tell(arrived_bytes: int) -> None:
        if context.should_stop:
            raise Stopped(f"stopped after {done_bytes + arrived_bytes} of {total_bytes} bytes")
        context.report.progress(done_bytes + arrived_bytes, total_bytes)

    for store, one in wanted:
        one.target.unlink(missing_ok=True)  # an earlier start's; the file in the store may be another one now
        fetch_one(context, store, one, tell)
        done_bytes += one.size_bytes


def fetch_one(context: ProgramContext, store: Any, one: StoredObject, tell: Callable[[int], None]) -> None:
    """A file, asked for several times where the connection breaks; a further try goes on where the last one ended."""
    from botocore.exceptions import BotoCoreError  # late, as in open_store

    for number in range(1, TRIES + 1):
        try:
            fetch_rest(store, one, tell)
            return
        except (FileNotFoundError, PermissionError):  # asking again changes nothing
            raise
        except (BotoCoreError, OSError) as error:
            if number == TRIES:
                raise
            context.report.warning(f"{one.key}: {str(error)[:200]}; try {number + 1} of {TRIES}", code="retried")
            time.sleep(FIRST_PAUSE_S * 2 ** (number - 1))


def fetch_rest(store: Any, one: StoredObject, tell: Callable[[int], None]) -> None:
    """What is not there yet of a file. Raises OSError where it ends too early."""
    with open(one.target, "ab") as writer:
        arrived = writer.tell()
        if arrived < one.size_bytes:
            with store.open(one.key, "rb") as reader:
                reader.seek(arrived)
                # Bounded by what was listed: an object that grows meanwhile fills no disk.
                while piece := reader.read(min(_PIECE_BYTES, one.size_bytes - arrived)):
                    writer.write(piece)
                    arrived += len(piece)
                    tell(arrived)
    if arrived != one.size_bytes:
        raise OSError(f"{arrived} of {one.size_bytes} bytes arrived")


@contextmanager
def in_words(endpoint: str, location: str) -> Iterator[None]:
    """Failures of the store as ProgramError, which says what to do about them."""
    from botocore.exceptions import BotoCoreError  # late, as in open_store

    try:
        yield
    except FileNotFoundError as error:
        raise ProgramError("model_not_found", f"There is nothing at {location}.", field="location") from error
    except PermissionError as error:
        message = f"The object store refuses the key for {location}: {error}."
        raise ProgramError("access_denied", message, field="location") from error
    except (BotoCoreError, OSError) as error:
        message = f"The object store {endpoint} can not be reached: {str(error)[:200]}."
        raise ProgramError("hub_unreachable", message, field="location", exit_code=exits.UNREACHABLE) from error
