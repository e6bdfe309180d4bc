"""What makes the reconciler's loop look earlier than at its next turn."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from runner.executors.base import ExecutorError
from runner.executors.fake import FakeExecutor
from runner.executors.local_process import LocalProcessExecutor
from runner.worker import bells
from runner.worker.bells import Bells
from runner.worker.engines import Engine

LONG_S = 60.0


class Ringer(FakeExecutor):
    """Rings when told; the first time it only fails."""

    def __init__(self) -> None:
        super().__init__()
        self.rope = threading.Semaphore(0)
        self.calls = 0

    def rings(self) -> Iterator[None]:
        self.calls += 1
        if self.calls == 1:
            raise ExecutorError("the engine is away")
        while self.rope.acquire(timeout=LONG_S):
            yield


def test_a_ring_ends_the_wait_also_after_the_engine_was_away(monkeypatch):
    monkeypatch.setattr(bells, "AGAIN_S", 0.0)
    ringer, heard = Ringer(), Bells()
    heard.attend({Engine("docker_engine"): ringer, Engine("fake"): FakeExecutor()})
    heard.attend({Engine("docker_engine"): ringer})
    ringer.rope.release()
    assert heard.wait(0.0, LONG_S)
    assert ringer.calls == 2, "one thread listens, and again"


def test_without_a_ring_the_wait_is_over_in_its_time():
    assert not Bells().wait(0.0, 0.01)


def test_the_local_executor_rings_when_a_wrapper_writes(tmp_path):
    executor = LocalProcessExecutor(tmp_path / "control")
    ringing = executor.rings()
    attempt = tmp_path / "control" / "attempt"
    timer = threading.Timer(0.3, attempt.mkdir)
    timer.start()
    next(ringing)
    assert attempt.is_dir()
    timer = threading.Timer(0.3, (attempt / "result.json").touch)
    timer.start()
    next(ringing)
    assert (attempt / "result.json").exists()
