"""Trees that no path reaches to the end."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.contract.trees import measure, remove_tree, walk

DEPTH = 5000


def make_deep(folder: Path, depth: int, *, file: str = "") -> None:
    """Folders named d in each other; in the deepest a file of five bytes, if it is named."""
    at = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=at)
        deeper = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = deeper
    if file:
        with open(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=at), "w") as stream:
            stream.write("bytes")
    os.close(at)


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    """No more than a few files more than now can be open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 6, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("few_descriptors")
def test_a_tree_of_thousands_of_levels_is_walked_measured_and_removed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    make_deep(root, DEPTH, file="at the end")
    (deepest,) = (entry.name for entry in walk(root) if entry.depth > DEPTH)
    assert deepest == "at the end"
    assert measure(root) == (5, DEPTH + 1)
    assert len(list(walk(root, deepest=10))) == 11
    remove_tree(root)
    remove_tree(root)
    assert os.listdir(tmp_path) == []


def test_a_walk_goes_by_name_and_follows_no_link(tmp_path: Path) -> None:
    for path in ("root/b/two", "root/a/one", "root/c", "outside/secret"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("12345")
    (tmp_path / "root/link").symlink_to(tmp_path / "outside")
    os.mkfifo(tmp_path / "root/pipe")
    seen = [(entry.path, entry.is_folder, entry.is_regular()) for entry in walk(tmp_path / "root")]
    assert seen == [
        ("a", True, False), ("b", True, False), ("c", False, True), ("link", False, False), ("pipe", False, False),
        ("a/one", False, True), ("b/two", False, True),
    ]  # fmt: skip
    assert list(walk(tmp_path / "root/link")) == list(walk(tmp_path / "none")) == list(walk(tmp_path / "root/c")) == []
    remove_tree(tmp_path / "root/link")
    remove_tree(tmp_path / "root/c")
    remove_tree(tmp_path / "root")
    assert os.listdir(tmp_path) == ["outside"]
    assert (tmp_path / "outside/secret").exists()


def test_what_goes_or_turns_into_a_link_while_it_is_walked_is_left_out(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / "root" / name).mkdir(parents=True)
        (tmp_path / "root" / name / "file").write_text("x")
    seen = []
    for entry in walk(tmp_path / "root"):
        seen.append(entry.path)
        if entry.path == "c":
            shutil.rmtree(tmp_path / "root/a")
            shutil.rmtree(tmp_path / "root/b")
            (tmp_path / "root/b").symlink_to(tmp_path)
    assert seen == ["a", "b", "c", "c/file"]


def test_a_folder_that_is_moved_away_under_a_walk_leads_it_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "root/a/b").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    walking = walk(tmp_path / "root")
    assert [next(walking).path, next(walking).path] == ["a", "a/b"]
    (tmp_path / "root/a").rename(tmp_path / "elsewhere/a")
    with pytest.raises(OSError, match="was moved"):
        list(walking)


def test_a_file_of_several_names_is_measured_once_and_elsewhere_if_it_has_a_name_there(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/one").write_text("12345")
    (tmp_path / "root/two").hardlink_to(tmp_path / "root/one")
    with open(tmp_path / "root/hole", "wb") as stream:
        stream.truncate(1 << 40)
    assert measure(tmp_path / "root") == (5, 3)
    (tmp_path / "adopted").hardlink_to(tmp_path / "root/one")
    assert measure(tmp_path / "root") == (0, 3)
    assert measure(tmp_path / "none") == (0, 0)
