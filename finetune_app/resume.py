"""Where a task that is run again goes on: at the newest checkpoint of a run that did the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from clavier.runs.models import Run
from clavier.runs.outputs import has_sealed_since, run_folder
from clavier.runs.states import FINAL_STATES
from finetune_app.models import FineTuneTask
from runner.contract.folder import CHECKPOINTS

#: The parameter of a run that goes on from another one's checkpoints: their folder.
RESUME_FROM = "resume_from"


def earlier_checkpoints(task: FineTuneTask, parameters: Mapping[str, Any]) -> str | None:
    """The folder of the checkpoints of the task's newest run with these parameters that has sealed any.

    Time limit and resources may differ, but for the number of processes; other hyperparameters train from the start.
    """
    wanted = json.loads(json.dumps(parameters))
    for run in Run.objects.filter(kind="fine_tune", subject_id=task.pk, state__in=FINAL_STATES).order_by("-created_at"):
        given = {name: value for name, value in run.spec["parameters"].items() if name != RESUME_FROM}
        if given == wanted and has_sealed_since(run.pk, 0.0):
            return str(run_folder(run.pk) / CHECKPOINTS)
    return None
