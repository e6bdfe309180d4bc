"""The rehearsal of a process that is forked later: it runs through, and nothing is left of it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import torch

from runner.programs import rehearsal
from runner.programs.lib.tokenizer import spell
from runner.programs.lib.train_state import random_states, restore_random_states, seed_all


def test_a_rehearsal_runs_through_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(rehearsal, "DEVICES", ())
    environment, drawn, seed = dict(os.environ), torch.get_rng_state(), torch.initial_seed()
    assert rehearsal.rehearse()
    assert (dict(os.environ), torch.initial_seed(), list(tmp_path.iterdir())) == (environment, seed, [])
    assert torch.equal(torch.get_rng_state(), drawn)


def test_a_rehearsal_that_fails_hurts_nobody(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(place: Path) -> None:
        os.environ["HALF"] = "done"
        raise OSError("the disk is full")

    monkeypatch.setattr(rehearsal, "train_in", fail)
    monkeypatch.setattr(rehearsal, "DEVICES", ())
    assert not rehearsal.rehearse()
    assert "HALF" not in os.environ
    assert "the disk is full" in capsys.readouterr().err


def test_nothing_is_computed_where_that_could_open_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "DEVICES", (str(tmp_path),))
    monkeypatch.setattr(rehearsal, "train_in", lambda place: pytest.fail("it computed"))
    assert not rehearsal.rehearse()


def test_what_is_spelled_is_read_again() -> None:
    tokenizer = spell()
    token_ids = tokenizer.encode("Zwei 琴?").ids
    assert len(token_ids) == len("Zwei 琴?".encode())
    assert tokenizer.decode(token_ids) == "Zwei 琴?"


def test_a_seed_means_the_same_as_to_torch() -> None:
    before = random_states()
    try:
        seed_all(5)
        drawn = torch.rand(3)
        torch.manual_seed(5)
        assert torch.equal(torch.rand(3), drawn)
    finally:
        restore_random_states(before)
