"""P1: from a submission to the first optimizer step, warm, beside a fresh ``python train.py``.

``python -m bench.start [--quick]``. A platform of its own (``manage.py up``: SQLite, embedded queue, local processes)
on a temporary home gets the same tiny model and the same eight rows as ``bench/fresh_train.py``. In turns, several
warm submissions through the API and one fresh process. The first submission, which finds no zygote, is the cold one;
its loss at step 1 and that of every warm run must be the same number, and the fresh script's within 1e-3.

Wall times of a warm run, in milliseconds, in order: ``api`` (the POST), ``schedule`` (from its start to the attempt's
row), ``launch`` (to the written intent), ``fork`` (to the wrapper's mark that the program counts as started),
``become`` (to the program's first line), ``data``, ``weights``, ``step``. ``rest`` is the sum without weights and step.
CPU seconds are those of all processes of the platform and of the run in that time, whatever they did.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import requests

from clavier.demo.client import Client
from runner.executors import process_tree

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "start.json"
ROWS = [{"question": f"How many is {n} and one?", "answer": f"It is {n + 1}."} for n in range(8)]
KNOBS = {
    "max_steps": 12, "logging_steps": 1, "save_steps": 1000, "per_device_train_batch_size": len(ROWS), "lora_r": 16,
    "lora_alpha": 32, "lora_dropout": 0.0, "learning_rate": 2e-4, "lr_scheduler_type": "constant", "warmup_ratio": 0.0,
    "precision": "fp32", "seed": 42, "max_seq_length": 128,
}  # fmt: skip
ROUNDS, WARM_EACH = 5, 8
QUICK_ROUNDS, QUICK_WARM_EACH = 3, 4
PATIENCE_S = 300.0
PHASES = ("api", "schedule", "launch", "fork", "become", "data", "weights", "step")
PARTS = ("up", "front", "web", "queue", "workers", "reconciler")
OFFLINE = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def main() -> None:
    """Measure, write the lines down, print them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="few rounds: a look, no figures")
    is_quick = parser.parse_args().quick
    rounds, each = (QUICK_ROUNDS, QUICK_WARM_EACH) if is_quick else (ROUNDS, WARM_EACH)
    with running_platform() as bench:
        cold = bench.submit()
        bench.wait_for_zygote()
        bench.submit()  # the first fork finds its files in no cache
        idle_cpu = bench.idle_cpu_s()
        warm: list[dict[str, Any]] = []
        fresh: list[dict[str, Any]] = []
        for number in range(rounds):
            if number % 2:
                fresh.append(bench.train_by_hand())
            warm += [bench.submit() for _ in range(each)]
            if not number % 2:
                fresh.append(bench.train_by_hand())
        memory = bench.memory()
    check_parity(cold, warm, fresh)
    lines = [json.dumps(line) for line in report(cold, warm, fresh, idle_cpu, memory)]
    if not is_quick:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


