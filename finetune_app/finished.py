"""What follows the end of a fine-tuning's run, in the transaction that ends it."""

from __future__ import annotations

from clavier.accounts.access import creator_of
from clavier.runs.models import Run
from clavier.runs.own_code import OwnCode, publish
from clavier.runs.states import RunState
from finetune_app.calibration import learn
from finetune_app.models import FineTuneTask
from finetune_app.search import on_trial_finished
from finetune_app.services import launch
from models_app.services import create_version_from_run
from models_app.staging import forget_logins, is_staging


def on_run_finished(run: Run) -> None:
    """A completed run has made a model version; own code's output becomes files of the task's owner.

    When a run has fetched what the task is to read, the task itself starts.
    """
    tasks = FineTuneTask.objects.select_related("base_version", "train_dataset", "tenant", "created_by")
    task = tasks.filter(pk=run.subject_id).first()
    if is_staging(run):
        forget_logins(run)
        if task is not None and run.state == RunState.COMPLETED:
            launch(creator_of(task), task)
    elif task is not None and task.create_way == "custom":
        publish(creator_of(task), run, OwnCode.from_json(task.own_code))
    elif task is not None and run.state == RunState.COMPLETED:
        create_version_from_run(
            run=run,
            model_name=task.output_model_name,
            base_version=task.base_version,
            dataset_version=task.train_dataset,
        )
        learn(task, run)
    if task is not None:
        on_trial_finished(task, run)
