"""What a zygote of the tests forks: ``python -m tests.runner.executors.probe SOURCE`` runs Python source."""

from __future__ import annotations

import sys


def preload() -> None:
    """Nothing: the programs of the tests need none of the large libraries."""


if __name__ == "__main__":
    exec(compile(sys.argv[1], "<string>", "exec"), {"__name__": "__main__"})
