"""Runs, their attempts, what happened to them, and what is still to be told to the queue."""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.db import models
from django.db.models import Q
from django.utils import timezone

from clavier.core.models import TenantOwned
from clavier.quotas.models import Node
from clavier.runs.states import EndReason, RunState
from runner.contract.run_spec import RUN_KINDS, RunSpec

STATE_CHOICES = [(state.value, state.value) for state in RunState]
REASON_CHOICES = [(reason.value, reason.value) for reason in EndReason]


class Run(TenantOwned):
    """Everything that computes. ``state`` changes only through ``runs.services.transition``."""

    kind = models.CharField(max_length=20, choices=[(kind, kind) for kind in RUN_KINDS])
    name = models.CharField(max_length=200, help_text="What the run is for, as its owner called it.")
    subject_id = models.UUIDField(db_index=True, help_text="The domain's object for which the run was made.")
    spec = models.JSONField(editable=False)
    spec_digest = models.CharField(max_length=64, editable=False)
    resource_group = models.CharField(max_length=63, default="default")
    priority = models.IntegerField(default=0)
    not_before = models.DateTimeField(null=True, blank=True)

    # What the scheduler asks the database about; filled from the spec, so that no spec is read to pass a run over.
    is_urgent = models.BooleanField(default=False)
    preemptible = models.BooleanField(default=False, editable=False)
    num_containers = models.PositiveIntegerField(default=1, editable=False)
    cpu_milli = models.PositiveBigIntegerField(default=0, editable=False, help_text="Of all containers together.")
    memory_mib = models.PositiveBigIntegerField(default=0, editable=False, help_text="Of all containers together.")
    gpus = models.PositiveIntegerField(default=0, editable=False, help_text="Whole ones, of all containers together.")
    shape = models.CharField(max_length=32, blank=True, editable=False, help_text="Equal: fits where the other fits.")
    queued_at = models.DateTimeField(default=timezone.now, editable=False, help_text="Since when it waits (last).")
    preempted_at = models.DateTimeField(null=True, editable=False)

    state = models.CharField(max_length=10, choices=STATE_CHOICES, default=RunState.PENDING, editable=False)
    version = models.PositiveIntegerField(default=0, editable=False)
    stop_reason = models.CharField(max_length=20, choices=REASON_CHOICES, blank=True, editable=False)
    end_reason = models.CharField(max_length=20, choices=REASON_CHOICES, blank=True, editable=False)
    message = models.TextField(blank=True, editable=False, help_text="For people: how it ended.")
    started_at = models.DateTimeField(null=True, editable=False)
    ended_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        indexes: ClassVar = [
            # Cover the scheduler's questions: who waits, in the order of admission; and who holds how much.
            models.Index(
                fields=[
                    "state",
                    "resource_group",
                    "is_urgent",
                    "tenant",
                    "created_by",
                    "shape",
                    "-priority",
                    "created_at",
                    "id",
                    "cpu_milli",
                    "memory_mib",
                    "gpus",
                    "num_containers",
                    "not_before",
                    "queued_at",
                ],
                name="run_queue_covering",
            ),
            models.Index(
                fields=["resource_group", "tenant", "cpu_milli", "memory_mib", "gpus", "preemptible"],
                condition=Q(state__in=["PREPARING", "RUNNING", "STOPPING"]),
                name="run_holding",
            ),
            models.Index(fields=["tenant", "-created_at"], name="run_list"),
        ]
        constraints: ClassVar = [
            models.CheckConstraint(condition=Q(state__in=[state.value for state in RunState]), name="run_state_known"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} ({self.state})"

    @property
    def is_final(self) -> bool:
        """The run has ended and never changes again."""
        return self.state in (RunState.COMPLETED, RunState.FAILED, RunState.STOPPED)

    def run_spec(self) -> RunSpec:
        """The spec as it was submitted."""
        return RunSpec.from_json(self.spec)


class Attempt(models.Model):
    """One start of a process or container; its id is the name that the executor knows."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="attempts")
    number = models.PositiveIntegerField()
    node = models.ForeignKey(Node, on_delete=models.PROTECT, related_name="attempts")
    created_at = models.DateTimeField(auto_now_add=True)
    not_before = models.DateTimeField(null=True, blank=True)
    observed_at = models.DateTimeField(null=True, blank=True, help_text="When the executor first knew it.")
    missing_since = models.DateTimeField(null=True, blank=True)
    leave_asked_at = models.DateTimeField(
        null=True, blank=True, help_text="When it was asked to make room; its run then waits again."
    )
    started_at = models.DateTimeField(null=True, blank=True)
    launch_failing_since = models.DateTimeField(null=True, blank=True)
    given_up_reason = models.CharField(
        max_length=20,
        choices=REASON_CHOICES,
        blank=True,
        default="",
        db_default="",
        help_text="Why the platform ends it; it holds what it has until all its containers are gone.",
    )
    given_up_message = models.TextField(blank=True, default="", db_default="")
    end_failing_since = models.DateTimeField(
        null=True, blank=True, help_text="Since when its end could not be written down, though its containers are gone."
    )
    ended_at = models.DateTimeField(null=True, blank=True)
    exit_code = models.IntegerField(null=True, blank=True)
    end_reason = models.CharField(max_length=20, choices=REASON_CHOICES, blank=True)
    max_memory_mib = models.PositiveIntegerField(null=True, blank=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["run", "number"], name="attempt_once"),
            models.UniqueConstraint(fields=["run"], condition=Q(ended_at=None), name="attempt_one_live"),
        ]

    def __str__(self) -> str:
        return f"attempt {self.number} of {self.run_id}"


class RunFolder(models.Model):
    """What a run's folder took when it was counted last: at the end of each attempt. Its owner is charged for it."""

    run = models.OneToOneField(Run, on_delete=models.CASCADE, primary_key=True, related_name="folder")
    size_bytes = models.PositiveBigIntegerField(default=0)
    inodes = models.PositiveBigIntegerField(default=0)
    counted_at = models.DateTimeField(auto_now=True)

    def __str__(self) -> str:
        return f"folder of run {self.run_id} with {self.size_bytes} bytes"


class Peer(models.Model):
    """A further container of an attempt of several (rank 1 and up); rank 0 is the attempt's own."""

    attempt = models.ForeignKey(Attempt, on_delete=models.CASCADE, related_name="peers")
    rank = models.PositiveIntegerField()
    node = models.ForeignKey(Node, on_delete=models.PROTECT, related_name="peers")

    class Meta:
        ordering: ClassVar = ["rank"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["attempt", "rank"], name="peer_once"),
            models.CheckConstraint(condition=Q(rank__gte=1), name="peer_rank_from_one"),
        ]

    def __str__(self) -> str:
        return f"rank {self.rank} of attempt {self.attempt_id}"


