"""Data parallel training: every process takes its share of a step's micro-batches and gradients are summed.

Started by ``torchrun`` (or by the platform, which starts it where a run has several GPUs). The first process speaks and
writes; the others are silent. Without ``torchrun`` everything here is a no-op for a world of one.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed

from runner.contract import folder
from runner.contract.run_spec import RunSpec
from runner.programs.lib.events import ProgramContext, Reporter, run_program

#: Gradients travel in pieces of about this many numbers.
BUCKET_NUMBERS = 1 << 24
Item = TypeVar("Item")


class SilentReporter(Reporter):
    """Of every process but the first: says nothing."""

    def _event(self, kind: str, **values: Any) -> None:
        """Not written."""

    def _line(self, level: str, text: str) -> None:
        """Not printed."""


def run_in_processes(main: Callable[[ProgramContext], None], module: str) -> None:
    """``run_program``; with the parameter ``num_processes`` above 1 this process becomes ``torchrun``."""
    parameters = RunSpec.from_json(_spec(Path(sys.argv[1]))).parameters if len(sys.argv) == 2 else {}
    num_processes = int(parameters.get("num_processes") or 1)
    if num_processes > 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        alone = [] if "PET_NNODES" in os.environ else ["--standalone"]
        command = [sys.executable, "-m", "torch.distributed.run", *alone, f"--nproc-per-node={num_processes}"]
        os.execv(sys.executable, [*command, "-m", module, *sys.argv[1:]])
    try:
        run_program(lambda context: main(joined(context)))
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def joined(context: ProgramContext) -> ProgramContext:
    """Meet the other processes where there are any; all but the first fall silent."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        if not is_first():
            context.report.close()
            context.report = SilentReporter(context.run_folder)
        context.report.phase("device", f"{num_processes()} processes train together")
    return context


def num_processes() -> int:
    """Processes that train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_first() -> bool:
    """This process speaks and writes."""
    return rank() == 0


def own_share(items: Sequence[Item]) -> Sequence[Item]:
    """What this process does of a list that all know."""
    return items[rank() :: num_processes()]


def even_share(items: Sequence[Item]) -> Sequence[tuple[Item, float]]:
    """``own_share`` as (item, weight), of the same length in every process: what fills it up weighs 0."""
    own = [(item, 1.0) for item in own_share(items)]
    missing = -(-len(items) // num_processes()) - len(own)
    return [*own, *[(items[0], 0.0)] * missing]


def shares_together(items: Sequence[Item]) -> list[Item]:
    """What all processes have made of their ``own_share``, in the order of the list that was shared."""
    if not distributed.is_initialized():
        return list(items)
    made: list[Any] = [None] * num_processes()
    distributed.all_gather_object(made, list(items))
    return [share[place] for place in range(max(map(len, made))) for share in made if place < len(share)]


def draw_apart(seed: int, step: int) -> None:
    """Let each of several processes draw its own random numbers from here on, the same ones whenever this step is run.

    No checkpoint holds the state of all of them. One process alone goes on drawing.
    """
    if distributed.is_initialized():
        torch.manual_seed(seed + 1_000_003 * rank() + 7_919 * step)


def wait_for_all() -> None:
    """Return once every process is here."""
    if distributed.is_initialized():
        distributed.barrier()


def first_then_others(work: Callable[[], Item]) -> Item:
    """Let the first process do the work alone, then the others: what it moves or writes is in place for them."""
    if is_first():
        done = work()
        wait_for_all()
        return done
    wait_for_all()
    return work()


def summed(*numbers: float) -> list[float]:
    """The sums of numbers over the processes."""
    if not distributed.is_initialized():
        return list(numbers)
    device = torch.device("cuda") if distributed.get_backend() == "nccl" else torch.device("cpu")
    total = torch.tensor(numbers, dtype=torch.float64, device=device)
    distributed.all_reduce(total)
    return [float(number) for number in total.tolist()]


def sum_gradients(parameters: Iterable[torch.Tensor]) -> None:
    """Add the gradients of all processes up; one that had no sample for a parameter counts as zero."""
    if not distributed.is_initialized():
        return
    bucket: list[torch.Tensor] = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        bucket.append(parameter.grad)
        if sum(gradient.numel() for gradient in bucket) >= BUCKET_NUMBERS:
            _sum_together(bucket)
            bucket = []
    if bucket:
        _sum_together(bucket)


def _sum_together(gradients: Sequence[torch.Tensor]) -> None:
    flat = torch.cat([gradient.reshape(-1).float() for gradient in gradients])
    distributed.all_reduce(flat)
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()


def _spec(run_folder: Path) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads((run_folder / folder.SPEC).read_text(encoding="utf-8"))
    return spec
