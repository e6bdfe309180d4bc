"""What RQ calls. Each job is short, carries an id or nothing, and may run twice without harm."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from uuid import UUID

from django.utils import timezone

from clavier.quotas.services import gpus_of
from clavier.runs.models import Attempt, Outbox, Run
from clavier.runs.outputs import run_folder
from clavier.runs.services import finish_attempt
from clavier.runs.states import EndReason, RunState
from runner.contract import folder
from runner.executors.base import ExecutorError, Launch, LaunchRefused
from runner.worker import scheduler
from runner.worker.engines import executor
from runner.worker.layout import lay_out

logger = logging.getLogger(__name__)


def schedule(outbox_id: str = "") -> None:
    """A scheduler pass, unless one began since the wake-up was written."""
    if not outbox_id or Outbox.objects.filter(pk=int(outbox_id)).exists():
        scheduler.schedule_pass()


def launch(attempt_id: str) -> None:
    """Start an attempt, or adopt what an earlier call started."""
    attempt = Attempt.objects.select_related("run__tenant", "node").filter(pk=UUID(attempt_id), ended_at=None).first()
    if attempt is None or attempt.run.state not in (RunState.PREPARING, RunState.RUNNING):
        return
    if attempt.not_before is not None and attempt.not_before > timezone.now():
        return
    engine = executor(attempt.node.executor)
    try:
        prepare_folder(attempt.run)
        engine.start(launch_of(attempt))
    except LaunchRefused as refusal:
        finish_attempt(attempt=attempt, reason=EndReason.INVALID_SPEC, message=str(refusal))
        return
    except (ExecutorError, OSError) as error:
        logger.warning("start of attempt %s failed: %s; the reconciler tries again", attempt_id, error)
        return
    if Run.objects.filter(pk=attempt.run_id, state=RunState.STOPPING).exists():
        engine.stop(str(attempt.pk), attempt.run.run_spec().limits.stop_grace_s)


def launch_of(attempt: Attempt) -> Launch:
    """What the executor is told of an attempt."""
    run = attempt.run
    return Launch(
        name=str(attempt.pk),
        run_folder=run_folder(run.pk),
        spec=run.run_spec(),
        owner_id=run.tenant.number,
        gpus=gpus_of(attempt.pk).get(0, ()),
        labels={"run": str(run.pk), "attempt": str(attempt.number), "tenant": run.tenant.name, "kind": run.kind},
    )


def prepare_folder(run: Run) -> Path:
    """Make the run's folder, lay out its work and write its spec, once. Raises LaunchRefused, OSError.

    The spec is written last: until it stands no program has run, so nothing of a program's is in the way.
    """
    path = run_folder(run.pk)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
    path.mkdir(exist_ok=True, mode=0o750)
    spec = path / folder.SPEC
    if not spec.exists():
        lay_out(path / folder.WORK, run.run_spec().work, run.tenant.number)
        folder.write_json_durably(spec, json.loads(json.dumps(run.spec)))
        os.chmod(spec, 0o644)
    return path