class Bench:
    """A platform that is up, with data and model, and what it costs."""

    def __init__(self, home: Path, origin: str, api_key: str, process: subprocess.Popen[bytes]) -> None:
        self._home = home
        self._client = Client(origin, api_key)
        self._process = psutil.Process(process.pid)
        self._names = iter(range(10**6))
        self._data = self._client.upload_dataset("rows", home / "rows.jsonl")["newest_version"]["id"]
        model = {"name": "tiny", "source": "path", "location": str(home / "models" / "tiny")}
        self._model = self._client.post("/api/v1/models", model)["id"]
        wait_until("the model", lambda: self._client.get(f"/api/v1/model-versions/{self._model}")["state"] == "ready")

    def submit(self) -> dict[str, Any]:
        """One run, from the POST to its end: phases in ms, CPU seconds to the first step, the loss there."""
        body = {
            "name": f"run-{next(self._names)}", "train_dataset": self._data, "base_model": self._model,
            "recipe": "sft", "method": "lora", "hyperparameters": KNOBS,
        }  # fmt: skip
        cpu_before, helper_before = self.platform_cpu_s(), self.zygote_cpu_s()
        began = time.time()
        run_id = self._client.post("/api/v1/fine-tune-tasks", body)["run"]["id"]
        answered = time.time()
        metrics = self._home / "runs" / run_id / "metrics.jsonl"
        wrapper = wait_until("the start", lambda: self.wrapper_of(run_id), every_s=0.005)
        while not (step := first_step(metrics)):
            time.sleep(0.002)
        # First what goes on: the program is at its second step now.
        cpu = {"wrapper": cpu_of([wrapper]), "program": cpu_of(process_tree.descendants(wrapper))}
        at = time.time()
        cpu |= {name: used - cpu_before[name] for name, used in self.platform_cpu_s().items()}
        cpu["zygote"] = self.zygote_cpu_s() - helper_before
        place = self.control_folder(run_id)
        started = json.loads((place / "started.json").read_text())
        launched = (place / "launch.json").stat().st_mtime
        run = wait_until("the run's end", lambda: self.ended(run_id))
        if run["state"] != "COMPLETED":
            raise ValueError(f"{run['state']}: {run['message']}")
        attempt = datetime.fromisoformat(run["attempts"][0]["created_at"]).timestamp()
        told = {event["name"]: event["t"] for event in events_of(metrics) if event["kind"] == "phase"}
        main_at = at - step["t"]
        wall = {
            "api": answered - began, "schedule": attempt - began, "launch": launched - attempt,
            "fork": started["started_at"] - launched, "become": main_at - started["started_at"], "data": told["data"],
            "weights": told["model"] - told["data"], "step": step["t"] - told["model"],
        }  # fmt: skip
        total = at - began
        return {
            **{name: wall[name] * 1e3 for name in PHASES}, "total": total * 1e3,
            "rest": (total - wall["weights"] - wall["step"]) * 1e3,
            "cpu_s": sum(cpu.values()), **{f"cpu_{name}": value for name, value in cpu.items()},
            "loss": step["train/loss"],
        }  # fmt: skip

    def ended(self, run_id: str) -> dict[str, Any] | None:
        """The run, once it has ended and its attempt is forgotten."""
        run = self._client.get(f"/api/v1/runs/{run_id}")
        return run if run["ended_at"] is not None and not self.attempts() else None

    def attempts(self) -> list[Path]:
        """Control sub-folders."""
        return [path for path in (self._home / "executors/local_process").iterdir() if path.name[0] != "."]

    def wrapper_of(self, run_id: str) -> int:
        """The process id of the wrapper of a run's attempt; 0 before it has started the program."""
        with suppress(ValueError, OSError):
            return int(json.loads((self.control_folder(run_id) / "started.json").read_text())["wrapper"])
        return 0

    def control_folder(self, run_id: str) -> Path:
        """That of a run's attempt."""
        for path in self.attempts():
            if json.loads((path / "launch.json").read_text())["labels"]["run"] == run_id:
                return path
        raise ValueError(f"no attempt of {run_id}")

    def wait_for_zygote(self) -> None:
        """Raises TimeoutError."""
        wait_until("the zygote", (self._home / "executors/local_process/.warm/zygote.sock").exists)

    def zygote(self) -> int:
        """Its process id: who holds its lock. 0 before there is one."""
        lock = self._home / "executors/local_process/.warm/lock"
        if not lock.exists():
            return 0
        inode = f":{lock.stat().st_ino} "
        held = [line.split() for line in Path("/proc/locks").read_text().splitlines() if inode in line]
        return int(held[0][4]) if held else 0

    def zygote_cpu_s(self) -> float:
        """CPU seconds of the zygote itself."""
        pid = self.zygote()
        return cpu_of([pid]) if pid else 0.0

    def platform_cpu_s(self) -> dict[str, float]:
        """CPU seconds of the parts of ``up``, with all their processes, ended ones too."""
        found = dict.fromkeys(PARTS, 0.0)
        for part in [self._process, *self._process.children()]:
            name = part_of(part.cmdline())
            for process in [part, *(part.children(recursive=True) if part is not self._process else [])]:
                with suppress(psutil.NoSuchProcess):
                    found[name] += sum(process.cpu_times()[:4])
        return found

    def idle_cpu_s(self) -> float:
        """CPU seconds a second of a platform that has nothing to do."""
        before, began = sum(self.platform_cpu_s().values()), time.monotonic()
        time.sleep(3)
        return (sum(self.platform_cpu_s().values()) - before) / (time.monotonic() - began)

    def memory(self) -> dict[str, int]:
        """MiB that are held by ``up`` and by its zygote, shared pages divided (Pss)."""
        pids = [self._process.pid, *(child.pid for child in self._process.children(recursive=True))]
        return {"platform_mib": sum(map(pss_mib, pids)), "zygote_mib": pss_mib(self.zygote())}

    def train_by_hand(self) -> dict[str, Any]:
        """A fresh process from its start to its first step."""
        command = [sys.executable, str(ROOT / "bench" / "fresh_train.py"), str(self._home / "models" / "tiny")]
        began = time.time()
        done = subprocess.run(
            [*command, str(self._home / "rows.jsonl")], env={**os.environ, **OFFLINE}, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        told = json.loads(done.stdout.splitlines()[-1])
        return {"total": (told["at"] - began) * 1e3, "cpu_s": told["cpu_s"], "loss": told["loss"]}


@contextmanager
def running_platform() -> Iterator[Bench]:
    """``manage.py up`` with a tiny model and a few rows, on a home that is removed afterwards."""
    home = Path("/tmp") / f"clavier-start-{secrets.token_hex(4)}"
    home.mkdir(mode=0o755)
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, **OFFLINE, "CLAVIER_HOME": str(home), "MODEL_PATHS": str(home / "models")}
    environment |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}", "DJANGO_SETTINGS_MODULE": "clavier.config.settings"}
    manage = [sys.executable, str(ROOT / "manage.py")]
    script = "import sys; from pathlib import Path; from tests.programs.tiny_models import write_tiny_model as write"
    script += "; write(Path(sys.argv[1]), 'qwen2')"
    subprocess.run([sys.executable, "-c", script, str(home / "models" / "tiny")], env=environment, cwd=ROOT, check=True)
    for path in (home / "models").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    up = None
    try:
        with open(home / "up.log", "wb") as log:
            up = subprocess.Popen([*manage, "up", "--port", str(port)], env=environment, stdout=log, stderr=log)
        origin = f"http://127.0.0.1:{port}"
        wait_until("the platform", lambda: is_ready(origin))
        made = subprocess.run(
            [*manage, "create_user", "bench", "--tenant", "bench", "--password", secrets.token_hex(8), "--json"],
            env=environment, stdout=subprocess.PIPE, check=True,
        )  # fmt: skip
        yield Bench(home, origin, json.loads(made.stdout)["api_key"], up)
    finally:
        if up is not None:
            up.terminate()
            up.wait(30)
        shutil.rmtree(home, ignore_errors=True)


