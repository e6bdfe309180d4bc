"""`manage.py up`: the whole platform on this machine, in the foreground."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import time
from argparse import ArgumentParser
from collections.abc import Mapping
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.staticfiles.finders import get_finders
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, OutputWrapper
from django.db import OperationalError, connections

from clavier.accounts.services import OPERATOR_NAME, ensure_first_operator
from clavier.core import embedded_queue
from clavier.core.supervise import AlreadyRunning, Child, Supervisor, only_one

#: A slow download holds its thread for as long as it lasts, so there are more threads than cores.
WEB_THREADS = 16
#: Open downloads and streams are cut this long after a stop was asked for.
SERVER_STOP_GRACE_S = 2
READY_TIMEOUT_S = 0.5
DATABASE_PATIENCE_S = 60.0
PRIVATE_FOLDER_MODE = 0o700


class Command(BaseCommand):
    """Migrate, make the first operator, then run and watch every process until Ctrl-C or SIGTERM."""

    requires_system_checks = ["clavier"]  # the others import every page, and running trainings wait to be adopted
    help = "Run the whole platform in the foreground: queue, web, front, workers and reconciler, supervised."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 is every one")
        parser.add_argument("--port", type=int, default=8000, help="port to listen on")
        parser.add_argument("--workers", type=int, default=2, help="queue workers, one process each")

    def handle(self, *, host: str, port: int, workers: int, **_: Any) -> None:
        if workers < 1:
            raise CommandError(f"--workers is {workers}; at least 1 is needed.")
        settings.CLAVIER_HOME.mkdir(parents=True, exist_ok=True)
        try:
            with only_one(settings.CLAVIER_HOME / "up.lock"):
                refuse_port_in_use(host, port)
                prepare_patiently(self.stdout)
                supervisor = Supervisor(platform_children(host, port, workers), log_folder(), sys.stdout)
                note_origin(host, port)
                code = supervisor.run(partial(answers_ok, host, port, "/readyz"), banner(host, port))
        except (AlreadyRunning, FileNotFoundError) as error:
            raise CommandError(str(error)) from None
        if code:
            sys.exit(code)


def prepare_patiently(out: OutputWrapper) -> None:
    """Prepare; a database server that is being started, perhaps beside us, is waited for. Raises CommandError."""
    deadline = time.monotonic() + DATABASE_PATIENCE_S
    while True:
        try:
            return prepare(out)
        except OperationalError as error:
            reason = str(error).splitlines()[0]
            connections.close_all()
            if time.monotonic() > deadline:
                raise CommandError(f"The database does not answer: {reason}") from None
            out.write(f"The database does not answer yet ({reason}); trying again.")
            time.sleep(1)


def prepare(out: OutputWrapper) -> None:
    """Migrate, make the first operator and tell its password, collect static files; again and again without harm."""
    make_private_folder(settings.CLAVIER_RUN_DIR)
    # The database of a first start is its user's alone: a program may run as another user on this machine.
    umask = os.umask(0o077)
    try:
        call_command("migrate", interactive=False, verbosity=0)
        password = ensure_first_operator()
        collect_static_files()
    finally:
        os.umask(umask)
    if password:
        out.write(f"\n  First start. Sign in as {OPERATOR_NAME} with the password {password}")
        out.write("  It is not shown again.\n\n")
    connections.close_all()  # the children open their own


def refuse_port_in_use(host: str, port: int) -> None:
    """Raises CommandError when nobody could listen there."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "a port is a number from 0 to 65535"
        raise CommandError(
            f"Can not listen on {host}:{port} ({reason}). Choose another port: make up PORT=8001"
        ) from None


def note_origin(host: str, port: int) -> None:
    """Leave the address for programs on this machine that look for the platform, such as the demo."""
    (settings.CLAVIER_RUN_DIR / "origin").write_text(origin(host, port))


def make_private_folder(folder: Path) -> None:
    """A folder that only this user enters. Raises CommandError when it belongs to somebody else."""
    folder.mkdir(parents=True, exist_ok=True, mode=PRIVATE_FOLDER_MODE)
    if folder.stat().st_uid != os.getuid():
        raise CommandError(f"{folder} belongs to another user; remove it or set CLAVIER_HOME to another folder.")
    folder.chmod(PRIVATE_FOLDER_MODE)


