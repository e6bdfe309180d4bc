"""The loop that compares what should run with what runs, and settles every difference."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import InterfaceError, OperationalError, transaction
from django.db.models import Prefetch
from django.utils import timezone

from clavier.core.errors import DomainError, StorageFull
from clavier.quotas.models import Node
from clavier.runs.leases import Fence, LeaseLost
from clavier.runs.models import Attempt, Outbox, Peer, Run
from clavier.runs.outputs import check_manifest, make_manifest, read_json, read_log, read_metrics, seal_output
from clavier.runs.printed import last_words
from clavier.runs.queries import TAIL_BYTES, waiting_runs
from clavier.runs.services import LONGEST_BACK_OFF, fail_unrecorded, finish_attempt, mark_running, note
from clavier.runs.states import EndReason, RunState
from runner.contract import folder
from runner.executors.base import ExecutorError, Observation
from runner.worker import scheduler
from runner.worker.due import Due
from runner.worker.engines import Engine, engines_of, executor
from runner.worker.hands import Hands
from runner.worker.listing import Listings
from runner.worker.ranks import Rank, decisive, ranks_of
from runner.worker.verdicts import Verdict, verdict_of

logger = logging.getLogger(__name__)

LOST_AFTER = timedelta(seconds=10)
#: A wall clock that moved by this much more or less than the steady one was set.
CLOCK_JUMP_S = 2.0
ORPHAN_GRACE_S, ORPHAN_STOP_GRACE_S = 60.0, 10.0
#: The lead is held for so long, and taken anew that often during a pass. A leader that stands still is replaced then.
LEASE_S, RENEW_EVERY_S = 5.0, 1.0
LEFT_NOTHING = (
    "The program ended well but left nothing in its output folder (outputDir). Have it write to ${output_dir}."
)


class Reconciler:
    """One pass over everything alive. It keeps nothing that a new reconciler would miss.

    ``hands``: how it starts, stops and forgets; without any, within the pass.
    """

    def __init__(self, hands: Hands | None = None) -> None:
        self.hands = hands or Hands()
        self.orphans_since: dict[str, datetime] = {}
        self.last_schedule = float("-inf")
        self.listings = Listings()
        self.due = Due()
        self.fence: Fence | None = None
        self.kept_at = float("-inf")
        self.clocks: tuple[float, float] | None = None

    def run_pass(self, fence: Fence | None = None) -> None:
        """Settle running attempts, then start what waits. ``fence``: our term as the leader; raises LeaseLost."""
        self.fence, self.kept_at = fence, time.monotonic()
        self.doubt_old_times()
        attempts = list(
            Attempt.objects.filter(ended_at=None)
            .select_related("run__tenant", "node")
            .prefetch_related(Prefetch("peers", Peer.objects.select_related("node").order_by("rank")))
        )
        self.due.keep(attempts)
        engines = engines_of(Node.objects.all())
        answers = self.listings.ask({engine: executor(engine) for engine in engines})
        observed = {engine: {seen.name: seen for seen in answer} for engine, answer in answers.items()}
        found = [(attempt, ranks_of(attempt, observed)) for attempt in attempts]
        # Ends first: people wait for them, and they make room.
        for attempt, ranks in sorted(found, key=lambda one: not all(rank.has_exited for rank in one[1])):
            # No news is not bad news: nothing is concluded while one of its engines does not answer.
            if all(rank.engine in observed for rank in ranks):
                self.keep_lead()
                self.settle_safely(attempt, ranks)
        known = {rank.name for _, ranks in found for rank in ranks}
        self.hands.forget_all_but(known)
        for engine, answer in answers.items():
            for seen in answer:
                if seen.name not in known:
                    self.keep_lead()
                    self.settle_orphan(engine, seen)
        self.sweep_outbox()

    def keep_lead(self) -> None:
        """A pass may take longer than the lead is held for. Raises LeaseLost."""
        if self.fence is not None and time.monotonic() - self.kept_at >= RENEW_EVERY_S:
            self.fence.renew(for_s=LEASE_S)
            self.kept_at = time.monotonic()

    def doubt_old_times(self) -> None:
        """Since when something has been missing counts on this process's own clock only, while nobody sets it."""
        now, before = (time.time(), time.monotonic()), self.clocks
        self.clocks = now
        jump_s = (now[0] - before[0]) - (now[1] - before[1]) if before is not None else None
        if jump_s is None or abs(jump_s) > CLOCK_JUMP_S:
            if jump_s is not None:
                logger.warning("the clock was set by %+.0f s; what is missing is waited for anew", jump_s)
            self.orphans_since.clear()
            with self.writing():
                Attempt.objects.filter(ended_at=None).exclude(missing_since=None).update(missing_since=None)
                # Nobody asks to wait for longer: that was written before the clock was set back.
                latest = timezone.now() + LONGEST_BACK_OFF
                Run.objects.filter(state=RunState.PENDING, not_before__gt=latest).update(not_before=latest)

    def settle_safely(self, attempt: Attempt, ranks: Sequence[Rank]) -> None:
        """One broken run must not stop the settling of all the others."""
        try:
            self.settle_attempt(attempt, ranks)
        except LeaseLost:
            raise
        except ExecutorError as error:
            logger.warning("attempt %s could not be settled: %s; trying again", attempt.pk, error)
        except Exception:
            logger.exception("attempt %s could not be settled; trying again", attempt.pk)

    def settle_attempt(self, attempt: Attempt, ranks: Sequence[Rank]) -> None:
        """Bring an attempt's rows up to what was observed of its containers."""
        is_leaving = attempt.run.state == RunState.STOPPING or attempt.leave_asked_at or attempt.given_up_reason
        has_failed = any(rank.has_exited and not rank.ended_well for rank in ranks)
        if any(rank.seen is None for rank in ranks):
            self.settle_missing(attempt, ranks, is_ending=bool(is_leaving or has_failed))
            return
        self.write_observed(attempt)
        if all(rank.has_exited for rank in ranks):
            self.collect(attempt, ranks)
        elif is_leaving or has_failed:
            self.stop_all(attempt, ranks)
        elif any(rank.seen is not None and rank.seen.state == "starting" for rank in ranks):
            self.launch(attempt, ranks)
        elif attempt.run.state == RunState.PREPARING and self.is_ready(attempt):
            started = max((rank.seen.started_at or 0.0 for rank in ranks if rank.seen is not None), default=0.0)
            with self.writing():
                mark_running(attempt=attempt, started_at=as_time(started or None))

    def settle_missing(self, attempt: Attempt, ranks: Sequence[Rank], *, is_ending: bool) -> None:
        """An executor does not know a container: not started yet, not to be started any more, or lost."""
        now = timezone.now()
        is_alive = any(rank.is_alive for rank in ranks)
        if is_ending and is_alive:
            self.stop_all(attempt, ranks)
        elif is_ending and attempt.observed_at is None:
            if not self.can_not_start(attempt, [rank for rank in ranks if rank.seen is None]):
                return
            if any(rank.has_exited for rank in ranks):
                self.collect(attempt, [rank for rank in ranks if rank.seen is not None])
            else:
                self.end_before_start(attempt)
        elif attempt.observed_at is None:
            if self.due.is_due(attempt):
                self.launch(attempt, ranks)
        elif attempt.missing_since is None:
            self.write(attempt, missing_since=now)
        elif now - attempt.missing_since >= LOST_AFTER and is_alive:
            self.stop_all(attempt, ranks)
        elif now - attempt.missing_since >= LOST_AFTER:
            with self.writing():
                finish_attempt(
                    attempt=attempt, reason=EndReason.EXECUTOR_LOST, message="The executor no longer knows the attempt."
                )

    def launch(self, attempt: Attempt, ranks: Sequence[Rank]) -> None:
        """Have it started, or what was begun completed."""
        self.hands.launch(str(attempt.pk), [rank.engine for rank in ranks])

    def can_not_start(self, attempt: Attempt, ranks: Sequence[Rank]) -> bool:
        """Ranks of an attempt that is ending, which their engines do not know: once told so, they can not start either.

        Whether one had begun before its engine was told, only a list tells that was asked for afterwards.
        """
        told = [(rank, self.hands.stopped_at(rank.name)) for rank in ranks]
        for rank, at in told:
            if at is None:
                self.hands.stop(rank.engine, rank.name, attempt.run.run_spec().limits.stop_grace_s)
        return all(at is not None and self.listings.asked_at[rank.engine] > at for rank, at in told)

    def end_before_start(self, attempt: Attempt) -> None:
        """It is not wanted any more, no engine has it, and none will start it."""
        reason, message = EndReason.PREEMPTED, "Stopped before it started."
        if attempt.run.stop_reason:
            reason = EndReason(attempt.run.stop_reason)
        elif attempt.given_up_reason:
            reason, message = EndReason(attempt.given_up_reason), attempt.given_up_message
        with self.writing():
            finish_attempt(attempt=attempt, reason=reason, message=message)

    def stop_all(self, attempt: Attempt, ranks: Sequence[Rank]) -> None:
        """Ask what still runs to end; again and again until it has, for a stop may be lost."""
        grace_s = attempt.run.run_spec().limits.stop_grace_s
        for rank in ranks:
            if rank.is_alive:
                self.hands.stop(rank.engine, rank.name, grace_s)

    def write_observed(self, attempt: Attempt) -> None:
        """The executors know all of it."""
        if attempt.observed_at is None or attempt.missing_since is not None:
            self.write(attempt, observed_at=attempt.observed_at or timezone.now(), missing_since=None)

    def write(self, attempt: Attempt, **columns: Any) -> None:
        """Columns of an attempt, as the leader."""
        with self.writing():
            Attempt.objects.filter(pk=attempt.pk).update(**columns)

    def writing(self) -> AbstractContextManager[None]:
        """A transaction in which nobody else can have taken the lead. Raises LeaseLost."""
        return self.fence.transaction() if self.fence is not None else transaction.atomic()

    def collect(self, attempt: Attempt, ranks: Sequence[Rank]) -> None:
        """All containers have exited: find the verdict, write it down, let the executors forget them."""
        try:
            self.conclude(attempt, ranks)
        except (LeaseLost, OperationalError, InterfaceError):
            raise
        except Exception as error:  # a disk with errors, a hook with a mistake: not for ever
            self.conclude_later(attempt, error)
        if Attempt.objects.filter(pk=attempt.pk, ended_at=None).exists():
            return
        for one in ranks:
            self.hands.remove(one.engine, one.name)
        self.hands.count(attempt.run_id)

    def conclude(self, attempt: Attempt, ranks: Sequence[Rank]) -> None:
        """Find the verdict and write it down. Raises whatever the disk or the domain's hook does."""
        rank = decisive(ranks)
        assert rank.seen is not None
        is_whole = len(ranks) == attempt.run.num_containers
        if attempt.given_up_reason and not (is_whole and all(one.ended_well for one in ranks)):
            verdict = Verdict(EndReason(attempt.given_up_reason), attempt.given_up_message)
        else:
            verdict = self.verdict_on(attempt, rank, is_gang=len(ranks) > 1)
        most = [one.seen.max_memory_mib for one in ranks if one.seen is not None and one.seen.max_memory_mib]
        seen = replace(rank.seen, max_memory_mib=max(most, default=rank.seen.max_memory_mib))
        try:
            self.finish(attempt, verdict, seen)
        except StorageFull as refusal:  # the owner has no room for what was made
            self.finish(attempt, Verdict(EndReason.STORAGE_QUOTA, refusal.message), seen)
        except DomainError as refusal:  # the domain can not use what the program made
            self.finish(attempt, Verdict(EndReason.BAD_OUTPUT, refusal.message), seen)

    def conclude_later(self, attempt: Attempt, error: Exception) -> None:
        """The next pass tries again; after a long time of that the run fails, with or without its domain's consent."""
        logger.error("the end of attempt %s could not be written down", attempt.pk, exc_info=error)
        since = attempt.end_failing_since
        if since is None:
            self.write(attempt, end_failing_since=timezone.now())
            note(attempt.run, "It ended; taking over what it made failed and is tried again.")
        elif timezone.now() - since >= timedelta(seconds=settings.END_PATIENCE_S):
            try:
                with self.writing():
                    fail_unrecorded(attempt=attempt, error=error, calls_hook=True)
            except (LeaseLost, OperationalError, InterfaceError):
                raise
            except Exception:
                logger.exception("the hook of run %s fails for its failure too; it is left out", attempt.run_id)
                with self.writing():
                    fail_unrecorded(attempt=attempt, error=error, calls_hook=False)

    def verdict_on(self, attempt: Attempt, rank: Rank, *, is_gang: bool) -> Verdict:
        """Why an attempt ended whose containers have all exited."""
        assert rank.seen is not None
        verdict = verdict_of(rank.seen, last_error(attempt), was_asked_to_leave=attempt.leave_asked_at is not None)
        if verdict.reason == EndReason.COMPLETED and attempt.run.spec["ready_file"]:
            return Verdict(EndReason.EXIT_NONZERO, "The server ended by itself.")
        if verdict.reason == EndReason.COMPLETED:
            try:
                return self.verdict_on_output(attempt) or verdict
            except (DomainError, RecursionError, ValueError) as error:  # the program chose what lies there
                return Verdict(EndReason.BAD_OUTPUT, unusable(error))
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:  # else the disk's trouble, not the program's: tried again
                    raise
                return Verdict(EndReason.BAD_OUTPUT, unusable(error))
        return Verdict(verdict.reason, f"Rank {rank.number}: {verdict.message}") if is_gang else verdict

    def verdict_on_output(self, attempt: Attempt) -> Verdict | None:
        """Seal what was made; why it can not be used, or None."""
        seal_output(attempt.run_id, attempt.run.tenant.number)
        if attempt.run.spec["program"] is None:
            make_manifest(attempt.run_id)
        manifest, wrong = check_manifest(attempt.run_id)
        if manifest is not None:
            return None
        missing = wrong.startswith("The program ended without")
        if missing and attempt.run.spec["program"] is None:
            wrong = LEFT_NOTHING
        return Verdict(EndReason.NO_OUTPUT if missing else EndReason.BAD_OUTPUT, wrong)

    def finish(self, attempt: Attempt, verdict: Verdict, seen: Observation) -> None:
        """Write an attempt's end down, as the leader. Raises DomainError when the domain's hook refuses, LeaseLost."""
        with self.writing():
            finish_attempt(
                attempt=attempt,
                reason=verdict.reason,
                message=verdict.message,
                exit_code=seen.exit_code,
                ended_at=as_time(seen.ended_at),
                max_memory_mib=seen.max_memory_mib,
            )

    def forget(self, engine: Engine, name: str) -> None:
        """Let the executor drop an exited container, but never before its end stands in the database."""
        if not Attempt.objects.filter(pk=attempt_id(name), ended_at=None).exists():
            self.hands.remove(engine, name)

    def settle_orphan(self, engine: Engine, seen: Observation) -> None:
        """No live attempt had this name: forget it when it has exited, end it after a grace when it runs.

        An attempt that began after this pass had read the rows looks like an orphan too; the next pass settles it.
        """
        try:
            if seen.state == "exited":
                self.forget(engine, seen.name)
                self.orphans_since.pop(seen.name, None)
                return
            since = self.orphans_since.setdefault(seen.name, timezone.now())
            ended = Attempt.objects.filter(pk=attempt_id(seen.name), ended_at__isnull=False).exists()
            if ended or timezone.now() - since > timedelta(seconds=ORPHAN_GRACE_S):
                with self.writing():  # who no longer leads ends nothing
                    logger.warning("%s runs without a live attempt; ending it", seen.name)
                self.hands.stop(engine, seen.name, ORPHAN_STOP_GRACE_S)
        except LeaseLost:
            raise
        except Exception as error:  # whatever bears our label must not end the pass
            logger.warning("%s of %s could not be ended: %s; trying again", seen.name, engine, error)

    def is_ready(self, attempt: Attempt) -> bool:
        """A program that serves counts as running once it has written ready.json."""
        return not attempt.run.spec["ready_file"] or read_json(attempt.run_id, folder.READY) is not None

    def sweep_outbox(self) -> None:
        """Do the scheduler's work for wake-ups that the queue never heard of, and for runs whose time has come."""
        now = timezone.now()
        stale = list(
            Outbox.objects.filter(created_at__lt=now - timedelta(seconds=2)).values_list("pk", flat=True)[:1000]
        )
        # The steady clock: after the other one was set back nothing would be due for as long.
        due = time.monotonic() - self.last_schedule > 2.0 and waiting_runs().exists()
        if stale or due:
            self.last_schedule = time.monotonic()
            scheduler.schedule_pass()
            Outbox.objects.filter(pk__in=stale).delete()


def last_error(attempt: Attempt) -> str:
    """What the program itself said of its end: its last ``error`` event; of a user's command the end of its log."""
    if attempt.run.spec["program"] is None:
        return last_words(read_log(attempt.run_id, -TAIL_BYTES, to_end=True).data.decode(errors="replace"))
    recent, _ = read_metrics(attempt.run_id, -TAIL_BYTES)
    errors = [event for event in recent if event.get("kind") == "error"]
    return str(errors[-1].get("message", "")) if errors else ""


def unusable(error: Exception) -> str:
    """Why what a program left in ``output/`` can not be read at all, for the user."""
    if isinstance(error, DomainError):
        return error.message
    if isinstance(error, UnicodeError):
        return "The output holds a file whose name is no UTF-8. Rename it before the program ends."
    return "The output is nested too deeply or has names that are too long to be read."


def as_time(seconds: float | None) -> datetime:
    """An executor's epoch seconds, or now."""
    return timezone.now() if seconds is None else datetime.fromtimestamp(seconds, tz=UTC)


def attempt_id(name: str) -> UUID:
    """The attempt of a container's name."""
    return UUID(name.partition(".")[0])
