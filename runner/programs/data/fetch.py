"""Fetches one file of data: ``python -m runner.programs.data.fetch RUN_FOLDER``.

Parameters: ``source`` (``url``: an address of the web, read through ``lib.outbound``; ``s3``: an object store),
``location`` (the address, or ``bucket/key``), ``file_name`` (what it is called below ``output/``), ``max_bytes``;
for ``url`` ``allowed`` (places that may be private or without TLS);
for ``s3`` ``endpoint``, ``region``, ``credentials`` (path of a JSON file with ``username`` and ``password``).
A connection that breaks is taken up again where it ended, if the server still has the same file.
"""

from __future__ import annotations

import time
from pathlib import Path

import urllib3

from runner.contract.folder import MANIFEST, write_json_durably
from runner.programs.lib.events import ProgramContext, ProgramError, Stopped, require, run_program
from runner.programs.lib.outbound import Outbound, place_of, unreachable
from runner.programs.models.object_storage import StoredObject, fetch, in_words, open_store, refuse_too_large

TRIES = 5
FIRST_PAUSE_S = 0.5
_PIECE_BYTES = 1 << 20
_PROGRESS_EVERY_S = 0.5


def main(context: ProgramContext) -> None:
    """Fetch to ``work/``, move to ``output/`` when it is whole, describe."""
    given = context.parameters
    source, name, max_bytes = str(require(given, "source")), str(require(given, "file_name")), int(given["max_bytes"])
    partial = context.work / "fetched"
    if source == "url":
        Download(context, Outbound(given.get("allowed") or ()), str(require(given, "location")), max_bytes).to(partial)
    elif source == "s3":
        _from_store(context, partial, max_bytes)
    else:
        raise ProgramError("source_unknown", f"source is {source!r}; allowed are url, s3.", "source")
    size = partial.stat().st_size
    partial.rename(context.output / name)
    files = [{"path": name, "size": size}]
    write_json_durably(context.output / MANIFEST, {"files": files, "kind": "data", "facts": {}, "metrics": {}})
    context.report.summary({"size_bytes": size})


class Download:
    """One file of the web, in as many requests as it takes."""

    def __init__(self, context: ProgramContext, outbound: Outbound, url: str, max_bytes: int) -> None:
        self._context = context
        self._outbound = outbound
        self._url = url
        self._shown = url.partition("?")[0][:500]  # signatures stand in the query
        self._max_bytes = max_bytes
        self._validator = ""
        self._total_bytes = 0
        self._reported_at = 0.0

    def to(self, target: Path) -> None:
        """Raises ProgramError, Stopped."""
        target.unlink(missing_ok=True)  # an earlier start's, of which nobody knows which file it was
        self._context.report.phase("download", f"fetching from {place_of(self._url)}")
        for number in range(1, TRIES + 1):
            try:
                self._request(target)
                return
            except (urllib3.exceptions.HTTPError, OSError) as error:
                if number == TRIES:
                    raise unreachable(place_of(self._url), error) from error
                message = f"{str(error)[:200]}; try {number + 1} of {TRIES}"
                self._context.report.warning(message, code="retried")
                time.sleep(FIRST_PAUSE_S * 2 ** (number - 1))

    def _request(self, target: Path) -> None:
        """Ask for what is not there yet. Raises OSError, HTTPError where it ends too early."""
        arrived = target.stat().st_size if target.exists() and self._validator else 0
        headers = {"Accept-Encoding": "identity"}
        if arrived:
            headers |= {"Range": f"bytes={arrived}-", "If-Range": self._validator}
        answer = self._outbound.get(self._url, headers)
        try:
            self._refuse(answer)
            if answer.status != 206:
                arrived = 0
            etag = answer.headers.get("ETag", "")
            # Only a strong validator says that two answers are of the same bytes.
            self._validator = etag if etag.startswith('"') else answer.headers.get("Last-Modified", "")
            length = answer.headers.get("Content-Length", "")
            self._total_bytes = arrived + int(length) if length.isdecimal() else 0
            self._refuse_size(self._total_bytes)
            with open(target, "ab" if arrived else "wb") as writer:
                while piece := answer.read(_PIECE_BYTES):
                    arrived += len(piece)
                    self._refuse_size(arrived)
                    writer.write(piece)
                    self._tell(arrived)
        finally:
            answer.close()
        if self._total_bytes and arrived != self._total_bytes:
            raise OSError(f"{arrived:,} of {self._total_bytes:,} bytes arrived")

    def _refuse(self, answer: urllib3.BaseHTTPResponse) -> None:
        status, place = answer.status, place_of(self._url)
        if status in (500, 502, 503, 504, 429):
            raise OSError(f"{place} answers {status}")
        if status not in (200, 206):
            code = {401: "access_denied", 403: "access_denied", 404: "not_found", 410: "not_found"}.get(status)
            raise ProgramError(code or "bad_answer", f"{place} answers {status} to {self._shown}.", "location")
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise ProgramError("bad_answer", f"{place} sends the file compressed though it was not asked to.")

    def _refuse_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise ProgramError(
                "file_too_large", f"{self._shown} has {size:,} bytes or more; {self._max_bytes:,} are allowed."
            )

    def _tell(self, arrived: int) -> None:
        if self._context.should_stop:
            raise Stopped(f"stopped after {arrived:,} bytes")
        now = time.monotonic()
        if now - self._reported_at >= _PROGRESS_EVERY_S or arrived == self._total_bytes:
            self._reported_at = now
            self._context.report.progress(arrived, self._total_bytes or arrived)


def _from_store(context: ProgramContext, target: Path, max_bytes: int) -> None:
    given = context.parameters
    location, endpoint = str(require(given, "location")), str(require(given, "endpoint"))
    with in_words(endpoint, location):
        store = open_store(Path(require(given, "credentials")), endpoint, given.get("region") or "")
        wanted = StoredObject(location, int(store.size(location)), target)
        refuse_too_large([wanted], max_bytes, location)
        fetch(context, [(store, wanted)])


if __name__ == "__main__":
    run_program(main)