def collect_static_files() -> None:
    """Run collectstatic when a static file of any app is newer or other than at the last time."""
    digest = hashlib.sha256()
    for finder in get_finders():
        for name, storage in finder.list(None):
            facts = os.stat(storage.path(name))
            digest.update(f"{name} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    stamp = Path(settings.STATIC_ROOT) / ".collected"
    if not stamp.exists() or stamp.read_text() != digest.hexdigest():
        call_command("collectstatic", interactive=False, verbosity=0, clear=True)
        stamp.write_text(digest.hexdigest())


def platform_children(host: str, port: int, workers: int) -> list[Child]:
    """The processes in the order of their start. Raises FileNotFoundError without a queue server."""
    env = child_environment()
    web_socket = settings.CLAVIER_RUN_DIR / "web.sock"
    web = granian("wsgi", "clavier.config.wsgi:application", "--uds", web_socket, "--uds-permissions", "0o600")
    front = granian("asgi", "clavier.config.asgi:application", "--host", host, "--port", port)
    children = [
        # First, since runs may have gone on without a platform.
        Child("reconciler", manage("reconcile"), env),
        Child(
            "web",
            [*web, "--blocking-threads", str(WEB_THREADS)],
            env,
            partial(accepts, web_socket),
            # A killed server leaves its socket behind, and granian refuses an address that is there.
            prepare=partial(web_socket.unlink, missing_ok=True),
        ),
        Child("front", front, env, partial(answers_ok, host, port, "/healthz")),
        *(Child(f"worker-{n}", worker(f"worker-{n}"), env) for n in range(1, workers + 1)),
    ]
    return children if settings.REDIS_URL else [queue_child(env), *children]


def queue_child(env: Mapping[str, str]) -> Child:
    """The embedded queue server."""
    data_folder = settings.CLAVIER_HOME / "queue"
    make_private_folder(data_folder)
    command = embedded_queue.server_command(socket_path=settings.CLAVIER_REDIS_SOCKET, data_folder=data_folder)
    return Child("valkey", command, env, partial(embedded_queue.answers, settings.CLAVIER_REDIS_SOCKET))


def granian(interface: str, target: str, *options: object) -> list[str]:
    """A granian server of one process; the supervisor restarts it, so granian itself does not."""
    command = [sys.executable, "-m", "granian", "--interface", interface, "--http", "1", "--no-ws"]
    command += ["--workers", "1", "--workers-kill-timeout", str(SERVER_STOP_GRACE_S)]
    return [*command, *map(str, options), target]


def worker(name: str) -> list[str]:
    """An RQ worker of the default queue."""
    options = [
        "--worker-class",
        "clavier.core.rq_worker.ShortJobWorker",
        "--serializer",
        "rq.serializers.JSONSerializer",
    ]
    return manage("rqworker", "default", "--name", name, *options)


def manage(*arguments: str) -> list[str]:
    """A management command as a command line."""
    return [sys.executable, str(settings.BASE_DIR / "manage.py"), *arguments]


def child_environment() -> dict[str, str]:
    """Our own environment; the source roots too, so that granian finds them in a bare checkout."""
    roots = [str(settings.BASE_DIR), str(settings.BASE_DIR / "platform"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "CLAVIER_HOME": str(settings.CLAVIER_HOME),
        "DJANGO_SETTINGS_MODULE": os.environ["DJANGO_SETTINGS_MODULE"],
        "PYTHONPATH": os.pathsep.join(filter(None, roots)),
        "PYTHONUNBUFFERED": "1",
    }


def accepts(socket_path: Path) -> bool:
    """Whether a server listens on a Unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(socket_path)) == 0


def answers_ok(host: str, port: int, path: str) -> bool:
    """Whether our own front answers 200."""
    connection = HTTPConnection(reachable(host), port, timeout=READY_TIMEOUT_S)
    try:
        connection.request("GET", path, headers={"Host": "localhost"})
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def reachable(host: str) -> str:
    """An address a browser on this machine can open."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def origin(host: str, port: int) -> str:
    """The platform's address for a browser on this machine."""
    name = reachable(host)
    return f"http://{f'[{name}]' if ':' in name else name}:{port}"


def log_folder() -> Path:
    """Where every child has its log file."""
    return Path(settings.CLAVIER_HOME) / "logs"


def banner(host: str, port: int) -> str:
    """What a person needs to know once everything runs."""
    address = origin(host, port)
    return f"""
  Clavier is ready.

    Portal      {address}/
    API         {address}/api/docs
    Operators   {address}/admin/
    Logs        {log_folder()}
    Stop        Ctrl-C (running trainings go on, and are collected at the next start)
"""
