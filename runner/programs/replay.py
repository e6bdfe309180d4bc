"""Runs a finished training again and says how near it comes to the first time.

``python -m runner.programs.replay RUN_FOLDER NEW_FOLDER``. Reads the first run's ``spec.json``, its losses and its
``output/model/bundle.json``, starts the same program in NEW_FOLDER, where the paths of the spec must hold, and prints
``bit-identical``, ``within tolerance`` or ``differs at step k``. What else is not as it was (code, packages, hardware)
is told before; other data or another base end the replay, because they would be another training.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from runner.contract import exits, folder
from runner.contract.run_spec import RunSpec
from runner.programs.lib.bundle import code_hash, packages

#: Losses that are nearer count as the same.
TOLERANCE = 1e-4
LOSSES = ("train/loss", "eval/loss")
BUNDLE = Path(folder.OUTPUT) / "model" / "bundle.json"
#: What makes it another training, and the words for it.
INPUTS = {"data_sha256": "data", "base_fingerprint": "base model", "reward_fingerprint": "reward model"}


def main(first: Path, again: Path) -> int:
    """Replay the run of ``first`` in the new folder ``again``; an exit code of ``contract.exits``, or 1."""
    if not (first / BUNDLE).is_file():
        print(f"{first} has no {BUNDLE}: only a training that finished can be replayed")
        return exits.USER_ERROR
    spec = RunSpec.from_json(_read(first / folder.SPEC))
    again.mkdir()
    (again / folder.SPEC).write_text(json.dumps(spec.to_json()), encoding="utf-8")
    before = _read(first / BUNDLE)
    for line in changed(before, {"code_sha256": code_hash(), "packages": packages()}):
        print(line)
    done = subprocess.run([sys.executable, "-m", str(spec.program), str(again)])
    if done.returncode:
        print(f"the replay ended with the exit code {done.returncode}")
        return done.returncode
    after = _read(again / BUNDLE)
    others = [words for key, words in INPUTS.items() if before.get(key) != after.get(key)]
    if others:
        print(f"another {' and '.join(others)} than the first time: nothing to compare")
        return exits.USER_ERROR
    for line in changed(before["hardware"], after["hardware"]):
        print(line)
    is_near, words = verdict(losses_of(first), losses_of(again), _weights(before) == _weights(after))
    print(words)
    return exits.OK if is_near else 1


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """A line for each value that is not as it was; of dictionaries those of their values."""
    lines = []
    for name, value in after.items():
        old = before.get(name)
        if isinstance(value, dict) and isinstance(old, dict):
            lines += changed(old, {key: value.get(key) for key in {**old, **value}})
        elif old != value:
            lines.append(f"{name}: {old} then, {value} now")
    return lines


def losses_of(run: Path) -> dict[tuple[int, str], float | None]:
    """(step, name) -> loss; for a step that was reported twice the last one counts."""
    lines = (run / folder.METRICS).read_text(encoding="utf-8").splitlines()
    events = [event for event in map(json.loads, lines) if event["kind"] == "metric"]
    return {(event["step"], name): event[name] for event in events for name in LOSSES if name in event}


def verdict(
    before: dict[tuple[int, str], float | None], after: dict[tuple[int, str], float | None], are_weights_same: bool
) -> tuple[bool, str]:
    """Whether the losses are near enough, and the words for it."""
    largest = 0.0
    for step, name in sorted({*before, *after}):
        old, new = before.get((step, name)), after.get((step, name))
        if old is None or new is None or not abs(old - new) <= TOLERANCE:
            return False, f"differs at step {step}: {name} was {old}, is {new}"
        largest = max(largest, abs(old - new))
    if are_weights_same and not largest:
        return True, f"bit-identical: weights and {len(after)} losses"
    return True, f"within tolerance: {len(after)} losses, at most {largest:.2g} apart (allowed: {TOLERANCE:g})"


def _weights(bundle: dict[str, Any]) -> dict[str, str]:
    return {name: value for name, value in bundle["artifact_sha256"].items() if name.endswith(".safetensors")}


def _read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


if __name__ == "__main__":
    if len(sys.argv) != 3:
        print(f"usage: python -m {main.__module__} RUN_FOLDER NEW_FOLDER", file=sys.stderr)
        sys.exit(exits.USER_ERROR)
    sys.exit(main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()))
