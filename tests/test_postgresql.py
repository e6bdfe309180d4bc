"""The suites that lean on the database, once more on a real PostgreSQL server that this test starts."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SUITES = ("tests/platform/accounts", "tests/platform/runs", "tests/platform/quotas", "tests/platform/files",
          "tests/runner/worker", "tests/datasets_app", "tests/models_app", "tests/finetune_app",
          "tests/evaluation_app", "tests/inference_app", "tests/api")  # fmt: skip

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
INITDB = str(BINARIES[-1]) if BINARIES else shutil.which("initdb")

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    # In CI it must be there: a silent skip would hide a missing install step.
    pytest.mark.skipif(
        INITDB is None and "CI" not in os.environ, reason="needs PostgreSQL: apt-get install postgresql"
    ),
]


def test_every_suite_of_the_database_passes_on_postgresql():
    passes_on_postgresql("--database-only", "-m", "not slow", *SUITES)


def test_the_storm_on_quotas_holds_on_postgresql():
    passes_on_postgresql("tests/platform/quotas/test_storm.py")


def passes_on_postgresql(*arguments: str) -> None:
    """Run pytest with the arguments on a new server."""
    with server() as url, tempfile.TemporaryDirectory(prefix="clavier-tests-") as folder:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "--reruns", "1", "-p", "no:cacheprovider", *arguments]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        # A session sets the rights of the folder above all of its own: this one shall not do so beside the outer one.
        told = subprocess.run(
            command,
            cwd=REPOSITORY,
            env=environment | {"DATABASE_URL": url, "PYTEST_DEBUG_TEMPROOT": folder},
            capture_output=True,
            text=True,
            check=False,
        )
    assert told.returncode == 0, told.stdout[-6000:]
    assert " passed" in told.stdout


@contextmanager
def server() -> Iterator[str]:
    """A new cluster on a free port of the loopback interface; its URL."""
    assert INITDB, "PostgreSQL is not installed: apt-get install postgresql"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="clavier-pg-") as place:
        as_user: list[str] = []
        if os.geteuid() == 0:  # the server refuses to run as root
            account = pwd.getpwnam("postgres")
            os.chown(place, account.pw_uid, account.pw_gid)
            as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        data = f"{place}/data"
        quiet = {"stdout": subprocess.DEVNULL, "check": True, "cwd": place}
        subprocess.run([*as_user, INITDB, "-D", data, "-U", "clavier", "-A", "trust", "--no-sync"], **quiet)
        options = f"-p {port} -k {place} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=50"
        control = [*as_user, str(Path(INITDB).with_name("pg_ctl")), "-D", data, "-w"]
        subprocess.run([*control, "-o", options, "-l", f"{place}/log", "start"], **quiet)
        try:
            yield f"postgres://clavier@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], **quiet)
