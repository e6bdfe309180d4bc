"""Manifests, sealed checkpoints and fingerprints."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from runner.contract.folder import MANIFEST
from runner.programs.lib import artifacts


def seal(folder: Path, step: int, text: str = "weights") -> Path:
    return artifacts.seal_checkpoint(
        folder, step, lambda target: _write(target / "w.safetensors", text), {"eval/loss": 1.0}
    )


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def test_a_manifest_names_every_file_below_with_size_and_hash(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    _write(tmp_path / "model" / "config.json", "{}")
    _write(tmp_path / ".tmp-left", "x")
    manifest = artifacts.write_manifest(tmp_path, "model", {"a": 1}, {"train/loss": 2.0})
    assert manifest == json.loads((tmp_path / MANIFEST).read_text(encoding="utf-8"))
    assert [(entry["path"], entry["size"]) for entry in manifest["files"]] == [("model/config.json", 2)]
    assert artifacts.is_whole(tmp_path)


def test_the_newest_sealed_checkpoint_is_found(tmp_path: Path) -> None:
    assert artifacts.newest_sealed(tmp_path / "none") is None
    seal(tmp_path, 9)
    assert artifacts.newest_sealed(tmp_path) != seal(tmp_path, 100)
    assert artifacts.newest_sealed(tmp_path) == tmp_path / "step-00000100"


@pytest.mark.parametrize("damage", ["cut", "flip", "no_file", "no_manifest", "broken_manifest"])
def test_a_damaged_checkpoint_goes_to_quarantine_and_the_one_before_counts(tmp_path: Path, damage: str) -> None:
    good, bad = seal(tmp_path, 1), seal(tmp_path, 2)
    weights = bad / "w.safetensors"
    if damage == "cut":
        _write(weights, "weigh")
    elif damage == "flip":
        _write(weights, "weighty")
    elif damage == "no_file":
        weights.unlink()
    elif damage == "no_manifest":
        (bad / MANIFEST).unlink()
    else:
        _write(bad / MANIFEST, '{"files": [')
    assert artifacts.newest_sealed(tmp_path) == good
    assert not bad.exists()
    assert [path.name for path in (tmp_path / artifacts.QUARANTINE).iterdir()] == ["000-step-00000002"]


def test_a_write_that_dies_half_way_leaves_no_checkpoint(tmp_path: Path) -> None:
    def die(target: Path) -> None:
        _write(target / "w.safetensors", "half")
        raise KeyboardInterrupt

    seal(tmp_path, 1)
    with pytest.raises(KeyboardInterrupt):
        artifacts.seal_checkpoint(tmp_path, 2, die, {})
    assert artifacts.newest_sealed(tmp_path) == tmp_path / "step-00000001"
    assert not list(tmp_path.glob(".tmp-*"))


def test_sealing_a_step_again_replaces_it(tmp_path: Path) -> None:
    seal(tmp_path, 1)
    again = seal(tmp_path, 1, "other")
    assert artifacts.newest_sealed(tmp_path) == again
    assert (again / "w.safetensors").read_text(encoding="utf-8") == "other"


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    best = seal(tmp_path, 1)
    for step in (2, 3, 4, 5):
        seal(tmp_path, step)
    artifacts.prune_checkpoints(tmp_path, 2, protected=best)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000001", "step-00000004", "step-00000005"]
    artifacts.prune_checkpoints(tmp_path, 0)
    assert len(list(tmp_path.glob("step-*"))) == 2


def test_the_fingerprint_follows_weights_and_names_and_not_the_card(tmp_path: Path) -> None:
    _write(tmp_path / "model.safetensors", "w")
    first = artifacts.hash_folder(tmp_path)
    _write(tmp_path / "model_card.md", "text")
    _write(tmp_path / MANIFEST, "{}")
    assert artifacts.hash_folder(tmp_path) == first
    os.rename(tmp_path / "model.safetensors", tmp_path / "other.safetensors")
    assert artifacts.hash_folder(tmp_path) != first
