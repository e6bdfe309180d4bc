"""The run of a task that is its owner's own code."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from clavier.accounts.access import creator_of
from clavier.images.access import image_of_run
from clavier.runs.own_code import Inputs, OwnCode, command_parts, data_inputs, local_inputs
from datasets_app.services import rows_path
from finetune_app.models import FineTuneTask
from finetune_app.profile import profile_text
from runner.contract.run_spec import Limits, Mount, Resources, RunSpec


def own_code_spec(task: FineTuneTask, run_id: UUID) -> RunSpec:
    """The command with its folders, values and environment. Raises NotFound, Invalid for what is gone meanwhile."""
    code = OwnCode.from_json(task.own_code)
    parts = command_parts(
        creator_of(task), code, run_id=run_id, inputs=inputs_of(task, code), hyperparameters=task.hyperparameters
    )
    return RunSpec(
        kind="fine_tune",
        program=None,
        parameters={},
        argv=parts.argv,
        environment=parts.environment,
        mounts=parts.mounts,
        work=parts.work,
        start_in=parts.start_in,
        image=image_of_run(task.image_version, field="image") if task.image_version else None,
        resources=Resources(**task.resources),
        limits=Limits(time_limit_s=task.time_limit_s),
    )


def inputs_of(task: FineTuneTask, code: OwnCode) -> Inputs:
    """Folders of the owner's files, or versions of data sets and models in their place; and the config.json."""
    inputs = local_inputs(creator_of(task), code)
    train, validation, base = task.train_dataset, task.validation_dataset, task.base_version
    if train is not None:
        rows = data_inputs(str(rows_path(train)), str(rows_path(validation)) if validation else None)
        inputs = replace(inputs, input_dir=rows.input_dir, mounts=inputs.mounts + rows.mounts, work=rows.work)
    if base is not None:
        folders = [base.path] + ([base.base_version.path] if base.base_version else [])
        mounts = tuple(Mount(str(path)) for path in folders)
        inputs = replace(inputs, model_dir=str(base.path), mounts=inputs.mounts + mounts)
    return replace(inputs, config=profile_text(task.hyperparameters, code.fine_tune_names, task.method))
