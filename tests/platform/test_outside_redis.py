"""REDIS_URL: the platform's jobs over a Redis server of somebody else, with a password, on TCP."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from clavier.core.embedded_queue import server_binary

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
ENQUEUE = "from clavier.runs import queue; print(queue.ping(), queue.enqueue(queue.SCHEDULE_JOB))"


@pytest.fixture
def redis_url(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(server_binary()), "--port", str(port), "--bind", "127.0.0.1", "--requirepass", "p:w@1"]
    server = subprocess.Popen([*command, "--save", "", "--dir", str(tmp_path)], stdout=subprocess.DEVNULL)
    url = f"redis://:p%3Aw%401@127.0.0.1:{port}/3"
    client = redis.Redis.from_url(url)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            client.ping()
            break
        except redis.ConnectionError:
            time.sleep(0.05)
    yield url
    server.terminate()
    server.wait(timeout=10)


def test_a_job_is_enqueued_and_worked_off_over_an_outside_redis(redis_url, tmp_path):
    environment = os.environ | {"REDIS_URL": redis_url, "CLAVIER_HOME": str(tmp_path / "home")}

    def manage(*words: str) -> str:
        told = subprocess.run(
            [sys.executable, "manage.py", *words],
            cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert told.returncode == 0, told.stderr[-3000:]
        return told.stdout + told.stderr

    manage("migrate", "--verbosity", "0")
    assert "True True" in manage("shell", "-c", ENQUEUE)
    log = manage(
        "rqworker", "default", "--burst", "--name", "w", "--worker-class", "clavier.core.rq_worker.ShortJobWorker",
        "--serializer", "rq.serializers.JSONSerializer",
    )  # fmt: skip
    assert "runner.worker.jobs.schedule" in log
    assert "Job OK" in log or "OK" in log
    assert redis.Redis.from_url(redis_url).llen("rq:queue:default") == 0
