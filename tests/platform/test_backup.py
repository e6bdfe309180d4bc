"""A backup made while the platform works, restored elsewhere: all there, nothing trusted that was live."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.test_postgresql import INITDB, server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Installation:
    """A home and a database."""

    home: Path
    url: str

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "DJANGO"))}
        url = {"DATABASE_URL": self.url} if self.url else {}
        own = {"CLAVIER_HOME": str(self.home), "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'platform'}"}
        return kept | own | url | {"DISK_RESERVE_MIB": "1", "LOG_LEVEL": "ERROR"}

    def try_to(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "manage.py", *words],
            cwd=REPOSITORY, env=self.environment(), capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def manage(self, *words: str) -> str:
        done = self.try_to(*words)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout

    def world(self, verb: str) -> str:
        return self.manage("shell", "-v0", "-c", f"from tests.platform.backup_world import {verb}; {verb}()")

    def facts(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.world("tell").splitlines()[-1])
        return told


class Databases:
    """New, empty databases of one kind."""

    def __init__(self, url: str) -> None:
        self.url = url

    def another(self) -> str:
        if not self.url:
            return ""
        name = f"d{secrets.token_hex(4)}"
        with psycopg.connect(self.url.replace("postgres://", "postgresql://"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url.rsplit("/", 1)[0] + f"/{name}"


needs_postgresql = pytest.mark.skipif(INITDB is None and "CI" not in os.environ, reason="needs PostgreSQL")


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=needs_postgresql)])
def databases(request: pytest.FixtureRequest) -> Iterator[Databases]:
    if request.param == "sqlite":
        yield Databases("")
        return
    with server() as url:
        yield Databases(url)


@pytest.fixture(scope="module")
def original(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    made = Installation(tmp_path_factory.mktemp("original"), databases.another())
    made.manage("migrate", "-v0")
    made.world("make")
    return made


@pytest.fixture(scope="module")
def backup(original: Installation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made while another process uploads, deletes, submits and finishes."""
    place = tmp_path_factory.mktemp("backups")
    writer = subprocess.Popen(
        [sys.executable, "manage.py", "shell", "-v0", "-c",
         "from tests.platform.backup_world import write_forever; write_forever()"],
        cwd=REPOSITORY, env=original.environment(), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        for target in ("first", "packed.tar"):
            told = original.manage("backup", str(place / target), "--verify")
            assert "verified, 0 missing" in told
        assert writer.poll() is None, "it wrote all the time"
    finally:
        writer.kill()
        writer.wait()
    return place


@pytest.fixture
def elsewhere(databases: Databases, tmp_path: Path) -> Installation:
    return Installation(tmp_path / "elsewhere", databases.another())


@pytest.mark.parametrize("name", ["first", "packed.tar"])
def test_everything_is_there_elsewhere_and_live_trainings_are_tried_again_or_failed(original, backup, elsewhere, name):
    told = elsewhere.manage("restore", str(backup / name))
    assert "I1 to I10 hold." in told
    assert "tried again: fine_tune 'trains' (" in told
    assert "failed, no retry was left: fine_tune 'trains for the last time' (" in told
    facts = elsewhere.facts()
    assert facts["files"] == {"a.txt": "alpha", "empty": "", ".tmp-mine": "", ".tmp-mine/.tmp-b": "beta"}
    states = {"done": "COMPLETED", "trains": "RUNNING", "trains for the last time": "FAILED"}
    assert facts["states"] == states
    assert facts["attempts"]["trains"] == 2
    assert facts["messages"][-1].startswith("The platform was restored from a backup of 20")
    assert "attempt 2 in 2 s" in facts["messages"][-1]
    assert facts["last"].startswith("The platform was restored from a backup of 20")
    assert facts["trained"] == ["checkpoints/step-00000010/state", "log.txt"], "the launch writes a new spec"
    assert (facts["mount"], facts["data"]) == (f"{elsewhere.home}/runs", f"{elsewhere.home}/runs/x")
    assert facts["digest_is_right"]
    assert facts["users"] == ["alice"]
    assert (elsewhere.home / "secret_key").read_text() == (original.home / "secret_key").read_text()
    assert (elsewhere.home / "secret_key").stat().st_mode & 0o777 == 0o600


def test_a_home_that_holds_data_is_left_alone_unless_forced_and_then_set_aside(backup, databases, tmp_path):
    used = Installation(tmp_path / "used", databases.another())
    used.manage("migrate", "-v0")
    used.world("make")
    refused = used.try_to("restore", str(backup / "first"))
    assert refused.returncode == 1
    assert "--force" in refused.stderr
    told = used.manage("restore", str(backup / "first"), "--force")
    assert "I1 to I10 hold." in told
    assert "set aside; delete it when you no longer need it:" in told
    assert used.facts()["attempts"]["trains"] == 2
    (aside,) = used.home.glob(".replaced-*")
    assert (aside / "runs").is_dir()


def test_a_damaged_backup_is_refused_before_anything_changes(backup, elsewhere, tmp_path):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(backup / "first"), str(copy)], check=True)
    victim = next(copy.glob("home/runs/*/output/w.bin"))
    content = victim.read_bytes()
    victim.write_bytes(content[:-1] + b"X")
    for words in (["restore", str(copy)], ["restore", str(copy), "--verify"]):
        refused = elsewhere.try_to(*words)
        assert refused.returncode == 1
        assert f"is damaged: {victim.relative_to(copy)}. Nothing was changed here." in refused.stderr
    victim.unlink()
    assert "is damaged" in elsewhere.try_to("restore", str(copy)).stderr
    assert {path.name for path in elsewhere.home.iterdir()} <= {"secret_key", "install_id", "uploads", "up.lock"}


def test_a_cut_tar_and_a_folder_that_is_no_backup_are_refused(backup, elsewhere, tmp_path):
    cut = tmp_path / "cut.tar"
    whole = (backup / "packed.tar").read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    assert "damaged" in elsewhere.try_to("restore", str(cut)).stderr
    assert "is no backup" in elsewhere.try_to("restore", str(tmp_path)).stderr


def test_a_backup_inside_of_the_home_or_over_another_is_refused(original, backup):
    assert "inside of" in original.try_to("backup", str(original.home / "b")).stderr
    assert "exists" in original.try_to("backup", str(backup / "first")).stderr


def test_a_file_that_was_lost_before_is_named_and_does_not_prevent_the_backup(elsewhere, tmp_path):
    elsewhere.manage("migrate", "-v0")
    elsewhere.world("make")
    (lost,) = elsewhere.home.glob("files/*/*/private/a.txt")
    lost.unlink()
    done = elsewhere.try_to("backup", str(tmp_path / "b"))
    assert done.returncode == 0
    assert f"missing: home/{lost.relative_to(elsewhere.home)}" in done.stderr
    assert "1 missing" in done.stdout