def is_ready(origin: str) -> bool:
    """Whether a platform answers."""
    try:
        return requests.get(f"{origin}/readyz", timeout=5).ok
    except requests.RequestException:
        return False


def wait_until(what: str, condition: Any, every_s: float = 0.1) -> Any:
    """What a condition gives once it is true. Raises TimeoutError."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(every_s)
    raise TimeoutError(f"{what}: not within {PATIENCE_S:g} s")


def first_step(metrics: Path) -> dict[str, Any] | None:
    """The event of step 1, once it is written."""
    return next((event for event in events_of(metrics) if event["kind"] == "metric"), None)


def events_of(metrics: Path) -> list[dict[str, Any]]:
    """All whole lines so far."""
    if not metrics.exists():
        return []
    return [json.loads(line) for line in metrics.read_text().splitlines(keepends=True) if line.endswith("\n")]


def cpu_of(pids: list[int]) -> float:
    """CPU seconds of processes, all threads, to the nanosecond."""
    found = 0
    for pid in pids:
        for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            found += int(path.read_text().split()[0])
    return found / 1e9


def pss_mib(pid: int) -> int:
    """MiB of a process, a shared page counted in parts; 0 when it has just ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) // 1024
    return 0


def check_parity(cold: dict[str, Any], warm: list[dict[str, Any]], fresh: list[dict[str, Any]]) -> None:
    """Raises ValueError where one side computes something else."""
    if {run["loss"] for run in warm} != {cold["loss"]}:
        raise ValueError(f"warm losses differ from the cold one, {cold['loss']}: {[run['loss'] for run in warm]}")
    if any(abs(run["loss"] - cold["loss"]) > 1e-3 for run in fresh):
        raise ValueError(f"the fresh script has another loss: {fresh[0]['loss']}, ours {cold['loss']}")


