"""``manage.py demo [--json]``: the main job through the public HTTP API, against a running or self-started platform."""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from clavier.accounts.models import Membership
from clavier.accounts.services import create_api_key, create_user
from clavier.demo.client import Client, StepFailed
from clavier.demo.screen import Screen, table
from clavier.demo.story import Story

TENANT = USER = "demo"
START_LIMIT_S = 90.0


class Command(BaseCommand):
    """Exit code 0 only when every step worked and the tuned model is better than its base."""

    help = "Run the main job for real: data in, model pretrained and tuned, judged, served, asked."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """``--json`` prints one object; the others choose the platform."""
        parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
        parser.add_argument("--url", default="", help="a running platform, such as http://127.0.0.1:8000")
        parser.add_argument("--api-key", default="", help="a key there; needed when it has another database")
        parser.add_argument("--keep", action="store_true", help="leave a self-started platform running until Ctrl-C")

    def handle(self, *args: Any, **options: Any) -> None:
        """Find or start a platform, then tell the story. Raises CommandError."""
        with platform_at(options["url"]) as (origin, child):
            api_key, password = (options["api_key"], None) if options["api_key"] else demo_account()
            screen = Screen()
            story = Story(Client(origin, api_key), secrets.token_hex(3), screen.report)
            failure = ""
            try:
                story.run()
            except StepFailed as error:
                failure = str(error)
            except KeyboardInterrupt:
                failure = "interrupted"
            finally:
                screen.clear()
            facts = {**story.facts, "steps": [vars(step) for step in story.steps], "portal": origin, "error": failure}
            is_ours = child is not None
            words = portal_words(origin, password, is_self_started=is_ours, has_own_key=bool(options["api_key"]))
            if options["json"]:
                self.stdout.write(json.dumps(facts, ensure_ascii=False))
            else:
                self.stdout.write(table(story.steps, facts, words))
            if child is not None:
                wait_or_stop(child, story, keep=options["keep"])
        if failure:
            raise CommandError(f"{story.steps[-1].name if story.steps else 'start'} failed: {failure}")


@contextmanager
def platform_at(url: str) -> Iterator[tuple[str, subprocess.Popen[bytes] | None]]:
    """The origin of a ready platform: the one asked for, the one that runs here, or one started for the demo."""
    known = url.rstrip("/") or running_here()
    if known:
        wait_until_ready(known, 10, None)
        yield known, None
        return
    port = free_port()
    origin = f"http://127.0.0.1:{port}"
    command = [sys.executable, str(settings.BASE_DIR / "manage.py"), "up", "--port", str(port)]
    log = Path(settings.CLAVIER_HOME) / "logs" / "demo-up.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stderr.write(f"starting a platform on {origin} …\n")
    with open(log, "ab") as out, subprocess.Popen(command, stdout=out, stderr=out) as child:
        try:
            wait_until_ready(origin, START_LIMIT_S, child)
            yield origin, child
        except StepFailed as error:
            raise CommandError(f"{error} Its log is {log}.") from error
        finally:
            child.terminate()
            child.wait(timeout=30)


def running_here() -> str:
    """The origin of a platform that runs on this CLAVIER_HOME, or nothing."""
    note = Path(settings.CLAVIER_RUN_DIR) / "origin"
    origin = note.read_text().strip() if note.exists() else ""
    try:
        return origin if origin and requests.get(f"{origin}/healthz", timeout=2).ok else ""
    except requests.RequestException:
        return ""


def wait_until_ready(origin: str, limit_s: float, child: subprocess.Popen[bytes] | None) -> None:
    """Poll /readyz. Raises StepFailed with what is not ready."""
    deadline, answer = time.monotonic() + limit_s, "no answer"
    while time.monotonic() < deadline:
        if child is not None and child.poll() is not None:
            raise StepFailed(f"The platform ended with exit code {child.returncode}.")
        try:
            response = requests.get(f"{origin}/readyz", timeout=5)
            if response.ok:
                return
            answer = response.text
        except requests.RequestException:
            pass
        time.sleep(0.3)
    raise StepFailed(f"{origin} is not ready within {limit_s:g} s: {answer}")


def demo_account() -> tuple[str, str | None]:
    """A new key of the demo user, and its password when the user is new."""
    membership = (
        Membership.objects.select_related("user", "tenant").filter(user__username=USER, is_default=True).first()
    )
    password = None
    if membership is None:
        password = secrets.token_urlsafe(9)
        user, tenant = create_user(username=USER, tenant_name=TENANT, password=password)
    else:
        user, tenant = membership.user, membership.tenant
    return create_api_key(user=user, tenant=tenant, name="demo")[1], password


def portal_words(origin: str, password: str | None, *, is_self_started: bool, has_own_key: bool) -> str:
    """Where a person goes from here."""
    if has_own_key:
        return f"portal: {origin} (sign in as the user of the API key)"
    account = (
        f"user {USER}, password {password}" if password else f"user {USER}, with the password shown at its first demo"
    )
    if is_self_started:
        return f"portal: `make up`, then http://127.0.0.1:8000 ({account})"
    return f"portal: {origin} ({account})"


def wait_or_stop(child: subprocess.Popen[bytes], story: Story, *, keep: bool) -> None:
    """Stop what the demo has started; with ``keep`` only after Ctrl-C."""
    if keep:
        sys.stderr.write(f"The platform runs on {story.client.origin}; Ctrl-C stops it.\n")
        try:
            child.wait()
        except KeyboardInterrupt:
            return
    try:
        story.stop_service()
    except StepFailed as error:
        sys.stderr.write(f"the service could not be stopped: {error}\n")


def free_port() -> int:
    """A free port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
