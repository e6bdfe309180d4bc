"""``python -m tests.chaos --faults 200 --jobs 50 --seed 7 --executor local_process --database sqlite``"""

from __future__ import annotations

import argparse
import json
import signal
import sys

from tests.chaos.controller import Plan, campaign, new_seed

BAD = ("lost", "duplicated", "overlapping", "leaked", "stuck")


def main() -> int:
    """Print the line; 1 when anything went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=40)
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=None, help="the same seed gives the same dice")
    parser.add_argument("--executor", choices=["local_process", "docker_engine"], default="local_process")
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--pause", type=float, default=1.5, help="mean seconds between faults")
    parser.add_argument("--keep", action="store_true", help="leave the folder with logs and journals")
    given = parser.parse_args()
    seed = new_seed() if given.seed is None else given.seed
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that it cleans up after itself
    plan = Plan(given.faults, given.jobs, seed, given.executor, given.database, given.pause)
    line = campaign(plan, keep=given.keep)
    sys.stdout.write(json.dumps(line) + "\n")
    return int(any(line[word] for word in BAD))


if __name__ == "__main__":
    sys.exit(main())