def report(
    cold: dict[str, Any],
    warm: list[dict[str, Any]],
    fresh: list[dict[str, Any]],
    idle_cpu: float,
    memory: dict[str, int],
) -> Iterator[dict[str, Any]]:
    """The lines: both sides, the phases, and the bar's three figures."""
    facts = {
        "bench": "start", "python": platform.python_version(), "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1), "warm_runs": len(warm), "fresh_runs": len(fresh),
    }  # fmt: skip
    for phase in (*PHASES, "total", "rest"):
        values = sorted(run[phase] for run in warm)
        yield {**facts, "measure": phase, "wall_ms": percentiles(values)}
    yield {**facts, "measure": "cold_submission", "wall_ms": round(cold["total"]), "cpu_s": round(cold["cpu_s"], 2)}
    yield {**facts, "measure": "fresh_process", "wall_ms": percentiles([run["total"] for run in fresh])}
    for part in ("cpu_s", *(f"cpu_{name}" for name in (*PARTS, "zygote", "wrapper", "program"))):
        values = [run[part] * 1e3 for run in warm]
        yield {**facts, "measure": part.removesuffix("_s"), "cpu_ms": {**percentiles(values), "mean": mean(values)}}
    yield {**facts, "measure": "cpu_fresh", "cpu_ms": percentiles([run["cpu_s"] * 1e3 for run in fresh])}
    ratio = statistics.median(run["cpu_s"] for run in fresh) / statistics.median(run["cpu_s"] for run in warm)
    wall_ratio = statistics.median(run["total"] for run in fresh) / statistics.median(run["total"] for run in warm)
    yield {**facts, "measure": "ratio", "cpu": round(ratio, 1), "wall": round(wall_ratio, 1),
           "idle_platform_cpu_s_per_s": round(idle_cpu, 3), "loss": cold["loss"], **memory}  # fmt: skip


def part_of(words: list[str]) -> str:
    """Which part of ``up`` a command line is."""
    line = " ".join(words)
    names = {"asgi:application": "front", "wsgi:application": "web", "rqworker": "workers", "reconcile": "reconciler"}
    return next((name for word, name in names.items() if word in line), "queue" if "unixsocket" in line else "up")


def mean(values: list[float]) -> float:
    """Clock ticks are coarse, their mean is not."""
    return round(statistics.fmean(values), 1)


def percentiles(values: list[float]) -> dict[str, float]:
    """Median, p99, least and most."""
    values = sorted(values)
    p99 = values[min(len(values) - 1, int(len(values) * 0.99))]
    return {"p50": round(statistics.median(values), 1), "p99": round(p99, 1), "min": round(values[0], 1),
            "max": round(values[-1], 1)}  # fmt: skip


if __name__ == "__main__":
    main()
