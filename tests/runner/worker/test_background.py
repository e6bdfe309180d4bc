"""What the reconciler leaves to threads of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable

from runner.executors.base import ExecutorError
from runner.worker.background import MOST_AT_ONCE, Background

PATIENCE_S = 60.0


class Slow:
    """A verb that waits until it may go on, or fails then."""

    def __init__(self, error: Exception | None = None) -> None:
        self.began, self.may_end, self.calls = threading.Semaphore(0), threading.Event(), 0
        self.error = error

    def __call__(self) -> None:
        self.calls += 1
        self.began.release()
        assert self.may_end.wait(PATIENCE_S)
        if self.error is not None:
            raise self.error


def do_until(done: Callable[[], bool], again: Callable[[], None]) -> None:
    """The passes of a reconciler: they ask again and again."""
    for _ in range(int(PATIENCE_S * 100)):
        if done():
            return
        again()
        threading.Event().wait(0.01)
    raise AssertionError("it was never done")


def test_nothing_is_done_twice_at_the_same_time_and_others_go_on():
    do, hanging, other = Background(), Slow(), Slow()
    for _ in range(3):
        do("start a", hanging)
    do("start b", other)
    assert hanging.began.acquire(timeout=PATIENCE_S)
    assert other.began.acquire(timeout=PATIENCE_S)
    assert hanging.calls == 1
    for slow in (hanging, other):
        slow.may_end.set()


def test_what_failed_is_done_again_when_it_is_asked_for_again():
    for error in (ExecutorError("the engine is away"), ValueError("a bug")):
        do, failing = Background(), Slow(error)
        failing.may_end.set()
        do_until(lambda failing=failing: failing.calls >= 2, lambda do=do, failing=failing: do("stop a", failing))


def test_a_hanging_engine_takes_only_so_many_threads():
    do, hanging = Background(), [Slow() for _ in range(MOST_AT_ONCE + 1)]
    for number, slow in enumerate(hanging):
        do(f"start {number}", slow)
    assert all(slow.began.acquire(timeout=PATIENCE_S) for slow in hanging[:-1])
    assert hanging[-1].calls == 0
    for slow in hanging:
        slow.may_end.set()
    do_until(lambda: hanging[-1].calls == 1, lambda: do("start last", hanging[-1]))
