"""Two real processes of one run add up a tensor over gloo, started plainly and by torchrun."""

from __future__ import annotations

import sys

import pytest

from clavier.runs.outputs import read_log, run_folder
from runner.contract.run_spec import Mount, Resources, Role
from tests.engine import Engine, assert_consistent, make_real_engine

pytestmark = [pytest.mark.django_db, pytest.mark.slow, pytest.mark.timeout(300)]

SUM = """
import os, pathlib, torch, torch.distributed as dist
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
value = torch.tensor([float(rank + 1)])
dist.all_reduce(value)
print(f"rank {rank} of {size}: {value.item():g}", flush=True)
if rank == 0:
    (pathlib.Path(os.environ["HOME"]).parent / "output" / "sum.txt").write_text(f"{value.item():g}")
dist.destroy_process_group()
"""


@pytest.mark.parametrize("how", ["plain", "torchrun"])
def test_two_ranks_meet_and_both_logs_are_kept(monkeypatch, home, settings, alice, how):
    settings.RUN_FINISHED_HOOKS = dict.fromkeys(settings.RUN_FINISHED_HOOKS, "tests.runner.worker.test_engine.no_hook")
    engine = make_real_engine(monkeypatch, home)
    script = home / "shared" / "sum.py"
    script.parent.mkdir(mode=0o755)
    script.write_text(SUM)
    script.chmod(0o644)
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=1"] if how == "torchrun" else []
    small = Resources(cpu_milli=100, memory_mib=2048)
    run = Engine.submit(
        engine, alice, program=None, argv=(sys.executable, *torchrun, str(script)), mounts=(Mount(str(script)),),
        roles=(Role("master", 1, small), Role("worker", 1, small)), resources=small,
        environment={"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )  # fmt: skip
    engine.finish(run, limit_s=200)
    logs = [read_log(run.pk, to_end=True, rank=rank).data.decode() for rank in (0, 1)]
    assert run.state == "COMPLETED", (run.message, logs)
    assert (run_folder(run.pk) / "output" / "sum.txt").read_text() == "3"
    assert ["of 2: 3" in log for log in logs] == [True, True]
    assert "rank 1" in logs[1]
    assert engine.executor.list() == []
    assert_consistent()
