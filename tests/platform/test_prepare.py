"""`manage.py prepare`: once or many times, the same."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from django.core.management import call_command
from pytest_django import Settings

from clavier.accounts.models import User
from clavier.management.commands import up

pytestmark = pytest.mark.django_db(transaction=True)


def test_the_first_operators_password_is_told_once_and_the_wrapper_lies_where_engines_see_it(
    home: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(up, "collect_static_files", lambda: None)
    settings.CLAVIER_RUN_DIR = home / "run"
    settings.EXECUTOR_OPTIONS = {"docker_engine": {"wrapper": str(home / "wrapper")}}
    (tmp_path / "made").write_bytes(b"ELF")
    said = []
    for _ in range(2):
        out = io.StringIO()
        call_command("prepare", wrapper=tmp_path / "made", stdout=out)
        said.append(out.getvalue())
    assert "Sign in as operator with the password" in said[0]
    assert "password" not in said[1]
    assert User.objects.filter(is_staff=True).count() == 1
    assert ((home / "wrapper").read_bytes(), (home / "wrapper").stat().st_mode & 0o777) == (b"ELF", 0o755)
    assert sorted(path.name for path in home.iterdir() if path.name.startswith("wrapper")) == ["wrapper"]
