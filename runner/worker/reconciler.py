"""The loop that compares what should run with what runs, and settles every difference."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from django.conf import settings
from django.utils import timezone

from clavier.core.errors import DomainError, StorageFull
from clavier.runs.models import Attempt, Outbox
from clavier.runs.outputs import check_manifest, make_manifest, read_json, read_log, read_metrics, seal_output
from clavier.runs.printed import last_words
from clavier.runs.queries import TAIL_BYTES, waiting_runs
from clavier.runs.services import finish_attempt, mark_running
from clavier.runs.states import EndReason, RunState
from runner.contract import folder
from runner.executors.base import Executor, ExecutorError, Observation
from runner.worker import jobs, scheduler
from runner.worker.engines import executor
from runner.worker.verdicts import Verdict, verdict_of

logger = logging.getLogger(__name__)

LOST_AFTER = timedelta(seconds=10)
LAUNCH_AGAIN_AFTER = timedelta(seconds=3)
ORPHAN_GRACE_S = 60.0
LEFT_NOTHING = (
    "The program ended well but left nothing in its output folder (outputDir). Have it write to ${output_dir}."
)


class Reconciler:
    """One pass over everything alive. It keeps nothing that a new reconciler would miss."""

    def __init__(self) -> None:
        self.orphans_since: dict[str, datetime] = {}
        self.last_schedule = timezone.now() - timedelta(hours=1)

    def run_pass(self) -> None:
        """Settle running attempts, then start what waits."""
        attempts = list(Attempt.objects.filter(ended_at=None).select_related("run__tenant", "node"))
        for name in {settings.CLAVIER_EXECUTOR} | {attempt.node.executor for attempt in attempts}:
            mine = [attempt for attempt in attempts if attempt.node.executor == name]
            try:
                self.settle_executor(executor(name), mine)
            except ExecutorError as error:
                # No news is not bad news: nothing is concluded from an executor that does not answer.
                logger.warning("executor %s does not answer: %s", name, error)
        self.sweep_outbox()

    def settle_executor(self, engine: Executor, attempts: Iterable[Attempt]) -> None:
        """Compare one executor's list with the live attempts that belong to it."""
        observed = {observation.name: observation for observation in engine.list()}
        known: set[str] = set()
        for attempt in attempts:
            known.add(str(attempt.pk))
            try:
                self.settle_attempt(engine, attempt, observed.get(str(attempt.pk)))
            except Exception:
                # One broken run must not stop the settling of all the others.
                logger.exception("attempt %s could not be settled; trying again", attempt.pk)
        for name, observation in observed.items():
            if name not in known:
                self.settle_orphan(engine, observation)

    def settle_attempt(self, engine: Executor, attempt: Attempt, seen: Observation | None) -> None:
        """Bring one attempt's rows up to what was observed."""
        if seen is None:
            self.settle_missing(attempt)
            return
        if attempt.observed_at is None or attempt.missing_since is not None:
            Attempt.objects.filter(pk=attempt.pk).update(
                observed_at=attempt.observed_at or timezone.now(), missing_since=None
            )
        if seen.state == "exited":
            self.collect(attempt, seen)
            self.forget(engine, seen)
        elif attempt.run.state == RunState.STOPPING:
            engine.stop(seen.name, attempt.run.run_spec().limits.stop_grace_s)
        elif seen.state == "starting":
            jobs.launch(str(attempt.pk))
        elif attempt.run.state == RunState.PREPARING and self.is_ready(attempt):
            mark_running(attempt=attempt, started_at=as_time(seen.started_at))

    def settle_missing(self, attempt: Attempt) -> None:
        """The executor does not know the attempt: not started yet, to be stopped, or lost."""
        now = timezone.now()
        if attempt.run.state == RunState.STOPPING and attempt.observed_at is None:
            finish_attempt(
                attempt=attempt, reason=EndReason(attempt.run.stop_reason), message="Stopped before it started."
            )
        elif attempt.observed_at is None:
            due = attempt.not_before or attempt.created_at + LAUNCH_AGAIN_AFTER
            if now >= due:
                jobs.launch(str(attempt.pk))
        elif attempt.missing_since is None:
            Attempt.objects.filter(pk=attempt.pk).update(missing_since=now)
        elif now - attempt.missing_since >= LOST_AFTER:
            finish_attempt(
                attempt=attempt, reason=EndReason.EXECUTOR_LOST, message="The executor no longer knows the attempt."
            )

    def collect(self, attempt: Attempt, seen: Observation) -> None:
        """An attempt has exited: find the verdict and write it down."""
        verdict = verdict_of(seen, last_error(attempt))
        if verdict.reason == EndReason.COMPLETED and attempt.run.spec["ready_file"]:
            verdict = Verdict(EndReason.EXIT_NONZERO, "The server ended by itself.")
        elif verdict.reason == EndReason.COMPLETED:
            seal_output(attempt.run_id, attempt.run.tenant.number)
            if attempt.run.spec["program"] is None:
                make_manifest(attempt.run_id)
            manifest, wrong = check_manifest(attempt.run_id)
            if manifest is None:
                missing = wrong.startswith("The program ended without")
                verdict = Verdict(EndReason.NO_OUTPUT if missing else EndReason.BAD_OUTPUT, wrong)
                if missing and attempt.run.spec["program"] is None:
                    verdict = Verdict(EndReason.NO_OUTPUT, LEFT_NOTHING)
        try:
            finish(attempt, verdict, seen)
        except StorageFull as refusal:  # the owner has no room for what was made
            finish(attempt, Verdict(EndReason.STORAGE_QUOTA, refusal.message), seen)
        except DomainError as refusal:  # the domain can not use what the program made
            finish(attempt, Verdict(EndReason.BAD_OUTPUT, refusal.message), seen)

    def forget(self, engine: Executor, seen: Observation) -> None:
        """Let the executor drop an exited attempt, but never before its end stands in the database."""
        if not Attempt.objects.filter(pk=seen.name, ended_at=None).exists():
            engine.remove(seen.name)

    def settle_orphan(self, engine: Executor, seen: Observation) -> None:
        """No live attempt had this name: forget it when it has exited, end it after a grace when it runs.

        An attempt that began after this pass had read the rows looks like an orphan too; the next pass settles it.
        """
        if seen.state == "exited":
            self.forget(engine, seen)
            self.orphans_since.pop(seen.name, None)
            return
        since = self.orphans_since.setdefault(seen.name, timezone.now())
        ended = Attempt.objects.filter(pk=seen.name, ended_at__isnull=False).exists()
        if ended or timezone.now() - since > timedelta(seconds=ORPHAN_GRACE_S):
            logger.warning("%s runs without a live attempt; ending it", seen.name)
            engine.stop(seen.name, 10)

    def is_ready(self, attempt: Attempt) -> bool:
        """A program that serves counts as running once it has written ready.json."""
        return not attempt.run.spec["ready_file"] or read_json(attempt.run_id, folder.READY) is not None

    def sweep_outbox(self) -> None:
        """Do the scheduler's work for wake-ups that the queue never heard of, and for runs whose time has come."""
        now = timezone.now()
        stale = list(
            Outbox.objects.filter(created_at__lt=now - timedelta(seconds=2)).values_list("pk", flat=True)[:1000]
        )
        due = now - self.last_schedule > timedelta(seconds=2) and waiting_runs().exists()
        if stale or due:
            self.last_schedule = now
            scheduler.schedule_pass()
            Outbox.objects.filter(pk__in=stale).delete()


def finish(attempt: Attempt, verdict: Verdict, seen: Observation) -> None:
    """Write an attempt's end down. Raises DomainError when the domain's hook refuses."""
    finish_attempt(
        attempt=attempt,
        reason=verdict.reason,
        message=verdict.message,
        exit_code=seen.exit_code,
        ended_at=as_time(seen.ended_at),
        max_memory_mib=seen.max_memory_mib,
    )


def last_error(attempt: Attempt) -> str:
    """What the program itself said of its end: its last ``error`` event; of a user's command the end of its log."""
    if attempt.run.spec["program"] is None:
        return last_words(read_log(attempt.run_id, -TAIL_BYTES, to_end=True).data.decode(errors="replace"))
    recent, _ = read_metrics(attempt.run_id, -TAIL_BYTES)
    errors = [event for event in recent if event.get("kind") == "error"]
    return str(errors[-1].get("message", "")) if errors else ""


def as_time(seconds: float | None) -> datetime:
    """An executor's epoch seconds, or now."""
    return timezone.now() if seconds is None else datetime.fromtimestamp(seconds, tz=UTC)
