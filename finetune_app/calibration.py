"""What finished runs teach the estimator: how far their memory and time were from the bare formula."""

from __future__ import annotations

import math
from collections.abc import Iterable

from django.db import transaction

from clavier.runs.models import Attempt, Run
from clavier.runs.outputs import read_metrics
from clavier.runs.queries import TAIL_BYTES
from finetune_app.estimate import FIRST_SECONDS_SPREAD, FIRST_SPREAD, LEAST_SPREAD, RUNTIME_MIB, Calibration
from finetune_app.models import FineTuneTask, TrainingCalibration
from finetune_app.resume import RESUME_FROM

#: Runs after which the band is as narrow as it gets.
SETTLED_RUNS = 20
#: The highest memory that a program of ours has reserved for tensors on its GPU.
GPU_PEAK = "memory/gpu_peak_mib"


def calibration_of(recipe: str, method: str, num_parameters: int, *, on_gpu: bool) -> Calibration:
    """What finished runs of a kind say, with models of the same order of magnitude."""
    row = TrainingCalibration.objects.filter(
        recipe=recipe, method=method, on_gpu=on_gpu, magnitude=magnitude_of(num_parameters)
    ).first()
    if row is None or row.num_runs == 0:
        return Calibration()
    return Calibration(
        row.num_runs,
        math.exp(row.memory_log_mean),
        math.exp(row.seconds_log_mean),
        spread_after(row.num_runs, row.memory_log_m2, FIRST_SPREAD),
        spread_after(row.num_runs, row.seconds_log_m2, FIRST_SECONDS_SPREAD),
    )


def magnitude_of(num_parameters: int) -> int:
    """The power of ten: 8 for 100 to 999 million."""
    return len(str(num_parameters)) - 1


def spread_after(num_runs: int, m2: float, first: float) -> float:
    """How far from the estimate a run may land; a few that happen to agree say little, so the first spread fades."""
    learned = math.exp(2 * math.sqrt(m2 / max(1, num_runs - 1)))
    trust = min(1.0, num_runs / SETTLED_RUNS)
    return max(LEAST_SPREAD, math.pow(first, 1 - trust) * math.pow(learned, trust))


def learn(task: FineTuneTask, run: Run) -> None:
    """Let a completed run correct the next estimates (Welford's running mean and variance of the logarithms).

    One that was to use a GPU and reports no memory of one has not used it, so it says nothing of those that do.
    """
    promised = task.estimate
    if promised.get("run") != str(run.pk) or "num_parameters" not in promised:
        return
    if RESUME_FROM in run.spec["parameters"]:  # it did a part of the work only
        return
    attempts = list(Attempt.objects.filter(run=run))
    seconds, used_mib = running_seconds(attempts), most_memory_mib(run, attempts, on_gpu=promised["on_gpu"])
    if min(seconds, used_mib, promised["memory_mib"]["expected"]) <= 0:
        return
    # The promise was already corrected by what was known then; the table keeps ratios to the bare formula.
    memory = math.log(used_mib / promised["memory_mib"]["expected"] * promised["memory_factor"])
    duration = math.log(seconds / promised["seconds"]["expected"] * promised["seconds_factor"])
    with transaction.atomic():
        row, _ = TrainingCalibration.objects.select_for_update().get_or_create(
            recipe=task.recipe,
            method=task.method,
            on_gpu=promised["on_gpu"],
            magnitude=magnitude_of(promised["num_parameters"]),
        )
        row.num_runs += 1
        for name, value in (("memory", memory), ("seconds", duration)):
            delta = value - getattr(row, f"{name}_log_mean")
            mean = getattr(row, f"{name}_log_mean") + delta / row.num_runs
            setattr(row, f"{name}_log_mean", mean)
            setattr(row, f"{name}_log_m2", getattr(row, f"{name}_log_m2") + delta * (value - mean))
        row.save()


def running_seconds(attempts: Iterable[Attempt]) -> float:
    """How long programs ran, in all attempts together: one goes on where the one before was stopped."""
    spans = ((one.started_at, one.ended_at) for one in attempts)
    return sum((ended - started).total_seconds() for started, ended in spans if started and ended)


def most_memory_mib(run: Run, attempts: Iterable[Attempt], *, on_gpu: bool) -> float:
    """The most that the run held of its GPU or of main memory; 0: unknown."""
    held: list[float] = [gpu_memory_mib(run)] if on_gpu else [one.max_memory_mib or 0.0 for one in attempts]
    return max(held, default=0.0)


def gpu_memory_mib(run: Run) -> float:
    """The most GPU memory that the program reports, with what the runtime holds beside its tensors."""
    recent, _ = read_metrics(run.pk, -TAIL_BYTES)
    peaks = [event[GPU_PEAK] for event in recent if isinstance(event.get(GPU_PEAK), int | float)]
    highest = max((float(peak) for peak in peaks if math.isfinite(peak)), default=0.0)
    return highest + RUNTIME_MIB if highest > 0 else 0.0
