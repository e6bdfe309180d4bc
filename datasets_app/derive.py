"""New versions from old ones: cleaned, renamed, split; and what differs between two."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import Any

import numpy
from django.conf import settings
from django.db import transaction

from clavier.accounts.access import require_change
from clavier.core.actor import Actor
from clavier.core.errors import Conflict, Invalid, NotFound, quoted
from clavier.files.storage import disk_changes, refuse_low_disk
from datasets_app.formats import MIB, Row
from datasets_app.models import Dataset, DatasetVersion
from datasets_app.queries import access_dataset_version
from datasets_app.services import add_version, examined, rows_path
from datasets_app.steps import (
    MAX_ROWS_IN_MEMORY,
    Tally,
    apply,
    checked_shares,
    checked_steps,
    keys_of,
    row_key,
    split_of_rows,
)
from datasets_app.strict_json import encode_row
from runner.programs.lib.near import DISK_BYTES

#: Larger versions are changed outside and uploaded again: a request must end.
MAX_DERIVED_BYTES = 4 * 1024 * MIB
LISTED = 20


def derive_version(*, actor: Actor, version: DatasetVersion, steps: Sequence[Mapping[str, Any]]) -> DatasetVersion:
    """The next version of the same data set, made from this one's rows by steps (see ``steps.py``).

    Raises NotFound, Forbidden, Invalid (a bad step, ``too_large``), Conflict (``nothing_changed``), StorageFull.
    """
    found = _changeable(actor, version)
    functions, tally = checked_steps(steps), Tally()
    if any(step.get("step") == "deduplicate" and not step.get("near") for step in steps):
        _refuse_many_rows([found], "steps", 'With "near": true repeated rows are looked for on the disk.')
    if any(step.get("near") for step in steps):
        refuse_low_disk(
            settings.CLAVIER_DATASETS, rows_path(found).stat().st_size + found.num_samples * DISK_BYTES, None
        )
    with examined(actor, _writer(partial(apply, functions, read_all(found), tally)), derived_name(found)) as checked:
        changes = tally.as_json()
        if not tally.removed.total() and not tally.changed.total():
            raise Conflict("The steps change no row, so there is no new version.", code="nothing_changed")
        with disk_changes(settings.CLAVIER_DATASETS) as disk, transaction.atomic(durable=True):
            origin = {"parent": found, "steps": list(steps), "changes": changes}
            origin |= {"split": found.split, "subset": found.subset}
            return add_version(actor, _locked(found), checked, disk, **origin)


def split_version(
    *, actor: Actor, version: DatasetVersion, splits: Mapping[str, Any], seed: int = 42
) -> dict[str, DatasetVersion]:
    """A version for each split (train, validation, test) of this one's rows; equal rows stay together.

    Raises NotFound, Forbidden, Invalid (shares; ``empty_dataset`` when a split would have no row), StorageFull.
    """
    found = _changeable(actor, version)
    shares = checked_shares(splits)
    _refuse_many_rows([found], "version", "Split the file outside and upload each part with its split.")
    places = split_of_rows(keys_of(read_all(found)), shares, seed)
    counts = numpy.bincount(places, minlength=len(shares))
    empty = [name for name, count in zip(shares, counts, strict=True) if not count]
    if empty:
        message = f"The split {empty[0]} would get none of the {found.num_samples:,} rows. Choose other shares."
        raise Invalid(message, code="empty_dataset", field="splits")
    with ExitStack() as stack:
        checked = {}
        for number, name in enumerate(shares):
            write = _writer(_rows_of(found, places, number))
            checked[name] = stack.enter_context(examined(actor, write, derived_name(found, name)))
        with disk_changes(settings.CLAVIER_DATASETS) as disk, transaction.atomic(durable=True):
            dataset = _locked(found)
            step = [{"step": "split", "splits": shares, "seed": seed}]
            return {
                name: add_version(
                    actor, dataset, checked[name], disk, parent=found, steps=step, split=name, subset=found.subset
                )
                for name in shares
            }


def compare_versions(*, actor: Actor, new: DatasetVersion, old: DatasetVersion | None = None) -> dict[str, Any]:
    """``{added, removed, common, added_samples, removed_samples}``: rows that only one of two versions has.

    ``old`` None: the parent, else the version before, else nothing. Rows that differ only in case and white space
    count as the same. Raises NotFound, Invalid (``too_large``).
    """
    new = access_dataset_version(actor, new.pk)
    old = access_dataset_version(actor, old.pk) if old else version_before(new)
    advice = "Compare smaller versions, or look for what they have in common with POST .../overlap, a run."
    _refuse_many_rows([new, old] if old else [new], "against", advice)
    old_rows: Callable[[], Iterator[Row]] = partial(read_all, old) if old else partial(iter, ())
    left = _Multiset(keys_of(old_rows()))
    before = left.total()
    added = 0
    added_samples: list[Row] = []
    removed_samples: list[Row] = []
    for row in read_all(new):
        if left.take(row_key(row)):
            continue
        added += 1
        if len(added_samples) < LISTED:
            added_samples.append(row)
    removed = left.total()
    for row in old_rows():
        if len(removed_samples) >= min(LISTED, removed):
            break
        if left.take(row_key(row)):
            removed_samples.append(row)
    return {
        "added": added,
        "removed": removed,
        "common": before - removed,
        "added_samples": added_samples,
        "removed_samples": removed_samples,
    }


class _Multiset:
    """How often each key is there, in 16 bytes a key."""

    def __init__(self, keys: array[int]) -> None:
        self._keys, self._counts = numpy.unique(numpy.asarray(keys, dtype=numpy.uint64), return_counts=True)

    def take(self, key: bytes) -> bool:
        """Take one away; whether it was there."""
        number = numpy.uint64(int.from_bytes(key, "little"))
        place = self._keys.searchsorted(number)
        if place == len(self._keys) or self._keys[place] != number or not self._counts[place]:
            return False
        self._counts[place] -= 1
        return True

    def total(self) -> int:
        """How many there are."""
        return int(self._counts.sum())


def version_before(version: DatasetVersion) -> DatasetVersion | None:
    """What a version is naturally compared with: its parent, else the one before it."""
    if version.parent is not None:
        return version.parent
    earlier = DatasetVersion.objects.filter(dataset_id=version.dataset_id, number__lt=version.number)
    return earlier.order_by("-number").first()


def read_all(version: DatasetVersion) -> Iterator[Row]:
    """Every row of a version, in order."""
    with open(rows_path(version), "rb") as stream:
        for line in stream:
            yield json.loads(line)


def derived_name(version: DatasetVersion, split: str = "") -> str:
    """The file name of a version made from another: ``faq.jsonl``, ``faq.train.jsonl``."""
    stem = PurePath(version.file_name).stem
    return f"{stem}.{split}.jsonl" if split else f"{stem}.jsonl"


def _changeable(actor: Actor, version: DatasetVersion) -> DatasetVersion:
    found = access_dataset_version(actor, version.pk)
    require_change(actor, found.dataset, noun="data set")
    size = rows_path(found).stat().st_size
    if size > MAX_DERIVED_BYTES:
        raise Invalid(
            f"{found} has {size / MIB:,.0f} MiB of rows; up to {MAX_DERIVED_BYTES // MIB:,} MiB are changed here. "
            "Change the file outside and upload it as a new version.",
            code="too_large",
            field="version",
        )
    refuse_low_disk(settings.CLAVIER_DATASETS, size, None)
    return found


def _refuse_many_rows(versions: Sequence[DatasetVersion], field: str, advice: str) -> None:
    """Raises Invalid: their keys would take too much of the memory and the time of a request."""
    rows = sum(version.num_samples for version in versions)
    size = sum(rows_path(version).stat().st_size for version in versions)
    if rows > MAX_ROWS_IN_MEMORY or size > MAX_DERIVED_BYTES:
        names, have = " and ".join(map(str, versions)), "have" if len(versions) > 1 else "has"
        most = f"up to {MAX_ROWS_IN_MEMORY:,} rows and {MAX_DERIVED_BYTES // MIB:,} MiB are taken here at once"
        message = f"{names} {have} {rows:,} rows, {size / MIB:,.1f} MiB; {most}. {advice}"
        raise Invalid(message, code="too_large", field=field)


def _writer(rows: Callable[[Path], Iterable[Row]]) -> Callable[[Path], None]:
    """Writes rows, whose maker is told a folder for what it puts aside meanwhile."""

    def write(path: Path) -> None:
        with TemporaryDirectory(dir=path.parent) as scratch, open(path, "wb", buffering=MIB) as stream:
            for row in rows(Path(scratch)):
                stream.write(encode_row(row).encode() + b"\n")

    return write


def _rows_of(version: DatasetVersion, places: Any, number: int) -> Callable[[Path], Iterator[Row]]:
    return lambda _scratch: (row for row, place in zip(read_all(version), places, strict=True) if place == number)


def _locked(version: DatasetVersion) -> Dataset:
    locked = Dataset.objects.select_for_update().filter(pk=version.dataset_id).first()
    if locked is None:
        raise NotFound(f"There is no data set {quoted(str(version.dataset_id))}.")
    return locked
