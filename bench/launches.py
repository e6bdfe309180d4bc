"""Racing starters on a Docker Engine: LAUNCHES attempts, each started by RACERS processes at once, must start once.

``LAUNCHES=1000 RACERS=8 make bench NAME=launches`` prints one JSON line. It starts a private engine (root, dockerd and
gcc are needed) and runs a static program that counts its own starts. The exit code is 1 unless each started once.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path

from runner.contract.run_spec import Image, Limits, Resources, RunSpec
from runner.executors.base import Launch
from runner.executors.docker_engine import DockerEngineExecutor
from tests.docker_engine import compiled, new_daemon, tar_of

WAVE = 50
PATIENCE_S = 120.0
COUNTED = """
#include <fcntl.h>
#include <unistd.h>
int main(void) {
    int file = open("starts", O_WRONLY | O_CREAT | O_APPEND, 0644);
    return file < 0 || write(file, "x", 1) != 1 || fsync(file) != 0;
}
"""
forking = multiprocessing.get_context("fork")


@dataclass(frozen=True, slots=True)
class Race:
    """The world of the racers."""

    folder: Path
    engine_url: str
    image: str

    def executor(self) -> DockerEngineExecutor:
        """An executor of this world, for one process."""
        return DockerEngineExecutor(self.folder / "control", install_id="bench", engine_url=self.engine_url)

    def launch(self, number: int) -> Launch:
        """One attempt with a run folder of its own."""
        run_folder = self.folder / "runs" / f"run-{number}"
        run_folder.mkdir(parents=True, exist_ok=True)
        spec = RunSpec(
            "fine_tune", None, {}, argv=("/count",), image=Image(self.image), resources=Resources(100, 64),
            limits=Limits(time_limit_s=60),
        )  # fmt: skip
        return Launch(run_folder.name, run_folder, spec, 1, {"run": str(number)})


def race(world: Race, launches: list[Launch], barrier: Barrier) -> None:
    """One racer: start every attempt at the same moment as the others."""
    executor = world.executor()
    for launch in launches:
        barrier.wait()
        executor.start(launch)


def run_wave(world: Race, numbers: range, racers: int) -> int:
    """How many attempts of a wave ended well after exactly one start."""
    launches = [world.launch(number) for number in numbers]
    barrier = forking.Barrier(racers)
    processes = [forking.Process(target=race, args=(world, launches, barrier)) for _ in range(racers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    failed = [process.exitcode for process in processes if process.exitcode != 0]
    if failed:
        raise SystemExit(f"{len(failed)} racers failed")
    executor = world.executor()
    deadline = time.monotonic() + PATIENCE_S
    while any(seen.state != "exited" for seen in executor.list()) and time.monotonic() < deadline:
        time.sleep(0.1)
    ended = {seen.name: seen.exit_code for seen in executor.list()}
    for name in ended:
        executor.remove(name)
    counts = {launch.name: (launch.run_folder / "work/starts").stat().st_size for launch in launches}
    return sum(counts[name] == 1 and ended.get(name) == 0 for name in counts)


def main(num_launches: int, racers: int) -> int:
    """Run all waves and print what was seen."""
    daemon = new_daemon()
    with tempfile.TemporaryDirectory(prefix="clavier-launches-") as folder:
        try:
            daemon.start()
            world = Race(Path(folder), daemon.url, daemon.images.import_tar(tar_of({"count": compiled(COUNTED)}), "c"))
            began, once = time.monotonic(), 0
            for first in range(0, num_launches, WAVE):
                once += run_wave(world, range(first, min(first + WAVE, num_launches)), racers)
            seconds = time.monotonic() - began
        finally:
            daemon.stop()
    facts = {
        "bench": "launches", "launches": num_launches, "racers": racers, "started_exactly_once": once,
        "seconds": round(seconds, 1), "launches_per_second": round(num_launches / seconds, 2),
        "cores": os.cpu_count(),
    }  # fmt: skip
    print(json.dumps(facts))
    return 0 if once == num_launches else 1


if __name__ == "__main__":
    sys.exit(main(int(os.environ.get("LAUNCHES", "1000")), int(os.environ.get("RACERS", "8"))))
