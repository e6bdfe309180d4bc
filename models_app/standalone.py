"""Versions that stand alone: an adapter merged into its base, or one GGUF file for llama.cpp and Ollama."""

from __future__ import annotations

from typing import Any

from django.db import transaction

from clavier.accounts.access import require_write
from clavier.core.actor import Actor
from clavier.core.errors import Conflict, Invalid, quoted
from clavier.runs.services import checked_resources, submit_run
from models_app.models import ModelVersion
from models_app.services import access_model_version, add_version, check_model_name, require_usable
from runner.contract.run_spec import Limits, Mount, Resources, RunSpec

PROGRAM = "runner.programs.models.export_model"
FORMS = ("merged", "gguf")
PRECISIONS = ("f32", "f16", "bf16")
MIB = 2**20
#: Weights in 32 bits, once as base with adapter and once read back, and Python with torch.
_RUNTIME_MIB = 1024


def export_version(
    *, actor: Actor, version: ModelVersion, form: str, name: str = "", precision: str = ""
) -> ModelVersion:
    """A new version made from this one by a run: ``merged`` full weights, or a ``gguf`` file with its Modelfile.

    ``name``: of the model that gets the version; empty: this one's. ``precision``: of a GGUF file's matrices, empty:
    by size. Raises Invalid, Conflict (``nothing_to_merge``, ``not_ready``), NotFound, Forbidden, Unprocessable.
    """
    require_write(actor)
    found = access_model_version(actor, version.pk)
    require_usable(found)
    if form not in FORMS:
        raise Invalid(f"form {quoted(form)} is none of {', '.join(FORMS)}.", code="not_a_choice", field="form")
    if precision and (precision not in PRECISIONS or form != "gguf"):
        raise Invalid(
            f"precision {quoted(precision)}: {', '.join(PRECISIONS)} are allowed, with the form gguf only.",
            code="not_a_choice",
            field="precision",
        )
    if found.task != "generation":
        raise Conflict(f"{found} does not generate text; only models that do are exported.", code="wrong_task")
    if form == "merged" and found.format != "adapter":
        raise Conflict(f"{found} is a full model already: there is no adapter to merge.", code="nothing_to_merge")
    target = name or found.model.name
    check_model_name(target)
    spec = run_spec_of(found, form, precision)
    with transaction.atomic():
        columns: dict[str, Any] = {
            "source": "export",
            "location": f"{found} as {form}",
            "base_version": found.base_version if found.format == "adapter" else found,
            "dataset_version": found.dataset_version,
        }
        made = add_version(actor, target, {}, columns)
        made.run = submit_run(
            actor=actor, kind="model_import", name=f"export {found} as {form}", subject_id=made.pk, spec=spec
        )
        made.save(update_fields=["run"])
    return made


def run_spec_of(version: ModelVersion, form: str, precision: str = "") -> RunSpec:
    """What the export's run needs: base and adapter, and memory for the weights twice where they are merged."""
    is_adapter = version.format == "adapter"
    base = version.base_version if is_adapter else version
    if base is None:
        raise Conflict(f"{version} is an adapter whose base is not registered.", code="no_base")
    folders = [str(base.path)] + ([str(version.path)] if is_adapter else [])
    copies = 3 if is_adapter else 1
    memory = _RUNTIME_MIB + copies * 4 * (base.num_parameters or 0) // MIB
    return RunSpec(
        kind="model_import",
        program=PROGRAM,
        parameters={
            "model": str(base.path),
            "adapter": str(version.path) if is_adapter else None,
            "form": form,
            "precision": precision or None,
        },
        mounts=tuple(Mount(folder) for folder in folders),
        resources=Resources(**checked_resources({"cpu_milli": 1000, "memory_mib": max(2048, memory)})),
        limits=Limits(time_limit_s=24 * 3600),
    )
