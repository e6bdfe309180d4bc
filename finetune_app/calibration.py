"""What finished runs teach the estimator: how far their memory and time were from the bare formula."""

from __future__ import annotations

import math

from django.db import transaction

from clavier.runs.models import Attempt, Run
from clavier.runs.outputs import read_metrics
from clavier.runs.queries import TAIL_BYTES
from finetune_app.estimate import FIRST_SPREAD, LEAST_SPREAD, RUNTIME_MIB, Calibration
from finetune_app.models import FineTuneTask, TrainingCalibration
from finetune_app.resume import RESUME_FROM

#: Runs after which the band is as narrow as it gets.
SETTLED_RUNS = 20
#: The highest memory that a program of ours has reserved for tensors on its GPU.
GPU_PEAK = "memory/gpu_peak_mib"


def calibration_of(recipe: str, method: str, *, on_gpu: bool) -> Calibration:
    """What finished runs of a kind say."""
    row = TrainingCalibration.objects.filter(recipe=recipe, method=method, on_gpu=on_gpu).first()
    if row is None or row.num_runs == 0:
        return Calibration()
    variance = row.memory_log_m2 / max(1, row.num_runs - 1)
    learned = math.exp(2 * math.sqrt(variance))
    # A few runs that happen to agree say little, so the first spread fades only slowly.
    trust = min(1.0, row.num_runs / SETTLED_RUNS)
    spread = max(LEAST_SPREAD, FIRST_SPREAD ** (1 - trust) * learned**trust)
    return Calibration(row.num_runs, math.exp(row.memory_log_mean), math.exp(row.seconds_log_mean), spread)


def learn(task: FineTuneTask, run: Run) -> None:
    """Let a completed run correct the next estimates (Welford's running mean and variance of the logarithms).

    One that was to use a GPU and reports no memory of one has not used it, so it says nothing of those that do.
    """
    promised = task.estimate
    if promised.get("run") != str(run.pk) or run.started_at is None or run.ended_at is None:
        return
    if RESUME_FROM in run.spec["parameters"]:  # it did a part of the work only
        return
    used_mib = gpu_memory_mib(run) if promised["on_gpu"] else process_memory_mib(run)
    if used_mib is None:
        return
    seconds = (run.ended_at - run.started_at).total_seconds()
    if seconds <= 0 or promised["memory_mib"]["expected"] <= 0:
        return
    with transaction.atomic():
        row, _ = TrainingCalibration.objects.select_for_update().get_or_create(
            recipe=task.recipe, method=task.method, on_gpu=promised["on_gpu"]
        )
        # The promise was already corrected by what was known then; the table keeps ratios to the bare formula.
        memory = math.log(used_mib / promised["memory_mib"]["expected"] * promised["memory_factor"])
        duration = math.log(seconds / promised["seconds"]["expected"] * promised["seconds_factor"])
        row.num_runs += 1
        delta = memory - row.memory_log_mean
        row.memory_log_mean += delta / row.num_runs
        row.memory_log_m2 += delta * (memory - row.memory_log_mean)
        row.seconds_log_mean += (duration - row.seconds_log_mean) / row.num_runs
        row.save()


def process_memory_mib(run: Run) -> float | None:
    """The most main memory that the run's last attempt held."""
    attempt = Attempt.objects.filter(run=run).order_by("-number").first()
    return attempt.max_memory_mib or None if attempt is not None else None


def gpu_memory_mib(run: Run) -> float | None:
    """The most GPU memory that the program reports, with what the runtime holds beside its tensors."""
    recent, _ = read_metrics(run.pk, -TAIL_BYTES)
    peaks = [event[GPU_PEAK] for event in recent if isinstance(event.get(GPU_PEAK), int | float)]
    highest = max((float(peak) for peak in peaks if math.isfinite(peak)), default=0.0)
    return highest + RUNTIME_MIB if highest > 0 else None
