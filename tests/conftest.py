"""Alice owns tenant one, Bob is its member, Charlie is a stranger from tenant two; data lies in a folder per test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from django.conf import settings as django_settings
from django.core.files.uploadedfile import TemporaryUploadedFile
from pytest_django import Settings

from clavier.accounts.models import Membership, User
from clavier.accounts.services import create_user
from clavier.core.actor import Actor, Role


def actor_of(user: User) -> Actor:
    """The user acting in its default tenant."""
    membership = Membership.objects.select_related("tenant").get(user=user, is_default=True)
    return Actor(
        user_id=user.pk,
        username=user.username,
        tenant_id=membership.tenant_id,
        tenant_name=membership.tenant.name,
        role=cast(Role, membership.role),
        is_operator=user.is_staff,
    )


def pytest_addoption(parser: pytest.Parser) -> None:
    """What a second run on another database need not repeat."""
    parser.addoption("--database-only", action="store_true", help="leave out what uses no database")


def uses_the_database(item: pytest.Item) -> bool:
    """Whether it has a database, by its marker or by a fixture."""
    fixtures = set(getattr(item, "fixturenames", ()))
    return item.get_closest_marker("django_db") is not None or bool({"db", "transactional_db"} & fixtures)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files with the longest time limits first: of two processes none is left alone with a long one at the end."""
    if config.getoption("--database-only"):
        left_out = [item for item in items if not uses_the_database(item)]
        items[:] = [item for item in items if uses_the_database(item)]
        config.hook.pytest_deselected(items=left_out)
    limits: dict[Path, float] = {}
    for item in items:
        marker = item.get_closest_marker("timeout")
        limits[item.path] = max(limits.get(item.path, 0.0), float(marker.args[0]) if marker else 0.0)
    items.sort(key=lambda item: -limits[item.path])


@pytest.fixture(scope="session")
def django_db_modify_db_settings(tmp_path_factory: pytest.TempPathFactory) -> None:
    """SQLite on the disk: tests race threads against each other, and a database in memory locks whole tables."""
    database = django_settings.DATABASES["default"]
    if database["ENGINE"].endswith("sqlite3"):
        database["TEST"]["NAME"] = str(tmp_path_factory.mktemp("database") / "test.sqlite3")


@pytest.fixture
def home(tmp_path: Path, settings: Settings) -> Path:
    """Everything that the platform keeps on the disk lies in here."""
    folder = tmp_path / "home"
    (folder / "uploads").mkdir(parents=True)
    settings.CLAVIER_HOME = folder
    settings.CLAVIER_FILES = folder / "files"
    settings.CLAVIER_DATASETS = folder / "datasets"
    settings.CLAVIER_RUNS = folder / "runs"
    settings.CLAVIER_IMAGES = folder / "images"
    settings.CLAVIER_SECRETS = folder / "secrets"
    settings.CLAVIER_EXECUTOR_FOLDER = folder / "executors"
    settings.FILE_UPLOAD_TEMP_DIR = str(folder / "uploads")
    (folder / "static").mkdir()
    settings.STATIC_ROOT = folder / "static"
    settings.DISK_RESERVE_MIB = 0
    plain = {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}  # needs no collectstatic
    settings.STORAGES = {**settings.STORAGES, "staticfiles": plain}
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # the real one takes 0.3 s each
    return folder


@pytest.fixture(autouse=True)
def _home_with_the_database(request: pytest.FixtureRequest) -> None:
    """A test that uses the database never touches the real home."""
    if uses_the_database(request.node):
        request.getfixturevalue("home")


@pytest.fixture
def alice_user(db: None) -> User:
    """The owner of tenant one."""
    return create_user(username="alice", tenant_name="one", password="alice-secret-1")[0]


@pytest.fixture
def bob_user(alice_user: User) -> User:
    """A member of tenant one."""
    return create_user(username="bob", tenant_name="one", password="bob-secret-22")[0]


@pytest.fixture
def charlie_user(db: None) -> User:
    """The owner of tenant two."""
    return create_user(username="charlie", tenant_name="two", password="charlie-secret-3")[0]


@pytest.fixture
def alice(alice_user: User) -> Actor:
    """Owner of tenant one."""
    return actor_of(alice_user)


@pytest.fixture
def bob(bob_user: User) -> Actor:
    """Member of tenant one."""
    return actor_of(bob_user)


@pytest.fixture
def charlie(charlie_user: User) -> Actor:
    """Stranger: owner of tenant two."""
    return actor_of(charlie_user)


@pytest.fixture
def spooled(home: Path) -> Iterator[Spool]:
    """Makes uploads as Django hands them over: spooled into the data file system."""
    spool = Spool()
    yield spool
    spool.close()


class Spool:
    """A factory of spooled uploads."""

    def __init__(self) -> None:
        self._uploads: list[TemporaryUploadedFile] = []

    def __call__(self, content: bytes, name: str = "x.txt") -> TemporaryUploadedFile:
        upload = TemporaryUploadedFile(name, "application/octet-stream", len(content), None)
        upload.write(content)
        upload.seek(0)
        self._uploads.append(upload)
        return upload

    def close(self) -> None:
        """Close what is still open."""
        for upload in self._uploads:
            upload.close()


def left_behind(home: Path) -> list[str]:
    """Every file (and link) beneath a home, for comparing before and after."""
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_symlink() or not path.is_dir())
