"""Whether rows of a version are in other versions too (leakage), or almost twice in itself; measured by a run."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from clavier.accounts.access import require_write
from clavier.core.actor import Actor
from clavier.core.errors import Invalid
from datasets_app.models import DatasetVersion, DataTask
from datasets_app.queries import access_dataset_version
from datasets_app.services import rows_path
from datasets_app.tasks import start_program
from runner.contract.run_spec import Resources

PROGRAM = "runner.programs.data.overlap"
MAX_AGAINST = 20
DEFAULT_THRESHOLD = 0.8


def measure_overlap(
    *,
    actor: Actor,
    version: DatasetVersion,
    against: Sequence[UUID | str] | None = None,
    threshold: float = DEFAULT_THRESHOLD,
) -> DataTask:
    """A run that looks for this version's rows in other ones, and for near duplicates in itself.

    ``against``: ids of versions, such as an evaluation set; None: the other splits (``siblings_of``).
    Raises NotFound, Forbidden, Invalid.
    """
    require_write(actor)
    found = access_dataset_version(actor, version.pk)
    if against is None:
        others = siblings_of(found)
    else:
        others = [access_dataset_version(actor, other, field="against") for other in dict.fromkeys(against)]
    if len(others) > MAX_AGAINST:
        raise Invalid(f"against names {len(others)} versions; up to {MAX_AGAINST} are compared.", field="against")
    if any(other.pk == found.pk for other in others):
        raise Invalid("against names the version itself, whose near duplicates are looked for anyway.", field="against")
    if not 0.5 <= threshold <= 1:
        raise Invalid(f"threshold {threshold:g} must be from 0.5 to 1.", code="out_of_range", field="threshold")
    sets = [
        {"id": str(other.pk), "label": f"{other} {other.split}".strip(), "rows": str(rows_path(other))}
        for other in others
    ]
    return start_program(
        actor,
        kind="overlap",
        dataset=found.dataset,
        version=found,
        program=PROGRAM,
        parameters={"rows": str(rows_path(found)), "against": sets, "threshold": threshold},
        request={"against": [{"id": item["id"], "label": item["label"]} for item in sets], "threshold": threshold},
        folders=(str(rows_path(found)), *(item["rows"] for item in sets)),
        resources=Resources(cpu_milli=1000, memory_mib=2048),
    )


def siblings_of(version: DatasetVersion) -> list[DatasetVersion]:
    """The other splits: those made together with this one, else the newest of each split in the same subset."""
    if not version.split:
        return []
    of_subset = DatasetVersion.objects.filter(dataset_id=version.dataset_id, subset=version.subset)
    others = of_subset.exclude(split__in=("", version.split)).select_related("dataset").order_by("number")
    if any(step.get("step") == "split" for step in version.steps):
        return [other for other in others.filter(parent_id=version.parent_id) if other.steps == version.steps]
    return list({other.split: other for other in others}.values())
