"""Near duplicates among many rows: ``python -m bench.near 1000000`` prints one JSON line.

Rows of 30 words out of 20,000, all different. CPU-seconds and peak memory of this process, the libraries included.
"""

from __future__ import annotations

import json
import os
import random
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from runner.programs.lib.near import NearTexts, Text, in_blocks


def texts(count: int) -> Iterator[Text]:
    """The rows, the same each time."""
    draw = random.Random(5)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(20_000)]
    for number in range(count):
        yield Text(number, number, " ".join(draw.choices(words, k=30)))


def main() -> None:
    """Look all rows up in themselves."""
    count = int(sys.argv[1])
    with TemporaryDirectory() as folder, NearTexts(0.8, Path(folder) / "near") as near:
        for block in in_blocks(texts(count), lambda text: len(text.text)):
            near.look_up(block, remember="different")
        on_disk = sum(path.stat().st_size for path in (Path(folder) / "near").iterdir())
    peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    facts = {
        "rows": count,
        "cpu_s": round(time.process_time(), 1),
        "peak_mib": int(peak[1]) // 1024 if peak else None,
        "disk_bytes_a_row": on_disk // max(1, near.remembered),
        "comparisons": near.comparisons,
        "load": os.getloadavg()[0],
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