class RunEvent(models.Model):
    """What happened to a run, in order; replaying the state events gives the state."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="events")
    at = models.DateTimeField(auto_now_add=True)
    from_state = models.CharField(max_length=10, blank=True)
    to_state = models.CharField(max_length=10, blank=True, help_text="Empty: a note, no change of state.")
    reason = models.CharField(max_length=20, blank=True)
    message = models.TextField(blank=True)
    actor_name = models.CharField(max_length=150, blank=True)

    class Meta:
        ordering: ClassVar = ["pk"]

    def __str__(self) -> str:
        return f"{self.from_state or '·'} -> {self.to_state or '·'} {self.message}".strip()


class Outbox(models.Model):
    """A wake-up that no scheduler pass has seen yet; the pass that begins after it deletes it."""

    run_id = models.UUIDField()
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        verbose_name_plural = "outbox"

    def __str__(self) -> str:
        return f"wake-up for run {self.run_id}"


class Lease(models.Model):
    """Who leads a loop of which there may be one, on the database's clock; renewing it is the heartbeat."""

    name = models.CharField(max_length=40, primary_key=True)
    holder = models.CharField(max_length=100)
    epoch = models.PositiveBigIntegerField(default=0)
    renewed_at = models.DateTimeField()
    expires_at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.name} held by {self.holder} (epoch {self.epoch})"
