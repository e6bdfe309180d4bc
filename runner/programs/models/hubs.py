"""Downloads from Hugging Face and ModelScope, with progress in bytes and errors that say what to do."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from runner.contract import exits
from runner.programs.lib.events import EXIT_STOPPED, ProgramContext, ProgramError
from runner.programs.models.model_files import MODEL_FILE_PATTERNS, is_model_file, refuse_without_safetensors

#: Folders inside a repository hold other formats of the same weights (onnx, original); they stay where they are.
_IGNORED = ("*/*",)
_PROGRESS_EVERY_S = 1.0


def download_huggingface(
    context: ProgramContext, repository: str, revision: str | None, endpoint: str | None, target: Path
) -> str:
    """Download the model files of one revision into ``target``; returns the commit.

    ``endpoint`` None: HF_ENDPOINT, else Hugging Face itself; a token is read from HF_TOKEN. Raises ProgramError.
    """
    # Late: pulls in an HTTP client; imports of local folders need none.
    from huggingface_hub import constants, errors, snapshot_download
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    disable_progress_bars()
    address = endpoint or constants.ENDPOINT
    # Its return type depends on dry_run; partial loses that.
    download: Any = partial(
        snapshot_download, repository, endpoint=address, ignore_patterns=list(_IGNORED), local_dir=target
    )
    try:
        listed = download(revision=revision, dry_run=True)
        refuse_without_safetensors([entry.filename for entry in listed])
        commit = str(listed[0].commit_hash)
        total_bytes = sum(entry.file_size or 0 for entry in listed if is_model_file(entry.filename))
        _refuse_too_large(context, repository, total_bytes)
        with _reported_bytes(context, target, total_bytes):
            download(revision=commit, allow_patterns=list(MODEL_FILE_PATTERNS))
    except (errors.HTTPError, errors.DryRunError, ValueError, OSError) as error:  # type: ignore[attr-defined]
        raise _huggingface_error(error, address, repository, revision) from error
    return commit


def download_modelscope(
    context: ProgramContext, repository: str, revision: str | None, endpoint: str | None, target: Path
) -> str:
    """Download the model files of one revision into ``target``; returns the revision.

    ``endpoint`` None: MODELSCOPE_ENDPOINT, else ModelScope itself. Raises ProgramError.
    """
    # Late: pulls in an HTTP client; imports of local folders need none.
    from modelscope import snapshot_download
    from modelscope_hub import HubApi
    from modelscope_hub.constants import DEFAULT_ENDPOINT
    from modelscope_hub.errors import APIError, HubError, NotExistError, ServerError

    address = endpoint or os.environ.get("MODELSCOPE_ENDPOINT") or DEFAULT_ENDPOINT
    wanted = revision or "master"
    try:
        listed = HubApi(endpoint=address).list_repo_files(repository, "model", revision=wanted)
        files = [entry for entry in listed if is_model_file(entry.path)]
        refuse_without_safetensors([entry.path for entry in listed])
        total_bytes = sum(entry.size or 0 for entry in files)
        _refuse_too_large(context, repository, total_bytes)
        with _reported_bytes(context, target, total_bytes):
            snapshot_download(
                repository,
                revision=wanted,
                endpoint=address,
                allow_patterns=[entry.path for entry in files],
                local_dir=str(target),
            )
    except NotExistError:
        raise _not_found(f"{address} has no model {repository!r} with the revision {wanted!r}.") from None
    except ServerError as error:
        raise _unreachable(address, "endpoint or MODELSCOPE_ENDPOINT", error) from error
    except APIError as error:
        raise _not_found(f"{address} refuses {repository!r}: {error}") from None
    except (HubError, OSError) as error:
        raise _unreachable(address, "endpoint or MODELSCOPE_ENDPOINT", error) from error
    return wanted


def _refuse_too_large(context: ProgramContext, repository: str, total_bytes: int) -> None:
    """Raises ProgramError before the first byte of more than ``max_bytes``, where that is given."""
    most = context.parameters.get("max_bytes")
    if most is not None and total_bytes > most:
        message = f"{repository} has {total_bytes:,} bytes; the storage quota leaves {most:,}. Delete some files."
        raise ProgramError("quota_exceeded", message, field="location")


def _huggingface_error(error: BaseException, address: str, repository: str, revision: str | None) -> ProgramError:
    from huggingface_hub import errors

    if isinstance(error, errors.DryRunError) and error.__cause__:
        # A dry run hides the hub's answer behind an error of its own.
        error = error.__cause__
    if isinstance(error, errors.GatedRepoError):
        return _not_found(f"{repository} needs an accepted licence: accept it at {address} and set HF_TOKEN.")
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return _not_found(f"{address} has no model {repository!r}, or it is private and HF_TOKEN is missing.")
    if isinstance(error, errors.RevisionNotFoundError):
        return _not_found(f"{repository} has no revision {revision!r}.", field="revision")
    return _unreachable(address, "endpoint or HF_ENDPOINT", error)


@contextmanager
def _reported_bytes(context: ProgramContext, target: Path, total_bytes: int) -> Iterator[None]:
    """Report the size of ``target`` while the block fills it; the progress unit is bytes."""
    finished = threading.Event()
    thread = threading.Thread(target=_watch, args=(context, target, total_bytes, finished.wait), daemon=True)
    context.report.phase("download", f"downloading {total_bytes / 2**20:.1f} MiB")
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
    context.report.progress(total_bytes, total_bytes)


def _watch(
    context: ProgramContext, target: Path, total_bytes: int, is_finished_within: Callable[[float], bool]
) -> None:
    while not is_finished_within(_PROGRESS_EVERY_S):
        if context.should_stop:
            # The hub libraries can not be interrupted; what is there so far is scratch, so nothing is lost.
            context.report.phase("stopped", "the download was stopped on request")
            os._exit(EXIT_STOPPED)
        context.report.progress(min(_size_bytes(target), total_bytes), total_bytes)


def _size_bytes(folder: Path) -> int:
    """Bytes on disk of finished and half-written files."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # renamed between listing and asking
            continue
    return total


def _not_found(message: str, field: str = "location") -> ProgramError:
    return ProgramError("model_not_found", message, field=field)


def _unreachable(address: str, setting: str, error: BaseException) -> ProgramError:
    root = error
    while (deeper := root.__cause__ or root.__context__) is not None:
        root = deeper
    reason = str(root).split("\n")[0][:200]
    return ProgramError(
        "hub_unreachable",
        f"The hub {address} can not be reached ({reason}). Set {setting} to a mirror that this machine reaches, "
        "or download the model elsewhere and upload its folder.",
        field="endpoint",
        exit_code=exits.UNREACHABLE,
    )
