"""Which container of a gang decides why it ended."""

from __future__ import annotations

import pytest

from runner.executors.base import Cause, Observation
from runner.worker.ranks import Rank, decisive


def rank(number: int, cause: Cause, exit_code: int | None, ended_at: float) -> Rank:
    seen = Observation(str(number), "exited", "d", exit_code=exit_code, cause=cause, ended_at=ended_at)
    return Rank(number, str(number), ("fake", ""), seen)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ([("exit", 0, 1.0), ("exit", 0, 2.0)], 0),
        ([("exit", 1, 10.0), ("exit", 137, 40.0)], 0),
        ([("exit", 1, 11.0), ("lost", None, 10.0)], 1),
        ([("exit", 1, 10.0), ("exit", 137, 12.0)], 1),
        ([("stopped", 143, 9.0), ("exit", 1, 10.0)], 1),
    ],
)
def test_the_first_failure_decides_and_what_was_killed_with_it_comes_first(
    ends: list[tuple[Cause, int | None, float]], expected: int
) -> None:
    assert decisive([rank(number, *end) for number, end in enumerate(ends)]).number == expected
